"""`loopctl backup` copies the store while a run writes to it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from loop.cli.options import command, print_answer, the_call
from loop.errors import UsageError
from loop.words import size


@command("backup", "loopctl backup loop-today.db")
@click.argument("file", type=click.Path(path_type=Path))
def backup_command(file: Path) -> None:
    """Copy the store as it is now into a new FILE, without the checkpoints.

    To restore it, with no daemon running: remove loop.db-wal and loop.db-shm from the run directory, because they belong to
    the other store and would damage this one; then copy FILE there as loop.db.
    """
    from loop.system.files import check_place
    from store.db import backup, open_database

    if str(file) == "-":
        raise UsageError("FILE is -: a store cannot go to standard output; name a file")
    check_place(file)
    store = the_call().place().run_dir / "loop.db"
    with contextlib.closing(open_database(store, read_only=True)) as db:
        backup(db, file)
    num_bytes = file.stat().st_size
    remedy = f"to restore it, with no daemon running: remove {store}-wal and {store}-shm, then copy it to {store}"
    print_answer({"file": str(file), "bytes": num_bytes}, f"{file}: {size(num_bytes)}; {remedy}")
