"""When a run has seen enough: tables of histories, and mistakes in `schedule.stop` by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from policies.by_type import BadPolicy
from policies.stopping import STOP_RULES, History, Plateau, StopRule, Target, why_stop

PLATEAU, TARGET = {"type": "plateau", "rounds": 3}, {"type": "target", "value": 0.5}
VERDICTS = {"k": "keep", "r": "rollback", "i": "inconclusive"}


def build_stops(tables: list[Any]) -> tuple[StopRule, ...]:
    return tuple(STOP_RULES.build(table, ("schedule", "stop", index)) for index, table in enumerate(tables))


def history(verdicts: str, rate: float | None = None, num_hours: float = 0.0) -> History:
    """A history of verdicts by their first letter, oldest first."""
    given = tuple(VERDICTS[letter] for letter in verdicts)
    return History.model_validate({"verdicts": given, "head_pass_rate": rate, "num_hours": num_hours})


@pytest.mark.parametrize(
    ("num_hours", "reason"),
    [
        (0.0, None),
        (47.99, None),
        (48.0, "hours: the run has worked 48.0 hours of 48"),
        (50.04, "hours: the run has worked 50.0 hours of 48"),
    ],
)
def test_it_stops_after_so_many_hours_of_work(num_hours: float, reason: str | None) -> None:
    assert why_stop(build_stops([{"type": "hours", "value": 48.0}]), history("kkk", 0.3, num_hours)) == reason


@pytest.mark.parametrize(
    ("stops", "verdicts", "rate", "reason"),
    [
        ([], "rrrrrrrr", 1.0, None),
        ([PLATEAU], "", None, None),
        ([PLATEAU], "rr", None, None),  # too few rounds to say so
        ([PLATEAU], "rrr", None, "plateau: none of the last 3 rounds was kept"),
        ([PLATEAU], "krrr", None, "plateau: none of the last 3 rounds was kept"),
        ([PLATEAU], "rrkrr", None, None),
        ([PLATEAU], "rrrk", None, None),  # the newest was kept
        ([PLATEAU], "krir", None, "plateau: none of the last 3 rounds was kept"),
        ([{"type": "plateau", "rounds": 1}], "kr", None, "plateau: the last round was not kept"),
        ([{"type": "plateau", "rounds": 1}], "rk", None, None),
        ([TARGET], "kkk", None, None),  # not evaluated yet
        ([TARGET], "kkk", 0.4999, None),
        ([TARGET], "", 0.5, "target: the head's pass@1 0.500 has reached 0.5"),  # the base may be there already
        ([TARGET], "kkk", 0.75, "target: the head's pass@1 0.750 has reached 0.5"),
        ([PLATEAU, TARGET], "rr", 0.6, "target: the head's pass@1 0.600 has reached 0.5"),
        ([TARGET, PLATEAU], "rrr", 0.6, "target: the head's pass@1 0.600 has reached 0.5"),
        ([PLATEAU, TARGET], "rrr", 0.6, "plateau: none of the last 3 rounds was kept"),
        ([PLATEAU, TARGET], "rrk", 0.4, None),
    ],
)
def test_when_it_stops(stops: list[dict[str, Any]], verdicts: str, rate: float | None, reason: str | None) -> None:
    assert why_stop(build_stops(stops), history(verdicts, rate)) == reason


@pytest.mark.parametrize(
    ("stops", "line"),
    [
        ([{}], "schedule.stop[0]: type is missing; known types: plateau, target, hours"),
        ([PLATEAU, {"type": "platau"}], "schedule.stop[1].type: unknown type 'platau'; known types: plateau, target, hours"),
        ([{"type": 3}], "schedule.stop[0].type: unknown type 3; known types: plateau, target, hours"),
        ([{"type": ["a"]}], "schedule.stop[0].type: unknown type ['a']; known types: plateau, target, hours"),
        ([3], "schedule.stop[0]: 3 is not a table; give one such as { type = \"plateau\", rounds = 5 }"),
        (
            [{"type": "plateau"}],
            "schedule.stop[0].rounds: is missing (Rounds in a row of which none was kept)",
        ),
        (
            [{"type": "plateau", "rounds": 0}],
            "schedule.stop[0].rounds: input should be greater than 0, got 0 (Rounds in a row of which none was kept)",
        ),
        (
            [{"type": "plateau", "rounds": "5"}],
            "schedule.stop[0].rounds: input should be a valid integer, got '5' (Rounds in a row of which none was kept)",
        ),
        (
            [{"type": "plateau", "rounds": 5, "round": 5}],
            "schedule.stop[0].round: unknown key; the keys of 'plateau' are type, rounds",
        ),
        (
            [{"type": "target", "value": 50}],
            "schedule.stop[0].value: input should be less than or equal to 1, got 50 "
            "(pass@1 of the head on the suite that decides)",
        ),
        (
            [{"type": "target", "value": 0}],
            "schedule.stop[0].value: input should be greater than 0, got 0 "
            "(pass@1 of the head on the suite that decides)",
        ),
    ],
)  # fmt: skip
def test_mistakes_have_their_place_and_remedy(stops: list[Any], line: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        build_stops(stops)
    assert str(caught.value) == line


def test_all_is_frozen_and_strict() -> None:
    for frozen in (Plateau(rounds=2), Target(value=0.5), history("k")):
        with pytest.raises(ValidationError):
            frozen.rounds = 3  # type: ignore[union-attr, misc]
    for wrong in ({"verdicts": ("kept",)}, {"head_pass_rate": 1.5}, {"head_pass_rate": float("nan")}, {"verdict": ()}):
        with pytest.raises(ValidationError):
            History.model_validate(wrong)
