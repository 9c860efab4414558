"""Opening, migrating, transactions, and what survives a killed writer."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_utils import Database

import store.db
from store import verify
from store.db import backup, execute, migrate, open_database, query, scalar, transaction
from store.errors import NoStore, NotAStore, StoreError, StoreTooNew, StoreTooOld
from store.ledger import Ledger
from store.migrations import APPEND_ONLY, MIGRATIONS, Migration
from store.schema_page import described, schema_markdown
from store.verify import verify_store, write_high_water
from tests.support import ROOT
from tests.support.stores import World
from tests.support.waiting import HANG_S


def pragma(db: store.db.Database, name: str) -> object:
    return db.execute(f"PRAGMA {name}").fetchone()[0]


def test_the_pragmas_are_set(tmp_path: Path) -> None:
    db = open_database(tmp_path / "loop.db")
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}
    assert {name: pragma(db, name) for name in expected} == expected
    reader = open_database(tmp_path / "loop.db", read_only=True)
    assert pragma(reader, "foreign_keys") == 1 and pragma(reader, "query_only") == 1


def test_the_schema_document_is_up_to_date() -> None:
    document = (ROOT / "docs/schema.md").read_text(encoding="utf-8")
    assert document == schema_markdown(), "run python -m store.schema_page > docs/schema.md"


def test_a_column_that_a_later_migration_adds_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    sql = "ALTER TABLE completions ADD COLUMN extra REAL /* -- Something more. */;"
    later = Migration(99, "later", sql + sql.replace("extra", "another"))
    monkeypatch.setattr("store.schema_page.migrate", lambda db: migrate(db, (*MIGRATIONS, later)))
    (completions,) = [table for table in described() if table.name == "completions"]
    assert completions.columns[-2:] == [(name, "real or NULL", "Something more.") for name in ("extra", "another")]


def test_a_reader_sees_no_migration_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`loopctl status` beside a daemon that is just making its store."""
    path, seen = tmp_path / "loop.db", set[str]()

    def look(name: str) -> None:
        try:
            open_database(path, read_only=True).close()
            seen.add("all")
        except NoStore:
            seen.add("none")

    monkeypatch.setattr(store.db, "reach", look)
    open_database(path).close()
    assert seen == {"none", "all"}


def test_a_migration_and_its_record_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loop.db"
    db = open_database(path)
    next_number, released = len(MIGRATIONS) + 1, [{"number": m.number, "name": m.name} for m in MIGRATIONS]
    assert query(db, "SELECT number, name FROM schema_migrations") == released
    bad = Migration(next_number, "half", "CREATE TABLE extra (x);\nCREATE TABLE runs (x);\n")
    monkeypatch.setattr(store.db, "MIGRATIONS", (*MIGRATIONS, bad))
    with pytest.raises(StoreError, match="table runs already exists"):
        open_database(path)
    assert scalar(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'extra'") == 0
    assert scalar(db, "SELECT count(*) FROM schema_migrations") == len(MIGRATIONS)
    with pytest.raises(StoreTooOld, match=rf"lacks migration {next_number} \(half\)"):
        open_database(path, read_only=True)
    whole = Migration(next_number, "whole", "CREATE TABLE extra (x);")
    monkeypatch.setattr(store.db, "MIGRATIONS", (*MIGRATIONS, whole))
    open_database(path)
    assert scalar(db, "SELECT name FROM schema_migrations ORDER BY number DESC LIMIT 1") == "whole"


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_store_is_refused_by_name(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "loop.db"
    db = open_database(path)
    execute(db, "INSERT INTO schema_migrations VALUES (99, 'tomorrow', '2030')")
    with pytest.raises(StoreTooNew, match=r"migration 99 \(tomorrow\)"):
        open_database(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_not_a_store_is_left_alone(tmp_path: Path, read_only: bool) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.db"
    text.write_text("not a database at all, but long enough to be looked at as if it were one\n" * 20)
    sqlite3.connect(other, isolation_level=None).execute("CREATE TABLE theirs (x)").connection.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(NotAStore, match=path.name):
            open_database(path, read_only=read_only)
        assert path.read_bytes() == before
    with pytest.raises(NotAStore):
        open_database(tmp_path, read_only=read_only)
    with pytest.raises(NoStore if read_only else StoreError) as caught:
        open_database(tmp_path / "no" / "loop.db", read_only=read_only)
    assert "\n" not in str(caught.value)


def test_an_interrupted_creation_is_finished_at_the_next_open(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "loop.db").execute("PRAGMA journal_mode = WAL").connection.close()  # as far as it got
    assert World(tmp_path / "loop.db").run.name == "demo"


def test_readers_need_no_writer_and_may_use_odd_names(tmp_path: Path) -> None:
    path = tmp_path / "a b?#%41.db"
    world = World(path)
    world.db.close()
    reader = open_database(path, read_only=True)
    assert Ledger(reader).run() == world.run
    with pytest.raises(StoreError, match="cannot be opened or written"):
        execute(reader, "UPDATE runs SET seed = 2")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_a_store_in_a_read_only_place_can_be_read(on_disk: World, tmp_path: Path) -> None:
    on_disk.db.close()
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            os._exit(Ledger(open_database(tmp_path / "loop.db", read_only=True)).run() != on_disk.run)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_reader_is_not_held_up_by_a_writer_nor_sees_half_of_it(on_disk: World, tmp_path: Path) -> None:
    events = Ledger(open_database(tmp_path / "loop.db", read_only=True)).events
    before = events.last()
    with transaction(on_disk.db):
        on_disk.ledger.events.append(on_disk.run.id, "half")
        assert events.last() == before  # this very thread writes: to wait for it would take for ever
    last = events.last()
    assert last and last.kind == "half"


def test_reading_then_writing_waits_for_the_other_writer(tmp_path: Path) -> None:
    """A deferred transaction that reads first fails at once with SQLITE_BUSY_SNAPSHOT, whatever the timeout."""
    path = tmp_path / "loop.db"
    World(path)
    num_events = 60

    def write(name: str) -> None:
        ledger = Ledger(open_database(path))
        ledger.db.execute(f"PRAGMA busy_timeout = {1000 * HANG_S:.0f}")  # it waits, however long the disk takes
        for _ in range(num_events):
            with transaction(ledger.db):
                last = ledger.events.last()
                time.sleep(0.0002)
                ledger.events.append(last.run_id, name, after=last.seq)

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(write, "ab")) == [None, None]
    db = open_database(path, read_only=True)
    events = [event for event in Ledger(db).events.every() if event.kind in "ab"]
    assert len(events) == 2 * num_events and all(event.data["after"] == event.seq - 1 for event in events)


def test_transactions_nest_and_undo_only_their_own(world: World) -> None:
    with transaction(world.db):
        world.ledger.events.append(world.run.id, "outer")
        with pytest.raises(RuntimeError), transaction(world.db):
            world.ledger.events.append(world.run.id, "inner")
            raise RuntimeError
    last = world.ledger.events.last()
    assert last and last.kind == "outer"
    with pytest.raises(KeyboardInterrupt), transaction(world.db):
        world.ledger.events.append(world.run.id, "never")
        raise KeyboardInterrupt
    assert world.ledger.events.last() == last and not world.db.conn.in_transaction


def test_a_full_disk_is_one_line_and_stores_nothing(on_disk: World) -> None:
    on_disk.ledger.begin_round(on_disk.run.id)
    on_disk.db.execute(f"PRAGMA max_page_count = {pragma(on_disk.db, 'page_count')}")
    with on_disk.refused(StoreError, "loop.db: the disk is full; nothing of this was stored"):
        on_disk.corpus.add_completions([on_disk.completion(n, text="x" * 9999) for n in range(100)])
    on_disk.db.execute("PRAGMA max_page_count = 1000000")
    assert on_disk.corpus.add_completions([on_disk.completion(0)]) == 1


def test_what_is_append_only_stays(world: World) -> None:
    world.whole_round()
    world.whole_round(earlier=world.corpus.texts(world.run.id, 1))
    world.suite()
    world.probe()
    world.collected()
    for table in APPEND_ONLY:
        column = query(world.db, f"PRAGMA table_info({table})")[0]["name"]
        for statement in ("DELETE FROM {}", "UPDATE {0} SET {1} = {1}", "REPLACE INTO {0} SELECT * FROM {0}"):
            with world.refused(StoreError, "append-only|without gaps"):
                execute(world.db, statement.format(table, column))


def test_an_event_out_of_sequence_is_refused(world: World) -> None:
    sql = "INSERT INTO events VALUES (?, '', ?, '', NULL, NULL, '{}', '', '')"
    for seq in (7, 1, -1):
        with pytest.raises(StoreError, match="without gaps|UNIQUE"):
            execute(world.db, sql, (seq, world.run.id))


def test_a_backup_is_a_store(on_disk: World, tmp_path: Path) -> None:
    """What a killed backup left goes with the next one, and nothing else goes."""
    left, of_another = tmp_path / ".copy.db.0123abcd.partial", tmp_path / ".copy.db.old.0123abcd.partial"
    left.touch()
    of_another.touch()
    on_disk.whole_round()
    reader = open_database(tmp_path / "loop.db", read_only=True)
    backup(reader, tmp_path / "copy.db")
    assert not left.exists() and of_another.exists()
    copy = open_database(tmp_path / "copy.db", read_only=True)
    assert Ledger(copy).events.last() == on_disk.ledger.events.last()
    with pytest.raises(StoreError, match="already exists"):
        backup(reader, tmp_path / "copy.db")


def test_views_can_be_read(world: World) -> None:
    world.whole_round()
    reasons = [row["left_out_because"] for row in query(world.db, "SELECT * FROM corpus ORDER BY arrival")]
    assert reasons == [None, "too short", None]
    outcomes = query(world.db, "SELECT state, verdict, num_attempts FROM round_results")
    assert outcomes == [{"state": "kept", "verdict": "keep", "num_attempts": 4}]
    assert query(world.db, "SELECT * FROM evaluation_results") == []


@pytest.mark.parametrize(
    ("select", "index"),
    [
        ("* FROM completions WHERE evaluation_id IS NULL AND run_id = '' AND round = 1 ORDER BY arrival", "_corpus"),
        ("id FROM completions WHERE evaluation_id = ''", "completions_of_evaluation"),
        ("count(*) FROM completions WHERE run_id = '' AND round = 1 AND evaluation_id IS NULL", "completions_corpus"),
        ("completion_id FROM verdicts WHERE evaluation_id = ''", "PRIMARY KEY"),
        ("* FROM evaluations WHERE run_id = '' AND checkpoint = ''", "evaluations_of_checkpoint"),
        ("* FROM completions WHERE evaluation_id IS NULL AND prompt_id = '' ORDER BY arrival", "completions_of_prompt"),
    ],
)
def test_the_common_reads_use_an_index(world: World, select: str, index: str) -> None:
    plan = " ".join(row["detail"] for row in query(world.db, f"EXPLAIN QUERY PLAN SELECT {select}"))
    assert index in plan and "SCAN" not in plan, plan


WRITER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.stores import World
world = World(Path(sys.argv[1]))
round = world.ledger.open_round(world.run.id) or world.ledger.begin_round(world.run.id)
number = len(world.corpus.existing_ids(world.run.id, 1))
print("ready", flush=True)
while True:
    world.corpus.add_completions([world.completion(n) for n in range(number, number + 5)])
    number += 5
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "loop.db"
    draw = random.Random(1)
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout and writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0, 0.03))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        db = open_database(path, read_only=True)
        stored = scalar(db, "SELECT count(*) FROM completions")
        assert stored % 5 == 0 and stored >= max(acknowledged, default=0)
        db.close()
    assert World(path).findings() == []


def test_a_lost_wal_is_noticed(on_disk: World, tmp_path: Path) -> None:
    """SQLite opens what is left without complaint; the mark outside the database tells."""
    on_disk.ledger.begin_round(on_disk.run.id)
    on_disk.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    on_disk.corpus.add_completions([on_disk.completion(n) for n in range(5)])
    on_disk.ledger.events.append(on_disk.run.id, "last")
    write_high_water(on_disk.db, tmp_path)
    (tmp_path / "lost.db").write_bytes((tmp_path / "loop.db").read_bytes())
    findings = verify_store(open_database(tmp_path / "lost.db"), tmp_path).findings
    assert [f.message for f in findings if f.kind != "checkpoint"] == [
        "events after 3 are lost: there were 4",
        "5 completions are lost: there were 5",
    ]


def test_a_daemon_that_writes_meanwhile_has_lost_nothing(
    on_disk: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark that is compared is not newer than the state of the store that is read."""
    write_high_water(on_disk.db, tmp_path)
    integrity = verify._database

    def meanwhile(db: Database) -> Iterator[str]:
        yield from integrity(db)
        on_disk.ledger.events.append(on_disk.run.id, "meanwhile")
        write_high_water(on_disk.db, tmp_path)

    monkeypatch.setattr(verify, "_database", meanwhile)
    reader = open_database(tmp_path / "loop.db", read_only=True)
    assert [f.message for f in verify_store(reader, tmp_path).findings if f.kind != "checkpoint"] == []
