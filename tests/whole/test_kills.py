"""The daemon killed at every named place, and at some random moments; `make kills` does a thousand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from store.failpoints import POINTS
from tests.support.runs import write_run
from tests.whole.kills import CONFIG, KILLED, NEVER, chain, check, daemon, undisturbed


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


# The others are slow: random kills come to all of them, and in the fast tests a chain of these does.
FAST = {
    "store.committed",
    "checkpoint.renamed",
}


@pytest.mark.parametrize(
    "place",
    [place if place in FAST else pytest.param(place, marks=pytest.mark.slow) for place in sorted(set(POINTS) - NEVER)],
)
def test_killed_at_a_named_place(place: str, tmp_path: Path, expected: Any) -> None:
    config = write_run(tmp_path, CONFIG)
    codes = [daemon(config, f"{place}=kill@{count}") for count in (1, 2)]
    assert KILLED in codes and set(codes) <= {0, KILLED}, (codes, (tmp_path / "journal").read_text()[-2000:])
    check(config, expected)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_again_and_again(seed: int, tmp_path: Path, expected: Any) -> None:
    chain(tmp_path, random.Random(seed), 12, expected)
