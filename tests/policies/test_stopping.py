"""When a run has seen enough: tables of histories, and what no history may hold."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from policies.stopping import STOP_RULES, History, why_stop

PLATEAU, TARGET = {"type": "plateau", "rounds": 3}, {"type": "target", "value": 0.5}
HOURS = {"type": "hours", "value": 48.0}
VERDICTS = {"k": "keep", "r": "rollback", "i": "inconclusive"}


def history(verdicts: str, rate: float | None = None, num_hours: float = 0.0) -> History:
    """A history of verdicts by their first letter, oldest first."""
    given = tuple(VERDICTS[letter] for letter in verdicts)
    return History.model_validate({"verdicts": given, "head_pass_rate": rate, "num_hours": num_hours})


@pytest.mark.parametrize(
    ("stops", "verdicts", "rate", "reason", "num_hours"),
    [
        ([], "rrrrrrrr", 1.0, None, 0.0),
        ([PLATEAU], "", None, None, 0.0),
        ([PLATEAU], "rr", None, None, 0.0),  # too few rounds to say so
        ([PLATEAU], "rrr", None, "plateau: none of the last 3 rounds was kept", 0.0),
        ([PLATEAU], "krrr", None, "plateau: none of the last 3 rounds was kept", 0.0),
        ([PLATEAU], "rrkrr", None, None, 0.0),
        ([PLATEAU], "rrrk", None, None, 0.0),  # the newest was kept
        ([PLATEAU], "krir", None, "plateau: none of the last 3 rounds was kept", 0.0),
        ([{"type": "plateau", "rounds": 1}], "kr", None, "plateau: the last round was not kept", 0.0),
        ([{"type": "plateau", "rounds": 1}], "rk", None, None, 0.0),
        ([TARGET], "kkk", None, None, 0.0),  # not evaluated yet
        ([TARGET], "kkk", 0.4999, None, 0.0),
        ([TARGET], "", 0.5, "target: the head's pass@1 0.500 has reached 0.5", 0.0),  # the base may be there already
        ([TARGET], "kkk", 0.75, "target: the head's pass@1 0.750 has reached 0.5", 0.0),
        ([PLATEAU, TARGET], "rr", 0.6, "target: the head's pass@1 0.600 has reached 0.5", 0.0),
        ([TARGET, PLATEAU], "rrr", 0.6, "target: the head's pass@1 0.600 has reached 0.5", 0.0),
        ([PLATEAU, TARGET], "rrr", 0.6, "plateau: none of the last 3 rounds was kept", 0.0),
        ([PLATEAU, TARGET], "rrk", 0.4, None, 0.0),
        ([HOURS], "kkk", 0.3, None, 0.0),
        ([HOURS], "kkk", 0.3, None, 47.99),
        ([HOURS], "kkk", 0.3, "hours: the run has worked 48.0 hours of 48", 48.0),
        ([HOURS], "kkk", 0.3, "hours: the run has worked 50.0 hours of 48", 50.04),
    ],
)
def test_when_it_stops(
    stops: list[dict[str, Any]], verdicts: str, rate: float | None, reason: str | None, num_hours: float
) -> None:
    assert why_stop(tuple(map(STOP_RULES.build, stops)), history(verdicts, rate, num_hours)) == reason


def test_a_history_is_strict() -> None:
    for wrong in ({"verdicts": ("kept",)}, {"head_pass_rate": 1.5}, {"head_pass_rate": float("nan")}, {"verdict": ()}):
        with pytest.raises(ValidationError):
            History.model_validate(wrong)
