"""The daemon on rounds with several candidates, killed at named places: it ends as undisturbed, and only winners are left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loop.run.test_competing import several
from tests.support.runs import check_end, dump, write_run
from tests.whole.kills import KILLED, daemon, finish

CONFIG = several(4, num_steps=84, storage={"keep_last": 0, "min_free_bytes": 0})


@pytest.fixture(scope="module")
def peak() -> Iterator[None]:
    """Trainings turn bad after their middle."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LOOP_FAKE_PEAK", "40")
        yield


def left_in(config: Path) -> list[str]:
    return sorted(path.name for path in (config.parent / ".loop" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def expected(peak: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    config = write_run(tmp_path_factory.mktemp("undisturbed"), CONFIG, 40)
    finish(config)
    left = left_in(config)
    assert len(left) == 1 and left[0].startswith("round-0002")
    return dump(config.parent / ".loop"), left


PLACES = {
    "checkpoint.files_synced": (2, 4),
    "checkpoint.manifest_synced": (3, 5),
    "checkpoint.renamed": (1, 3),
    "checkpoint.named": (2, 4),
    "checkpoint.collected": (1, 1),
    "checkpoint.removing": (1, 2),
    "store.commit": (40, 60),
    "store.committed": (45, 75),
    "round.safe_point": (30, 50),
}
FAST: set[str] = set()  # random kills come to all of them


@pytest.mark.parametrize(
    ("place", "counts"),
    [pytest.param(*each, marks=[] if each[0] in FAST else pytest.mark.slow) for each in PLACES.items()],
)
def test_killed_at_a_named_place(place: str, counts: tuple[int, int], tmp_path: Path, expected: Any) -> None:
    whole, left = expected
    config = write_run(tmp_path, CONFIG, 40)
    codes = [daemon(config, f"{place}=kill@{count}") for count in counts]
    assert codes[0] == KILLED and set(codes) <= {0, KILLED}, (codes, (tmp_path / "journal").read_text()[-2000:])
    finish(config)
    check_end(config, whole)
    assert left_in(config) == left
