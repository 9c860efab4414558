"""Evidence for the tests of policies, and what gates say of it."""

from __future__ import annotations

from typing import Any, Literal

from policies.decision import Decision, GateResult
from policies.evidence import Evidence, read_evidence
from policies.gates import Gate, Look
from policies.policy import build_policy

Sides = dict[str, list[int]]


def split(*problems: Sides, suite: str = "suite", prefix: str = "t", **more: Any) -> dict[str, Any]:
    rows = [{"task_id": f"{prefix}{i}", **problem} for i, problem in enumerate(problems)]
    return {"suite": suite, "problems": rows, **more}


def evidence(round: int = 1, signals: Any = None, **splits: Any) -> dict[str, Any]:
    others = ("fruitless_looks", "best_round", "draw", "decoding")
    extra = {name: splits.pop(name) for name in others if name in splits}
    return {"round": round, "rounds_so_far": round - 1, "splits": splits, "signals": signals or {}, **extra}


def sides(candidate: list[int], head: list[int], **more: Any) -> Sides:
    return {"candidate": candidate, "head": head, **more}


UP, DOWN, SAME = sides([1], [0]), sides([0], [1]), sides([1], [1])


def decide(given: dict[str, Any], *gates: dict[str, Any], **policy: Any) -> Decision:
    """What these gates decide, or `improvement` alone."""
    return build_policy([*(gates or [{"type": "improvement"}])], "select", **policy).decide(read_evidence(given))


class FixedGate(Gate):
    """A third party's gate that says what it is told."""

    type: Literal["fixed"] = "fixed"
    says: Literal["pass", "fail", "inconclusive"] = "pass"

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        return GateResult(type=self.type, verdict=self.says, reason=f"it {self.says}s", figures={})
