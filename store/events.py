"""The append-only history: a gap-free sequence in which each event's hash covers the event before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from store.canonical import canonical_json, sha256_of
from store.db import Database, insert, select, select_one, stream, transaction, unpack, utc_now
from store.records import Event

BEFORE_THE_FIRST = "0" * 64


def event_sha256(event: Event) -> str:
    """The SHA-256 of the canonical JSON of every field but the hash itself."""
    fields = asdict(event)
    del fields["sha256"]
    return sha256_of(fields)


class Events:
    """The history over one open store. `now` is the clock: RFC 3339 UTC."""

    def __init__(self, db: Database, now: Callable[[], str] = utc_now) -> None:
        self.db = db
        self.now = now

    def append(
        self, run_id: str, kind: str, round: int | None = None, stage: str | None = None, *, at: str = "", **data: Any
    ) -> Event:
        """Append one event, in the caller's transaction if one is open."""
        with transaction(self.db):
            last = self.last()
            seq, previous = (last.seq + 1, last.sha256) if last else (1, BEFORE_THE_FIRST)
            stored = json.loads(canonical_json(data))  # as a reader will see it: tuples are lists, keys are strings
            draft = Event(seq, at or self.now(), run_id, kind, round, stage, stored, previous, "")
            event = replace(draft, sha256=event_sha256(draft))
            insert(self.db, "events", [event])
        return event

    def append_news(self, run_id: str, kind: str, round: int | None = None, **data: Any) -> None:
        """Append to the history unless the newest event of that kind says the same."""
        with transaction(self.db):
            last = self.last_of(run_id, kind)
            if last is None or (last.round, sha256_of(last.data)) != (round, sha256_of(data)):
                self.append(run_id, kind, round, **data)

    def last(self) -> Event | None:
        """The newest event; its seq and hash are a high-water mark for the whole store."""
        return select_one(self.db, Event, "SELECT * FROM events ORDER BY seq DESC LIMIT 1")

    def last_of(self, run_id: str, *kinds: str, among: int = 2**62) -> Event | None:
        """The newest event of these kinds among the newest `among` of the store; None if there is none.

        Without `among` it may read the whole history: not for every second.
        """
        newest = "seq > (SELECT max(seq) FROM events) - ? AND +run_id = ?"  # the plus: SQLite goes by the sequence
        sql = (
            f"SELECT * FROM events WHERE {newest} AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY seq DESC LIMIT 1"
        )
        return select_one(self.db, Event, sql, (among, run_id, *kinds))

    def of(self, run_id: str, kind: str, round: int | None = None) -> list[Event]:
        """All events of one kind, oldest first, or those of one round. Of all it reads the whole history: not for every second."""
        where, keys = ("", ()) if round is None else (" AND round = ?", (round,))
        sql = f"SELECT * FROM events WHERE run_id = ? AND kind = ?{where} ORDER BY seq"
        return select(self.db, Event, sql, (run_id, kind, *keys))

    def every(self, after: int = 0) -> Iterator[Event]:
        """All events after a sequence number, oldest first, in constant memory."""
        sql = "SELECT * FROM events WHERE seq > :seq ORDER BY seq"
        return (unpack(Event, row) for row in stream(self.db, sql, {"seq": after}))


class WithHistory:
    """A part of one open store whose changes append events."""

    def __init__(self, events: Events) -> None:
        self.db = events.db
        self.events = events
