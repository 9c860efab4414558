"""Engines that share one feed are full until the end, by the pool's own hand-out over scripted engines."""

from __future__ import annotations

import pytest

from bench.feed import PROFILES, Profile, chunked, fed, figures

NUM, ENGINES, PLACES = 2000, 8, 32


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_eight_engines_are_full_until_the_last_twentieth_of_the_tokens(profile: Profile) -> None:
    """All of their time is counted until then, that of one without rows as well. With chunks they are not even two thirds full."""
    lengths = profile.lengths(NUM)
    gpus = fed(profile, lengths, ENGINES, PLACES)
    now, before = figures(gpus), figures(chunked(profile, lengths, ENGINES, PLACES))
    assert sum(spell.num_tokens for gpu in gpus for spell in gpu.spells) == sum(lengths)
    assert now.busy >= 0.95
    assert before.busy < 0.65 and now.hours < 0.85 * before.hours


def test_the_same_every_time() -> None:
    lengths = PROFILES[0].lengths(300)
    first, second = (fed(PROFILES[0], lengths, ENGINES, PLACES) for _ in range(2))
    assert [gpu.spells for gpu in first] == [gpu.spells for gpu in second]
