"""What is remembered: the run, its rounds and their stages, decisions, checkpoints and the head.

Every change of state appends its event in the same transaction, and every move of a round is a compare-and-swap:
StaleState means that the caller's picture is out of date, and that nothing was changed. `ledger.events` is the history
(events.py), `ledger.checkpoints` what is known of weights (checkpoint_rows.py); decisions are read in decision_rows.py. The
weights themselves are written in checkpoints.py, completions in corpus.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, Literal

from store.canonical import canonical_json, sha256_of
from store.checkpoint_rows import Checkpoints
from store.db import Database, execute, insert, required, scalar, select, select_one, transaction, utc_now
from store.decision_rows import DecisionRows
from store.errors import Conflict, StaleState, StoreError
from store.events import Events
from store.records import (
    STAGES,
    Attempt,
    Checkpoint,
    Control,
    DecisionRow,
    Json,
    Round,
    RoundState,
    Run,
    RunState,
    Selection,
    Stage,
    StageName,
)
from store.selections import store_selections

TIP_LOOKED_AT = "tip_looked_at"
CHOSEN = "candidate_chosen"
CANDIDATES = "candidates"  # this key of the training stage's output lists several, with their steps

_STAGE = (
    "SELECT *, (SELECT coalesce(max(attempt), 0) FROM attempts AS a WHERE a.run_id = s.run_id AND a.round = s.round "
    "AND a.stage = s.name) AS num_attempts FROM stages AS s WHERE run_id = ? AND round = ?"
)


def _round_words(number: int) -> str:
    return f"round {number}" if number else "the base"


def decision_sha256(decision: DecisionRow) -> str:
    """What a decision's event says of it."""
    return sha256_of(asdict(decision))


class Ledger(DecisionRows):
    """The ledger over one open store. `now` is the clock: RFC 3339 UTC."""

    def __init__(self, db: Database, now: Callable[[], str] = utc_now) -> None:
        self.db = db
        self.now = now
        self.events = Events(db, lambda: self.now())
        self.checkpoints = Checkpoints(self.events)

    # Runs

    def create_run(self, name: str, config: Json, config_sha256: str, seed: int, base: Checkpoint) -> Run:
        """Start a run whose head is its base. `base.run_id` is filled in. StoreError if the name is taken."""
        # The same configuration started afresh elsewhere gives the same id, hence the same draws.
        run_id = sha256_of({"name": name, "config_sha256": config_sha256, "seed": seed})[:16]
        at, head = self.now(), base.sha256
        with transaction(self.db):
            if self.run(name):
                raise StoreError(f"run {name!r} already exists in this store; go on with it or choose another run_dir")
            run = Run(run_id, name, config_sha256, config, seed, "idle", None, at, head, head, 0, head, 0)
            insert(self.db, "runs", [run])
            self.events.append(run_id, "run_created", at=at, name=name, seed=seed, base=base.sha256, config=config)
            self.checkpoints.add(replace(base, run_id=run_id, round=0))
        return self.run_of(run_id)

    def run(self, name: str | None = None) -> Run | None:
        """The run of that name, or the newest; None if there is none."""
        sql = "SELECT * FROM runs WHERE ? IS NULL OR name = ? ORDER BY rowid DESC LIMIT 1"
        return select_one(self.db, Run, sql, (name, name))

    def run_of(self, run_id: str) -> Run:
        """The run with that id; StoreError if there is none."""
        run = select_one(self.db, Run, "SELECT * FROM runs WHERE id = ?", (run_id,))
        return required(run, f"no run has the id {run_id!r}")

    def set_run_state(self, run_id: str, state: RunState, reason: str | None = None) -> None:
        """Say what the run is doing and why; an event only if that is news."""
        with transaction(self.db):
            before = self.run_of(run_id)
            if (before.state, before.reason) != (state, reason):
                execute(self.db, "UPDATE runs SET state = ?, reason = ? WHERE id = ?", (state, reason, run_id))
                self.events.append(run_id, "run_state", state=state, reason=reason)

    # What was asked of the run

    def control(self, run_id: str) -> Control:
        """What stands until it is carried out or taken back."""
        return select_one(self.db, Control, "SELECT * FROM control WHERE run_id = ?", (run_id,)) or Control(run_id)

    def hold_run(self, run_id: str, by: Literal["user", "failure", "decision"], reason: str) -> bool:
        """Pause the run until it is released; False, and nothing changes, if it is held already."""
        with transaction(self.db):
            before = self.control(run_id)
            if before.held_by is not None:
                return False
            self._set_control(replace(before, held_by=by, hold_reason=reason))
            self.events.append(run_id, "run_held", by=by, reason=reason)
        return True

    def release_run(self, run_id: str) -> bool:
        """Take back a hold, whoever's; False if there is none."""
        with transaction(self.db):
            before = self.control(run_id)
            if before.held_by is None:
                return False
            at = self.now()
            self._set_control(replace(before, held_by=None, hold_reason=None, released_at=at))
            self.events.append(run_id, "run_released", at=at, by=before.held_by)
        return True

    def ask_head(self, run_id: str, to_round: int, reason: str) -> bool:
        """Move the head now, or, while a round is open, note that it is wanted; whether it has moved.

        `move_head` carries it out at the next safe point. StoreError if that round cannot be the head.
        """
        with transaction(self.db):
            run, control = self.run_of(run_id), self.control(run_id)
            self._checkpoint_for_head(run, to_round)
            if (to_round != run.head_round or run.depth) and self.open_round(run_id):
                if control.wanted_head != to_round:
                    self._set_control(replace(control, wanted_head=to_round))
                    self.events.append(run_id, "head_asked", to_round, reason=reason)
                return False
            self.move_head(run_id, to_round, reason)
        return True

    def move_head(self, run_id: str, to_round: int, reason: str) -> Run:
        """Move head and tip to an earlier kept round, or to the base (0). A wish for it is fulfilled with that.

        A round that is open is given up in the same transaction: it is failed, and cannot be resumed on another head.
        """
        with transaction(self.db):
            run, control = self.run_of(run_id), self.control(run_id)
            checkpoint = self._checkpoint_for_head(run, to_round)
            if control.wanted_head is not None:
                self._set_control(replace(control, wanted_head=None))
            if (to_round, checkpoint) == (run.head_round, run.head_checkpoint) and not run.depth:
                return run
            if open_round := self.open_round(run_id):
                self.fail_round(open_round, f"given up: the head moved to {_round_words(to_round)}: {reason}")
            self._set_head(run, to_round, checkpoint)
            before = run.head_checkpoint
            self.events.append(run_id, "head_moved", to_round, reason=reason, head_before=before, head_after=checkpoint)
        return self.run_of(run_id)

    def _checkpoint_for_head(self, run: Run, to_round: int) -> str:
        checkpoint = run.base_checkpoint
        if to_round:
            target = self._round(run.id, to_round)
            if target.state != "kept" or target.candidate_checkpoint is None:
                raise StoreError(f"round {to_round} is {target.state}; the head can move to a kept round or the base")
            checkpoint = target.candidate_checkpoint
        state = self.checkpoints.known(checkpoint).state
        if state != "present":
            raise StoreError(f"the checkpoint of {_round_words(to_round)} is {state}; choose another round")
        return checkpoint

    def _set_control(self, control: Control) -> None:
        execute(self.db, "DELETE FROM control WHERE run_id = ?", (control.run_id,))
        insert(self.db, "control", [control])

    # Rounds

    def begin_round(self, run_id: str) -> Round:
        """Open the next round on the tip. StaleState while one is open. A failed round does not stand in the way."""
        at = self.now()
        with transaction(self.db):
            run, last = self.run_of(run_id), self.last_round(run_id)
            if last and last.state in STAGES:
                raise StaleState(f"round {last.number} is not finished ({last.state}); go on with it first")
            number, parent = last.number + 1 if last else 1, run.tip_checkpoint
            round = Round(run_id, number, "sampling", "sampling", parent, None, at, None, None)
            insert(self.db, "rounds", [round])
            self.events.append(run_id, "round_begun", number, at=at, parent=parent)
        return round

    def open_round(self, run_id: str) -> Round | None:
        """The round that is active; None between rounds and after a failed one."""
        last = self.last_round(run_id)
        return last if last and last.state in STAGES else None

    def round(self, run_id: str, number: int) -> Round | None:
        return select_one(self.db, Round, "SELECT * FROM rounds WHERE run_id = ? AND number = ?", (run_id, number))

    def rounds(self, run_id: str) -> list[Round]:
        """All rounds, in order."""
        return select(self.db, Round, "SELECT * FROM rounds WHERE run_id = ? ORDER BY number", (run_id,))

    def last_round(self, run_id: str) -> Round | None:
        sql = "SELECT * FROM rounds WHERE run_id = ? ORDER BY number DESC LIMIT 1"
        return select_one(self.db, Round, sql, (run_id,))

    def fail_round(self, round: Round, error: str) -> Round:
        """Active to failed; it remembers its stage."""
        with transaction(self.db):
            before = self._swap(round, STAGES, "failed", error=error)
            self._count(round.run_id, "num_failed", 1)
            self.events.append(round.run_id, "round_failed", round.number, before.stage, error=error)
        return self._round(round.run_id, round.number)

    def resume_round(self, round: Round) -> Round:
        """Failed to the stage that it remembers. Only the latest round, and only on its own parent."""
        with transaction(self.db):
            before = self._swap(round, ("failed",), None)
            last = self.last_round(round.run_id)
            if last and last.number != round.number:
                raise StaleState(f"round {round.number} is over: round {last.number} has begun")
            if self.run_of(round.run_id).tip_checkpoint != before.parent_checkpoint:
                raise StaleState(f"round {round.number} is over: the tip has moved since; begin the next round")
            self._count(round.run_id, "num_failed", -1)
            self.events.append(round.run_id, "round_resumed", round.number, before.stage, was=before.state)
        return self._round(round.run_id, round.number)

    # Stages and attempts

    def begin_attempt(self, round: Round, stage: StageName, input: Json) -> int:
        """Record that a try at the round's current stage begins; its number, from 1.

        The first attempt freezes the stage's input; another input later is Conflict. Whoever resumes a stage works
        from `stage(...).input`. An earlier attempt that neither succeeded nor failed stays so: its process vanished.
        """
        at = self.now()
        key = (round.run_id, round.number, stage)
        with transaction(self.db):
            current = self._round(round.run_id, round.number)
            if current.state != stage:
                raise StaleState(f"round {round.number} is at {current.state}, not at {stage}")
            begun = self.stage(*key)
            if begun is None:
                sql = "INSERT INTO stages (run_id, round, name, input, started_at) VALUES (?, ?, ?, ?, ?)"
                execute(self.db, sql, (*key, canonical_json(input), at))
            elif canonical_json(begun.input) != canonical_json(input):
                raise Conflict(f"round {round.number}, {stage}: the input differs from that of the first attempt")
            number = begun.num_attempts + 1 if begun else 1
            insert(self.db, "attempts", [Attempt(*key, number, at, None, None)])
            particulars: Json = {"attempt": number, "input_sha256": sha256_of(input)}
            self.events.append(round.run_id, "attempt_begun", round.number, stage, at=at, **particulars)
        return number

    def fail_attempt(self, round: Round, stage: StageName, attempt: int, error: str, next_step: str) -> None:
        """Record that an attempt failed, and in words what happens next. The round stays where it is."""
        with transaction(self.db):
            self._end_attempt(round, stage, attempt, error)
            particulars: Json = {"attempt": attempt, "error": error, "next_step": next_step}
            self.events.append(round.run_id, "attempt_failed", round.number, stage, **particulars)

    def finish_stage(
        self,
        round: Round,
        stage: StageName,
        attempt: int,
        output: Json,
        *,
        next_state: RoundState,
        candidates: Sequence[Checkpoint] = (),
        selections: Iterable[Selection] | None = None,
        nodes: Sequence[Json] = (),
    ) -> Round:
        """Store a stage's output and move the round to the stage after it, with what belongs to that moment.

        `selections` (in order of position) come with the end of sampling, `candidates` (all different) with the end of
        training. One is the round's candidate; of several `choose_candidate` says later which. Finishing twice is StaleState,
        even with the same output: after a restart the round's state says that the stage is done, so a second finish is a
        second writer or a mistake. Deciding ends with `decide`. `nodes`: what each machine of a cluster did in this attempt.
        """
        assert dict(pairwise(STAGES)).get(stage) == next_state, f"{stage} does not lead to {next_state}"
        assert (not candidates, selections is None) == (stage != "training", stage != "sampling"), stage
        at = self.now()
        with transaction(self.db):
            before = self._swap(round, (stage,), next_state)
            assert stage != "evaluating" or before.candidate_checkpoint, "of several one is chosen first"
            self._end_stage(round, stage, attempt, output, at)
            particulars: Json = {"attempt": attempt, "output_sha256": sha256_of(output)}
            if nodes:
                particulars["nodes"] = [*nodes]
            if selections is not None:
                particulars["selections_sha256"] = store_selections(self.db, round, selections)
            for candidate in candidates:
                self.checkpoints.add(candidate)
            if len(candidates) == 1:
                self._set_candidate(round, candidates[0].sha256)
                particulars["candidate"] = candidates[0].sha256
            elif candidates:
                particulars["candidates"] = [candidate.sha256 for candidate in candidates]
            self.events.append(round.run_id, "stage_finished", round.number, stage, at=at, **particulars)
        return self._round(round.run_id, round.number)

    def candidates(self, round: Round) -> list[str]:
        """The checkpoints that a round's training has left, each once; one of them is, or will be, its candidate."""
        training = self.stage(round.run_id, round.number, "training")
        several = (training.output or {}).get(CANDIDATES, []) if training else []
        left = [each["checkpoint"] for each in several] or [round.candidate_checkpoint]
        return [*filter(None, dict.fromkeys(left))]

    def choose_candidate(self, round: Round, checkpoint: str, **data: Any) -> Round:
        """Say which of several is the round's candidate; `data`: all of them, with what they were chosen by.

        StaleState unless the round is evaluating and has none.
        """
        with transaction(self.db):
            current = self._round(round.run_id, round.number)
            if current.state != "evaluating" or current.candidate_checkpoint is not None:
                raise StaleState(
                    f"round {round.number} is at {current.state}, and not one whose candidate is still open"
                )
            assert checkpoint in self.candidates(round), checkpoint
            self._set_candidate(round, checkpoint)
            self.events.append(round.run_id, CHOSEN, round.number, "evaluating", candidate=checkpoint, **data)
        return self._round(round.run_id, round.number)

    def leave_attempt(self, round: Round, stage: StageName, attempt: int, why: str) -> None:
        """Record that an attempt was left on purpose: it neither succeeded nor failed, and a later one continues the stage."""
        with transaction(self.db):
            self._end_attempt(round, stage, attempt, why)
            self.events.append(round.run_id, "attempt_left", round.number, stage, attempt=attempt, why=why)

    def train_again(self, round: Round, why: str) -> Round:
        """From evaluating or deciding back to training, because weights of a candidate are gone.

        What was measured of them stays; the later stages begin anew with the candidates that come.
        """
        with transaction(self.db):
            before = self._swap(round, ("evaluating", "deciding"), "training")
            self.checkpoints.let_go(before, self.candidates(before))
            for undo in (
                "DELETE FROM attempts WHERE run_id = ? AND round = ? AND stage IN ('evaluating', 'deciding')",
                "DELETE FROM stages WHERE run_id = ? AND round = ? AND name IN ('evaluating', 'deciding')",
                "UPDATE stages SET output = NULL, finished_at = NULL WHERE run_id = ? AND round = ? AND name = 'training'",
                "UPDATE rounds SET candidate_checkpoint = NULL WHERE run_id = ? AND number = ?",
            ):
                execute(self.db, undo, (round.run_id, round.number))
            lost = before.candidate_checkpoint
            self.events.append(round.run_id, "training_undone", round.number, "training", why=why, candidate=lost)
        return self._round(round.run_id, round.number)

    def stage(self, run_id: str, number: int, name: StageName) -> Stage | None:
        """One stage of a round; None if it has not begun."""
        return select_one(self.db, Stage, f"{_STAGE} AND name = ?", (run_id, number, name))

    def stages(self, run_id: str, number: int) -> list[Stage]:
        """The stages of a round that have begun, in order."""
        stages = select(self.db, Stage, _STAGE, (run_id, number))
        return sorted(stages, key=lambda stage: STAGES.index(stage.name))

    def attempts(self, run_id: str, number: int, name: StageName) -> list[Attempt]:
        """All tries at a stage, in order."""
        sql = "SELECT * FROM attempts WHERE run_id = ? AND round = ? AND stage = ? ORDER BY attempt"
        return select(self.db, Attempt, sql, (run_id, number, name))

    def hours_of_work(self, run_id: str) -> float:
        """What all attempts took that have an end, failed ones included. One whose process vanished has none."""
        sql = (
            "SELECT coalesce(sum(max(0.0, julianday(finished_at) - julianday(started_at))), 0.0) * 24 "
            "FROM attempts WHERE run_id = ? AND finished_at IS NOT NULL"
        )
        return float(scalar(self.db, sql, (run_id,)))

    # Decisions

    def decide(
        self,
        round: Round,
        decision: DecisionRow,
        *,
        back_to: int | None = None,
        tip_looked_at: Json | None = None,
        hold: str | None = None,
    ) -> Round:
        """Store the decision, the round's final state and the head, all at once; StaleState unless it is deciding.

        "keep" moves head and tip to the candidate; the action "carry" moves the tip alone; else the tip returns to the
        head, which stays or moves `back_to` an earlier round. `tip_looked_at`: what a look at the tip saw that this candidate's
        failing brought about; if that was `shown`, it is the head. `hold`: a reason for the run to wait for a person. An
        open attempt at the deciding stage ends with it, successfully.
        """
        at = self.now()
        assert (decision.run_id, decision.round) == (round.run_id, round.number), decision
        decision = replace(decision, decided_at=decision.decided_at or at)
        keep, carry = decision.verdict == "keep", decision.action == "carry"
        with transaction(self.db):
            run = self.run_of(round.run_id)
            head_before = run.head_checkpoint
            if tip_looked_at is not None:
                assert not keep and not carry, "a tip that is not given up needs no look"
                earlier = self.events.last_of(run.id, TIP_LOOKED_AT)
                number = earlier.data["number"] if earlier else 0  # only looks by hand are numbered
                self.look_at_tip(run.id, head=head_before, tip=round.parent_checkpoint, number=number, **tip_looked_at)
                run = self.run_of(round.run_id)
            state: RoundState = "kept" if keep else "carried" if carry else "rolled_back"
            before = self._swap(round, ("deciding",), state)
            expected = before.candidate_checkpoint if keep else run.head_checkpoint
            if decision.head_before != head_before or decision.head_after != expected:
                raise StaleState(f"round {round.number}: the decision was taken on another head than the run's")
            insert(self.db, "decisions", [decision])
            if carry:
                self._set_tip(run, round.number, before.candidate_checkpoint or "", run.depth + 1)
            elif keep:
                self._set_head(run, round.number, decision.head_after, shown=True)
            else:
                self._set_head(run, run.head_round, run.head_checkpoint)
            self._count(round.run_id, f"num_{state}", 1)
            outcome = {"verdict": decision.verdict, "action": decision.action}
            if deciding := self.stage(round.run_id, round.number, "deciding"):
                self._end_stage(round, "deciding", deciding.num_attempts, outcome, at)
            outcome |= {"head_after": decision.head_after, "decision_sha256": decision_sha256(decision)}
            self.events.append(round.run_id, "round_decided", round.number, "deciding", at=at, **outcome)
            if back_to is not None:
                self.move_head(round.run_id, back_to, f"round {round.number}: worse than the best so far")
            if hold is not None:
                self.hold_run(round.run_id, "decision", hold)
        return self._round(round.run_id, round.number)

    def look_at_tip(self, run_id: str, *, shown: bool, **data: Any) -> None:
        """Record a look at the tip between two rounds. What it has shown is the head from now on, and its round is kept.

        `data`: what was seen, with the hashes of `head` and `tip`. StaleState if the run has others by now.
        """
        with transaction(self.db):
            run = self.run_of(run_id)
            if not run.depth or (data["head"], data["tip"]) != (run.head_checkpoint, run.tip_checkpoint):
                raise StaleState("head or tip has moved since the look began")
            self.events.append(run_id, TIP_LOOKED_AT, run.tip_round, shown=shown, **data)
            if shown:
                self._swap(self._round(run_id, run.tip_round), ("carried",), "kept")
                self._count(run_id, "num_carried", -1)
                self._count(run_id, "num_kept", 1)
                self._set_head(run, run.tip_round, run.tip_checkpoint, shown=True)

    # Inside a transaction

    def _set_candidate(self, round: Round, checkpoint: str) -> None:
        sql = "UPDATE rounds SET candidate_checkpoint = ? WHERE run_id = ? AND number = ?"
        execute(self.db, sql, (checkpoint, round.run_id, round.number))

    def _round(self, run_id: str, number: int) -> Round:
        return required(self.round(run_id, number), f"there is no round {number}")

    def _swap(self, round: Round, expected: Sequence[str], to: RoundState | None, error: str | None = None) -> Round:
        """Move a round out of one of the expected states into `to` (None: the stage that it remembers); the round before."""
        before = self._round(round.run_id, round.number)
        if before.state not in expected:
            raise StaleState(f"round {round.number} is at {before.state}, not at {' or '.join(expected)}")
        to = to or before.stage
        stage, finished_at = (to, None) if to in STAGES else (before.stage, self.now())
        sql = "UPDATE rounds SET state = ?, stage = ?, finished_at = ?, error = ? WHERE run_id = ? AND number = ?"
        execute(self.db, sql, (to, stage, finished_at, error, round.run_id, round.number))
        return before

    def _end_attempt(self, round: Round, stage: StageName, attempt: int, error: str | None, at: str = "") -> None:
        sql = (
            "UPDATE attempts SET finished_at = ?, error = ? WHERE run_id = ? AND round = ? AND stage = ? "
            "AND attempt = ? AND finished_at IS NULL AND attempt = (SELECT max(attempt) FROM attempts AS a "
            "WHERE a.run_id = attempts.run_id AND a.round = attempts.round AND a.stage = attempts.stage)"
        )
        if not execute(self.db, sql, (at or self.now(), error, round.run_id, round.number, stage, attempt)):
            raise StaleState(f"round {round.number}, {stage}: attempt {attempt} is over, or a later one has begun")

    def _end_stage(self, round: Round, stage: StageName, attempt: int, output: Json, at: str) -> None:
        self._end_attempt(round, stage, attempt, None, at)
        sql = "UPDATE stages SET output = ?, finished_at = ? WHERE run_id = ? AND round = ? AND name = ?"
        execute(self.db, sql, (canonical_json(output), at, round.run_id, round.number, stage))

    def _set_head(self, run: Run, round: int, checkpoint: str, *, shown: bool = False) -> None:
        """Move the head, and the tip with it. A line that ends without having been shown has failed."""
        sql = "UPDATE runs SET head_round = ?, head_checkpoint = ? WHERE id = ?"
        execute(self.db, sql, (round, checkpoint, run.id))
        self._set_tip(run, round, checkpoint, 0)
        self._count(run.id, "num_failed_lines", int(run.depth > 0 and not shown))

    def _set_tip(self, run: Run, round: int, checkpoint: str, depth: int) -> None:
        sql = "UPDATE runs SET tip_round = ?, tip_checkpoint = ?, depth = ? WHERE id = ?"
        execute(self.db, sql, (round, checkpoint, depth, run.id))

    def _count(self, run_id: str, counter: str, change: int) -> None:
        execute(self.db, f"UPDATE runs SET {counter} = {counter} + ? WHERE id = ?", (change, run_id))
