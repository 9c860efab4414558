"""One round of Simple Self-Distillation, top to bottom: sample, collect, train, evaluate, decide.

Each stage does only what is still missing, stores it before going on, and ends in one transaction that also moves the
round to the next stage. Whatever line the power goes out after, running the round again goes on from there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from loop.config.section import keys_of
from loop.engines.base import SamplingParams
from loop.errors import ConfigError, LoopError, NoRoom
from loop.prompts.sources import prompts_of_round
from loop.run.adapting import refuse_a_repetition, settings_of
from loop.run.choosing import select
from loop.run.comparison import Comparison
from loop.run.session import LostWeights, Session
from loop.run.sharing import Turn, taken_in, turn
from loop.stages.sampling import Lineage, gathered, plan, sample, seed_of
from loop.stages.training import Trained, rows_sha256, train
from loop.system.disk import is_no_room
from policies.data import DATA_POLICIES
from policies.evidence import BadEvidence
from store.checkpoints import CHECKPOINTS, manifest_sha256, manifest_size_bytes, sweep_temporaries
from store.db import transaction
from store.errors import StoreError
from store.garbage import best_round
from store.records import Checkpoint, DecisionRow, Json, Round, StageName


def run_round(session: Session) -> Round:
    """Begin a round on the head, or go on with the one that is open or failed; returns it kept, rolled back or failed."""
    round = current_round(session)
    while round.state in STAGES:
        session.safe_point(round)
        round = attempt(session, round, STAGES[round.state])
        session.index_texts()
    return round


def sampling(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """The head writes its own training data at T_train. All of it is stored as it came; then it is said what is used."""
    config = session.loaded.config
    asked = {prompt_id: session.corpus.prompt(prompt_id) for prompt_id in inputs["prompt_ids"]}
    prompts = [prompt for prompt in asked.values() if prompt is not None]
    assert len(prompts) == len(inputs["prompt_ids"]), "prompts are stored before the first round"
    settings = session.corpus.add_decode_settings(inputs["decoding"])
    lineage = Lineage(round.run_id, round.number, round.parent_checkpoint, None, settings)
    planned = plan(lineage, prompts, config.sampling.num_samples, config.seed)
    made_from = {key: inputs[key] for key in ("prompt_ids", "decoding")} | {"seed": [config.seed, round.number]}
    made_from |= {"num_samples": config.sampling.num_samples}
    what = f"{len(planned)} completions"
    with turn(session, round.number, "sampling", what, round.parent_checkpoint, **made_from) as ours:
        ours.take_answers(planned, lineage)
        done = session.corpus.existing_ids(round.run_id, round.number)
        if num_missing := sum(item.id not in done for item in planned):
            session.watch.stage(round.number, "sampling", f"{num_missing} completions")
            params = SamplingParams.model_validate(inputs["decoding"])
            sampler = session.sampler(round.parent_checkpoint)
            for batch in gathered(sample(planned, done, lineage, params, sampler), time.monotonic):
                session.corpus.add_completions(batch)
                session.safe_point()
        ours.done()
    policy = DATA_POLICIES.build(inputs["data"]) if "data" in inputs else config.collect.data  # older stores lack it
    chosen = select(session, round, policy)
    output: Json = {"num_completions": len(planned), "num_used": chosen.num_used}
    if chosen.num_earlier or chosen.earlier_left_out:
        output |= {"num_earlier": chosen.num_earlier, "earlier_left_out": chosen.earlier_left_out}
    if taken := taken_in(session, round.number, "sampling"):
        output["shared"] = taken
    return session.ledger.finish_stage(
        round, "sampling", number, output, next_state="training", selections=chosen.selections
    )


def training(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """Plain cross-entropy on the selected completions gives the candidate."""
    session.watch.stage(round.number, "training", f"{inputs['num_rows']} completions")
    parent = session.weights(round.parent_checkpoint)
    final_dir = session.loaded.run_dir / CHECKPOINTS / f"round-{round.number:04d}"
    now = session.loaded.config.training  # what only costs memory and time may change between two attempts
    settings = inputs["settings"] | now.model_dump(include={*keys_of(type(now), "cost")})
    parent_row = session.ledger.checkpoints.get(round.parent_checkpoint)
    assert parent_row is not None
    made_from = {"rows_sha256": inputs["rows_sha256"], "settings": settings}
    what = f"{inputs['num_rows']} completions"
    with turn(session, round.number, "training", what, round.parent_checkpoint, **made_from) as ours:
        trained = ours.take_weights(final_dir)
        if trained is None:
            rows = session.corpus.training_rows(round.run_id, round.number)
            trained = train(rows, parent, settings, session.engines.trainer(parent), final_dir)
        return _trained(session, round, number, trained, parent_row, ours)


def _trained(
    session: Session, round: Round, number: int, trained: Trained, parent_row: Checkpoint, ours: Turn
) -> Round:
    """The candidate's row, and the round at the next stage; with that, in one transaction, where it was taken from."""
    path = str(trained.path.relative_to(session.loaded.run_dir))
    report = trained.result.model_dump(mode="json")
    candidate = Checkpoint(
        sha256=manifest_sha256(trained.manifest),
        run_id=round.run_id,
        round=round.number,
        kind="adapter" if trained.result.adapter else "full",
        path=path,
        parent=round.parent_checkpoint,
        base=(parent_row.base or parent_row.sha256) if trained.result.adapter else None,
        size_bytes=manifest_size_bytes(trained.manifest),
        manifest=trained.manifest,
        origin={"training": report},
    )
    output = {"checkpoint": candidate.sha256, **report} | ({"shared": [ours.took]} if ours.took else {})
    with transaction(session.ledger.db) if ours.took else contextlib.nullcontext():
        ours.say()
        finished = session.ledger.finish_stage(
            round, "training", number, output, next_state="evaluating", candidate=candidate
        )
    ours.made_weights(trained.path, checkpoint=candidate.sha256, path=path, manifest=trained.manifest, report=report)
    return finished


def evaluating(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """Head and candidate: same problems, same decoding settings, same seeds, until it is clear which one is better."""
    comparison = comparison_of(session, round, inputs)
    comparison.run()
    output = comparison.as_output()
    if taken := taken_in(session, round.number, "evaluating"):
        output["shared"] = taken
    return session.ledger.finish_stage(round, "evaluating", number, output, next_state="deciding")


def deciding(session: Session, round: Round, number: int, inputs: Json) -> Round:
    """The policy decides on the one figure that was named before the run; decision, state and head move together."""
    run, policy = session.run, session.policy
    comparison = comparison_of(session, round, inputs)
    seen = comparison.find(inputs["opened"], inputs["evaluations"], inputs["diagnosis"]).evidence()
    decision = policy.decide(seen)
    keep = decision.verdict == "keep"
    row = DecisionRow(
        run_id=round.run_id,
        round=round.number,
        verdict=decision.verdict,
        action=decision.action,
        gates=[gate.model_dump(mode="json") for gate in decision.gates],
        policy=policy.as_json(),
        evidence=seen.model_dump(mode="json"),
        head_before=run.head_checkpoint,
        head_after=inputs["candidate"] if keep else run.head_checkpoint,
    )
    back_to = (decision.need or {}).get("head")
    why = f"round {round.number} is inconclusive, and decide.unclear is pause; `loopctl resume` goes on with the head as it is"
    return session.ledger.decide(
        round,
        row,
        back_to=back_to if isinstance(back_to, int) else None,
        hold=why if decision.action == "pause" else None,
    )


def comparison_of(session: Session, round: Round, inputs: Json) -> Comparison:
    """The comparison that a stage's frozen input asks for."""
    checkpoints = {"head": inputs["head"], "candidate": inputs["candidate"]}
    best = inputs.get("best")
    return Comparison(
        session, round, checkpoints | ({"best": best["checkpoint"]} if best else {}), best["round"] if best else None
    )


# How a stage is begun, ended and tried again


def current_round(session: Session) -> Round:
    """The round to work on: the open one, the failed one, or a new one from the head."""
    ledger, run = session.ledger, session.run
    last = ledger.last_round(run.id)
    if last and last.state == "failed" and run.head_checkpoint == last.parent_checkpoint:
        return ledger.resume_round(last)
    return ledger.open_round(run.id) or ledger.begin_round(run.id)


def attempt(session: Session, round: Round, work: Callable[[Session, Round, int, Json], Round]) -> Round:
    """Try a stage until it is done or has failed `engine.max_attempts` times since it was last begun; then the round fails.

    A user's mistake is not tried again. A full disk is no failure: NoRoom leaves the round to be resumed.
    """
    ledger, engine, stage = session.ledger, session.loaded.config.engine, _stage(round)
    for left in range(engine.max_attempts - 1, -1, -1):
        known = ledger.stage(round.run_id, round.number, stage)
        number = None
        try:
            inputs = known.input if known else frozen_input(session, round, stage)
            number = ledger.begin_attempt(round, stage, inputs)
            return work(session, round, number, inputs)
        except LostWeights as lost:
            session.engines.close()
            return without_weights(session, round, stage, number or 0, lost)
        except (LoopError, StoreError, BadEvidence, OSError) as error:
            session.engines.close()
            sweep_temporaries(session.loaded.run_dir / CHECKPOINTS)
            reason = str(error) or type(error).__name__
            if is_no_room(error):
                _leave(session, round, stage, number, reason)
                raise NoRoom(reason) from error
            final = left == 0 or isinstance(error, ConfigError | StoreError | BadEvidence)
            wait = engine.retry_wait_s * 2 ** (engine.max_attempts - 1 - left)
            next_step = "the round fails" if final else f"tried again in {wait:g} s"
            session.watch.note(f"round {round.number}, {stage}: {reason}; {next_step}")
            if number is not None:
                ledger.fail_attempt(round, stage, number, reason, next_step)
            if final:
                return ledger.fail_round(round, reason)
            session.wait(wait)
        except BaseException as left_because:  # a safe point, a signal: neither is a failure
            session.engines.close()
            _leave(session, round, stage, number, str(left_because) or type(left_because).__name__)
            raise
    raise AssertionError("unreachable")


def without_weights(session: Session, round: Round, stage: StageName, number: int, lost: LostWeights) -> Round:
    """Weights are damaged or gone. A candidate is trained again; a head falls back to the last good one, loudly."""
    ledger, gone = session.ledger, lost.checkpoint
    num_trained = sum(
        bool(a.finished_at) and a.error is None for a in ledger.attempts(round.run_id, round.number, "training")
    )
    if gone.sha256 == round.candidate_checkpoint and num_trained < session.loaded.config.engine.max_attempts:
        next_step = "training is done again"
        session.watch.note(f"round {round.number}, {stage}: {lost}; {next_step}")
        ledger.fail_attempt(round, stage, number, str(lost), next_step)
        return ledger.train_again(round, str(lost))
    target = next((kept for kept in _earlier_heads(session) if _is_whole(session, kept)), None)
    where = f"the head falls back to {f'round {target}' if target else 'the base'}"
    next_step = (
        "the round fails; restore the weights" if target is None or gone.sha256 == round.candidate_checkpoint else where
    )
    session.watch.note(f"round {round.number}, {stage}: {lost}; {next_step}")
    ledger.fail_attempt(round, stage, number, str(lost), next_step)
    if next_step == where and target is not None:
        ledger.move_head(round.run_id, target, str(lost))
    else:
        ledger.fail_round(round, f"{lost}; restore them from a backup, or `loopctl rollback`")
    failed = ledger.round(round.run_id, round.number)
    assert failed is not None
    return failed


def _earlier_heads(session: Session) -> list[int]:
    """The rounds that were kept before the head, newest first, and the base."""
    run = session.run
    kept = [round.number for round in session.ledger.rounds(run.id) if round.state == "kept"]
    return [*sorted((number for number in kept if number < run.head_round), reverse=True), 0]


def _is_whole(session: Session, number: int) -> bool:
    round = session.ledger.round(session.run_id, number) if number else None
    sha256 = session.run.base_checkpoint if round is None else round.candidate_checkpoint or ""
    row = session.ledger.checkpoints.get(sha256)
    if row is None or row.state != "present":
        return False
    try:
        session.weights(sha256)
    except LoopError as damage:
        session.watch.note(str(damage))
        return False
    return True


def _leave(session: Session, round: Round, stage: StageName, number: int | None, why: str) -> None:
    with contextlib.suppress(StoreError, OSError):  # if it cannot be said, the attempt looks like one that vanished
        if number is not None:
            session.ledger.leave_attempt(round, stage, number, why)


def frozen_input(session: Session, round: Round, stage: StageName) -> Json:
    """What a stage works from. Stored with its first attempt; every later attempt works from what was stored."""
    config = session.loaded.config
    used, why_adapted = settings_of(session, round)
    inputs: Json
    match stage:
        case "sampling":
            chosen = prompts_of_round(session.prompts, config.prompts.per_round, config.seed, round.number)
            decoding = config.sampling.model_dump(mode="json", exclude={"num_samples", "control"})
            decoding |= {"temperature": used.temperature}
            inputs = {"checkpoint": round.parent_checkpoint, "prompt_ids": [p.id for p in chosen], "decoding": decoding}
            return inputs | {"data": used.data.model_dump(mode="json"), "adapted": why_adapted}
        case "training":
            num_rows, rows = rows_sha256(session.corpus.training_rows(round.run_id, round.number))
            seed = seed_of(config.seed, "training", round.number)
            settings = config.training.model_dump(mode="json") | used.training() | {"seed": seed}
            inputs = {"checkpoint": round.parent_checkpoint, "num_rows": num_rows, "rows_sha256": rows}
            inputs |= {"settings": settings}
            refuse_a_repetition(session, round, inputs)
            return inputs
        case "evaluating":
            sides = {"head": round.parent_checkpoint, "candidate": round.candidate_checkpoint}
            return sides | ({"best": best} if (best := best_so_far(session)) else {})
        case _:
            evaluated = session.ledger.stage(round.run_id, round.number, "evaluating")
            assert evaluated is not None and evaluated.output is not None
            return evaluated.input | evaluated.output


def best_so_far(session: Session) -> Json | None:
    """The best kept round where it is not the head, if a gate wants to see it."""
    run, ledger = session.run, session.ledger
    if not session.policy.needs_best:
        return None
    number = best_round(ledger, run, session.loaded.config.decide.suite)
    round = ledger.round(run.id, number) if number else None
    sha256 = round.candidate_checkpoint if round else run.base_checkpoint
    return {"round": number, "checkpoint": sha256} if sha256 != run.head_checkpoint else None


STAGES: dict[str, Callable[[Session, Round, int, Json], Round]] = {
    "sampling": sampling,
    "training": training,
    "evaluating": evaluating,
    "deciding": deciding,
}


def _stage(round: Round) -> StageName:
    assert round.state == round.stage, round
    return round.stage
