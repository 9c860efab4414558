"""The daemon's side of a worker: it starts the child process, sends commands, reads answers, and ends the whole tree.

It imports no torch and stays small whatever the child does. The child's own side is `loop.workers.child`, which builds the
engine; `loop.workers.frames` says how the two talk, `loop.workers.liveness` when a silent child has had time enough, and
`loop.system.trees` how its processes end.
"""

from __future__ import annotations

import itertools
import math
import secrets
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from loop.engines.base import (
    CheckpointRef,
    Forced,
    Generated,
    Kept,
    Meeting,
    Probed,
    Progress,
    Request,
    SamplingParams,
    Tell,
    TrainingResult,
)
from loop.engines.feed import Feed, feed_of
from loop.errors import ConfigError, EngineError, LeftTraining, LostEngine, StalledError
from loop.system import ourselves, trees
from loop.workers.frames import MAX_FRAME_BYTES, MAX_FRAMES_PER_S, BadFrame, FrameRate, decode_body, encode_frame
from loop.workers.liveness import StallWatch
from loop.workers.process import LocalProcess, Process, Starter, cut_log, set_log_aside, variables

HEARTBEAT_TIMEOUT_S = 120.0  # a child that neither says nor does anything for this long was stopped from outside
LONGEST_TEXT = 1000  # characters of what a worker says by the way
LOOK_S = 1.0  # at most this long a wait for a worker lasts before log, pulse and patience are looked at
MOST_AT_ONCE = 1024  # requests in one message; a worker that wants more asks again
IDLE_REPORTS = 1000  # reports in a row that count as progress although no more is done than before
LESS_MEMORY = {  # by tag
    "sampler": "lower engine.batch_size",
    "trainer": "lower training.micro_batch_size",
    "grader": "give its node fewer cores (ray start --num-cpus)",
}
# The remedy for messages that no child of this version sends.
OTHER_VERSION = "if the package was upgraded while the daemon ran, restart the daemon"


Answer = TypeVar("Answer", Generated, Probed)
Question = TypeVar("Question", Request, Forced)


class Worker:
    """A running child process. Use from the thread that created it: it ends when that thread does.

    One call at a time. A call that is given up before its result (an abandoned iterator, an exception in between) ends
    the worker, so that no answer can be taken for another's. `pulse` is called with every message and at least once a
    second while the worker is waited for; what it raises ends the worker, too. `stalled` is called when the worker is
    ended for want of progress; `note`, with what it says that the user should know. `has_gpu`: whether the worker may compute
    on a GPU, so that a busy GPU is a sign of its work. `start` starts its process, here unless it is another's.
    `init`, the first command, and all others are JSON, in which the values of `loop.engines.base` may stand.
    """

    def __init__(
        self,
        init: dict[str, Any],
        *,
        log_file: Path,
        stall_timeout_s: float,
        progress: Progress,
        pulse: Callable[[], None] = lambda: None,
        stalled: Callable[[], None] = lambda: None,
        note: Tell = lambda text: None,
        tag: str = "worker",
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        has_gpu: bool = True,
        start: Starter = LocalProcess,
    ) -> None:
        self.tag, self.log_file = tag, log_file
        self.progress, self.pulse, self.stalled, self.note = progress, pulse, stalled, note
        self.waits = ""  # what it says that it waits for
        self.token = secrets.token_hex(16)
        self._buffer = bytearray()
        self._call, self._busy = 0, False
        self.ended = False  # it takes no more calls then
        self._waited_s, self._looked_at_s = 0.0, time.monotonic()
        own = variables(self.token) | dict(environment or {})
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            set_log_aside(log_file)
            self.process: Process = start(command or ourselves.command("loop.workers.child"), own, log_file, has_gpu)
        except OSError as error:
            raise EngineError(
                f"{tag}: cannot be started: {error}; this user must be able to start it and to write {log_file}"
            ) from error
        self._commands, self._answers = self.process.stdin, self.process.stdout
        try:
            self.patience = StallWatch(
                stall_timeout_s, heartbeat_timeout_s, self._clock, self.process.used, self.process.is_gpu_busy
            )
            self.info = self.call(init)
            self.process.beats({})  # it lives, also where its heart has not beaten yet
        except BaseException:
            self.end()
            raise

    def call(self, message: dict[str, Any]) -> Any:
        """Send a command that is answered by a result alone, and return it. See `stream`."""
        kind, value = next(self.stream(message))
        if kind != "result":
            raise self.broken("it sent completions that were not asked for")
        return value

    def stream(
        self,
        message: dict[str, Any],
        idle_reports: int = IDLE_REPORTS,
        more: Callable[[int], Sequence[Any] | None] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Send a command; yield ("items", list) as they come and at last ("result", value).

        `more` answers a worker that wants at most so many requests: with some, or with none when there will be no more.
        Where it answers None, the worker is told so, and `more` is asked again with each message that comes, hence at every
        beat of the worker's heart.

        A list of items is progress, and so is a report that more is done than ever in this call. Reports that show no more
        count for as long as there are at most `idle_reports` in a row: a long completion is in the making, but not for ever.

        EngineError when the child dies, stalls (StalledError) or talks nonsense, and it is ended then. What the child
        itself reports is raised as EngineError or ConfigError; where it is LostEngine, the child is ended as well.
        """
        if self._busy:
            raise self.broken("the call before was given up half-way", "start another")
        self._check_not_ended()
        self._busy = True
        self._call += 1
        most_done, num_idle, num_wanted, rate, self.waits = -1, 0, 0, FrameRate(), ""
        try:
            self.patience.advanced()
            self._send(message | {"call": self._call})
            while True:
                frame, num_bytes = self._receive()
                self.pulse()
                match frame:
                    case {"type": "heartbeat"}:
                        self.process.beats(frame)
                    case _ if frame.get("call") != self._call:
                        raise self.broken("it answered a call that was not made")
                    case {"type": "progress", "done": int(done), "total": int(total)} if 0 <= done <= total < 2**53:
                        num_idle = 0 if done > most_done else num_idle + 1
                        most_done = max(done, most_done)
                        if num_idle <= idle_reports:
                            self.patience.advanced()
                        self.progress(done, total)
                    case {"type": "note" | "waits" as kind, "text": str(text)}:
                        self._told(kind, text[:LONGEST_TEXT])
                    case {"type": "items", "items": [_, *_] as items}:
                        yield "items", items
                        items.clear()  # the next ones are read into free memory
                        num_idle = 0
                        self.patience.advanced()
                    case {"type": "want", "num": int(num)} if more and not num_wanted and 0 < num < 2**53:
                        num_wanted = num
                    case {"type": "result", "value": value}:
                        self._busy = False
                        yield "result", value
                        return
                    case {"type": "error", "kind": str(kind), "message": str(reason)}:
                        self._busy = False
                        raise self._reported(kind, reason)
                    case _:
                        raise self.broken(f"it sent a message of unknown type {str(frame.get('type'))[:40]!r}")
                if more and num_wanted:
                    requests = self._hand_out(more, num_wanted, frame["type"] == "want")
                    if requests is not None:
                        num_wanted, more = 0, more if requests else None
                if frame["type"] in ("items", "want"):  # there are no more of them than requests
                    continue
                if rate.is_too_high(num_bytes):
                    raise self.broken(f"it sent more than {MAX_FRAMES_PER_S} messages within a second")
        finally:
            if self._busy:
                self.end()

    def _told(self, kind: str, text: str) -> None:
        """What the worker says by the way: for the user, or for what it waits."""
        if kind == "note":
            self.note(text)
        else:
            self.waits = text

    def _hand_out(self, more: Callable[[int], Sequence[Any] | None], num: int, is_asked: bool) -> Sequence[Any] | None:
        """Send what `more` has for a worker that wants so many; that there is nothing now only if it `is_asked`."""
        requests = more(min(num, MOST_AT_ONCE))
        if requests is not None or is_asked:
            self._send({"op": "more", "call": self._call, "requests": requests})
        return requests

    def _reported(self, kind: str, reason: str) -> Exception:
        if kind == "ConfigError":
            return ConfigError(reason)
        if kind == "LeftTraining":
            return LeftTraining(reason)
        if kind == "LostEngine":
            self.end()
            return LostEngine(reason)
        if kind != "unexpected":
            return EngineError(reason)
        remedy = f"; {self._less_memory()}" if "memory" in reason.lower() else ""
        return EngineError(f"{self.tag}: {reason}{remedy}; see {self.log_file}")

    def _less_memory(self) -> str:
        either = f"{LESS_MEMORY['sampler']} or {LESS_MEMORY['trainer']}"
        return LESS_MEMORY.get(self.tag.partition("-")[0], either)

    def _clock(self) -> float:
        """Seconds of waiting for the worker, without those in which this process was stopped or busy elsewhere."""
        now = time.monotonic()
        self._waited_s += min(now - self._looked_at_s, 2 * LOOK_S)
        self._looked_at_s = now
        return self._waited_s

    def _send(self, message: dict[str, Any]) -> None:
        left = memoryview(encode_frame(message))
        while left:
            if select.select([], [self._commands], [], min(LOOK_S, self.patience.window_s))[1]:
                try:
                    left = left[self._commands.write(left[: select.PIPE_BUF]) :]  # this much never blocks
                except OSError:
                    raise self._died() from None
                self.patience.heard()
                continue
            self._look_around("it read no command for")

    def _check_not_ended(self) -> None:
        if self.ended:
            raise EngineError(f"{self.tag}: it was ended; start another; see {self.log_file}")

    def _receive(self) -> tuple[dict[str, Any], int]:
        """The next message, and its size."""
        self._check_not_ended()
        (length,) = struct.unpack(">I", self._read(4))
        if length > MAX_FRAME_BYTES:
            raise self.broken(f"it announced a message of {length} bytes")
        try:
            return decode_body(self._read(length)), length
        except BadFrame as bad:
            raise self.broken(f"it sent a message that {bad}") from None

    def _read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if select.select([self._answers], [], [], min(LOOK_S, self.patience.window_s))[0]:
                chunk = self._answers.read(1 << 16)
                if not chunk:
                    raise self._died()
                self._buffer += chunk
                self.patience.heard()
            elif self.process.poll() is not None:  # the child is dead, but another process holds its end of the pipe
                raise self._died()
            self._look_around("nothing was heard from it for")
        with memoryview(self._buffer) as view:
            head = bytes(view[:count])
        del self._buffer[:count]
        return head

    def _look_around(self, silence: str) -> None:
        """Look at the log, tell the onlooker, and end a worker that had its time without progress or a sign of life.

        StalledError or EngineError then. `silence`: how the message about a missing sign of life begins.
        """
        cut_log(self.log_file)
        self.pulse()
        self.patience.look()
        if why := self.patience.exhausted:
            self.stalled()
            self.end()
            waits = self.waits and f"; {self.waits}"
            raise StalledError(
                f"{self.tag}: {why} and was ended{waits}; if it is only slow, raise engine.stall_timeout_s; see {self.log_file}"
            )
        if self.patience.is_silent:
            remedy = "something stopped it, or the machine has no time or memory for it"
            raise self.broken(f"{silence} {self.patience.silence_s:g} s", remedy)

    def broken(self, why: str, remedy: str = OTHER_VERSION) -> EngineError:
        """End a worker that cannot be trusted any more; the error to raise."""
        self.end()
        return EngineError(f"{self.tag}: {why} and was ended; {remedy}; see {self.log_file}")

    def _died(self) -> EngineError:
        try:
            code = self.process.wait(timeout=trees.END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self.broken("it closed its pipe")
        self.end()
        if self.process.why:
            return EngineError(f"{self.tag}: {self.process.why}; see {self.log_file}")
        number = -code if code < 0 else max(0, code - 128)  # 128 + n: the guard says that signal n ended the engine
        if number == signal.SIGKILL:
            return EngineError(
                f"{self.tag}: it was killed (out of memory?); {self._less_memory()}, or see {self.log_file}"
            )
        how = f"by signal {number}" if number else f"with exit code {code}"
        return EngineError(f"{self.tag}: it ended {how}; its last words are in its log; see {self.log_file}")

    def end(self) -> None:
        """End the whole process tree; nothing of it is left when this returns. Safe to repeat.

        EngineError if the kernel does not let go of a process.
        """
        self._busy = False
        if self.ended:
            return
        if stuck := self.process.end(self.token):
            raise EngineError(
                f"{self.tag}: even SIGKILL does not end its processes {', '.join(map(str, stuck))}; they wait for a "
                f"device or a disk: restart the machine if they stay; see {self.log_file}"
            )
        self.ended = True
        self._commands.close()
        self._answers.close()
        cut_log(self.log_file)


class _Asked(Generic[Question]):
    """What a worker is asked for in one call. `missing`: what it has and did not answer yet, by id."""

    def __init__(self, feed: Feed[Question]) -> None:
        self.feed: Feed[Question] = feed
        self.num_taken, self.is_over = 0, False
        self.missing: dict[str, Question] = {}

    def more(self, num: int) -> Sequence[Question] | None:
        """At most so many more for the worker, as `Worker.stream` wants it: none if there are no more.

        Where other engines share the feed, one may leave some, until the worker has answered all that it has.
        """
        taken = self.feed.take(num, wait=not self.missing)
        self.num_taken += len(taken)
        self.missing.update((question.id, question) for question in taken)
        self.is_over = not taken and (not self.missing or self.num_taken == self.feed.total)
        return taken if taken or self.is_over else None


class RemoteSampler:
    """A Sampler and a Prober whose one model lives in a child process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        match worker.info:
            case {"tokenizer_sha256": str(sha256)}:
                self.tokenizer_sha256 = sha256
            case _:
                raise worker.broken("it did not name its tokenizer")

    @property
    def ended(self) -> bool:
        """Whether it was ended; it takes no more calls then."""
        return self.worker.ended

    def change(self, checkpoint: CheckpointRef) -> bool:
        match self.worker.call({"op": "change_weights", "checkpoint": checkpoint}):
            case {"changed": bool(changed), "tokenizer_sha256": str(sha256)}:
                self.tokenizer_sha256 = sha256
                return changed
        raise self.worker.broken("it did not say whether it serves other weights")

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        asked = _Asked(feed_of(requests))
        message = {"op": "generate", "total": asked.feed.total, "params": params}
        # While no completion is finished, all that are in the making grow by a token between two reports.
        return self._answers(message, asked, Generated, "completion", params.max_new_tokens)

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        message = {"op": "probe", "texts": list(texts), "truncation": truncation, "top": top}
        longest = max((len(text.prompt_token_ids) + len(text.token_ids) for text in texts), default=0)
        asked = _Asked(feed_of(texts))
        asked.more(len(texts))
        asked.is_over = True  # they all go with the command
        return self._answers(message, asked, Probed, "record", longest)

    def _answers(
        self, message: dict[str, Any], asked: _Asked[Any], kind: type[Answer], noun: str, idle_reports: int
    ) -> Iterator[list[Answer]]:
        """Lists of answers as they come, exactly one for each that was asked. A worker that sends anything else is ended."""
        more = None if asked.is_over else asked.more
        for event, value in self.worker.stream(message, idle_reports + IDLE_REPORTS, more):
            if event != "items":
                continue
            try:
                answers = [kind.model_validate(item) for item in value]
            except ValueError:
                raise self.worker.broken(f"it sent a malformed {noun}") from None
            for answer in answers:
                question = asked.missing.pop(answer.id, None)
                if question is None:
                    raise self.worker.broken(f"it sent a {noun} that was not asked for, or twice")
                if isinstance(answer, Probed) and not _fits(answer, question):
                    raise self.worker.broken(f"it sent a {noun} that does not fit its text")
            yield answers
        if asked.missing or not asked.is_over:
            raise self.worker.broken(f"it left out some of {asked.feed.total} {noun}s")

    def close(self) -> None:
        self.worker.end()


def _fits(record: Probed, text: Forced) -> bool:
    """Whether a record has an entry for every token of its text and holds no infinite number or NaN."""
    columns = [getattr(record, name) for name in Probed.model_fields if name != "id"]
    lengths = {len(column) for column in columns}
    numbers = (*record.entropy, *record.top_probability, *record.rest, *itertools.chain(*record.logprobs))
    return (
        lengths == {len(text.token_ids)}
        and (text.at is None or record.at == text.at)
        and all(len(ids) == len(values) for ids, values in zip(record.at, record.logprobs, strict=True))
        and all(map(math.isfinite, numbers))
    )


class RemoteTrainer:
    """A Trainer that works in a child process. Where `is_called_away` says so, a training that can is asked to end."""

    def __init__(self, worker: Worker, is_called_away: Callable[[], bool] = lambda: False) -> None:
        self.worker, self.is_called_away = worker, is_called_away
        self._training: Kept | None = None
        self._pulse, worker.pulse = worker.pulse, self._look_around

    def _look_around(self) -> None:
        self._pulse()
        if self._training is not None and self.is_called_away():
            self._training.ask_to_end()
            self._training = None

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
        meeting: Meeting | None = None,
    ) -> TrainingResult:
        message = {"op": "fit", "rows_file": rows_file, "parent": parent, "settings": settings, "out_dir": out_dir}
        self._training = kept
        try:
            return TrainingResult.model_validate(self.worker.call(message | {"kept": kept, "meeting": meeting}))
        except ValueError:
            raise self.worker.broken("it sent a malformed training result") from None
        finally:
            self._training = None

    def close(self) -> None:
        self.worker.end()


if __name__ == "__main__":  # a daemon of an older version starts its workers so; this line is in their log
    raise SystemExit("the package was upgraded while the daemon ran; restart the daemon")
