"""When a round is due, against a clock on the wall that is read minute by minute; cron expressions among it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loop.config.machine import ScheduleTable
from loop.daemon.schedule import Schedule
from tests.support.wall import BERLIN, CHANGES, DAY, HOUR, LORD_HOWE, MINUTE, NEW_YORK, NUM_DAYS, schedule, utc, wall_of


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


def test_a_round_in_the_repeated_hour_loses_nothing_of_the_day() -> None:
    due = schedule(cron="0 22 * * *", timezone=BERLIN)
    for started in ("10-25 00:15", "10-25 01:15"):  # both are 02:15 on the wall
        assert due.due_at(utc(started), utc("10-25 12:00")) == utc("10-25 21:00")


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


def test_a_leap_day_comes() -> None:
    due = schedule(cron="0 0 29 2 *")
    assert due.due_at(utc("2096-03-01 00:00"), utc("2097-01-01 00:00")) == utc("2104-02-29 00:00")
    some = schedule(cron="0 0 15,31 2 *")  # the 31st never comes, the 15th does
    assert some.due_at(utc("03-01 00:00"), utc("03-01 00:00")) == utc("2027-02-15 00:00")


def test_before_the_first_round() -> None:
    now = utc("03-02 12:00")
    for keys in ({}, {"every": "continuous"}, {"every": "6h"}):
        assert schedule("03-02 11:00", **keys).due_at(None, now) <= now
        assert schedule("03-02 13:00", **keys).due_at(None, now) <= now  # the clock was set back
    cron = schedule("03-02 11:00", cron="0 22 * * *")
    assert cron.due_at(None, now) == utc("03-02 22:00")
    assert cron.due_at(None, utc("03-09 12:00")) == utc("03-02 22:00")  # missed, and due
    assert schedule("2030-01-01 00:00", cron="0 22 * * *").due_at(None, now) == utc("03-02 22:00")  # a wrong clock


def test_continuous_is_always_due() -> None:
    due = schedule()
    for started in ("03-02 11:00", "03-02 13:00", "2030-01-01 00:00"):
        assert due.due_at(utc(started), utc("03-02 12:00")) <= utc("03-02 12:00")


# A clock that is set


def test_a_cron_time_is_not_served_again_when_it_comes_again() -> None:
    due, started = schedule(cron="0 22 * * *"), utc("03-02 22:00")
    for now in ("03-02 22:00", "03-02 20:00", "03-02 22:30", "03-03 21:59"):
        assert due.due_at(started, utc(now)) == utc("03-03 22:00")


def test_an_interval_is_not_held_up_by_a_clock_set_back() -> None:
    due, started = schedule(every="6h"), utc("03-02 12:00")
    assert due.due_at(started, utc("03-02 13:00")) == utc("03-02 18:00")
    assert due.due_at(started, utc("03-02 10:00")) == utc("03-02 16:00")
    for minutes in range(0, 360, 5):  # also when the start is no longer in the future
        assert due.due_at(started, utc("03-02 10:00") + minutes * MINUTE) == utc("03-02 16:00")
    assert due.due_at(started, utc("03-01 00:00")) == utc("03-01 06:00")  # and once more
    assert due.due_at(utc("03-01 06:00"), utc("03-01 06:00")) == utc("03-01 12:00")


@pytest.mark.parametrize(
    ("keys", "expected"), [({"every": "6h"}, "03-02 18:00"), ({"cron": "0 22 * * *"}, "03-02 22:00")]
)
def test_a_machine_that_begins_in_1970(keys: dict[str, str], expected: str) -> None:
    due, started = schedule(**keys), utc("03-02 12:00")
    for second in range(0, 60, 2):
        now = utc("1970-01-01 00:00") + timedelta(seconds=second)
        assert due.due_at(started, now) > now
    assert due.due_at(started, utc("03-02 12:05")) == utc(expected)  # now it has heard the time


def test_cron_after_a_clock_that_was_plainly_wrong() -> None:
    due, started = schedule(cron="0 22 * * *"), utc("2031-01-01 00:00")
    assert due.due_at(started, utc("03-02 12:00")) == utc("03-02 22:00")
    assert due.due_at(started, utc("03-02 22:01")) == utc("03-02 22:00")  # due, and stays so
    assert due.due_at(utc("03-02 22:01"), utc("03-02 22:02")) == utc("03-03 22:00")


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


class Days:
    """A daemon for some days: it looks every few minutes unless something happens. `now` is what its clock says."""

    def __init__(self, start: datetime, tick: int, lengths: list[int], happenings: list[tuple[int, str, int]]) -> None:
        self.start, self.tick, self.lengths = start, tick, lengths
        self.happenings = sorted(happenings)
        self.minute, self.offset = 0, 0
        self.num_rounds = 0
        self.restarted = True
        self.forward, self.back = 0, 0  # since the last start

    @property
    def real(self) -> datetime:
        return self.start + self.minute * MINUTE

    @property
    def now(self) -> datetime:
        return self.real + self.offset * MINUTE + timedelta(seconds=7)

    def looks(self, begin: Callable[[], Schedule]) -> Iterator[tuple[datetime, datetime, datetime | None]]:
        """Until the days are over: now, when a round is due, and when the last one started. What is due is run."""
        last: datetime | None = None
        while self.happen():
            if self.restarted:
                due, self.restarted = begin(), False
            at, now = due.due_at(last, self.now), self.now
            yield now, at, last
            if at <= now:
                last, self.forward, self.back = now, 0, 0
                self.minute += self.lengths[self.num_rounds % len(self.lengths)]
                self.num_rounds += 1
            else:
                self.minute += self.tick

    def happen(self) -> bool:
        """Whatever happens at this time; False when the days are over."""
        while self.happenings and self.happenings[0][0] <= self.minute:
            _, what, size = self.happenings.pop(0)
            if what == "sleep":
                self.minute += 10 * abs(size)
            elif what == "restart":
                self.restarted = True
            else:  # the clock is set, and later perhaps set right
                self.forward += max(0, size - self.offset)
                self.back += max(0, self.offset - size)
                self.offset = size
        return self.minute < NUM_DAYS * 1440


TICKS = st.integers(3, 30)
LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=5)
MINUTES, KINDS = st.integers(0, NUM_DAYS * 1440), st.sampled_from(["sleep", "restart", "clock", "clock"])
HAPPENED = st.lists(st.tuples(MINUTES, KINDS, st.integers(-60, 60)), max_size=12)


@settings(max_examples=60)
@given(st.sampled_from(list(CRONS)), st.sampled_from(CHANGES), TICKS, LENGTHS, HAPPENED)
@example("30 2 * * *", CHANGES[0], 5, [10], [])
@example("30 2 * * *", CHANGES[1], 5, [10], [(5825, "clock", -60), (5900, "clock", 0)])
@example("0 22 * * *", CHANGES[1], 5, [4 * 1440 + 75], [])
def test_no_cron_time_is_lost_or_served_twice(
    expression: str, change: tuple[str, str], tick: int, lengths: list[int], happened: list[tuple[int, str, int]]
) -> None:
    times, begun = cron_times(expression, change), wall_of(change).start
    keys = {"cron": expression, "timezone": change[0]}
    days, starts = Days(begun, tick, lengths, happened), list[datetime]()
    for now, at, last in days.looks(lambda: Schedule(ScheduleTable(**keys), begun)):
        assert at == times[bisect_right(times, last or begun)]
        if at <= now:
            starts.append(now)
    assert all(bisect_right(times, earlier) < bisect_right(times, later) for earlier, later in pairwise(starts))
    past = times[: bisect_right(times, starts[-1])] if starts else []
    assert len({bisect_left(starts, moment) for moment in past}) == len(starts)  # each served by one, each serving some


@settings(max_examples=60)
@given(st.integers(20, 3000), TICKS, LENGTHS, HAPPENED)
def test_an_interval_holds_whatever_the_clock_does(
    every: int, tick: int, lengths: list[int], happened: list[tuple[int, str, int]]
) -> None:
    days = Days(utc("03-25 00:00"), tick, lengths, happened)
    real: datetime | None = None
    for now, at, last in days.looks(lambda: schedule("03-25 00:00", every=f"{every}m")):
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


@pytest.mark.parametrize("every", ["90s", "45m", "6h", "1d", "2w"])
def test_every_counts_between_starts(every: str) -> None:
    length = {"s": 90 * MINUTE / 60, "m": 45 * MINUTE, "h": 6 * HOUR, "d": DAY, "w": 14 * DAY}[every[-1]]
    due = schedule(every=every, timezone=BERLIN)
    started = utc("03-28 12:00")  # a day of 23 hours: elapsed time counts
    assert due.due_at(started, started + 100 * DAY) == started + length


def test_every_counts_in_moments_whatever_zone_they_are_written_in() -> None:
    due, started = schedule(every="2h", cron=None), datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo(BERLIN))
    assert due.due_at(started, utc("10-25 00:00")) == utc("10-25 01:30")
    assert due.due_at(started, datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo(BERLIN), fold=1)) == utc("10-25 01:30")
    set_back = datetime(2026, 10, 25, 1, 30, tzinfo=ZoneInfo(BERLIN))
    assert due.due_at(utc("10-26 00:00"), set_back) == utc("10-25 01:30")
