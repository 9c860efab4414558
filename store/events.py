"""The append-only history: a gap-free sequence in which each event's hash covers the event before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from store.canonical import canonical_json, sha256_of
from store.db import Database, insert, query, unpack
from store.records import Event

BEFORE_THE_FIRST = "0" * 64
PAGE = 500


def event_sha256(event: Event) -> str:
    """The SHA-256 of the canonical JSON of every field but the hash itself."""
    fields = asdict(event)
    del fields["sha256"]
    return sha256_of(fields)


def append(
    db: Database, at: str, run_id: str, kind: str, round: int | None, stage: str | None, data: dict[str, Any]
) -> Event:
    """Append one event inside the caller's transaction."""
    last = last_event(db)
    seq, previous = (last.seq + 1, last.sha256) if last else (1, BEFORE_THE_FIRST)
    stored = json.loads(canonical_json(data))  # as a reader will see it: tuples are lists, keys are strings
    draft = Event(seq, at, run_id, kind, round, stage, stored, previous, "")
    event = Event(seq, at, run_id, kind, round, stage, stored, previous, event_sha256(draft))
    insert(db, "events", [event])
    return event


def last_event(db: Database) -> Event | None:
    """The newest event."""
    rows = query(db, "SELECT * FROM events ORDER BY seq DESC LIMIT 1")
    return unpack(Event, rows[0]) if rows else None


def every_event(db: Database, after: int = 0) -> Iterator[Event]:
    """All events after a sequence number, oldest first, in constant memory."""
    while rows := query(db, "SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, PAGE)):
        for row in rows:
            yield unpack(Event, row)
        after = rows[-1]["seq"]
