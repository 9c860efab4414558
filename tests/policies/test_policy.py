"""Evidence in, decision out: verdicts and reasons as tables, mistakes by name, replay to the bit."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from policies.by_type import BadPolicy
from policies.decision import Decision
from policies.evidence import BadEvidence, read_evidence
from policies.gates import Improvement
from policies.policy import Policy, build_policy
from policies.stopping import History, Plateau, Target
from tests.support import ROOT
from tests.support import evidence as support
from tests.support.evidence import FixedGate, Sides, sides, split

BETTER, WORSE, SAME = sides([1, 1], [0, 0]), sides([0, 0], [1, 1]), sides([1, 0], [1, 0])
DECODING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "greedy": False, "max_new_tokens": 256}


def evidence(*problems: Sides, **more: Any) -> dict[str, Any]:
    signals = {"candidate": {"entropy": 0.5}, "head": {"entropy": 0.75}}
    select = split(*problems, suite="first-steps")
    return support.evidence(3, **{"signals": signals, "decoding": DECODING, "select": select, **more})


def decide(given: dict[str, Any], **gate: Any) -> Decision:
    """What one improvement gate says that spends its whole alpha on this round."""
    return support.decide(given, {"type": "improvement", "budget": "round"} | gate)


def select(given: dict[str, Any]) -> dict[str, Any]:
    return given["splits"]["select"]  # type: ignore[no-any-return]


def second(given: dict[str, Any]) -> dict[str, Any]:
    return select(given)["problems"][1]  # type: ignore[no-any-return]


# verdicts and reasons


@pytest.mark.parametrize(
    ("problems", "gate", "verdict"),
    [
        ([BETTER] * 5 + [SAME] * 5, {}, "keep"),  # p = 1/32
        ([BETTER] * 4 + [SAME] * 6, {}, "unclear"),  # p = 1/16
        ([BETTER] * 4 + [SAME] * 6, {"alpha": 0.1}, "keep"),
        ([BETTER] * 5 + [SAME] * 5, {"alpha": 0.025}, "unclear"),
        ([BETTER] * 7 + [WORSE], {}, "keep"),  # p = 9/256
        ([BETTER] * 6 + [WORSE], {}, "unclear"),  # p = 8/128
        ([WORSE] * 10, {}, "rollback"),
        ([SAME] * 10, {}, "unclear"),
        ([SAME] * 400, {}, "rollback"),  # a gain of target_gain would have shown
        ([BETTER] * 3, {}, "unclear"),  # too few problems, and no error
        ([BETTER], {}, "unclear"),
        ([BETTER] * 40 + [SAME] * 40, {"min_gain": 0.3, "target_gain": 0.5}, "keep"),
        ([BETTER] * 40 + [SAME] * 40, {"min_gain": 0.45, "target_gain": 0.5}, "unclear"),
        ([SAME] * 100, {"min_gain": -0.5}, "rollback"),  # bound above the limit, but nothing gained
        ([BETTER] * 2 + [SAME] * 98, {"min_gain": -0.5}, "keep"),
        ([BETTER] * 30 + [WORSE] * 30, {}, "unclear"),
        ([BETTER] * 100 + [WORSE] * 60, {}, "keep"),
        ([BETTER] * 60 + [WORSE] * 100, {}, "rollback"),
    ],
)
def test_verdicts(problems: list[Sides], gate: dict[str, float], verdict: str) -> None:
    decision = decide(evidence(*problems), **gate)
    clear = {"keep": ("keep", "keep", "pass"), "rollback": ("rollback", "rollback", "fail")}
    verdicts = clear.get(verdict, ("inconclusive", "rollback", "inconclusive"))
    assert (decision.verdict, decision.action, decision.gates[0].verdict) == verdicts and decision.need is None


@pytest.mark.parametrize(
    ("given", "gate", "reason"),
    [
        (evidence(*[BETTER] * 12, *[WORSE] * 2, *[SAME] * 226), {},
         "pass@1 on first-steps (select, T 1): 0.479 -> 0.521, gain +0.042, 95% lower bound +0.017 above the "
         "limit 0.000, on 240 problems x 2 samples; it may be wrong with a chance of 5%"),
        (evidence(*[BETTER] * 7, *[WORSE] * 8, *[SAME] * 225), {},
         "pass@1 on first-steps (select, T 1): 0.502 -> 0.498, gain -0.004 is not positive, 95% lower bound "
         "-0.032 is not above the limit 0.000, on 240 problems x 2 samples; a gain of 0.03 is unlikely: 95% upper "
         "bound +0.024"),
        (evidence(*[BETTER] * 5, *[SAME] * 5, decoding={"greedy": True}),
         {"min_gain": 0.25, "target_gain": 0.6, "alpha": 0.025, "power": 0.9},
         "pass@1 on first-steps (select, greedy): 0.250 -> 0.750, gain +0.500, 97.5% lower bound +0.000 is not "
         "above the limit 0.250, on 10 problems x 2 samples; a gain under 0.600 could not have been seen with "
         "90% power"),
        (evidence(sides([1], [0]), decoding={"temperature": 0.7, "top_k": 20, "top_p": 0.95}), {},
         "pass@1 on first-steps (select, T 0.7, top_k 20, top_p 0.95): 0.000 -> 1.000, gain +1.000, 95% lower bound "
         "-1.000 is not above the limit 0.000, on 1 problem x 1 sample; a gain under 1.000 could not have been "
         "seen with 80% power"),
        (evidence(sides([1], [0]), SAME, decoding=None), {},
         "pass@1 on first-steps (select): 0.250 -> 0.750, gain +0.500, 95% lower bound -1.000 is not above the "
         "limit 0.000, on 2 problems x 1 to 2 samples; a gain under 1.000 could not have been seen with 80% power"),
    ],
)  # fmt: skip
def test_reasons(given: dict[str, Any], gate: dict[str, float], reason: str) -> None:
    assert decide(given, **gate).reasons == (reason,)


def test_a_bound_and_a_limit_that_look_alike_get_more_digits() -> None:
    given = evidence(*[BETTER] * 40, *[SAME] * 40)
    lower = decide(given).gates[0].figures["lower"]
    assert isinstance(lower, float)
    (reason,) = decide(given, min_gain=lower + 1e-6, target_gain=0.9).reasons
    assert "lower bound +0.4062 is not above the limit 0.4063," in reason
    (reason,) = decide(given, min_gain=lower, target_gain=0.9).reasons
    assert f"{lower:+.3f} is not above the limit {lower:.3f}" in reason


def test_figures() -> None:
    figures = decide(evidence(*[BETTER] * 6, WORSE, *[SAME] * 3)).gates[0].figures
    exact = {"head": 0.25, "candidate": 0.75, "gain": 0.5, "num_problems": 10, "num_samples": 2}
    exact |= {"num_improved": 6, "num_worsened": 1, "num_equal": 3, "p_value": 8 / 128}
    exact |= {"metric": "pass@1", "level": 0.05, "min_gain": 0.0, "target_gain": 0.03}
    assert {name: figures[name] for name in exact} == exact
    assert set(figures) - set(exact) == {"lower", "upper", "smallest_detectable_gain"}
    assert figures["lower"] == 0.0


def test_the_base_is_shown_beside_head_and_candidate() -> None:
    given = evidence(*[BETTER] * 6, *[SAME] * 6)
    for problem in select(given)["problems"]:
        problem["base"] = [0, 0, 0, 1]
    decision = decide(given)
    assert "0.250 -> 0.750 (base 0.250), gain +0.500" in decision.reasons[0]
    figures = decision.gates[0].figures
    assert (figures["base"], figures["gain_over_base"]) == (0.25, 0.5)
    lower, upper = figures["gain_over_base_lower"], figures["gain_over_base_upper"]
    assert isinstance(lower, float) and isinstance(upper, float) and lower < 0.5 < upper


def test_the_splits_own_decoding_wins() -> None:
    given = evidence(*[BETTER] * 6, *[SAME] * 6)
    select(given)["decoding"] = {"temperature": 0.25}
    assert "(select, T 0.25)" in decide(given).reasons[0]


def test_only_the_named_split_decides() -> None:
    given = evidence(*[BETTER] * 10)
    given["splits"]["canary"] = select(evidence(*[WORSE] * 10))
    assert decide(given).verdict == "keep"
    canary = build_policy([{"type": "improvement"}], "canary")
    assert canary.decide(read_evidence(given)).verdict == "rollback"
    missing = build_policy([{"type": "improvement"}], "confirm")
    with pytest.raises(BadEvidence, match=r"no split 'confirm' \(there: 'canary', 'select'\)"):
        missing.decide(read_evidence(given))


@pytest.mark.parametrize(
    ("says", "verdict", "action"),
    [
        (["pass", "pass"], "keep", "keep"),
        (["pass", "fail"], "rollback", "rollback"),
        (["fail", "pass"], "rollback", "rollback"),
        (["inconclusive", "fail"], "rollback", "rollback"),
        (["inconclusive", "pass"], "inconclusive", "rollback"),
    ],
)
def test_all_gates_must_pass(says: list[Literal["pass", "fail", "inconclusive"]], verdict: str, action: str) -> None:
    policy = Policy(tuple(FixedGate(says=word) for word in says), "select")
    decision = policy.decide(read_evidence(evidence(SAME)))
    assert (decision.verdict, decision.action) == (verdict, action)
    assert decision.reasons == tuple(f"it {word}s" for word in says)


# a decision


def test_a_decision_has_the_contracts_keys() -> None:
    shown = json.loads(decide(evidence(*[BETTER] * 10)).model_dump_json())
    assert set(shown) == {"verdict", "gates", "action"}
    assert set(shown["gates"][0]) == {"type", "verdict", "reason", "figures"}
    needy = Decision(verdict="inconclusive", gates=(), action="sample_more", need={"num_samples": 4})
    assert json.loads(needy.model_dump_json())["need"] == {"num_samples": 4}


def test_nothing_changes_once_made() -> None:
    decision, read = decide(evidence(SAME)), read_evidence(evidence(SAME))
    for frozen in (decision, decision.gates[0], read, Improvement(), Plateau(rounds=2), Target(value=0.5), History()):
        for name in type(frozen).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(frozen, name, 1)


# bad evidence


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: select(e)["problems"].clear(), "splits.select: suite 'first-steps' has no problems"),
        (lambda e: second(e).update(candidate=[]), "problems[1].candidate: task 't1': no samples"),
        (lambda e: second(e).update(head=[]), "problems[1].head: task 't1': no samples"),
        (lambda e: second(e).update(head=[0]), "problems[1]: task 't1': 2 candidate samples but 1 head samples"),
        (lambda e: second(e).update(head=[0, 2]), "problems[1].head: task 't1': sample 1 is 2"),
        (lambda e: second(e).update(head=[0, 0.5]), "problems[1].head: task 't1': sample 1 is 0.5"),
        (lambda e: second(e).update(head=[0, 1.0]), "problems[1].head: task 't1': sample 1 is 1.0"),
        (lambda e: second(e).update(head=[True, 0]), "problems[1].head: task 't1': sample 0 is True"),
        (lambda e: second(e).update(head=[None, 0]), "problems[1].head: task 't1': sample 0 is None"),
        (lambda e: second(e).update(head="01"), "problems[1].head: task 't1': '01' is not a list"),
        (lambda e: second(e).update(base=[float("nan")]), "problems[1].base: task 't1': sample 0 is nan"),
        (lambda e: second(e).update(base=[0]), "splits.select: base is given for 1 of 3 problems"),
        (lambda e: second(e).update(task_id="t0"), "splits.select: task 't0' is there twice"),
        (lambda e: second(e).pop("candidate"), "problems[1].candidate: is missing"),
        (lambda e: second(e).update(canddate=[1]), "problems[1].canddate: unknown key"),
        (lambda e: e["signals"]["head"].update(entropy=float("nan")), "signals.head.entropy: input should be a finite"),
        (lambda e: e["signals"]["head"].update(entropy=float("inf")), "signals.head.entropy: input should be a finite"),
        (lambda e: e["signals"]["head"].update(entropy="low"), "signals.head.entropy: input should be a valid number"),
        (lambda e: e["signals"].update(heads={}), "signals.heads: input should be 'candidate', 'head', 'base', 'best' or 'tip'"),
        (lambda e: e["splits"].clear(), "splits: "),
        (lambda e: e.pop("splits"), "splits: is missing"),
        (lambda e: e.update(round=-1), "round: input should be greater than or equal to 0, got -1"),
        (lambda e: select(e).update(suite="a\x1b[31m"), "suite 'a\\x1b[31m' holds control characters"),
        (lambda e: select(e).update(conditions={"candidate": {"seed": 1}, "head": {"seed": 2}}),
         "candidate and head differ in 'seed': 1 and 2"),
        (lambda e: select(e).update(conditions={"candidate": {"suite_sha256": "a"}, "head": {}}),
         "candidate and head differ in 'suite_sha256'"),
        (lambda e: select(e).update(num_planned=2), "3 problems are there but num_planned is 2"),
        (lambda e: select(e).update(num_looks=0), "num_looks"),
        (lambda e: e["splits"].update(confirm=select(e)), "task 't0' is in the splits select and confirm"),
        (lambda e: second(e).update(task_id="x\n\x1b[2J", head=[3]), "task 'x\\n\\x1b[2J': sample 0 is 3"),
    ],
)  # fmt: skip
def test_bad_evidence_is_refused_by_name(spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    given = copy.deepcopy(evidence(BETTER, WORSE, SAME))
    spoil(given)
    for source in (given, json.dumps(given)):
        with pytest.raises(ValueError) as caught:
            read_evidence(source)
        assert type(caught.value) is BadEvidence
        assert message in str(caught.value)
        assert str(caught.value).isprintable()  # one line, nothing that a terminal would obey
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"round": 1, "round'])
def test_text_that_is_not_evidence_is_refused(text: str) -> None:
    with pytest.raises(BadEvidence):
        read_evidence(text)


def test_signals_may_be_unmeasured_or_left_out() -> None:
    given = evidence(SAME, signals={"candidate": {"entropy": None, "mean_length": 80}})
    assert read_evidence(given).signals == {"candidate": {"entropy": None, "mean_length": 80.0}}
    del given["signals"]
    assert read_evidence(given).signals == {}


# building from loop.toml


def test_gates_are_built_from_tables() -> None:
    policy = build_policy([{"type": "improvement", "min_gain": 0, "alpha": 0.1}, {"type": "improvement"}], "select")
    assert policy == Policy((Improvement(min_gain=0.0, alpha=0.1), Improvement()), "select")
    with pytest.raises(BadPolicy, match="unknown key") as caught:
        build_policy([{"type": "improvement"}, {"type": "improvement", "min_gian": 0.1}], "select")
    assert caught.value.path == ("decide", "gates", 1, "min_gian")


# what policies may not know


def test_policies_import_nothing_heavy_and_nothing_of_ours() -> None:
    code = (
        "import sys, policies.policy, policies.statistics\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'numpy', 'torch', 'scipy', 'loop', 'store', 'sqlite3', 'importlib_metadata'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
