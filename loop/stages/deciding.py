"""Deciding: the evidence as the policies want it, from the verdicts on the splits that were opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import covariance, fmean, variance

from loop.stages.evaluating import SIGNALS, outcomes_of, signals_by_problem
from policies.evidence import Evidence, Line, read_evidence
from store.records import Completion, GradedVerdict, Json, Problem


@dataclass(frozen=True, slots=True)
class Measured:
    """One side on one split: outcomes by problem, and the conditions that they were measured under."""

    outcomes: dict[str, list[int]]
    conditions: Json


@dataclass(frozen=True, slots=True)
class Opened:
    """One split as far as it was opened: its problems so far, how many it has in all, and each side on them."""

    suite: str
    decoding: Json
    problems: Sequence[Problem]
    num_planned: int
    num_looks: int
    measured: Mapping[str, Measured] = field(default_factory=dict)  # by "candidate", "head", "base", "best", "tip"

    def as_evidence(self) -> Json:
        """Base and best only where all the problems are measured: a gap would be a wrong answer. The tip on those that it has."""
        difficulties = {problem.task_id: problem.difficulty for problem in self.problems}
        sides = {
            who: side
            for who, side in self.measured.items()
            if who in ("candidate", "head", "tip") or difficulties.keys() <= side.outcomes.keys()
        }
        rows = [
            {"task_id": id, "difficulty": difficulty}
            | {who: side.outcomes[id] for who, side in sides.items() if who != "tip" or id in side.outcomes}
            for id, difficulty in sorted(difficulties.items())
        ]
        split: Json = {"suite": self.suite, "problems": rows, "decoding": self.decoding}
        split["conditions"] = {
            who: side.conditions for who, side in sides.items() if who != "tip"
        }  # an earlier round's
        if self.num_looks > 1 or len(self.problems) < self.num_planned:
            split |= {"num_planned": self.num_planned, "num_looks": self.num_looks}
        return split


def signals_of(figures: Json) -> dict[str, float]:
    """What a decision sees of an evaluation's figures beside outcomes, by the names that gates know: NAME, NAME_error."""
    named = {"pass@1": "pass@1", "num_completions": "num_samples", **SIGNALS}
    signals = {name: figures[key] for key, name in named.items() if figures.get(key) is not None}
    return signals | {f"{name}_error": error for name, error in figures.get("errors", {}).items()}


def parts_of(
    verdicts: Iterable[GradedVerdict], completions: Iterable[Completion], num_samples: int
) -> dict[str, dict[str, float]]:
    """By task, each problem's part of the signals that drift shows in, from its first `num_samples` samples alone."""
    graded = [verdict for verdict in verdicts if verdict.sample_index < num_samples]
    known = {verdict.completion_id for verdict in graded}
    parts = signals_by_problem(graded, (each for each in completions if each.id in known), 1)
    for task_id, results in outcomes_of(graded).items():
        parts[task_id] |= {"pass@1": fmean(results), "solved": float(any(results))}
    return parts


def since_base(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> Json:
    """Candidate's and base's parts of `parts_of`, compared on the problems that both answered; {} with fewer than two."""
    tasks = sorted(ours.keys() & theirs.keys())
    if len(tasks) < 2:
        return {}
    compared: Json = {}
    for name in ours[tasks[0]]:
        candidate, base = ([side[task][name] for task in tasks] for side in (ours, theirs))
        compared[name] = {
            "candidate": fmean(candidate),
            "base": fmean(base),
            "candidate_variance": variance(candidate),
            "base_variance": variance(base),
            "covariance": covariance(candidate, base),
            "num_problems": len(tasks),
        }
    return compared


def evidence(
    round: int,
    rounds_so_far: int,
    opened: Mapping[str, Opened],
    *,
    draw: int,
    figures: Mapping[str, Json],
    training: Json,
    fruitless_looks: Mapping[str, int],
    best_round: int | None,
    line: Line | None,
    more_signals: Mapping[str, Mapping[str, float]],
    tip: Mapping[str, float],
    drift: Json,
) -> Evidence:
    """What the policy sees of a round. BadEvidence if it is not sound.

    `training`: the trainer's report of the candidate. `figures`: "candidate", "head" and "base" -> the figures of their
    evaluations on the first split. `tip`: the signals of what the candidate was trained from, where that is not the head.
    `drift`: what `since_base` gives.
    """
    signals = {who: {**signals_of(measured), **more_signals.get(who, {})} for who, measured in figures.items()}
    if losses := training.get("losses"):
        signals["candidate"]["train_loss"] = sum(losses) / len(losses)
    if (held_out := training.get("held_out_loss")) is not None:
        gap = held_out - training["train_loss"]
        signals["candidate"] |= {"train_loss": training["train_loss"], "held_out_loss": held_out, "loss_gap": gap}
        signals.setdefault("base", {})["loss_gap"] = 0.0  # it was trained on none of these rows
    if tip:
        signals["tip"] = dict(tip)
    shown: Json = {
        "round": round,
        "rounds_so_far": rounds_so_far,
        "draw": draw,
        "splits": {name: split.as_evidence() for name, split in opened.items()},
        "signals": signals,
        "fruitless_looks": dict(fruitless_looks),
    }
    if best_round is not None:
        shown["best_round"] = best_round
    if drift:
        shown["since_base"] = drift
    if line is not None:
        shown["line"] = line.model_dump(exclude_none=True)
    return read_evidence(shown)
