"""Verification finds every change to what was stored, and nothing in a sound store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.checkpoints import commit_directory, hash_directory, manifest_sha256, temporary_directory
from store.db import open_database, query
from store.records import Checkpoint, Verdict
from store.verify import verify_store, write_high_water
from tests.support.stores import World, weights

ARRIVALS = (
    "insert(arrivals, '$[#]', 1)", "remove(arrivals, '$[0]')", "set(arrivals, '$[1]', 3)", "set(arrivals, '$[1]', 99)",
)  # fmt: skip
OF_RUNS = (
    "config state reason head_round head_checkpoint tip_checkpoint num_completions completion_bytes num_kept num_carried "
    "num_rolled_back num_failed"
)


def sound(world: World) -> World:
    """Two rounds, an evaluation with verdicts, a failed and resumed stage, and no weights that would be looked for."""
    world.whole_round("keep")
    evaluation = world.evaluation()
    world.corpus.add_completions([world.completion(n, id=f"e{n}", evaluation_id=evaluation.id) for n in range(10)])
    world.corpus.evaluations.add_verdicts(
        [Verdict(evaluation.id, f"t/{n}", 0, f"e{n}", "passed", "", 0.1, "bubblewrap") for n in range(10)]
    )
    world.corpus.evaluations.finish(evaluation.id, {"pass@1": 1.0})
    world.probe()
    world.whole_round("rollback", earlier=world.corpus.texts(world.run.id, 1))
    world.collected()
    world.ledger.move_head(world.run.id, 0, "back")
    world.ledger.set_run_state(world.run.id, "paused", "asked to")
    world.ledger.fail_round(world.ledger.begin_round(world.run.id), "broken")
    for checkpoint in world.ledger.checkpoints.all(world.run.id):
        world.ledger.checkpoints.set_state(checkpoint.sha256, "collected")
    return world


def test_a_tip_that_does_not_follow_from_the_decisions_is_found(world: World) -> None:
    world.whole_round("carry")
    world.whole_round("carry")
    assert world.findings() == []
    world.db.conn.execute("UPDATE runs SET tip_checkpoint = base_checkpoint")
    assert world.findings() == ["round: run demo: the tip is round 2, which does not follow from the decisions"]


def test_another_candidate_than_the_one_that_was_chosen_is_found(world: World) -> None:
    world.whole_round("rollback")
    world.db.conn.execute("UPDATE rounds SET candidate_checkpoint = parent_checkpoint")
    assert world.findings() == ["round: round 1: its candidate does not follow from the events"]


def without_guards(world: World) -> sqlite3.Connection:
    conn: sqlite3.Connection = world.db.conn
    for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        conn.execute(f"DROP TRIGGER {name}")
    conn.executescript("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON")
    return conn


def test_a_sound_store_has_no_findings(on_disk: World, tmp_path: Path) -> None:
    world = sound(on_disk)
    write_high_water(world.db, tmp_path)
    reader = open_database(tmp_path / "loop.db", read_only=True)
    result = verify_store(reader, tmp_path)
    assert result.findings == []
    assert result.checked["events"] == len(list(world.ledger.events.every())) and result.checked["completions"] == 16
    assert (result.checked["rounds"], result.checked["decisions"], result.checked["verdicts"]) == (3, 2, 10)


def columns(table: str) -> list[str]:
    return [row["name"] for row in query(World().db, f"PRAGMA table_info({table})")]


def messages_after(world: World, sql: str, parameters: Any = ()) -> list[str]:
    """What a verification says after a change, which is then undone."""
    conn = without_guards(world)
    conn.execute("BEGIN")
    try:
        conn.execute(sql, parameters)
        return world.findings()
    finally:
        conn.execute("ROLLBACK")


@pytest.mark.parametrize("column", columns("events"))
def test_a_change_to_any_field_of_any_event_is_found(world: World, column: str) -> None:
    changes = {"seq": "seq + 1000", "round": "coalesce(round, 0) + 1", "data": "json_set(data, '$.x', 1)"}
    change = changes.get(column, f"coalesce({column}, '') || '0'")
    for event in sound(world).ledger.events.every():
        messages = messages_after(world, f"UPDATE events SET {column} = {change} WHERE seq = ?", (event.seq,))
        assert any(message.startswith("event") for message in messages), event.seq


@settings(max_examples=15)
@given(st.data())
def test_a_change_to_what_is_hashed_or_counted_is_found(data: st.DataObject) -> None:
    world = sound(World())
    conn = without_guards(world)
    table, column, change = data.draw(
        st.sampled_from(
            [("completions", c, None) for c in columns("completions") if c not in ("created_at", "arrival")]
            + [("completions", "arrival", "arrival + 100")]
            + [("prompts", "content", "json_set(content, '$.x', 1)"), ("decode_settings", "settings", "json('{}')")]
            + [("decisions", c, None) for c in columns("decisions") if c not in ("run_id", "round")]
            + [("selections", c, None) for c in ("position", "used", "completion_id", "reason")]
            + [("earlier_selections", c, None) for c in ("run_id", "round", "position")]
            + [("earlier_selections", "arrivals", f"json_{c}") for c in ARRIVALS]
            + [("stages", "input", "json('{}')"), ("stages", "output", "json('{}')")]
            + [("rounds", "state", "CASE state WHEN 'kept' THEN 'failed' ELSE 'kept' END")]
            + [("rounds", "candidate_checkpoint", None)]
            + [("runs", c, None) for c in OF_RUNS.split()]
            + [("collected", c, None) for c in ("run_id", "round", "part", "sha256")]
            + [("collected", "entries", "x'00'")]
            + [("collected", c, f"json_set({c}, '$.x', 1)") for c in ("rule", "left_out")]
            + [("evaluations", "metrics", "json('{}')"), ("checkpoints", "manifest", "json_set(manifest, '$.x', 1)")]
        )
    )
    kind = {row["name"]: row["type"] for row in query(world.db, f"PRAGMA table_info({table})")}[column]
    if change is None and column in ("config", "gates", "policy", "evidence"):
        change = f"CASE json_type({column}) WHEN 'array' THEN json('[]') ELSE json_set({column}, '$.x', 1) END"
    elif change is None and column in ("token_ids", "prompt_token_ids"):
        change = f"json_insert({column}, '$[#]', 1)"
    elif change is None:
        change = f"coalesce({column}, '') || 'x'" if kind == "TEXT" else f"coalesce({column}, 0) + 1"
    if column == "used":
        change = "1 - used"
    which = data.draw(st.integers(0, conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] - 1))
    keys = [row[1] for row in conn.execute(f"PRAGMA table_info({table})") if row[5]] or ["rowid"]
    chosen = conn.execute(f"SELECT {', '.join(keys)} FROM {table} LIMIT 1 OFFSET {which}").fetchone()
    where = " AND ".join(f"{k} = ?" for k in keys)
    if table == "stages" and column == "output":
        where += " AND name <> 'deciding'"
    if conn.execute(f"UPDATE {table} SET {column} = {change} WHERE {where}", chosen).rowcount:
        assert world.findings(), (table, column, chosen)


@pytest.mark.parametrize(
    "table",
    ["events", "completions", "selections", "earlier_selections", "decisions", "rounds", "stages", "runs", "prompts"],
)
def test_a_lost_row_is_found(world: World, table: str) -> None:
    sound(world)
    keys = [row["name"] for row in query(world.db, f"PRAGMA table_info({table})") if row["pk"]]
    where = " AND ".join(f"{key} = ?" for key in keys)
    lost = world.db.conn.execute(f"SELECT {', '.join(keys)} FROM {table} ORDER BY {', '.join(keys)}").fetchall()
    if table == "events":
        lost.pop()  # only the high-water mark tells that the last one is gone
    for key in lost:
        assert messages_after(world, f"DELETE FROM {table} WHERE {where}", key), key


def test_weights_are_read_where_they_should_be(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_text("base")
    run_dir = tmp_path / "run"
    growing = temporary_directory(run_dir / "checkpoints")
    (growing / "model.safetensors").write_text("round 1")
    made = commit_directory(growing, run_dir / "checkpoints" / "round-1")
    world = World(run_dir / "loop.db")
    for manifest, path in ((hash_directory(base), str(base)), (made, "checkpoints/round-1")):
        sha256 = manifest_sha256(manifest)
        world.ledger.checkpoints.add(Checkpoint(sha256, world.run.id, 0, "full", path, None, None, 1, manifest))
    world.ledger.checkpoints.set_state(weights("base").sha256, "collected")
    assert verify_store(world.db, run_dir).findings == []
    manifest_file = run_dir / "checkpoints/round-1/MANIFEST.json"
    content = manifest_file.read_bytes()
    for damage, words in ((b"x", "missing or unreadable"), (b'{"files":{},"whole_directory":true}', "is another")):
        manifest_file.write_bytes(damage)
        (finding,) = verify_store(world.db, run_dir).findings
        assert str(manifest_file) in finding.message and words in finding.message
    manifest_file.write_bytes(content)
    (base / "model.safetensors").write_text("bass")
    (run_dir / "checkpoints/round-1/model.safetensors").unlink()
    messages = [finding.message for finding in verify_store(world.db, run_dir).findings]
    assert len(messages) == 2 and "content differs" in messages[0] and "is missing" in messages[1]


def test_a_damaged_page_is_a_finding_and_not_a_crash(on_disk: World, tmp_path: Path) -> None:
    path = tmp_path / "loop.db"
    on_disk.whole_round(num_completions=300)
    on_disk.db.close()
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 4096 // 2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    findings = verify_store(open_database(path, read_only=True), tmp_path).findings
    assert findings and all("\n" not in finding.message for finding in findings)


def test_many_findings_are_counted_not_listed(world: World) -> None:
    world.whole_round(num_completions=200)
    without_guards(world).execute("UPDATE completions SET text = 'x'")
    messages = [message for message in world.findings() if message.startswith("completion: ")]
    assert len(messages) == 51 and messages[-1] == "completion: 151 more of this kind"  # 200 texts and the byte counter
