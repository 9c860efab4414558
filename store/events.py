"""The append-only history: a gap-free sequence in which each event's hash covers the event before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from store.canonical import canonical_json, sha256_of
from store.db import Database, insert, scalar, select, select_one, transaction, utc_now
from store.records import Event

BEFORE_THE_FIRST = "0" * 64
PAGE = 500


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
        self,
        run_id: str,
        kind: str,
        round: int | None = None,
        stage: str | None = None,
        *,
        at: str | None = None,
        **data: Any,
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

    def append_news(self, run_id: str, kind: str, round: int | None = None, **data: Any) -> Event:
        """Append to the history unless the newest event of that kind says the same; that event."""
        with transaction(self.db):
            last = self.last_of(run_id, kind)
            if last is not None and (last.round, sha256_of(last.data)) == (round, sha256_of(data)):
                return last
            return self.append(run_id, kind, round, **data)

    def last(self) -> Event | None:
        """The newest event; its seq and hash are a high-water mark for the whole store."""
        return select_one(self.db, Event, "SELECT * FROM events ORDER BY seq DESC LIMIT 1")

    def last_of(self, run_id: str, kind: str) -> Event | None:
        """The newest event of one kind; None if there is none. It may read the whole history: not for every second."""
        sql = "SELECT * FROM events WHERE run_id = ? AND kind = ? ORDER BY seq DESC LIMIT 1"
        return select_one(self.db, Event, sql, (run_id, kind))

    def of(self, run_id: str, kind: str, round: int | None = None) -> list[Event]:
        """All events of one kind, or those of one round, oldest first. It reads the whole history: not for every second."""
        sql = "SELECT * FROM events WHERE run_id = ? AND kind = ? AND (? IS NULL OR round = ?) ORDER BY seq"
        return select(self.db, Event, sql, (run_id, kind, round, round))

    def last_failed_attempt(self, run_id: str, num_events: int) -> Event | None:
        """The newest failure of an attempt among the newest events of the store; None if there is none."""
        sql = (
            "SELECT * FROM events WHERE seq > (SELECT max(seq) FROM events) - ? AND +run_id = ? "
            "AND kind = 'attempt_failed' ORDER BY seq DESC LIMIT 1"
        )  # the plus keeps SQLite to the sequence, instead of going through a whole run
        return select_one(self.db, Event, sql, (num_events, run_id))

    def was_released_since_an_attempt(self, run_id: str) -> bool:
        """Whether a hold was taken back after the newest attempt began; by their order, as a clock may be set back."""
        sql = (
            "SELECT kind FROM events WHERE +run_id = ? AND kind IN ('run_released', 'attempt_begun') "
            "ORDER BY seq DESC LIMIT 1"
        )
        return bool(scalar(self.db, sql, (run_id,)) == "run_released")

    def every(self, after: int = 0) -> Iterator[Event]:
        """All events after a sequence number, oldest first, in constant memory."""
        while page := select(self.db, Event, "SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, PAGE)):
            yield from page
            after = page[-1].seq
