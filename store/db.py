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
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
PAGE = 500  # rows that a streaming read holds in memory, at most
PAGE_BYTES = 8 << 20  # of text, of these rows, but for the last one; a completion of 65,000 tokens has 0.8 MB
JOURNAL_LIMIT_BYTES = 64 << 20  # the WAL shrinks back to this after a long read held it open

_WRITING = threading.RLock()  # SQLite before 3.51.3 can lose a WAL that two connections write and reset at once

DATABASE = "loop.db"  # its name in a run directory
Row = dict[str, Any]
R = TypeVar("R")
_Codec = tuple[Callable[[Any], Any], Callable[[Any], Any]]  # a value as a column, and a column as its value

# SQLite's codes for a quota that is reached, a file system that turned read-only, and a disk that fails.
_NOT_WRITTEN = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE, sqlite3.SQLITE_IOERR_SHMSIZE)

_JSON: _Codec = (canonical_json, json.loads)
_CODECS: dict[str, _Codec] = {  # by the type of a field; all other fields are columns as they are
    "Json": _JSON,
    "Json | None": _JSON,
    "list[Json]": _JSON,
    "Compressed": (
        lambda value: zlib.compress(compact_json(value).encode()),
        lambda column: json.loads(zlib.decompress(column)),
    ),
    "tuple[int, ...]": (compact_json, lambda column: tuple(json.loads(column))),
    "bool": (int, bool),
}
_COLUMNS: dict[type[Any], list[tuple[str, _Codec | None]]] = {}  # of each kind of record, when it is first asked for


class Database:
    """An open store; without a connection, an empty one in memory. Errors call it by `name`."""

    def __init__(self, conn: sqlite3.Connection | None = None, name: str = "store") -> None:
        self.conn = conn or sqlite3.connect(":memory:", isolation_level=None)
        self.name = name
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
        return self.conn.execute(sql, parameters)

    def close(self) -> None:
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
    if read_only and not path.with_name(f"{path.name}-wal").exists() and not os.access(path.parent, os.W_OK):
        mode += "&immutable=1"  # nothing can be writing here: SQLite opens a WAL database only if it is told that
    with _translated(str(path)):
        conn = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            pending = _pending(conn, path)  # before anything is done to what may not be ours
            db = Database(conn, str(path))
            conn.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
            conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if read_only:
                conn.execute("PRAGMA query_only = ON")
                if len(pending) == len(MIGRATIONS):  # made by a process that went no further
                    raise NoStore(f"{path}: holds nothing yet")
                if pending:
                    first = pending[0]
                    raise StoreTooOld(
                        f"{path}: lacks migration {first.number} ({first.name}); `loopctl run` applies it"
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
    with _translated(db.name):
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
    with _translated(db.name):
        nested = db.conn.in_transaction
        if not nested:
            db.conn.execute("BEGIN")
        try:
            yield
        finally:
            if db.conn.in_transaction and not nested:
                db.conn.execute("ROLLBACK")


def execute(db: Database, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
    """Run one statement inside the caller's transaction; the number of rows that it changed."""
    with _translated(db.name):
        return db.execute(sql, _parameters(parameters)).rowcount


def query(db: Database, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
    """The rows of a bounded SELECT, by column name, with text as it was before it was stored."""
    with _translated(db.name):
        return list(_rows(db.execute(sql, _parameters(parameters))))


def _rows(cursor: sqlite3.Cursor) -> Iterator[Row]:
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield {
            name: unescape(value) if isinstance(value, str) else value for name, value in zip(names, row, strict=True)
        }


def stream(db: Database, sql: str, after: Row, **given: Any) -> Iterator[Row]:
    """The same for a SELECT of any size: memory stays flat, and no read holds a writer up.

    `after`: the columns by which the SELECT is ordered, with values before the first row. Each is a parameter, too: the
    SELECT asks for the rows that come after them.
    """
    while rows := _page(db, f"{sql} LIMIT {PAGE}", given | after):
        yield from rows
        after = {name: rows[-1][name] for name in after}


def _page(db: Database, sql: str, parameters: Row) -> list[Row]:
    """The first rows of a SELECT, until they have PAGE_BYTES. The SELECT is over then: an open one would hold a writer up."""
    rows, num_bytes = [], 0
    with _translated(db.name), closing(db.execute(sql, _parameters(parameters))) as cursor:
        for row in _rows(cursor):
            rows.append(row)
            num_bytes += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
            if num_bytes >= PAGE_BYTES:
                break
    return rows


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


def required(record: R | None, missing: str) -> R:
    """The record; StoreError with the words for its absence if there is none."""
    if record is None:
        raise StoreError(missing)
    return record


def insert(db: Database, table: str, records: Iterable[Any], *, clause: str = "") -> int:
    """Store records of one dataclass inside the caller's transaction; the number of rows stored or changed."""
    rows = [pack(record) for record in records]
    return insert_rows(db, table, list(rows[0]), [bound(row.values()) for row in rows], clause) if rows else 0


def insert_rows(db: Database, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]], clause: str = "") -> int:
    """The same for rows that are `bound` columns already, in the order of `names`."""
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) {clause}"
    with _translated(db.name):
        return db.conn.executemany(sql, rows).rowcount


def bound(values: Iterable[Any]) -> list[Any]:
    """Values as SQLite takes them: text escaped."""
    return [escape(value) if isinstance(value, str) else value for value in values]


def pack(record: Any) -> Row:
    """A record as columns: JSON as canonical text, booleans as 0 and 1."""
    values = ((name, codec, getattr(record, name)) for name, codec in _columns(type(record)))
    return {name: codec[0](value) if codec and value is not None else value for name, codec, value in values}


def unpack(kind: type[R], row: Row) -> R:
    """The record of a row that `query` gave; columns that the record does not have are left out."""
    values = ((name, codec, row[name]) for name, codec in _columns(kind))
    return kind(**{name: codec[1](value) if codec and value is not None else value for name, codec, value in values})


def backup(db: Database, target: str | Path) -> None:
    """Copy the store as of now into a new file while it is being written to; StoreError if the file exists."""
    target = Path(target)
    if target.exists():
        raise StoreError(f"{target}: already exists; choose another name")
    begins, random = glob.escape(f".{target.name[:50]}."), "[0-9a-f]" * 8
    for left in target.parent.glob(f"{begins}{random}.partial"):  # of a backup that was killed; see `written`
        left.unlink(missing_ok=True)
    with _translated(str(target)), written(target) as file, closing(sqlite3.connect(file.name)) as copy:
        db.conn.backup(copy)


def _columns(kind: type[Any]) -> list[tuple[str, _Codec | None]]:
    if kind not in _COLUMNS:
        _COLUMNS[kind] = [(field.name, _CODECS.get(str(field.type))) for field in fields(kind)]
    return _COLUMNS[kind]


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
    applied = set(conn.execute("SELECT number, name FROM schema_migrations"))
    if unknown := sorted(applied - {migration[:2] for migration in MIGRATIONS}):
        raise StoreTooNew(
            f"{path}: has migration {unknown[0][0]} ({unknown[0][1]}), which this version does not know; "
            "use the version that wrote it, or a newer one"
        )
    return [migration for migration in MIGRATIONS if migration[:2] not in applied]


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None) or 0
        cannot = code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY) or code in _NOT_WRITTEN
        explanation = _explanation(code, " ".join(str(error).split()))
        raise (CannotWrite if cannot else StoreError)(f"{name}: {explanation}") from error
    except OverflowError as error:
        raise StoreError(f"{name}: a number is too large for SQLite's 64 bits") from error


def _explanation(code: int, words: str) -> str:
    if code in _NOT_WRITTEN:
        return f"the disk takes nothing ({words}): full, over its quota or read-only; nothing of this was stored"
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "the disk is full; nothing of this was stored; free some space and try again"
        case sqlite3.SQLITE_BUSY:
            return f"another process has been writing for {BUSY_TIMEOUT_S:.0f} s; only one daemon may hold a run"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"the file is damaged ({words}); restore a backup"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"cannot be opened or written ({words}); check that the directory exists and its permissions"
    return words
