"""What the page shows: a run or an experiment, read from its stores, whether or not a process holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from loop.config.place import Place
from loop.system.heartbeat import read_heartbeat
from loop.system.lock import holder
from store.db import open_database
from store.errors import StoreError
from store.ledger import Ledger
from store.records import Json

if TYPE_CHECKING:
    from loop.experiments.file import Experiment


class Mark(NamedTuple):
    """How far a run is. `history` changes with every event, `pulse` with every sign of progress between two events."""

    history: tuple[Any, ...]
    pulse: tuple[Any, ...]


class Source(Protocol):
    """Each method is called in a thread, once at a time. It may raise StoreError and LoopError."""

    def mark(self) -> Mark:
        """How far it is: a cheap look, which never raises."""

    def facts(self) -> Json:
        """Everything that the page shows."""

    def status(self) -> Json:
        """The answer of /status.json."""


def mark(run_dir: Path) -> Mark:
    """How far a run is: its last event, and the news of its heartbeat. About a millisecond."""
    try:
        db = open_database(run_dir / "loop.db", read_only=True)
        try:
            last = Ledger(db).last_event()
            history: tuple[Any, ...] = (last.seq, last.sha256) if last else (0,)
        finally:
            db.close()
    except (StoreError, OSError) as error:
        history = (type(error).__name__, str(error))
    beat = read_heartbeat(run_dir)
    news = (beat.state, beat.reason, beat.round, beat.stage, beat.part, beat.done, beat.next_due_at) if beat else ()
    return Mark((*history, holder(run_dir)), news)


@dataclass(frozen=True, slots=True)
class RunSource:
    """The run of a loop.toml."""

    place: Place

    def mark(self) -> Mark:
        return mark(self.place.run_dir)

    def facts(self) -> Json:
        from loop.report.facts import run_facts

        return run_facts(self.place)

    def status(self) -> Json:
        from loop.reading.as_json import as_json
        from loop.reading.standing import status

        standing: Json = as_json(status(self.place.run_dir, self.place.name, self.place.rounds))
        return standing


@dataclass(frozen=True, slots=True)
class ExperimentSource:
    """All runs of an experiment, beside each other."""

    experiment: Experiment

    def mark(self) -> Mark:
        marks = [mark(run.run_dir) for run in self.experiment.runs]
        history = (holder(self.experiment.directory), *(mark.history for mark in marks))
        return Mark(history, tuple(mark.pulse for mark in marks))

    def facts(self) -> Json:
        from loop.report.facts import facts_of_experiment

        return facts_of_experiment(self.experiment)

    def status(self) -> Json:
        from loop.experiments.facts import experiment_facts

        return experiment_facts(self.experiment)
