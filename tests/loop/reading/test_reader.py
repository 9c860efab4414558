"""What a round was decided on, by name."""

from types import SimpleNamespace
from typing import Any

import pytest

from loop.reading.reader import Evaluations


@pytest.mark.parametrize("first", ["select", "confirm", "final"])
def test_the_split_of_every_round_has_the_suites_own_name(first: str) -> None:
    ids = {f"head/ones/{split}": split for split in ("select", "confirm", "final")} | {"head/greedy/all": "all"}
    run = SimpleNamespace(config={"decide": {"split": first}})
    store: Any = SimpleNamespace(run=run, output=lambda number, stage: {"evaluations": ids})
    round: Any = SimpleNamespace(number=1)
    names = Evaluations(store, {}, {}).named(round)
    assert names["head", "ones"] == first and names["head", "greedy"] == "all"
    assert {suite for _, suite in names} == {"ones", "greedy"} | {
        f"ones/{split}" for split in ("select", "confirm", "final") if split != first
    }
