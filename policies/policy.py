"""A policy: the gates of loop.toml and the split that they look at; and how it is built from what a store holds.

It judges one candidate on complete evidence. Which checkpoint moves where is the ledger's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from policies.decision import Action, Decision, GateResult, Verdict
from policies.evidence import TIP, Evidence, Line, SplitEvidence
from policies.gates import GATES, Gate, Improvement, Look
from policies.gates.base import values
from policies.line import MAX_CARRIED, Shown, continued, first_look, left_after, promises

Unclear = Literal["carry", "rollback", "keep_if_not_inferior", "pause"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Keep if every gate passes; roll back if one fails; ask for more where that may settle it.

    `split` is looked at first. With `confirm`, another split that is opened only for a candidate that passes there, the
    first one only screens. Gates that look at a canary suite are asked last, once the others have passed. `unclear` is
    what follows when everything is in and nothing is shown; `margin` is how much worse is still not inferior, `max_carried`
    how many rounds a line may have (policies/line.py).
    """

    gates: tuple[Gate, ...]
    split: str
    confirm: str | None = None
    unclear: Unclear = "rollback"
    margin: float = 0.01
    max_carried: int = MAX_CARRIED

    @property
    def canaries(self) -> tuple[str, ...]:
        """The suites that gates look at beside the one that decides."""
        return tuple(dict.fromkeys(gate.canary for gate in self.gates if gate.canary is not None))

    @property
    def needs_best(self) -> bool:
        """Whether a gate wants the best kept round measured, too."""
        return any(gate.needs_best for gate in self.gates)

    @property
    def needs_base(self) -> bool:
        """Whether a gate wants the candidate's signals compared with the base's, problem by problem."""
        return any(gate.needs_base for gate in self.gates)

    def decide(self, evidence: Evidence) -> Decision:
        """A pure function of evidence. BadEvidence if the split is not there: a failed stage, not a rollback."""
        evidence.split(self.split)
        confirming = self.confirm is not None and self.confirm in evidence.splits
        line = (evidence.line or self._untold(evidence)) if self.unclear == "carry" else None
        first = Look(self.split, self.confirm is not None, line)
        look = Look(self.confirm or self.split, line=line) if confirming else first
        results = {  # by the gate's place; the best round is measured on the first split alone
            place: gate.evaluate(evidence, first if gate.needs_best else look)
            for place, gate in enumerate(self.gates)
            if gate.canary is None
        }
        failed = any(result.verdict == "fail" for result in results.values())
        screening = [result for place, result in results.items() if self.gates[place].screens and look.screening]
        unclear = any(result.verdict == "inconclusive" for result in screening or results.values())
        split = evidence.splits[look.split]
        if not failed and unclear and not split.complete and not _settled(line, results):
            return self._decision(results, "inconclusive", "sample_more", _next_part(look.split, split))
        if not failed and not unclear and look.screening:
            return self._decision(results, "inconclusive", "confirm", {"split": self.confirm})
        missing: list[JsonValue] = [name for name in self.canaries if name not in evidence.splits]
        if missing and not failed:
            return self._decision(results, "inconclusive", "sample_more", {"suites": missing})
        results |= {
            place: gate.evaluate(evidence, look)
            for place, gate in enumerate(self.gates)
            if gate.canary and gate.canary in evidence.splits
        }
        verdicts = {result.verdict for result in results.values()}
        if "fail" in verdicts:
            return self._refused(evidence, results, line)
        if "inconclusive" in verdicts:
            return self._unclear(results, line)
        return self._decision(results, "keep", "keep")

    def _untold(self, evidence: Evidence) -> Line:
        """A line of which nothing is said: every look so far may have failed one. The sum of these shares is below 1, too."""
        num_fruitless = evidence.num_fruitless(self.confirm or self.split)
        return Line(depth=0, num_failed=0, left=2 / ((num_fruitless + 1) * (num_fruitless + 2)))

    def as_json(self) -> dict[str, JsonValue]:
        """What is stored beside a decision, so that it can be replayed."""
        return {
            "split": self.split,
            "confirm": self.confirm,
            "unclear": self.unclear,
            "margin": self.margin,
            **({"max_carried": self.max_carried} if self.unclear == "carry" else {}),
            "gates": [gate.model_dump(mode="json") for gate in self.gates],
        }

    def fruitless_after(self, evidence: Mapping[str, Any], verdict: str) -> dict[str, int]:
        """How often each split was looked at in vain, counting the round that was decided on this evidence (as JSON).

        Only the look with the last word counts: at the split to confirm if there is one, and then only if it was opened.
        A round that was kept gives its share of the error back, so it does not count.
        """
        counts: dict[str, int] = dict(evidence.get("fruitless_looks") or {})
        last = self.confirm or self.split
        if verdict != "keep" and last in evidence["splits"]:
            line = evidence.get("line") if self.unclear == "carry" else None
            counts[last] = counts.get(last, 0) + (line is None or Line.model_validate(line).look)
        return counts

    def next_line(
        self,
        depth: int,
        num_failed: int,
        before: tuple[Line, str] | None,
        shown: Shown | None,
        num_problems: int,
        num_samples: int,
        *,
        is_last: bool = False,
        closing: bool = False,
    ) -> Line | None:
        """Where the next candidate stands in a line, and when it is looked at; None where nothing is carried.

        `before`: the newest decision's line and action. A depth of 0 after a carried round: the line was given up by hand.
        `shown`: what made the head. `num_problems` and `num_samples` are those of the split with the last word; `is_last`:
        no round of the run follows; `closing`: the tip may be shown where the line ends.
        """
        if self.unclear != "carry":
            return None
        last = is_last or depth >= self.max_carried
        if before is not None and depth:
            return continued(before[0], num_failed, last=last).model_copy(update={"closing": closing or None})
        left = 1.0 if before is None else left_after(before[0], kept=before[1] == "keep")
        begun = Line(depth=0, num_failed=num_failed, left=left, num_looks=0, last=last)
        if (gate := self.improvement) is None:
            return begun
        level = gate.level(0, Look(self.confirm or self.split, line=begun))
        looks_at = first_look(shown, gate.min_gain, level, num_problems, num_samples, self.max_carried + 1)
        if before is not None and before[1] != "keep":  # a line that failed is not waited for as long again
            looks_at = min(looks_at, max(1, before[0].depth))
        return begun.model_copy(update={"next_look": looks_at})

    @property
    def improvement(self) -> Improvement | None:
        """The gate that asks for a gain; None where none does."""
        return next((gate for gate in self.gates if isinstance(gate, Improvement)), None)

    def _refused(self, evidence: Evidence, results: Mapping[int, GateResult], line: Line | None) -> Decision:
        """Roll back; but what was carried until then is looked at before it is given up, if it promises anything."""
        back_to, gate = _back_to(results), self.improvement
        spent = (
            gate is not None and gate.budget == "round" and line is not None and line.look
        )  # the round has had its look
        if back_to or line is None or gate is None or not line.depth or line.last or not line.closing or spent:
            return self._decision(results, "rollback", "rollback", back_to)
        if TIP in evidence.splits:
            tip = gate.look_at_tip(evidence, line)
            need: dict[str, JsonValue] | None = {"head": "tip"} if tip.verdict == "pass" else None
            return self._decision({**results, len(self.gates): tip}, "rollback", "rollback", need)
        problems = [problem for problem in evidence.splits[self.split].problems if problem.tip is not None]
        tip_over_head = [
            ours - theirs
            for ours, theirs in zip(
                values(problems, "tip", gate.metric), values(problems, "head", gate.metric), strict=True
            )
        ]
        if not promises(tip_over_head):
            return self._decision(results, "rollback", "rollback")
        return self._decision(results, "inconclusive", "sample_more", {"tip": True})

    def _unclear(self, results: Mapping[int, GateResult], line: Line | None) -> Decision:
        # A run's last candidate is carried, too: the run may be given more rounds.
        if line is not None and line.depth < self.max_carried:
            return self._decision(results, "inconclusive", "carry")
        if self.unclear == "pause":
            return self._decision(results, "inconclusive", "pause")
        if self.unclear == "keep_if_not_inferior":
            open_questions = [result for result in results.values() if result.verdict == "inconclusive"]
            if all(_not_inferior(result, self.margin) for result in open_questions):
                return self._decision(results, "keep", "keep", {"not_inferior_by": self.margin})
        return self._decision(results, "inconclusive", "rollback")

    def _decision(
        self,
        results: Mapping[int, GateResult],
        verdict: Verdict,
        action: Action,
        need: dict[str, JsonValue] | None = None,
    ) -> Decision:
        return Decision(verdict=verdict, gates=tuple(results[at] for at in sorted(results)), action=action, need=need)


def _settled(line: Line | None, results: Mapping[int, GateResult]) -> bool:
    """Whether further problems could only show what the line does not ask about."""
    unclear = [result for result in results.values() if result.verdict == "inconclusive"]
    return line is not None and (not line.look or all(result.figures.get("settled") for result in unclear))


def next_part(num_problems: int, num_planned: int, num_looks: int) -> int:
    """How many problems are in after the next of `num_looks` equal parts."""
    parts = [-(-num_planned * part // num_looks) for part in range(1, num_looks + 1)]
    return next((size for size in parts if size > num_problems), num_planned)


def _next_part(name: str, split: SplitEvidence) -> dict[str, JsonValue]:
    assert split.num_planned is not None
    num_problems = len(split.problems)
    return {
        "split": name,
        "num_problems": next_part(num_problems, split.num_planned, split.num_looks or 1) - num_problems,
    }


def _not_inferior(result: GateResult, margin: float) -> bool:
    lower = result.figures.get("lower")
    return isinstance(lower, float) and lower > -margin


def _back_to(results: Mapping[int, GateResult]) -> dict[str, JsonValue] | None:
    rounds = [result.figures["back_to"] for result in results.values() if result.figures.get("back_to") is not None]
    return {"head": rounds[0]} if rounds else None


def build_policy(
    gates: Sequence[Mapping[str, Any]],
    split: str,
    confirm: str | None = None,
    unclear: Unclear = "rollback",
    margin: float = 0.01,
    max_carried: int = MAX_CARRIED,
) -> Policy:
    """A policy from its gates' tables. BadPolicy (a ValueError) for the first mistake."""
    built = tuple(GATES.build(gate, ("decide", "gates", index)) for index, gate in enumerate(gates))
    return Policy(built, split, confirm, unclear, margin, max_carried)


def upgraded_gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A gate that an earlier version stored, as this one understands it, with the meaning that it had then."""
    table = dict(gate)
    if table.get("type") == "collapse":
        table.setdefault("defaults", 1)
    if table.get("type") == "improvement" and isinstance(table.get("confidence"), float):
        table |= {"budget": "round", "alpha": round(1 - table.pop("confidence"), 12)}
    return table
