"""What is known of checkpoints: where their weights lie, and whether they can be loaded. The weights: checkpoints.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from store.db import execute, insert, query, required, select, select_one, transaction
from store.events import WithHistory
from store.records import Checkpoint, CheckpointState, Json, Round


class Checkpoints(WithHistory):
    """The checkpoints of one open store. Each change appends its event in the same transaction."""

    def add(self, checkpoint: Checkpoint) -> None:
        """Record verified weights. Known weights keep their row; if theirs are gone, these take their place."""
        checkpoint = replace(checkpoint, created_at=checkpoint.created_at or self.events.now())
        revive = (
            "ON CONFLICT (sha256) DO UPDATE SET state = 'present', path = excluded.path "
            "WHERE state <> 'present' AND excluded.state = 'present'"
        )
        with transaction(self.db):
            if insert(self.db, "checkpoints", [checkpoint], clause=revive):
                data: Json = {"sha256": checkpoint.sha256, "path": checkpoint.path, "parent": checkpoint.parent}
                self.events.append(checkpoint.run_id, "checkpoint_added", checkpoint.round, **data)

    def get(self, sha256: str) -> Checkpoint | None:
        return select_one(self.db, Checkpoint, "SELECT * FROM checkpoints WHERE sha256 = ?", (sha256,))

    def known(self, sha256: str) -> Checkpoint:
        """One checkpoint by its hash; StoreError if there is none."""
        return required(self.get(sha256), f"no checkpoint has the hash {sha256!r}")

    def all(self, run_id: str) -> list[Checkpoint]:
        """All checkpoints of a run, whatever their state, base first."""
        sql = "SELECT * FROM checkpoints WHERE run_id = ? ORDER BY round, rowid"
        return select(self.db, Checkpoint, sql, (run_id,))

    def set_state(self, sha256: str, state: CheckpointState) -> Checkpoint:
        """Say whether a checkpoint can be loaded. Say "collected" before its directory is removed, never after."""
        return self._change(sha256, "checkpoint_state", "state", state)

    def let_go(self, round: Round, candidates: Sequence[str]) -> None:
        """Say "collected" of several candidates of a round that is trained again, as others may take their places.

        Weights that the run's base or another round is made of stay.
        """
        sql = "SELECT candidate_checkpoint FROM rounds WHERE run_id = ? AND number <> ? UNION SELECT base_checkpoint FROM runs"
        needed = {row["candidate_checkpoint"] for row in query(self.db, sql, (round.run_id, round.number))}
        for sha256 in candidates if len(candidates) > 1 else ():
            if sha256 not in needed and self.known(sha256).state == "present":
                self.set_state(sha256, "collected")

    def move(self, sha256: str, path: str) -> Checkpoint:
        """Say where weights lie now: the same ones, verified there by the caller."""
        return self._change(sha256, "checkpoint_moved", "path", path)

    def pin(self, sha256: str, pinned: bool = True) -> Checkpoint:
        """Keep a checkpoint from being collected, or no longer."""
        return self._change(sha256, "checkpoint_pinned", "pinned", pinned)

    def _change(self, sha256: str, kind: str, column: str, value: str | bool) -> Checkpoint:
        with transaction(self.db):
            before = self.known(sha256)
            if getattr(before, column) != value:
                change: Json = {"sha256": sha256, column: value}
                execute(self.db, f"UPDATE checkpoints SET {column} = ? WHERE sha256 = ?", (value, sha256))
                self.events.append(before.run_id, kind, before.round, **change)
        return self.known(sha256)
