"""What is known of each node while its engines work, and after: by a clock that is set, and with engines that are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, EngineConfig
from loop.errors import EngineError
from loop.workers.by_node import ByNode
from loop.workers.nodes import Placement, pool_on_nodes
from loop.workers.worker import Worker
from tests.loop.workers.conftest import Listener
from tests.loop.workers.test_nodes import FakeHub, node
from tests.support.engines import no_progress
from tests.support.waiting import Clock
from tests.support.workers import PARAMS, SETTINGS, Begin, engine_of, fake_model, requests

SLOW = {"LOOP_FAKE_STEP_S": "0.1"}
Nodes = list[dict[str, Any]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("loop.workers.by_node.time.monotonic", clock)
    return clock


def test_speeds_of_a_nodes_engines_add_up_and_rests_do_not_count(clock: Clock) -> None:
    by_node = ByNode()
    first, second, other = (by_node.begin(f"sampler-{number}", name) for number, name in enumerate("aab", 1))
    with other.at("loading"):
        assert [each["doing"] for each in by_node.now()] == ["loading", "loading"]
    with first.at("sampling"), second.at("sampling"):
        clock.now_s += 10
        assert by_node.now()[0]["tokens_per_s"] is None, "nothing is finished yet"
        first.num_tokens, second.num_tokens = 100, 300
        a, b = by_node.now()
        assert a == {"name": "a", "engines": 2, "doing": "sampling", "tokens_per_s": 40.0, "lost": None}
        assert (b["engines"], b["doing"], b["tokens_per_s"]) == (1, "idle", None)
    clock.now_s += 1000
    assert [each["tokens_per_s"] for each in by_node.now()] == [40.0, None]
    assert by_node.done() == [{"name": "a", "tokens": 400, "tokens_per_s": 40.0, "lost": None}]
    by_node.begin_attempt()
    assert by_node.done() == [] and by_node.now()[0]["tokens_per_s"] is None


def test_a_loss_is_shown_until_the_engine_is_up_again_and_kept_for_the_attempt(clock: Clock) -> None:
    by_node = ByNode()
    with pytest.raises(EngineError), by_node.begin("sampler-1", "b").at("sampling"):
        clock.now_s += 2
        raise EngineError(f"sampler-1: its node b was lost (ActorDiedError: {'x' * 60}); see sampler-1.log")
    lost = {"name": "b", "engines": 0, "doing": "lost", "tokens_per_s": None, "lost": "its node b was lost"}  # fmt: skip
    assert by_node.now() == [lost]
    by_node.begin_attempt()
    assert by_node.now() == [lost], "nobody has started it again"
    assert by_node.done() == [], "nothing was sampled"
    with by_node.begin("sampler-1", "c").at("sampling"):
        clock.now_s += 2
    assert [each["name"] for each in by_node.now()] == ["c"]
    assert [(each["name"], each["lost"]) for each in by_node.done()] == [("b", lost["lost"]), ("c", None)]
    by_node.begin_attempt()
    assert by_node.done() == []
    with pytest.raises(EngineError), by_node.begin("sampler-1", "c").at("sampling", lambda: False):
        raise EngineError("a request is at fault")
    assert by_node.now()[0]["lost"] is None
    by_node.lose("d", "d: No space left on device")
    assert by_node.now()[1]["lost"] == "No space left on device"
    by_node.end()
    assert by_node.now() == []


def test_a_node_trains_as_long_as_it_does(clock: Clock) -> None:
    by_node = ByNode()
    by_node.begin("sampler-1", "a").doing = "idle"
    with by_node.training("trainer-1", "a"):
        clock.now_s += 5
        assert (by_node.now()[0]["doing"], by_node.now()[0]["engines"]) == ("training", 1)
    assert by_node.now()[0]["doing"] == "idle"
    assert by_node.done() == [{"name": "a", "tokens": 0, "tokens_per_s": None, "lost": None}]


def test_the_onlooker_is_told_once_a_second_and_of_the_end(clock: Clock) -> None:
    told: list[Nodes] = []
    by_node = ByNode(told.append)
    clock.now_s += 10
    by_node.look()
    assert told == [], "there is no cluster"
    by_node.begin("sampler-1", "a")
    for wait_s, expected in ((0.5, 0), (0.6, 1), (0.5, 1), (0.6, 2)):
        clock.now_s += wait_s
        by_node.look()
        assert len(told) == expected
    by_node.end()
    by_node.begin_attempt()
    for _ in range(2):
        clock.now_s += 2
        by_node.look()
    assert [len(nodes) for nodes in told] == [1, 1, 0]


def test_the_watch_is_told_with_the_pulse_until_the_engines_end(
    begin: Begin, watch: Listener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Nodes] = []
    monkeypatch.setattr(watch, "nodes", told.append, raising=False)
    engines = begin()
    engines.by_node.begin("sampler-1", "a")
    for close in (lambda: None, engines.close, lambda: None):
        close()
        clock.now_s += 2
        engines.pulse()
    assert [[each["name"] for each in nodes] for nodes in told] == [["a"], []]


def test_a_pool_over_two_nodes_says_what_each_does_and_which_one_is_lost(
    tmp_path: Path, start: Callable[..., Worker]
) -> None:
    by_node, workers = ByNode(), dict[str, Worker]()
    seen: list[Nodes] = []
    a, b = node("a"), node("b")
    placement = Placement(FakeHub([a, b]), SETTINGS, [a, b], [a, b], by_node)  # type: ignore[arg-type]

    def worker(init: dict[str, Any], tag: str, settings: EngineConfig, has_gpu: bool, **more: Any) -> Worker:
        workers[tag] = start(
            init=init | {"settings": SETTINGS}, log_file=tmp_path / f"{tag}.log", tag=tag, pulse=more["pulse"], environment=SLOW,
        )  # fmt: skip
        return workers[tag]

    def model(skill: float) -> CheckpointRef:
        return fake_model(tmp_path / f"model-{skill}", skill, sha256=f"{skill}")

    pool = pool_on_nodes(
        placement, model(0.5), worker,
        progress=no_progress, pulse=lambda: seen.append(by_node.now()), note=lambda text: None,
    )  # fmt: skip
    try:
        assert [each["doing"] for each in by_node.now()] == ["idle", "idle"]
        calls = pool.generate(requests(60), PARAMS)
        batches = [next(calls)]
        os.kill(engine_of(workers["sampler-2"]), signal.SIGKILL)
        batches += calls
        assert "sampling" in {each["doing"] for nodes in seen for each in nodes}
        left, lost = by_node.now()
        assert (left["doing"], lost["doing"], lost["engines"]) == ("idle", "lost", 0)
        assert lost["lost"] == "it was killed (out of memory?)"
        done = by_node.done()
        assert sum(each["tokens"] for each in done) == sum(len(each.token_ids) for batch in batches for each in batch)
        assert done[0]["tokens_per_s"] > 0 and done[1]["lost"] == lost["lost"]
        placement.deliver(model(0.9))
        assert pool.change(model(0.9))
        assert [(each["doing"], each["lost"]) for each in by_node.now()] == [("idle", None)] * 2
    finally:
        pool.close()
