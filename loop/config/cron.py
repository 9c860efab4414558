"""Cron expressions: reading one, and the moments that it names.

APScheduler finds the next time on a wall clock, but does not read the expression. Its `from_crontab` counts weekdays from
Monday, knows neither 7 nor Sat-Mon, and accepts `mon-fri/0`, `0 0 30 2 *` and a day of the month beside a weekday.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from loop.config.times import moment_of, quoted, wall_clock

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(\*|(?P<first>[a-z]+|[0-9]{1,4})(-(?P<last>[a-z]+|[0-9]{1,4}))?)(/(?P<step>(?!0+$)[0-9]{1,4}))?")
_REMEDY = 'write minute, hour, day, month and weekday: "0 22 * * *" or "30 6 * * 1-5"'


class Cron:
    """The moments of a five-field cron expression: `minute hour day month weekday`, 0 and 7 are Sunday.

    APScheduler's trigger is asked without a zone, and `moment_of` puts its answer into the zone. Left to itself with a zone,
    the trigger fires twice where autumn repeats an hour and up to an hour late where spring skips one.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        from apscheduler.triggers.cron import CronTrigger  # 20 ms that a run without cron does not spend

        self.zone = zone
        fields = cron_fields(expression)
        texts = {name: ",".join(map(str, values)) if values else "*" for name, values in fields.items()}
        self.trigger = CronTrigger(**texts, timezone=UTC)

    def after(self, moment: datetime) -> datetime:
        """The first one later than that."""
        wall = wall_clock(moment, self.zone).replace(tzinfo=UTC)
        while True:
            wall = self.trigger.get_next_fire_time(None, wall + timedelta(microseconds=1))
            following = moment_of(wall.replace(tzinfo=None), self.zone)
            if following > moment:  # else the hour goes by a second time
                return following


def cron_fields(expression: str) -> dict[str, list[int] | None]:
    """The values of each field by its name in APScheduler, None for all; ValueError says what is wrong with it."""
    texts = expression.lower().split()
    if len(texts) != 5:
        raise ValueError(f"{quoted(expression)} has {len(texts)} fields, not 5; {_REMEDY}")
    if not texts[2].startswith("*") and not texts[4].startswith("*"):
        either = "names a day of the month and a weekday, and cron programs differ in what that means"
        raise ValueError(f"{quoted(expression)} {either}; put * for one of them")
    try:
        weekdays = _field("weekday", texts[4], 0, 7, _WEEKDAYS)
        fields = {
            "minute": _field("minute", texts[0], 0, 59),
            "hour": _field("hour", texts[1], 0, 23),
            "day": _field("day", texts[2], 1, 31),
            "month": _field("month", texts[3], 1, 12, _MONTHS),
            "day_of_week": weekdays and sorted({(day - 1) % 7 for day in weekdays}),
        }
    except ValueError as error:
        raise ValueError(f"{quoted(expression)}: {error}; {_REMEDY}") from None
    days, months = fields["day"], fields["month"]
    if days and min(days) > max(_MONTH_LENGTHS[month - 1] for month in months or range(1, 13)):
        raise ValueError(f"{quoted(expression)} never comes; give a day that is in the month")
    return fields


def _field(name: str, text: str, low: int, high: int, names: tuple[str, ...] = ()) -> list[int] | None:
    """The values of one field; None for all."""
    if text == "*":
        return None

    def number(word: str) -> int:
        if word in names:
            return names.index(word) + low
        if not word.isdecimal():
            raise ValueError(f"{quoted(word)} is no {name}")
        if not low <= int(word) <= high:
            raise ValueError(f"{name} {word} is not between {low} and {high}")
        return int(word)

    values: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if not match:
            raise ValueError(f"{quoted(part)} is no {name}")
        first = number(match["first"]) if match["first"] else low
        last = number(match["last"]) if match["last"] else first if match["first"] and not match["step"] else high
        if last < first and name == "weekday":  # Fri-Sun, Sat-Mon
            last += 7
        if last < first:
            raise ValueError(f"the {name}s {quoted(part)} end before they begin")
        values.update(range(first, last + 1, int(match["step"] or 1)))
    return sorted(values)
