"""How long to wait before something that failed is tried again, and when to give up: one table for the whole program.

A stage's own numbers are `engine.max_attempts` and `engine.retry_wait_s`; `loop.run.attempting` says which errors are hopeless.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Retries(BaseModel):
    """So many seconds before each further try. After the last of them it gives up, or `never_ends` and waits as long again."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    waits_s: tuple[float, ...]
    never_ends: bool = False
    hopeless: tuple[type[Exception], ...] = ()  # errors that do not go away by trying again

    def wait_s(self, num_failures: int, error: Exception | None = None) -> float | None:
        """Seconds before the next try after so many failures in a row, the last of them `error`; None: give up."""
        if isinstance(error, self.hopeless):
            return None
        if num_failures <= len(self.waits_s):
            return self.waits_s[num_failures - 1]
        return self.waits_s[-1] if self.never_ends else None


def doubling(max_attempts: int, first_wait_s: float, hopeless: tuple[type[Exception], ...]) -> Retries:
    """Up to `max_attempts` tries, with waits that double."""
    waits_s = tuple(first_wait_s * 2.0 ** min(number, 60) for number in range(max_attempts - 1))
    return Retries(waits_s=waits_s, hopeless=hopeless)


NO_ROOM = Retries(waits_s=(5.0, 15.0, 60.0, 300.0), never_ends=True)  # a full disk, until somebody has made room
DEAD_RUN = Retries(waits_s=(0.0, 1.0, 5.0, 15.0, 60.0))  # of an experiment, whose process died
