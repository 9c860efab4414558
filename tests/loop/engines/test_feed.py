"""How an engine gets its requests: what a feed gives, and when an engine asks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loop.engines.feed import MAX_SPARE, MIN_SPARE, Listed, feed_of, room


@given(st.integers(0, 50), st.lists(st.integers(-1, 20)))
def test_a_list_is_given_once_in_order_and_made_as_it_is_taken(total: int, sizes: list[int]) -> None:
    made: list[int] = []
    feed = Listed((made.append(number) or number for number in range(total)), total)  # type: ignore[func-returns-value]
    got: list[int] = []
    for size in sizes:
        taken = feed.take(size)
        assert len(taken) == min(max(0, size), total - len(got))
        got += taken
        assert made == got == list(range(len(got)))
    assert feed_of(feed) is feed and feed_of([1, 2]).total == 2


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_an_engine_has_a_few_requests_more_than_it_computes(num_running: int, num_waiting: int) -> None:
    free = room(num_running, num_running + num_waiting)
    spare = min(MAX_SPARE, max(MIN_SPARE, num_running // 4))
    assert free == 0 or num_waiting + free == spare
    assert (free > 0) == (num_waiting <= spare // 2), "several at a time, and never too late"
