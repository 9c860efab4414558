"""What `loopctl status`, `loopctl watch` and the page know of a run: `Standing`, which `as_json` makes the JSON of.

Whatever status is to show more is a field of `Standing` here, and its words are in status_words.py. Every read is bounded,
whatever the number of rounds and completions: counters, newest rows, single keys. What a living process says of itself counts
before what the ledger says of it. Reads only; draws nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loop.reading.decisions import Decision, decision_of
from loop.reading.gains import Gain, gain
from loop.reading.reader import Reader, reader
from loop.system.heartbeat import Heartbeat, read_heartbeat
from loop.system.lock import holder
from loop.words import as_rfc3339, round_name, seconds_between
from store.errors import NoStore
from store.ledger import TIP_LOOKED_AT
from store.records import DECIDED, STAGES, Evaluation, Json, Round, Run

VANISHED = "the process vanished; `loopctl start` or `loopctl run` continues where it stopped"
STARTING = "starting"
READ_ONLY = "nothing can be written to {}: its file system is read-only; mount it writable"

# By stage of the ledger: the parts of it that a heartbeat names. Completions may be run on their prompts' tests while sampling ends.
PARTS = {"sampling": ("sampling", "grading"), "training": ("training",), "evaluating": ("evaluating", "grading")}
MOST_POINTS = 40  # of the trend
NUM_EVENTS = 300  # how many of the newest events are searched for the last error
LOW_DISK_BYTES = 1_000_000_000
MOST_FILES = 2000  # of checkpoints whose sizes are added up; retention leaves a few dozen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Standing:
    """How a run stands. The defaults are those of a directory where nothing was run yet."""

    as_of: str
    run: str | None  # its name
    state: str  # running, paused, idle, stopped or failed
    reason: str | None
    pid: int | None  # of the process that holds the run
    uptime_s: float | None
    heartbeat_age_s: float | None
    head: Head | None = None
    base: Measured | None = None
    tip: Tip | None = None
    round: OpenRound | None = None
    last_decision: LastDecision | None = None
    rounds: RoundCounts
    trend: tuple[TrendPoint, ...] = ()
    corpus: CorpusSize
    next_due: str | None = None
    disk: Disk
    last_error: LastError | None = None
    paused_by: str | None = None  # user, failure, decision, schedule or disk
    stall_timeout_s: float | None = None
    needs_you: tuple[str, ...] = ()  # what does not mend by itself, a sentence each
    nodes: list[Json] | None = None  # what each node of a cluster does now; None where none has an engine


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """A checkpoint and its figure on the suite that decides; no figure before it is measured."""

    checkpoint: str
    round: int
    path: str | None
    suite: str
    decoding: Json | None
    pass_at_1: float | None
    pass_at_1_interval: list[float] | None


@dataclass(frozen=True, eq=False, repr=False)
class Head(Measured):
    """The head, its gain over the base, and what it rests on; None while the base is the head."""

    gain_over_base: Gain | None
    shown: Shown | None  # None, too, where it was kept without a gain that was shown, as by keep_if_not_inferior


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Shown:
    """The look that made the head: the gain over the head before, its lower bound, and the chance that this is wrong."""

    over_round: int
    gain: float
    lower: float
    level: float
    suite: str
    split: str
    num_problems: int
    num_samples: int
    in_round: bool  # False: by a later look at the tip


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tip:
    """Where the next round begins: the head, or the newest of `depth` rounds that were carried since."""

    checkpoint: str
    round: int
    path: str | None
    depth: int
    gain_over_head: Gain | None  # on the problems that it was measured on; None while it is the head


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OpenRound:
    """The round that is open, whether or not a process works on it; `done` of `total` units of its part."""

    number: int
    stage: str
    attempt: int
    done: int | None
    total: int | None
    elapsed_s: float | None
    eta_s: float | None
    part: str | None
    warning: str | None = None  # what the user should know of the part that is under way


@dataclass(frozen=True, eq=False, repr=False)
class LastDecision(Decision):
    """The newest decision, the candidate's figures, and each gate's by its type."""

    metrics: Json


@dataclass(frozen=True, slots=True, repr=False)
class RoundCounts:
    """How many rounds ended in each way; `planned`: how many there will be, 0 for no end."""

    kept: int
    carried: int
    rolled_back: int
    failed: int
    planned: int | None

    @property
    def left(self) -> int | None:
        """How many are still to be decided; None: without end."""
        return max(0, self.planned - self.kept - self.carried - self.rolled_back) if self.planned else None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TrendPoint:
    """The candidate of a round on the suite that decides."""

    round: int
    state: str
    pass_at_1: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CorpusSize:
    """How much was sampled for training: completions, and bytes of text."""

    completions: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Disk:
    """Space for the run. `wanted_bytes` stay free by configuration or go into the next checkpoint."""

    free_bytes: int | None
    checkpoints_bytes: int | None  # None where there are too many files to look at each
    wanted_bytes: int | None
    read_only: bool


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LastError:
    """The newest failure of an attempt; `current` until its stage is done, or, where that failed, the round after it."""

    at: str
    round: int
    stage: str | None
    attempt: int
    error: str
    next_step: str
    current: bool


def status(run_dir: Path, name: str, planned: int | None = None) -> Standing:
    """How the run of a directory stands. `name`: that of the configuration, for a directory without a run.

    `planned`: how many rounds the configuration wants, 0 for no end; if it does not say, as many as when the run began.
    """
    before = holder(run_dir)
    standing = _status(run_dir, name, planned)
    if (
        before is not None and standing.pid is None
    ):  # it ended meanwhile, and may have said how after the store was read
        return _status(run_dir, name, planned)
    return standing


def _status(run_dir: Path, name: str, planned: int | None) -> Standing:
    # Before the store: a process writes a pause into the store first, so whoever is seen to pause has its reason there.
    last_beat = read_heartbeat(run_dir)
    try:
        with reader(run_dir) as store:
            return status_of(store, planned, last_beat)
    except NoStore:
        pid = holder(run_dir)
        return Standing(
            **_process(_own(last_beat, pid), pid, time.time()),
            run=name or None,
            state="running" if pid else "stopped",
            reason="preparing the run" if pid else f"no run in {run_dir} yet; start one with `loopctl run`",
            rounds=RoundCounts(0, 0, 0, 0, None),
            corpus=CorpusSize(0, 0),
            disk=_disk(run_dir),
        )


def status_of(store: Reader, planned: int | None = None, last_beat: Heartbeat | None = None) -> Standing:
    """`status` of a store that is open already. `last_beat`: the heartbeat as it was before the store was opened."""
    run, now = store.run, time.time()
    pid, last_beat = holder(store.run_dir), last_beat or read_heartbeat(store.run_dir)
    beat = _own(last_beat, pid)
    control = store.ledger.control(run.id)
    if pid is None:
        state, reason = _left(run, last_beat)
    else:
        state, reason = (beat.state, beat.reason) if beat else ("running", STARTING)
    if state == "running" and control.held_by:
        reason = "pausing at the next safe point"
    elif state == "running" and control.wanted_head is not None:
        reason = f"the head moves to {round_name(control.wanted_head)} at the next safe point"
    elif pid is None and control.held_by:
        reason = control.hold_reason
    disk = _disk(store.run_dir, _wanted_bytes(store))
    if pid is not None and disk.read_only:  # it cannot say so itself: the heartbeat stays what it was
        state, reason = "paused", READ_ONLY.format(store.run_dir)
    last = store.ledger.last_round(run.id)
    head, base = _measurement(store, run.head_checkpoint), _measurement(store, run.base_checkpoint)
    measured = vars(_measured(store, run.head_checkpoint, run.head_round, head))
    over_base = gain(store, head, base) if run.head_round else None
    planned = run.config["rounds"] if planned is None else planned
    rates = store.corpus.evaluations.last_rates(run.id, store.decider, run.config["decide"]["split"], MOST_POINTS)
    standing = Standing(
        **_process(beat, pid, now),
        run=run.name,
        state=state,
        reason=reason,
        head=Head(**measured, gain_over_base=over_base, shown=_shown(store)),
        base=_measured(store, run.base_checkpoint, 0, base),
        tip=_tip(store),
        round=_round_now(store, last, beat, now),
        last_decision=_last_decision(store),
        rounds=RoundCounts(run.num_kept, run.num_carried, run.num_rolled_back, run.num_failed, planned),
        trend=tuple(TrendPoint(row["round"], row["state"], row["rate"]) for row in rates),
        corpus=CorpusSize(run.num_completions, run.completion_bytes),
        next_due=as_rfc3339(beat.next_due_at) if beat and beat.next_due_at is not None else None,
        disk=disk,
        last_error=_last_error(store, last),
        paused_by=control.held_by or ("disk" if pid is not None and disk.read_only else _what_pauses(beat)),
        stall_timeout_s=run.config["engine"]["stall_timeout_s"],
        nodes=beat.nodes if beat else None,
    )
    return replace(standing, needs_you=tuple(_needs(standing, control.hold_reason or reason, store.run_dir)))


# The process


def _own(beat: Heartbeat | None, pid: int | None) -> Heartbeat | None:
    """The heartbeat, if it is that of the process that holds the run now."""
    return beat if beat and pid is not None and beat.pid == pid else None


def _process(beat: Heartbeat | None, pid: int | None, now: float) -> Json:
    """The fields of `Standing` that tell which process holds the run, since when, and how old its last sign of life is."""
    uptime_s, age_s = (max(0.0, now - beat.started_at), max(0.0, now - beat.at)) if beat else (None, None)
    return {"as_of": as_rfc3339(now), "pid": pid, "uptime_s": uptime_s, "heartbeat_age_s": age_s}


def _left(run: Run, beat: Heartbeat | None) -> tuple[str, str | None]:
    """How the last process left the run. A process that ends by itself says so; one that was waiting was killed."""
    waiting = run.state == "idle" and beat is not None and beat.state == "idle" and beat.next_due_at is not None
    if run.state in ("running", "paused") or waiting:
        return "stopped", VANISHED
    return run.state, run.reason


def _what_pauses(beat: Heartbeat | None) -> str | None:
    """Why a living process waits though nobody paused it: for the window, which opens at a known time, or for the disk."""
    if beat is None or beat.state != "paused":
        return None
    return "schedule" if beat.next_due_at is not None else "disk"


# The round, the head, the last decision


def _measurement(store: Reader, checkpoint: str) -> Evaluation | None:
    """The newest figures of a checkpoint on the suite that decides."""
    wanted = (store.decider, store.run.config["decide"]["split"])
    evaluations = store.corpus.evaluations.all(store.run.id, checkpoint)
    return next((row for row in reversed(evaluations) if (row.suite_name, row.split) == wanted and row.metrics), None)


def _measured(store: Reader, sha256: str, number: int, evaluation: Evaluation | None) -> Measured:
    row = store.ledger.checkpoints.get(sha256)
    metrics = (evaluation.metrics if evaluation else None) or {}
    return Measured(
        checkpoint=sha256,
        round=number,
        path=str(store.run_dir / row.path) if row else None,
        suite=store.decider,
        decoding=store.decoding(evaluation),
        pass_at_1=metrics.get("pass@1"),
        pass_at_1_interval=metrics.get("pass@1_interval"),
    )


def _shown(store: Reader) -> Shown | None:
    """What the head rests on: the decision of its round, or a later look at it while it was the tip."""
    run, ledger = store.run, store.ledger
    decision = ledger.decision(run.id, run.head_round) if run.head_round else None
    if decision is None:
        return None
    gates, evidence, before = decision.gates, decision.evidence, decision.head_before
    in_round = decision.verdict == "keep"
    if not in_round:
        looks = ledger.events.of(run.id, TIP_LOOKED_AT, run.head_round)
        look = next((each for each in looks if each.data["shown"]), None)
        if look is None:
            return None
        gates, evidence, before = look.data["decision"]["gates"], look.data["evidence"], look.data["head"]
    passed = (gate for gate in gates if gate["type"] in ("improvement", "tip") and gate["verdict"] == "pass")
    gate = next(passed, None)
    if gate is None or not {"gain", "lower", "level", "num_problems", "num_samples"} <= gate["figures"].keys():
        return None
    row, decide = ledger.checkpoints.get(before), run.config["decide"]
    opened = decide.get("confirm") is not None and (gate["type"] == "tip" or decide["confirm"] in evidence["splits"])
    return Shown(
        over_round=row.round if row else 0,
        suite=store.decider,
        split=decide["confirm"] if opened else decide["split"],
        in_round=in_round,
        **{key: gate["figures"][key] for key in ("gain", "lower", "level", "num_problems", "num_samples")},
    )


def _tip(store: Reader) -> Tip:
    run = store.run
    row = store.ledger.checkpoints.get(run.tip_checkpoint)
    over_head = None
    if run.depth:  # as its round compared them: that gain is stored
        ids = store.output(run.tip_round, "evaluating").get("evaluations", {})
        where = f"{store.decider}/{run.config['decide']['split']}"
        candidate, head = (store.corpus.evaluations.get(ids.get(f"{who}/{where}", "")) for who in ("candidate", "head"))
        over_head = gain(store, candidate, head)
    return Tip(run.tip_checkpoint, run.tip_round, str(store.run_dir / row.path) if row else None, run.depth, over_head)


def _round_now(store: Reader, last: Round | None, beat: Heartbeat | None, now: float) -> OpenRound | None:
    if last is None or last.state not in STAGES:
        return None
    attempts = store.ledger.attempts(store.run.id, last.number, last.stage)
    progress = beat if beat and beat.round == last.number and beat.stage in PARTS.get(last.stage, ()) else None
    done, total = (progress.done, progress.total) if progress else (None, None)
    eta_s = None
    if progress and total and done is not None and progress.rate:
        eta_s = max(0.0, (total - done) / progress.rate - max(0.0, now - progress.at))
    working = attempts and attempts[-1].finished_at is None and beat is not None and beat.state == "running"
    return OpenRound(
        number=last.number,
        stage=last.stage,
        attempt=attempts[-1].attempt if attempts else 0,
        done=done,
        total=total,
        elapsed_s=seconds_between(attempts[-1].started_at, as_rfc3339(now)) if working else None,
        eta_s=eta_s,
        part=f"{progress.stage}: {progress.part}" if progress else None,
        warning=progress.warning or None if progress else None,
    )


def _last_decision(store: Reader) -> LastDecision | None:
    row = store.ledger.last_decision(store.run.id)
    round = store.ledger.round(store.run.id, row.round) if row else None
    decision = decision_of(row, round.state if round else "")
    if row is None or decision is None:
        return None
    candidate = _measurement(store, round.candidate_checkpoint) if round and round.candidate_checkpoint else None
    metrics: Json = {"suite": store.decider, "split": store.run.config["decide"]["split"]}
    if candidate and candidate.metrics:
        metrics |= {key: candidate.metrics[key] for key in ("pass@1", "pass@1_interval", "num_problems")}
        metrics["decoding"] = store.decoding(candidate)
    for gate in row.gates:  # a second gate of a type is "no_regression 2"
        num = sum(name.split(" ")[0] == gate["type"] for name in metrics) + 1
        metrics[gate["type"] if num == 1 else f"{gate['type']} {num}"] = gate["figures"]
    return LastDecision(**vars(decision), metrics=metrics)


def _last_error(store: Reader, last: Round | None) -> LastError | None:
    event = store.ledger.events.last_of(store.run.id, "attempt_failed", among=NUM_EVENTS)
    if event is None or event.round is None:
        return None
    stages = store.ledger.stages(store.run.id, event.round)
    done = any(stage.name == event.stage and stage.finished_at is not None for stage in stages)
    under_way = last is not None and last.state not in DECIDED and last.number - event.round <= 1
    return LastError(
        at=event.at,
        round=event.round,
        stage=event.stage,
        **{key: event.data[key] for key in ("attempt", "error", "next_step")},
        current=under_way and not done,
    )


# Whether anything needs you


def _needs(standing: Standing, why: str | None, run_dir: Path) -> Iterator[str]:
    """What does not mend by itself: a failure, a process that hangs, a disk that is nearly full."""
    disk, by = standing.disk, standing.paused_by
    if standing.state == "failed" or by == "failure":
        yield f"failed: {why}"
    if by == "decision":
        yield f"a decision: {why}"
    if standing.state == "paused" and by == "disk":
        yield f"paused: {why}"
    elif disk.read_only:
        yield READ_ONLY.format(run_dir)
    limit_s, age_s = standing.stall_timeout_s, standing.heartbeat_age_s
    if age_s is not None and limit_s is not None and age_s > limit_s and not disk.read_only:
        yield (
            f"stalled: no sign of life from process {standing.pid} for {age_s:.0f} s, the limit is {limit_s:g} s; "
            "look into `loopctl logs`, or `loopctl restart --now`"
        )
    if standing.round is not None and standing.round.warning:
        yield standing.round.warning
    if disk.free_bytes is not None and disk.free_bytes < (disk.wanted_bytes or 0) and by != "disk":
        yield (
            f"disk low: {disk.free_bytes:,} bytes free, {disk.wanted_bytes:,} are wanted; "
            "`loopctl gc --dry-run` shows what can be deleted"
        )


# The disk


def _disk(run_dir: Path, wanted_bytes: int | None = None) -> Disk:
    """The disk that the run's directory is, or will be, on."""
    checkpoints_bytes = _checkpoints_bytes(run_dir)
    try:
        disk = os.statvfs(next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists()))
    except OSError:
        return Disk(None, checkpoints_bytes, wanted_bytes, False)
    read_only = bool(disk.f_flag & os.ST_RDONLY)
    return Disk(disk.f_bavail * disk.f_frsize, checkpoints_bytes, wanted_bytes, read_only)


def _wanted_bytes(store: Reader) -> int:
    """What stays free by configuration, and about what the next checkpoint takes: as much as the head, unless that is
    the base of adapters.
    """
    head, config = store.ledger.checkpoints.get(store.run.head_checkpoint), store.run.config
    adapters = config["training"]["method"] == "lora" and not config["training"]["lora"]["merge"]
    following = 0 if head is None or (adapters and head.kind == "full") else head.size_bytes
    return int(config.get("storage", {}).get("min_free_bytes", LOW_DISK_BYTES)) + following


def _checkpoints_bytes(run_dir: Path) -> int | None:
    """The size of the checkpoints on disk; None where there are too many files to look at each."""
    sizes = list(itertools.islice(_file_sizes(run_dir / "checkpoints"), MOST_FILES + 1))
    return sum(sizes) if len(sizes) <= MOST_FILES else None


def _file_sizes(directory: Path) -> Iterator[int]:
    for top, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # what is just being removed has no size
                yield os.lstat(os.path.join(top, name)).st_size
