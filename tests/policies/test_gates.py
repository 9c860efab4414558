"""The gates beside `improvement`, and how a policy goes from one split to the next: as tables, and over random evidence."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decision import Decision, GateResult
from policies.evidence import BadEvidence, read_evidence
from policies.gates import Improvement, Look
from policies.policy import build_policy, next_part
from tests.support.evidence import DOWN, SAME, UP, Sides, decide, evidence, sides, split

# the error budget


def test_a_fruitless_look_spends_and_a_kept_round_does_not() -> None:
    gate = Improvement()
    for fruitless, expected in ((0, 0.025), (1, 0.05 / 6), (9, 0.05 / 110)):
        seen = read_evidence(evidence(30, select=split(UP), fruitless_looks={"select": fruitless}))
        assert gate.level(seen.num_fruitless("select"), Look("select")) == pytest.approx(expected)
    assert read_evidence(evidence(3, select=split(UP))).num_fruitless("select") == 2, "nobody counted"
    assert gate.level(9, Look("select", screening=True)) == gate.screen
    assert Improvement(budget="round").level(seen, Look("select")) == 0.05


def test_only_the_split_with_the_last_word_is_counted() -> None:
    alone = build_policy([{"type": "improvement"}], "select")
    both = build_policy([{"type": "improvement"}], "select", "confirm")
    screened = read_evidence(evidence(select=split(DOWN))).model_dump(mode="json")
    opened = read_evidence(evidence(select=split(UP), confirm=split(DOWN, prefix="c"))).model_dump(mode="json")
    assert alone.fruitless_after(screened, "rollback") == {"select": 1}
    assert alone.fruitless_after(screened, "inconclusive") == {"select": 1}
    assert alone.fruitless_after(screened, "keep") == {}
    assert both.fruitless_after(screened, "rollback") == {}
    assert both.fruitless_after(opened | {"fruitless_looks": {"confirm": 4}}, "rollback") == {"confirm": 5}
    assert both.fruitless_after(opened | {"fruitless_looks": {"confirm": 4}}, "keep") == {"confirm": 4}


# from split to split


def test_a_promising_candidate_opens_the_split_that_confirms() -> None:
    policy: dict[str, Any] = {"confirm": "confirm"}
    first = decide(evidence(select=split(*[UP] * 20)), **policy)
    assert (first.verdict, first.action, first.need) == ("inconclusive", "confirm", {"split": "confirm"})
    assert "another split has the last word" in first.gates[0].reason
    good = evidence(select=split(*[UP] * 20), confirm=split(*[UP] * 20, prefix="c"))
    assert decide(good, **policy).action == "keep"
    bad = evidence(select=split(*[UP] * 20), confirm=split(*[DOWN] * 200, prefix="c"))
    assert decide(bad, **policy).action == "rollback"
    assert decide(evidence(select=split(*[DOWN] * 200)), **policy).action == "rollback", "not worth a look at confirm"


def test_more_is_asked_for_until_all_is_in() -> None:
    part = split(*[UP] * 2, *[DOWN] * 2, num_planned=10, num_looks=5)
    more = decide(evidence(select=part))
    need = {"split": "select", "num_problems": 2}
    assert (more.verdict, more.action, more.need) == ("inconclusive", "sample_more", need)
    whole = split(*[UP] * 5, *[DOWN] * 5, num_planned=10, num_looks=5)
    unclear = decide(evidence(select=whole))
    assert (unclear.verdict, unclear.action) == ("inconclusive", "rollback")
    assert decide(evidence(select=whole), unclear="pause").action == "pause"


@given(st.integers(1, 300), st.integers(1, 100))
def test_parts_end_with_the_whole(num_planned: int, num_looks: int) -> None:
    sizes = [0]
    while sizes[-1] < num_planned:
        sizes.append(next_part(sizes[-1], num_planned, num_looks))
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1 and len(steps) == min(num_looks, num_planned)


def test_keep_if_not_inferior_wants_a_bound() -> None:
    strict = {"type": "improvement", "budget": "round"}
    wide = evidence(select=split(*[UP] * 3, *[DOWN] * 3))
    assert decide(wide, strict, unclear="keep_if_not_inferior", margin=0.02).action == "rollback"
    unclear = evidence(select=split(*[UP] * 30, *[DOWN] * 26, *[SAME] * 144))
    assert decide(unclear, strict).verdict == "inconclusive"
    kept = decide(unclear, strict, unclear="keep_if_not_inferior", margin=0.06)
    assert (kept.verdict, kept.need) == ("keep", {"not_inferior_by": 0.06})


def test_canaries_are_asked_for_last_and_can_stop_a_keep() -> None:
    gates = ({"type": "improvement"}, {"type": "no_regression", "suite": "greedy", "margin": 0.05})
    good = evidence(select=split(*[UP] * 20))
    assert decide(good, *gates).need == {"suites": ["greedy"]}
    fine = good["splits"] | {"greedy": split(*[SAME] * 300, suite="greedy")}
    assert decide(evidence(**fine), *gates).action == "keep"
    harm = good["splits"] | {"greedy": split(*[DOWN] * 100, *[SAME] * 200, suite="greedy")}
    stopped = decide(evidence(**harm), *gates)
    assert stopped.action == "rollback" and [gate.verdict for gate in stopped.gates] == ["pass", "fail"]
    assert "greedy" in stopped.gates[1].reason and "worse by more than the margin" in stopped.gates[1].reason
    bad = evidence(select=split(*[DOWN] * 200))
    assert decide(bad, *gates).action == "rollback", "what is not better needs no canary"


# no_regression


EASY = [SAME | {"difficulty": "easy"}] * 200  # type: ignore[dict-item]
LONGER = {"candidate": {"mean_length": 130}, "head": {"mean_length": 100}}
HARD = [problem | {"difficulty": "hard"} for problem in (DOWN, SAME) for _ in range(30)]  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("problems", "gate", "verdict"),
    [
        ([SAME] * 300, {}, "pass"),
        ([DOWN] * 60 + [SAME] * 240, {}, "fail"),
        ([DOWN] * 4 + [SAME] * 96, {}, "inconclusive"),
        ([DOWN] * 4 + [SAME] * 96, {"unclear": "pass"}, "pass"),
        ([DOWN] * 4 + [SAME] * 96, {"unclear": "fail"}, "fail"),
        ([DOWN] * 4 + [SAME] * 96, {"margin": 0.2}, "pass"),
        ([UP] * 50 + [SAME] * 50, {}, "pass"),
        (EASY + HARD, {"difficulty": "easy"}, "pass"),
        (EASY + HARD, {"difficulty": "each"}, "fail"),
        ([SAME], {"signal": "mean_length"}, "fail"),
        ([SAME], {"signal": "mean_length", "max_rise": 0.4}, "pass"),
    ],
)
def test_no_regression(problems: list[Sides], gate: dict[str, Any], verdict: str) -> None:
    seen = evidence(select=split(*problems), signals=LONGER)
    result = decide(seen, {"type": "no_regression", **gate}).gates[0]
    assert result.verdict == verdict
    if gate.get("difficulty") == "each":
        assert ", hard:" in result.reason and result.figures["difficulty"] == "hard"


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"type": "no_regression", "difficulty": "medium"}, "no problem of difficulty 'medium'"),
        ({"type": "no_regression", "signal": "latency"}, "latency is not measured"),
        ({"type": "collapse", "limits": {"entropy": {"min_of_head": 0.5}}}, "entropy is not measured"),
        ({"type": "improvement", "metric": "pass@5"}, "pass@5 needs at least 5 samples"),
    ],
)
def test_what_is_not_there_is_never_guessed(gate: dict[str, Any], message: str) -> None:
    with pytest.raises(BadEvidence, match=message):
        decide(evidence(select=split(*EASY, *HARD), signals=LONGER), gate)


# collapse


def test_collapse_sees_a_narrow_model_whose_score_rises() -> None:
    before = {"distinct_solution_rate": 0.8, "spread": 0.2, "entropy": 0.6, "mean_length": 100, "code_rate": 0.9}
    fine = before | {"distinct_solution_rate": 0.7, "spread": 0.17}
    narrow = before | {"distinct_solution_rate": 0.5, "spread": 0.11}
    up = split(*[UP] * 20)
    gates = ({"type": "improvement"}, {"type": "collapse"})
    healthy = decide(evidence(select=up, signals={"candidate": fine, "head": before, "base": before}), *gates)
    assert healthy.action == "keep"
    assert "not measured: distinct_correct_rate, truncation_rate" in healthy.gates[1].reason
    sunk = decide(evidence(select=up, signals={"candidate": narrow, "head": before, "base": before}), *gates)
    assert sunk.action == "rollback"
    assert sunk.gates[1].reason == (
        "distinct_solution_rate 0.5 is under 0.8 of the head's 0.8; distinct_solution_rate 0.5 is under 0.75 of the base's 0.8; "
        "spread 0.11 is under 0.6 of the head's 0.2"
    )
    slow = {name: value * 0.85 for name, value in narrow.items()}  # in small steps: the base remembers
    sunk = decide(evidence(select=up, signals={"candidate": slow, "head": narrow, "base": before}), *gates)
    assert sunk.action == "rollback" and "spread 0.0935 is under 0.5 of the base's 0.2" in sunk.gates[1].reason


def collapse(candidate: dict[str, float], other: dict[str, float], who: str, **keys: object) -> GateResult:
    seen = evidence(select=split(SAME), signals={"candidate": candidate, who: other})
    return decide(seen, {"type": "collapse"} | keys).gates[0]


@pytest.mark.parametrize(
    ("name", "who", "theirs", "limit"),
    [
        ("entropy", "head", 0.5, 0.65), ("entropy", "base", 0.5, 0.4),
        ("distinct_solution_rate", "head", 0.5, 0.8), ("distinct_solution_rate", "base", 0.5, 0.75),
        ("distinct_correct_rate", "head", 0.5, 0.9), ("distinct_correct_rate", "base", 0.5, 0.8),
        ("spread", "head", 0.5, 0.6), ("spread", "base", 0.5, 0.5),
        ("mean_length", "head", 80.0, 0.7), ("mean_length", "base", 80.0, 0.5),
    ],
)  # fmt: skip
def test_each_default_limit_is_where_it_is_said_to_be(name: str, who: str, theirs: float, limit: float) -> None:
    assert collapse({name: theirs * (limit + 0.01)}, {name: theirs}, who).verdict == "pass"
    assert collapse({name: theirs * (limit - 0.01)}, {name: theirs}, who).verdict == "fail"


def test_collapse_allows_for_noise() -> None:
    ours, theirs = {"spread": 0.28, "spread_error": 0.02}, {"spread": 0.5, "spread_error": 0.02}
    assert collapse(ours, theirs, "head").verdict == "pass"  # .28 + 1.25 hypot(.02, .6 * .02) is above .3
    assert collapse(ours | {"spread": 0.26}, theirs, "head").verdict == "fail"
    few = collapse({"spread": 0.0, "spread_error": 0.0, "num_samples": 149}, theirs, "head")
    assert few.verdict == "pass" and "on too few samples to be judged: spread" in few.reason
    assert collapse({"spread": 0.0, "spread_error": 0.0, "num_samples": 150}, theirs, "head").verdict == "fail"
    asked = collapse({"spread": 0.0, "num_samples": 4}, theirs, "head", limits={"spread": {"min_of_head": 0.5}})
    assert asked.verdict == "fail"  # whoever sets a limit means it


def test_what_fewer_wrong_answers_explain_is_no_collapse() -> None:
    """A tiny model that lost two thirds of its wrong answers lost two thirds of its entropy with them."""
    base = {"entropy": 0.103, "distinct_solution_rate": 0.567, "pass@1": 0.702}
    sharp = {"entropy": 0.034, "distinct_solution_rate": 0.31, "pass@1": 0.907}
    assert collapse(sharp, base, "base").verdict == "pass"
    reason = collapse(sharp | {"pass@1": 0.75}, base, "base").reason
    assert reason.startswith("entropy 0.034 is under 0.4 of the base's 0.103, with 0.84 of its wrong answers left; ")
    assert collapse(sharp, base, "base", defaults=1).verdict == "fail"
    narrower = sharp | {"entropy": 0.017}  # as healthy rounds of the study are, late in a run
    verdicts = [collapse(narrower, base, "base", defaults=which).verdict for which in (2, 3)]
    assert verdicts == ["fail", "pass"], "what a run of an earlier version began with stays as it was"


def test_in_a_line_a_round_is_compared_with_the_tip_that_it_was_trained_from() -> None:
    """Two healthy steps away from the head are one from the tip; and a collapse is one, however far the head is."""
    head, tip, base = ({"entropy": entropy, "pass@1": 0.8} for entropy in (0.1, 0.07, 0.11))
    two_steps = {"entropy": 0.05, "pass@1": 0.8}
    seen = {"candidate": two_steps, "head": head, "tip": tip, "base": base}

    def judged(signals: dict[str, dict[str, float]]) -> GateResult:
        return decide(evidence(select=split(SAME), signals=signals), {"type": "collapse"}).gates[0]

    assert judged({who: each for who, each in seen.items() if who != "tip"}).verdict == "fail"
    assert judged(seen).verdict == "pass"
    assert (judged(seen).figures["entropy_tip"], "entropy_head" in judged(seen).figures) == (0.07, False)
    gone = judged(seen | {"candidate": {"entropy": 0.09, "pass@1": 0.8}, "tip": {"entropy": 0.2, "pass@1": 0.8}})
    assert gone.reason == "entropy 0.09 is under 0.65 of the tip's 0.2"


@pytest.mark.parametrize(
    ("name", "steps"),
    [("truncation_rate", (0.02, 0.14, 0.26)), ("code_rate", (1.0, 0.92, 0.84)), ("loss_gap", (0.0, 0.4, 0.8))],
)
def test_a_line_may_not_fall_as_far_again_in_each_of_its_rounds(name: str, steps: tuple[float, ...]) -> None:
    head, tip, candidate = ({name: value} for value in steps)
    signals = {"candidate": candidate, "head": head, "tip": tip, "base": head}
    result = decide(evidence(select=split(SAME), signals=signals), {"type": "collapse"}).gates[0]
    assert result.verdict == "fail" and f"{name} {candidate[name]:.3g} is more than" in result.reason


def test_collapse_limits_are_set_ignored_and_never_guessed() -> None:
    seen = evidence(select=split(SAME), signals={"candidate": {"code_rate": 0.5}, "head": {"code_rate": 0.9}})
    gate = {"type": "collapse"}
    assert decide(seen, gate).gates[0].verdict == "fail"
    assert decide(seen, gate | {"limits": {"code_rate": {"max_fall": 0.5}}}).gates[0].verdict == "pass"
    assert "nothing is measured; not measured: entropy" in decide(evidence(select=split(SAME)), gate).gates[0].reason
    assert decide(seen, gate | {"ignore": ["code_rate"]}).gates[0].verdict == "pass"
    with pytest.raises(ValueError, match="sets no limit"):
        decide(seen, gate | {"limits": {"code_rate": {}}})


# best_so_far


def test_a_slow_slide_is_seen_against_the_best_round() -> None:
    slid = split(*[sides([1], [1], best=[1])] * 100, *[sides([0], [0], best=[1])] * 20)
    gate = {"type": "best_so_far"}
    back = decide(evidence(9, select=slid, best_round=4), gate)
    assert (back.action, back.need) == ("rollback", {"head": 4})
    assert "of round 4, the best so far" in back.gates[0].reason and "so is the head" in back.gates[0].reason
    assert decide(evidence(9, select=slid, best_round=4), gate | {"go_back": False}).need is None
    alone = split(*[sides([0], [1], best=[1])] * 20, *[sides([1], [1], best=[1])] * 100)
    worse = decide(evidence(9, select=alone, best_round=4), gate)
    assert (worse.action, worse.need) == ("rollback", None), "the head itself is as good as the best"
    assert decide(evidence(9, select=split(SAME)), gate).gates[0].reason == "the head is the best round so far"


# pass@k


def test_pass_at_k_is_compared() -> None:
    seen = evidence(select=split(*[sides([1, 0, 0, 0], [0, 0, 0, 0])] * 20))
    figures = decide(seen, {"type": "improvement", "metric": "pass@4"}).gates[0].figures
    assert (figures["candidate"], figures["head"]) == (1.0, 0.0)


# the same evidence, the same decision


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([1, 3]), st.integers(0, 5))
@settings(max_examples=60)
def test_all_gates_replay_to_the_bit_in_any_order(seed: int, size: int, looks: int, fruitless: int) -> None:
    draw = random.Random(seed)

    def rows(number: int, prefix: str) -> dict[str, Any]:
        problems = [
            {who: [draw.randint(0, 1) for _ in range(num_samples)] for who in ("candidate", "head", "base", "best")}
            | {"difficulty": draw.choice(["easy", "hard"])}
            for num_samples in (draw.randint(3, 5) for _ in range(number))
        ]
        return split(*problems, prefix=prefix, num_planned=size, num_looks=looks)

    signals = {who: {"code_rate": draw.random(), "spread": draw.random()} for who in ("candidate", "head", "base")}
    given = evidence(  # a canary may ask the same as the others, under other settings
        4, signals=signals, best_round=2, fruitless_looks={"confirm": fruitless}, select=rows(size, "t"),
        confirm=rows(draw.randint(1, size), "c"), greedy=split(*[SAME] * 5, suite="greedy"),
    )  # fmt: skip
    gates = [
        {"type": "improvement"},
        {"type": "improvement", "metric": "pass@3"},
        {"type": "no_regression", "difficulty": "each"},
        {"type": "no_regression", "suite": "greedy"},
        {"type": "collapse"},
        {"type": "drift"},
        {"type": "best_so_far"},
    ]
    policy = build_policy(gates, "select", "confirm")
    read = read_evidence(given)
    again = json.loads(read.model_dump_json())
    assert again == given and read_evidence(json.dumps(given)) == read_evidence(read.model_dump_json()) == read
    decision = policy.decide(read)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    for shuffled in again["splits"].values():
        draw.shuffle(shuffled["problems"])
    assert policy.decide(read_evidence(again)).model_dump_json() == decision.model_dump_json()
    assert all(gate.reason and "\n" not in gate.reason for gate in decision.gates)


def test_a_policy_is_built_again_from_what_is_stored_of_it() -> None:
    gates = [
        {"type": "improvement", "min_gain": 0},
        {"type": "collapse", "ignore": ["spread"], "limits": {"code_rate": {"max_fall": 0.2}}},
        {"type": "no_regression", "suite": "canary"},
        {"type": "best_so_far"},
    ]
    policy = build_policy(gates, "select", "confirm", "pause", 0.02)
    stored = json.loads(json.dumps(policy.as_json()))
    assert build_policy(**stored) == policy
