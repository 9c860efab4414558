"""kill -9 at every place and at random moments: the end state is that of an uninterrupted run, and nothing is redone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.runs import KEEPING, acknowledged, check_end, drive, dump, finish, write_run

KILLED = -9

# Every place where the order of writes matters, before and after it happened, and the boundaries between the stages.
NAMES = ("create_run", "begin_round", "begin_attempt", "finish_stage", "decide", "add_completions", "add_verdicts",
         "begin_evaluation", "finish_evaluation", "add_probe", "add_probe_result", "commit_directory", "rename")  # fmt: skip
PLACES = [f"{moment} {place}" for place in NAMES for moment in ("before", "after")] + ["at between_stages"]
# Before a place is after the one before it, but for these.
# The others are slow: kills at random moments come to all of them.
FAST = {"after add_completions", "after commit_directory", "before decide"}
PROBING = KEEPING.replace("num_prompts = 0", "num_prompts = 2")


def finished(directory: Path, text: str) -> dict:
    left = dump(finish(write_run(directory, text)))
    assert [row["state"] for row in left["rounds"]] == ["kept", "kept"], "the kills are to hit a head that moves"
    return left


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return finished(tmp_path_factory.mktemp("uninterrupted"), KEEPING)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same with locks and forks."""
    left = finished(tmp_path_factory.mktemp("probed"), PROBING)
    assert left["probe_results"]
    return left


def check(config: Path, uninterrupted: dict) -> None:
    """The run is killed no more: it ends as the uninterrupted one, and no work was lost or done twice."""
    finish(config)
    left = check_end(config, uninterrupted)
    rows = Counter(acknowledged(config))
    assert set(rows.values()) == {1}, "a row was acknowledged twice: its work was repeated"
    stored = {f"completion {row['id']}" for row in left["completions"]}
    stored |= {f"verdict {row['completion_id']}" for row in left["verdicts"]}
    stored |= {f"probe {row['id']}" for row in left["probes"]}
    stored |= {f"probe result {row['id']}" for row in left["probe_results"]}
    assert set(rows) <= stored, "an acknowledged row is gone"
    assert not list((config.parent / ".loop" / "checkpoints").glob("tmp-*"))


@pytest.mark.parametrize(
    "place", [place if place in FAST else pytest.param(place, marks=pytest.mark.slow) for place in PLACES]
)
def test_killed_at_a_named_place(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    probing = "probe" in place
    config = write_run(tmp_path, PROBING if probing else KEEPING)
    killed = 0
    for count in (1, 2):  # the first time that it comes by, and in the process after that the second time
        code = drive(config, place, count)
        assert code in (0, KILLED), (tmp_path / "stderr").read_text()
        killed += code == KILLED
    assert killed >= 1, f"{place} was never reached"
    check(config, request.getfixturevalue("probed" if probing else "uninterrupted"))


@pytest.mark.parametrize("boundary", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, *range(4, 9)))])
def test_killed_at_each_stage_boundary(boundary: int, tmp_path: Path, uninterrupted: dict) -> None:
    config = write_run(tmp_path, KEEPING)
    assert drive(config, "at between_stages", boundary) == KILLED, (tmp_path / "stderr").read_text()
    check(config, uninterrupted)


@pytest.mark.parametrize(
    ("chain", "num_kills"), [(0, 5), *(pytest.param(n, 10, marks=pytest.mark.slow) for n in range(1, 6))]
)
def test_killed_at_random_moments(chain: int, num_kills: int, tmp_path: Path, uninterrupted: dict) -> None:
    """Fifty-five kills in all with `make test-all`; a run that ends between two kills is begun again elsewhere."""
    draw = random.Random(chain)
    killed = number = 0
    while killed < num_kills:
        number += 1
        config = write_run(tmp_path / str(number), KEEPING)
        while killed < num_kills:
            code = drive(config, kill_after_s=draw.uniform(0.2, 2.5))
            assert code in (0, KILLED), (config.parent / "stderr").read_text()
            killed += code == KILLED
            if code == 0:
                break
        check(config, uninterrupted)
