"""When a round is due, and when rounds may run. Arithmetic on aware datetimes: the caller has the clock.

Due times follow from when the last round *started*. So a time that passed while the machine slept, the daemon was down,
or a round was going on gives one round at once: never none, never two. APScheduler's triggers compute them; no scheduler
thread runs, because the daemon's own loop asks anyway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from loop.config import Schedule as ScheduleConfig

ONE_DAY = timedelta(days=1)
LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NAMED_DAYS = {"weekends": frozenset({5, 6}), "weekdays": frozenset(range(5)), "daily": frozenset(range(7))}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_INTERVAL = re.compile(r"(\d+)\s*([smhdw])")
_TIMES = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """A span of wall-clock time that recurs on some days; `days` are those on which it starts, 0 is Monday."""

    days: frozenset[int]
    start: time
    end: time  # 00:00 is the end of the day; before `start`: on the day after
    zone: tzinfo

    def spans(self, around: datetime) -> list[tuple[datetime, datetime]]:
        """Its spans from two days before to eight days after a moment, in UTC."""
        today = around.astimezone(self.zone).date()
        found = []
        for offset in range(-2, 9):
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                until = day + timedelta(days=self.end <= self.start)
                found.append((self._moment(day, self.start), self._moment(until, self.end)))
        return found

    def _moment(self, day: date, at: time) -> datetime:
        """The moment when the clock on the wall first shows it; one that is skipped in spring: when it would have been."""
        return datetime.combine(day, at, self.zone).astimezone(UTC)


def parse_window(text: str, zone: str) -> Window:
    """`[days] [HH:MM-HH:MM] [timezone]`; ValueError says what is wrong with it."""
    days, times, found_zone = None, None, None
    for word in text.replace(", ", ",").split():
        if match := _TIMES.fullmatch(word):
            times = tuple(int(part) for part in match.groups())
        elif days is None and (named := _days(word)) is not None:
            days = named
        elif found_zone is None and is_zone(word):
            found_zone = word
        else:
            raise ValueError(
                f'{word!r} is neither days, nor times, nor a time zone; write "22:00-07:00 Europe/Berlin", '
                '"Mon-Fri 20:00-06:00" or "weekends"'
            )
    if days is None and times is None:
        raise ValueError(f'{text!r} names neither days nor times; write "22:00-07:00" or "weekends"')
    first, minute, last, end_minute = times or (0, 0, 24, 0)
    if first > 23 or minute > 59 or last > 24 or end_minute > 59 or (last == 24 and end_minute):
        raise ValueError(f"{text!r}: a time lies between 00:00 and 24:00")
    start, end = time(first, minute), time(last % 24, end_minute)
    if start == end and (first, minute) != (0, 0):
        raise ValueError(f"{text!r}: starts when it ends; leave the times out for whole days")
    return Window(days or _NAMED_DAYS["daily"], start, end, ZoneInfo(found_zone or zone))


def _days(word: str) -> frozenset[int] | None:
    if (named := _NAMED_DAYS.get(word.lower())) is not None:
        return named
    found: set[int] = set()
    for part in word.lower().split(","):
        first, dash, last = part.partition("-")
        if first[:3] not in DAYS or (dash and last[:3] not in DAYS):
            return None
        start, end = DAYS.index(first[:3]), DAYS.index((last or first)[:3])
        found |= {day % 7 for day in range(start, end + 1 + 7 * (end < start))}
    return frozenset(found)


def is_zone(name: str) -> bool:
    """Whether it is the name of a time zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a directory of zones
        return False
    return True


def parse_interval(text: str) -> timedelta:
    """ "6h", "90m", "1d": ValueError says what is wrong with it."""
    match = _INTERVAL.fullmatch(text.strip())
    if not match or not int(match[1]):
        raise ValueError(f'{text!r} is no interval; write "continuous", or a number and s, m, h, d or w: "6h"')
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def parse_moment(text: str, zone: str) -> datetime:
    """A date or a time of a date, in `zone` unless it names another; ValueError says what is wrong with it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'{text!r} is no date; write "2026-12-24" or "2026-12-24T08:00"') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)


class Cron:
    """The moments of a five-field cron expression, by APScheduler's trigger, with wall-clock days that do not double.

    A time that spring skips is due right after the gap. One that autumn repeats is due the first time only, unless the
    expression runs every hour anyway.
    """

    def __init__(self, expression: str, zone: str) -> None:
        from apscheduler.triggers.cron import CronTrigger

        if len(expression.split()) != 5:
            raise ValueError(f"{expression!r} has not five fields (minute hour day month weekday)")
        try:
            self.trigger = CronTrigger.from_crontab(expression, timezone=ZoneInfo(zone))
        except ValueError as error:
            raise ValueError(f'{expression!r}: {error}; write for example "0 22 * * *"') from None
        self.every_hour = expression.split()[1].startswith("*")
        if self.after(LONG_AGO + 20_000 * ONE_DAY) is None:
            raise ValueError(f"{expression!r} never comes; give a date that exists")

    def after(self, moment: datetime) -> datetime | None:
        """The first one later than that; None if there is none."""
        found: datetime = moment
        while True:
            fire: datetime | None = self.trigger.get_next_fire_time(
                None, found.astimezone(UTC) + timedelta(microseconds=1)
            )
            if fire is None:
                return None
            found = fire.astimezone(UTC)
            if self.every_hour or not fire.fold:
                break
        return found


class Schedule:
    """When the next round is due, by one `[schedule]`. `begun_at` is when the run was created."""

    def __init__(self, settings: ScheduleConfig, begun_at: datetime) -> None:
        self.settings, self.begun_at = settings, begun_at
        self.interval = None if settings.every == "continuous" else parse_interval(settings.every)
        self.cron = Cron(settings.cron, settings.timezone) if settings.cron else None
        self.windows = [parse_window(text, settings.timezone) for text in settings.windows]
        self.until = parse_moment(settings.until, settings.timezone) if settings.until else None
        self._set_back: tuple[datetime, datetime] | None = None  # a start in the future, and what it counts as

    def due_at(self, last_started: datetime | None, now: datetime) -> datetime:
        """When the next round is, or was, due. Windows are not looked at."""
        if last_started is None:
            first = self.cron.after(self.begun_at) if self.cron else None
            return first or self.begun_at
        anchor = self._anchor(last_started, now)
        if self.cron:
            return self.cron.after(anchor) or now + 365 * ONE_DAY
        return anchor + self.interval if self.interval else anchor

    def _anchor(self, last_started: datetime, now: datetime) -> datetime:
        """When the last round started, by a clock that may have been set back since.

        An interval then counts from now on. A cron time that was served must not be served again when it comes a second
        time, so its anchor stays; unless it is so far off that the clock was plainly wrong.
        """
        if last_started <= now or (self.cron and last_started - now <= ONE_DAY):
            if self._set_back is not None and self._set_back[0] == last_started:
                return self._set_back[1]
            return last_started
        if self._set_back is None or self._set_back[0] != last_started or self._set_back[1] > now:
            self._set_back = (last_started, now)
        return self._set_back[1]

    def is_open(self, now: datetime) -> bool:
        """Whether now is inside a window, or there is none."""
        return not self.windows or any(
            start <= now < end for window in self.windows for start, end in window.spans(now)
        )

    def opens_at(self, now: datetime) -> datetime:
        """The next moment at which it is open; now if it is."""
        if self.is_open(now):
            return now
        return min(start for window in self.windows for start, _ in window.spans(now) if start > now)

    def is_over(self, now: datetime) -> bool:
        """Whether `until` has come."""
        return self.until is not None and now >= self.until
