"""A fine-tune by processes on several nodes of a cluster, as one group that meets on the first of them.

Each node runs the worker that would train alone, and torchrun starts its processes. The first node writes the weights, which are
brought home unless all machines share the run's directory. State inside a training is kept only where they do: each process
writes its own part of it.
"""

from __future__ import annotations

import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, EngineConfig, Kept, Meeting, Tell, TrainingResult
from loop.errors import ConfigError, EngineError, LeftTraining
from loop.workers.by_node import ByNode
from loop.workers.cluster import Hub, Node, TrainingRoom
from loop.workers.nodes import HEARTBEAT_TIMEOUT_S
from loop.workers.worker import RemoteTrainer, Worker

GRACE_S = 15.0  # after one process has failed: a lost node is seen later than what the others say of it
LOOK_S = 0.5
NO_ROOM = re.compile("No space left on device|os error 28")
LOSS = ("its node", "it was lost on", "nothing was heard")  # in what is said of a node, beside what the others then say


class _Ended(Exception):
    """Raised inside the call to one node's worker when the training has failed on another."""


class NodeTrainer:
    """A Trainer. `worker` makes a Worker of a command, a tag, settings and the rest.

    `pulse`, `progress` and `note` are called in the thread that calls `fit`.
    """

    def __init__(
        self,
        hub: Hub,
        nodes: Sequence[Node],
        settings: EngineConfig,
        worker: Callable[..., Worker],
        pulse: Callable[[], None],
        progress: Callable[[int, int], None],
        note: Tell,
        is_called_away: Callable[[], bool],
        by_node: ByNode | None = None,
    ) -> None:
        self.by_node = by_node or ByNode()
        self.hub, self.nodes, self.worker = hub, list(nodes), worker
        self.pulse, self.progress, self.note, self.is_called_away = pulse, progress, note, is_called_away
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        if len({node.num_gpus > 0 for node in nodes}) > 1 and settings.device != "cpu":
            names = ", ".join(node.name for node in nodes if not node.num_gpus)
            raise ConfigError(
                f'cluster.training_nodes: {names} has no GPU and others have; lower it, or set engine.device = "cpu"'
            )
        self.num_gpus = min(node.num_gpus for node in nodes) if settings.device != "cpu" else 0
        num = self.num_gpus or settings.num_training_processes
        self.settings = settings.changed(num_training_processes=num)

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
    ) -> TrainingResult:
        """See `Trainer.fit`."""
        num_processes = self.settings.num_training_processes * len(self.nodes)
        if num_processes > settings["batch_size"]:
            raise ConfigError(
                f"training.batch_size: {settings['batch_size']} rows are too few for {num_processes} processes on "
                f"{len(self.nodes)} nodes; give at least as many, or lower cluster.training_nodes"
            )
        is_shared, name = self.hub.settings.shared, secrets.token_hex(8)
        refs = self.hub.deliver(parent, self.nodes)
        if lost := [node.name for node in self.nodes if node.id not in refs]:
            why = "; ".join(self.hub.failed.values()) or f"{', '.join(lost)} was lost"
            raise EngineError(f"training: not every node has the weights: {why}; the stage begins again")
        meeting = {
            "num_machines": len(self.nodes),
            "address": self.nodes[0].address,
            "port": self.hub.port(self.nodes[0]),
        }
        rooms = {node.id: TrainingRoom(rows=rows_file.absolute(), weights=out_dir.absolute()) for node in self.nodes}

        def train(number: int, progress: Callable[[int, int], None], pulse: Callable[[], None]) -> TrainingResult:
            node = self.nodes[number]
            room = rooms[node.id]
            trainer = RemoteTrainer(self._worker(number, progress, pulse))
            try:
                return trainer.fit(
                    room.rows,
                    refs[node.id],
                    settings,
                    room.weights,
                    kept if is_shared else None,
                    Meeting(number=number, own_address=node.address, **meeting),
                )
            except EngineError as error:
                if is_shared or not NO_ROOM.search(str(error)):
                    raise
                # The kernel's words would mean this machine's disk.
                raise EngineError(NO_ROOM.sub(f"the disk of {node.name} is full", str(error))) from None
            finally:
                trainer.close()

        try:
            if not is_shared:
                rooms = self.hub.begin_training(name, rows_file, out_dir.name, self.nodes)
            result = self._all(train, kept if is_shared else None)
            if not is_shared:
                self.hub.fetch(self.nodes[0], name, out_dir.parent)
            return result
        finally:
            if not is_shared and not self.hub.ended:
                self.hub.end_training(name, self.nodes)

    def _worker(self, number: int, progress: Callable[[int, int], None], pulse: Callable[[], None]) -> Worker:
        node = self.nodes[number]
        return self.worker(
            {"op": "load_trainer"},
            f"trainer-{number + 1}",
            self.settings,
            bool(self.num_gpus),
            progress=progress,
            pulse=pulse,
            note=self.notes.put,
            heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
            start=self.hub.starter(node, self.num_gpus),
        )

    def _all(self, train: Callable[..., TrainingResult], kept: Kept | None) -> TrainingResult:
        """Train on all nodes at once, each in a thread of its own; what the first node reports."""
        ended = threading.Event()
        done = (0, 0)

        def note_progress(num: int, total: int) -> None:
            nonlocal done
            done = num, total

        def pulse() -> None:
            if ended.is_set():
                raise _Ended

        def train_there(number: int, progress: Callable[[int, int], None]) -> TrainingResult:
            with self.by_node.training(f"trainer-{number + 1}", self.nodes[number].name):
                return train(number, progress, pulse)

        with ThreadPoolExecutor(len(self.nodes)) as threads:
            try:
                futures = [
                    threads.submit(train_there, number, note_progress if not number else lambda *now: None)
                    for number in range(len(self.nodes))
                ]
                seen, asked, failed_at = done, False, 0.0
                while left := [future for future in futures if not future.done()]:
                    wait(left, LOOK_S, FIRST_COMPLETED)
                    self.pulse()
                    while not self.notes.empty():
                        self.note(self.notes.get())
                    if done != seen:
                        seen = done
                        self.progress(*seen)
                    if kept is not None and not asked and self.is_called_away():
                        kept.ask_to_end()
                        asked = True
                    if not failed_at and any(future.done() and future.exception() for future in futures):
                        failed_at = time.monotonic()
                    if failed_at and time.monotonic() - failed_at > GRACE_S:
                        ended.set()
            finally:
                ended.set()
        return self._result(futures)

    def _result(self, futures: Sequence[Future[TrainingResult]]) -> TrainingResult:
        errors = [error for future in futures if (error := future.exception()) and not isinstance(error, _Ended)]
        lost = [error for error in errors if any(word in str(error) for word in LOSS)]
        left = [error for error in errors if isinstance(error, LeftTraining)]
        for error in (*lost, *left, *errors):
            raise error
        return futures[0].result()

    def close(self) -> None:
        """Nothing stays up between two trainings."""
