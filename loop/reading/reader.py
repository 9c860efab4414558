"""A run's store, open for reading without a lock: its ledger, its corpus, its evaluations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loop.errors import PermissionDenied
from store.corpus import Corpus
from store.db import open_database, snapshot
from store.errors import NoStore
from store.ledger import Ledger
from store.records import STAGES, Evaluation, Json, Round, Run, Stage, StageName

if TYPE_CHECKING:
    from fractions import Fraction


OF_THE_TIP = "the tip"  # as policies.evidence has it, which loads too much for `loopctl status`


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Evaluations:
    """Finished evaluations: by id, and the newest by checkpoint and suite."""

    store: Reader
    by_id: dict[str, Evaluation]
    newest: dict[tuple[str, str], Evaluation]

    def named(self, round: Round) -> dict[tuple[str, str], str]:
        """What a round was decided on: ids by "head" or "candidate" and suite ("suite/split" after the first split)."""
        ids, first = {}, self.store.run.config["decide"]["split"]
        for name, id in self.store.output(round.number, "evaluating").get("evaluations", {}).items():
            who, suite = name.split("/", 1)
            if suite.endswith(f"/{OF_THE_TIP}"):
                continue  # of a look at the tip, which the gate `tip` tells
            ids[who, suite.removesuffix("/all").removesuffix(f"/{first}")] = id
        return ids

    def of(self, round: Round, who: Literal["head", "candidate"], suite: str) -> Evaluation | None:
        """What a round was decided on; until it is evaluated, the newest figures of the checkpoint."""
        id = self.named(round).get((who, suite))
        if id:
            return self.by_id.get(id)
        checkpoint = self.store.head_of(round) if who == "head" else round.candidate_checkpoint
        return self.newest.get((checkpoint or "", suite))


@dataclass(slots=True, eq=False, repr=False)
class Reader:
    """An open store and the run in it."""

    ledger: Ledger
    corpus: Corpus
    run: Run
    run_dir: Path
    _rates: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    _stages: dict[tuple[int, StageName], Stage | None] = field(default_factory=dict)

    def stage(self, number: int, name: StageName) -> Stage | None:
        """A stage of a round, read once; None before it begins."""
        if (number, name) not in self._stages:
            self._stages[number, name] = self.ledger.stage(self.run.id, number, name)
        return self._stages[number, name]

    def output(self, number: int, stage: StageName) -> Json:
        """What a stage of a round stored when it was done; {} before that."""
        row = self.stage(number, stage)
        return (row.output if row else None) or {}

    def head_of(self, round: Round) -> str:
        """What a round's candidate is compared with: the head when its evaluation began."""
        if evaluating := self.stage(round.number, "evaluating"):
            return str(evaluating.input["head"])
        return self.run.head_checkpoint if round.state in STAGES else round.parent_checkpoint

    def pass_rates(self, evaluation: Evaluation) -> dict[str, Fraction]:
        """The share of samples that passed, by problem. Finished evaluations do not change: each is read once."""
        if evaluation.id not in self._rates:
            from fractions import Fraction  # `loopctl status` does not wait for it

            counts = self.corpus.evaluations.counts(evaluation.id)
            self._rates[evaluation.id] = {task_id: Fraction(passed, num) for task_id, (passed, num) in counts.items()}
        return self._rates[evaluation.id]

    def evaluations(self) -> Evaluations:
        """The finished ones. Of a suite with splits, only the split of every round counts for the newest.

        A line's last look and a look at a tip draw more samples: they count only where a checkpoint has no figures like the others.
        """
        first = ("all", self.run.config["decide"]["split"])
        done = [row for row in self.corpus.evaluations.all(self.run.id) if row.metrics is not None]
        sizes = {suite["name"]: suite["num_samples"] for suite in self.run.config["suites"]}
        newest = {
            (row.checkpoint, row.suite_name): row
            for row in sorted(done, key=lambda row: row.num_samples == sizes.get(row.suite_name))
            if row.split in first
        }
        return Evaluations(self, {row.id: row for row in done}, newest)

    def decoding(self, evaluation: Evaluation | None) -> Json | None:
        """How an evaluation's samples were drawn."""
        return self.corpus.decode_settings(evaluation.decode_settings_id) if evaluation else None

    @property
    def decider(self) -> str:
        """The name of the suite that decides."""
        return str(self.run.config["decide"]["suite"])

    @property
    def suites(self) -> list[str]:
        """The names of the suites, the one that decides first."""
        names = [suite["name"] for suite in self.run.config["suites"]]
        return [self.decider, *(name for name in names if name != self.decider)]


@contextlib.contextmanager
def reader(run_dir: Path) -> Iterator[Reader]:
    """The run of a directory, all reads from one moment. NoStore if nothing was run there."""
    path = run_dir / "loop.db"
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionDenied(f"{path}: permission denied; read it as the user who runs the loop")
    with contextlib.closing(open_database(path, read_only=True)) as db, snapshot(db):
        ledger = Ledger(db)
        run = ledger.run()
        if run is None:
            raise NoStore(f"{path}: holds no run yet")
        yield Reader(ledger, Corpus(db), run, run_dir)
