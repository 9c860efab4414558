"""Policies out of tables, for each registry: a package of somebody else offers one, or a table is wrong."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, Literal

import pytest

from policies.by_type import BadPolicy, Registry
from policies.data import DATA_POLICIES, DataPolicy, Replace
from policies.gates import GATES, Improvement
from policies.stopping import STOP_RULES, History, Plateau, StopRule
from tests.support.evidence import FixedGate


class FixedData(DataPolicy):
    type: Literal["fixed"] = "fixed"
    says: str = "pass"


class FixedStop(StopRule):
    type: Literal["fixed"] = "fixed"
    says: str = "pass"

    def why(self, history: History) -> str | None:
        return self.says


def offer(monkeypatch: pytest.MonkeyPatch, group: str, *offers: tuple[str, str]) -> None:
    """Entry points (name, value) of a group."""
    points = EntryPoints(EntryPoint(name, value, group) for name, value in offers)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])


@pytest.mark.parametrize(
    ("registry", "group", "offered", "built_in", "types"),
    [
        (GATES, "loop.gates", FixedGate, Improvement(), "improvement, no_regression, collapse, drift, best_so_far"),
        (DATA_POLICIES, "loop.data_policies", FixedData, Replace(), "replace, accumulate, mix, window, pool"),
        (STOP_RULES, "loop.stop_rules", FixedStop, Plateau(rounds=3), "plateau, target, hours"),
    ],
)
def test_a_third_partys_type_comes_through_the_entry_point(
    registry: Registry[Any], group: str, offered: type, built_in: Any, types: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = f"third_party:{offered.__name__}"
    offer(monkeypatch, group, ("fixed", value), (built_in.type, value))
    policy = registry.build({"type": "fixed", "says": "fail"})
    assert isinstance(policy, registry.base) and policy.model_dump()["says"] == "fail"
    assert registry.build(built_in.model_dump()) == built_in  # a built-in type cannot be replaced
    with pytest.raises(BadPolicy, match=r"^a\[0\]\.say: unknown key; the keys of 'fixed' are type, .*says"):
        registry.build({"type": "fixed", "say": "fail"}, ("a", 0))
    with pytest.raises(BadPolicy, match=f"unknown type 'fixd'; known types: {types}, fixed$"):
        registry.build({"type": "fixd"})


NOT_A_GATE = "is not a subclass of policies.gates.base.Gate"


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ([("fixed", "no_such_module:Gate")], r"'fixed' \(no_such_module:Gate\) cannot be loaded"),
        ([("fixed", "json:dumps")], rf"'fixed' \(json:dumps\) {NOT_A_GATE}"),
        ([("fixed", "third_party:FixedData")], rf"\(third_party:FixedData\) {NOT_A_GATE}"),
        ([("fixed", "a:B"), ("fixed", "c:D")], r"'fixed' is offered more than once \(a:B, c:D\)"),
    ],
)
def test_a_third_partys_mistake_is_named(
    monkeypatch: pytest.MonkeyPatch, offers: list[tuple[str, str]], message: str
) -> None:
    offer(monkeypatch, "loop.gates", *offers)
    with pytest.raises(BadPolicy, match=message) as caught:
        GATES.build({"type": "fixed"}, ("decide", "gates", 0))
    assert caught.value.path == ("decide", "gates", 0, "type")


DATA, STOP, GATE = (DATA_POLICIES, "collect.data"), (STOP_RULES, "schedule.stop"), (GATES, "decide.gates")
LIKE_DEDUP = "(Of completions of one prompt that are the same, or nearly so, the newest alone is used)"
IN_A_ROW = "(Rounds in a row of which none was kept)"
RATE = "(pass@1 of the head on the suite that decides)"


@pytest.mark.parametrize(
    ("kind", "table", "line"),
    [
        (DATA, "replace", "'replace' is not a table; give one such as { type = \"accumulate\" }"),
        (DATA, {}, "type is missing; known types: replace, accumulate, mix, window, pool"),
        (DATA, {"type": "all"}, ".type: unknown type 'all'; known types: replace, accumulate, mix, window, pool"),
        (DATA, {"type": "window"}, ".rounds: is missing (How many rounds, this one among them)"),
        (DATA, {"type": "pool", "size": 0},
         ".size: input should be greater than 0, got 0 (How many completions training sees)"),
        (DATA, {"type": "replace", "size": 3},
         ".size: unknown key; the keys of 'replace' are type, dedup, near_similarity, min_tokens, max_tokens, passed_tests, "
         "without_tests"),
        (DATA, {"type": "mix"}, "has neither earlier nor base; give a share, or type = \"replace\""),
        (DATA, {"type": "mix", "earlier": 0.5, "base": 0.5},
         "earlier 0.5 and base 0.5 leave no share for fresh completions"),
        (DATA, {"type": "replace", "min_tokens": 9, "max_tokens": 3},
         "max_tokens 3 is below min_tokens 9; nothing would be left"),
        (DATA, {"type": "replace", "dedup": "fuzzy"},
         f".dedup: input should be 'none', 'exact' or 'near', got 'fuzzy' {LIKE_DEDUP}"),
        (STOP, {}, "type is missing; known types: plateau, target, hours"),
        (STOP, {"type": "platau"}, ".type: unknown type 'platau'; known types: plateau, target, hours"),
        (STOP, {"type": 3}, ".type: unknown type 3; known types: plateau, target, hours"),
        (STOP, {"type": ["a"]}, ".type: unknown type ['a']; known types: plateau, target, hours"),
        (STOP, 3, "3 is not a table; give one such as { type = \"plateau\", rounds = 5 }"),
        (STOP, {"type": "plateau"}, f".rounds: is missing {IN_A_ROW}"),
        (STOP, {"type": "plateau", "rounds": 0}, f".rounds: input should be greater than 0, got 0 {IN_A_ROW}"),
        (STOP, {"type": "plateau", "rounds": "5"}, f".rounds: input should be a valid integer, got '5' {IN_A_ROW}"),
        (STOP, {"type": "plateau", "rounds": 5, "round": 5}, ".round: unknown key; the keys of 'plateau' are type, rounds"),
        (STOP, {"type": "target", "value": 50}, f".value: input should be less than or equal to 1, got 50 {RATE}"),
        (STOP, {"type": "target", "value": 0}, f".value: input should be greater than 0, got 0 {RATE}"),
        (GATE, {"min_gain": 0.1}, "type is missing; known types: improvement, no_regression, collapse, drift, best_so_far"),
        (GATE, {"type": "improvment"},
         ".type: unknown type 'improvment'; known types: improvement, no_regression, collapse, drift, best_so_far"),
        (GATE, {"type": "improvement", "min_gian": 0.1},
         ".min_gian: unknown key; the keys of 'improvement' are type, metric, min_gain, target_gain, miss, power, alpha, "
         "budget, screen"),
        (GATE, {"type": "improvement", "min_gain": "0.1"},
         ".min_gain: input should be a valid number, got '0.1' (What is to be shown: a gain of more than this)"),
        (GATE, {"type": "improvement", "min_gain": True}, ".min_gain: input should be a valid number, got True"),
        (GATE, {"type": "improvement", "min_gain": float("nan")}, ".min_gain: input should be a finite number"),
        (GATE, {"type": "improvement", "min_gain": 8}, ".min_gain: input should be less than 1, got 8"),
        (GATE, {"type": "improvement", "alpha": 5}, ".alpha: input should be less than 1, got 5"),
        (GATE, {"type": "improvement", "metric": "pass@0"}, ".metric: string should match pattern"),
        (GATE, {"type": "improvement", "min_gain": 0.1, "target_gain": 0.03}, "target_gain 0.03 is not above min_gain 0.1"),
        (GATE, {"type": "improvement", "power": 1.0}, ".power: input should be less than 1, got 1.0"),
    ],
)  # fmt: skip
def test_mistakes_have_their_place_and_remedy(kind: tuple[Registry[Any], str], table: Any, line: str) -> None:
    registry, place = kind
    with pytest.raises(BadPolicy) as caught:
        registry.build(table, (*place.split("."), 1))
    mistake = caught.value
    whole = f"{place}[1]{line if line[0] == '.' else f': {line}'}"
    if registry is GATES:  # what the field means follows, in the words of its description
        assert str(mistake).startswith(whole)
    else:
        assert str(mistake) == whole
    assert str(mistake).isprintable() and str(mistake).endswith(mistake.problem)
