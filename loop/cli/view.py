"""The read model: what status, rounds, round and run's tables show, as plain values that are also the JSON.

Reads the store and the run directory; draws nothing, writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loop.cli.clock import as_rfc3339, seconds_between
from loop.errors import PermissionDenied
from loop.heartbeat import Heartbeat, holder, read_heartbeat
from store.corpus import Corpus
from store.db import open_database, snapshot
from store.errors import NoStore
from store.ledger import Ledger
from store.records import Checkpoint, DecisionRow, Evaluation, Json, Round, Run

VANISHED = "the process vanished; `loopctl start` or `loopctl run` goes on where it was"
STARTING = "starting"
ACTIVE = ("sampling", "training", "evaluating", "deciding")
MOST_ROUNDS = 40  # that the trend shows
NUM_EVENTS = 100  # of the newest, in which the last error is looked for
LOW_DISK_BYTES = 1 << 30
WHO = ("base", "head", "candidate")


@dataclass(slots=True)
class Reader:
    """An open store and the run in it."""

    ledger: Ledger
    corpus: Corpus
    run: Run
    run_dir: Path

    def evaluations(self) -> dict[tuple[str, str], Evaluation]:
        """Finished evaluations by checkpoint and name of the suite."""
        found = self.corpus.evaluations(self.run.id)
        return {(one.checkpoint, one.suite_name): one for one in found if one.metrics is not None}

    def decoding(self, evaluation: Evaluation) -> Json | None:
        """How an evaluation's samples were drawn."""
        settings = self.corpus.decode_settings(evaluation.decode_settings_id)
        return settings.settings if settings else None

    @property
    def decider(self) -> str:
        """The name of the suite that decides."""
        return str(self.run.config["decide"]["suite"])

    @property
    def suites(self) -> list[str]:
        """The names of the suites, the one that decides first."""
        names = [suite["name"] for suite in self.run.config["suites"]]
        return [self.decider, *(name for name in names if name != self.decider)]


@contextlib.contextmanager
def reader(run_dir: Path) -> Iterator[Reader]:
    """The run of a directory, all reads from one moment. NoStore if nothing was run there."""
    path = run_dir / "loop.db"
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionDenied(f"{path}: permission denied; read it as the user who runs the loop")
    db = open_database(path, read_only=True)
    try:
        with snapshot(db):
            ledger = Ledger(db)
            run = ledger.run()
            if run is None:
                raise NoStore(f"{path}: holds no run yet")
            yield Reader(ledger, Corpus(db), run, run_dir)
    finally:
        db.close()


# Rounds


def figures_of(evaluation: Evaluation | None) -> Json | None:
    """One checkpoint on one suite: the stored figures."""
    return None if evaluation is None else {"checkpoint": evaluation.checkpoint, **(evaluation.metrics or {})}


def outcome_rates(found: Reader, evaluation: Evaluation) -> dict[str, float]:
    """The share of samples that passed, by problem."""
    passed: Counter[str] = Counter()
    num_samples: Counter[str] = Counter()
    for verdict in found.corpus.verdicts(evaluation.id):
        num_samples[verdict.task_id] += 1
        passed[verdict.task_id] += verdict.verdict == "passed"
    return {task_id: passed[task_id] / total for task_id, total in num_samples.items()}


def gain(found: Reader, ours: Evaluation | None, theirs: Evaluation | None) -> Json | None:
    """Ours minus theirs in pass@1 on the same problems, with a two-sided 95% interval."""
    if ours is None or theirs is None:
        return None
    if ours.id == theirs.id:
        return {"gain": 0.0, "interval": [0.0, 0.0], "num_improved": 0, "num_worsened": 0}
    from policies.statistics import paired_gain

    one, other = outcome_rates(found, ours), outcome_rates(found, theirs)
    if not one or one.keys() != other.keys():
        return None
    paired = paired_gain([one[task_id] - other[task_id] for task_id in sorted(one)], 0.975)
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
    evaluations: dict[tuple[str, str], Evaluation],
) -> Json:
    """One round in short: a row of `loopctl rounds`."""
    suites = {}
    for name in found.suites:
        mine = evaluations.get((round.candidate_checkpoint or "", name))
        heads = evaluations.get((round.parent_checkpoint, name))
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
    return {name: figures_of(evaluations.get((found.run.base_checkpoint, name))) for name in found.suites}


def whole_round(found: Reader, number: int) -> Json | None:
    """All of one round; None if there is none."""
    run, ledger = found.run, found.ledger
    round = ledger.round(run.id, number)
    if round is None:
        return None
    evaluations = found.evaluations()
    decision = ledger.decision(run.id, number)
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
    head = ledger.checkpoint(round.parent_checkpoint)
    return row(found, round, decision, evaluations) | {
        "head_round": head.round if head else 0,
        "head_after": decision.head_after if decision else None,
        "decision": decision_of(decision),
        "gates": decision.gates if decision else [],
        "policy": decision.policy if decision else None,
        "signals": decision.evidence.get("signals") if decision else None,
        "suites": {name: _suite(found, round, name, evaluations) for name in found.suites},
        "training": _training(found, round),
        "settings": {key: run.config[key] for key in ("model", "sampling", "collect", "training", "seed")},
        "stages": stages,
    }


def _suite(found: Reader, round: Round, name: str, evaluations: dict[tuple[str, str], Evaluation]) -> Json:
    checkpoints = {
        "base": found.run.base_checkpoint,
        "head": round.parent_checkpoint,
        "candidate": round.candidate_checkpoint or "",
    }
    who = {one: evaluations.get((checkpoints[one], name)) for one in WHO}
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
    used, left_out = 0, Counter[str]()
    for selection in found.corpus.selections(found.run.id, round.number):
        used += selection.used
        if not selection.used:
            left_out[re.sub(r" \(.*\)$", "", selection.reason or "no reason given")] += 1
    stage = found.ledger.stage(found.run.id, round.number, "training")
    output = stage.output if stage and stage.output else {}
    losses = output.get("losses") or []
    return {
        "num_used": used,
        "num_left_out": sum(left_out.values()),
        "left_out": dict(left_out.most_common()),
        "num_steps": output.get("num_steps"),
        "num_completion_tokens": output.get("num_completion_tokens"),
        "mean_loss": sum(losses) / len(losses) if losses else None,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
    }


def _short_output(output: Json | None) -> Json | None:
    """A stage's output without its long list of losses."""
    return {key: value for key, value in output.items() if key != "losses"} if output is not None else None


# Status


def status(run_dir: Path, name: str, planned: int | None = None) -> Json:
    """`loopctl status --json`, key by key as the contract has it, and a little more.

    `planned`: how many rounds the configuration wants, if it says so; otherwise as many as when the run began.
    """
    try:
        with reader(run_dir) as found:
            return _status(found, planned if planned is not None else found.run.config["rounds"])
    except NoStore:
        return _no_run(run_dir, name)


def _no_run(run_dir: Path, name: str) -> Json:
    pid = holder(run_dir)
    beat = _own_beat(run_dir, pid)
    now = time.time()
    reason = "preparing the run" if pid else f"no run in {run_dir} yet; start one with `loopctl run`"
    return {
        "as_of": as_rfc3339(now),
        "run": name or None,
        "state": "running" if pid else "stopped",
        "reason": reason,
        "pid": pid,
        "uptime_s": now - beat.started_at if beat else None,
        "heartbeat_age_s": max(0.0, now - beat.at) if beat else None,
        "head": None,
        "base": None,
        "round": None,
        "last_decision": None,
        "rounds": {"kept": 0, "rolled_back": 0, "failed": 0},
        "corpus": {"completions": 0, "bytes": 0},
        "next_due": None,
        "hold": None,
        "disk": {"free_bytes": _free_bytes(run_dir), "checkpoints_bytes": _tree_bytes(run_dir / "checkpoints")},
        "last_error": None,
    }


def _status(found: Reader, planned: int) -> Json:
    run, now = found.run, time.time()
    pid = holder(found.run_dir)
    beat = _own_beat(found.run_dir, pid)
    state, reason = _state(found, pid, beat)
    rounds = found.ledger.last_rounds(run.id, MOST_ROUNDS)
    wanted = [run.head_checkpoint, run.base_checkpoint, *(round.candidate_checkpoint or "" for round in rounds)]
    measured = found.corpus.evaluations_on(run.id, found.decider, wanted)
    evaluations = {(one.checkpoint, one.suite_name): one for one in measured if one.metrics is not None}
    head = evaluations.get((run.head_checkpoint, found.decider))
    base = evaluations.get((run.base_checkpoint, found.decider))
    return {
        "as_of": as_rfc3339(now),
        "run": run.name,
        "state": state,
        "reason": reason,
        "pid": pid,
        "uptime_s": now - beat.started_at if beat else None,
        "heartbeat_age_s": max(0.0, now - beat.at) if beat else None,
        "head": _checkpoint(found, run.head_checkpoint, run.head_round, head)
        | {"gain_over_base": gain(found, head, base) if run.head_round else None},
        "base": _checkpoint(found, run.base_checkpoint, 0, base),
        "round": _round_now(found, rounds[-1] if rounds else None, beat, now),
        "last_decision": _last_decision(found, rounds, evaluations),
        "rounds": {
            "kept": run.num_kept,
            "rolled_back": run.num_rolled_back,
            "failed": run.num_failed,
            "planned": planned,
        },
        "trend": _trend(found, rounds, evaluations),
        "corpus": {"completions": run.num_completions, "bytes": run.completion_bytes},
        "next_due": as_rfc3339(beat.next_due_at) if beat and beat.next_due_at is not None else None,
        "hold": found.ledger.control(run.id).held_by,
        "disk": {
            "free_bytes": _free_bytes(found.run_dir),
            "checkpoints_bytes": _tree_bytes(found.run_dir / "checkpoints"),
            "wanted_bytes": max(LOW_DISK_BYTES, 2 * _next_checkpoint_bytes(found)),
        },
        "last_error": _last_error(found),
        "stall_timeout_s": run.config["engine"]["stall_timeout_s"],
    }


def _state(found: Reader, pid: int | None, beat: Heartbeat | None) -> tuple[str, str | None]:
    """What the living process says of itself; without one, what the ledger says of the last."""
    run = found.run
    if pid is not None:
        return (beat.state, beat.reason) if beat else ("running", STARTING)
    held = found.ledger.control(run.id).hold_reason
    if run.state in ("running", "paused"):
        return "stopped", held or VANISHED
    return run.state, f"{run.reason}; {held}" if held and run.reason else held or run.reason


def _own_beat(run_dir: Path, pid: int | None) -> Heartbeat | None:
    """The heartbeat of the process that holds the run now."""
    beat = read_heartbeat(run_dir)
    return beat if beat and pid is not None and beat.pid == pid else None


def _checkpoint(found: Reader, sha256: str, number: int, evaluation: Evaluation | None) -> Json:
    row: Checkpoint | None = found.ledger.checkpoint(sha256)
    metrics = evaluation.metrics if evaluation and evaluation.metrics else {}
    return {
        "checkpoint": sha256,
        "round": number,
        "path": str(found.run_dir / row.path) if row else None,
        "suite": found.decider,
        "decoding": found.decoding(evaluation) if evaluation else None,
        "pass@1": metrics.get("pass@1"),
        "pass@1_interval": metrics.get("pass@1_interval"),
    }


def _round_now(found: Reader, last: Round | None, beat: Heartbeat | None, now: float) -> Json | None:
    """The round that is open, whether or not anything works on it."""
    if last is None or last.state not in (*ACTIVE, "paused"):
        return None
    attempts = found.ledger.attempts(found.run.id, last.number, last.stage)
    stage = {"sampling": ("sampling",), "training": ("training",), "evaluating": ("evaluating", "grading")}
    known = beat if beat and beat.round == last.number and beat.stage in stage.get(last.stage, ()) else None
    done, total = (known.done, known.total) if known else (None, None)
    eta_s = None
    if known and done and total:
        eta_s = max(0.0, (known.at - known.part_started_at) / done * (total - done) - (now - known.at))
    working = attempts and attempts[-1].finished_at is None and beat is not None
    return {
        "number": last.number,
        "stage": last.stage,
        "attempt": attempts[-1].attempt if attempts else 0,
        "done": done,
        "total": total,
        "elapsed_s": seconds_between(attempts[-1].started_at, as_rfc3339(now)) if working else None,
        "eta_s": eta_s,
        "part": f"{known.stage}: {known.part}" if known else None,
    }


def _last_decision(found: Reader, rounds: list[Round], evaluations: dict[tuple[str, str], Evaluation]) -> Json | None:
    row = found.ledger.last_decision(found.run.id)
    words = decision_of(row)
    if row is None or words is None:
        return None
    decided = next((round for round in rounds if round.number == row.round), None)
    candidate = evaluations.get(((decided and decided.candidate_checkpoint) or "", found.decider))
    metrics: Json = {"suite": found.decider, "split": found.run.config["decide"]["split"]}
    if candidate and candidate.metrics:
        metrics |= {key: candidate.metrics[key] for key in ("pass@1", "pass@1_interval", "num_problems")}
        metrics["decoding"] = found.decoding(candidate)
    for gate in row.gates:
        metrics[gate["type"]] = gate["figures"]
    return words | {"metrics": metrics}


def _trend(found: Reader, rounds: list[Round], evaluations: dict[tuple[str, str], Evaluation]) -> list[Json]:
    """The candidate's pass@1 on the suite that decides, round by round."""
    points = []
    for round in rounds:
        one = evaluations.get((round.candidate_checkpoint or "", found.decider))
        if one and one.metrics and round.state in ("kept", "rolled_back"):
            points.append({"round": round.number, "state": round.state, "pass@1": one.metrics["pass@1"]})
    return points


def _last_error(found: Reader) -> Json | None:
    """The newest failure in the recent history, whether or not it was overcome since."""
    last = found.ledger.last_event()
    after = max(0, last.seq - NUM_EVENTS) if last else 0
    for event in reversed(found.ledger.events(after, NUM_EVENTS)):
        if event.kind == "attempt_failed":
            return {
                "at": event.at,
                "round": event.round,
                "stage": event.stage,
                "attempt": event.data["attempt"],
                "error": event.data["error"],
                "next_step": event.data["next_step"],
            }
    return None


def troubles(answer: Json) -> list[str]:
    """What `status --check` fails on: a failed run, one that makes no progress, a disk that is nearly full."""
    found = []
    if answer["state"] == "failed" or answer["hold"] == "failure":
        found.append(f"failed: {answer['reason']}")
    limit, age = answer.get("stall_timeout_s"), answer["heartbeat_age_s"]
    if answer["state"] == "running" and limit and age and age > limit:
        found.append(f"stalled: no progress for {age:.0f} s, the limit is {limit:g} s")
    free, needed = answer["disk"]["free_bytes"], answer["disk"].get("wanted_bytes", LOW_DISK_BYTES)
    if free is not None and free < needed:
        found.append(f"disk low: {free:,} bytes free, {needed:,} are wanted; remove old checkpoints or make room")
    return found


def _free_bytes(directory: Path) -> int | None:
    """Free space on the disk that the directory is, or will be, on."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def _next_checkpoint_bytes(found: Reader) -> int:
    """About what the next checkpoint takes: as much as the head, unless that is the base of adapters."""
    head, training = found.ledger.checkpoint(found.run.head_checkpoint), found.run.config["training"]
    adapters = training["method"] == "lora" and not training["lora"]["merge"]
    return 0 if head is None or (adapters and head.kind == "full") else head.size_bytes


def _tree_bytes(directory: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for place, _, names in os.walk(directory):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(place, name)).st_size
    return total
