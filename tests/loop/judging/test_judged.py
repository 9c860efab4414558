"""What is said of two results is right: equal to independent calculations, and free of what must not matter."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from loop.judging.formats import read_results
from loop.judging.judged import AtK, Judged, _crossing, judged
from loop.judging.results import Problem, Results
from tests.support import TESTS

HARNESSES = TESTS / "data" / "harnesses"


def results(problems: dict[str, Problem], name: str = "a", **more: Any) -> Results:
    return Results(file=Path(f"{name}.json"), harness="h", suite="s", metric="m", problems=problems, **more)


def both(outcomes: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> tuple[Results, Results]:
    return (
        results({id: Problem(ours) for id, (ours, _) in outcomes.items()}),
        results({id: Problem(theirs) for id, (_, theirs) in outcomes.items()}, "b"),
    )


def differences(a: Results, b: Results) -> np.ndarray:
    return np.array([float(b.problems[id].rate - a.problems[id].rate) for id in a.problems])


def inverted_sign_flip_test(d: np.ndarray, alpha: float) -> tuple[float, float]:
    """All gains that the two one-sided sign-flip tests do not reject, by trying every flip at every gain on the way."""
    flips = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))

    def p_value(values: np.ndarray) -> float:
        return float(np.mean(flips @ values >= values.sum() - 1e-9))

    def lower(values: np.ndarray) -> float:
        low, high = -1.0, float(values.mean())
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if p_value(values - middle) <= alpha else (low, middle)
        return high

    return lower(d), -lower(-d)


@pytest.mark.parametrize(
    ("a", "b"),
    [("evalplus/a_eval_results.json", "evalplus/b_eval_results.json"), ("inspect-ai/a.eval", "inspect-ai/b.eval")],
)
def test_intervals_invert_the_sign_flip_test(a: str, b: str) -> None:
    for ours, theirs in zip(read_results(HARNESSES / a), read_results(HARNESSES / b), strict=True):
        said = judged(ours, theirs)
        assert said.interval == pytest.approx(inverted_sign_flip_test(differences(ours, theirs), 0.025), abs=1e-6)
        assert said.gain == pytest.approx(differences(ours, theirs).mean())


def test_against_scipy_on_what_lm_eval_left() -> None:
    """30 problems are too many for all flips: McNemar's exact test for the p-value, scipy's permutations at the ends of the interval."""
    for ours, theirs in zip(read_results(HARNESSES / "lm-eval/a"), read_results(HARNESSES / "lm-eval/b"), strict=True):
        said, d = judged(ours, theirs), differences(ours, theirs)
        assert said.p_value == pytest.approx(binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue)
        for end, side, outwards in ((said.interval[0], "greater", -1e-6), (said.interval[1], "less", 1e-6)):
            outside, inside = (
                permutation_test(
                    (d - gain,),
                    np.mean,
                    permutation_type="samples",
                    alternative=side,
                    n_resamples=20_000,
                    rng=np.random.default_rng(1),
                ).pvalue
                for gain in (end + outwards, end - outwards)
            )
            assert outside <= 0.025 + 0.005 and inside >= 0.025 - 0.005


def test_bonferroni_widens_every_interval() -> None:
    ours, theirs = (read_results(HARNESSES / "evalplus" / f"{who}_eval_results.json")[0] for who in "ab")
    alone, of_two = judged(ours, theirs), judged(ours, theirs, 2)
    assert of_two.confidence == pytest.approx(0.975) and alone.confidence == pytest.approx(0.95)
    assert of_two.interval[0] < alone.interval[0] < alone.interval[1] < of_two.interval[1]
    assert of_two.detectable_gain > alone.detectable_gain
    assert of_two.interval == pytest.approx(inverted_sign_flip_test(differences(ours, theirs), 0.0125), abs=1e-6)


# Properties

samples = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6).map(tuple)
problem = st.builds(
    Problem, samples, st.sampled_from(["easy", "hard", None]), st.sampled_from(["2025-01-02", "2025-02-03", None])
)
pairs = st.lists(st.tuples(problem, samples), min_size=1, max_size=12)


def sides(drawn: list[tuple[Problem, tuple[int, ...]]]) -> tuple[Results, Results]:
    a = {f"p{number}": ours for number, (ours, _) in enumerate(drawn)}
    b = {f"p{number}": ours._replace(outcomes=theirs) for number, (ours, theirs) in enumerate(drawn)}
    return results(a), results(b, "b")


def turned(interval: tuple[float, float]) -> tuple[float, float]:
    return -interval[1], -interval[0]


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_swapping_a_and_b_turns_every_sign(drawn: list[tuple[Problem, tuple[int, ...]]]) -> None:
    a, b = sides(drawn)
    said, swapped = judged(a, b), judged(b, a)
    assert swapped.gain == -said.gain and swapped.interval == turned(said.interval)
    assert (swapped.num_a_better, swapped.num_b_better, swapped.num_same) == (
        said.num_b_better,
        said.num_a_better,
        said.num_same,
    )
    assert swapped.verdict == {"B is better": "A is better", "A is better": "B is better"}.get(
        said.verdict, said.verdict
    )
    assert swapped.p_value == said.p_value and swapped.detectable_gain == pytest.approx(said.detectable_gain)
    assert (swapped.crossing and swapped.crossing.leads_at_1) != said.crossing or said.crossing is None
    for ours, theirs in zip(
        (*said.at_k, *said.by_difficulty, *said.by_month),
        (*swapped.at_k, *swapped.by_difficulty, *swapped.by_month),
        strict=True,
    ):
        assert (theirs.a, theirs.b, theirs.gain) == (ours.b, ours.a, -ours.gain) and theirs.interval == turned(
            ours.interval
        )


@given(pairs)
@settings(deadline=None, max_examples=40)
def test_equal_results_are_the_same(drawn: list[tuple[Problem, tuple[int, ...]]]) -> None:
    a, _ = sides(drawn)
    said = judged(a, a)
    assert said.gain == 0 and said.verdict == "the same" and said.num_same == said.num_problems and said.p_value == 1
    assert said.interval[0] <= 0 <= said.interval[1] and said.crossing is None and {at.gain for at in said.at_k} == {0}


@given(pairs, st.randoms())
@settings(deadline=None, max_examples=40)
def test_the_order_of_problems_does_not_matter(
    drawn: list[tuple[Problem, tuple[int, ...]]], numbers: random.Random
) -> None:
    a, b = sides(drawn)
    ids = list(a.problems)
    numbers.shuffle(ids)
    shuffled = [results({id: side.problems[id] for id in ids}, side.file.stem) for side in (a, b)]
    assert judged(*shuffled) == judged(a, b)


# What a reader sees


def of_rates(num_problems: int, num_samples: int, a: tuple[float, float], b: tuple[float, float]) -> Judged:
    """Half of the problems have the first rate, half the second."""
    right = [[round(rate * num_samples) for rate in side] for side in (a, b)]
    outcomes = {
        f"p{number}": tuple((1.0,) * side[number % 2] + (0.0,) * (num_samples - side[number % 2]) for side in right)
        for number in range(num_problems)
    }
    return judged(*both(outcomes))  # type: ignore[arg-type]


def test_curves_that_cross() -> None:
    """B is surer of what it knows; A knows a little of everything: ahead at 1, behind at 64."""
    said = of_rates(40, 64, a=(0.5, 0.1), b=(0.8, 0.0))
    assert said.crossing is not None and (said.crossing.leads_at_1, said.crossing.other_leads_from) == ("B", 5)
    assert said.crossing.told and [at.k for at in said.at_k] == [1, 5, 10, 25, 64]
    assert of_rates(40, 64, a=(0.5, 0.1), b=(0.6, 0.2)).crossing is None


def test_leads_are_told_only_where_the_far_end_is_the_others() -> None:
    def at(k: int, gain: float) -> AtK:
        return AtK(k=k, a=0.5, b=0.5 + gain, gain=gain, interval=(gain - 0.01, gain + 0.01))

    there_and_back = _crossing([at(1, 0.1), at(5, -0.1), at(10, 0.1)])
    assert there_and_back is not None and there_and_back.other_leads_from == 5 and not there_and_back.told
    told = _crossing([at(1, -0.1), at(5, 0.1)])
    assert told is not None and told.told and told.leads_at_1 == "A"
    assert _crossing([at(1, 0.0), at(5, 0.1)]) is None and _crossing([]) is None


def test_scores_in_shades_are_means_and_have_no_pass_at_k() -> None:
    said = judged(*both({f"p{number}": ((0.25,), (0.5,)) for number in range(20)}))
    assert (
        not said.is_pass_rate and said.at_k == () and said.gain == pytest.approx(0.25) and said.verdict == "B is better"
    )


def test_very_many_scores_in_shades_are_rounded_by_less_than_shows() -> None:
    numbers = random.Random(1)
    outcomes = {f"p{number}": ((numbers.random(),), (numbers.random(),)) for number in range(2_000)}
    a, b = both(outcomes)
    assert judged(a, b).gain == pytest.approx(differences(a, b).mean(), abs=5e-4)
    assert judged(b, a).gain == -judged(a, b).gain


def test_parts_need_two_names_and_say_what_has_none() -> None:
    named = {"p1": Problem((1,), "easy"), "p2": Problem((0,), None)}
    assert [part.name for part in judged(results(named), results(named)).by_difficulty] == ["not said", "easy"]
    alike = {id: Problem((1,), "easy") for id in "pq"}
    assert judged(results(alike), results(alike)).by_difficulty == ()


def test_notes_say_whose_they_are() -> None:
    problems = {"p": Problem((1,))}
    a, b = results(problems, notes=("both", "mine")), results(problems, notes=("both",))
    assert judged(a, b).notes == ("both", "A: mine")
