"""Several sampling engines as one: each in a worker of its own, with its own GPUs; a free engine takes the next work.

A worker may be used only from the thread that created it, so each has a thread that lives as long as the pool. These
threads take requests from one feed while their engines run, and put finished lists into a bounded queue. The caller's
thread empties the queue, and it alone calls `progress`, `pulse` and `note`. What an engine that dies had not finished goes
to the others; the engine is started again with the next weights.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from loop.engines.base import CheckpointRef, Forced, Generated, Probed, Progress, Request, SamplingParams
from loop.engines.feed import Feed, feed_of
from loop.errors import EngineError, LostEngine
from loop.workers.worker import LOOK_S, RemoteSampler

Pulse = Callable[[], None]
PROBED_AT_ONCE = 32  # texts that an engine takes at a time
ENDED = "sampler: its engines were ended; start others"
Start = Callable[[CheckpointRef, Pulse], RemoteSampler]  # called in the engine's own thread


class _GivenUp(Exception):
    """Raised inside a call to a worker when the pool is closed meanwhile."""


class _Work:
    """The requests of one call, as several engines take them from one feed, each while it runs.

    An engine has at most its share of all that is unfinished. So nothing limits it as long as much is left, and near the end
    the pieces get small and all engines have equally many. What an engine that dies has not finished is taken first.
    """

    def __init__(self, feed: Feed[Any], num_engines: int) -> None:
        self.feed, self.num_engines = feed, num_engines
        self.num_left, self.num_held = feed.total, 0  # that no engine has; that engines have
        self.given_back: deque[Any] = deque()
        self.closed = False
        self.changed = threading.Condition()

    def is_more(self, has_turn: Callable[[], bool] = lambda: True) -> bool:
        """Whether there is something to take. Waits while engines have requests: one may die and leave them.

        Waits for a turn as well, which an engine may get when another dies.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.closed or (has_turn() if self.num_left else not self.num_held))
            return bool(self.num_left) and not self.closed

    def take(self, num: int, num_own: int) -> list[Any]:
        """At most `num` requests for an engine that has `num_own`."""
        with self.changed:
            share = -(-(self.num_left + self.num_held) // self.num_engines)
            num = 0 if self.closed else max(0, min(num, share - num_own, self.num_left))
            taken = [self.given_back.popleft() for _ in range(min(num, len(self.given_back)))]
            if len(taken) < num:
                taken += self.feed.take(num - len(taken))
            assert len(taken) == num, "the feed has fewer requests than it said"
            self.num_left -= num
            self.num_held += num
            return taken

    def finish(self, num: int) -> None:
        """So many of those that engines have are done."""
        with self.changed:
            self.num_held -= num
            if not self.num_held:
                self.changed.notify_all()

    def give_back(self, requests: Collection[Any]) -> None:
        """An engine has died, and these were not done."""
        with self.changed:
            self.given_back.extendleft(reversed([*requests]))
            self.num_left += len(requests)
            self.num_held -= len(requests)
            self.num_engines -= 1
            self.changed.notify_all()

    def close(self) -> None:
        """Hand out nothing more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class _Share(Feed[Any]):
    """What one engine gets of the work in one call: a feed. `missing`: what it has and did not finish yet, by id."""

    def __init__(self, work: _Work) -> None:
        self.work, self.total = work, work.feed.total
        self.missing: dict[str, Any] = {}

    def take(self, num: int, wait: bool = False) -> list[Any]:
        taken = self.work.take(num, len(self.missing))
        self.missing.update((request.id, request) for request in taken)
        return taken

    def finish(self, answers: Sequence[Any]) -> None:
        """The engine has given these answers."""
        for answer in answers:
            del self.missing[answer.id]
        self.work.finish(len(answers))


class _Member:
    """One engine, and the thread in which it lives. `sampler` is None while no worker runs; only the thread sets it."""

    def __init__(self, number: int, start: Start) -> None:
        self.start = start
        self.sampler: RemoteSampler | None = None
        self.thread = ThreadPoolExecutor(1, f"sampler-{number}")

    def close(self) -> None:
        sampler, self.sampler = self.sampler, None
        if sampler:
            sampler.close()


class Pool:
    """A Sampler and a Prober over several engines with the same weights; the first `num_probing` that live probe.

    Use from one thread, one call at a time. As with one worker, a call that is given up half-way ends all engines.
    EngineError when no engine is left, or what a living one reports about a request. One that cannot be started is an
    EngineError the first time, but not where what it asks elsewhere is gone (LostEngine): the others do without it.
    """

    def __init__(
        self,
        starts: Sequence[Start],
        checkpoint: CheckpointRef,
        *,
        progress: Progress,
        pulse: Pulse,
        note: Callable[[str], None],
        num_probing: int | None = None,
    ) -> None:
        self.progress, self.pulse, self.note = progress, pulse, note
        self.num_probing = num_probing or len(starts)
        self.tokenizer_sha256 = ""
        self._stopped = threading.Event()
        self._calling = False
        self._work: _Work | None = None
        self._dead: EngineError | None = None  # why the engine that died last has died
        self._out: queue.Queue[Any] = queue.Queue(2 * len(starts))
        self._members = [_Member(number, start) for number, start in enumerate(starts, 1)]
        self._closing: list[Future[None]] = []
        try:
            self.change(checkpoint)
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether no engine is left that could be asked."""
        return self._stopped.is_set() or not any(member.sampler for member in self._members)

    def _goes_on(self) -> bool:
        """Whether an engine lives that takes over what another had. All die of one cause where a cluster is lost."""
        samplers = [member.sampler for member in self._members]
        return not self.ended and any(each and each.worker.process.poll() is None for each in samplers)

    def change(self, checkpoint: CheckpointRef) -> bool:
        """See `Sampler.change`. All engines change at once; those that died are started again."""
        answers: list[bool] = []
        first = not self.tokenizer_sha256
        if not first:
            self._check_not_ended()

        def job(member: _Member) -> None:
            try:
                if member.sampler:
                    answers.append(member.sampler.change(checkpoint))
                    return
            except EngineError as error:
                if member.sampler and not member.sampler.ended:
                    raise
                self._bury(member, error)
                if isinstance(error, LostEngine):  # so would be another
                    return
            try:
                member.sampler = member.start(checkpoint, self._check)
                answers.append(True)
            except EngineError as error:
                if first and not isinstance(error, LostEngine):
                    raise
                self._bury(member, error)

        for _ in self._all(job, hasty=first):
            raise AssertionError("nothing is generated here")
        if not answers:
            raise self._dead or EngineError(ENDED)
        self.tokenizer_sha256 = next(member.sampler.tokenizer_sha256 for member in self._members if member.sampler)
        return all(answers)

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        return self._share(feed_of(requests), lambda sampler, share: sampler.generate(share, params))

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        def ask(sampler: RemoteSampler, share: _Share) -> Iterator[list[Probed]]:
            while some := share.take(PROBED_AT_ONCE):
                yield from sampler.probe(some, truncation, top)

        return self._share(feed_of(texts), ask, self.num_probing)

    def _share(
        self,
        asked: Feed[Any],
        ask: Callable[[RemoteSampler, _Share], Iterator[list[Any]]],
        num_working: int | None = None,
    ) -> Iterator[Any]:
        self._check_not_ended()
        work = _Work(asked, sum(bool(member.sampler) for member in self._members))

        def job(member: _Member) -> None:
            def has_turn() -> bool:
                return member in [each for each in self._members if each.sampler][:num_working]

            while member.sampler and work.is_more(has_turn):
                share = _Share(work)
                try:
                    for batch in ask(member.sampler, share):
                        share.finish(batch)
                        self._put(batch)
                except BaseException as error:
                    if not isinstance(error, EngineError) or not member.sampler.ended:
                        work.close()  # a request is at fault, not the engine; or the pool is closed
                        raise
                    self._bury(member, error)
                    work.give_back(share.missing.values())

        num_done = 0
        for batch in self._all(job, work):
            num_done += len(batch)
            self.progress(num_done, asked.total)
            yield batch
        if num_done < asked.total:
            raise self._dead or EngineError(ENDED)

    def _all(self, job: Callable[[_Member], None], work: _Work | None = None, hasty: bool = False) -> Iterator[Any]:
        """Do a job in every thread and yield the lists that they put out. What a job raised is raised when all are done, or
        at once when `hasty`."""
        if self._calling:
            self.close()
            raise EngineError("sampler: the call before was given up half-way and its engines were ended; start others")
        self._calling, self._work = True, work
        failed: list[BaseException] = []
        untold: list[EngineError] = []  # deaths; the last engine's is raised in place of told
        num_busy = len(self._members)
        try:
            for member in self._members:
                member.thread.submit(self._put, member.thread.submit(job, member))
            while num_busy and not self._stopped.is_set() and not (hasty and failed):
                try:
                    out = self._out.get(timeout=LOOK_S)
                except queue.Empty:
                    out = None
                self.pulse()
                if isinstance(out, Future):
                    num_busy -= 1
                    if error := out.exception():
                        failed.append(error)
                elif isinstance(out, EngineError):
                    self._dead = out
                    untold.append(out)
                while untold and self._goes_on():
                    told = "the other engines take over its work; it is started again when the weights change"
                    self.note(f"{untold.pop(0)}; {told}")
                if isinstance(out, list):
                    yield out
            if failed:
                raise failed[0]
        except BaseException:
            if num_busy:
                self.close()
            raise
        finally:
            self._calling, self._work = False, None

    def _put(self, out: list[Any] | EngineError | Future[None]) -> None:
        """Give the caller's thread a list, an engine's death or a job that is done. Waits for room until the pool closes."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self._out.put(out, timeout=LOOK_S / 10)

    def _bury(self, member: _Member, error: EngineError) -> None:
        member.sampler = None
        self._put(error)

    def _check(self) -> None:
        """The pulse of every worker: raises where the pool is closed."""
        if self._stopped.is_set():
            raise _GivenUp

    def _check_not_ended(self) -> None:
        if self.ended:
            raise EngineError(ENDED)

    def close(self) -> None:
        """End every engine, whatever it does. Safe to repeat. EngineError if the kernel does not let go of one."""
        if not self._stopped.is_set():
            self._stopped.set()
            if self._work:
                self._work.close()
            self._closing = [member.thread.submit(member.close) for member in self._members]
        for member in self._members:
            member.thread.shutdown()
        for closing in self._closing:
            closing.result()
