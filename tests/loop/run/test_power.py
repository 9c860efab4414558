"""What an evaluation sees, what follows for a run, and which changes help most."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.run.opening import open_session
from loop.run.power import coarseness_warning, planned_looks, rounds_until_shown
from loop.run.session import Session
from policies.line import CHURN_VARIANCE
from policies.noise import PRIOR_VARIANCE
from policies.statistics import smallest_detectable_gain
from tests.support.configurations import configuration
from tests.support.runs import Quiet, write_run

ONES: dict[str, Any] = {"name": "ones", "source": "ones.jsonl", "num_samples": 4, "pass_at": [1]}
CONFIRM = {"select": 0.2, "confirm": 0.8}


def opened(
    tmp_path: Path, num_problems: int, rounds: int = 10, suite: dict[str, Any] | None = None, **decide: Any
) -> Any:
    suites, decide = [ONES | (suite or {})], {"unclear": "carry"} | decide
    config = write_run(tmp_path, configuration(rounds=rounds, suites=suites, decide=decide), num_problems)
    return open_session(load_config(config), Quiet())


def warning(session: Session) -> str:
    said = coarseness_warning(session)
    assert said is not None and len(said) <= 400 and said.count("\n") == 0, said
    assert said.endswith("; `loopctl simulate` plays whole runs under these settings")
    return said


def remedies(said: str) -> list[tuple[float, str]]:
    """Each gain that a new run would see, and with what change."""
    told = said.partition("a new run would see ")[2].partition(";")[0]
    return [(float(gain), what) for gain, what in re.findall(r"(0\.\d{3}) ((?:[^,]|,\d)+)", told)]


def test_gains_along_a_line_add_up(tmp_path: Path) -> None:
    with opened(tmp_path, 140) as session:
        number, _ = rounds_until_shown(session, PRIOR_VARIANCE)
        said = warning(session)
        assert 2 <= number <= 4 and f"about {number} such rounds, carried, add up to what a look shows" in said
        (gain, what), *others = remedies(said)
        assert gain <= 0.03 and re.fullmatch("with [0-9,]+ problems", what)
        assert [what for _, what in others] == ["with 20 samples of each"] and others[0][0] > gain
        finer, _ = rounds_until_shown(session, PRIOR_VARIANCE / 4)
        coarser, _ = rounds_until_shown(session, PRIOR_VARIANCE * 4)
        assert finer <= number < coarser


def test_a_run_may_end_before_they_add_up(tmp_path: Path) -> None:
    with opened(tmp_path, 20, 2) as session:
        assert rounds_until_shown(session, PRIOR_VARIANCE) == (None, 2)
        assert "even 2 such rounds, carried, would mostly not add up to what a look shows" in warning(session)
        session.goal = 20
        number, _ = rounds_until_shown(session, PRIOR_VARIANCE)
        assert number > 2


def test_a_last_look_sees_more(tmp_path: Path) -> None:
    gates = [{"type": "improvement", "target_gain": 0.05}]
    for last_samples, expected in ((100, (2, 2)), (1, (None, 2))):
        with opened(tmp_path / str(last_samples), 60, 2, last_samples=last_samples, gates=gates) as session:
            assert rounds_until_shown(session, PRIOR_VARIANCE) == expected


def test_what_is_free_is_named_and_the_most_helpful_comes_first(tmp_path: Path) -> None:
    with opened(tmp_path, 140, suite={"splits": CONFIRM}, confirm="confirm", looks=6) as session:
        told = remedies(warning(session))
        assert [gain for gain, _ in told] == sorted(gain for gain, _ in told) and len(told) == 3
        words = [what for _, what in told]
        assert words[0].endswith(" problems in confirm") and "without the confirm split" in words
        joined = next(gain for gain, what in told if what == "without the confirm split")
    with opened(tmp_path / "joined", 140, looks=6) as session:
        (look,) = planned_looks(session)
        assert look.detects(PRIOR_VARIANCE) == pytest.approx(joined, abs=0.0006), "it brings what it says"


def test_looks_in_parts_cost_some_of_the_level(tmp_path: Path) -> None:
    with opened(tmp_path, 140, looks=6) as session, opened(tmp_path / "once", 140) as once:
        (parts,), (whole,) = planned_looks(session), planned_looks(once)
        assert parts.detects(PRIOR_VARIANCE) > whole.detects(PRIOR_VARIANCE)


def test_without_carrying_it_is_the_first_remedy(tmp_path: Path) -> None:
    with opened(tmp_path, 140, unclear="rollback") as session:
        said = warning(session)
        assert (
            "a gain of that size would mostly be missed; a new run would see the gains of several rounds together"
            in said
        )
        assert len(remedies(said)) == 2


def test_more_samples_do_not_help_against_what_a_round_moves_by_itself(tmp_path: Path) -> None:
    with opened(tmp_path, 140) as session:
        (look,) = planned_looks(session)
        differences = [CHURN_VARIANCE**0.5 * (-1) ** number for number in range(look.num_problems)]
        least = smallest_detectable_gain(differences, look.level, look.gate.power)
        assert look.detects(1e-9) == pytest.approx(least, rel=0.01)
        assert look.samples_needed(PRIOR_VARIANCE) == 179, "many, and with fewer problems no number is enough"
        assert replace(look, num_problems=100).samples_needed(PRIOR_VARIANCE) is None


def test_an_evaluation_that_is_fine_enough_is_not_talked_about(tmp_path: Path) -> None:
    with opened(tmp_path, 140, gates=[{"type": "improvement", "target_gain": 0.2}]) as session:
        assert coarseness_warning(session) is None
