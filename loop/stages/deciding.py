"""Deciding: the evidence as the policies want it, from the verdicts on the split that decides."""

from __future__ import annotations

from typing import Any

from policies.evidence import Evidence, read_evidence
from store.records import Json

_SIGNALS = {
    "mean_tokens": "mean_length",
    "truncation_rate": "truncation_rate",
    "code_rate": "code_rate",
    "distinct_rate": "distinct_solution_rate",
}


def evidence(
    round: int,
    *,
    suite: str,
    split: str,
    decoding: dict[str, Any],
    difficulty: dict[str, str | None],
    candidate: dict[str, list[int]],
    head: dict[str, list[int]],
    base: dict[str, list[int]],
    figures: dict[str, Json],
    losses: list[float],
) -> Evidence:
    """What the policy sees of a round: outcomes by problem for candidate, head and base, and the signals beside them.

    `figures`: "candidate" and "head" -> the figures of their evaluations on the suite that decides.
    """
    problems = [
        {"task_id": task_id, "difficulty": difficulty[task_id], "candidate": candidate[task_id],
         "head": head[task_id], "base": base[task_id]}
        for task_id in sorted(candidate)
    ]  # fmt: skip
    signals = {
        who: {name: found[key] for key, name in _SIGNALS.items() if found.get(key) is not None}
        for who, found in figures.items()
    }
    if losses:
        signals["candidate"]["train_loss"] = sum(losses) / len(losses)
    return read_evidence(
        {
            "round": round,
            "rounds_so_far": round - 1,
            "splits": {split: {"suite": suite, "problems": problems, "decoding": decoding}},
            "signals": signals,
        }
    )
