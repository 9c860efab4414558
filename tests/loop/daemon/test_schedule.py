"""When a round is due, against a clock on the wall that is read minute by minute; cron expressions among it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import cycle, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loop.config.machine import ScheduleTable
from loop.daemon.schedule import Schedule
from tests.support.wall import BERLIN, CHANGES, LORD_HOWE, MINUTE, NEW_YORK, NUM_DAYS, schedule, utc, wall_of


def due_times(expression: str, zone: str, first: str, last: str) -> list[str]:
    """What a loop that looks every few minutes serves: the moments of due rounds, in UTC."""
    due, now = schedule(first, cron=expression, timezone=zone), utc(first)
    served: list[datetime] = []
    while now < utc(last):
        if due.due_at(served[-1] if served else None, now) <= now:
            served.append(now)
        now += 5 * MINUTE
    return [f"{moment:%d %H:%M}" for moment in served]


# Cron


@pytest.mark.parametrize(
    ("expression", "zone", "first", "last", "expected"),
    [
        ("0 22 * * *", "UTC", "03-02 12:00", "03-05 12:00", ["02 22:00", "03 22:00", "04 22:00"]),
        ("0 22 * * *", BERLIN, "03-27 12:00", "03-30 12:00", ["27 21:00", "28 21:00", "29 20:00"]),
        # Spring skips 02:00-03:00: due when the gap ends, once.
        ("30 2 * * *", BERLIN, "03-27 12:00", "03-30 12:00", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0,30 2 * * *", BERLIN, "03-28 12:00", "03-29 12:00", ["29 01:00"]),
        ("30 2,3 * * *", BERLIN, "03-28 12:00", "03-29 12:00", ["29 01:00", "29 01:30"]),
        ("30 2 * * *", NEW_YORK, "03-06 12:00", "03-09 12:00", ["07 07:30", "08 07:00", "09 06:30"]),
        # Autumn repeats an hour: due the first time.
        ("30 2 * * *", BERLIN, "10-24 12:00", "10-26 12:00", ["25 00:30", "26 01:30"]),
        ("30 1 * * *", NEW_YORK, "10-31 12:00", "11-02 12:00", ["01 05:30", "02 06:30"]),
        ("*/30 2-3 * * *", BERLIN, "10-24 12:00", "10-25 12:00", ["25 00:00", "25 00:30", "25 02:00", "25 02:30"]),
        # Half an hour is skipped, and repeated.
        ("15 2 * * *", LORD_HOWE, "10-03 00:00", "10-05 00:00", ["03 15:30", "04 15:15"]),
        ("45 1 * * *", LORD_HOWE, "04-03 18:00", "04-05 18:00", ["04 14:45", "05 15:15"]),
    ],
)
def test_cron_where_clocks_change(expression: str, zone: str, first: str, last: str, expected: list[str]) -> None:
    assert due_times(expression, zone, first, last) == expected


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 9 * * 0", [1, 8]),  # March 2026 begins on a Sunday
        ("0 9 * * 7", [1, 8]),
        ("0 9 * * sun", [1, 8]),
        ("0 9 * * 1-5", [2, 3, 4, 5, 6, 9, 10]),
        ("0 9 * * mon-fri", [2, 3, 4, 5, 6, 9, 10]),
        ("0 9 * * 5-7", [1, 6, 7, 8]),
        ("0 9 * * Sat-Mon", [1, 2, 7, 8, 9]),
        ("0 9 * * 0-2", [1, 2, 3, 8, 9, 10]),
        ("0 9 * * */3", [1, 4, 7, 8]),
        ("0 9 * * 2/3", [3, 6, 10]),
        ("0 9 1,5-7 3 *", [1, 5, 6, 7]),
        ("0 9 */4 * *", [1, 5, 9]),
        ("0 9 * mar-apr *", list(range(1, 11))),
        ("0 9 * 4 *", []),
    ],
)
def test_cron_means_what_it_means_elsewhere(expression: str, days: list[int]) -> None:
    assert due_times(expression, "UTC", "03-01 00:00", "03-11 00:00") == [f"{day:02} 09:00" for day in days]


CRON: dict[str, str] = {"cron": "0 22 * * *"}
# Looks at a schedule, in turn: when the last round started, the time, and when the next round is due.
LOOKS: list[tuple[dict[str, str], list[tuple[str, str, str]]]] = [
    # Both are 02:15 on the wall: a round in the repeated hour loses nothing of the day.
    (CRON | {"timezone": BERLIN}, [(at, "10-25 12:00", "10-25 21:00") for at in ("10-25 00:15", "10-25 01:15")]),
    ({"cron": "0 0 29 2 *"}, [("2096-03-01 00:00", "2097-01-01 00:00", "2104-02-29 00:00")]),  # a leap day comes
    ({"cron": "0 0 15,31 2 *"}, [("03-01 00:00", "03-01 00:00", "2027-02-15 00:00")]),  # the 31st never does
    # A time that comes again because the clock was set is not served again.
    (CRON, [("03-02 22:00", f"03-{now}", "03-03 22:00") for now in ("02 22:00", "02 20:00", "02 22:30", "03 21:59")]),
    # A clock that was plainly wrong: once a round is due, it stays so.
    (CRON, [("2031-01-01 00:00", "03-02 12:00", "03-02 22:00"), ("2031-01-01 00:00", "03-02 22:01", "03-02 22:00"),
            ("03-02 22:01", "03-02 22:02", "03-03 22:00")]),
    # An interval is not held up by a clock set back, also when the start is no longer in the future; and once more.
    ({"every": "6h"}, [("03-02 12:00", "03-02 13:00", "03-02 18:00"),
                       *(("03-02 12:00", f"03-02 {hour}:{minute:02}", "03-02 16:00")
                         for hour in range(10, 16) for minute in range(0, 60, 5)),
                       ("03-02 12:00", "03-01 00:00", "03-01 06:00"), ("03-01 06:00", "03-01 06:00", "03-01 12:00")]),
    # In a day of 23 hours elapsed time counts.
    *(({"every": every, "timezone": BERLIN}, [("03-28 12:00", "07-06 12:00", due)]) for every, due in (
        ("90s", "03-28 12:01:30"), ("45m", "03-28 12:45"), ("6h", "03-28 18:00"), ("1d", "03-29 12:00"),
        ("2w", "04-11 12:00"))),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "looks"), LOOKS)
def test_when_the_next_round_is_due(keys: dict[str, str], looks: list[tuple[str, str, str]]) -> None:
    due = schedule(**keys)
    for started, now, expected in looks:
        assert due.due_at(utc(started), utc(now)) == utc(expected), (started, now)


def test_continuous_is_always_due_and_so_is_a_first_round_at_an_interval() -> None:
    now = utc("03-02 12:00")
    continuous = schedule()
    for started in ("03-02 11:00", "03-02 13:00", "2030-01-01 00:00"):
        assert continuous.due_at(utc(started), now) <= now
    for keys in ({}, {"every": "continuous"}, {"every": "6h"}):
        assert schedule("03-02 11:00", **keys).due_at(None, now) <= now
        assert schedule("03-02 13:00", **keys).due_at(None, now) <= now  # the clock was set back
    cron = schedule("03-02 11:00", **CRON)
    assert cron.due_at(None, now) == utc("03-02 22:00")
    assert cron.due_at(None, utc("03-09 12:00")) == utc("03-02 22:00")  # missed, and due
    assert schedule("2030-01-01 00:00", **CRON).due_at(None, now) == utc("03-02 22:00")  # a wrong clock


@pytest.mark.parametrize(
    ("keys", "expected"), [({"every": "6h"}, "03-02 18:00"), ({"cron": "0 22 * * *"}, "03-02 22:00")]
)
def test_a_machine_that_begins_in_1970(keys: dict[str, str], expected: str) -> None:
    due, started = schedule(**keys), utc("03-02 12:00")
    for second in range(0, 60, 2):
        now = utc("1970-01-01 00:00") + timedelta(seconds=second)
        assert due.due_at(started, now) > now
    assert due.due_at(started, utc("03-02 12:05")) == utc(expected)  # now it has heard the time


# A clock on the wall, read minute by minute, is the reference for everything below

CRONS: dict[str, Callable[[datetime], bool]] = {
    "0 22 * * *": lambda wall: (wall.hour, wall.minute) == (22, 0),
    "30 2 * * *": lambda wall: (wall.hour, wall.minute) == (2, 30),
    "30 1 * * 0": lambda wall: (wall.hour, wall.minute) == (1, 30) and wall.weekday() == 6,
    "*/20 * * * *": lambda wall: wall.minute % 20 == 0,
    "15 1-3 * * sat,sun": lambda wall: wall.hour in (1, 2, 3) and wall.minute == 15 and wall.weekday() > 4,
    "0 */6 25-31 * *": lambda wall: wall.hour % 6 == 0 and wall.minute == 0 and wall.day >= 25,
}


@cache
def cron_times(expression: str, change: tuple[str, str]) -> list[datetime]:
    """Every moment at which it is due, each once."""
    wall = wall_of(change)
    minutes = (day + minute * MINUTE for day in wall.days() for minute in range(1440))
    moments = {wall.first(minute) for minute in minutes if CRONS[expression](minute)}
    return sorted(moment for moment in moments if moment > wall.start)


@dataclass
class Days:
    """A daemon for some days: it looks every `tick` minutes unless something happens."""

    tick: int
    lengths: list[int]  # of its rounds, in minutes, over and over
    happenings: list[tuple[int, str, int]]
    real: datetime = field(init=False)
    forward: int = field(init=False)  # minutes by which the clock was set since the last start
    back: int = field(init=False)

    def looks(self, start: datetime, begin: Callable[[], Schedule]) -> Iterator[tuple[datetime, datetime, Any]]:
        """What the clock says, when a round is due, and when the last round started, if any did. What is due is run."""
        last: datetime | None = None
        due, lengths, ahead = begin(), cycle(self.lengths), sorted(self.happenings)
        minute = offset = self.forward = self.back = 0
        while True:
            while ahead and ahead[0][0] <= minute:
                _, what, size = ahead.pop(0)
                if what == "sleep":
                    minute += 10 * abs(size)
                elif what == "restart":
                    due = begin()
                else:  # the clock is set, and later perhaps set right
                    self.forward += max(0, size - offset)
                    self.back += max(0, offset - size)
                    offset = size
            if minute >= NUM_DAYS * 1440:
                return
            self.real = start + minute * MINUTE
            now = self.real + offset * MINUTE + timedelta(seconds=7)
            yield now, (at := due.due_at(last, now)), last
            minute += next(lengths) if at <= now else self.tick
            if at <= now:
                last, self.forward, self.back = now, 0, 0


MINUTES, KINDS = st.integers(0, NUM_DAYS * 1440), st.sampled_from(["sleep", "restart", "clock", "clock"])
HAPPENED = st.lists(st.tuples(MINUTES, KINDS, st.integers(-60, 60)), max_size=12)
DAYS = st.builds(Days, st.integers(3, 30), st.lists(st.integers(1, 3000), min_size=1, max_size=5), HAPPENED)


@settings(max_examples=30)
@given(st.sampled_from(list(CRONS)), st.sampled_from(CHANGES), DAYS)
@example("30 2 * * *", CHANGES[0], Days(5, [10], []))
@example("30 2 * * *", CHANGES[1], Days(5, [10], [(5825, "clock", -60), (5900, "clock", 0)]))
@example("0 22 * * *", CHANGES[1], Days(5, [4 * 1440 + 75], []))
def test_no_cron_time_is_lost_or_served_twice(expression: str, change: tuple[str, str], days: Days) -> None:
    times, begun = cron_times(expression, change), wall_of(change).start
    keys, starts = {"cron": expression, "timezone": change[0]}, list[datetime]()
    for now, at, last in days.looks(begun, lambda: Schedule(ScheduleTable(**keys), begun)):
        assert at == times[bisect_right(times, last or begun)]
        if at <= now:
            starts.append(now)
    assert all(bisect_right(times, earlier) < bisect_right(times, later) for earlier, later in pairwise(starts))
    past = times[: bisect_right(times, starts[-1])] if starts else []
    assert len({bisect_left(starts, moment) for moment in past}) == len(starts)  # each served by one, each serving some


@settings(max_examples=30)
@given(st.integers(20, 3000), DAYS)
def test_an_interval_holds_whatever_the_clock_does(every: int, days: Days) -> None:
    real: datetime | None = None
    for now, at, last in days.looks(utc("03-25 00:00"), lambda: schedule("03-25 00:00", every=f"{every}m")):
        assert at <= now + every * MINUTE  # it never stalls
        if last is not None and real is not None:
            if not days.forward and not days.back:
                assert at == last + every * MINUTE
            waited = (days.real - real) / MINUTE
            assert at > now or waited >= every - days.forward
            assert at <= now or waited < every + days.back
        if at <= now:
            real = days.real
    assert real is not None


def test_every_counts_in_moments_whatever_zone_they_are_written_in() -> None:
    due, in_berlin = schedule(every="2h", cron=None), datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo(BERLIN))
    assert due.due_at(in_berlin, utc("10-25 00:00")) == utc("10-25 01:30")
    assert due.due_at(in_berlin, in_berlin.replace(hour=2, fold=1)) == utc("10-25 01:30")
    assert due.due_at(utc("10-26 00:00"), in_berlin) == utc("10-25 01:30")  # the clock was set back
