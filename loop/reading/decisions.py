"""A decision as `status`, the rounds and the page tell it. Apart from rounds.py, so that status imports no more than this."""

from __future__ import annotations

from dataclasses import dataclass

from store.records import DecisionRow


@dataclass(frozen=True, eq=False, repr=False)
class Decision:
    """A decision in the words of `status`, where an inconclusive one is a rollback that is not `conclusive`."""

    round: int
    verdict: str  # keep or rollback
    conclusive: bool
    action: str
    reasons: list[str]
    decided_at: str


def decision_of(decision: DecisionRow | None) -> Decision | None:
    """A decision in the words of `status`. Inconclusive leaves the head where it is, as a rollback does."""
    if decision is None:
        return None
    return Decision(
        round=decision.round,
        verdict="keep" if decision.head_after != decision.head_before or decision.verdict == "keep" else "rollback",
        conclusive=decision.verdict != "inconclusive",
        action=decision.action,
        reasons=[gate["reason"] for gate in decision.gates],
        decided_at=decision.decided_at,
    )
