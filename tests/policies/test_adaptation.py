"""What the next round changes after rollbacks: tables, and what holds for every rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.adaptation import Adaptable, AfterRollback, adapted, in_words, rollbacks_in_a_row
from policies.data import Accumulate, Mix, Replace

SETTINGS = Adaptable(
    temperature=1.2, learning_rate=2e-5, min_learning_rate=2e-6, num_steps=100, num_epochs=None, warmup_steps=10,
    data=Replace(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "num"),
    [([], 0), (["keep"], 0), (["rollback"], 1), (["rollback", "keep"], 0), (["keep", "rollback", "inconclusive"], 2)],
)
def test_rollbacks_in_a_row(verdicts: list[str], num: int) -> None:
    assert rollbacks_in_a_row(verdicts) == num


RATE = "learning_rate 2e-05 -> {}, min_learning_rate 2e-06 -> {}".format
STEPS = "num_steps 100 -> {}, warmup_steps 10 -> {}".format


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ({}, [None, None, None]),
        ({"learning_rate_factor": 0.5}, [RATE("1e-05", "1e-06"), RATE("5e-06", "5e-07"), RATE("2.5e-06", "2.5e-07")]),
        ({"learning_rate_factor": 0.5, "learning_rate_floor": 8e-6, "patience": 2},
         [None, RATE("1e-05", "1e-06"), RATE("8e-06", "8e-07")]),
        ({"length_factor": 0.1}, [STEPS(10, 1), STEPS(1, 0), STEPS(1, 0)]),
        ({"temperatures": (1.1, 0.9)}, ["temperature 1.2 -> 1.1", "temperature 1.2 -> 0.9", "temperature 1.2 -> 0.9"]),
        ({"data": Mix(earlier=0.5), "patience": 3}, [None, None, "data replace -> mix (earlier 0.5)"]),
    ],
)  # fmt: skip
def test_what_changes(rule: dict[str, object], changes: list[str | None]) -> None:
    after = AfterRollback.model_validate(rule)
    assert in_words(SETTINGS, adapted(after, 0, SETTINGS), 0) is None
    for num, change in enumerate(changes, 1):
        words = change and f"after {num} rollback{'s' if num > 1 else ''} in a row: {change}"
        assert in_words(SETTINGS, adapted(after, num, SETTINGS), num) == words


def test_epochs_are_made_shorter_where_there_are_no_steps() -> None:
    settings = replace(SETTINGS, num_steps=None, num_epochs=4)
    rule = AfterRollback(length_factor=0.5)
    assert [adapted(rule, num, settings).num_epochs for num in range(5)] == [4, 2, 1, 1, 1]
    assert adapted(rule, 3, replace(settings, num_epochs=None)).num_epochs is None


RULES = st.builds(
    AfterRollback,
    patience=st.integers(1, 4),
    learning_rate_factor=st.floats(0.01, 1.0),
    learning_rate_floor=st.none() | st.floats(1e-9, 2e-5),
    length_factor=st.floats(0.01, 1.0),
    temperatures=st.lists(st.floats(0.1, 2.0), max_size=3).map(tuple),
    data=st.none() | st.just(Accumulate()),
)
VERDICTS = st.lists(st.sampled_from(["keep", "rollback", "inconclusive"]), max_size=12)


@given(RULES, VERDICTS)
def test_what_holds_for_every_rule(rule: AfterRollback, verdicts: list[str]) -> None:
    num = rollbacks_in_a_row(verdicts)
    used = adapted(rule, num, SETTINGS)
    assert rollbacks_in_a_row([*verdicts, "keep"]) == 0 and adapted(rule, 0, SETTINGS) == SETTINGS
    if num < rule.patience:
        assert used == SETTINGS
    floor = rule.learning_rate_floor if rule.learning_rate_floor is not None else SETTINGS.learning_rate / 100
    assert min(floor, SETTINGS.learning_rate) * 0.999 <= used.learning_rate <= SETTINGS.learning_rate
    assert 0 < used.min_learning_rate <= used.learning_rate
    assert used.num_steps is not None and 1 <= used.num_steps <= 100 and used.warmup_steps <= 10
    assert used.temperature in (SETTINGS.temperature, *rule.temperatures)
    after = adapted(rule, num + 1, SETTINGS)
    assert after.learning_rate <= used.learning_rate and (after.num_steps or 0) <= used.num_steps
    assert (in_words(SETTINGS, used, num) is None) == (used == SETTINGS)
    assert adapted(rule, 10_000, SETTINGS).learning_rate > 0


@pytest.mark.parametrize(
    "wrong",
    [{"patience": 0}, {"learning_rate_factor": 0.0}, {"learning_rate_factor": 1.5}, {"length_factor": 0.0},
     {"learning_rate_floor": 0.0}, {"temperatures": (0.0,)}, {"temperature": 1.0}, {"data": "replace"}],
)  # fmt: skip
def test_limits(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AfterRollback.model_validate(wrong)
