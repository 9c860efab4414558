"""What training sees of a round and of earlier ones comes back as it was written, however it is stored."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from store.canonical import compact_json, sha256_of_text
from store.db import PAGE, Row, _page, execute, query, scalar, transaction
from store.errors import StoreError
from store.records import Completion, Selection
from store.selections import PER_LINE
from tests.support.stores import World

NUM = 3 * max(PAGE, PER_LINE)  # completions of each round

# Stretches of a list: what they are, how many, and how far each place is from the one before.
STRETCHES = st.lists(
    st.tuples(
        st.sampled_from(["own", "left out", "earlier"]),
        st.one_of(st.integers(1, 3), st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 1])),
        st.sampled_from([1, 1, 1, 2, 700]),
    ),
    max_size=8,
)


class _Undone(Exception):
    pass


@contextlib.contextmanager
def undone(world: World) -> Iterator[None]:
    with contextlib.suppress(_Undone), transaction(world.db):
        yield
        raise _Undone


@pytest.fixture(scope="module")
def world() -> World:
    """Round 1 is over, and round 2 has been sampled, in another order than that of arrival."""
    world = World()
    world.whole_round(num_completions=NUM)
    world.ledger.begin_round(world.run.id)
    world.corpus.add_completions(world.completion(n * 7 % NUM, 2) for n in range(NUM))
    return world


@pytest.fixture(scope="module")
def whole(world: World) -> dict[str, Completion]:
    return {row.id: row for number in (1, 2) for row in world.corpus.completions(world.run.id, number)}


def listed(world: World, stretches: list[tuple[str, int, int]], first: int) -> list[Selection]:
    left = [sorted(world.corpus.texts(world.run.id, number), key=lambda text: text.id) for number in (1, 2)]
    selections, position = [], first
    for kind, num, step in stretches:
        earlier, reason = kind == "earlier", "a stub (of one line)" if kind == "left out" else None
        for _ in range(min(num, len(left[not earlier]))):
            text = left[not earlier].pop()
            arrival = text.arrival if earlier else None
            selections.append(Selection(world.run.id, 2, text.id, position, not reason, reason, arrival))
            position += step
    return selections


def finish(world: World, selections: list[Selection]) -> None:
    world.stage(world.ledger.open_round(world.run.id), "sampling", selections=iter(selections))


@pytest.mark.parametrize("by_older_version", [False, True])
@settings(max_examples=15)
@given(STRETCHES, st.sampled_from([0, 0, -3, 2**40]))
@example([("own", 1, 1), ("earlier", 1, 1)] * 600, 0)
@example([("earlier", NUM, 1), ("own", NUM, 1)], 0)
@example([("earlier", 1, 700), ("left out", PAGE, 1), ("earlier", PAGE + 1, 1)], 0)
def test_the_list_comes_back_as_it_was(
    by_older_version: bool,
    world: World,
    whole: dict[str, Completion],
    stretches: list[tuple[str, int, int]],
    first: int,
) -> None:
    expected = listed(world, stretches, first)
    if by_older_version:  # every one has a row
        expected = [replace(s, arrival=None) for s in expected]
    corpus, run_id = world.corpus, world.run.id
    with undone(world):
        finish(world, expected)
        assert list(corpus.selections(run_id, 2)) == expected
        assert list(corpus.training_rows(run_id, 2)) == [whole[s.completion_id] for s in expected if s.used]
        assert list(corpus.own_selections(run_id, 2)) == [s for s in expected if s.arrival is None]
        counts = {(bool(row["used"]), row["reason"]): row["num"] for row in corpus.selection_counts(run_id, 2)}
        assert counts == Counter((s.used, "a stub" if s.reason else None) for s in expected)
        last = world.ledger.events.last()
        covered = [[s.position, s.completion_id, s.used, s.reason] for s in expected]
        assert last and last.data["selections_sha256"] == sha256_of_text(compact_json(covered))
        lines = query(world.db, "SELECT json_array_length(arrivals) AS num FROM earlier_selections")
        assert sum(row["num"] for row in lines) == sum(s.arrival is not None for s in expected)
        assert all(row["num"] <= PER_LINE for row in lines)


@settings(max_examples=20)
@given(STRETCHES, st.integers(1, 9), st.integers(1, 4000))
def test_pages_of_any_size_hold_the_same_rows(
    world: World, whole: dict[str, Completion], stretches: list[tuple[str, int, int]], num_rows: int, num_bytes: int
) -> None:
    """In the same order, and never more than so many bytes but for the last row of a page."""
    sizes: list[list[int]] = []

    def page(*arguments: Any) -> list[Row]:
        rows = _page(*arguments)
        sizes.append([sum(len(value) for value in row.values() if isinstance(value, str | bytes)) for row in rows])
        return rows

    expected = [(kind, min(num, 12), step) for kind, num, step in stretches[:4]]
    with undone(world), pytest.MonkeyPatch.context() as patch:
        selections = listed(world, expected, 0)
        finish(world, selections)
        for name, value in (("PAGE", num_rows), ("PAGE_BYTES", num_bytes), ("_page", page)):
            patch.setattr(f"store.db.{name}", value)
        used = [whole[s.completion_id] for s in selections if s.used]
        assert list(world.corpus.training_rows(world.run.id, 2)) == used
        assert list(world.corpus.selections(world.run.id, 2)) == selections
    assert all(len(page) <= num_rows and sum(page[:-1]) < num_bytes for page in sizes)


def test_many_earlier_ones_take_few_lines(world: World) -> None:
    """A line for some hundreds; where the round's own lie between, one for each of those at most."""
    for stretches, num_own, most in (
        ([("earlier", NUM, 1)], 0, NUM // PER_LINE),
        ([("own", 1, 1), ("earlier", 9, 1)] * 100, 100, 100 + 1000 // PER_LINE),
    ):
        with undone(world):
            finish(world, listed(world, stretches, 0))
            assert scalar(world.db, "SELECT count(*) FROM earlier_selections") <= most
            assert scalar(world.db, "SELECT count(*) FROM selections WHERE round = 2") == num_own


def test_nothing_is_stored_of_a_list_that_breaks_off(world: World) -> None:
    good = listed(world, [("earlier", PAGE + 10, 1), ("own", 1, 1)], 0)
    for bad in (
        [*good[:-1], replace(good[-1], round=1)],
        [*good[:-2], replace(good[-2], run_id="another"), good[-1]],
        [*good[:-2], replace(good[-2], position=0), good[-1]],
        [*good[:-1], replace(good[-1], completion_id="unknown")],
    ):
        with world.refused((StoreError, ValueError)), transaction(world.db):
            finish(world, bad)
        assert not scalar(world.db, "SELECT count(*) FROM earlier_selections")


def test_a_reason_or_a_completion_that_is_not_used_is_kept_with_an_arrival_too(world: World) -> None:
    first, second, third = listed(world, [("earlier", 3, 1)], 0)
    odd = [replace(first, used=False, reason="a stub"), replace(second, reason="why"), third]
    with undone(world):
        finish(world, odd)
        kept = [replace(s, arrival=None) for s in odd[:2]] + [third]
        assert list(world.corpus.selections(world.run.id, 2)) == kept


def test_a_completion_that_is_gone_is_not_passed_over(world: World) -> None:
    selections = listed(world, [("earlier", 3, 1)], 0)
    with undone(world):
        finish(world, selections)
        execute(world.db, "DROP TRIGGER completions_no_delete")
        execute(world.db, "PRAGMA defer_foreign_keys = ON")
        execute(world.db, "DELETE FROM completions WHERE arrival = ?", (selections[1].arrival,))
        read: Any
        for read in (world.corpus.training_rows, world.corpus.selections):
            with pytest.raises(StoreError, match=f"arrival {selections[1].arrival}, which is gone"):
                list(read(world.run.id, 2))
