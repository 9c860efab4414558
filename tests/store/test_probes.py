"""Probes and their results: stored once, whole, and unchanged ever after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from store.errors import Conflict, StoreError
from tests.store.test_verify import columns, messages_after
from tests.support.stores import World


def test_what_was_stored_comes_back(world: World) -> None:
    probe = world.probe()
    probes = world.corpus.probes
    assert probes.all(world.run.id) == [probe] and probe.created_at and probe.sha256
    result = probes.result("q" * 64)
    assert result is not None and result.records == world.probe_result().records
    assert probes.has_result("q" * 64) and not probes.has_result("r" * 64)
    assert probes.get("r" * 64) is None and probes.result("r" * 64) is None
    kinds = [event.kind for event in world.ledger.events.every()]
    assert kinds[-2:] == ["probe_stored", "probe_result_stored"]
    assert world.findings() == []


def test_the_same_again_is_harmless_and_something_else_is_refused(world: World) -> None:
    probe = world.probe()
    before = world.ledger.events.last()
    world.corpus.probes.add(replace(probe, created_at="later"))
    world.corpus.probes.add_result(world.probe_result())
    assert world.ledger.events.last() == before
    with world.refused(Conflict, "other content"):
        world.corpus.probes.add(replace(probe, sequences=[]))
    with world.refused(Conflict, "other content"):
        world.corpus.probes.add_result(world.probe_result(records=[]))


def test_a_result_needs_its_probe_and_its_checkpoint(world: World) -> None:
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        world.corpus.probes.add_result(world.probe_result())
    world.probe()
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        world.corpus.probes.add_result(world.probe_result(id="r" * 64, checkpoint="0" * 64))


@pytest.mark.parametrize("table", ["probes", "probe_results"])
def test_every_change_is_found(world: World, table: str) -> None:
    world.probe()
    changes = {"sequences": "json_array(1)", "records": "x'00'", "round": "round + 1"}
    for column in columns(table):
        change = changes.get(column, f"{column} || '0'")
        messages = messages_after(world, f"UPDATE {table} SET {column} = {change}")
        assert bool(messages) == (column != "created_at"), (column, messages)
    assert any("in no event" in m for m in messages_after(world, f"DELETE FROM {table}"))
    assert world.findings() == []
