"""Which node an engine goes to, and what must be the same on all of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.errors import ConfigError, EngineError
from loop.workers.cluster import Node
from loop.workers.nodes import Placement, check_same, placed, wait_for_places
from tests.support.workers import SETTINGS

HERE = {"python": "3.11.7", "ssd-loop": "1.0"}


def node(name: str, num_gpus: int = 0, free_gpus: int | None = None, num_cpus: float = 4, **versions: str) -> Node:
    its = {"python": "3.11.7", "ssd-loop": "1.0", "torch": "2.13.0", "vllm": "0.32.0"} | versions
    free = num_gpus if free_gpus is None else free_gpus
    return Node(
        id=f"id-{name}", name=name, num_cpus=num_cpus, num_gpus=num_gpus, free_gpus=free, gpu_bytes=80 << 30, gpu="", memory_bytes=1 << 40, address="10.0.0.1",
        directory=Path("/shelf/checkpoints"), versions=its,
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.none() | st.integers(1, 12),
    st.sampled_from([1, 2, 4]),
)
def test_no_gpu_is_given_twice_and_every_engine_has_all_of_its_own(
    sizes: list[tuple[int, int]], num_engines: int | None, per_engine: int
) -> None:
    nodes = [node(f"n{number}", total, min(free, total)) for number, (total, free) in enumerate(sizes)]
    room = sum(each.num_gpus // per_engine for each in nodes)
    try:
        places = placed(nodes, num_engines, per_engine)
    except ConfigError as error:
        assert (num_engines or 1) > room and str(room) in str(error)
        return
    if not any(each.num_gpus for each in nodes):
        assert places is not None and len(places) == (num_engines or len(nodes))
        taken = Counter(each.id for each in places).values()
        assert max(taken) - min(taken) <= 1
        return
    free = sum(each.free_gpus // per_engine for each in nodes)
    if places is None:
        assert free < (num_engines or room)
        return
    assert len(places) == (num_engines or room)
    taken_of = Counter(each.id for each in places)
    assert all(taken_of[each.id] * per_engine <= each.free_gpus for each in nodes)


def test_other_programs_on_a_node_are_refused_with_its_name() -> None:
    check_same([node("a"), node("b")], HERE)
    for package, version, said in (
        ("ssd-loop", "1.1", "b has ssd-loop 1.1, here is 1.0"),
        ("torch", "2.14.0", "b has torch 2.14.0, a is 2.13.0"),
        ("vllm", "none", "b has vllm none, a is 0.32.0"),
    ):
        with pytest.raises(ConfigError, match=f"^cluster: {said}; install the same on every node$"):
            check_same([node("a"), node("b", **{package: version})], HERE)


class FakeHub:
    """Says which nodes there are, one list after the other, and remembers what it was asked to bring."""

    def __init__(self, *lists: list[Node]) -> None:
        self.lists = list(lists)
        self.lost: set[str] = set()
        self.failed: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.log_file = Path("hub.log")

    def nodes(self) -> list[Node]:
        return self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]

    def pulse(self) -> None: ...

    def starter(self, *what: Any) -> None: ...

    def deliver(self, checkpoint: Any, nodes: list[Node]) -> dict[str, Any]:
        self.failed = {each.id: f"{each.name}: No space left on device" for each in nodes if each.id in self.lost}
        return {each.id: checkpoint for each in nodes if each.id not in self.lost}


def test_engines_of_a_lost_node_move_to_where_there_is_room() -> None:
    a, b, c = node("a", 2), node("b", 2), node("c", 2)
    placement = Placement(FakeHub([a, b]), SETTINGS.changed(device="auto"), [a, b], [a, a, b, b])  # type: ignore[arg-type]
    placement.move([a.model_copy(update={"free_gpus": 0})])
    assert placement.places == [a, a, b, b], "no room: they stay where they were, and are missed"
    placement.move([a.model_copy(update={"free_gpus": 0}), c])
    assert [each.name for each in placement.places] == ["a", "a", "c", "c"]


def test_weights_that_reach_no_node_are_an_error() -> None:
    a = node("a")
    hub = FakeHub([a])
    placement = Placement(hub, SETTINGS, [a], [a])  # type: ignore[arg-type]
    hub.lost = {a.id}
    with pytest.raises(
        EngineError,
        match="^cluster: no node has the weights: a: No space left on device; make room there, or see hub.log$",
    ):
        placement.deliver("weights")  # type: ignore[arg-type]


def test_waiting_for_gpus_says_what_for_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.workers.nodes.LOOK_S", 0.0)
    busy, free = [node("a", 8, 3)], [node("a", 8)]
    notes: list[str] = []
    nodes, places = wait_for_places(FakeHub(busy, busy, free), 4, 2, 60.0, notes.append)  # type: ignore[arg-type]
    assert (nodes, len(places)) == (free, 4)
    assert notes == ["the cluster has 3 free GPUs, the engines need 8; waiting for them for at most 60 s"]
    with pytest.raises(
        EngineError, match="the cluster has 3 free GPUs, the engines need 8, and others kept them for 0 s"
    ):
        wait_for_places(FakeHub(busy), 4, 2, 0.0, notes.append)  # type: ignore[arg-type]
    empty = FakeHub([])
    empty.problems = {"b": "No module named 'loop'"}
    with pytest.raises(
        EngineError, match="no node has cores or GPUs for this run; b: No module named 'loop'; start some"
    ):
        wait_for_places(empty, 4, 2, 0.0, notes.append)  # type: ignore[arg-type]
