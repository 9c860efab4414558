"""What `loopctl` asks of a run, done on an open ledger: by the daemon that holds it, or by loopctl under the same lock.

Every command may be given twice. An answer is a JSON object with `text`, one line for a person, and `changed`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig
from loop.config.settings import Config
from loop.daemon.control import Control, Wake
from loop.errors import LoopError, UsageError
from loop.system.signals import Stop
from loop.words import count, round_name
from store.checkpoints import verify
from store.db import DATABASE, open_database
from store.errors import DamagedCheckpoint
from store.garbage import Plan, best_round, collect, plan_collection, size_bytes
from store.ledger import Ledger
from store.records import Checkpoint, Json, Run

BY_HAND = "paused by hand; `loopctl resume` continues the run"


def planned_collection(ledger: Ledger, run: Run, run_dir: Path, config: Config, *, damaged: bool = False) -> Plan:
    """What the configuration's [storage] lets go and keeps. `damaged`: copies that were set aside may go, too."""
    suite, kept = config.decide.suite, config.storage
    return plan_collection(
        ledger, run, run_dir, suite, keep_last=kept.keep_last, max_total_bytes=kept.max_total_bytes, damaged=damaged
    )


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run whose lock this process holds. `alive`: whether rounds are made in it, by the daemon or in the foreground."""

    ledger: Ledger
    run_dir: Path
    config: Config
    alive: bool

    @property
    def run(self) -> Run:
        """The run; LoopError before its first start."""
        run = self.ledger.run(self.config.name)
        if run is None:
            raise LoopError(f"no run {self.config.name!r} in {self.run_dir} yet; start one with `loopctl start`")
        return run


def pause(held: HeldRun) -> Json:
    """Let no stage begin until the run is resumed; the stage under way is left at its next safe point."""
    run = held.run
    if not held.ledger.hold_run(run.id, "user", BY_HAND):
        control = held.ledger.control(run.id)
        why = "" if control.held_by == "user" else f": {control.hold_reason}"
        return _answer(f"already paused{why}", False)
    now = held.ledger.open_round(run.id)
    if held.alive and now and now.state == now.stage:
        return _answer(f"pausing at the next safe point of round {now.number}, {now.stage}", True)
    return _answer("paused", True)


def resume(held: HeldRun) -> Json:
    """Take back a pause, by hand or after a failure."""
    if not held.ledger.release_run(held.run.id):
        return _answer("not paused", False)
    return _answer("the run continues" if held.alive else "no longer paused; `loopctl start` continues the run", True)


def rollback(held: HeldRun, to: str | int, dry_run: bool = False) -> Json:
    """Move the head to a kept round, the base or the best. Nothing is deleted."""
    ledger, run = held.ledger, held.run
    number = _round_number(held, run, to)
    target = _checkpoint_of(held, run, number)
    where, before = round_name(number), round_name(run.head_round if number != run.head_round else run.tip_round)
    figures = {"from": run.head_round, "to": number, "checkpoint": target.sha256}
    if number == run.head_round and target.sha256 == run.head_checkpoint and not run.depth:
        return _answer(f"the head is {where} already", False, **figures)
    under_way = ledger.open_round(run.id)
    given_up = f"; round {under_way.number} ({under_way.stage}) is given up" if under_way else ""
    _revive(held, target, dry_run)
    if dry_run:
        what = "the head" if number != run.head_round else "the tip"
        return _answer(f"would move {what} from {before} to {where}{given_up}", False, **figures)
    wish = (run.id, number, "by hand")
    moved = ledger.ask_head(*wish) if held.alive else bool(ledger.move_head(*wish))
    text = f"the head moved from {before} to {where}" if moved else f"the head moves to {where} at the next safe point"
    if number == run.head_round:
        text = f"the tip goes back to the head, {where}" + ("" if moved else ", at the next safe point")
    return _answer(f"{text}{given_up}", True, moved=moved, **figures)


def gc(held: HeldRun, dry_run: bool = False) -> Json:
    """Remove the checkpoints that the configuration does not keep, and damaged copies."""
    plan = planned_collection(held.ledger, held.run, held.run_dir, held.config, damaged=True)
    removed: list[Json] = [
        {"round": row.round, "path": str(held.run_dir / row.path), "bytes": row.size_bytes} for row in plan.doomed
    ]
    removed += [{"round": None, "path": str(path), "bytes": size_bytes(path)} for path in plan.leftovers]
    kept = [{"round": row.round, "why": why, "bytes": row.size_bytes} for row, why in plan.kept]
    total = sum(row["bytes"] for row in removed)
    if not dry_run and removed:
        collect(held.ledger, held.run_dir, plan)
    verb = "would remove" if dry_run else "removed"
    text = f"{verb} {count(len(removed), 'checkpoint')}, {total / 1e6:.1f} MB" if removed else "nothing to remove"
    return _answer(text, bool(removed) and not dry_run, removed=removed, kept=kept, freed_bytes=total)


def pin(held: HeldRun, round: int, *, pinned: bool) -> Json:
    """Keep a round's checkpoint whatever the retention says, or let the retention decide on it again."""
    row = _checkpoint_of(held, held.run, round, kept=False)
    word = "pinned" if pinned else "unpinned"
    if row.pinned == pinned:
        return _answer(f"round {round} is already {word}" if pinned else f"round {round} is not pinned", False)
    if pinned and row.state != "present":
        raise LoopError(f"round {round}: its checkpoint is {row.state}; there is nothing to keep")
    held.ledger.checkpoints.pin(row.sha256, pinned)
    return _answer(f"{word} round {round}", True)


def _round_number(held: HeldRun, run: Run, to: str | int) -> int:
    if to == "base":
        return 0
    if to == "best":
        return best_round(held.ledger, run, held.config.decide.suite)
    try:
        return int(to)
    except (TypeError, ValueError):
        raise UsageError(f"--to {to}: give a round's number, base or best") from None


def _checkpoint_of(held: HeldRun, run: Run, number: int, *, kept: bool = True) -> Checkpoint:
    if number == 0:
        return held.ledger.checkpoints.known(run.base_checkpoint)
    round = held.ledger.round(run.id, number)
    if round is None:
        raise LoopError(f"there is no round {number}; `loopctl rounds` lists them")
    if kept and round.state != "kept":
        raise LoopError(f"round {number} is {round.state.replace('_', ' ')}; the head can move to a kept round or base")
    if round.candidate_checkpoint is None:
        raise LoopError(f"round {number} has no checkpoint yet")
    return held.ledger.checkpoints.known(round.candidate_checkpoint)


def _revive(held: HeldRun, row: Checkpoint, dry_run: bool) -> None:
    """Weights that were set aside or collected may have been put back; then they count again."""
    path = held.run_dir / row.path
    if row.state == "present":
        if not all((path / name).is_file() for name in row.manifest["files"]):
            raise LoopError(f"{path}: a file of the checkpoint is missing; put it back, or choose another round")
        return
    try:
        verify(path, row.manifest)
    except (DamagedCheckpoint, OSError):
        how = "was damaged" if row.state == "quarantined" else "was collected"
        raise LoopError(
            f"the checkpoint of round {row.round} {how}; put its directory back to {path}, or choose another round"
        ) from None
    if not dry_run:
        held.ledger.checkpoints.set_state(row.sha256, "present")


COMMANDS: dict[str, Callable[..., Json]] = {
    "pause": pause,
    "resume": resume,
    "rollback": rollback,
    "pin": lambda held, round: pin(held, round, pinned=True),
    "unpin": lambda held, round: pin(held, round, pinned=False),
    "gc": gc,
}


def carry_out(held: HeldRun, request: Json) -> Json:
    """Carry out one request: {"command": ..., its arguments}."""
    arguments = dict(request)
    name = arguments.pop("command", None)
    if name not in COMMANDS:
        raise UsageError(f"{name!r} is no command; there are {', '.join(COMMANDS)}")
    try:
        inspect.signature(COMMANDS[name]).bind(held, **arguments)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from None
    return {"command": name, **COMMANDS[name](held, **arguments)}


def commanded(loaded: LoadedConfig, stop: Stop, wake: Wake) -> Control:
    """Answer `loopctl` on the control socket while the block lasts. The caller holds the run's lock."""

    def answer(request: Json) -> Json:
        if request.get("command") == "ping":
            return {"pid": os.getpid()}
        if request.get("command") == "stop":
            if request.get("now"):
                stop.ask_now()
                return {"pid": os.getpid(), "text": "ending at once; the round can be resumed"}
            text = "already stopping" if stop.asked else "stopping at the next safe point"
            stop.ask()
            return {"pid": os.getpid(), "text": text}
        with contextlib.closing(open_database(loaded.run_dir / DATABASE)) as db:  # a connection belongs to one thread
            done = carry_out(HeldRun(Ledger(db), loaded.run_dir, loaded.config, alive=True), request)
        wake.wake()
        return done

    return Control(loaded.run_dir, answer)


def _answer(text: str, changed: bool, **more: Any) -> Json:
    return {"text": text, "changed": changed, **more}
