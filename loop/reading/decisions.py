"""A decision as `status`, the rounds and the page tell it. Apart from rounds.py, so that status imports no more than this."""

from __future__ import annotations

from dataclasses import dataclass

from store.records import DecisionRow

CONFIRMED = "carried, and shown to be better by a later look at the tip"


@dataclass(frozen=True, eq=False, repr=False)
class Decision:
    """A decision in the words of `status`: an inconclusive one that is not carried is a rollback that is not `conclusive`."""

    round: int
    verdict: str  # keep, carry or rollback
    conclusive: bool
    action: str
    reasons: list[str]
    decided_at: str


def decision_of(decision: DecisionRow | None, state: str = "") -> Decision | None:
    """A decision in the words of `status`. An inconclusive one leaves the head where it is, as a rollback does.

    `state`: that of its round; a carried one that a later look has shown is kept.
    """
    if decision is None:
        return None
    later = state == "kept" and decision.verdict != "keep"
    return Decision(
        round=decision.round,
        verdict="keep"
        if decision.verdict == "keep" or later
        else "carry"
        if decision.action == "carry"
        else "rollback",
        conclusive=decision.verdict != "inconclusive" or later,
        action=decision.action,
        reasons=[*([CONFIRMED] if later else []), *(gate["reason"] for gate in decision.gates)],
        decided_at=decision.decided_at,
    )
