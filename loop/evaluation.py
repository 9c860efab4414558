"""One checkpoint on one suite: what is known already is found, and only what is missing is sampled and graded."""

from __future__ import annotations

from loop.session import Session, Yardstick
from loop.stages.evaluating import decoding_in_words, figures, grade, params_of
from loop.stages.sampling import Lineage, plan, sample, seed_of
from store.canonical import sha256_of
from store.records import Evaluation, Json, Round

NUM_VERDICTS_AT_ONCE = 32  # how many are stored in one transaction, hence at most graded twice after a kill


def evaluate(session: Session, round: Round, checkpoint: str, suite: Yardstick, who: str) -> Evaluation:
    """One checkpoint on one suite; only missing completions are generated and only missing verdicts graded."""
    corpus, config = session.corpus, session.loaded.config
    params, split = params_of(suite.config), split_of_suite(session, suite)
    seed = seed_of(config.seed, suite.config.name)
    settings = corpus.add_decode_settings(params.model_dump(mode="json"))
    evaluation = corpus.begin_evaluation(
        Evaluation(
            id=evaluation_id(session, suite, checkpoint),
            run_id=round.run_id,
            round=round.number if who == "candidate" else round.number - 1,
            checkpoint=checkpoint,
            suite_sha256=suite.row.sha256,
            suite_name=suite.config.name,
            decode_settings_id=settings,
            num_samples=suite.config.num_samples,
            seed=seed,
            split=split,
        )
    )
    if evaluation.metrics is not None:
        return evaluation
    prompts = [suite.prompts[problem.prompt_id] for problem in suite.problems if split in ("all", problem.split)]
    lineage = Lineage(round.run_id, evaluation.round, checkpoint, evaluation.id, settings)
    planned = plan(lineage, prompts, suite.config.num_samples, seed)
    done = corpus.evaluation_completion_ids(evaluation.id)
    label = f"{who} on {suite.config.name} ({decoding_in_words(suite.config)})"
    if any(item.id not in done for item in planned):
        session.watch.stage(round.number, "evaluating", label)
        sampler = session.sampler(checkpoint)
        for batch in sample(planned, done, lineage, params, sampler):
            corpus.add_completions(batch)
            session.safe_point()
    graded = corpus.graded_ids(evaluation.id)
    session.watch.stage(round.number, "grading", label)
    waiting, num_graded = [], len(graded)
    ungraded = (c for c in corpus.completions(round.run_id, evaluation_id=evaluation.id) if c.id not in graded)
    for verdict in grade(ungraded, suite.graded_as, suite.prompts, evaluation.id, session.grader):
        waiting.append(verdict)
        num_graded += 1
        if len(waiting) >= NUM_VERDICTS_AT_ONCE or num_graded == len(planned):
            corpus.add_verdicts(waiting)
            waiting = []
            session.safe_point()
        session.watch.progress(num_graded, len(planned))
    completions = corpus.completions(round.run_id, evaluation_id=evaluation.id)
    verdicts = corpus.verdicts(evaluation.id)
    assert len(verdicts) == len(planned), f"{len(verdicts)} verdicts for {len(planned)} completions"
    return corpus.finish_evaluation(evaluation.id, figures(verdicts, completions, suite.config.pass_at))


def evaluation_id(session: Session, suite: Yardstick, checkpoint: str) -> str:
    """The id of an evaluation: checkpoint, suite, split, decoding settings, number of samples and seed fix it."""
    return sha256_of(
        [
            session.run_id,
            suite.config.name,
            checkpoint,
            suite.row.sha256,
            split_of_suite(session, suite),
            params_of(suite.config).model_dump(mode="json"),
            suite.config.num_samples,
            session.loaded.config.seed,
        ]
    )


def split_of_suite(session: Session, suite: Yardstick) -> str:
    """The suite that decides is opened only as far as its split goes; a canary as a whole."""
    decide = session.loaded.config.decide
    return decide.split if suite.config.name == decide.suite else "all"


def decoding_dict(suite: Yardstick) -> Json:
    """The decoding settings of a suite, as they stand beside its figures."""
    return {key: value for key, value in params_of(suite.config).model_dump(mode="json").items() if key != "stop"}
