"""Sampling engines on the nodes of a cluster: which node each one goes to, and the same weights for all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from loop.engines.base import CheckpointRef, EngineConfig, Forced, Generated, Probed, Request, SamplingParams
from loop.engines.feed import Feed
from loop.errors import ConfigError, EngineError
from loop.workers.by_node import ByNode, EngineNow
from loop.workers.cluster import Hub, Node
from loop.workers.pool import Pool, Start
from loop.workers.worker import RemoteSampler, Worker

HEARTBEAT_TIMEOUT_S = 20.0  # a worker's heart beats every three seconds; this long without a beat, its node is silent
LOOK_S = 5.0  # between two looks whether GPUs have become free
MUST_BE_SAME = ("python", "ssd-loop")  # on every node as here; other packages on every node as on the first


def check_same(nodes: Sequence[Node], here: dict[str, str]) -> None:
    """ConfigError where nodes would sample with other programs than the rest."""
    for node in nodes:
        for package, version in nodes[0].versions.items():
            place, wanted = ("here", here[package]) if package in MUST_BE_SAME else (nodes[0].name, version)
            if (its := node.versions.get(package, "none")) != wanted:
                raise ConfigError(
                    f"cluster: {node.name} has {package} {its}, {place} is {wanted}; install the same on every node"
                )


def placed(nodes: Sequence[Node], num_engines: int | None, gpus_per_engine: int) -> list[Node] | None:
    """The node of each engine; None while too few of its GPUs are free. With 0 GPUs for an engine it computes on cores.

    Engines fill one node's GPUs after the other's. Without GPUs they go to the nodes in turn, one to each if nothing else is said.
    ConfigError where the cluster has not that many GPUs at all.
    """
    with_gpus = [node for node in nodes if node.num_gpus and gpus_per_engine]
    if not with_gpus:
        return [nodes[index % len(nodes)] for index in range(num_engines or len(nodes))]
    room = sum(node.num_gpus // gpus_per_engine for node in with_gpus)
    num = num_engines or room
    if num > room or not room:
        raise ConfigError(
            f"engine.num_engines = {max(num, 1)} needs {gpus_per_engine} GPUs on one node for each (engine.gpus_per_engine), but "
            f"the cluster has room for {room}; lower it, or leave it out"
        )
    places = [node for node in with_gpus for _ in range(node.free_gpus // gpus_per_engine)]
    return places[:num] if len(places) >= num else None


class NodeSampler(RemoteSampler):
    """A sampler on a node, where checkpoints have names of their own. `ref`: what this one is called there.

    It says in `now` what it does.
    """

    def __init__(self, worker: Worker, ref: Callable[[CheckpointRef], CheckpointRef], now: EngineNow) -> None:
        super().__init__(worker)
        self.ref, self.now = ref, now

    def change(self, checkpoint: CheckpointRef) -> bool:
        with self.now.at("loading", lambda: self.ended):
            try:
                named = self.ref(checkpoint)
            except EngineError:  # what the node does not have, its engine cannot serve: the others go on without it
                self.close()
                raise
            return super().change(named)

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        with self.now.at("sampling", lambda: self.ended):
            for batch in super().generate(requests, params):
                self.now.num_tokens += sum(len(each.token_ids) for each in batch)
                yield batch

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        with self.now.at("measuring", lambda: self.ended):
            yield from super().probe(texts, truncation, top)


class Placement:
    """The engines of one pool. Those of a node that is lost move to another one, with the next weights."""

    def __init__(
        self,
        hub: Hub,
        settings: EngineConfig,
        nodes: Sequence[Node],
        places: Sequence[Node],
        by_node: ByNode | None = None,
    ) -> None:
        self.hub, self.settings, self.places = hub, settings, list(places)
        self.by_node = by_node or ByNode()
        with_gpus = settings.device != "cpu" and any(node.num_gpus for node in nodes)
        self.num_gpus = settings.gpus_per_engine if with_gpus else 0
        self.names: dict[str, CheckpointRef] = {}  # of the checkpoint that was delivered last, by node

    @property
    def uses_this_machine(self) -> bool:
        """Whether an engine is on the daemon's own machine."""
        own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
        return any(node.address in own for node in self.places)

    def deliver(self, checkpoint: CheckpointRef) -> None:
        """Bring a checkpoint to all nodes that have an engine. EngineError if none of them has it then."""
        self.names = self.hub.deliver(checkpoint, list({node.id: node for node in self.places}.values()))
        if not self.names:
            why = "; ".join(self.hub.failed.values()) or "every node that has an engine was lost"
            raise EngineError(f"cluster: no node has the weights: {why}; make room there, or see {self.hub.log_file}")

    def move(self, nodes: Sequence[Node]) -> None:
        """Give engines of lost nodes a place among those that are left or new."""
        by_id = {node.id: node for node in nodes}
        free_gpus = {node.id: node.free_gpus for node in nodes}
        taken = Counter(node.id for node in self.places)
        for number, node in enumerate(self.places):
            if node.id in by_id or not nodes:
                continue
            free = [each for each in nodes if free_gpus[each.id] >= self.num_gpus] if self.num_gpus else list(nodes)
            if free:
                self.places[number] = min(free, key=lambda node: (taken[node.id], node.name))
                taken[self.places[number].id] += 1
                free_gpus[self.places[number].id] -= self.num_gpus

    def share(self, number: int) -> tuple[int, int]:
        """Which engine of its node this one is, and of how many."""
        there = [other for other, node in enumerate(self.places) if node.id == self.places[number].id]
        return there.index(number), len(there)

    def num_threads(self, number: int) -> int | None:
        """CPU threads of an engine: its share of the node's cores. None where Ray was told of none: the engine looks itself."""
        cores = int(self.places[number].num_cpus)
        return self.settings.num_threads or (max(1, cores // self.share(number)[1]) if cores else None)

    def start_of(self, number: int, worker: Callable[..., Worker]) -> Start:
        """The function that starts one engine. `worker` makes a Worker of a command, a tag, settings and the rest."""

        def start(checkpoint: CheckpointRef, pulse: Callable[[], None]) -> RemoteSampler:
            node, tag = self.places[number], f"sampler-{number + 1}"

            def ref(checkpoint: CheckpointRef) -> CheckpointRef:
                named = self.names.get(node.id)
                if named is None or named.sha256 != checkpoint.sha256:
                    why = self.hub.failed.get(node.id, f"{node.name}: it was lost before it had the weights")
                    raise EngineError(f"{tag}: {why}")
                return named

            settings = self.settings.changed(
                num_threads=self.num_threads(number), proofs=node.directory / "proofs", num_engines=None
            )
            now = self.by_node.begin(tag, node.name)
            with now.at("loading"):
                made = worker(
                    {"op": "load_sampler", "checkpoint": ref(checkpoint)},
                    tag,
                    settings,
                    bool(self.num_gpus),
                    pulse=pulse,
                    progress=lambda done, total: None,
                    heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
                    start=self.hub.starter(node, self.num_gpus, self.share(number)),
                )
                return NodeSampler(made, ref, now)

        return start


def versions_here() -> dict[str, str]:
    """What must be the same on every node."""
    import platform
    from importlib import metadata

    return {"python": platform.python_version(), "ssd-loop": metadata.version("ssd-loop")}


def wait_for_places(
    hub: Hub, num_engines: int | None, gpus_per_engine: int, limit_s: float, note: Callable[[str], None]
) -> tuple[list[Node], list[Node]]:
    """The nodes, and the node of each engine as soon as there is room for all. EngineError if that takes too long."""
    deadline: float | None = None
    while True:
        nodes = hub.nodes()
        if not nodes:
            wrong = "".join(f"; {name}: {why}" for name, why in hub.problems.items())
            raise EngineError(
                f"cluster: no node has cores or GPUs for this run{wrong}; start some with `ray start --address=HOST:6379`"
            )
        if (places := placed(nodes, num_engines, gpus_per_engine)) is not None:
            return nodes, places
        num_free = sum(node.free_gpus for node in nodes)
        num = (num_engines or sum(node.num_gpus // gpus_per_engine for node in nodes)) * gpus_per_engine
        wanted = f"the cluster has {num_free} free GPUs, the engines need {num}"
        if deadline is None:
            deadline = time.monotonic() + limit_s
            note(f"{wanted}; waiting for them for at most {limit_s:g} s")
        if time.monotonic() > deadline:
            raise EngineError(
                f"cluster: {wanted}, and others kept them for {limit_s:g} s; lower engine.num_engines, or wait"
            )
        until = time.monotonic() + LOOK_S
        while time.monotonic() < until:
            hub.pulse()
            time.sleep(0.1)


def pool_on_nodes(
    placement: Placement, checkpoint: CheckpointRef, worker: Callable[..., Worker], **watching: Any
) -> Pool:
    """The engines of a placement, with these weights. A node that cannot have them is left out, with a note."""
    placement.deliver(checkpoint)
    for node, why in placement.hub.failed.items():
        watching["note"](f"{why}; its engines are left out until the weights change")
        placement.by_node.lose(next(each.name for each in placement.places if each.id == node), why)
        placement.places = [each for each in placement.places if each.id != node]
    starts = [placement.start_of(number, worker) for number in range(len(placement.places))]
    return Pool(starts, checkpoint, **watching)
