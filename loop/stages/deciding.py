"""Deciding: the evidence as the policies want it, from the verdicts on the split that decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.diagnosis import Who
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
    measured: Mapping[Who, Mapping[str, float]],
) -> Evidence:
    """What the policy sees of a round: outcomes by problem for candidate, head and base, and the signals beside them.

    `figures`: "candidate" and "head" -> the figures of their evaluations on the suite that decides.
    `measured`: further signals of candidate, head and base, by name.
    """
    problems = [
        {"task_id": task_id, "difficulty": difficulty[task_id], "candidate": candidate[task_id],
         "head": head[task_id], "base": base[task_id]}
        for task_id in sorted(candidate)
    ]  # fmt: skip
    signals: dict[str, dict[str, float]] = {
        who: {name: found[key] for key, name in _SIGNALS.items() if found.get(key) is not None}
        for who, found in figures.items()
    }
    for who, named in measured.items():
        signals[who] = signals.get(who, {}) | dict(named)
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
