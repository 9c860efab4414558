"""Times as the store has them, RFC 3339 UTC, and the seconds between them."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(at: str) -> datetime:
    """The moment that an RFC 3339 time names."""
    return datetime.fromisoformat(at.replace("Z", "+00:00"))


def seconds_between(start: str, end: str) -> float:
    """How long it took, never less than nothing (a clock may be set back)."""
    return max(0.0, (moment(end) - moment(start)).total_seconds())


def as_rfc3339(seconds: float) -> str:
    """A Unix time as the store would write it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
