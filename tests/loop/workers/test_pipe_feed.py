"""How an engine's feed takes requests over the pipe: in order, each once, and as many as it wants as long as there are some."""

from __future__ import annotations

import queue
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.engines.base import Request
from loop.workers.child import PipeFeed


class Daemon:
    """Answers each "want" at once, by a script: how many it gives of those asked for, where None is "later"."""

    def __init__(self, total: int, script: list[int | None]) -> None:
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.left, self.script, self.num_wants = deque(range(total)), deque(script), 0

    def send(self, type: str, num: int) -> None:
        assert type == "want" and num > 0
        self.num_wants += 1
        most = self.script.popleft() if self.script else num
        if most is None and self.left:
            self.give(None)  # and then it has some, unasked
            most = 1
        self.give(num if most is None else min(num, most))

    def give(self, num: int | None) -> None:
        some = (
            None
            if num is None
            else [{"id": str(self.left.popleft()), "seed": 0} for _ in range(min(num, len(self.left)))]
        )
        self.inbox.put({"requests": some})


def ids(requests: list[Request]) -> list[int]:
    return [int(request.id) for request in requests]


@given(
    total=st.integers(0, 60),
    sizes=st.lists(st.integers(0, 12), max_size=30),
    script=st.lists(st.one_of(st.integers(1, 10), st.none()), max_size=20),
    ahead=st.booleans(),
)
def test_each_request_comes_once_and_in_order(
    total: int, sizes: list[int], script: list[int | None], ahead: bool
) -> None:
    feed = PipeFeed(Daemon(total, script), total, ahead)  # type: ignore[arg-type]
    taken: list[int] = []
    for size in sizes:
        some = ids(feed.take(size))
        assert len(some) <= size
        taken += some
    while some := ids(feed.take(7, wait=True)):
        taken += some
    assert taken == list(range(total))


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_whole_whoever_asks_ahead(ahead: bool) -> None:
    """So that the same requests make the same batches, and a machine far away computes what one here does."""
    daemon = Daemon(100, [])
    feed = PipeFeed(daemon, 100, ahead)  # type: ignore[arg-type]
    assert [len(feed.take(size)) for size in (32, 3, 1, 0, 8, 32, 32)] == [32, 3, 1, 0, 8, 32, 24]


def test_from_another_machine_what_is_wanted_next_is_there_already() -> None:
    """The engine waits for one answer, its first."""
    daemon = Daemon(100, [])
    feed = PipeFeed(daemon, 100, ahead=True)  # type: ignore[arg-type]
    assert len(feed.take(32)) == 32 and len(feed.kept) == 8
    waits = []
    for _ in range(20):
        before = len(feed.kept) + daemon.inbox.qsize()
        feed.take(2)
        waits.append(before == 0)
    assert not any(waits)
