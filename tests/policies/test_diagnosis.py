"""Locks and forks: the arithmetic, against numpy over whole distributions, and what must hold whatever the numbers are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.diagnosis import (
    WHO,
    Compared,
    PositionClass,
    Positions,
    in_words,
    kl_divergence,
    mean_change,
    outcomes,
    signals,
    summarise,
    summary_of,
)

VOCABULARY, TOP = 30, 6


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def positions(p: np.ndarray, at: np.ndarray) -> Positions:
    """Whole distributions (T, V) as what an engine reports of them."""
    chosen = np.take_along_axis(p, at, 1)
    return Positions(
        entropy=(-(p * np.log(p)).sum(1)).tolist(),
        top_token_id=p.argmax(1).tolist(),
        top_probability=p.max(1).tolist(),
        logprobs=np.log(chosen).tolist(),
        rest=np.log(np.maximum(1 - chosen.sum(1), 1e-40)).tolist(),
    )


class World:
    """Some sequences of whole distributions of the three models, sharp and flat ones, and their summary."""

    def __init__(self, seed: int, num_sequences: int = 6, drift: float = 0.7) -> None:
        draw = np.random.default_rng(seed)
        self.whole: list[dict[str, np.ndarray]] = []
        self.kept: list[np.ndarray] = []
        self.compared: list[Compared] = []
        for _ in range(num_sequences):
            length = int(draw.integers(3, 12))
            sharpness = draw.choice([0.5, 3.0, 12.0], size=(length, 1))
            base = draw.normal(size=(length, VOCABULARY)) * sharpness
            head = base + drift * draw.normal(size=base.shape)
            candidate = head + drift * draw.normal(size=base.shape)
            whole = {"base": softmax(base), "head": softmax(head), "candidate": softmax(candidate)}
            at = np.argsort(-whole["base"], 1)[:, :TOP]
            kept = draw.integers(1, TOP + 1, size=length)
            self.whole.append(whole)
            self.kept.append(kept)
            parts: dict[str, Any] = {who: positions(p, at) for who, p in whole.items()}
            self.compared.append(Compared(**parts, num_kept=kept.tolist()))

    def expected(self, who: str, chosen: Any) -> dict[str, float]:
        """Means over the positions that `chosen` says (a test of the base's entropy), from the whole distributions."""
        values: dict[str, list[float]] = {}
        for whole, kept in zip(self.whole, self.kept, strict=True):
            mask = chosen(-(whole["base"] * np.log(whole["base"])).sum(1))
            p, candidate = whole[who], whole["candidate"]
            order = np.argsort(-whole["base"], 1)
            inside = np.array([p[i, order[i, : kept[i]]].sum() for i in range(len(p))])
            for name, figure in (
                ("entropy", -(p * np.log(p)).sum(1)), ("top_probability", p.max(1)), ("tail_mass", 1 - inside),
                ("kl", kl(candidate, p)), ("changed", candidate.argmax(1) != p.argmax(1)),
            ):  # fmt: skip
                values.setdefault(name, []).extend(figure[mask])
        return {name: float(np.mean(of)) for name, of in values.items()} | {"count": len(values["kl"])}


CLASSES = {"everywhere": lambda nats: nats > -1, "locks": lambda nats: nats < 0.3, "forks": lambda nats: nats > 1.0}


@pytest.mark.parametrize("seed", range(5))
def test_means_are_those_of_the_whole_distributions(seed: int) -> None:
    world = World(seed)
    summary = summarise(world.compared, 0.3, 1.0)
    assert summary.num_sequences == 6
    for name, chosen in CLASSES.items():
        part: PositionClass = getattr(summary, name)
        for who in WHO:
            expected, level = world.expected(who, chosen), getattr(part, who)
            assert part.num_positions == expected["count"] > 0
            for figure in ("entropy", "top_probability", "tail_mass"):
                assert getattr(level, figure) == pytest.approx(expected[figure], abs=1e-9), (name, who, figure)
        assert part.top_changed == pytest.approx(world.expected("head", chosen)["changed"])
        for bound, who in ((part.kl_to_head, "head"), (part.kl_to_base, "base")):
            whole = world.expected(who, chosen)["kl"]
            assert 0 < bound <= whole + 1e-12, "merging outcomes cannot raise it"


def test_with_every_token_followed_the_bound_is_the_divergence() -> None:
    draw = np.random.default_rng(1)
    p, q = softmax(draw.normal(size=(2, VOCABULARY)))
    assert kl_divergence(p.tolist(), q.tolist()) == pytest.approx(float(kl(p, q)))
    bounds = []
    for top in range(1, VOCABULARY):
        ours, theirs = ([*row[:top], row[top:].sum()] for row in (p, q))
        bounds.append(kl_divergence(ours, theirs))
    assert bounds == sorted(bounds) and bounds[-1] == pytest.approx(float(kl(p, q)))


@settings(max_examples=300)
@given(data=st.data(), size=st.integers(1, 8))
def test_a_divergence_is_never_negative(data: st.DataObject, size: int) -> None:
    """Also where rounding has left masses that do not sum to 1."""
    logs = st.lists(st.floats(-100, 0), min_size=size, max_size=size)
    p, q = (outcomes(data.draw(logs), data.draw(st.floats(-100, 0))) for _ in range(2))
    assert math.fsum(p) == pytest.approx(1) and len(p) == size + 1
    assert kl_divergence(p, q) >= 0 and math.isfinite(kl_divergence(p, q))
    assert kl_divergence(p, p) == 0


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.floats(0.0, 1.5), st.sampled_from([0.0, 0.7]))
def test_what_must_hold_whatever_the_numbers_are(seed: int, lock: float, more: float, drift: float) -> None:
    world = World(seed, 5, drift)
    summary = summarise(world.compared, lock, lock + more)
    turned = summarise(world.compared[::-1], lock, lock + more)
    counts = [part.num_positions if part else 0 for part in (summary.locks, summary.forks)]
    assert sum(counts) <= summary.everywhere.num_positions == sum(len(sequence.num_kept) for sequence in world.compared)
    for name in ("everywhere", "locks", "forks"):
        part, other = getattr(summary, name), getattr(turned, name)
        assert (part is None) == (other is None)
        if part is None:
            continue
        for who in WHO:
            level = getattr(part, who)
            assert 0 <= level.tail_mass <= 1 and 0 < level.top_probability <= 1 and level.entropy >= 0
            assert asdict(level) == pytest.approx(asdict(getattr(other, who)))
        for figure, change in part.change.items():
            difference = getattr(part.candidate, figure) - getattr(part.head, figure)
            assert change.mean == pytest.approx(difference, abs=1e-9)
            if change.interval:
                assert change.interval[0] <= change.mean <= change.interval[1]
            assert drift or (change.mean == 0 and change.interval in (None, (0, 0)))
        if drift == 0:  # equal models show no change
            assert part.base == part.head == part.candidate
            assert (part.kl_to_head, part.kl_to_base, part.top_changed) == (0, 0, 0)
    if summary.locks:
        assert summary.locks.base.entropy < lock
    assert summary_of(json.loads(json.dumps(asdict(summary)))) == summary


def test_signals_have_flat_names_and_leave_out_what_is_not_there() -> None:
    world = World(3)
    flat = signals(summarise(world.compared, 0.3, 1.0))
    each = {"entropy", "lock_tail_mass", "lock_top_probability", "fork_entropy"}
    assert set(flat) == set(WHO) and set(flat["base"]) == set(flat["head"]) == each
    assert set(flat["candidate"]) == each | {"kl_to_head", "kl_to_base", "lock_top_changed"}
    none = summarise(world.compared, 1e-9, 99.0)
    assert none.locks is none.forks is None
    assert set(signals(none)["candidate"]) == {"entropy", "kl_to_head", "kl_to_base"}
    assert in_words(none) == "no position is a lock or a fork"


def test_one_sentence_for_people() -> None:
    def made(tail: float, nats: float) -> Positions:
        sure = [math.log(1 - tail), math.log(tail)]
        return Positions([0.1, nats], [1, 1], [1 - tail, 0.5], [sure, [math.log(0.5)] * 2], [-100.0, -100.0])

    base, candidate = made(0.04, 2.0), made(0.03, 1.9)
    summary = summarise([Compared(base, base, candidate, [1, 2])], 0.3, 1.0)
    assert in_words(summary) == (
        "at locks the tail shrank by 25% (0.0400 -> 0.0300); at forks 95% of the entropy was kept (2.00 -> 1.90 nats)"
    )
    grown = summarise([Compared(base, candidate, base, [1, 2])], 0.3, 1.0)
    assert in_words(grown).startswith("at locks the tail grew by 33%")
    assert "the tail did not move" in in_words(summarise([Compared(base, base, base, [1, 2])], 0.3, 1.0))


def test_incomplete_records_are_refused() -> None:
    whole = World(0, 1).compared[0]
    short = replace(whole.head, entropy=whole.head.entropy[:-1])
    with pytest.raises(ValueError, match="no positions"):
        summarise([], 0.3, 1.0)
    with pytest.raises(ValueError, match=r"sequence 0: head has \d+ positions, not \d+"):
        summarise([replace(whole, head=short)], 0.3, 1.0)


# ---- intervals -----------------------------------------------------------------------------------------------------


def test_an_interval_over_sequences_of_one_position_is_students() -> None:
    from scipy.stats import t

    draw = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 30):
        values = draw.normal(size=count)
        half = t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
        change = mean_change([[value] for value in values])
        assert change.interval is not None
        assert change.interval == pytest.approx((values.mean() - half, values.mean() + half), rel=5e-3)
    assert mean_change([[1.0, 3.0]]).interval is None and mean_change([[1.0, 3.0]]).mean == 2.0


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Sequences of unequal length whose positions are alike; 95% of 600 intervals, within what chance allows."""
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        sizes = draw.integers(5, 40, size=24)
        clusters = [draw.normal(draw.normal(0.3, 0.2), 0.1, size=size).tolist() for size in sizes]
        low, high = mean_change(clusters).interval or (0, 0)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 600 <= 0.98
