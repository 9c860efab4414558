"""Probes: fixed texts, and what each checkpoint would have written at each of their positions; `corpus.probes`.

A result is some hundred thousand numbers that only this program reads, always as a whole. Compressed JSON holds them in
less than half of the space. What people ask about it is in the output of the stage that measured it. Nothing is computed here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from store.canonical import compact_json, sha256_of_text
from store.db import Row, execute, insert, query, select, select_one, transaction
from store.errors import Conflict, StoreError
from store.events import Events
from store.records import Probe, ProbeResult

_COLUMNS = [field.name for field in fields(ProbeResult)]


def probe_sha256(record: Probe | ProbeResult) -> str:
    """The SHA-256 of the canonical JSON of every field but `created_at` and `sha256`."""
    names = [field.name for field in fields(record) if field.name not in ("created_at", "sha256")]
    return sha256_of_text(compact_json({name: getattr(record, name) for name in names}))


class Probes:
    """The probes of one open store. Each that is stored appends its event."""

    def __init__(self, events: Events) -> None:
        self.db = events.db
        self.events = events

    def add(self, probe: Probe) -> None:
        """Store a probe, whole. Harmless to repeat; Conflict if its id is known with other content."""
        at = self.events.now()
        row = replace(probe, created_at=at, sha256=probe_sha256(probe))
        with transaction(self.db):
            if self._is_known("probes", row.id, row.sha256):
                return
            insert(self.db, "probes", [row])
            data = {"id": row.id, "checkpoint": row.checkpoint, "sha256": row.sha256}
            self.events.append(row.run_id, "probe_stored", None, "evaluating", at=at, **data)

    def get(self, probe_id: str) -> Probe | None:
        """One probe by its id."""
        return select_one(self.db, Probe, "SELECT * FROM probes WHERE id = ?", (probe_id,))

    def all(self, run_id: str) -> list[Probe]:
        """The probes of a run, oldest first: one, unless its settings changed."""
        return select(self.db, Probe, "SELECT * FROM probes WHERE run_id = ? ORDER BY rowid", (run_id,))

    def add_result(self, result: ProbeResult) -> None:
        """Store what a checkpoint gave, whole. Harmless to repeat; Conflict if its id is known with other content."""
        at = self.events.now()
        result = replace(result, created_at=at, sha256=probe_sha256(result))
        with transaction(self.db):
            if self._is_known("probe_results", result.id, result.sha256):
                return
            row = {name: getattr(result, name) for name in _COLUMNS}
            row["records"] = zlib.compress(compact_json(result.records).encode(), 6)
            names = ", ".join(row)
            execute(
                self.db, f"INSERT INTO probe_results ({names}) VALUES ({', '.join(':' + name for name in row)})", row
            )
            data = {"id": row["id"], "checkpoint": row["checkpoint"], "sha256": row["sha256"]}
            self.events.append(result.run_id, "probe_result_stored", result.round, "evaluating", at=at, **data)

    def result(self, result_id: str) -> ProbeResult | None:
        """What one checkpoint gave on one probe. StoreError if what lies there cannot be read."""
        rows = query(self.db, "SELECT * FROM probe_results WHERE id = ?", (result_id,))
        if not rows:
            return None
        try:
            records: list[dict[str, Any]] = json.loads(zlib.decompress(rows[0]["records"]))
        except (zlib.error, ValueError, TypeError):
            raise StoreError(f"probe result {result_id}: its records are damaged; restore a backup") from None
        return ProbeResult(**{**{name: rows[0][name] for name in _COLUMNS}, "records": records})

    def has_result(self, result_id: str) -> bool:
        """Whether it is stored, without reading it."""
        return bool(query(self.db, "SELECT 1 FROM probe_results WHERE id = ?", (result_id,)))

    def result_ids(self, run_id: str) -> list[str]:
        """The ids of a run's results, oldest first."""
        rows = query(self.db, "SELECT id FROM probe_results WHERE run_id = ? ORDER BY rowid", (run_id,))
        return [row["id"] for row in rows]

    def hashes(self, run_id: str) -> Iterator[tuple[str, Row]]:
        """("probe" or "probe result", its `id` and `sha256`) for all of a run."""
        for kind, table in (("probe", "probes"), ("probe result", "probe_results")):
            for row in query(self.db, f"SELECT id, sha256 FROM {table} WHERE run_id = ?", (run_id,)):
                yield kind, row

    def _is_known(self, table: str, id: str, sha256: str) -> bool:
        for row in query(self.db, f"SELECT sha256 FROM {table} WHERE id = ?", (id,)):
            if row["sha256"] != sha256:
                raise Conflict(f"{table} {id}: was stored before with other content")
            return True
        return False
