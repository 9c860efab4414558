"""What the page shows: a run or an experiment, read from its stores, whether or not a process holds them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loop.config.place import Place
from loop.reading.as_json import as_json
from loop.reading.standing import status
from loop.report.facts import facts_of_experiment, run_facts
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


@dataclass(frozen=True, slots=True)
class Source:
    """What `Live` asks, each in a thread and once at a time. `facts` and `status` may raise StoreError and LoopError."""

    mark: Callable[[], Mark]  # a cheap look, which never raises
    facts: Callable[[], Json]  # everything that the page shows
    status: Callable[[], Json]  # the answer of /status.json


def of_run(place: Place) -> Source:
    """The run of a loop.toml."""
    return Source(
        mark=lambda: mark(place.run_dir),
        facts=lambda: run_facts(place),
        status=lambda: as_json(status(place.run_dir, place.name, place.rounds)),
    )


def of_experiment(experiment: Experiment) -> Source:
    """All runs of an experiment, beside each other."""
    from loop.experiments.facts import experiment_facts

    def marks() -> Mark:
        runs = [mark(run.run_dir) for run in experiment.runs]
        history = (holder(experiment.directory), *(run.history for run in runs))
        return Mark(history, tuple(run.pulse for run in runs))

    return Source(marks, lambda: facts_of_experiment(experiment), lambda: experiment_facts(experiment).as_json())


def mark(run_dir: Path) -> Mark:
    """How far a run is: its last event, and the news of its heartbeat. About a millisecond."""
    try:
        with contextlib.closing(open_database(run_dir / "loop.db", read_only=True)) as db:
            last = Ledger(db).events.last()
        history: tuple[Any, ...] = (last.seq, last.sha256) if last else (0,)
    except (StoreError, OSError) as error:
        history = (type(error).__name__, str(error))
    beat = read_heartbeat(run_dir)
    news = (beat.state, beat.reason, beat.round, beat.stage, beat.part, beat.done, beat.next_due_at) if beat else ()
    return Mark((*history, holder(run_dir)), news)
