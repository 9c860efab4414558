"""One engine in one child process: framed messages over pipes, a heartbeat, progress, and an end of the whole tree.

The parent's half (`Worker`, `RemoteSampler`, `RemoteTrainer`) imports no torch; the child's half (`main`) is the only
place where engines are built. A frame is a four-byte big-endian length and that much JSON. The child never touches the
store; what it sends is plain values.

The child is two processes. The *guard* is small and does nothing but wait; the engine is its child. Whatever the engine
starts stays below the guard, however it regroups itself, because the guard is a subreaper. The guard ends all of it when
the engine is done, when it is told to, and when the daemon is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from loop.engines.base import CheckpointRef, Generated, Progress, Request, SamplingParams, TrainingResult
from loop.errors import ConfigError, EngineError, LoopError

MAX_FRAME_BYTES = 1 << 28
HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 120.0  # a live child is heard at least so often, even while it imports torch on a busy machine
END_TIMEOUT_S = 10.0  # for the guard to end everything below it
TREE, PARENT = "LOOP_WORKER_TREE", "LOOP_WORKER_PARENT"  # in the environment: whose tree a process belongs to
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
COMMAND = (sys.executable, "-P", "-m", "loop.worker")
ROOT = Path(__file__).resolve().parents[1]


def prctl(option: int, value: int) -> None:
    """Linux prctl(2); a no-op elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


# ---- the parent's half ---------------------------------------------------------------------------------------------


def sweep(token: str, session: int) -> None:
    """Kill what is left where the guard itself was killed, and return when it is gone.

    A process belongs to the worker by the token in its environment or by its session; one that is ending has no
    environment any more.
    """
    doomed: set[psutil.Process] = set()
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        doomed |= {process for process in psutil.process_iter() if _belongs(process, token, session)}
        doomed = {process for process in doomed if _lives(process)}
        if not doomed:
            return
        if time.monotonic() > deadline:
            raise EngineError(f"processes of a worker cannot be ended: {sorted(process.pid for process in doomed)}")
        for process in doomed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        time.sleep(0.01)


def _belongs(process: psutil.Process, token: str, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session or process.environ().get(TREE) == token
    except (psutil.Error, OSError):
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


class Worker:
    """A running child process. Use from the thread that created it: it ends when that thread does.

    One call at a time. A call that is given up before its result (an abandoned iterator, an exception in between) ends
    the worker, so that no answer can be taken for another's.
    """

    def __init__(
        self,
        init: dict[str, Any],
        *,
        log_file: Path,
        stall_timeout_s: float,
        progress: Progress,
        tag: str = "worker",
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.tag = tag
        self.progress = progress
        self.stall_timeout_s = stall_timeout_s
        self.heartbeat_timeout_s = heartbeat_timeout_s
        self.log_file = log_file
        self.token = secrets.token_hex(16)
        self._buffer = bytearray()
        self._call = 0
        self._busy = self._ended = False
        environment = os.environ | {
            TREE: self.token,
            PARENT: str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            with log_file.open("ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    start_new_session=True,
                    env=environment,
                )
        except OSError as error:
            raise EngineError(f"{tag}: cannot be started: {error}") from None
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
        if self._busy:
            raise self.broken("the call before was given up half-way")
        self._check_not_ended()
        self._busy = True
        self._call += 1
        try:
            self._send(message | {"call": self._call})
            last_progress = time.monotonic()
            while True:
                frame = self._receive(last_progress + self.stall_timeout_s)
                if frame.get("type") == "heartbeat":
                    continue
                last_progress = time.monotonic()
                if frame.get("call") != self._call:
                    raise self.broken("it answered a call that was not made")
                match frame:
                    case {"type": "progress", "done": int(done), "total": int(total)}:
                        self.progress(done, total)
                    case {"type": "items", "items": list(items)}:
                        yield "items", items
                        last_progress = time.monotonic()  # what the caller did meanwhile is not the child's time
                    case {"type": "result", "value": value}:
                        self._busy = False
                        yield "result", value
                        return
                    case {"type": "error", "kind": kind, "message": reason}:
                        self._busy = False
                        raise (ConfigError if kind == "ConfigError" else EngineError)(str(reason))
                    case _:
                        raise self.broken(f"it sent a frame of unknown type {str(frame.get('type'))[:40]!r}")
        finally:
            if self._busy:
                self.end()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        left = memoryview(encode_frame(message))
        deadline = time.monotonic() + self.heartbeat_timeout_s
        while left:
            if not select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))[1]:
                raise self.broken(f"it read no command for {self.heartbeat_timeout_s:g} s")
            try:
                left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]  # so much never blocks
            except OSError:
                raise self._died() from None

    def _check_not_ended(self) -> None:
        if self._ended:
            raise EngineError(f"{self.tag}: it was ended; start another; see {self.log_file}")

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._check_not_ended()
        (length,) = struct.unpack(">I", self._read(4, deadline))
        if length > MAX_FRAME_BYTES:
            raise self.broken(f"it announced a frame of {length} bytes")
        try:
            frame = json.loads(self._read(length, deadline))
        except (ValueError, RecursionError):
            raise self.broken("it sent a frame that is not JSON") from None
        if not isinstance(frame, dict):
            raise self.broken("it sent a frame that is not an object")
        return frame

    def _read(self, count: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        heard = now = time.monotonic()
        while now < deadline and now < heard + self.heartbeat_timeout_s:
            if len(self._buffer) >= count:
                head = bytes(self._buffer[:count])
                del self._buffer[:count]
                return head
            wait = min(deadline - now, heard + self.heartbeat_timeout_s - now, 1.0)
            if select.select([descriptor], [], [], wait)[0]:
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    raise self._died()
                self._buffer += chunk
                heard = time.monotonic()
            elif self.process.poll() is not None:  # dead, but somebody else holds its end of the pipe
                raise self._died()
            now = time.monotonic()
        if now >= deadline:
            raise self.broken(f"it made no progress for {self.stall_timeout_s:g} s")
        raise self.broken(f"nothing was heard from it for {self.heartbeat_timeout_s:g} s")

    def broken(self, why: str) -> EngineError:
        """End a worker that cannot be trusted any more; the error to raise."""
        self.end()
        return EngineError(f"{self.tag}: {why} and was ended; see {self.log_file}")

    def _died(self) -> EngineError:
        try:
            code = self.process.wait(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self.broken("it closed its pipe")
        self.end()
        number = -code if code < 0 else max(0, code - 128)  # 128 + n: the guard says that signal n ended the engine
        if number == signal.SIGKILL:
            return EngineError(
                f"{self.tag}: it was killed (out of memory?); lower engine.batch_size or "
                f"training.micro_batch_size, or see {self.log_file}"
            )
        how = f"by signal {number}" if number else f"with exit code {code}"
        return EngineError(f"{self.tag}: it ended {how}; see {self.log_file}")

    def end(self) -> None:
        """End the whole process tree; nothing of it is left when this returns. Safe to repeat."""
        self._busy = False
        if self._ended:
            return
        if self.process.poll() is None:
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)
            try:
                self.process.wait(timeout=END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        sweep(self.token, self.process.pid)
        self._ended = True
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


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
        missing = {request.id for request in requests}
        for kind, value in self.worker.stream(message):
            if kind == "items":
                try:
                    batch = [Generated.model_validate(item) for item in value]
                except ValueError:
                    raise self.worker.broken("it sent a completion that is none") from None
                for generated in batch:
                    if generated.id not in missing:
                        raise self.worker.broken("it sent a completion that was not asked for, or twice")
                    missing.remove(generated.id)
                yield batch
        if missing:
            raise self.worker.broken(f"it left out {len(missing)} of {len(requests)} completions")

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


def encode_frame(message: dict[str, Any]) -> bytes:
    """One frame, as it goes over the pipe."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


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
        self.call = 0
        self.engine: Any = None
        self.last_progress = 0.0

    def send(self, **message: Any) -> None:
        with self.lock:
            self.answers.write(encode_frame(message | {"call": self.call}))
            self.answers.flush()

    def progress(self, done: int, total: int) -> None:
        """At most ten frames a second, and always the last one."""
        now = time.monotonic()
        if done >= total or now - self.last_progress >= 0.1:
            self.last_progress = now
            self.send(type="progress", done=done, total=total)

    def heartbeat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            try:
                self.send(type="heartbeat")
            except OSError:
                os._exit(1)  # nobody listens any more

    def run(self) -> None:
        threading.Thread(target=self.heartbeat, daemon=True).start()
        while (command := receive_frame(self.commands)) is not None:
            self.call = command["call"]
            try:
                self.send(type="result", value=self.answer(command))
            except LoopError as error:
                self.send(type="error", kind=type(error).__name__, message=str(error))
            except Exception as error:
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
    prepare_torch(settings)
    from loop.engines.hf_sampler import TransformersSampler

    return TransformersSampler(checkpoint, settings, progress)


def build_trainer(settings: dict[str, Any], progress: Progress) -> Any:
    """The trainer that `settings["trainer"]` names."""
    if settings["trainer"] == "fake":
        from loop.engines.fake import FakeTrainer

        return FakeTrainer(settings, progress)
    prepare_torch(settings)
    from loop.engines.trl_trainer import TrlTrainer

    return TrlTrainer(settings, progress)


def prepare_torch(settings: dict[str, Any]) -> None:
    """One thread per core that this process may use, unless the configuration says otherwise. And no network."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on disk by now
    from loop.engines.hf_models import use_threads

    use_threads(settings["num_threads"] or len(os.sched_getaffinity(0)))


def serve() -> None:
    """The engine's process: serve commands from standard input until it closes. What libraries print goes to the log."""
    commands = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    Child(commands, answers).run()


def main(work: Callable[[], None] = serve) -> None:
    """The guard: run `work` in a child process and end all that descends from it when it ends or nobody wants it."""
    watched = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != os.environ.get(PARENT):
        return  # the parent was gone before it could be watched
    guard = os.getpid()
    engine = os.fork()
    if engine == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        if os.getppid() == guard:
            work()
        return
    os.close(0)
    os.close(1)
    status = _wait_for(engine, watched)
    _end_descendants()
    os._exit(0 if status is None else 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _wait_for(engine: int, watched: set[signal.Signals]) -> int | None:
    """The engine's status when it ends; None when SIGTERM comes first. Orphans are reaped meanwhile."""
    while signal.sigwait(watched) == signal.SIGCHLD:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == engine:
                return status
            if ended == 0:
                break
    return None


def _end_descendants() -> None:
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return  # an orphan becomes a child of the guard: without children there are no descendants
        time.sleep(0.01)


if __name__ == "__main__":
    main()
