"""Evidence for the tests of policies, and what gates say of it."""

from __future__ import annotations

import random
from fractions import Fraction
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


def simulated_differences(
    numbers: random.Random, gain: float, num_problems: int, num_samples: int, shape: tuple[float, float]
) -> list[Fraction]:
    """Of a candidate whose success rates are higher by `gain`, where there is room; difficulties are U-shaped: a beta law."""
    differences = []
    for _ in range(num_problems):
        rate = numbers.betavariate(*shape)
        better = min(1.0, max(0.0, rate + gain))
        candidate = sum(numbers.random() < better for _ in range(num_samples))
        head = sum(numbers.random() < rate for _ in range(num_samples))
        differences.append(Fraction(candidate - head, num_samples))
    return differences


class FixedGate(Gate):
    """A third party's gate that says what it is told."""

    type: Literal["fixed"] = "fixed"
    says: Literal["pass", "fail", "inconclusive"] = "pass"

    def evaluate(self, evidence: Evidence, look: Look) -> GateResult:
        return GateResult(type=self.type, verdict=self.says, reason=f"it {self.says}s", figures={})
