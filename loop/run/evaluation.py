"""One checkpoint on one suite: only what is not stored yet is sampled and graded.

On the suite that decides, head and candidate are measured on the same problems with the same seeds. These seeds belong to
the head: a checkpoint that was kept because it scored well is measured afresh once it is the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loop.run.answering import Answers, store_verdicts
from loop.run.session import Session
from loop.stages.evaluating import Yardstick, decoding_in_words, figures, grade, params_of
from loop.stages.sampling import Lineage, plan
from loop.words import round_name
from store.canonical import sha256_of
from store.records import Completion, Evaluation, Problem

NUM_AHEAD = 512  # ungraded completions at which sampling pauses, where both run at once


@dataclass(frozen=True, slots=True)
class SuitePart:
    """What is asked of a suite: a split, the problems of it that are wanted by now, and the seed of all their samples."""

    split: str
    problems: Sequence[Problem]
    seed: int


def evaluate(
    session: Session, number: int, checkpoint: str, suite: Yardstick, part: SuitePart, who: str, label: str = ""
) -> Evaluation:
    """One checkpoint on a part of a suite; only missing completions are generated and only missing verdicts graded.

    `number`: the round that is open, or that would be next; `who`: what the checkpoint is to it; `label`: what onlookers
    are told of it instead.
    """
    corpus, params = session.corpus, params_of(suite.config)
    drawn = params.model_dump(mode="json")
    settings = corpus.add_decode_settings(drawn)
    asked = [suite.row.sha256, part.split, drawn, suite.config.num_samples, part.seed]
    evaluation = corpus.evaluations.begin(
        Evaluation(
            id=sha256_of([session.run_id, suite.config.name, checkpoint, *asked]),
            run_id=session.run_id,
            round=number if who == "candidate" else number - 1,
            checkpoint=checkpoint,
            suite_sha256=suite.row.sha256,
            suite_name=suite.config.name,
            decode_settings_id=settings,
            num_samples=suite.config.num_samples,
            seed=part.seed,
            split=part.split,
        )
    )
    if evaluation.metrics is not None and evaluation.metrics["num_problems"] >= len(part.problems):
        return evaluation
    prompts = [suite.prompts[problem.prompt_id] for problem in part.problems]
    lineage = Lineage(session.run_id, evaluation.round, checkpoint, evaluation.id, settings)
    split = "" if part.split in ("all", session.policy.split) else f"{part.split}, "
    on_suite = f"on {suite.config.name} ({split}{decoding_in_words(suite.config)})"
    planned = plan(lineage, prompts, suite.config.num_samples, part.seed)
    what = f"{round_name(session.ledger.checkpoints.known(checkpoint).round)} {on_suite}"
    answers = Answers(number, "evaluating", what, planned, lineage, params)
    corpus.evaluations.reopen(evaluation.id)
    grading = session.loaded.config.grading.model_dump(mode="json", exclude={"num_workers"})
    with session.sharing.answers(answers, suite=suite.row.sha256, grading=grading):
        return _evaluate(session, suite, answers, evaluation.id, f"{label or who} {on_suite}")


def _evaluate(session: Session, suite: Yardstick, answers: Answers, evaluation_id: str, label: str) -> Evaluation:
    corpus, wanted = session.corpus, {item.id for item in answers.planned}
    graded = corpus.evaluations.graded_ids(evaluation_id) & wanted
    is_sampling = False

    def completions() -> Iterator[Completion]:
        """All that are stored and wanted by now; a killed process may have left more."""
        stored = corpus.completions(session.run_id, evaluation_id=evaluation_id)
        return (completion for completion in stored if completion.id in wanted)

    def ungraded() -> Iterator[Completion]:
        """What has no verdict yet: while completions are generated, if that leaves the CPU alone, or else after it."""
        nonlocal is_sampling
        given: set[str] = set()
        for batch in answers.complete(session, label):
            for completion in batch if session.engines.spares_the_cpu else ():
                is_sampling = True
                given.add(completion.id)
                yield completion
        is_sampling = False
        session.watch.stage(answers.round, "grading", label)
        left = wanted - graded - given
        yield from (completion for completion in completions() if completion.id in left)

    new = grade(ungraded(), suite.graded_as, suite.prompts, evaluation_id, session.grader, NUM_AHEAD)
    store_verdicts(session, new, corpus.evaluations.add_verdicts, len(graded), len(wanted), lambda: not is_sampling)
    verdicts = [verdict for verdict in corpus.evaluations.verdicts(evaluation_id) if verdict.completion_id in wanted]
    assert len(verdicts) == len(wanted), f"{len(verdicts)} verdicts for {len(wanted)} completions"
    return corpus.evaluations.finish(evaluation_id, figures(verdicts, completions(), suite.config.pass_at))
