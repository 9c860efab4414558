"""Probes and their results: stored once, whole, and unchanged ever after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from store.db import query
from store.errors import Conflict, StoreError
from store.verify import verify_store
from tests.store.test_verify import messages_after
from tests.support.stores import World


def findings(world: World) -> list[str]:
    return [found.message for found in verify_store(world.db, Path("/nowhere")).findings if found.kind != "checkpoint"]


def test_what_was_stored_comes_back() -> None:
    world = World()
    probe = world.probe()
    assert world.corpus.probes.all(world.run.id) == [probe] and probe.created_at and probe.sha256
    result = world.corpus.probes.result("q" * 64)
    assert result is not None and result.records == world.probe_result().records
    assert world.corpus.probes.has_result("q" * 64) and not world.corpus.probes.has_result("r" * 64)
    assert world.corpus.probes.get("r" * 64) is None and world.corpus.probes.result("r" * 64) is None
    kinds = [event.kind for event in world.ledger.events.every()]
    assert kinds[-2:] == ["probe_stored", "probe_result_stored"]
    assert findings(world) == []


def test_the_same_again_is_harmless_and_something_else_is_refused() -> None:
    world = World()
    probe = world.probe()
    before = world.ledger.events.last()
    world.corpus.probes.add(replace(probe, created_at="later"))
    world.corpus.probes.add_result(world.probe_result())
    assert world.ledger.events.last() == before
    with pytest.raises(Conflict, match="other content"):
        world.corpus.probes.add(replace(probe, sequences=[]))
    with pytest.raises(Conflict, match="other content"):
        world.corpus.probes.add_result(world.probe_result(records=[]))
    assert world.ledger.events.last() == before


def test_a_result_needs_its_probe_and_its_checkpoint() -> None:
    world = World()
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        world.corpus.probes.add_result(world.probe_result())
    world.probe()
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        world.corpus.probes.add_result(world.probe_result(id="r" * 64, checkpoint="0" * 64))


@pytest.mark.parametrize("table", ["probes", "probe_results"])
def test_every_change_is_found(table: str) -> None:
    world = World()
    world.probe()
    for row in query(world.db, f"PRAGMA table_info({table})"):
        change = {"sequences": "json_array(1)", "records": "x'00'", "round": "round + 1"}.get(
            row["name"], f"{row['name']} || '0'"
        )
        messages = [
            m for m in messages_after(world, f"UPDATE {table} SET {row['name']} = {change}") if "/nowhere" not in m
        ]
        assert bool(messages) == (row["name"] != "created_at"), (row["name"], messages)
    assert any("in no event" in m for m in messages_after(world, f"DELETE FROM {table}"))
    assert findings(world) == []
