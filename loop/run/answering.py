"""The completions that a stage wants from one checkpoint, and their verdicts: generated, and stored as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loop.engines.base import SamplingParams
from loop.run.session import Session
from loop.stages.sampling import Lineage, Planned, gathered, sample
from store.records import Completion, StageName

NUM_VERDICTS_AT_ONCE = 32  # of one transaction, hence at most graded twice after a kill

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Answers:
    """All completions of a training round, or of one evaluation as far as it is opened."""

    round: int  # that works on them
    stage: StageName
    what: str  # in words that say the same in every run
    planned: Sequence[Planned]
    lineage: Lineage
    params: SamplingParams

    def stored_ids(self, session: Session) -> set[str]:
        """The completions of this round or evaluation that are stored; a killed process may have left more than is planned."""
        if self.lineage.evaluation_id is not None:
            return session.corpus.evaluations.completion_ids(self.lineage.evaluation_id)
        return session.corpus.existing_ids(self.lineage.run_id, self.lineage.round)

    def complete(self, session: Session, label: str | None = None) -> Iterator[list[Completion]]:
        """Generate what is missing; yields each list once it is stored. No engine starts where nothing is missing.

        `label` is what onlookers are told; without it, how many completions are missing.
        """
        stored = self.stored_ids(session)
        num_missing = sum(item.id not in stored for item in self.planned)
        if not num_missing:
            return
        session.watch.stage(self.round, self.stage, label or f"{num_missing} completions")
        sampler = session.sampler(self.lineage.checkpoint)
        batches = sample(self.planned, stored, self.lineage, self.params, sampler)
        for batch in gathered(batches, time.monotonic):
            session.corpus.add_completions(batch)
            session.safe_point()
            yield batch


def store_verdicts(
    session: Session,
    verdicts: Iterable[V],
    add: Callable[[Sequence[V]], object],
    num_before: int,
    total: int,
    shows_progress: Callable[[], bool] = lambda: True,
) -> None:
    """Store verdicts as they come, with `add`. `num_before` of the `total` have theirs already."""
    waiting: list[V] = []
    for num_graded, verdict in enumerate(verdicts, num_before + 1):
        waiting.append(verdict)
        if len(waiting) >= NUM_VERDICTS_AT_ONCE or num_graded == total:
            add(waiting)
            waiting = []
            session.safe_point()
        if shows_progress():
            session.watch.progress(num_graded, total)
