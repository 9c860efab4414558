"""How a stage of a round is begun, tried again after a failure, and left; and what happens when weights are lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import count

from loop.errors import ConfigError, LoopError, NoRoom
from loop.run.session import LostWeights, Session
from loop.system.disk import is_no_room
from loop.words import round_name
from policies.evidence import BadEvidence
from policies.retries import doubling
from store.checkpoints import CHECKPOINTS, sweep_temporaries
from store.errors import StoreError
from store.records import Json, Round

Freeze = Callable[[Session, Round], Json]  # what a stage works from
Work = Callable[[Session, Round, int, Json], Round]  # the stage, with the number of the attempt and what was frozen

HOPELESS = (ConfigError, StoreError, BadEvidence)  # a user's mistake, and what no attempt changes


def current_round(session: Session) -> Round:
    """The round to work on: the open one, the failed one, or a new one from the tip."""
    ledger, run = session.ledger, session.run
    last = ledger.last_round(run.id)
    if last and last.state == "failed" and run.tip_checkpoint == last.parent_checkpoint:
        return ledger.resume_round(last)
    return ledger.open_round(run.id) or ledger.begin_round(run.id)


def attempt(session: Session, round: Round, freeze: Freeze, work: Work) -> Round:
    """Try the round's stage until it is done or `policies.retries` gives up; then the round fails.

    Its input is frozen by the first attempt. A full disk is no failure: NoRoom leaves the round to be resumed.
    """
    ledger, engine, stage = session.ledger, session.loaded.config.engine, round.stage
    retries = doubling(engine.max_attempts, engine.retry_wait_s, HOPELESS)
    for num_failures in count(1):
        begun, number = ledger.stage(round.run_id, round.number, stage), None
        try:
            inputs = begun.input if begun else freeze(session, round)
            number = ledger.begin_attempt(round, stage, inputs)
            session.engines.by_node.begin_attempt()
            return work(session, round, number, inputs)
        except LostWeights as lost:
            session.engines.close()
            return without_weights(session, round, number or 0, lost)
        except (LoopError, StoreError, BadEvidence, OSError) as error:
            session.engines.close()
            sweep_temporaries(session.loaded.run_dir / CHECKPOINTS)
            reason = str(error) or type(error).__name__
            if is_no_room(error):
                _leave(session, round, number, reason)
                raise NoRoom(reason) from error
            wait_s = retries.wait_s(num_failures, error)
            next_step = "the round fails" if wait_s is None else f"tried again in {wait_s:g} s"
            session.watch.note(f"round {round.number}, {stage}: {reason}; {next_step}")
            if number is not None:
                ledger.fail_attempt(round, stage, number, reason, next_step)
            if wait_s is None:
                return ledger.fail_round(round, reason)
            session.wait(wait_s)
        except BaseException as interruption:  # a safe point, a signal: neither is a failure
            session.engines.close()
            _leave(session, round, number, str(interruption) or type(interruption).__name__)
            raise
    raise AssertionError("unreachable")


def _leave(session: Session, round: Round, number: int | None, why: str) -> None:
    with contextlib.suppress(StoreError, OSError):  # if it cannot be said, the attempt looks like one that vanished
        if number is not None:
            session.ledger.leave_attempt(round, round.stage, number, why)


def without_weights(session: Session, round: Round, attempt: int, lost: LostWeights) -> Round:
    """Weights are damaged or gone. A candidate is trained again; head and tip fall back to the last good head, loudly."""
    ledger, run_id = session.ledger, round.run_id
    is_candidate = lost.checkpoint.sha256 in ledger.candidates(round)

    def fail_attempt(next_step: str) -> None:
        session.watch.note(f"round {round.number}, {round.stage}: {lost}; {next_step}")
        ledger.fail_attempt(round, round.stage, attempt, str(lost), next_step)

    trainings = ledger.attempts(run_id, round.number, "training")
    num_trained = sum(bool(each.finished_at) and each.error is None for each in trainings)
    if is_candidate and num_trained < session.loaded.config.engine.max_attempts:
        fail_attempt("training is done again")
        return ledger.train_again(round, str(lost))
    head_round = session.run.head_round
    kept = [each.number for each in ledger.rounds(run_id) if each.state == "kept" and each.number <= head_round]
    needed = session.run.head_checkpoint, session.run.tip_checkpoint, round.parent_checkpoint
    helps = not is_candidate and lost.checkpoint.sha256 in needed  # another head does not bring the best round back
    heads = [*reversed(kept), 0] if helps else []
    target = next((number for number in heads if _is_whole(session, number)), None)
    if target is None:
        fail_attempt("the round fails; restore the weights")
        return ledger.fail_round(round, f"{lost}; restore them from a backup, or `loopctl rollback`")
    back = "the next round begins from the head," if target == head_round else "the head falls back to"
    fail_attempt(f"{back} {round_name(target)}")
    ledger.move_head(run_id, target, str(lost))
    failed = ledger.round(run_id, round.number)
    assert failed is not None
    return failed


def _is_whole(session: Session, number: int) -> bool:
    round = session.ledger.round(session.run_id, number) if number else None
    sha256 = session.run.base_checkpoint if round is None else round.candidate_checkpoint or ""
    row = session.ledger.checkpoints.get(sha256)
    if row is None or row.state != "present":
        return False
    try:
        session.weights(sha256, may_leave=False)  # it is being decided what the failure leads to
    except LoopError as damage:
        session.watch.note(str(damage))
        return False
    return True
