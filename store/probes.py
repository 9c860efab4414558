"""Probes: fixed texts, and what each checkpoint would have written at each of their positions; `corpus.probes`.

A result is some hundred thousand numbers that only this program reads, always as a whole. Compressed JSON holds them in
less than half of the space. What people ask about it is in the output of the stage that measured it. Nothing is computed here.
"""

from __future__ import annotations

import zlib
from dataclasses import fields, replace

from store.canonical import compact_json, sha256_of_text
from store.db import insert, query, scalar, select, select_one, transaction
from store.errors import Conflict, StoreError
from store.events import WithHistory
from store.records import Probe, ProbeResult


def probe_sha256(record: Probe | ProbeResult) -> str:
    """The SHA-256 of the canonical JSON of every field but `created_at` and `sha256`."""
    names = [field.name for field in fields(record) if field.name not in ("created_at", "sha256")]
    return sha256_of_text(compact_json({name: getattr(record, name) for name in names}))


class Probes(WithHistory):
    """The probes of one open store. Each that is stored appends its event."""

    def add(self, probe: Probe) -> None:
        """Store a probe, whole. Harmless to repeat; Conflict if its id stands for other content."""
        self._store("probe", probe, None)

    def add_result(self, result: ProbeResult) -> None:
        """The same for what a checkpoint gave on a probe."""
        self._store("probe_result", result, result.round)

    def _store(self, what: str, record: Probe | ProbeResult, round: int | None) -> None:
        at, table = self.events.now(), f"{what}s"
        record = replace(record, created_at=at, sha256=probe_sha256(record))
        with transaction(self.db):
            stored = scalar(self.db, f"SELECT sha256 FROM {table} WHERE id = ?", (record.id,))
            if stored is None:
                insert(self.db, table, [record])
                data = {"id": record.id, "checkpoint": record.checkpoint, "sha256": record.sha256}
                self.events.append(record.run_id, f"{what}_stored", round, "evaluating", at=at, **data)
            elif stored != record.sha256:
                raise Conflict(f"{table} {record.id}: was stored before with other content")

    def get(self, probe_id: str) -> Probe | None:
        return select_one(self.db, Probe, "SELECT * FROM probes WHERE id = ?", (probe_id,))

    def all(self, run_id: str) -> list[Probe]:
        """The probes of a run, oldest first: one, unless its settings changed."""
        return select(self.db, Probe, "SELECT * FROM probes WHERE run_id = ? ORDER BY rowid", (run_id,))

    def result(self, result_id: str) -> ProbeResult | None:
        """What one checkpoint gave on one probe. StoreError if what lies there cannot be read."""
        try:
            return select_one(self.db, ProbeResult, "SELECT * FROM probe_results WHERE id = ?", (result_id,))
        except (zlib.error, ValueError, TypeError):
            raise StoreError(f"probe result {result_id}: its records are damaged; restore a backup") from None

    def has_result(self, result_id: str) -> bool:
        """Whether it is stored, without reading it."""
        return scalar(self.db, "SELECT 1 FROM probe_results WHERE id = ?", (result_id,)) is not None

    def result_ids(self, run_id: str) -> list[str]:
        """The ids of a run's results, oldest first."""
        rows = query(self.db, "SELECT id FROM probe_results WHERE run_id = ? ORDER BY rowid", (run_id,))
        return [row["id"] for row in rows]

    def hashes(self, run_id: str) -> dict[str, str]:
        """The hash of each probe and result of a run, by "probe ID" or "probe result ID"."""
        sql = (
            "SELECT 'probe ' || id AS what, sha256 FROM probes WHERE run_id = :run_id UNION ALL "
            "SELECT 'probe result ' || id, sha256 FROM probe_results WHERE run_id = :run_id"
        )
        return {row["what"]: row["sha256"] for row in query(self.db, sql, {"run_id": run_id})}
