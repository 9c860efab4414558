"""Recorded rounds decided again: under the policy stored with each, which must decide the same, and under another one.

A pure function of what the ledger holds. The other policy may count other looks as fruitless: each round gets its count.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.by_type import BadPolicy
from policies.decision import Decision
from policies.evidence import BadEvidence, read_evidence
from policies.policy import Policy, build_policy, upgraded_gate
from store.canonical import canonical_json
from store.records import DecisionRow, Json

Outcome = Decision | str  # a decision, or why none was possible


def replay(decisions: Sequence[DecisionRow], policy: Policy) -> Json:
    """A row per round, and a summary. `identical` and `changed` are None where there is nothing to compare."""
    rows: list[Json] = []
    fruitless: dict[str, int] = {}
    for row in decisions:
        stored = _again(row.evidence, _policy_of(row))
        evidence = row.evidence | {"fruitless_looks": fruitless}
        now = _again(evidence, policy)
        if isinstance(now, Decision):
            fruitless = policy.fruitless_after(evidence, now.verdict)
        difference = None if isinstance(stored, str) else _difference(row, stored)
        identical = None if isinstance(stored, str) else difference is None
        changed = None if isinstance(now, str) else (now.verdict, now.action) != (row.verdict, row.action)
        change = "the same" if changed is False else _change(now)
        rows.append(
            {
                "round": row.round,
                "recorded": {"verdict": row.verdict, "action": row.action},
                "stored": _as_json(stored) | {"identical": identical, "difference": difference},
                "replayed": _as_json(now) | {"changed": changed, "change": change},
            }
        )
    return {"rounds": rows, "summary": _summary(rows)}


def _policy_of(row: DecisionRow) -> Policy | str:
    """The policy stored with a decision, or why this version cannot build it."""
    keys = {"split", "confirm", "unclear", "margin", "max_carried", "gates"}
    if more := sorted(row.policy.keys() - keys):
        return f"its policy has {', '.join(more)}, which this version does not know"
    if missing := sorted({"split", "gates"} - row.policy.keys()):
        return f"its policy has no {', '.join(missing)}: it was stored by another version"
    try:
        # older stores name some keys differently
        gates = [gate if "confidence" in gate else upgraded_gate(gate) for gate in row.policy["gates"]]
        return build_policy(**row.policy | {"gates": gates})
    except (BadPolicy, TypeError) as error:
        return f"this version cannot build its policy: {error}"


def _again(evidence: Json, policy: Policy | str) -> Outcome:
    if isinstance(policy, str):
        return policy
    try:
        return policy.decide(read_evidence(evidence))
    except BadEvidence as error:
        return f"it cannot be decided on the evidence that is stored: {error}"


def _as_json(outcome: Outcome) -> Json:
    keys = ("verdict", "action", "need")
    if isinstance(outcome, str):
        return dict.fromkeys(keys) | {"reasons": [], "problem": outcome}
    return {key: getattr(outcome, key) for key in keys} | {"reasons": list(outcome.reasons), "problem": None}


def _difference(row: DecisionRow, now: Decision) -> str | None:
    """How a decision differs from the recorded one, to the last bit; None if it does not."""
    differences = [
        f"{what} {after}, was {before}"
        for what, after, before in (("verdict", now.verdict, row.verdict), ("action", now.action, row.action))
        if after != before
    ]
    gates = [gate.model_dump(mode="json") for gate in now.gates]
    if len(gates) != len(row.gates):
        differences.append(f"{len(gates)} gates, were {len(row.gates)}")
    for gate, before in zip(gates, row.gates, strict=False):
        if canonical_json(gate) != canonical_json(before):
            differences.append(f"{gate['type']}: {', '.join(_parts(gate, before))}")
    return "; ".join(differences) or None


def _parts(gate: Json, before: Json) -> list[str]:
    """What is different in one gate's result."""
    now, then = (
        {"type": result.get("type"), "verdict": result.get("verdict"), **(result.get("figures") or {})}
        for result in (gate, before)
    )
    return [
        f"{key} {now.get(key)}, was {then.get(key)}"
        for key in {**then, **now}
        if key not in now or key not in then or canonical_json(now[key]) != canonical_json(then[key])
    ] or ["its words"]


def _change(now: Outcome) -> str:
    """What another policy would have done instead, in words."""
    if isinstance(now, str):
        return now
    blamed = {"keep": "pass", "rollback": "fail"}.get(now.verdict, "inconclusive")
    reasons = [f"{gate.type}: {gate.reason}" for gate in now.gates if gate.verdict == blamed]
    words = {
        "keep": "would be kept",
        "carry": "would be carried",
        "rollback": "would be rolled back" if now.verdict == "rollback" else "would be inconclusive, and rolled back",
        "pause": "would be inconclusive, and wait for a person",
        "confirm": "would go on to the split that confirms, which was not opened",
        "sample_more": "would be measured further",
    }[now.action]
    return "; ".join([words, *reasons[:1]])


def _summary(rows: Sequence[Json]) -> Json:
    stored = [row["stored"]["identical"] for row in rows]
    replayed = [row["replayed"]["changed"] for row in rows]
    return {
        "num_rounds": len(rows),
        "num_identical": stored.count(True),
        "num_different": stored.count(False),
        "num_unreadable": stored.count(None),
        "num_changed": replayed.count(True),
        "num_undecided": replayed.count(None),
        "note": "each round is decided on the evidence that it had; after another verdict the following rounds would have "
        "started from another checkpoint",
    }
