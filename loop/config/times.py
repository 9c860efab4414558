"""From the texts of [schedule] to moments: intervals, windows, time zones, ends. Plain arithmetic; cron is in `cron.py`."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

ONE_DAY = timedelta(days=1)
LONGEST_INTERVAL = timedelta(days=366)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NAMED_DAYS = {"weekdays": frozenset(range(5)), "weekends": frozenset({5, 6})}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_INTERVAL = re.compile(r"([0-9]{1,9}) ?([smhdw])")
_TIMES = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")
_UNTIL = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_WINDOW_REMEDY = 'write "22:00-07:00", "Mon-Fri 20:00-06:00 Europe/Berlin" or "weekends"'


def moment_of(wall: datetime, zone: tzinfo) -> datetime:
    """The first moment, in UTC, at which a clock in the zone shows this naive time or a later one."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if wall_clock(moment, zone) == wall:
        return moment
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)  # it is skipped: by the rules of PEP 495, before the gap
    seconds = range(int((moment - before).total_seconds()))
    return before + timedelta(
        seconds=bisect_left(
            seconds, True, key=lambda second: wall_clock(before + timedelta(seconds=second), zone) >= wall
        )
    )


def wall_clock(moment: datetime, zone: tzinfo) -> datetime:
    """What a clock in the zone shows, naive."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


@dataclass(frozen=True, slots=True)
class Window:
    """A span of wall-clock time that recurs on some days; `days` are those on which it starts, 0 is Monday."""

    days: frozenset[int]
    start: timedelta  # after the midnight with which the day begins
    end: timedelta  # likewise, so more than 24 hours if it lies on the day after
    zone: tzinfo

    def spans(self, around: datetime, days: int) -> Iterator[tuple[datetime, datetime]]:
        """Start and end of every occurrence that starts from two days before `around` to `days` days after it. None is empty."""
        midnight = wall_clock(around, self.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        for offset in range(-2, days + 1):
            day = midnight + timedelta(days=offset)
            if day.weekday() in self.days:
                start, end = moment_of(day + self.start, self.zone), moment_of(day + self.end, self.zone)
                if start < end:  # else spring skips it
                    yield start, end


def parse_window(text: str, zone: tzinfo) -> Window:
    """`[days] [HH:MM-HH:MM] [timezone]`, in `zone` unless it names another; ValueError says what is wrong with it."""
    days: frozenset[int] | None = None
    times: tuple[int, ...] | None = None
    words = re.sub(r"\s*,\s*", ",", text).split()
    for index, word in enumerate(words):
        if times is None and (match := _TIMES.fullmatch(word)):
            times = tuple(int(part) for part in match.groups())
        elif days is None and times is None and (named := _days(word)) is not None:
            days = named
        elif index == len(words) - 1 and index > 0:
            zone = parse_zone(word)
        else:
            what = "neither days nor times" if index == 0 else "not expected here"
            raise ValueError(f"{quoted(text)}: {quoted(word)} is {what}; {_WINDOW_REMEDY}")
    if not words:
        raise ValueError(f"{quoted(text)} names neither days nor times; {_WINDOW_REMEDY}")
    first, first_minute, last, last_minute = times or (0, 0, 24, 0)
    start = timedelta(hours=first, minutes=first_minute)
    end = timedelta(hours=last, minutes=last_minute)
    if first > 23 or first_minute > 59 or last_minute > 59 or end > ONE_DAY:
        raise ValueError(f"{quoted(text)}: a window begins from 00:00 to 23:59 and ends at 24:00 at the latest")
    if start == end:
        raise ValueError(f"{quoted(text)} ends when it begins; write 00:00-24:00 for the whole day")
    return Window(days or frozenset(range(7)), start, end if end > start else end + ONE_DAY, zone)


def _days(word: str) -> frozenset[int] | None:
    """The days that a word names, such as Mon-Fri or Sat,Sun; None if it names none."""
    if (named := _NAMED_DAYS.get(word.lower())) is not None:
        return named
    days: set[int] = set()
    for part in word.split(","):
        first, dash, last = part.partition("-")
        start, end = _day(first), _day(last if dash else first)
        if start is None or end is None:
            return None
        days.update(day % 7 for day in range(start, end + 1 + 7 * (end < start)))
    return frozenset(days)


def _day(word: str) -> int | None:
    return next((day for day, name in enumerate(DAYS) if len(word) >= 3 and name.startswith(word.lower())), None)


def parse_zone(name: str) -> tzinfo:
    """The time zone of an IANA name; ValueError says what is wrong with it."""
    if name == "UTC":
        return UTC  # known even where no time zones are installed
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a directory of zones
        close = difflib.get_close_matches(name[:60], sorted(available_timezones()), n=1, cutoff=0.8)
        remedy = f"the closest is {close[0]}" if close else 'give a name like "Europe/Berlin" or "UTC"'
        raise ValueError(f"{quoted(name)} is no time zone; {remedy}") from None


def parse_interval(text: str) -> timedelta:
    """The time that "continuous" (0), "6h", "90m" or "1d" means; ValueError says what is wrong with it."""
    if text == "continuous":
        return timedelta(0)
    match = _INTERVAL.fullmatch(text.strip())
    if not match:
        raise ValueError(f'{quoted(text)} is no interval; write "continuous", or a number and s, m, h, d or w: "6h"')
    interval = timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    if not interval:
        raise ValueError(f'{quoted(text)} is no time at all; write "continuous" for one round after the other, or "6h"')
    if interval > LONGEST_INTERVAL:
        raise ValueError(f"{quoted(text)} is more than a year; give at most 366d")
    return interval


def parse_until(text: str, zone: tzinfo) -> datetime:
    """A date with a time, in `zone` unless it has an offset; ValueError says what is wrong with it. Answers in UTC."""
    try:
        if not _UNTIL.fullmatch(text):
            raise ValueError("not of this form")
        until = datetime.fromisoformat(text)
        return until.astimezone(UTC) if until.tzinfo else moment_of(until, zone)
    except (ValueError, OverflowError):
        raise ValueError(
            f'{quoted(text)} is not a date with a time; write "2026-12-24T08:00", or "2026-12-24T08:00+01:00"'
        ) from None


def quoted(text: str) -> str:
    """A value of the file in one short line that is safe in a terminal."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
