"""Opening a store, writing to it in transactions, and binding rows; the only place that talks to SQLite.

It knows nothing of rounds or completions. One process opens for writing, any number read. A connection belongs to one
thread; transactions of several threads wait for each other here and never meet in SQLite. Rows go through sqlite3
itself, so that a reader such as `loopctl status` starts at once; the schema goes through sqlite-utils (`Database.tools`).
"""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from store.canonical import canonical_json, compact_json, escape, unescape
from store.durable import written
from store.errors import CannotWrite, NoStore, NotAStore, StoreError, StoreTooNew, StoreTooOld
from store.failpoints import reach
from store.migrations import MIGRATIONS, Migration

if TYPE_CHECKING:
    import sqlite_utils

APPLICATION_ID = 0x6C6F6F70  # "loop", in the file's header
BUSY_TIMEOUT_S = 30.0
CACHE_KIB = 32 * 1024
JOURNAL_LIMIT_BYTES = 64 << 20  # the WAL shrinks back to this after a long read held it open

_WRITING = threading.RLock()  # SQLite before 3.51.3 can lose a WAL that two connections write and reset at once

DATABASE = "loop.db"  # its name in a run directory
Row = dict[str, Any]
R = TypeVar("R")

# SQLite's codes for a quota that is reached, a file system that turned read-only, and a disk that fails.
_NOT_WRITTEN = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE)

_CODEC_OF = {"Json": "json", "Json | None": "json", "list[Json]": "json", "tuple[int, ...]": "tuple", "bool": "bool"}
_CODECS: dict[type[Any], tuple[tuple[str, str], ...]] = {}


class Database:
    """An open store; without a connection, an empty one in memory."""

    def __init__(self, conn: sqlite3.Connection | None = None) -> None:
        self.conn = conn or sqlite3.connect(":memory:", isolation_level=None)
        self.conn.execute("PRAGMA foreign_keys = ON")
        self.conn.execute("PRAGMA recursive_triggers = ON")  # or REPLACE would get past the append-only triggers

    @property
    def tools(self) -> sqlite_utils.Database:
        """sqlite-utils over the same connection. Its import leaves out numpy and pandas: 0.05 s in place of 0.3 s and 90 MB."""
        modules: dict[str, Any] = sys.modules
        hidden = set() if "sqlite_utils" in modules else {"numpy", "pandas"} - modules.keys()
        modules.update(dict.fromkeys(hidden))  # None makes an import an ImportError, which sqlite-utils expects
        try:
            import sqlite_utils
        finally:
            for name in hidden:
                del modules[name]
        return sqlite_utils.Database(self.conn, execute_plugins=False)

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.conn.execute(sql, parameters)

    def close(self) -> None:
        """Close the connection."""
        self.conn.close()


def utc_now() -> str:
    """The time as RFC 3339 UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def open_database(path: str | Path, *, read_only: bool = False) -> Database:
    """Open the store at `path`; for writing, create it and apply what migrations it lacks.

    A reader needs no running writer and never blocks one. Raises NoStore, NotAStore, StoreTooNew, StoreTooOld, or
    StoreError for anything else that stands in the way.
    """
    path = Path(path).absolute()
    if read_only and not path.exists():
        raise NoStore(f"{path}: no such file; nothing has been run here yet")
    if path.is_dir():
        raise NotAStore(f"{path}: is a directory, not a store")
    mode = "mode=ro" if read_only else "mode=rwc"
    if read_only and _nobody_can_write(path):
        mode += "&immutable=1"
    with _translated(path):
        conn = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            pending = _pending(conn, path)  # before anything is done to what may not be ours
            db = Database(conn)
            conn.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
            conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if read_only:
                conn.execute("PRAGMA query_only = ON")
                if len(pending) == len(MIGRATIONS):  # made by a process that went no further
                    raise NoStore(f"{path}: holds nothing yet")
                if pending:
                    raise StoreTooOld(
                        f"{path}: lacks migration {pending[0].number} ({pending[0].name}); `loopctl run` applies it"
                    )
                return db
            if conn.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(f"{path}: this file system does not support SQLite's WAL; use a local disk")
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
            if pending:
                migrate(db, pending)
            return db
        except BaseException:
            conn.close()
            raise


def migrate(db: Database, migrations: Iterable[Migration] = MIGRATIONS) -> None:
    """Apply migrations in order with their records, all in one transaction: nobody ever reads a store in between."""
    tools = db.tools
    with transaction(db):
        tools.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for migration in migrations:
            tools.executescript(migration.sql)  # statement by statement, as a transaction is open
            row = {"number": migration.number, "name": migration.name, "applied_at": utc_now()}
            tools.table("schema_migrations").insert(row)


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """All or nothing: the one way of writing. Nests as a savepoint; the outermost holds the write lock from its start.

    When the block ends, what it wrote is on disk. Any exception undoes it; SQLite's become StoreError.
    """
    with _translated(db):
        if db.conn.in_transaction:
            db.conn.execute("SAVEPOINT inner")
            try:
                yield
            except BaseException:
                if db.conn.in_transaction:
                    db.conn.execute("ROLLBACK TO inner")
                    db.conn.execute("RELEASE inner")
                raise
            db.conn.execute("RELEASE inner")
            return
        with _WRITING:
            db.conn.execute("BEGIN IMMEDIATE")
            try:
                reach("store.begun")
                yield
                reach("store.commit")
                db.conn.execute("COMMIT")
                reach("store.committed")
            except BaseException:
                if db.conn.in_transaction:
                    db.conn.execute("ROLLBACK")
                raise


@contextmanager
def snapshot(db: Database) -> Iterator[None]:
    """Reads inside see one state of the store, however much is written meanwhile. The WAL grows until it ends."""
    with _translated(db):
        if db.conn.in_transaction:
            yield
            return
        db.conn.execute("BEGIN")
        try:
            yield
        finally:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")


def execute(db: Database, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
    """Run one statement inside the caller's transaction; the number of rows that it changed."""
    with _translated(db):
        return db.execute(sql, _parameters(parameters)).rowcount


def query(db: Database, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
    """The rows of a bounded SELECT, by column name, with text as it was before it was stored."""
    with _translated(db):
        cursor = db.execute(sql, _parameters(parameters))
        names = [column[0] for column in cursor.description]
        return [
            {name: unescape(value) if isinstance(value, str) else value for name, value in zip(names, row, strict=True)}
            for row in cursor
        ]


def scalar(db: Database, sql: str, parameters: Sequence[Any] = ()) -> Any:
    """The first column of the first row; None if there is no row."""
    rows = query(db, sql, parameters)
    return next(iter(rows[0].values())) if rows else None


def select(db: Database, kind: type[R], sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[R]:
    """The same as records of one dataclass, whose fields are among the columns."""
    return [unpack(kind, row) for row in query(db, sql, parameters)]


def select_one(db: Database, kind: type[R], sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> R | None:
    """The first of these records; None if there is no row."""
    return next(iter(select(db, kind, sql, parameters)), None)


def insert(db: Database, table: str, records: Iterable[Any], *, clause: str = "") -> int:
    """Store records of one dataclass inside the caller's transaction; the number of rows stored or changed."""
    records = list(records)
    if not records:
        return 0
    names = [name for name, _ in _codecs(type(records[0]))]
    return insert_rows(db, table, names, [bound(pack(record).values()) for record in records], clause=clause)


def insert_rows(
    db: Database, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]], *, clause: str = ""
) -> int:
    """The same for rows that are `bound` columns already, in the order of `names`."""
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {clause}"
    with _translated(db):
        return db.conn.executemany(sql, rows).rowcount


def bound(values: Iterable[Any]) -> list[Any]:
    """Values as SQLite takes them: text escaped."""
    return [escape(value) if isinstance(value, str) else value for value in values]


def pack(record: Any) -> Row:
    """A record as columns: JSON as canonical text, booleans as 0 and 1."""
    row: Row = {}
    for name, codec in _codecs(type(record)):
        value = getattr(record, name)
        if codec == "tuple":
            value = compact_json(value)
        elif codec == "json" and value is not None:
            value = canonical_json(value)
        row[name] = value
    return row


def unpack(kind: type[R], row: Row) -> R:
    """The record of a row that `query` gave; columns that the record does not have are left out."""
    values: Row = {}
    for name, codec in _codecs(kind):
        value = row[name]
        if value is not None:
            if codec == "json":
                value = json.loads(value)
            elif codec == "tuple":
                value = tuple(json.loads(value))
            elif codec == "bool":
                value = bool(value)
        values[name] = value
    return kind(**values)


def backup(db: Database, target: str | Path) -> None:
    """Copy the store as of now into a new file while it is being written to; StoreError if the file exists."""
    target = Path(target)
    if target.exists():
        raise StoreError(f"{target}: already exists; choose another name")
    begins, random = glob.escape(f".{target.name[:50]}."), "[0-9a-f]" * 8
    for left in target.parent.glob(f"{begins}{random}.partial"):  # of a backup that was killed; see `written`
        left.unlink(missing_ok=True)
    with _translated(target), written(target) as file:
        copy = sqlite3.connect(file.name)
        try:
            db.conn.backup(copy)
        finally:
            copy.close()


def _codecs(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    if kind not in _CODECS:
        _CODECS[kind] = tuple((field.name, _CODEC_OF.get(str(field.type), "plain")) for field in fields(kind))
    return _CODECS[kind]


def _parameters(given: Sequence[Any] | Mapping[str, Any]) -> list[Any] | dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(zip(given, bound(given.values()), strict=True))
    return bound(given)


def _pending(conn: sqlite3.Connection, path: Path) -> list[Migration]:
    """The migrations that the store lacks; raises if it is not a store or knows one that we do not."""
    try:
        application_id = conn.execute("PRAGMA application_id").fetchone()[0]
        num_objects = conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise NotAStore(f"{path}: is not an SQLite database; it was left alone") from error
        raise
    if application_id != APPLICATION_ID:
        if num_objects or application_id:
            raise NotAStore(f"{path}: is another program's database; it was left alone")
        return list(MIGRATIONS)
    known = {(migration.number, migration.name) for migration in MIGRATIONS}
    applied = {(number, name) for number, name in conn.execute("SELECT number, name FROM schema_migrations")}
    if unknown := sorted(applied - known):
        raise StoreTooNew(
            f"{path}: has migration {unknown[0][0]} ({unknown[0][1]}), which this version does not know; "
            "use the version that wrote it, or a newer one"
        )
    return [migration for migration in MIGRATIONS if (migration.number, migration.name) not in applied]


def _nobody_can_write(path: Path) -> bool:
    """Whether nothing can be writing here: a WAL database then opens only if SQLite is told so."""
    return not path.with_name(path.name + "-wal").exists() and not os.access(path.parent, os.W_OK)


@contextmanager
def _translated(where: Database | Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None) or 0
        cannot = code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) or code in _NOT_WRITTEN
        raise (CannotWrite if cannot else StoreError)(f"{_name(where)}: {_explanation(error)}") from error
    except OverflowError as error:
        raise StoreError(f"{_name(where)}: a number is too large for SQLite's 64 bits") from error


def _name(where: Database | Path) -> str:
    if isinstance(where, Path):
        return str(where)
    try:
        return next((row[2] for row in where.conn.execute("PRAGMA database_list") if row[1] == "main"), "store")
    except sqlite3.Error:
        return "store"


def _explanation(error: sqlite3.Error) -> str:
    words = " ".join(str(error).split())
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code in _NOT_WRITTEN:
        return f"the disk takes nothing ({words}): full, over its quota or read-only; nothing of this was stored"
    code &= 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; nothing of this was stored; free some space and try again"
    if code == sqlite3.SQLITE_BUSY:
        return f"another process has been writing for {BUSY_TIMEOUT_S:.0f} s; only one daemon may hold a run"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the file is damaged ({words}); restore a backup"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"cannot be opened or written ({words}); check that the directory exists and its permissions"
    return words
