"""How the store holds the list of what a round was trained on: a row for each of its own completions, hundreds of earlier ones to a line."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import groupby, islice

from store.canonical import compact_json, quoted
from store.db import Database, bound, insert_rows
from store.records import Round, Selection

PER_LINE = 500  # of table earlier_selections at most: some 4 KB, a page
_SELECTION = [field.name for field in fields(Selection) if field.name != "arrival"]


def _hashed(selections: Iterable[Selection], sha256: hashlib._Hash) -> Iterator[Selection]:
    """Selections in their order, each of them covered by the hash once it has gone by; after the last, all are."""
    separator, before = "[", None
    for s in selections:
        key = s.position, s.completion_id
        if before is not None and key <= before:
            raise ValueError(f"selection {s.completion_id} is out of order at position {s.position}")
        reason = "null" if s.reason is None else quoted(s.reason)
        used = "true" if s.used else "false"
        row = f"{separator}[{s.position},{quoted(s.completion_id)},{used},{reason}]"
        sha256.update(row.encode("utf-8", "surrogatepass"))
        separator, before = ",", key
        yield s
    sha256.update(b"[]" if before is None else b"]")


def selections_sha256(selections: Iterable[Selection]) -> str:
    """What the end of sampling says of its selections: the hash of the canonical JSON of [position, id, used, reason].

    They must come in order of position, then id: ValueError.
    """
    sha256 = hashlib.sha256()
    deque(_hashed(selections, sha256), maxlen=0)
    return sha256.hexdigest()


def store_selections(db: Database, round: Round, selections: Iterable[Selection]) -> str:
    """Store a round's list inside the caller's transaction; what `selections_sha256` gives for it.

    What is used of earlier rounds, which may be a hundred times the round's own, is stored by arrival, many to a line.
    """
    sha256 = hashlib.sha256()
    left = _hashed(selections, sha256)
    while batch := list(islice(left, PER_LINE)):
        if any((s.run_id, s.round) != (round.run_id, round.number) for s in batch):
            raise ValueError(f"a selection belongs to another round than {round.number}")
        rows = (
            bound((s.run_id, s.round, s.completion_id, s.position, s.used, s.reason)) for s in batch if not _is_short(s)
        )
        insert_rows(db, "selections", _SELECTION, rows)
        lines = _lines(filter(_is_short, batch), round)
        insert_rows(db, "earlier_selections", ["run_id", "round", "position", "arrivals"], lines)
    return sha256.hexdigest()


def _is_short(s: Selection) -> bool:
    """Whether position and arrival say all of it."""
    return s.arrival is not None and s.used and s.reason is None


def _lines(earlier: Iterable[Selection], round: Round) -> Iterator[tuple[str, int, int, str]]:
    """A line for each stretch of positions without gaps."""
    for _, numbered in groupby(enumerate(earlier), lambda pair: pair[1].position - pair[0]):
        stretch = [s for _, s in numbered]
        yield round.run_id, round.number, stretch[0].position, compact_json([s.arrival for s in stretch])
