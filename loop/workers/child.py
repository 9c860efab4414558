"""The worker itself, `python -m loop.workers.child`: it builds an engine, answers one command at a time, and beats.

No engine is built anywhere else. This side runs inside the child process, never touches the store, and sends plain values;
the daemon's side is `loop.workers.worker`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import BaseModel

from loop.config.samplers import sampler_kind
from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Forced,
    Kept,
    Meeting,
    Progress,
    Request,
    SamplingParams,
    Tell,
    TrainingPass,
)
from loop.engines.fake import FakeTrainer
from loop.engines.feed import Feed, spare
from loop.engines.lossy_log import make_log_lossy
from loop.errors import EngineError, LoopError, LostEngine
from loop.system.gpus import is_any_busy
from loop.system.trees import guard
from loop.workers.frames import BadFrame, check_size, encode_frame, pieces, receive_frame
from loop.workers.liveness import used_by
from loop.workers.process import ELSEWHERE

if TYPE_CHECKING:
    from loop.grading.grader import Job

HEARTBEAT_S = 1.0
MIN_REPORT_S = 0.1  # between two reports of progress
FROM_AFAR_S = 3.0  # the same, and between two heartbeats, from another machine: one process passes on those of hundreds of engines


class Child:
    """Answers commands one at a time."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers = commands, answers
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.call = 0
        self.engine: Any = None
        self.reported_at = 0.0
        self.reported = (-1, -1)
        self.is_elsewhere = ELSEWHERE in os.environ
        self.report_s, self.heartbeat_s = (FROM_AFAR_S,) * 2 if self.is_elsewhere else (MIN_REPORT_S, HEARTBEAT_S)

    def send(self, **message: Any) -> None:
        """Send a message. BadFrame, and nothing sent, where the daemon would refuse it."""
        frame = encode_frame(message | {"call": self.call})
        check_size(frame[4:])
        with self.lock:
            self.answers.write(frame)
            self.answers.flush()

    def progress(self, done: int, total: int) -> None:
        """Report progress: at most every `report_s`, and always the last time."""
        now = time.monotonic()
        if now - self.reported_at >= self.report_s or (done >= total and (done, total) != self.reported):
            self.reported_at, self.reported = now, (done, total)
            self.send(type="progress", done=done, total=total)

    def note(self, text: str) -> None:
        """Say what the user should know; an empty text takes it back."""
        self.send(type="note", text=text)

    def waits(self, text: str) -> None:
        """Say what a call waits for that makes no progress, in case that it is ended for it."""
        self.send(type="waits", text=text)

    def items(self, batch: Sequence[BaseModel]) -> None:
        """Send a batch of completions, records or verdicts, in as many frames as it takes. EngineError for one that fits no frame."""
        for piece in pieces(item.model_dump(mode="json") for item in batch):
            try:
                self.send(type="items", items=piece)
            except BadFrame as too_large:
                item = piece[0]  # the only one: a piece of several is never too large
                if "entropy" in item:
                    what = f"a record of {len(item['entropy'])} positions"
                    keys = "diagnosis.top or diagnosis.max_new_tokens"
                else:
                    what = f"a completion of {len(item['token_ids'])} tokens and {len(item['text'])} characters"
                    keys = "max_new_tokens"
                raise EngineError(f"{what} cannot be sent: its message {too_large}; lower {keys}") from None

    def heartbeat(self) -> None:
        """Beat, and say what is used where the daemon cannot look for itself."""
        while True:
            time.sleep(self.heartbeat_s)
            use = (
                {
                    "use": {
                        "used": used_by(os.getpid()),
                        "is_gpu_busy": is_any_busy(os.environ.get("CUDA_VISIBLE_DEVICES")),
                    }
                }
                if self.is_elsewhere
                else {}
            )
            try:
                self.send(type="heartbeat", **use)
            except OSError:
                os._exit(1)  # the daemon is gone

    def read(self) -> None:
        """Read whatever the daemon sends, at once: it must never wait for a child that itself waits to be read."""
        while (message := receive_frame(self.commands)) is not None:
            self.inbox.put(message)
        self.inbox.put(None)

    def run(self) -> None:
        for always in (self.heartbeat, self.read):
            threading.Thread(target=always, daemon=True).start()
        while (command := self.inbox.get()) is not None:
            if command["op"] == "more":
                continue  # for a call that has failed meanwhile
            self.call = command["call"]
            self.reported_at, self.reported = 0.0, (-1, -1)  # the first report never waits behind the call before
            try:
                self.send(type="result", value=self.answer(command))
            except LoopError as error:
                kind = "LostEngine" if isinstance(error, LostEngine) else type(error).__name__
                self.send(type="error", kind=kind, message=str(error)[:4000])
            except Exception as error:
                traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0]
                self.send(type="error", kind="unexpected", message=f"{type(error).__name__}: {first[:400]}")

    def grade(self) -> None:
        """Grade programs as they come. Each has its own limits of time, so it counts as progress that they are watched."""
        from loop.grading.grader import Graded

        num_done = 0
        for verdicts in self.engine.grade_taken(PipeFeed(self, 0, read=job_reader()).take):
            self.items([Graded(id=number, **verdict.model_dump()) for number, verdict in verdicts])
            num_done += len(verdicts)
            self.progress(num_done, num_done + 1)  # nobody knows how many there will be

    def answer(self, command: dict[str, Any]) -> Any:
        """Carry out one command and return its result."""
        match command["op"]:
            case "load_sampler":
                checkpoint = CheckpointRef.model_validate(command["checkpoint"])
                self.engine = build_sampler(checkpoint, EngineConfig.model_validate(command["settings"]), self.progress)
                return {"tokenizer_sha256": self.engine.tokenizer_sha256}
            case "change_weights":
                changed = self.engine.change(CheckpointRef.model_validate(command["checkpoint"]))
                return {"changed": changed, "tokenizer_sha256": self.engine.tokenizer_sha256}
            case "load_trainer":
                self.engine = build_trainer(
                    EngineConfig.model_validate(command["settings"]), self.progress, self.note, self.waits
                )
                return {}
            case "generate":
                feed = PipeFeed(self, command["total"], ahead=self.is_elsewhere)
                for batch in self.engine.generate(feed, SamplingParams.model_validate(command["params"])):
                    self.items(batch)
            case "probe":
                texts = [Forced.model_validate(text) for text in command["texts"]]
                truncation = SamplingParams.model_validate(command["truncation"])
                for records in self.engine.probe(texts, truncation, command["top"]):
                    self.items(records)
            case "fit":
                rows, parent = Path(command["rows_file"]), CheckpointRef.model_validate(command["parent"])
                kept = Kept.model_validate(command["kept"]) if command["kept"] else None
                more = {"meeting": Meeting.model_validate(command["meeting"])} if command["meeting"] else {}
                result = self.engine.fit(rows, parent, command["settings"], Path(command["out_dir"]), kept, **more)
                give_back_memory()
                return result.model_dump(mode="json")
            case "load_grader":
                from loop.grading.grader import Grader  # only a worker that grades needs it

                self.engine = Grader(**command["settings"])
                return {"sandbox": self.engine.words}
            case "grade":
                self.grade()
            case "measure_speed":
                prepare_torch(command["num_threads"])
                from loop.engines.hf_models import DTYPES, measured_flops

                return {"flops": {name: measured_flops(DTYPES[name]) for name in command["precisions"]}}
            case "track_memory":
                prepare_torch(1)
                from loop.engines.memory_tracker import peak_of_training

                return peak_of_training(command["config"], TrainingPass.model_validate(command["work"])).model_dump()
            case "convert_smollm2":
                from loop.engines.hf_models import convert_smollm2

                return convert_smollm2(Path(command["target"]))
            case "dequantise":
                prepare_torch()
                from loop.engines.hf_models import dequantise

                return dequantise(Path(command["source"]), Path(command["target"]))
            case "fetch_hub_model":
                from loop.engines.hf_models import fetch_hub_model

                return fetch_hub_model(command["name"], command["revision"])
            case "merge_adapter":
                prepare_torch()
                from loop.engines.hf_models import write_merged

                return write_merged(CheckpointRef.model_validate(command["checkpoint"]), Path(command["target"]))
            case other:
                raise EngineError(f"unknown command {other!r}")


class PipeFeed(Feed[Any]):
    """The requests of one call, each made of the daemon's JSON with `read`, which the daemon sends when they are asked for. See `loop.engines.feed.Feed`.

    The daemon answers at once, so that the same requests make the same batches every time: with requests, or with "later"
    while it has none for this engine; then they come unasked as soon as it has. No requests: the call is over. From another
    machine an answer takes milliseconds, so some requests are asked for `ahead` there and kept until the engine wants them.
    """

    def __init__(
        self, child: Child, total: int, ahead: bool = False, read: Callable[[Any], Any] = Request.model_validate
    ) -> None:
        self.child, self.total, self.ahead, self.read = child, total, ahead, read
        self.is_asked = self.is_owed = self.is_over = False  # an answer is on its way; some come unasked; none will
        self.kept: deque[Any] = deque()
        self.num_ahead = 0

    def take(self, num: int, wait: bool = False) -> list[Any]:
        if num <= 0:
            return []
        if self.ahead:
            self.num_ahead = max(self.num_ahead, spare(num))
        while self.is_asked and not self.child.inbox.empty():
            self.answer()
        while len(self.kept) < num and not (self.is_over or self.is_owed):
            self.ask(num)
            self.answer()
        if self.is_owed and ((wait and not self.kept) or not self.child.inbox.empty()):
            self.answer()
        taken = [self.kept.popleft() for _ in range(min(num, len(self.kept)))]
        if not (self.is_over or self.is_owed) and 2 * len(self.kept) < self.num_ahead:
            self.ask(0)
        return taken

    def ask(self, num: int) -> None:
        """Ask for what is missing to give out `num` and keep some more, unless an answer is on its way."""
        if not self.is_asked:
            self.child.send(type="want", num=num + self.num_ahead - len(self.kept))
            self.is_asked = True

    def answer(self) -> None:
        """Wait for the daemon's next message."""
        message = self.child.inbox.get()
        if message is None:
            os._exit(1)  # the daemon is gone
        self.is_asked, requests = False, message["requests"]
        self.is_owed, self.is_over = requests is None, requests == []
        self.kept.extend(self.read(request) for request in requests or ())


def job_reader() -> Callable[[dict[str, Any]], Job]:
    """What makes a job of the daemon's JSON. A problem comes with the first of its programs only, as a text of its own."""
    from loop.grading.grader import Job
    from loop.grading.problem import Problem

    problems: dict[int, Problem] = {}

    def read(told: dict[str, Any]) -> Job:
        if told["content"] is not None:
            problems[told["problem"]] = Problem.model_validate(json.loads(told["content"]))
        return Job(told["id"], problems[told["problem"]], told["code"])

    return read


def build_sampler(checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> Any:
    """The sampler that `settings.sampler` names."""
    kind = sampler_kind(settings.sampler)
    if kind.uses_torch:
        prepare_torch(settings.num_threads)
    return kind.load()(checkpoint, settings, progress)


def build_trainer(settings: EngineConfig, progress: Progress, *tell: Tell) -> Any:
    """The trainer that `settings.trainer` names."""
    if settings.trainer == "fake":
        return FakeTrainer(settings, progress)
    prepare_torch(settings.num_threads)
    from loop.engines.trl_trainer import TrlTrainer

    return TrlTrainer(settings, progress, *tell)


def give_back_memory() -> None:
    """Give the system back what a fine-tune held: cyclic garbage, and then the free memory that malloc keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library knows no such call
        ctypes.CDLL(None).malloc_trim(0)


def prepare_torch(num_threads: int | None = None) -> None:
    """Let torch use so many threads, by default one per core that this process may use; and no network."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # the model and all else is on disk by now
    from loop.engines.hf_models import use_threads

    use_threads(num_threads or len(os.sched_getaffinity(0)))


def serve() -> None:
    """Serve commands from standard input until it closes. What libraries print on standard output goes to the log."""
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    make_log_lossy()
    Child(commands, answers).run()


def main() -> None:
    """Run the engine below its guard."""
    guard(serve, own_tmp=True)


if __name__ == "__main__":
    main()
