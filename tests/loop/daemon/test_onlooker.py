"""Onlookers: who is told what, in which order, and that no listener ends a run."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.daemon.onlooker import Onlookers, StagePart
from loop.system.heartbeat import Beating
from tests.support.waiting import Clock

Told = list[tuple[Any, ...]]


class Everything:
    """A listener with every method."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def __getattr__(self, event: str) -> Any:
        def tell(*what: object) -> None:
            self.told.append((event, *(part.what if isinstance(part, StagePart) else part for part in what)))

        return tell


class Broken:
    """A listener that wants notes alone, on a terminal that has been closed."""

    def note(self, text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def watch(tmp_path: Path, told: Told) -> Onlookers:
    return Onlookers(Beating(tmp_path), None, Broken(), Everything(told))


def test_a_part_ends_when_the_next_begins(watch: Onlookers, told: Told) -> None:
    watch.progress(1, 2)  # of nothing that was begun
    watch.stage(1, "sampling", "8 completions")
    watch.progress(3, 8)
    assert watch.part and (watch.part.done, watch.part.total) == (3, 8)
    watch.stage(1, "training", "8 rows")
    watch.end_part()
    watch.end_part()
    first = [(event, "8 completions") for event in ("begun", "moved", "ended")]
    assert told == [*first, ("begun", "8 rows"), ("ended", "8 rows")]


def test_a_warning_is_a_note_and_stands_in_the_heartbeat_until_it_is_taken_back(watch: Onlookers, told: Told) -> None:
    watch.stage(1, "training", "8 rows")
    watch.warn("no \x1b[31m room")
    assert watch.beating.now.warning == r"no \x1b[31m room"
    watch.warn("")
    assert not watch.beating.now.warning and told[1:] == [("note", r"no \x1b[31m room")]


def test_speed_and_time_left_count_nothing_that_was_done_before(
    watch: Onlookers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("loop.daemon.onlooker.time.monotonic", clock)
    part = StagePart(1, "training", "8 rows", started=clock.now_s)
    assert (part.left_s, part.rate) == (None, "")
    clock.now_s += 60
    part.move(501, 1000)
    assert (part.left_s, part.rate) == (None, "")
    clock.now_s += 2
    part.move(502, 1000)
    assert (part.left_s, part.rate) == (996, "0.5 steps/s")


def test_a_listener_that_fails_or_lacks_the_method_is_passed_over(watch: Onlookers, told: Told) -> None:
    watch.note("red \x1b[31m")
    assert told == [("note", r"red \x1b[31m")]


def test_the_heartbeat_says_the_state_before_anybody_is_told(watch: Onlookers, told: Told) -> None:
    until = datetime(2026, 3, 2, 22, tzinfo=UTC)
    seen: list[Any] = []
    watch.listeners.insert(0, type("Looks", (), {"state": lambda *_: seen.append(watch.beating.now)})())
    watch.state("paused", "by hand", until)
    assert told == [("state", "paused", "by hand", until)]
    assert (seen[0].state, seen[0].reason, seen[0].next_due_at) == ("paused", "by hand", until.timestamp())


def test_what_the_check_raises_ends_it_after_the_beat(watch: Onlookers, told: Told) -> None:
    watch.check = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        watch.pulse()
    assert told == [("beat",)]


def test_a_block_that_prints_ends_the_part_and_is_undisturbed(watch: Onlookers, told: Told) -> None:
    watch.stage(1, "sampling", "x")
    with pytest.raises(ValueError), watch.aside():
        told.append(("prints",))
        raise ValueError
    assert [event for event, *_ in told] == ["begun", "ended", "hide", "prints", "show"]
