"""When windows are open and when `until` has come, against a clock on the wall that is read minute by minute."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.daemon.schedule import Schedule
from tests.support.wall import BERLIN, CHANGES, DAY, MINUTE, NEW_YORK, schedule, utc, wall_of


def spans(window: Schedule, first: str, last: str) -> list[str]:
    """When it opens and closes, by looking every few minutes; it must open when it says that it will."""
    seen, now, was_open = [], utc(first), False
    foretold: datetime | None = None
    while now < utc(last):
        is_open = window.is_open(now)
        assert foretold is None or is_open == (now == foretold)
        if is_open != was_open:
            seen.append(f"{now:%d %H:%M}")
        foretold, was_open = window.opens_at(now), is_open
        assert (foretold is None) == is_open
        now += 15 * MINUTE
    return seen


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
        assert always.is_open(now) and always.opens_at(now) is None


QUARTERS = st.integers(0, 94)
DAY_SETS = {"": range(7), "weekends ": (5, 6), "weekdays ": range(5), "Sun ": (6,), "sat-mon ": (5, 6, 0)}


@settings(max_examples=60)
@given(
    change=st.sampled_from(CHANGES),
    windows=st.lists(st.tuples(st.sampled_from(list(DAY_SETS)), QUARTERS, QUARTERS), min_size=1, max_size=3),
    looks=st.lists(st.integers(3 * 1440, 6 * 1440), min_size=1, max_size=20),
)
def test_windows_are_what_the_wall_says(
    change: tuple[str, str], windows: list[tuple[str, int, int]], looks: list[int]
) -> None:
    wall, texts = wall_of(change), []
    open_minutes: set[int] = set()
    for days, quarter, length in windows:
        start, end = 15 * quarter * MINUTE, 15 * (quarter + length + 1) * MINUTE
        texts.append(f"{days}{datetime.min + start:%H:%M}-{datetime.min + end:%H:%M}")
        for day in wall.days():
            if day.weekday() in DAY_SETS[days]:
                begins, ends = (int((wall.first(day + at) - wall.start) / MINUTE) for at in (start, end))
                open_minutes.update(range(begins, ends))
    planned = schedule(windows=tuple(texts), timezone=change[0])
    for minute in looks:
        now = wall.start + minute * MINUTE + timedelta(seconds=30)
        assert planned.is_open(now) == (minute in open_minutes)
        opens = min(later for later in open_minutes if later >= minute)
        assert planned.opens_at(now) == (None if opens == minute else wall.start + opens * MINUTE)


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
    planned = schedule(until=until, timezone=zone)
    assert not planned.is_over(utc(over_at) - timedelta(seconds=1))
    assert planned.is_over(utc(over_at)) and planned.is_over(utc(over_at) + 1000 * DAY)
    assert not schedule().is_over(utc("2099-01-01 00:00"))
