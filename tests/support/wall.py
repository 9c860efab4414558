"""A clock on the wall that is read minute by minute, as the reference for schedules; and schedules by their keys."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import accumulate
from typing import Any
from zoneinfo import ZoneInfo

from loop.config.machine import ScheduleTable
from loop.daemon.schedule import Schedule

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
NUM_DAYS = 14  # of the loop; the wall is read for longer


def utc(text: str) -> datetime:
    """ "03-29 01:00" in 2026, UTC; a year may stand before."""
    return datetime.fromisoformat(text if text[4] == "-" else f"2026-{text}").replace(tzinfo=UTC)


def schedule(begun: str = "01-01 00:00", **keys: Any) -> Schedule:
    return Schedule(ScheduleTable.model_validate(keys), utc(begun))


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


@cache
def wall_of(change: tuple[str, str]) -> Wall:
    return Wall(*change, 3 * NUM_DAYS)
