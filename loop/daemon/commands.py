"""What `loopctl` asks of a run, done on an open ledger: by the daemon that holds it, or by loopctl under the same lock.

Every command may be given twice. An answer is a JSON object with `text`, one line for a person, and `changed`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loop.config.settings import Config
from loop.errors import LoopError, UsageError
from store.checkpoints import stamps, verify
from store.errors import DamagedCheckpoint
from store.garbage import best_round, collect, plan_collection, size_bytes
from store.ledger import Ledger
from store.records import Checkpoint, Json, Run

BY_HAND = "paused by hand; `loopctl resume` goes on"


class Commands:
    """The commands on one ledger. `alive`: whether a daemon or a foreground run carries on with it."""

    def __init__(self, ledger: Ledger, run_dir: Path, config: Config, *, alive: bool) -> None:
        self.ledger, self.run_dir, self.config, self.alive = ledger, run_dir, config, alive

    def answer(self, request: Json) -> Json:
        """Carry out one request: {"command": ..., its arguments}."""
        known: dict[str, Callable[..., Json]] = {
            "pause": self.pause,
            "resume": self.resume,
            "rollback": self.rollback,
            "pin": self.pin,
            "unpin": self.unpin,
            "gc": self.gc,
        }
        arguments = dict(request)
        name = arguments.pop("command", None)
        if name not in known:
            raise UsageError(f"{name!r} is no command; there are {', '.join(known)}")
        try:
            return {"command": name, **known[name](**arguments)}
        except TypeError as error:
            raise UsageError(f"{name}: {error}") from None

    @property
    def run(self) -> Run:
        run = self.ledger.run(self.config.name)
        if run is None:
            raise LoopError(f"no run {self.config.name!r} in {self.run_dir} yet; start one with `loopctl start`")
        return run

    def pause(self) -> Json:
        """No stage begins until it is resumed; what is going on is left at its next safe point."""
        run = self.run
        changed = self.ledger.hold_run(run.id, "user", BY_HAND)
        held = self.ledger.control(run.id)
        if not changed:
            why = "" if held.held_by == "user" else f": {held.hold_reason}"
            return _said(f"already paused{why}", False)
        now = self.ledger.open_round(run.id)
        if self.alive and now and now.state == now.stage:
            return _said(f"pausing at the next safe point of round {now.number}, {now.stage}", True)
        return _said("paused", True)

    def resume(self) -> Json:
        """Take back a pause, by hand or after a failure."""
        changed = self.ledger.release_run(self.run.id)
        if not changed:
            return _said("not paused", False)
        return _said("goes on" if self.alive else "no longer paused; `loopctl start` goes on", True)

    def rollback(self, to: str | int, dry_run: bool = False) -> Json:
        """Move the head to a kept round, the base or the best. Nothing is deleted."""
        ledger, run = self.ledger, self.run
        number = self._round_number(run, to)
        target = self._checkpoint_of(run, number)
        where, before = _words(number), _words(run.head_round)
        figures = {"from": run.head_round, "to": number, "checkpoint": target.sha256}
        if number == run.head_round and target.sha256 == run.head_checkpoint:
            return _said(f"the head is {where} already", False, **figures)
        under_way = ledger.open_round(run.id)
        given_up = f"; round {under_way.number} ({under_way.stage}) is given up" if under_way else ""
        self._revive(target, dry_run)
        if dry_run:
            return _said(f"would move the head from {before} to {where}{given_up}", False, **figures)
        if self.alive:
            moved = ledger.ask_head(run.id, number, "by hand")
        else:
            moved = bool(ledger.move_head(run.id, number, "by hand"))
        when = "" if moved else f" at the next safe point{given_up}"
        text = f"the head moved from {before} to {where}{given_up}" if moved else f"the head moves to {where}{when}"
        return _said(text, True, moved=moved, **figures)

    def pin(self, round: int) -> Json:
        """Keep a round's checkpoint whatever the retention says."""
        return self._pin(round, True)

    def unpin(self, round: int) -> Json:
        """Let the retention decide on it again."""
        return self._pin(round, False)

    def gc(self, dry_run: bool = False) -> Json:
        """Remove the checkpoints that the configuration does not keep, and damaged copies."""
        storage, run = self.config.storage, self.run
        plan = plan_collection(
            self.ledger,
            run,
            self.run_dir,
            self.config.decide.suite,
            keep_last=storage.keep_last,
            max_total_bytes=storage.max_total_bytes,
            damaged=True,
        )
        removed: list[Json] = [
            {"round": row.round, "path": str(self.run_dir / row.path), "bytes": row.size_bytes} for row in plan.doomed
        ]
        removed += [{"round": None, "path": str(path), "bytes": size_bytes(path)} for path in plan.leftovers]
        kept = [
            {"round": one.checkpoint.round, "why": one.why, "bytes": one.checkpoint.size_bytes} for one in plan.kept
        ]
        total = sum(row["bytes"] for row in removed)
        if not dry_run and removed:
            collect(self.ledger, self.run_dir, plan)
        verb = "would remove" if dry_run else "removed"
        number = f"{len(removed)} checkpoint{'s' if len(removed) != 1 else ''}"
        text = f"{verb} {number}, {total / 1e6:.1f} MB" if removed else "nothing to remove"
        return _said(text, bool(removed) and not dry_run, removed=removed, kept=kept, freed_bytes=total)

    def _pin(self, round: int, pinned: bool) -> Json:
        row = self._checkpoint_of(self.run, round, kept=False)
        word = "pinned" if pinned else "unpinned"
        if row.pinned == pinned:
            return _said(f"round {round} is already {word}" if pinned else f"round {round} is not pinned", False)
        if pinned and row.state != "present":
            raise LoopError(f"round {round}: its checkpoint is {row.state}; there is nothing to keep")
        self.ledger.checkpoints.pin(row.sha256, pinned)
        return _said(f"{word} round {round}", True)

    def _round_number(self, run: Run, to: str | int) -> int:
        if to == "base":
            return 0
        if to == "best":
            return best_round(self.ledger, run, self.config.decide.suite)
        try:
            return int(to)
        except ValueError:
            raise UsageError(f"--to {to}: give a round's number, base or best") from None

    def _checkpoint_of(self, run: Run, number: int, *, kept: bool = True) -> Checkpoint:
        if number == 0:
            sha256: str | None = run.base_checkpoint
        else:
            round = self.ledger.round(run.id, number)
            if round is None:
                raise LoopError(f"there is no round {number}; `loopctl rounds` lists them")
            if kept and round.state != "kept":
                raise LoopError(
                    f"round {number} is {round.state.replace('_', ' ')}; the head can move to a kept round or base"
                )
            sha256 = round.candidate_checkpoint
        row = self.ledger.checkpoints.get(sha256) if sha256 else None
        if row is None:
            raise LoopError(f"round {number} has no checkpoint yet")
        return row

    def _revive(self, row: Checkpoint, dry_run: bool) -> None:
        """Weights that were set aside or collected may have been put back; then they count again."""
        path = self.run_dir / row.path
        if row.state == "present":
            if not stamps(path, row.manifest):
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
            self.ledger.checkpoints.set_state(row.sha256, "present")


def _said(text: str, changed: bool, **more: Any) -> Json:
    return {"text": text, "changed": changed, **more}


def _words(number: int) -> str:
    return f"round {number}" if number else "the base"
