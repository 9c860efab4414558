"""One checkpoint on one suite: what is known already is found, and only what is missing is sampled and graded.

On the suite that decides, head and candidate are measured on the same problems with the same seeds. These seeds belong to
the head: a checkpoint that was kept because it scored well is measured afresh once it is the head.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from loop.run.session import Session, Yardstick
from loop.run.sharing import Turn, turn
from loop.stages.evaluating import decoding_in_words, figures, grade, params_of
from loop.stages.sampling import Lineage, Planned, gathered, plan, sample, seed_of
from store.canonical import sha256_of
from store.records import Completion, Evaluation, Json, Problem, Verdict

NUM_VERDICTS_AT_ONCE = 32  # how many are stored in one transaction, hence at most graded twice after a kill
NUM_AHEAD = 512  # ungraded completions at which sampling pauses, where both run at once


@dataclass(frozen=True, slots=True)
class Part:
    """What is asked of a suite: a split, the problems of it that are wanted by now, and the seed of all its samples."""

    split: str
    problems: Sequence[Problem]
    seed: int


def whole(session: Session, suite: Yardstick) -> Part:
    """All problems of a suite that is only reported, or of one with a single use."""
    return Part("all", suite.problems, seed_of(session.loaded.config.seed, suite.config.name))


def of_split(session: Session, suite: Yardstick, split: str, head_round: int) -> Part:
    """A split of the suite that decides, measured against the head of that round."""
    problems = [problem for problem in suite.problems if problem.split == split]
    return Part(split, problems, seed_of(session.loaded.config.seed, suite.config.name, split, head_round))


def evaluate(session: Session, number: int, checkpoint: str, suite: Yardstick, part: Part, who: str) -> Evaluation:
    """One checkpoint on a part of a suite; only missing completions are generated and only missing verdicts graded.

    `number`: the round that goes on, or that would be next; `who`: what the checkpoint is to it.
    """
    corpus = session.corpus
    params = params_of(suite.config)
    settings = corpus.add_decode_settings(params.model_dump(mode="json"))
    evaluation = corpus.begin_evaluation(
        Evaluation(
            id=evaluation_id(session, suite, part, checkpoint),
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
    planned = plan(lineage, prompts, suite.config.num_samples, part.seed)
    label = f"{who} on {suite.config.name} ({decoding_in_words(suite.config)})"
    if part.split not in ("all", session.policy.split):
        label = f"{who} on {suite.config.name} ({part.split}, {decoding_in_words(suite.config)})"
    corpus.reopen_evaluation(evaluation.id)
    row = session.ledger.checkpoint(checkpoint)
    whose = f"round {row.round}" if row and row.round else "the base"
    what = label.replace(who, whose, 1)
    with turn(session, number, "evaluating", what, checkpoint, **_inputs(session, suite, part)) as ours:
        return _evaluate(session, number, suite, planned, lineage, label, ours)


def _evaluate(
    session: Session,
    number: int,
    suite: Yardstick,
    planned: Sequence[Planned],
    lineage: Lineage,
    label: str,
    ours: Turn,
) -> Evaluation:
    assert lineage.evaluation_id is not None
    corpus, params, evaluation_id = session.corpus, params_of(suite.config), lineage.evaluation_id
    ours.take_answers(planned, lineage)
    wanted = {item.id for item in planned}
    done = corpus.evaluation_completion_ids(evaluation_id)
    graded = corpus.graded_ids(evaluation_id) & wanted
    num_graded, sampling = len(graded), False

    def sampled() -> Iterator[Completion]:
        """What is missing, each stored when it is given."""
        if wanted <= done:
            return
        session.watch.stage(number, "evaluating", label)
        sampler = session.sampler(lineage.checkpoint)
        for batch in gathered(sample(planned, done, lineage, params, sampler), time.monotonic):
            corpus.add_completions(batch)
            session.safe_point()
            yield from batch

    def ungraded() -> Iterator[Completion]:
        nonlocal sampling
        given: set[str] = set()
        for completion in sampled():
            if session.engines.spares_the_cpu:
                sampling = True
                given.add(completion.id)
                yield completion
        sampling = False
        session.watch.stage(number, "grading", label)
        left = wanted - graded - given
        yield from (c for c in completions_of(session, evaluation_id, wanted) if c.id in left)

    waiting: list[Verdict] = []
    for verdict in grade(ungraded(), suite.graded_as, suite.prompts, evaluation_id, session.grader, NUM_AHEAD):
        waiting.append(verdict)
        num_graded += 1
        if len(waiting) >= NUM_VERDICTS_AT_ONCE or num_graded == len(wanted):
            corpus.add_verdicts(waiting)
            waiting = []
            session.safe_point()
        if not sampling:
            session.watch.progress(num_graded, len(wanted))
    verdicts = [verdict for verdict in corpus.verdicts(evaluation_id) if verdict.completion_id in wanted]
    assert len(verdicts) == len(wanted), f"{len(verdicts)} verdicts for {len(wanted)} completions"
    measured = figures(verdicts, completions_of(session, evaluation_id, wanted), suite.config.pass_at)
    finished = corpus.finish_evaluation(evaluation_id, measured)
    ours.done(evaluation=evaluation_id)
    return finished


def _inputs(session: Session, suite: Yardstick, part: Part) -> Json:
    """What the answers and their verdicts depend on beside the checkpoint."""
    grading = session.loaded.config.grading.model_dump(mode="json", exclude={"num_workers"})
    return {
        "suite": suite.row.sha256,
        "split": part.split,
        "problems": [problem.task_id for problem in part.problems],
        "decoding": params_of(suite.config).model_dump(mode="json"),
        "num_samples": suite.config.num_samples,
        "seed": part.seed,
        "grading": grading,
    }


def completions_of(session: Session, evaluation_id: str, wanted: Collection[str]) -> Iterator[Completion]:
    """Those of an evaluation's completions that are wanted by now; a killed process may have left more."""
    found = session.corpus.completions(session.run_id, evaluation_id=evaluation_id)
    return (completion for completion in found if completion.id in wanted)


def evaluation_id(session: Session, suite: Yardstick, part: Part, checkpoint: str) -> str:
    """The id of an evaluation: checkpoint, suite, split, decoding settings, number of samples and seed fix it."""
    return sha256_of(
        [
            session.run_id,
            suite.config.name,
            checkpoint,
            suite.row.sha256,
            part.split,
            params_of(suite.config).model_dump(mode="json"),
            suite.config.num_samples,
            part.seed,
        ]
    )


def decoding_dict(suite: Yardstick) -> Json:
    """The decoding settings of a suite, as they stand beside its figures."""
    return {key: value for key, value in params_of(suite.config).model_dump(mode="json").items() if key != "stop"}
