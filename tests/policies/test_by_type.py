"""Policies that a package of somebody else offers, for each registry; and what is wrong with such an offer."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, Literal

import pytest

from policies.by_type import BadPolicy, Registry
from policies.data import DATA_POLICIES, DataPolicy, Replace
from policies.decision import GateResult
from policies.evidence import Evidence
from policies.gates import GATES, Gate, Improvement, Look
from policies.stopping import STOP_RULES, History, Plateau, StopRule


class FixedGate(Gate):
    type: Literal["fixed"] = "fixed"
    says: Literal["pass", "fail"] = "pass"

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        return GateResult(type=self.type, verdict=self.says, reason=f"it {self.says}es", figures={})


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
    ("registry", "group", "class_name", "built_in", "known"),
    [
        (GATES, "loop.gates", "FixedGate", Improvement(), "improvement, no_regression, collapse, best_so_far"),
        (DATA_POLICIES, "loop.data_policies", "FixedData", Replace(), "replace, accumulate, mix, window, pool"),
        (STOP_RULES, "loop.stop_rules", "FixedStop", Plateau(rounds=3), "plateau, target, hours"),
    ],
)
def test_a_third_partys_type_comes_through_the_entry_point(
    registry: Registry[Any], group: str, class_name: str, built_in: Any, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, group, ("fixed", f"third_party:{class_name}"), (built_in.type, f"third_party:{class_name}"))
    policy = registry.build({"type": "fixed", "says": "fail"})
    assert isinstance(policy, registry.base) and policy.model_dump()["says"] == "fail"
    assert registry.build(built_in.model_dump()) == built_in  # a built-in type cannot be replaced
    with pytest.raises(BadPolicy, match=r"^a\[0\]\.say: unknown key; the keys of 'fixed' are type, .*says"):
        registry.build({"type": "fixed", "say": "fail"}, ("a", 0))
    with pytest.raises(BadPolicy, match=f"unknown type 'fixd'; known types: {known}, fixed$"):
        registry.build({"type": "fixd"})


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ([("fixed", "no_such_module:Gate")], r"'fixed' \(no_such_module:Gate\) cannot be loaded"),
        ([("fixed", "json:dumps")], r"'fixed' \(json:dumps\) is not a subclass of policies.gates.base.Gate"),
        (
            [("fixed", "third_party:FixedData")],
            r"\(third_party:FixedData\) is not a subclass of policies.gates.base.Gate",
        ),
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
