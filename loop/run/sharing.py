"""How a stage takes from another run of the experiment what that one has made from the same inputs.

What is taken is stored as if it had been made here: completions and verdicts under this run's own ids and lineage,
weights as hard links, each verified first. A stage then does what is still missing, which is usually nothing. If the other
run is gone or damaged, that is all of it. Outside an experiment nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loop.config.machine import Engine
from loop.config.section import keys_of
from loop.engines.base import TrainingResult
from loop.engines.by_name import SAMPLER_PACKAGES
from loop.stages.sampling import Lineage, Planned
from loop.stages.training import Trained
from loop.system.gpus import visible_devices
from store.canonical import sha256_of, sha256_of_text
from store.checkpoints import commit_directory, remove_directory, temporary_directory, verify
from store.corpus import Corpus, completion_sha256
from store.db import open_database, transaction
from store.errors import StoreError
from store.probes import probe_sha256
from store.records import Completion, Json, StageName, Verdict
from store.shared import EVENT, link_tree

if TYPE_CHECKING:
    from loop.run.session import Session

T = TypeVar("T")

VERSION = 1  # of what keys are made from
WAIT_S = 0.2
AT_ONCE = 200  # rows of one transaction
DATABASE = "loop.db"
SAMPLER_SETTINGS = (*keys_of(Engine, "sampling"), "lora_rank")
TRAINER_SETTINGS = keys_of(Engine, "training")
PACKAGES = (
    "ssd-loop", "torch", "transformers", "tokenizers", "trl", "peft", "accelerate", *SAMPLER_PACKAGES,
)  # fmt: skip


@dataclass(slots=True)
class Turn:
    """A stage's turn at what it makes. Outside an experiment `key` is None; `entry` says who has made it, if anybody has."""

    session: Session
    number: int
    stage: StageName
    what: str
    key: str | None = None
    entry: Json | None = None
    took: Json | None = None  # what the stage's output says
    sampler: str | None = None  # the engine that the key speaks of

    def take_answers(self, planned: Sequence[Planned], lineage: Lineage) -> None:
        """Completions that are missing, and for an evaluation the verdicts on those that are the same."""
        if self.entry is None or self._has_all(planned, lineage):
            return
        with self._source() as source:
            theirs = self._take_completions(source, planned, lineage) if source else {}
            if source and lineage.evaluation_id is not None:
                self._take_verdicts(source, theirs, lineage.evaluation_id)

    def take_weights(self, final_dir: Path) -> Trained | None:
        """A fine-tune's checkpoint under its final name, every byte of it verified; None if it cannot be had."""
        if self.entry is None or self.key is None or self.session.shared is None:
            return None
        for place in self.session.shared.weights_of(self.key, self.entry):
            scratch = temporary_directory(final_dir.parent)
            try:
                link_tree(place, scratch / "weights")
                verify(scratch / "weights", self.entry["manifest"])
                result = TrainingResult.model_validate(self.entry["report"])
                manifest = commit_directory(scratch / "weights", final_dir)
                os.rmdir(scratch)
                self.took = self._origin(checkpoint=self.entry["checkpoint"])
                return Trained(final_dir, manifest, result)
            except (StoreError, OSError, ValueError, KeyError) as error:
                remove_directory(scratch)
                if place.exists():
                    self._refuse(str(error))
        return None

    def take_probe(self, probe_id: str) -> bool:
        """The texts that checkpoints are compared on."""
        if self.entry is None:
            return False
        theirs_id: str = self.entry["probe"]
        with self._source() as source:
            theirs = next(self._read(lambda: [source.probes.get(theirs_id)]), None) if source else None
            if theirs is not None and theirs.sha256 == probe_sha256(theirs):
                with transaction(self.session.ledger.db):
                    self.session.corpus.probes.add(replace(theirs, id=probe_id, run_id=self.session.run_id))
                    self._say(probe=theirs_id)
        return self.session.corpus.probes.get(probe_id) is not None

    def take_probe_result(self, result_id: str, probe_id: str, round: int) -> bool:
        """What a checkpoint gave on them."""
        if self.entry is None:
            return False
        theirs_id: str = self.entry["probe_result"]
        with self._source() as source:
            theirs = next(self._read(lambda: [source.probes.result(theirs_id)]), None) if source else None
            if theirs is not None and theirs.sha256 == probe_sha256(theirs):
                ours = replace(theirs, id=result_id, probe_id=probe_id, run_id=self.session.run_id, round=round)
                with transaction(self.session.ledger.db):
                    self.session.corpus.probes.add_result(ours)
                    self._say(probe_result=theirs_id)
        return self.session.corpus.probes.has_result(result_id)

    def say(self) -> None:
        """The event of what was taken; for the transaction that ends the stage."""
        if self.took is not None:
            self._event(self.took)

    def done(self, **where: object) -> None:
        """It is made and stored: others may take it. Does nothing if this result was itself taken from another run."""
        if self.key is None or self.session.shared is None or self.took is not None:
            return
        if self.session.engines.settings.sampler != self.sampler:  # another had to be used in its place
            return
        entry = {"stage": self.stage, "what": self.what, "round": self.number, "run_id": self.session.run_id, **where}
        try:
            self.session.shared.register(self.key, entry)
        except OSError as error:  # it is stored all the same
            self.session.watch.note(
                f"round {self.number}, {self.stage}: other runs cannot be told of {self.what} and do it again: {error}"
            )

    def made_weights(self, weights: Path, **where: object) -> None:
        """`done` for a checkpoint, which also stays where other runs find it when this one lets it go."""
        if self.key is not None and self.session.shared is not None and self.took is None:
            self.done(**where)  # first: weights that no entry is about are let go
            self.session.shared.keep(self.key, self.number, weights)

    # How it is taken

    @contextlib.contextmanager
    def _source(self) -> Iterator[Corpus | None]:
        """The other run's store. Whatever is wrong with it is no failure of ours: what is missing is made here."""
        assert self.entry is not None and self.session.shared is not None
        path = self.session.shared.run_dir_of(self.entry) / DATABASE
        try:
            db = open_database(path, read_only=True)
        except StoreError as error:
            self._refuse(str(error))
            yield None
            return
        try:
            yield Corpus(db)
        finally:
            db.close()

    def _read(self, rows: Callable[[], Iterable[T]]) -> Iterator[T]:
        """Rows of the other run, as far as they can be read."""
        try:
            yield from rows()
        except (StoreError, ValueError, TypeError, LookupError) as error:
            self._refuse(str(error))

    def _has_all(self, planned: Sequence[Planned], lineage: Lineage) -> bool:
        corpus, wanted = self.session.corpus, {item.id for item in planned}
        if lineage.evaluation_id is None:
            return wanted <= corpus.existing_ids(lineage.run_id, lineage.round)
        return wanted <= corpus.evaluations.graded_ids(lineage.evaluation_id)

    def _take_completions(
        self, source: Corpus, planned: Sequence[Planned], lineage: Lineage
    ) -> dict[str, tuple[str, str]]:
        """By our id: the hash of the other's text, and its task's sample. In the order in which they came there."""
        assert self.entry is not None
        corpus, asked = self.session.corpus, {(item.prompt.id, item.sample_index): item for item in planned}
        done = (
            corpus.evaluations.completion_ids(lineage.evaluation_id)
            if lineage.evaluation_id
            else corpus.existing_ids(lineage.run_id, lineage.round)
        )
        theirs: dict[str, tuple[str, str]] = {}
        batch: list[Completion] = []
        evaluation = self.entry.get("evaluation")
        number = None if evaluation else self.entry["round"]
        run_id = self.entry["run_id"]
        for one in self._read(lambda: source.completions(run_id, number, evaluation_id=evaluation)):
            item = asked.get((one.prompt_id, one.sample_index))
            if item is None:
                continue
            if one.sha256 != completion_sha256(one) or (one.seed, one.checkpoint) != (item.seed, lineage.checkpoint):
                self._refuse(f"completion {one.id} is not as it was written")
                continue
            theirs[item.id] = (sha256_of_text(one.text), one.id)
            if item.id not in done:
                batch.append(
                    replace(
                        one,
                        id=item.id,
                        run_id=lineage.run_id,
                        round=lineage.round,
                        evaluation_id=lineage.evaluation_id,
                        decode_settings_id=lineage.decode_settings_id,
                        created_at="",
                        sha256="",
                    )
                )
            if len(batch) >= AT_ONCE:
                self._add(batch)
                batch = []
        self._add(batch)
        return theirs

    def _add(self, batch: Sequence[Completion]) -> None:
        if not batch:
            return
        with transaction(self.session.ledger.db):
            self.session.corpus.add_completions(batch)
            self._say()
        self.session.safe_point()

    def _take_verdicts(self, source: Corpus, theirs: dict[str, tuple[str, str]], evaluation_id: str) -> None:
        assert self.entry is not None
        corpus, theirs_id = self.session.corpus, self.entry["evaluation"]
        graded = corpus.evaluations.graded_ids(evaluation_id)
        same = {
            theirs[one.id][1]: one.id
            for one in corpus.completions(self.session.run_id, evaluation_id=evaluation_id)
            if one.id in theirs and one.id not in graded and theirs[one.id][0] == sha256_of_text(one.text)
        }
        verdicts = [
            Verdict(
                evaluation_id, one.task_id, one.sample_index, same[one.completion_id], one.verdict, one.detail,
                one.duration_s, one.sandbox,
            )
            for one in self._read(lambda: source.evaluations.verdicts(theirs_id))
            if one.completion_id in same and one.verdict != "harness_error"
        ]  # fmt: skip
        for start in range(0, len(verdicts), AT_ONCE):
            with transaction(self.session.ledger.db):
                corpus.evaluations.add_verdicts(verdicts[start : start + AT_ONCE])
                self._say()
            self.session.safe_point()

    def _origin(self, **where: object) -> Json:
        assert self.entry is not None
        named = {key: self.entry[key] for key in ("ran_in", "run_dir")}
        named |= {"of_run": self.entry["run_id"], "of_round": self.entry["round"]}
        more = {"evaluation": self.entry["evaluation"]} if "evaluation" in self.entry else {}
        return {"key": self.key, "what": self.what, **named, **more, **where}

    def _say(self, **where: object) -> None:
        """Once in a stage; in the transaction of what is taken."""
        if self.took is None:
            self.took = self._origin(**where)
            self._event(self.took)

    def _event(self, took: Json) -> None:
        ledger, run_id = self.session.ledger, self.session.run_id
        if all(event.data["key"] != took["key"] for event in ledger.events.of(run_id, EVENT, self.number)):
            ledger.events.append(run_id, EVENT, self.number, self.stage, **took)

    def _refuse(self, why: str) -> None:
        assert self.entry is not None
        ran_in = self.entry["ran_in"]
        self.session.watch.note(
            f"round {self.number}, {self.stage}: {self.what} of {ran_in['arm']}/seed-{ran_in['seed']} cannot be used ({why}); "
            "it is done here"
        )


@contextlib.contextmanager
def turn(
    session: Session, number: int, stage: StageName, what: str, checkpoint: str, **inputs: object
) -> Iterator[Turn]:
    """Take the turn at what a checkpoint and the other inputs give: all that it depends on beside the engine and versions.

    While another run has the turn this one waits, open to all that may happen meanwhile.
    """
    if session.shared is None:
        yield Turn(session, number, stage, what)
        return
    names = TRAINER_SETTINGS if stage == "training" else SAMPLER_SETTINGS
    row = session.ledger.checkpoints.get(checkpoint)
    weights = [checkpoint, row.base if row else None]  # an adapter alone says nothing
    engine = session.engines.settings.model_dump(mode="json", include=set(names)) | {"gpu": _has_gpu()}
    if stage != "training" and session.engines.kind.offered_by is not None:
        engine["offered_by"] = session.engines.kind.offered_by
    key = sha256_of([VERSION, stage, weights, inputs, engine, versions()])
    said = False

    def wait(who: str) -> None:
        nonlocal said
        if not said:
            session.watch.stage(number, stage, f"waiting for {who}, which does the same: {what}")
            said = True
        session.safe_point()
        session.wait(WAIT_S)

    with session.shared.turn(key, wait):
        yield Turn(
            session, number, stage, what, key, session.shared.known(key), sampler=session.engines.settings.sampler
        )


def taken_in(session: Session, number: int, stage: StageName) -> list[Json]:
    """What a stage took from other runs so far."""
    if session.shared is None:
        return []
    return [event.data for event in session.ledger.events.of(session.run_id, EVENT, number) if event.stage == stage]


@cache
def versions() -> dict[str, str | None]:
    """What is installed of what results may depend on."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}  # it runs the solutions


@cache
def _has_gpu() -> bool:
    return bool(visible_devices())
