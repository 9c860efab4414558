"""The gate against drift: its levels sum to alpha, its test is Student's, and what sharpening leaves alone is what it looks at."""

from __future__ import annotations

import math
import random
from statistics import covariance, fmean, stdev, variance
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.decision import GateResult
from policies.evidence import BadEvidence, read_evidence
from policies.gates import Drift, Look
from policies.gates.drift import DEFAULTS, FEWEST, Bound, share_of
from policies.policy import build_policy
from policies.statistics import students_t
from tests.support.evidence import SAME, evidence, split

Values = list[float]


def pair(candidate: Values, base: Values) -> dict[str, Any]:
    return {
        "candidate": fmean(candidate),
        "base": fmean(base),
        "candidate_variance": variance(candidate),
        "base_variance": variance(base),
        "covariance": covariance(candidate, base),
        "num_problems": len(base),
    }


def judged(round: int = 1, gate: Drift | None = None, line: Any = None, **signals: Any) -> GateResult:
    seen = read_evidence(evidence(round, select=split(SAME)) | ({"since_base": signals} if signals else {}))
    return (gate or Drift()).evaluate(seen, Look("select", line=line))


def answers(rate: float, num_problems: int = 200, seed: int = 1) -> Values:
    """Shares of four samples, by problem."""
    numbers = random.Random(seed)
    return [sum(numbers.random() < rate for _ in range(4)) / 4 for _ in range(num_problems)]


@given(st.integers(1, 10_000))
def test_the_levels_of_all_rounds_sum_to_less_than_alpha(num_rounds: int) -> None:
    assert math.fsum(map(share_of, range(1, num_rounds + 1))) <= 1
    assert math.fsum(bound.part for bound in DEFAULTS.values()) <= 1 + 1e-12


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0.25, 0.5, 1.0]), st.sampled_from([0, 0.25, 0.5, 1.0])), min_size=40, max_size=60
    )
)
def test_it_is_students_test_with_an_imagined_problem_at_the_bound(rows: list[tuple[float, float]]) -> None:
    ours, base = map(list, zip(*rows, strict=True))
    differences = [*(one - 0.98 * other for one, other in zip(ours, base, strict=True)), 0.0]
    error = stdev(differences) / math.sqrt(len(differences))
    level = 0.05 * share_of(3) * DEFAULTS["solved"].part
    limit = -students_t(1 - 2 * level, len(differences) - 1) * error
    if not math.isclose(fmean(differences), limit, rel_tol=1e-6):
        expected = "fail" if error and fmean(differences) < limit else "pass"
        assert judged(3, solved=pair(ours, base)).verdict == expected


def test_a_fall_is_named_with_its_limit_and_its_level() -> None:
    result = judged(5, distinct_correct_rate=pair(answers(0.3), answers(0.45)))
    assert result.verdict == "fail"
    assert result.reason == (
        "distinct_correct_rate 0.289 has drifted from the base's 0.446, under 0.98 of it at 99.83% "
        "(this round's part of the 5% for the run)"
    )
    assert result.figures == {
        "level": pytest.approx(0.05 * 5 / 90), "distinct_correct_rate": 0.28875, "distinct_correct_rate_base": 0.44625,
    }  # fmt: skip


def test_what_did_not_move_is_no_drift() -> None:
    same = answers(0.45)
    result = judged(1, distinct_correct_rate=pair(same, same), code_rate=pair([1.0] * 50, [1.0] * 50))
    assert result.verdict == "pass"
    assert result.reason == (
        "no drift from the base is shown: distinct_correct_rate 0.446, 1.00 of the base's, code_rate 1, 1.00 of the base's"
    )


def test_a_fall_that_a_first_round_shows_is_weighed_by_its_own_level() -> None:
    """The same figures: what one round may say, a later one, whose level is smaller, may not."""
    ours, base = answers(0.36, seed=2), answers(0.45)
    verdicts = [judged(round, distinct_correct_rate=pair(ours, base)).verdict for round in (1, 300)]
    assert verdicts == ["fail", "pass"]


@pytest.mark.parametrize(
    ("name", "ours", "base"),
    [
        ("truncation_rate", answers(0.4), answers(0.05)),
        ("code_rate", answers(0.7), answers(0.95)),
        ("code_rate", [0.0] * 50, [1.0] * 50),
        ("mean_length", [40.0 + i % 7 for i in range(60)], [90.0 + i % 5 for i in range(60)]),
        ("solved", [1.0] * 30 + [0.0] * 30, [1.0] * 55 + [0.0] * 5),
    ],
)
def test_other_signals_drift_in_one_direction(name: str, ours: Values, base: Values) -> None:
    assert judged(1, **{name: pair(ours, base)}).verdict == "fail"
    assert judged(1, **{name: pair(base, ours)}).verdict == "pass"


def test_sharpening_may_cost_a_few_different_right_answers() -> None:
    """Half as many wrong answers, and one right answer in ten has become another: that is what a gain looks like."""
    base = [0.5, 0.75] * 100
    fewer = [0.42, 0.63] * 100
    rates = {"pass@1": pair([0.9, 0.95] * 100, [0.4, 0.6] * 100)}
    assert judged(2, distinct_correct_rate=pair(fewer, base)).verdict == "fail"
    assert judged(2, distinct_correct_rate=pair(fewer, base), **rates).verdict == "pass"


def test_too_little_is_no_evidence_of_drift() -> None:
    few = FEWEST - 1
    assert "too few" in judged(1, solved=pair([0.0] * few, [1.0] * few)).reason
    nothing = judged(1)
    assert (nothing.verdict, "not compared with the base" in nothing.reason) == ("pass", True)


def test_a_limit_of_ones_own() -> None:
    ours, base = answers(0.3), answers(0.45)
    lenient = Drift(limits={"distinct_correct_rate": Bound(min_of_base=0.5, part=0.6)})
    assert judged(1, lenient, distinct_correct_rate=pair(ours, base)).verdict == "pass"
    assert judged(1, Drift(ignore=("distinct_correct_rate",)), distinct_correct_rate=pair(ours, base)).verdict == "pass"
    with pytest.raises(BadEvidence, match="since_base: spread is not measured"):
        judged(1, Drift(ignore=("solved",), limits={"spread": Bound(min_of_base=0.5)}), solved=pair(ours, base))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"limits": {"solved": {}}}, "sets not exactly one limit"),
        ({"limits": {"solved": {"max_fall": 0.1, "max_rise": 0.1}}}, "sets not exactly one limit"),
        ({"limits": {"spread": {"max_fall": 0.1, "part": 0.5}}}, "the parts of its limits sum to 1.5"),
        ({"alpha": 1.0}, "less than 1"),
    ],
)
def test_mistakes_are_said_in_a_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        build_policy([{"type": "drift"} | keys], "select")
    assert "\n" not in str(raised.value)


def test_looks_in_parts_share_the_level_of_their_round() -> None:
    ours, base = answers(0.36, seed=2), answers(0.45)
    in_parts = evidence(1, select=split(SAME, num_planned=6, num_looks=6)) | {
        "since_base": {"distinct_correct_rate": pair(ours, base)}
    }
    level = Drift().evaluate(read_evidence(in_parts), Look("select")).figures["level"]
    assert level == pytest.approx(0.05 * share_of(1) / 6)


def test_chance_alone_hardly_ever_stops_a_run() -> None:
    """300 runs of 20 rounds in which every candidate answers as the base does: each is compared with the one base."""
    stopped = 0
    for seed in range(300):
        numbers = random.Random(seed)
        rates = [numbers.betavariate(0.35, 0.35) for _ in range(60)]

        def drawn(numbers: random.Random = numbers, rates: Values = rates) -> Values:
            return [sum(numbers.random() < rate for _ in range(4)) / 4 for rate in rates]

        base = drawn()
        stopped += any(judged(n, solved=pair(drawn(), base)).verdict == "fail" for n in range(1, 21))
    assert stopped <= 300 * 0.05
