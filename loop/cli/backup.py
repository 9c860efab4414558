"""`loopctl backup`: a copy of the store, taken while it is being written to."""

from __future__ import annotations

from pathlib import Path

import click

from loop.cli.options import print_answer, shared_options, the_call
from loop.errors import UsageError
from loop.words import size


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@shared_options
def backup_command(file: Path) -> None:
    """Copy the store as it is now into a new FILE, without the checkpoints.

    To restore it, with no daemon running: remove loop.db-wal and loop.db-shm from the run directory, because they belong to
    the other store and would damage this one; then copy FILE there as loop.db.

    \b
    Examples:
      loopctl backup loop-today.db
    """
    from loop.system.files import check_place
    from store.db import backup, open_database

    if str(file) == "-":
        raise UsageError("FILE is -: a store cannot go to standard output; name a file")
    check_place(file)
    place = the_call().place()
    db = open_database(place.run_dir / "loop.db", read_only=True)
    try:
        backup(db, file)
    finally:
        db.close()
    num_bytes, store = file.stat().st_size, place.run_dir / "loop.db"
    remedy = f"to restore it, with no daemon running: remove {store}-wal and {store}-shm, then copy it to {store}"
    print_answer({"file": str(file), "bytes": num_bytes}, f"{file}: {size(num_bytes)}; {remedy}")
