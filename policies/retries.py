"""How long to wait before something that failed is tried again, and when to give up: for stages, a full disk and dead runs.

A stage's own numbers are `engine.max_attempts` and `engine.retry_wait_s`; `loop.run.attempting` says which errors are hopeless.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MOST_DOUBLINGS = 60  # beyond them a wait is longer than anybody lives


class Retries(BaseModel):
    """The wait before each further try, in seconds; after the last of them it waits as long again.

    `max_failures`: how many in a row are the end; None: there is no end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    waits_s: tuple[float, ...]
    max_failures: int | None = None
    hopeless: tuple[type[Exception], ...] = ()  # errors that do not go away by trying again

    def wait_s(self, num_failures: int, error: Exception | None = None) -> float | None:
        """Seconds before the next try after so many failures in a row, the last of them `error`; None: give up."""
        if isinstance(error, self.hopeless) or (self.max_failures is not None and num_failures >= self.max_failures):
            return None
        return self.waits_s[min(num_failures, len(self.waits_s)) - 1]


def doubling(max_attempts: int, first_wait_s: float, hopeless: tuple[type[Exception], ...]) -> Retries:
    """Up to `max_attempts` tries, with waits that double."""
    waits_s = tuple(first_wait_s * 2.0**number for number in range(min(max_attempts, MOST_DOUBLINGS)))
    return Retries(waits_s=waits_s, max_failures=max_attempts, hopeless=hopeless)


NO_ROOM = Retries(waits_s=(5.0, 15.0, 60.0, 300.0))  # a full disk, until somebody has made room
DEAD_RUN = Retries(waits_s=(0.0, 1.0, 5.0, 15.0, 60.0), max_failures=6)  # of an experiment, whose process died
