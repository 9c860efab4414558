"""What is tried again, after how long, and what is given up: as tables."""

from __future__ import annotations

import pytest

from policies.retries import DEAD_RUN, NO_ROOM, Retries, doubling

STAGE = doubling(3, 5.0, (ValueError,))


@pytest.mark.parametrize(
    ("retries", "waits_s"),
    [
        (STAGE, [5.0, 10.0, None]),
        (doubling(1, 5.0, ()), [None]),
        (doubling(2, 0.0, ()), [0.0, None, None]),
        (DEAD_RUN, [0.0, 1.0, 5.0, 15.0, 60.0, None]),
        (NO_ROOM, [5.0, 15.0, 60.0, 300.0, 300.0, 300.0]),
    ],
)
def test_how_long_it_waits(retries: Retries, waits_s: list[float | None]) -> None:
    assert [retries.wait_s(number) for number in range(1, len(waits_s) + 1)] == waits_s


def test_some_are_tried_for_ever_and_some_never() -> None:
    patient = doubling(2**63 - 1, 0.0, ())  # as many attempts as a configuration may ask for
    assert patient.wait_s(1) == patient.wait_s(10**6) == 0.0
    assert (STAGE.wait_s(1, UnicodeError()), STAGE.wait_s(1, OSError())) == (None, 5.0)
