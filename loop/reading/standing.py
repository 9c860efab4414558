"""How a run stands: the value behind `loopctl status` and `loopctl watch`, which is also their JSON.

Every read is bounded, whatever the number of rounds and completions: counters, newest rows, single keys. What a living
process says of itself counts before what the ledger says of it. Reads only; draws nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from loop.reading.reader import Reader, reader
from loop.reading.rounds import decision_of, gain
from loop.system.heartbeat import Heartbeat, read_heartbeat
from loop.system.lock import holder
from loop.words import as_rfc3339, round_name, seconds_between
from store.errors import NoStore
from store.records import Evaluation, Json, Round, Run

# What is said where neither the process nor the ledger has words of its own.
VANISHED = "the process vanished; `loopctl start` or `loopctl run` goes on where it was"
STARTING = "starting"
PREPARING = "preparing the run"
PAUSING = "pausing at the next safe point"
HEAD_MOVES = "the head moves to {} at the next safe point"
NO_RUN = "no run in {} yet; start one with `loopctl run`"
STALLED = "stalled: no sign of life from process {} for {:.0f} s, the limit is {:g} s; look into `loopctl logs`, or `loopctl restart --now`"
READ_ONLY = "nothing can be written to {}: its file system is read-only; mount it writable"
DISK_LOW = "disk low: {:,} bytes free, {:,} are wanted; `loopctl gc --dry-run` shows what may go"

ACTIVE = ("sampling", "training", "evaluating", "deciding")
PARTS = {"sampling": ("sampling",), "training": ("training",), "evaluating": ("evaluating", "grading")}
MOST_POINTS = 40  # of the trend
NUM_EVENTS = 300  # how many of the newest events are searched for the last error
LOW_DISK_BYTES = 1_000_000_000
MOST_FILES = 2000  # that are looked at for the size of the checkpoints; retention leaves a few dozen


def status(run_dir: Path, name: str, planned: int | None = None) -> Json:
    """`loopctl status --json`, key by key as the contract has it, and a little more.

    `planned`: how many rounds the configuration wants, 0 for no end; if it does not say, as many as when the run began.
    """
    try:
        with reader(run_dir) as found:
            return status_of(found, planned)
    except NoStore:
        return no_run(run_dir, name)


def no_run(run_dir: Path, name: str) -> Json:
    """`status` where nothing was run yet."""
    pid, now = holder(run_dir), time.time()
    beat = _own(read_heartbeat(run_dir), pid)
    return {
        "as_of": as_rfc3339(now),
        "run": name or None,
        "state": "running" if pid else "stopped",
        "reason": PREPARING if pid else NO_RUN.format(run_dir),
        **_process(pid, beat, now),
        "head": None,
        "base": None,
        "round": None,
        "last_decision": None,
        "rounds": {"kept": 0, "rolled_back": 0, "failed": 0, "planned": None},
        "corpus": {"completions": 0, "bytes": 0},
        "next_due": None,
        "disk": {"free_bytes": _free_bytes(run_dir), **_checkpoints(run_dir)},
        "last_error": None,
        "paused_by": None,
        "needs_you": [],
    }


def status_of(found: Reader, planned: int | None = None) -> Json:
    """`status` of a store that is open already."""
    run, now = found.run, time.time()
    planned = run.config["rounds"] if planned is None else planned
    pid, beat = holder(found.run_dir), read_heartbeat(found.run_dir)
    mine = _own(beat, pid)
    control = found.ledger.control(run.id)
    state, reason = _living(mine) if pid is not None else _left(run, beat)
    if state == "running" and control.held_by:
        reason = PAUSING
    elif state == "running" and control.wanted_head is not None:
        reason = HEAD_MOVES.format(round_name(control.wanted_head))
    elif pid is None and control.held_by:
        reason = control.hold_reason
    read_only = _is_read_only(found.run_dir)
    if pid is not None and read_only:  # it cannot say so itself: the heartbeat stays what it was
        state, reason = "paused", READ_ONLY.format(found.run_dir)
    last = found.ledger.last_round(run.id)
    head = _measured(found, run.head_checkpoint)
    base = _measured(found, run.base_checkpoint)
    answer: Json = {
        "as_of": as_rfc3339(now),
        "run": run.name,
        "state": state,
        "reason": reason,
        **_process(pid, mine, now),
        "head": _checkpoint(found, run.head_checkpoint, run.head_round, head)
        | {"gain_over_base": gain(found, head, base) if run.head_round else None},
        "base": _checkpoint(found, run.base_checkpoint, 0, base),
        "round": _round_now(found, last, mine, now),
        "last_decision": _last_decision(found),
        "rounds": {
            "kept": run.num_kept,
            "rolled_back": run.num_rolled_back,
            "failed": run.num_failed,
            "planned": planned,
        },
        "trend": [
            {"round": row["round"], "state": row["state"], "pass@1": row["rate"]}
            for row in found.corpus.evaluations.last_rates(
                run.id, found.decider, run.config["decide"]["split"], MOST_POINTS
            )
        ],
        "corpus": {"completions": run.num_completions, "bytes": run.completion_bytes},
        "next_due": as_rfc3339(mine.next_due_at) if mine and mine.next_due_at is not None else None,
        "disk": {
            "free_bytes": _free_bytes(found.run_dir),
            **_checkpoints(found.run_dir),
            "wanted_bytes": _wanted_bytes(found),
            "read_only": read_only,
        },
        "last_error": _last_error(found, last),
        "paused_by": control.held_by or ("disk" if pid is not None and read_only else _what_pauses(mine)),
        "stall_timeout_s": run.config["engine"]["stall_timeout_s"],
    }
    return answer | {"needs_you": _needs(answer, control.hold_reason or reason, READ_ONLY.format(found.run_dir))}


# The process


def _own(beat: Heartbeat | None, pid: int | None) -> Heartbeat | None:
    """The heartbeat, if it is that of the process that holds the run now."""
    return beat if beat and pid is not None and beat.pid == pid else None


def _process(pid: int | None, beat: Heartbeat | None, now: float) -> Json:
    return {
        "pid": pid,
        "uptime_s": max(0.0, now - beat.started_at) if beat else None,
        "heartbeat_age_s": max(0.0, now - beat.at) if beat else None,
    }


def _living(beat: Heartbeat | None) -> tuple[str, str | None]:
    """What the process that holds the run says of itself."""
    return (beat.state, beat.reason) if beat else ("running", STARTING)


def _left(run: Run, beat: Heartbeat | None) -> tuple[str, str | None]:
    """How the last process left it. One that ends by itself says so; one that was only waiting was killed, too."""
    waiting = run.state == "idle" and beat is not None and beat.state == "idle" and beat.next_due_at is not None
    if run.state in ("running", "paused") or waiting:
        return "stopped", VANISHED
    return run.state, run.reason


def _what_pauses(beat: Heartbeat | None) -> str | None:
    """What makes a living process wait that nobody holds: the window, which opens at a known time, or the disk."""
    if beat is None or beat.state != "paused":
        return None
    return "schedule" if beat.next_due_at is not None else "disk"


# The round, the head, the last decision


def _measured(found: Reader, checkpoint: str) -> Evaluation | None:
    """The figures of a checkpoint on the suite that decides."""
    done = [
        one
        for one in found.corpus.evaluations.all(found.run.id, checkpoint)
        if (one.suite_name, one.split) == (found.decider, found.run.config["decide"]["split"]) and one.metrics
    ]
    return done[-1] if done else None


def _checkpoint(found: Reader, sha256: str, number: int, evaluation: Evaluation | None) -> Json:
    row = found.ledger.checkpoints.get(sha256)
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
    if last is None or last.state not in ACTIVE:
        return None
    attempts = found.ledger.attempts(found.run.id, last.number, last.stage)
    known = beat if beat and beat.round == last.number and beat.stage in PARTS.get(last.stage, ()) else None
    done, total = (known.done, known.total) if known else (None, None)
    eta_s = None
    if known and done and total:
        eta_s = max(0.0, (known.at - known.part_started_at) / done * (total - done) - max(0.0, now - known.at))
    working = attempts and attempts[-1].finished_at is None and beat is not None and beat.state == "running"
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


def _last_decision(found: Reader) -> Json | None:
    row = found.ledger.last_decision(found.run.id)
    words = decision_of(row)
    if row is None or words is None:
        return None
    round = found.ledger.round(found.run.id, row.round)
    candidate = _measured(found, round.candidate_checkpoint) if round and round.candidate_checkpoint else None
    metrics: Json = {"suite": found.decider, "split": found.run.config["decide"]["split"]}
    if candidate and candidate.metrics:
        metrics |= {key: candidate.metrics[key] for key in ("pass@1", "pass@1_interval", "num_problems")}
        metrics["decoding"] = found.decoding(candidate)
    for gate in row.gates:
        metrics[gate["type"]] = gate["figures"]
    return words | {"metrics": metrics}


def _last_error(found: Reader, last: Round | None) -> Json | None:
    """The newest failure of an attempt; `current` until its stage is done, or, where that failed, the round after it."""
    event = found.ledger.events.last_failed_attempt(found.run.id, NUM_EVENTS)
    if event is None or event.round is None:
        return None
    stages = found.ledger.stages(found.run.id, event.round)
    done = any(stage.name == event.stage and stage.finished_at is not None for stage in stages)
    under_way = last is not None and last.state not in ("kept", "rolled_back") and last.number - event.round <= 1
    return {
        "at": event.at,
        "round": event.round,
        "stage": event.stage,
        "attempt": event.data["attempt"],
        "error": event.data["error"],
        "next_step": event.data["next_step"],
        "current": under_way and not done,
    }


# Whether anything needs you


def _needs(answer: Json, why: str | None, read_only: str) -> list[str]:
    """What does not mend by itself: a failure, a process that hangs, a disk that is nearly full."""
    found = []
    if answer["state"] == "failed" or answer["paused_by"] == "failure":
        found.append(f"failed: {why}")
    if answer["paused_by"] == "decision":
        found.append(f"a decision: {why}")
    if answer["state"] == "paused" and answer["paused_by"] == "disk":
        found.append(f"paused: {why}")
    elif answer["disk"]["read_only"]:
        found.append(read_only)
    limit, age = answer["stall_timeout_s"], answer["heartbeat_age_s"]
    if age is not None and age > limit and not answer["disk"]["read_only"]:
        found.append(STALLED.format(answer["pid"], age, limit))
    free, wanted = answer["disk"]["free_bytes"], answer["disk"]["wanted_bytes"]
    if free is not None and free < wanted and answer["paused_by"] != "disk":
        found.append(DISK_LOW.format(free, wanted))
    return found


# The disk


def _free_bytes(directory: Path) -> int | None:
    """Free space on the disk that the directory is, or will be, on."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        disk = os.statvfs(directory)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _wanted_bytes(found: Reader) -> int:
    """What stays free by configuration, and about what the next checkpoint takes: as much as the head, unless that is
    the base of adapters.
    """
    head, config = found.ledger.checkpoints.get(found.run.head_checkpoint), found.run.config
    adapters = config["training"]["method"] == "lora" and not config["training"]["lora"]["merge"]
    following = 0 if head is None or (adapters and head.kind == "full") else head.size_bytes
    return int(config.get("storage", {}).get("min_free_bytes", LOW_DISK_BYTES)) + following


def _checkpoints(run_dir: Path) -> Json:
    """The size of the checkpoints on disk; null where there are too many files to look at each."""
    total = 0
    for number, num_bytes in enumerate(_file_sizes(run_dir / "checkpoints")):
        if number == MOST_FILES:
            return {"checkpoints_bytes": None}
        total += num_bytes
    return {"checkpoints_bytes": total}


def _file_sizes(directory: str | Path) -> Iterator[int]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _file_sizes(entry.path)
                else:
                    yield entry.stat(follow_symlinks=False).st_size
    except OSError:  # what is just being removed has no size
        return
