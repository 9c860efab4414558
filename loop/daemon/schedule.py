"""When a round is due, and when rounds may run. Arithmetic on aware datetimes: the caller has the clock.

Due times follow from when the last round *started*. So the times that passed while the machine slept, the daemon was down or
paused, or a round was running give one round at once: never none, never two. No scheduler thread runs, because the daemon's
own loop asks anyway. Which windows are open does not change what is due.

Every wall-clock time (of cron, windows, until) becomes a moment by one rule, `loop.config.times.moment_of`: the first at which
a clock on the wall shows that time or a later one. So a time that spring skips counts right after the gap, and one that autumn
repeats counts the first time only. `every` is elapsed time: "1d" is 24 hours on every day.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from loop.config.cron import Cron
from loop.config.times import ONE_DAY, parse_interval, parse_until, parse_window, parse_zone

if TYPE_CHECKING:
    from loop.config.machine import ScheduleTable


class Schedule:
    """When the next round is due, by one `[schedule]`. `begun_at` is when the run was created.

    It remembers only what it takes to live with a clock that is set back. Answers are in UTC.
    """

    def __init__(self, settings: ScheduleTable, begun_at: datetime) -> None:
        self.settings, self.begun_at = settings, begun_at.astimezone(UTC)
        zone = parse_zone(settings.timezone)
        self.interval = parse_interval(settings.every) if settings.every else timedelta(0)
        self.cron = Cron(settings.cron, zone) if settings.cron else None
        self.windows = [parse_window(text, zone) for text in settings.windows or ()]
        self.until = parse_until(settings.until, zone) if settings.until else None
        self._started: datetime | None = None  # the start that `_anchor` stands for
        self._anchor = self.begun_at
        self._seen: datetime | None = None  # the newest `now`

    def due_at(self, last_started: datetime | None, now: datetime) -> datetime:
        """When the next round is due; not after `now`: it is due already. Windows are not looked at.

        Before the first round (`last_started` None) cron counts from `begun_at`; otherwise that one is due at once.
        """
        now = now.astimezone(UTC)
        if last_started is None and not self.cron:
            return min(self.begun_at, now)
        anchor = self._anchored((last_started or self.begun_at).astimezone(UTC), now)
        return self.cron.after(anchor) if self.cron else anchor + self.interval

    def _anchored(self, started: datetime, now: datetime) -> datetime:
        """When the last round started, by a clock that may have been set back since.

        If that lies in the future, an interval counts from the first `now` that shows it. A cron time that was served
        would be served again that way, so there the start stays, unless it is more than a day off: then the clock was
        plainly wrong. If the clock then leaps as far forward as it was set back, it was wrong in between (a machine that
        begins in 1970 until it hears the time), and the start is right again.
        """
        seen, self._seen = self._seen, now
        if self._started != started:
            self._started = self._anchor = started
        if self._anchor > now + (ONE_DAY if self.cron else timedelta(0)):
            self._anchor = now
        elif self._anchor < started <= now and seen is not None and now - seen >= started - self._anchor:
            self._anchor = started
        return self._anchor

    def is_open(self, now: datetime) -> bool:
        """Whether now is inside a window, or there are none."""
        spans = (span for window in self.windows for span in window.spans(now, days=1))
        return not self.windows or any(start <= now < end for start, end in spans)

    def opens_at(self, now: datetime) -> datetime | None:
        """When it opens next; None if it is open."""
        if self.is_open(now):
            return None
        # A window of one day a week that falls into the hour that spring skips comes two weeks after the last one.
        return min(start for window in self.windows for start, _ in window.spans(now, days=16) if start > now)

    def is_over(self, now: datetime) -> bool:
        return self.until is not None and now >= self.until
