"""What a kill between two transactions would leave: after every commit of a run the store is sound as it stands."""

import sqlite3
from pathlib import Path

from rounds import write_run

from loop.configfile import load_config
from loop.round import run_round
from loop.session import open_session
from store.db import open_database
from store.ledger import Ledger
from store.verify import verify_store


class Quiet:
    """A watch that looks away."""

    def stage(self, round: int, stage: str, what: str) -> None:
        """See `loop.session.Watch`."""

    def progress(self, done: int, total: int) -> None:
        """See `loop.session.Watch`."""

    def note(self, text: str) -> None:
        """See `loop.session.Watch`."""


def test_the_store_is_sound_after_every_commit(tmp_path: Path) -> None:
    loaded = load_config(write_run(tmp_path))
    copies: list[Path] = []

    def before_a_transaction(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE":
            copies.append(tmp_path / f"{len(copies)}.db")
            copy = sqlite3.connect(copies[-1])
            reader.backup(copy)
            copy.close()

    with open_session(loaded, Quiet()) as session:
        reader = sqlite3.connect(loaded.run_dir / "loop.db")
        session.ledger.db.conn.set_trace_callback(before_a_transaction)
        states = [run_round(session).state for _ in range(loaded.config.rounds)]
        session.ledger.db.conn.set_trace_callback(None)
        reader.close()
        assert "kept" in states, "else no head was moved"
        assert len(copies) > 20
        heads = set()
        for path in copies:
            db = open_database(path, read_only=True)
            assert verify_store(db, loaded.run_dir).findings == [], path.name
            run = Ledger(db).run()
            assert run is not None
            heads.add(run.head_round)
            db.close()
        assert len(heads) > 1 or states == ["rolled_back", "kept"]
