"""The page as it is now, made once for all readers, and the news that it has changed.

A look is cheap and happens every half second while somebody listens. A page is made only when a look has seen a change, for
the first reader who asks for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import html
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from loop.errors import LoopError
from loop.serve.sources import Mark, Source
from loop.words import safe
from store.errors import NoStore, StoreError
from store.records import Json

LOOK_EVERY_S = 0.5
PULSE_EVERY_S = 2.0  # at least this long between two pages that differ in progress alone
SHARE = 0.1  # of one core's time that such pages take at most
KEEP_ALIVE_S = 15.0
T = TypeVar("T")


class CannotShow(Exception):
    """There is nothing to show now; the text says why."""


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises, from a thread that ends with the process, however long it takes."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # from now on a reader who is gone cannot cancel it

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="serve", daemon=True).start()
    return await asyncio.wrap_future(outcome)


class Live:
    """One source for any number of readers. Everything but the work in threads happens in one event loop."""

    def __init__(
        self, source: Source, forms: Mapping[str, Callable[[Json], str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`forms`: functions that make HTML of the source's facts, by name. `clock` gives seconds."""
        self.source, self.forms, self.clock = source, forms, clock
        self.version = 0
        self.num_listeners = 0
        self._mark: Mark | None = None
        self._changed_at = 0.0  # by the clock, when the version last changed
        self._took_s = 0.0
        self._news = asyncio.Condition()
        self._closed = False
        self._making = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._facts: tuple[int, Json] | None = None  # of which version
        self._made: dict[str, bytes] = {}  # of these facts

    async def look(self) -> None:
        """See whether something has changed, and tell those who listen."""
        async with self._looking:
            mark = await in_thread(self.source.mark)
            before, now = self._mark, self.clock()
            if before == mark:
                return
            wait = self._took_s  # so that a large store is not read without end
            if before and before.history == mark.history:
                wait = max(PULSE_EVERY_S, self._took_s / SHARE)
            if before and now - self._changed_at < wait:
                return
            self._mark, self._changed_at = mark, now
            self.version += 1
        async with self._news:
            self._news.notify_all()

    async def watch(self) -> None:
        """Look again and again while somebody listens; until it is cancelled."""
        while True:
            if self.num_listeners:
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def html(self, form: str) -> bytes:
        """The current page in this form. CannotShow where there is none; any other error of the source is a bug of ours."""
        await self.look()
        async with self._making:
            begun = self.clock()
            if self._facts is None or self._facts[0] != self.version:
                version, self._made = self.version, {}
                try:
                    self._facts = (version, await in_thread(self.source.facts))
                except (LoopError, StoreError, OSError) as error:
                    self._facts = None
                    raise CannotShow(in_words(error)) from error
                self._took_s = 0.0
            if form not in self._made:
                facts = self._facts[1]
                self._made[form] = (await in_thread(lambda: self.forms[form](facts))).encode(errors="replace")
                self._took_s += self.clock() - begun
            return self._made[form]

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: one at once, one for each change, comments in between. Ends when it is closed."""
        self.num_listeners += 1
        try:
            seen = -1
            while not self._closed:
                if seen != self.version:
                    seen = self.version
                    yield f"id: {seen}\nretry: 1000\ndata: {seen}\n\n"
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S), self._news:
                        await self._news.wait_for(lambda: self._closed or self.version != seen)  # noqa: B023
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self.num_listeners -= 1

    async def close(self) -> None:
        """End all streams."""
        self._closed = True
        async with self._news:
            self._news.notify_all()


def in_words(error: Exception) -> str:
    """Why there is nothing to show, and what would help."""
    if isinstance(error, NoStore):
        return "no run here yet; start one with `loopctl run`"
    return safe(str(error) or type(error).__name__)


def waiting_page(why: str) -> str:
    """The page while there is nothing to show. It reloads itself."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>loopctl serve</title></head>\n<body><main><p>{html.escape(why)}</p></main></body></html>\n"
    )
