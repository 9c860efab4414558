"""A comparison that stops when it is clear: how often it is right, and what it spends."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.planted import differences_of, sequentially
from loop.judging.sequential import said_by

RATES = st.lists(st.fractions(-1, 1, max_denominator=8), min_size=1, max_size=60)


@given(RATES, st.booleans())
def test_swapped_sides_swap_the_finding(differences: list[Fraction], complete: bool) -> None:
    other = {"B is better": "A is better", "A is better": "B is better"}
    said = said_by(differences, complete=complete)
    swapped = said_by([-each for each in differences], complete=complete)
    assert swapped.finding == other.get(said.finding, said.finding)
    assert (swapped.lower, swapped.upper) == (-said.upper, -said.lower)


def test_what_is_plain_is_seen_early() -> None:
    assert said_by([Fraction(1)] * 100, complete=False).finding == "B is better"
    assert said_by([Fraction(-1, 2), Fraction(-1)] * 40, complete=False).finding == "A is better"
    assert said_by([Fraction(0)] * 400, complete=False).finding == "no difference of this size"
    assert said_by([Fraction(1, 8), Fraction(-1, 8)] * 5, complete=False).finding == "unclear"


@pytest.mark.parametrize(("planted", "least", "most"), [(0.03, 0.7, 1.0), (0.0, 0.0, 0.12), (-0.03, 0.0, 0.0)])
def test_a_planted_difference(planted: float, least: float, most: float) -> None:
    """With few runs, so the limits are wide; `bench/planted.py` plays as many as it takes."""
    found = Counter[str]()
    spent = 0.0
    for seed in range(40):
        said, share = sequentially(differences_of(random.Random(seed), planted, 500, 8))
        found[said] += 1
        spent += share / 40
    assert least <= found["B is better"] / 40 <= most, found
    assert spent < 0.75
