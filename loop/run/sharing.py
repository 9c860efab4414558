"""What a run of an experiment need not make itself, because another of its runs has made it from the same inputs.

What is taken is verified and stored as if it had been made here: completions and verdicts under this run's own ids and
lineage, weights as hard links. The stage then makes what is still missing, which is usually nothing; if the other run is
gone or damaged, that is all of it. In a run that belongs to no experiment nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from loop.config.machine import Engine
from loop.config.samplers import SAMPLER_PACKAGES
from loop.config.section import keys_of
from loop.engines.base import TrainingResult
from loop.stages.training import Trained
from loop.system.gpus import visible_devices
from store.canonical import sha256_of, sha256_of_text
from store.checkpoints import commit_directory, manifest_sha256, remove_directory, temporary_directory, verify
from store.corpus import Corpus, completion_sha256
from store.db import DATABASE, open_database, transaction
from store.errors import StoreError
from store.probes import Probes, probe_sha256
from store.records import Completion, Json, Round, StageName, Verdict
from store.shared import EVENT, Registry, link_tree, registry_of

if TYPE_CHECKING:
    from loop.run.answering import Answers
    from loop.run.session import Session

T = TypeVar("T")
Record = Literal["probe", "probe_result"]

VERSION = 2  # of what keys are made from
WAIT_S = 0.2
ROWS_AT_ONCE = 200  # of one transaction
SAMPLER_SETTINGS = (*keys_of(Engine, "sampling"), "lora_rank")
TRAINER_SETTINGS = keys_of(Engine, "training")
PACKAGES = ("ssd-loop", "torch", "transformers", "tokenizers", "trl", "peft", "accelerate", *SAMPLER_PACKAGES)


class Sharing:
    """A block for each product of a stage; inside it the stage makes and stores what is missing.

    In an experiment the block begins with what another run has made, and no other run makes the same meanwhile; when it
    ends, others may take the product from here. `made_from`: all that the product depends on, beside the checkpoint, the
    engine and the installed versions.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.registry = registry_of(session.loaded.run_dir)
        self._weights_taken: list[Json] = []  # by the open training stage: where they are from

    @contextlib.contextmanager
    def answers(self, answers: Answers, **made_from: object) -> Iterator[None]:
        """Around completions, and for an evaluation also their verdicts and figures."""
        evaluation_id, checkpoint = answers.lineage.evaluation_id, answers.lineage.checkpoint
        made_from["planned"] = [(item.prompt.id, item.sample_index, item.seed) for item in answers.planned]
        made_from["params"] = answers.params.model_dump(mode="json")
        with self._turn(answers.round, answers.stage, answers.what, checkpoint, made_from) as product:
            product.take_answers(answers)
            yield
            product.offer({} if evaluation_id is None else {"evaluation": evaluation_id})

    @contextlib.contextmanager
    def record(
        self, kind: Record, round: int, what: str, checkpoint: str, own: Json, **made_from: object
    ) -> Iterator[bool]:
        """Around a probe, or what a checkpoint gave on it (`own`: its ids here); gives whether it is to be made here."""
        with self._turn(round, "evaluating", what, checkpoint, made_from) as product:
            yield not product.take_record(kind, own)
            product.offer({kind: own["id"]})

    @contextlib.contextmanager
    def weights(
        self, round: int, what: str, parent: str, final_dir: Path, train: Callable[[], Trained], num_candidates: int,
        **made_from: object,
    ) -> Iterator[Trained]:  # fmt: skip
        """The weights of a fine-tune under their final name: taken from another run, or else trained here.

        The block ends the stage: other runs may take the weights once the ledger names them. Several candidates are several
        directories, which no entry names: each run trains its own, and shares what they answer.
        """
        self._weights_taken = []
        if num_candidates > 1:
            yield train()
            return
        with self._turn(round, "training", what, parent, made_from) as product:
            trained = product.take_weights(final_dir) or train()
            self._weights_taken = [product.origin] if product.origin else []
            where = {
                "checkpoint": manifest_sha256(trained.manifest),
                "path": str(final_dir.relative_to(self.session.loaded.run_dir)),
                "manifest": trained.manifest,
                "report": trained.result.model_dump(mode="json"),
            }
            yield trained
            product.offer(where, weights=final_dir)

    @contextlib.contextmanager
    def ending(self, round: Round) -> Iterator[Json]:
        """Around the end of a stage: what its output says of other runs. Weights are recorded in the same transaction."""
        session, taken = self.session, self._weights_taken
        if round.stage != "training" and self.registry is not None:
            events = session.ledger.events.of(session.run_id, EVENT, round.number)
            taken = [event.data for event in events if event.stage == round.stage]
        with transaction(session.ledger.db) if taken else contextlib.nullcontext():
            for origin in taken:
                _record(session, round.number, round.stage, origin)
            yield {"shared": taken} if taken else {}

    @contextlib.contextmanager
    def _turn(self, round: int, stage: StageName, what: str, checkpoint: str, made_from: Json) -> Iterator[Product]:
        """While another run makes the same product this one waits, open to all that may happen meanwhile."""
        session = self.session
        if self.registry is None:
            yield Product(session, None, round, stage, what)
            return
        names = TRAINER_SETTINGS if stage == "training" else SAMPLER_SETTINGS
        row = session.ledger.checkpoints.get(checkpoint)
        weights = [checkpoint, row.base if row else None]  # an adapter alone says nothing
        settings = session.engines.settings
        engine = settings.model_dump(mode="json", include=set(names))
        if stage != "training" and session.engines.kind.offered_by is not None:
            engine["offered_by"] = session.engines.kind.offered_by
        key = sha256_of([VERSION, stage, weights, made_from, engine, machine()])
        sampler, is_announced = settings.sampler, False

        def wait(other_run: str) -> None:
            nonlocal is_announced
            if not is_announced:
                session.watch.stage(round, stage, f"waiting for {other_run}, which does the same: {what}")
                is_announced = True
            session.safe_point()
            session.wait(WAIT_S)

        with self.registry.turn(key, wait):
            yield Product(session, self.registry, round, stage, what, key, sampler, self.registry.known(key) or {})


@dataclass(slots=True)
class Product:
    """Something that a stage makes from inputs which other runs of the experiment may have, too."""

    session: Session
    registry: Registry | None
    round: int
    stage: StageName
    what: str
    key: str = ""
    sampler: str = ""  # the engine that the key speaks of
    entry: Json = field(default_factory=dict)  # which other run has made it, and where it lies there
    origin: Json | None = None  # once something of it was taken: from where, as the stage's output says it

    def take_answers(self, answers: Answers) -> None:
        """Store completions that are missing, and for an evaluation the verdicts on those that are the same."""
        if not self.entry:
            return
        evaluation_id, corpus = answers.lineage.evaluation_id, self.session.corpus
        stored = answers.stored_ids(self.session)
        finished = stored if evaluation_id is None else corpus.evaluations.graded_ids(evaluation_id)
        if all(item.id in finished for item in answers.planned):
            return
        others = self._take_completions(answers, stored)
        if evaluation_id is not None:
            self._take_verdicts(others, evaluation_id)

    def take_weights(self, final_dir: Path) -> Trained | None:
        """A fine-tune's checkpoint under its final name, every byte of it verified; None if it cannot be had."""
        if not self.entry or self.registry is None:
            return None
        hasher = self.session.hasher
        for source in self.registry.weights_of(self.key, self.entry):
            scratch = temporary_directory(final_dir.parent)
            try:
                link_tree(source, scratch / "weights")
                verify(scratch / "weights", self.entry["manifest"], hasher)
                result = TrainingResult.model_validate(self.entry["report"])
                manifest = commit_directory(scratch / "weights", final_dir, hasher)
                os.rmdir(scratch)
                self.origin = self._described(checkpoint=self.entry["checkpoint"])
                return Trained(final_dir, manifest, result)
            except (StoreError, OSError, ValueError, KeyError) as error:
                remove_directory(scratch)
                if source.exists():
                    self._refuse(str(error))
        return None

    def take_record(self, kind: Record, own: Json) -> bool:
        """Store a probe, or what a checkpoint gave on it, under this run's ids; whether that was possible."""
        if not self.entry:
            return False
        other_id, probes = self.entry[kind], self.session.corpus.probes
        read, add = (Probes.get, probes.add) if kind == "probe" else (Probes.result, probes.add_result)
        record: Any = next(self._rows(lambda store: [read(store.probes, other_id)]), None)
        if record is None or record.sha256 != probe_sha256(record):
            return False
        with transaction(self.session.ledger.db):
            add(replace(record, run_id=self.session.run_id, **own))
            self._record(**{kind: other_id})
        return True

    def offer(self, where: Json, weights: Path | None = None) -> None:
        """It is made and stored here: others may take it. `weights` stay for them even when this run lets its own go."""
        if self.registry is None or self.origin is not None:
            return
        if self.session.engines.settings.sampler != self.sampler:  # another had to be used in its place
            return
        entry = {"stage": self.stage, "what": self.what, "round": self.round, "run_id": self.session.run_id} | where
        try:
            self.registry.register(self.key, entry)
        except OSError as error:  # it is stored all the same
            self.session.watch.note(
                f"round {self.round}, {self.stage}: other runs cannot be told of {self.what} and do it again: {error}"
            )
        if weights is not None:  # after the entry: weights that no entry is about are let go
            self.registry.keep(self.key, self.round, weights)

    # How it is taken

    def _rows(self, query: Callable[[Corpus], Iterable[T]]) -> Iterator[T]:
        """Rows of the other run's store, as far as they can be read: whatever is wrong with it is no failure of this run."""
        assert self.registry is not None
        try:
            db = open_database(self.registry.run_dir_of(self.entry) / DATABASE, read_only=True)
            with contextlib.closing(db):
                yield from query(Corpus(db))
        except (StoreError, ValueError, TypeError, LookupError) as error:
            self._refuse(str(error))

    def _take_completions(self, answers: Answers, stored: set[str]) -> dict[str, tuple[str, str]]:
        """By this run's id: the hash of the other run's text, and that completion's id. In the order of their arrival there."""
        own, entry = asdict(answers.lineage), self.entry
        other_id = entry.get("evaluation")
        number = None if other_id else entry["round"]
        wanted = {(item.prompt.id, item.sample_index): item for item in answers.planned}
        others: dict[str, tuple[str, str]] = {}

        def missing() -> Iterator[Completion]:
            for row in self._rows(lambda store: store.completions(entry["run_id"], number, evaluation_id=other_id)):
                item = wanted.get((row.prompt_id, row.sample_index))
                if item is None:
                    continue
                if (row.sha256, row.seed, row.checkpoint) != (completion_sha256(row), item.seed, own["checkpoint"]):
                    self._refuse(f"completion {row.id} is not as it was written")
                    continue
                others[item.id] = (sha256_of_text(row.text), row.id)
                if item.id not in stored:
                    yield replace(row, id=item.id, **own, created_at="", sha256="")

        self._store(self.session.corpus.add_completions, missing())
        return others

    def _take_verdicts(self, others: dict[str, tuple[str, str]], evaluation_id: str) -> None:
        corpus, other_evaluation_id = self.session.corpus, self.entry["evaluation"]
        graded = corpus.evaluations.graded_ids(evaluation_id)
        same = {
            others[own.id][1]: own.id
            for own in corpus.completions(self.session.run_id, evaluation_id=evaluation_id)
            if own.id in others and own.id not in graded and others[own.id][0] == sha256_of_text(own.text)
        }
        verdicts = (
            Verdict(
                evaluation_id, v.task_id, v.sample_index, same[v.completion_id], v.verdict, v.detail, v.duration_s, v.sandbox
            )
            for v in self._rows(lambda store: store.evaluations.verdicts(other_evaluation_id))
            if v.completion_id in same and v.verdict != "harness_error"
        )  # fmt: skip
        self._store(corpus.evaluations.add_verdicts, verdicts)

    def _store(self, add: Callable[[Sequence[T]], object], rows: Iterator[T]) -> None:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            with transaction(self.session.ledger.db):
                add(batch)
                self._record()
            self.session.safe_point()

    def _record(self, **where: object) -> None:
        """Once in a stage the event of what is taken; in the transaction that stores it."""
        if self.origin is None:
            self.origin = self._described(**where)
            _record(self.session, self.round, self.stage, self.origin)

    def _described(self, **where: object) -> Json:
        entry, kept = self.entry, ("ran_in", "run_dir", "evaluation")
        described = {"key": self.key, "what": self.what, "of_run": entry["run_id"], "of_round": entry["round"]}
        return described | {name: entry[name] for name in kept if name in entry} | where

    def _refuse(self, why: str) -> None:
        ran_in = self.entry["ran_in"]
        self.session.watch.note(
            f"round {self.round}, {self.stage}: {self.what} of {ran_in['arm']}/seed-{ran_in['seed']} cannot be used ({why}); "
            "it is done here"
        )


def _record(session: Session, round: int, stage: StageName, origin: Json) -> None:
    """The event of what was taken, once for each key."""
    ledger, run_id = session.ledger, session.run_id
    if all(event.data["key"] != origin["key"] for event in ledger.events.of(run_id, EVENT, round)):
        ledger.events.append(run_id, EVENT, round, stage, **origin)


@cache
def machine() -> Json:
    """What is installed of what results may depend on, and whether there is a GPU."""
    installed: Json = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    # Python runs the solutions
    return {"gpu": bool(visible_devices()), "python": platform.python_version()} | installed
