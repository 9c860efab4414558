"""The read model of rounds: what `rounds`, `round` and run's tables show, as plain values that are also the JSON.

Reads the store and the run directory; draws nothing, writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.reading.reader import Evaluations, Reader
from loop.words import seconds_between
from store.records import DecisionRow, Evaluation, Json, Round

if TYPE_CHECKING:
    pass

WHO = ("base", "head", "candidate")


# Rounds


def figures_of(evaluation: Evaluation | None) -> Json | None:
    """One checkpoint on one suite: the stored figures."""
    return None if evaluation is None else {"checkpoint": evaluation.checkpoint, **(evaluation.metrics or {})}


def gain(found: Reader, ours: Evaluation | None, theirs: Evaluation | None) -> Json | None:
    """Ours minus theirs in pass@1 on the same problems, with a two-sided 95% interval."""
    if ours is None or theirs is None:
        return None
    if ours.id == theirs.id:
        return {"gain": 0.0, "interval": [0.0, 0.0], "num_improved": 0, "num_worsened": 0}
    one, other = found.pass_rates(ours), found.pass_rates(theirs)
    common = sorted(one.keys() & other.keys())
    if not common:
        return None
    paired = found.paired(tuple(one[task_id] - other[task_id] for task_id in common))
    return {
        "gain": paired.gain,
        "interval": [paired.lower, paired.upper],
        "num_improved": paired.num_improved,
        "num_worsened": paired.num_worsened,
    }


def duration_of(found: Reader, round: Round) -> dict[str, float]:
    """Seconds of work by stage: what its attempts took. One that vanished has no end and does not count."""
    took: dict[str, float] = {}
    for stage in found.ledger.stages(found.run.id, round.number):
        attempts = found.ledger.attempts(found.run.id, round.number, stage.name)
        took[stage.name] = sum(seconds_between(a.started_at, a.finished_at) for a in attempts if a.finished_at)
    return took


def decision_of(decision: DecisionRow | None) -> Json | None:
    """A decision in the words of `status`. Inconclusive leaves the head where it is, as a rollback does."""
    if decision is None:
        return None
    verdict = "keep" if decision.head_after != decision.head_before or decision.verdict == "keep" else "rollback"
    reasons = [gate["reason"] for gate in decision.gates]
    return {
        "round": decision.round,
        "verdict": verdict,
        "conclusive": decision.verdict != "inconclusive",
        "action": decision.action,
        "reasons": reasons,
        "decided_at": decision.decided_at,
    }


def row(
    found: Reader,
    round: Round,
    decision: DecisionRow | None,
    evaluations: Evaluations,
) -> Json:
    """One round in short: a row of `loopctl rounds`."""
    suites = {}
    for name in found.suites:
        mine = evaluations.of(round, "candidate", name, round.candidate_checkpoint)
        heads = evaluations.of(round, "head", name, round.parent_checkpoint)
        metrics, before = (one.metrics if one and one.metrics else None for one in (mine, heads))
        suites[name] = {
            "decides": name == found.decider,
            "pass@1": metrics["pass@1"] if metrics else None,
            "pass@1_interval": metrics["pass@1_interval"] if metrics else None,
            "head_pass@1": before["pass@1"] if before else None,
            "gain": metrics["pass@1"] - before["pass@1"] if metrics and before else None,
            "decoding": found.decoding(mine or heads) if mine or heads else None,  # type: ignore[arg-type]
        }
    sampling = found.ledger.stage(found.run.id, round.number, "sampling")
    output = sampling.output if sampling and sampling.output else {}
    words = decision_of(decision)
    return {
        "round": round.number,
        "state": round.state,
        "stage": round.stage,
        "verdict": words["verdict"] if words else None,
        "reasons": words["reasons"] if words else [],
        "parent": round.parent_checkpoint,
        "candidate": round.candidate_checkpoint,
        "suites": suites,
        "num_completions": output.get("num_completions"),
        "num_used": output.get("num_used"),
        "started_at": round.started_at,
        "finished_at": round.finished_at,
        "duration_s": sum(duration_of(found, round).values()),
        "error": round.error,
    }


def rows(found: Reader, since: int = 1) -> list[Json]:
    """A row per round, in order."""
    evaluations = found.evaluations()
    decisions = {decision.round: decision for decision in found.ledger.decisions(found.run.id)}
    return [
        row(found, round, decisions.get(round.number), evaluations)
        for round in found.ledger.rounds(found.run.id)
        if round.number >= since
    ]


def base_row(found: Reader) -> Json:
    """What the base reached on every suite."""
    evaluations = found.evaluations()
    return {name: figures_of(evaluations.newest.get((found.run.base_checkpoint, name))) for name in found.suites}


def whole_round(found: Reader, number: int) -> Json | None:
    """All of one round; None if there is none."""
    round = found.ledger.round(found.run.id, number)
    if round is None:
        return None
    return all_of(found, round, found.ledger.decision(found.run.id, number), found.evaluations())


def all_of(found: Reader, round: Round, decision: DecisionRow | None, evaluations: Evaluations) -> Json:
    """`whole_round` of a round that was read already, with what was read for all rounds at once."""
    run, ledger, number = found.run, found.ledger, round.number
    took = duration_of(found, round)
    stages = []
    for stage in ledger.stages(run.id, number):
        attempts = ledger.attempts(run.id, number, stage.name)
        stages.append(
            {
                "stage": stage.name,
                "started_at": stage.started_at,
                "finished_at": stage.finished_at,
                "duration_s": took[stage.name],
                "attempts": [
                    {"attempt": a.attempt, "started_at": a.started_at, "finished_at": a.finished_at, "error": a.error}
                    for a in attempts
                ],
                "output": _short_output(stage.output),
            }
        )
    head = ledger.checkpoints.get(round.parent_checkpoint)
    return row(found, round, decision, evaluations) | {
        "head_round": head.round if head else 0,
        "head_after": decision.head_after if decision else None,
        "decision": decision_of(decision),
        "gates": decision.gates if decision else [],
        "policy": decision.policy if decision else None,
        "signals": decision.evidence.get("signals") if decision else None,
        "suites": {name: _suite(found, round, name, evaluations) for name in _suites_of(found, round, evaluations)},
        "training": _training(found, round),
        "diagnosis": _diagnosis(found, round),
        **_settings(found, round),
        "stages": stages,
    }


def _settings(found: Reader, round: Round) -> Json:
    """The settings that the round really used, and what in them was changed after rollbacks, in one line."""
    settings = {key: found.run.config[key] for key in ("model", "sampling", "collect", "training", "seed")}
    inputs = {stage.name: stage.input for stage in found.ledger.stages(found.run.id, round.number)}
    sampling = inputs.get("sampling", {})
    if "decoding" in sampling:
        settings["sampling"] = settings["sampling"] | sampling["decoding"]
    if "data" in sampling:
        settings["collect"] = settings["collect"] | {"data": sampling["data"]}
    if used := inputs.get("training", {}).get("settings"):
        settings["training"] = settings["training"] | {key: used[key] for key in settings["training"] if key in used}
    return {"settings": settings, "adapted": sampling.get("adapted")}


def _suites_of(found: Reader, round: Round, evaluations: Evaluations) -> list[str]:
    """The suites, and after the one that decides its other splits that were opened."""
    more = [suite for _, suite in evaluations.named(round) if suite not in found.suites]
    return [found.decider, *dict.fromkeys(more), *found.suites[1:]]


def _suite(found: Reader, round: Round, name: str, evaluations: Evaluations) -> Json:
    who = {
        "base": evaluations.newest.get((found.run.base_checkpoint, name)),
        "head": evaluations.of(round, "head", name, round.parent_checkpoint),
        "candidate": evaluations.of(round, "candidate", name, round.candidate_checkpoint),
    }
    known = next((one for one in who.values() if one), None)
    return {
        "decides": name == found.decider,
        "split": known.split if known else None,
        "num_samples": known.num_samples if known else None,
        "decoding": found.decoding(known) if known else None,
        **{one: figures_of(evaluation) for one, evaluation in who.items()},
        "gain": gain(found, who["candidate"], who["head"]),
        "gain_over_base": gain(found, who["candidate"], who["base"]),
    }


def _training(found: Reader, round: Round) -> Json:
    """What training saw, and how its loss went."""
    counts = found.corpus.selection_counts(found.run.id, round.number)
    left_out = {row["reason"] or "no reason given": row["num"] for row in counts if not row["used"]}
    sampling = found.ledger.stage(found.run.id, round.number, "sampling")
    sampled = sampling.output if sampling and sampling.output else {}
    stage = found.ledger.stage(found.run.id, round.number, "training")
    output = stage.output if stage and stage.output else {}
    losses = output.get("losses") or []
    return {
        "num_used": sum(row["num"] for row in counts if row["used"]),
        "num_earlier": sampled.get("num_earlier", 0),
        "num_left_out": sum(left_out.values()),
        "left_out": left_out,
        "num_steps": output.get("num_steps"),
        "num_completion_tokens": output.get("num_completion_tokens"),
        "mean_loss": sum(losses) / len(losses) if losses else None,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "num_held_out": output.get("num_held_out", 0),
        "held_out_loss": output.get("held_out_loss"),
        "train_loss": output.get("train_loss"),
    }


def _diagnosis(found: Reader, round: Round) -> Json | None:
    """The summary of locks and forks; None before it is there and where it is switched off."""
    stage = found.ledger.stage(found.run.id, round.number, "evaluating")
    return (stage.output or {}).get("diagnosis") or None if stage else None


def _short_output(output: Json | None) -> Json | None:
    """A stage's output without what is long and stands elsewhere in the answer."""
    long = ("losses", "diagnosis")
    return {key: value for key, value in output.items() if key not in long} if output is not None else None
