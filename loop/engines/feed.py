"""How an engine gets its requests: piece by piece while it runs, so that it never drains before the last one is given out.

Nothing here knows who asks or answers: `loop.workers.child` takes from a pipe, `loop.workers.pool` shares one feed among
engines, and a list of requests is a feed as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

# Requests that wait inside an engine which queues them itself, so that it need not wait for an answer when rows finish: a
# quarter of those that it computes, within these bounds. What waits in one engine cannot be given to another.
MIN_SPARE, MAX_SPARE = 4, 32


class Feed(ABC, Generic[T]):
    """The requests of one call. `total`: how many the whole call has, among all engines that share it."""

    total: int

    @abstractmethod
    def take(self, num: int, wait: bool = False) -> Sequence[T]:
        """At most `num` more requests, in order. None, without waiting, may mean that there are none at the moment.

        `wait`: the engine has answered all that it took. None means then that the call is over.
        """

    def __iter__(self) -> Iterator[T]:
        """One request after the other, for an engine that answers each before it asks for the next."""
        while taken := self.take(1, wait=True):
            yield from taken


class Listed(Feed[T]):
    """A feed of `total` requests that come from an iterable, which is asked for no more than was taken."""

    def __init__(self, requests: Iterable[T], total: int) -> None:
        self.total = total
        self._left = iter(requests)

    def take(self, num: int, wait: bool = False) -> list[T]:
        return list(islice(self._left, max(0, num)))


def feed_of(requests: Feed[T] | Sequence[T]) -> Feed[T]:
    """A feed as it is, or one of these requests in their order."""
    return Listed(requests, len(requests)) if isinstance(requests, Sequence) else requests


def spare(num_running: int) -> int:
    """How many requests should wait beside so many that are computed."""
    return min(MAX_SPARE, max(MIN_SPARE, num_running // 4))


def room(num_running: int, num_inside: int) -> int:
    """How many requests an engine should take now that computes `num_running` of the `num_inside` it has.

    0 until half of its spare ones are gone: each message brings several.
    """
    free = num_running + spare(num_running) - num_inside
    return free if 2 * free >= spare(num_running) else 0
