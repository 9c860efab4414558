"""One round of Simple Self-Distillation, top to bottom: sample, collect, train, evaluate, decide.

Each stage does only what is still missing, stores it before going on, and ends in one transaction that also moves the
round to the next stage. Whatever line the power goes out after, running the round again goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loop.engines.base import SamplingParams
from loop.errors import ConfigError, LoopError
from loop.prompts.sources import prompts_of_round
from loop.session import CHECKPOINTS, Session, Yardstick
from loop.stages.collecting import collect
from loop.stages.deciding import evidence
from loop.stages.evaluating import decoding_in_words, figures, grade, outcomes_of, params_of
from loop.stages.sampling import Lineage, plan, sample, seed_of
from loop.stages.training import train
from store.canonical import sha256_of
from store.checkpoints import manifest_sha256, manifest_size_bytes
from store.errors import StoreError
from store.records import Checkpoint, DecisionRow, Evaluation, Json, Prompt, Round, StageName

NUM_VERDICTS_AT_ONCE = 32  # how many are stored in one transaction, hence at most graded twice after a kill


def run_round(session: Session, between_stages: Callable[[], None] = lambda: None) -> Round:
    """Begin a round on the head, or go on with the one that is open or failed; returns it kept, rolled back or failed.

    `between_stages` is called at every safe point; what it raises leaves a round that can be resumed.
    """
    round = current_round(session)
    while round.state in STAGES:
        between_stages()
        round = attempt(session, round, STAGES[round.state])
    return round


def sampling(session: Session, round: Round, inputs: Json) -> Json:
    """The head writes its own training data at T_train; all of it is stored as it came."""
    prompts = [_prompt(session, prompt_id) for prompt_id in inputs["prompt_ids"]]
    config = session.loaded.config
    settings = session.corpus.add_decode_settings(inputs["decoding"])
    lineage = Lineage(round.run_id, round.number, round.parent_checkpoint, None, settings)
    planned = plan(lineage, prompts, config.sampling.num_samples, config.seed)
    done = session.corpus.existing_ids(round.run_id, round.number)
    missing = [item for item in planned if item.id not in done]
    if missing:
        session.watch.stage(round.number, "sampling", f"{len(missing)} completions")
        sampler = session.engines.sampler(session.weights(round.parent_checkpoint))
        for batch in sample(missing, lineage, SamplingParams.model_validate(inputs["decoding"]), sampler):
            session.corpus.add_completions(batch)
    return {"num_completions": len(planned)}


def training(session: Session, round: Round, inputs: Json) -> Checkpoint:
    """Plain cross-entropy on the selected completions gives the candidate."""
    session.watch.stage(round.number, "training", f"{inputs['num_rows']} completions")
    parent = session.weights(round.parent_checkpoint)
    final_dir = session.loaded.run_dir / CHECKPOINTS / f"round-{round.number:04d}"
    rows = session.corpus.training_rows(round.run_id, round.number)
    trained = train(rows, parent, inputs["settings"], session.engines.trainer(), final_dir)
    base = session.ledger.checkpoint(round.parent_checkpoint)
    adapter_base = (base.base or base.sha256) if base and trained.result.adapter else None
    return Checkpoint(
        sha256=manifest_sha256(trained.manifest),
        run_id=round.run_id,
        round=round.number,
        kind="adapter" if trained.result.adapter else "full",
        path=str(final_dir.relative_to(session.loaded.run_dir)),
        parent=round.parent_checkpoint,
        base=adapter_base,
        size_bytes=manifest_size_bytes(trained.manifest),
        manifest=trained.manifest,
        origin={"training": trained.result.model_dump(mode="json")},
    )


def evaluating(session: Session, round: Round, inputs: Json) -> Json:
    """Head and candidate on every suite: same problems, same decoding settings, same seeds. What is known is not redone."""
    done = {}
    for who in ("head", "candidate"):
        for suite in session.suites:
            done[f"{who}/{suite.config.name}"] = evaluate(session, round, inputs[who], suite, who).id
    return {"evaluations": done}


def deciding(session: Session, round: Round, inputs: Json) -> Round:
    """The policy decides on the one figure that was named before the run; decision, state and head move together."""
    config = session.loaded.config
    suite = next(suite for suite in session.suites if suite.config.name == config.decide.suite)
    run = session.run
    checkpoints = {"candidate": inputs["candidate"], "head": inputs["head"], "base": run.base_checkpoint}
    evaluations = {who: session.corpus.evaluation(evaluation_id(session, suite, sha256))
                   for who, sha256 in checkpoints.items()}  # fmt: skip
    found = {who: evaluation for who, evaluation in evaluations.items() if evaluation is not None}
    outcomes = {who: outcomes_of(session.corpus.verdicts(evaluation.id)) for who, evaluation in found.items()}
    candidate = session.ledger.checkpoint(inputs["candidate"])
    seen = evidence(
        round.number,
        suite=config.decide.suite,
        split=config.decide.split,
        decoding=decoding_dict(suite),
        difficulty=suite.difficulty,
        candidate=outcomes["candidate"],
        head=outcomes["head"],
        base=outcomes["base"],
        figures={who: found[who].metrics or {} for who in ("candidate", "head")},
        losses=candidate.origin["training"]["losses"] if candidate else [],
    )
    decision = session.policy.decide(seen)
    keep = decision.verdict == "keep"
    row = DecisionRow(
        run_id=round.run_id,
        round=round.number,
        verdict=decision.verdict,
        action=decision.action,
        gates=[gate.model_dump(mode="json") for gate in decision.gates],
        policy={
            "split": session.policy.split,
            "gates": [gate.model_dump(mode="json") for gate in session.policy.gates],
        },
        evidence=seen.model_dump(mode="json"),
        head_before=run.head_checkpoint,
        head_after=inputs["candidate"] if keep else run.head_checkpoint,
    )
    return session.ledger.decide(round, row)


def evaluate(session: Session, round: Round, checkpoint: str, suite: Yardstick, who: str) -> Evaluation:
    """One checkpoint on one suite; only missing completions are generated and only missing verdicts graded."""
    corpus, config = session.corpus, session.loaded.config
    params, split = params_of(suite.config), split_of_suite(session, suite)
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
            seed=config.seed,
            split=split,
        )
    )
    if evaluation.metrics is not None:
        return evaluation
    prompts = [prompt for id, prompt in suite.prompts.items() if split in ("all", suite.splits[id])]
    lineage = Lineage(round.run_id, evaluation.round, checkpoint, evaluation.id, settings)
    planned = plan(lineage, prompts, suite.config.num_samples, seed_of(config.seed, suite.config.name))
    done = corpus.evaluation_completion_ids(evaluation.id)
    label = f"{who} on {suite.config.name} ({decoding_in_words(suite.config)})"
    if missing := [item for item in planned if item.id not in done]:
        session.watch.stage(round.number, "evaluating", label)
        sampler = session.engines.sampler(session.weights(checkpoint))
        for batch in sample(missing, lineage, params, sampler):
            corpus.add_completions(batch)
    graded = corpus.graded_ids(evaluation.id)
    session.watch.stage(round.number, "grading", label)
    waiting = []
    ungraded = (c for c in corpus.completions(round.run_id, evaluation_id=evaluation.id) if c.id not in graded)
    for verdict in grade(ungraded, suite.problems, suite.prompts, evaluation.id, session.grader):
        waiting.append(verdict)
        if len(waiting) >= NUM_VERDICTS_AT_ONCE:
            corpus.add_verdicts(waiting)
            session.watch.progress(len(graded) + len(waiting), len(planned))
            graded |= {verdict.completion_id for verdict in waiting}
            waiting = []
    corpus.add_verdicts(waiting)
    completions = corpus.completions(round.run_id, evaluation_id=evaluation.id)
    verdicts = corpus.verdicts(evaluation.id)
    assert len(verdicts) == len(planned), f"{len(verdicts)} verdicts for {len(planned)} completions"
    return corpus.finish_evaluation(evaluation.id, figures(verdicts, completions, suite.config.pass_at))


# How a stage is begun, ended and tried again


def current_round(session: Session) -> Round:
    """The round to work on: the open one, the failed one, or a new one from the head."""
    ledger, run = session.ledger, session.run
    last = ledger.rounds(run.id)[-1:]
    if last and last[0].state in ("failed", "paused") and run.head_checkpoint == last[0].parent_checkpoint:
        return ledger.resume_round(last[0])
    return ledger.open_round(run.id) or ledger.begin_round(run.id)


def attempt(session: Session, round: Round, work: Callable[[Session, Round, int, Json], Round]) -> Round:
    """Try a stage until it is done or has failed `engine.max_attempts` times since it was last begun; then the round fails.

    A user's mistake is not tried again.
    """
    engine, stage = session.loaded.config.engine, _stage(round)
    for left in range(engine.max_attempts - 1, -1, -1):
        known = session.ledger.stage(round.run_id, round.number, stage)
        inputs = known.input if known else frozen_input(session, round, stage)
        number = session.ledger.begin_attempt(round, stage, inputs)
        try:
            return work(session, round, number, inputs)
        except (LoopError, StoreError, OSError) as error:
            session.engines.close()
            reason = str(error) or type(error).__name__
            final = left == 0 or isinstance(error, ConfigError | StoreError)
            wait = engine.retry_wait_s * 2 ** (engine.max_attempts - 1 - left)
            next_step = "the round fails; `loopctl run` tries it again" if final else f"tried again in {wait:g} s"
            session.watch.note(f"round {round.number}, {stage}: {reason}; {next_step}")
            session.ledger.fail_attempt(round, stage, number, reason, next_step)
            if final:
                return session.ledger.fail_round(round, reason)
            time.sleep(wait)
    raise AssertionError("unreachable")


def frozen_input(session: Session, round: Round, stage: StageName) -> Json:
    """What a stage works from. Stored with its first attempt; every later attempt works from what was stored."""
    config = session.loaded.config
    match stage:
        case "sampling":
            chosen = prompts_of_round(session.prompts, config.prompts.per_round, config.seed, round.number)
            decoding = config.sampling.model_dump(mode="json", exclude={"num_samples"})
            return {"checkpoint": round.parent_checkpoint, "prompt_ids": [p.id for p in chosen], "decoding": decoding}
        case "training":
            num_rows = sum(selection.used for selection in session.corpus.selections(round.run_id, round.number))
            seed = seed_of(config.seed, "training", round.number)
            settings = config.training.model_dump(mode="json") | {"seed": seed}
            return {"checkpoint": round.parent_checkpoint, "num_rows": num_rows, "settings": settings}
        case _:
            return {"head": round.parent_checkpoint, "candidate": round.candidate_checkpoint}


def _do_sampling(session: Session, round: Round, number: int, inputs: Json) -> Round:
    output = sampling(session, round, inputs)
    openings = {prompt.id: prompt.content["opening"] for prompt in session.prompts}
    completions = session.corpus.completions(round.run_id, round.number)
    selections = collect(completions, openings, session.loaded.config.collect, round.run_id, round.number)
    if not any(selection.used for selection in selections):
        raise LoopError(
            "every completion was left out of training; lower collect.min_lines or look at `loopctl samples`"
        )
    output["num_used"] = sum(selection.used for selection in selections)
    return session.ledger.finish_stage(round, "sampling", number, output, next_state="training", selections=selections)


def _do_training(session: Session, round: Round, number: int, inputs: Json) -> Round:
    candidate = training(session, round, inputs)
    output = {"checkpoint": candidate.sha256, **candidate.origin["training"]}
    return session.ledger.finish_stage(round, "training", number, output, next_state="evaluating", candidate=candidate)


def _do_evaluating(session: Session, round: Round, number: int, inputs: Json) -> Round:
    output = evaluating(session, round, inputs)
    return session.ledger.finish_stage(round, "evaluating", number, output, next_state="deciding")


def _do_deciding(session: Session, round: Round, number: int, inputs: Json) -> Round:
    return deciding(session, round, inputs)


STAGES: dict[str, Callable[[Session, Round, int, Json], Round]] = {
    "sampling": _do_sampling,
    "training": _do_training,
    "evaluating": _do_evaluating,
    "deciding": _do_deciding,
}


def evaluation_id(session: Session, suite: Yardstick, checkpoint: str) -> str:
    """The id of an evaluation: checkpoint, suite, split, decoding settings, number of samples and seed fix it."""
    return sha256_of(
        [
            session.run_id,
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


def _prompt(session: Session, prompt_id: str) -> Prompt:
    prompt = session.corpus.prompt(prompt_id)
    assert prompt is not None, prompt_id
    return prompt


def _stage(round: Round) -> StageName:
    assert round.state == round.stage, round
    return round.stage
