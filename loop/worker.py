"""One engine in one child process: framed messages over pipes, a heartbeat, progress, and an end of the whole tree.

The parent's half (`Worker`, `RemoteSampler`, `RemoteTrainer`) imports no torch; the child's half (`main`) is the only
place where engines are built. A frame is a four-byte big-endian length and that much JSON. The child never touches the
store; what it sends is plain values.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from loop.engines.base import CheckpointRef, Generated, Progress, Request, SamplingParams, TrainingResult
from loop.errors import ConfigError, EngineError, LoopError

MAX_FRAME_BYTES = 1 << 28
HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 120.0  # a live child is heard at least so often, even while it imports torch on a busy machine
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Linux prctl(2); a no-op elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


# ---- the parent's half ---------------------------------------------------------------------------------------------


def end_tree(pid: int) -> None:
    """Kill a process and all that descends from it, however it regrouped itself; return when they are gone.

    What was re-parented (a daemonised grandchild) is found because this process is a subreaper since the first spawn.
    """
    me = psutil.Process()
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        root = None
    doomed = [root, *root.children(recursive=True)] if root else []
    for _ in range(100):
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(doomed, timeout=5)
        doomed = [child for child in me.children(recursive=True) if _belongs_to(child, pid)]
        if not doomed:
            return
    raise EngineError(f"worker {pid}: its processes cannot be ended: {[process.pid for process in doomed]}")


def _belongs_to(process: psutil.Process, worker_pid: int) -> bool:
    try:
        return (process.environ().get("LOOP_WORKER_TREE") == f"{os.getpid()}" and process.pid != worker_pid) or (
            os.getsid(process.pid) == worker_pid
        )
    except (psutil.Error, OSError):
        return False


class Worker:
    """A running child process. Use from the thread that created it: it ends when that thread does."""

    def __init__(
        self, init: dict[str, Any], *, log_file: Path, stall_timeout_s: float, progress: Progress, tag: str = "worker"
    ) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.tag = tag
        self.progress = progress
        self.stall_timeout_s = stall_timeout_s
        self.log_file = log_file
        self._buffer = b""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "LOOP_WORKER_TREE": str(os.getpid()),
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loop.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        try:
            self.info = self.call(init)
        except BaseException:
            self.end()
            raise

    def call(self, message: dict[str, Any], items: Callable[[list[Any]], None] | None = None) -> Any:
        """Send a command and return its result; what it streams goes to `items`."""
        for kind, value in self.stream(message):
            if kind == "result":
                return value
            if items is not None:
                items(value)
        raise EngineError(f"{self.tag}: no result")

    def stream(self, message: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Send a command; yield ("items", list) as they come and at last ("result", value).

        Raises EngineError when the child dies, stalls or talks nonsense (it is ended then), and what it reports.
        """
        try:
            send_frame(self.process.stdin, message)
        except OSError:
            raise self._died() from None
        last_progress = time.monotonic()
        while True:
            frame = self._receive(last_progress + self.stall_timeout_s)
            kind = frame.get("type")
            if kind != "heartbeat":
                last_progress = time.monotonic()
            if kind == "progress":
                self.progress(frame["done"], frame["total"])
            elif kind == "items":
                yield "items", frame["items"]
            elif kind == "result":
                yield "result", frame["value"]
                return
            elif kind == "error":
                error = ConfigError if frame.get("kind") == "ConfigError" else EngineError
                raise error(str(frame.get("message")))
            elif kind != "heartbeat":
                raise self._broken(f"it sent a frame of unknown type {str(kind)[:40]!r}")

    def _receive(self, deadline: float) -> dict[str, Any]:
        header = self._read(4, deadline)
        (length,) = struct.unpack(">I", header)
        if length > MAX_FRAME_BYTES:
            raise self._broken(f"it announced a frame of {length} bytes")
        try:
            frame = json.loads(self._read(length, deadline))
        except ValueError:
            raise self._broken("it sent a frame that is not JSON") from None
        if not isinstance(frame, dict):
            raise self._broken("it sent a frame that is not an object")
        return frame

    def _read(self, count: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while len(self._buffer) < count:
            wait = min(deadline - time.monotonic(), HEARTBEAT_TIMEOUT_S)
            if not select.select([descriptor], [], [], max(0.0, wait))[0]:
                raise self._broken(
                    f"it made no progress for {self.stall_timeout_s:g} s"
                    if wait < HEARTBEAT_TIMEOUT_S
                    else f"nothing was heard from it for {HEARTBEAT_TIMEOUT_S:g} s"
                )
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                raise self._died()
            self._buffer += chunk
        head, self._buffer = self._buffer[:count], self._buffer[count:]
        return head

    def _broken(self, why: str) -> EngineError:
        self.end()
        return EngineError(f"{self.tag}: {why} and was ended; see {self.log_file}")

    def _died(self) -> EngineError:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return self._broken("it closed its pipe")
        self.end()
        if code == -signal.SIGKILL:
            return EngineError(
                f"{self.tag}: it was killed (out of memory?); lower engine.batch_size or see {self.log_file}"
            )
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return EngineError(f"{self.tag}: it ended {how}; see {self.log_file}")

    def end(self) -> None:
        """End the whole process tree. Safe to repeat."""
        end_tree(self.process.pid)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass


class RemoteSampler:
    """A Sampler whose model lives in a child process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.tokenizer_sha256: str = worker.info["tokenizer_sha256"]

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Generated]]:
        """See `Sampler.generate`."""
        message = {
            "op": "generate",
            "requests": [request.model_dump(mode="json") for request in requests],
            "params": params.model_dump(mode="json"),
        }
        for kind, value in self.worker.stream(message):
            if kind == "items":
                yield [Generated.model_validate(item) for item in value]

    def close(self) -> None:
        self.worker.end()


class RemoteTrainer:
    """A Trainer that works in a child process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`."""
        message = {
            "op": "fit",
            "rows_file": str(rows_file),
            "parent": parent.model_dump(mode="json"),
            "settings": settings,
            "out_dir": str(out_dir),
        }
        return TrainingResult.model_validate(self.worker.call(message))

    def close(self) -> None:
        self.worker.end()


# ---- the child's half ----------------------------------------------------------------------------------------------


def send_frame(pipe: BinaryIO | None, message: dict[str, Any]) -> None:
    """Write one frame."""
    assert pipe is not None
    body = json.dumps(message).encode()
    pipe.write(struct.pack(">I", len(body)) + body)
    pipe.flush()


def receive_frame(pipe: BinaryIO) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream."""
    header = pipe.read(4)
    if len(header) < 4:
        return None
    frame: dict[str, Any] = json.loads(pipe.read(struct.unpack(">I", header)[0]))
    return frame


class Child:
    """Answers commands one at a time."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands = commands
        self.answers = answers
        self.lock = threading.Lock()
        self.engine: Any = None
        self.last_progress = 0.0

    def send(self, **message: Any) -> None:
        with self.lock:
            send_frame(self.answers, message)

    def progress(self, done: int, total: int) -> None:
        """At most ten frames a second, and always the last one."""
        now = time.monotonic()
        if done >= total or now - self.last_progress >= 0.1:
            self.last_progress = now
            self.send(type="progress", done=done, total=total)

    def heartbeat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            self.send(type="heartbeat")

    def run(self) -> None:
        threading.Thread(target=self.heartbeat, daemon=True).start()
        while (command := receive_frame(self.commands)) is not None:
            try:
                self.send(type="result", value=self.answer(command))
            except LoopError as error:
                self.send(type="error", kind=type(error).__name__, message=str(error))
            except Exception as error:
                import traceback

                traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0]
                self.send(type="error", kind="EngineError", message=f"{type(error).__name__}: {first[:400]}")

    def answer(self, command: dict[str, Any]) -> Any:
        """Carry out one command and return its result."""
        match command["op"]:
            case "load_sampler":
                checkpoint = CheckpointRef.model_validate(command["checkpoint"])
                self.engine = build_sampler(checkpoint, command["settings"], self.progress)
                return {"tokenizer_sha256": self.engine.tokenizer_sha256}
            case "load_trainer":
                self.engine = build_trainer(command["settings"], self.progress)
                return {}
            case "generate":
                requests = [Request.model_validate(request) for request in command["requests"]]
                params = SamplingParams.model_validate(command["params"])
                for batch in self.engine.generate(requests, params):
                    self.send(type="items", items=[item.model_dump(mode="json") for item in batch])
                return None
            case "fit":
                parent = CheckpointRef.model_validate(command["parent"])
                result = self.engine.fit(
                    Path(command["rows_file"]), parent, command["settings"], Path(command["out_dir"])
                )
                return result.model_dump(mode="json")
            case "convert_smollm2":
                from loop.engines.hf_models import convert_smollm2

                return convert_smollm2(Path(command["target"]))
            case "fetch_hub_model":
                from loop.engines.hf_models import fetch_hub_model

                return fetch_hub_model(command["name"], command["revision"])
            case other:
                raise EngineError(f"unknown command {other!r}")


def build_sampler(checkpoint: CheckpointRef, settings: dict[str, Any], progress: Progress) -> Any:
    """The sampler that `settings["sampler"]` names."""
    if settings["sampler"] == "fake":
        from loop.engines.fake import FakeSampler

        return FakeSampler(checkpoint, settings, progress)
    set_threads(settings)
    from loop.engines.hf_sampler import TransformersSampler

    return TransformersSampler(checkpoint, settings, progress)


def build_trainer(settings: dict[str, Any], progress: Progress) -> Any:
    """The trainer that `settings["trainer"]` names."""
    if settings["trainer"] == "fake":
        from loop.engines.fake import FakeTrainer

        return FakeTrainer(settings, progress)
    set_threads(settings)
    from loop.engines.trl_trainer import TrlTrainer

    return TrlTrainer(settings, progress)


def set_threads(settings: dict[str, Any]) -> None:
    """One thread per core that this process may use, unless the configuration says otherwise."""
    import torch

    torch.set_num_threads(settings["num_threads"] or len(os.sched_getaffinity(0)))


def main() -> None:
    """Serve commands from standard input until it closes. Libraries that print reach the log, not the frames."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(parent) != os.environ.get("LOOP_WORKER_TREE"):
        return  # the parent was gone before it could be watched
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    Child(commands, answers).run()


if __name__ == "__main__":
    main()
