"""When a round is due, against a clock on the wall that is read minute by minute; and mistakes in [schedule] by line."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loop.config.loading import load_config
from loop.config.machine import Schedule as Settings
from loop.config.same_run import config_sha256, differences, resolved
from loop.config.settings import Config
from loop.daemon.schedule import Schedule
from loop.errors import ConfigError
from tests.support import ROOT

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def utc(text: str) -> datetime:
    """ "03-29 01:00" in 2026, UTC; a year may stand before."""
    return datetime.fromisoformat(text if text[4] == "-" else f"2026-{text}").replace(tzinfo=UTC)


def schedule(begun: str = "01-01 00:00", **keys: Any) -> Schedule:
    return Schedule(Settings.model_validate(keys), utc(begun))


def due_times(expression: str, zone: str, first: str, last: str) -> list[str]:
    """What a loop that looks every few minutes serves: the moments of due rounds, in UTC."""
    due, now, found = schedule(first, cron=expression, timezone=zone), utc(first), []
    started: datetime | None = None
    while now < utc(last):
        if due.due_at(started, now) <= now:
            found.append(f"{now:%d %H:%M}")
            started = now
        now += 5 * MINUTE
    return found


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


# A clock on the wall, read minute by minute: the reference for everything below


class Wall:
    """Some days around a change of clocks. It knows only what the wall shows at each minute of UTC."""

    def __init__(self, zone: str, start: str, num_days: int) -> None:
        self.start = utc(start)
        moments = [self.start + minute * MINUTE for minute in range(num_days * 1440)]
        self.shown = [moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0) for moment in moments]
        self.highest = list(accumulate(self.shown, max))

    def first(self, wall: datetime) -> datetime:
        """The first minute at which it shows that or more."""
        return self.start + bisect_left(self.highest, wall) * MINUTE

    def days(self) -> list[datetime]:
        """The midnights, naive, the day before and the day after included."""
        midnight = self.shown[0].replace(hour=0, minute=0)
        return [midnight + day * DAY for day in range(-1, (self.shown[-1] - midnight).days + 2)]


CHANGES = [
    (BERLIN, "03-25 00:00"),
    (BERLIN, "10-21 00:00"),
    (NEW_YORK, "03-04 00:00"),
    (NEW_YORK, "10-28 00:00"),
    (LORD_HOWE, "10-01 00:00"),
    ("UTC", "06-01 00:00"),
]
NUM_DAYS = 14  # of the loop; the wall is read for longer
CRONS: dict[str, Callable[[datetime], bool]] = {
    "0 22 * * *": lambda wall: (wall.hour, wall.minute) == (22, 0),
    "30 2 * * *": lambda wall: (wall.hour, wall.minute) == (2, 30),
    "30 1 * * 0": lambda wall: (wall.hour, wall.minute) == (1, 30) and wall.weekday() == 6,
    "*/20 * * * *": lambda wall: wall.minute % 20 == 0,
    "15 1-3 * * sat,sun": lambda wall: wall.hour in (1, 2, 3) and wall.minute == 15 and wall.weekday() > 4,
    "0 */6 25-31 * *": lambda wall: wall.hour % 6 == 0 and wall.minute == 0 and wall.day >= 25,
}


@cache
def wall_of(change: tuple[str, str]) -> Wall:
    return Wall(*change, 3 * NUM_DAYS)


@cache
def cron_times(expression: str, change: tuple[str, str]) -> list[datetime]:
    """Every moment at which it is due, each once."""
    wall = wall_of(change)
    minutes = (day + minute * MINUTE for day in wall.days() for minute in range(1440))
    found = {wall.first(minute) for minute in minutes if CRONS[expression](minute)}
    return sorted(moment for moment in found if moment > wall.start)


class Days:
    """A daemon for some days: it looks every few minutes unless something happens. `now` is what its clock says."""

    def __init__(self, start: datetime, tick: int, lengths: list[int], happenings: list[tuple[int, str, int]]) -> None:
        self.start, self.tick, self.lengths = start, tick, lengths
        self.happenings = sorted(happenings)
        self.minute, self.offset = 0, 0
        self.num_rounds = 0
        self.restarted = False
        self.forward, self.back, self.longest = 0, 0, tick  # since the last start

    @property
    def real(self) -> datetime:
        return self.start + self.minute * MINUTE

    @property
    def now(self) -> datetime:
        return self.real + self.offset * MINUTE + timedelta(seconds=7)

    def go(self, minutes: int) -> None:
        self.minute += minutes
        self.longest = max(self.longest, minutes)

    def happen(self) -> bool:
        """Whatever happens at this time; False when the days are over."""
        while self.happenings and self.happenings[0][0] <= self.minute:
            _, what, size = self.happenings.pop(0)
            if what == "sleep":
                self.go(10 * abs(size))
            elif what == "restart":
                self.restarted = True
            else:  # the clock is set, and later perhaps set right
                self.forward += max(0, size - self.offset)
                self.back += max(0, self.offset - size)
                self.offset = size
        return self.minute < NUM_DAYS * 1440

    def round(self) -> None:
        self.forward = self.back = self.longest = 0
        self.go(self.lengths[self.num_rounds % len(self.lengths)])
        self.num_rounds += 1


def happenings(*kinds: str) -> st.SearchStrategy[list[tuple[int, str, int]]]:
    minute = st.integers(0, NUM_DAYS * 1440)
    return st.lists(st.tuples(minute, st.sampled_from(kinds), st.integers(-60, 60)), max_size=12)


LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@settings(max_examples=60)
@given(
    expression=st.sampled_from(list(CRONS)),
    change=st.sampled_from(CHANGES),
    tick=st.integers(3, 30),
    lengths=LENGTHS,
    happened=happenings("sleep", "restart", "clock", "clock"),
)
@example("30 2 * * *", CHANGES[0], 5, [10], [])
@example("30 2 * * *", CHANGES[1], 5, [10], [(5825, "clock", -60), (5900, "clock", 0)])
@example("0 22 * * *", CHANGES[1], 5, [4 * 1440 + 75], [])
def test_no_cron_time_is_lost_or_served_twice(
    expression: str, change: tuple[str, str], tick: int, lengths: list[int], happened: list[tuple[int, str, int]]
) -> None:
    times, begun = cron_times(expression, change), wall_of(change).start
    keys = {"cron": expression, "timezone": change[0]}
    due, days = Schedule(Settings(**keys), begun), Days(begun, tick, lengths, happened)
    starts: list[datetime] = []
    while days.happen():
        if days.restarted:
            due, days.restarted = Schedule(Settings(**keys), begun), False
        now, last = days.now, starts[-1] if starts else None
        at = due.due_at(last, now)
        assert at == times[bisect_right(times, last or begun)]
        if at <= now:
            starts.append(now)
            days.round()
        else:
            days.go(tick)
    assert all(bisect_right(times, earlier) < bisect_right(times, later) for earlier, later in pairwise(starts))
    past = times[: bisect_right(times, starts[-1])] if starts else []
    assert len({bisect_left(starts, moment) for moment in past}) == len(starts)  # each served by one, each serving some


@settings(max_examples=60)
@given(
    every=st.integers(20, 3000),
    tick=st.integers(3, 30),
    lengths=LENGTHS,
    happened=happenings("sleep", "restart", "clock", "clock"),
)
def test_an_interval_holds_whatever_the_clock_does(
    every: int, tick: int, lengths: list[int], happened: list[tuple[int, str, int]]
) -> None:
    due, days = schedule("03-25 00:00", every=f"{every}m"), Days(utc("03-25 00:00"), tick, lengths, happened)
    last: datetime | None = None
    real: datetime | None = None
    while days.happen():
        if days.restarted:
            due, days.restarted = schedule("03-25 00:00", every=f"{every}m"), False
        now = days.now
        at = due.due_at(last, now)
        assert at <= now + every * MINUTE  # it never stalls
        if last is not None and real is not None:
            if not days.forward and not days.back:
                assert at == last + every * MINUTE
            waited = (days.real - real) / MINUTE
            assert at > now or waited >= every - days.forward
            assert at <= now or waited < every + days.back
        if at <= now:
            last, real = now, days.real
            days.round()
        else:
            days.go(tick)
    assert last is not None


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


# Windows


def spans(window: Schedule, first: str, last: str) -> list[str]:
    """When it opens and closes, by looking every few minutes; what it foretells must be what comes."""
    found, now, was_open = [], utc(first), False
    foretold: datetime | None = None
    while now < utc(last):
        is_open = window.is_open(now)
        assert (window.opens_at(now) is None) == is_open and (window.closes_at(now) is None or is_open)
        if now != utc(first):
            assert (is_open != was_open) == (now == foretold)
        if is_open != was_open:
            found.append(f"{now:%d %H:%M}")
        foretold, was_open = window.closes_at(now) if is_open else window.opens_at(now), is_open
        now += 15 * MINUTE
    return found


@pytest.mark.parametrize(
    ("windows", "zone", "first", "last", "expected"),
    [
        (["22:00-07:00"], "UTC", "03-02 12:00", "03-04 12:00", ["02 22:00", "03 07:00", "03 22:00", "04 07:00"]),
        (["22:00-07:00 Europe/Berlin"], "UTC", "03-02 12:00", "03-03 12:00", ["02 21:00", "03 06:00"]),
        (["22:00-24:00", "00:00-07:00"], "UTC", "03-02 12:00", "03-03 12:00", ["02 22:00", "03 07:00"]),
        (["22:00-00:00"], "UTC", "03-02 12:00", "03-03 12:00", ["02 22:00", "03 00:00"]),
        (["08:00-12:00", "10:00-14:00"], "UTC", "03-02 00:00", "03-03 00:00", ["02 08:00", "02 14:00"]),
        (["weekends"], "UTC", "03-05 00:00", "03-11 00:00", ["07 00:00", "09 00:00"]),
        (["weekends"], NEW_YORK, "03-05 00:00", "03-11 00:00", ["07 05:00", "09 04:00"]),  # of 47 hours
        (["weekdays 22:00-07:00"], "UTC", "03-06 12:00", "03-10 00:00", ["06 22:00", "07 07:00", "09 22:00"]),
        (["Fri 22:00-07:00"], "UTC", "03-02 12:00", "03-09 00:00", ["06 22:00", "07 07:00"]),
        (["sat, sun 10:00-18:00"], "UTC", "03-06 00:00", "03-09 00:00", ["07 10:00", "07 18:00", "08 10:00", "08 18:00"]),
        (["Fri-Mon 10:00-11:00"], "UTC", "03-09 00:00", "03-13 12:00", ["09 10:00", "09 11:00", "13 10:00", "13 11:00"]),
        (["Wednesday"], "UTC", "03-02 00:00", "03-09 00:00", ["04 00:00", "05 00:00"]),
        (["mon 00:00-24:00"], "UTC", "03-01 00:00", "03-05 00:00", ["02 00:00", "03 00:00"]),
        # Wall-clock time across a change: the night of 8 hours, the night of 10.
        (["22:00-07:00"], BERLIN, "03-28 12:00", "03-29 12:00", ["28 21:00", "29 05:00"]),
        (["22:00-07:00"], BERLIN, "10-24 12:00", "10-25 12:00", ["24 20:00", "25 06:00"]),
        # The opening, the closing, all of it is skipped.
        (["02:30-06:00"], BERLIN, "03-28 12:00", "03-29 12:00", ["29 01:00", "29 04:00"]),
        (["22:00-02:30"], BERLIN, "03-28 12:00", "03-29 12:00", ["28 21:00", "29 01:00"]),
        (["02:15-02:45"], BERLIN, "03-28 12:00", "03-30 12:00", ["30 00:15", "30 00:45"]),
        (["Sun 02:15-02:45"], BERLIN, "03-23 00:00", "04-05 12:00", ["05 00:15", "05 00:45"]),
        # What autumn repeats counts the first time.
        (["02:30-06:00"], BERLIN, "10-24 12:00", "10-25 12:00", ["25 00:30", "25 05:00"]),
        (["22:00-02:30"], BERLIN, "10-24 12:00", "10-25 12:00", ["24 20:00", "25 00:30"]),
    ],
)  # fmt: skip
def test_windows(windows: list[str], zone: str, first: str, last: str, expected: list[str]) -> None:
    assert spans(schedule(windows=tuple(windows), timezone=zone), first, last) == expected


def test_without_windows_and_with_all_of_them() -> None:
    now = utc("03-02 12:00")
    for keys in ({}, {"windows": ("weekdays", "weekends")}, {"windows": ("00:00-24:00",), "timezone": BERLIN}):
        always = schedule(**keys)
        assert always.is_open(now) and always.opens_at(now) is None and always.closes_at(now) is None


DAY_SETS = {"": range(7), "weekends ": (5, 6), "weekdays ": range(5), "Sun ": (6,), "sat-mon ": (5, 6, 0)}


@settings(max_examples=60)
@given(
    change=st.sampled_from(CHANGES),
    windows=st.lists(
        st.tuples(st.sampled_from(list(DAY_SETS)), st.integers(0, 95), st.integers(1, 95)), min_size=1, max_size=3
    ),
    looks=st.lists(st.integers(3 * 1440, 6 * 1440), min_size=1, max_size=20),
)
def test_windows_are_what_the_wall_says(
    change: tuple[str, str], windows: list[tuple[str, int, int]], looks: list[int]
) -> None:
    wall, texts = wall_of(change), []
    open_minutes: set[int] = set()
    for days, quarter, length in windows:
        start, end = 15 * quarter * MINUTE, 15 * (quarter + length) * MINUTE
        texts.append(
            f"{days}{quarter // 4:02}:{quarter % 4 * 15:02}-{(quarter + length) // 4 % 24:02}:{(quarter + length) % 4 * 15:02}"
        )
        for day in wall.days():
            if day.weekday() in DAY_SETS[days]:
                begins, ends = (int((wall.first(day + at) - wall.start) / MINUTE) for at in (start, end))
                open_minutes.update(range(begins, ends))
    found = schedule(windows=tuple(texts), timezone=change[0])
    for minute in looks:
        now = wall.start + minute * MINUTE + timedelta(seconds=30)
        assert found.is_open(now) == (minute in open_minutes)
        changes_at = next(
            (
                later
                for later in range(minute, 3 * NUM_DAYS * 1440)
                if (later in open_minutes) != (minute in open_minutes)
            ),
            None,
        )
        foretold = found.closes_at(now) if minute in open_minutes else found.opens_at(now)
        if foretold is None:  # it never closes
            assert minute in open_minutes and (changes_at is None or changes_at > minute + 8 * 1440)
        else:
            assert changes_at is not None and foretold == wall.start + changes_at * MINUTE


# Until


@pytest.mark.parametrize(
    ("until", "zone", "over_at"),
    [
        ("2026-12-24T08:00", "UTC", "12-24 08:00"),
        ("2026-12-24 08:00", BERLIN, "12-24 07:00"),
        ("2026-07-01T08:00:00", BERLIN, "07-01 06:00"),
        ("2026-07-01T08:00Z", BERLIN, "07-01 08:00"),
        ("2026-07-01T08:00-03:00", BERLIN, "07-01 11:00"),
        ("2026-03-29T02:30", BERLIN, "03-29 01:00"),  # skipped
        ("2026-10-25T02:30", BERLIN, "10-25 00:30"),  # comes twice
    ],
)
def test_until(until: str, zone: str, over_at: str) -> None:
    found = schedule(until=until, timezone=zone)
    assert not found.is_over(utc(over_at) - timedelta(seconds=1))
    assert found.is_over(utc(over_at)) and found.is_over(utc(over_at) + 1000 * DAY)
    assert not schedule().is_over(utc("2099-01-01 00:00"))


# loop.toml

TEXT = """\
name = "demo"
[model]
source = "smollm2-135m"
[sampling]
temperature = 1.2
[[suites]]
name = "first"
source = "first-steps"
[decide]
suite = "first"
"""  # fmt: skip
WINDOW_REMEDY = 'write "22:00-07:00", "Mon-Fri 20:00-06:00 Europe/Berlin" or "weekends"'
CRON_REMEDY = 'write minute, hour, day, month and weekday: "0 22 * * *" or "30 6 * * 1-5"'


def load(directory: Path, text: str) -> Config:
    (directory / "loop.toml").write_text(text)
    return load_config(directory / "loop.toml").config


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('every = "0h"', ["""12: schedule.every: '0h' is no time at all; write "continuous" for one round after the """
                          'other, or "6h"']),
        ('every = "often"', ["""12: schedule.every: 'often' is no interval; write "continuous", or a number and s, m, h, """
                             'd or w: "6h"']),
        ('every = "999999999d"', ["12: schedule.every: '999999999d' is more than a year; give at most 366d"]),
        ("every = 6", ["12: schedule.every: 6 is not text; give text in quotes"]),
        ('every = "6h"\ncron = "0 22 * * *"', ["12: schedule.every: every and cron are both given; give one"]),
        ('every = "continuous"\ncron = "0 22 * * *"', ["12: schedule.every: every and cron are both given; give one"]),
        ('cron = "0 22 * *"', [f"12: schedule.cron: '0 22 * *' has 4 fields, not 5; {CRON_REMEDY}"]),
        ('cron = ""', [f"12: schedule.cron: '' has 0 fields, not 5; {CRON_REMEDY}"]),
        ('cron = "60 22 * * *"',
         [f"12: schedule.cron: '60 22 * * *': minute 60 is not between 0 and 59; {CRON_REMEDY}"]),
        ('cron = "0 0 * * mon-fri,x"', [f"12: schedule.cron: '0 0 * * mon-fri,x': 'x' is no weekday; {CRON_REMEDY}"]),
        ('cron = "0 0 * * mon-fri/0"',
         [f"12: schedule.cron: '0 0 * * mon-fri/0': 'mon-fri/0' is no weekday; {CRON_REMEDY}"]),
        ('cron = "0 0 1 march *"', [f"12: schedule.cron: '0 0 1 march *': 'march' is no month; {CRON_REMEDY}"]),
        ('cron = "0 8-6 * * *"',
         [f"12: schedule.cron: '0 8-6 * * *': the hours '8-6' end before they begin; {CRON_REMEDY}"]),
        ('cron = "0 0 30 2 *"', ["12: schedule.cron: '0 0 30 2 *' never comes; give a day that is in the month"]),
        ('cron = "0 0 31 2,4,jun *"',
         ["12: schedule.cron: '0 0 31 2,4,jun *' never comes; give a day that is in the month"]),
        ('cron = "0 0 13 * 5"', ["12: schedule.cron: '0 0 13 * 5' names a day of the month and a weekday, and cron "
                                 "programs differ in what that means; put * for one of them"]),
        ('timezone = "Europe/Berln"',
         ["12: schedule.timezone: 'Europe/Berln' is no time zone; the closest is Europe/Berlin"]),
        ('timezone = "?"', ["""12: schedule.timezone: '?' is no time zone; give a name like "Europe/Berlin" or "UTC\""""]),
        ('timezone = "Europe"\nwindows = ["25:00-26:00"]',
         ["12: schedule.timezone: 'Europe' is no time zone; give a name like \"Europe/Berlin\" or \"UTC\"",
          "13: schedule.windows[0]: '25:00-26:00': a window begins from 00:00 to 23:59 and ends at 24:00 at the latest"]),
        ("windows = []",
         ["12: schedule.windows: is empty, so no round would ever begin; leave the key out to run at any time"]),
        ('windows = "weekends"', ['12: schedule.windows: "weekends" is text; give a list of texts in quotes']),
        ('windows = [\n "weekends",\n "10:00-10:00",\n "",\n]',
         ["14: schedule.windows[1]: '10:00-10:00' ends when it begins; write 00:00-24:00 for the whole day",
          f"15: schedule.windows[2]: '' names neither days nor times; {WINDOW_REMEDY}"]),
        ('windows = ["10-18"]', [f"12: schedule.windows[0]: '10-18': '10-18' is neither days nor times; {WINDOW_REMEDY}"]),
        ('windows = ["Mo 10:00-12:00"]',
         [f"12: schedule.windows[0]: 'Mo 10:00-12:00': 'Mo' is neither days nor times; {WINDOW_REMEDY}"]),
        ('windows = ["saturn"]',
         [f"12: schedule.windows[0]: 'saturn': 'saturn' is neither days nor times; {WINDOW_REMEDY}"]),
        ('windows = ["22:00-07:00 weekends UTC"]',
         [f"12: schedule.windows[0]: '22:00-07:00 weekends UTC': 'weekends' is not expected here; {WINDOW_REMEDY}"]),
        ('windows = ["weekends Erope/Berlin"]',
         ["12: schedule.windows[0]: 'Erope/Berlin' is no time zone; the closest is Europe/Berlin"]),
        ('until = "Christmas"', ["""12: schedule.until: 'Christmas' is not a date with a time; write "2026-12-24T08:00", """
                                 'or "2026-12-24T08:00+01:00"']),
        ('until = "2026-12-24"', ["""12: schedule.until: '2026-12-24' is not a date with a time; write """
                                  '"2026-12-24T08:00", or "2026-12-24T08:00+01:00"']),
        ('until = "0001-01-01T00:00+14:00"',
         ["""12: schedule.until: '0001-01-01T00:00+14:00' is not a date with a time; write "2026-12-24T08:00", """
          'or "2026-12-24T08:00+01:00"']),
        ("until = 2026-12-24T08:00:00",
         ["12: schedule.until: 2026-12-24 08:00:00 is a date or time; no key takes one (text stands in quotes)"]),
        ('stop = [\n { type = "plateau", rounds = 5 },\n { type = "taget", value = 0.5 },\n]',
         ["14: schedule.stop[1].type: unknown type 'taget'; known types: plateau, target, hours"]),
        ('stop = [{ type = "plateau", round = 5, rounds = 5 }]',
         ["12: schedule.stop[0].round: unknown key; the keys of 'plateau' are type, rounds"]),
        ('stop = [{ type = "plateau" }, 3]',
         ["12: schedule.stop[0].rounds: is missing (Rounds in a row of which none was kept)",
          '12: schedule.stop[1]: 3 is not a table; give one such as { type = "plateau", rounds = 5 }']),
        ('stop = { type = "plateau", rounds = 5 }',
         ["12: schedule.stop: is a single table; write [[schedule.stop]] with double brackets"]),
        ("evry = 3", ["12: schedule.evry: unknown key; the closest is every"]),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line_and_remedy(tmp_path: Path, keys: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"{TEXT}[schedule]\n{keys}\n")
    assert str(caught.value).splitlines() == [f"{tmp_path}/loop.toml:{line}" for line in expected]


def test_hostile_text_stays_one_printable_line(tmp_path: Path) -> None:
    hostile = '"\\u001b[31m\\u202e\\n' + "9" * 5000 + '"'
    keys = ("every", "cron", "timezone", "until")
    text = "".join(f"{key} = {hostile}\n" for key in keys[:1] + keys[2:]) + f"windows = [{hostile}]\n"
    for block in (text, f"cron = {hostile}\n", f'cron = "0 0 * * {"9" * 5000}"\n'):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, f"{TEXT}[schedule]\n{block}")
        lines = str(caught.value).splitlines()
        assert len(lines) == block.count("=") and all(line.isprintable() and len(line) < 400 for line in lines)


FULL = """\
[schedule]
cron = "0 22 * * *"
timezone = "Europe/Berlin"
windows = ["22:00-07:00", "weekends"]
until = "2026-12-24T08:00"
stop = [{ type = "plateau", rounds = 5 }, { type = "target", value = 0.5 }]
"""


def test_the_schedule_and_rounds_may_change_within_a_run(tmp_path: Path) -> None:
    plain, full = load(tmp_path, TEXT), load(tmp_path, f"rounds = 0\n{TEXT}{FULL}")
    assert full.rounds == 0 and [stop.type for stop in full.schedule.stop] == ["plateau", "target"]
    assert config_sha256(plain) == config_sha256(full)
    assert differences(resolved(plain), resolved(full)) == []


def test_a_resolved_schedule_is_valid_again(tmp_path: Path) -> None:
    for text in (TEXT, TEXT + FULL, f'{TEXT}[schedule]\nevery = "6h"\n'):
        config = load(tmp_path, text)
        assert Config.model_validate_json(json.dumps(resolved(config))).schedule == config.schedule


def test_the_commented_schedule_of_the_project_is_valid(tmp_path: Path) -> None:
    block = (ROOT / "loop.toml").read_text().split("# [schedule]")[1].split("\n\n")[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()[1:]]
    keys = [line.split(" = ")[0] for line in lines]
    assert set(keys) == set(Settings.model_fields)
    for leave_out in ("every", "cron"):
        kept = [line for line, key in zip(lines, keys, strict=True) if key != leave_out]
        load(tmp_path, f"{TEXT}[schedule]\n" + "\n".join(kept))
