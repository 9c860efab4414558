"""Whatever comes in whatever order, the head moves only by a look that succeeded or by hand, and no more than alpha is spent.

The ledger, the policy, the plan of looks and `confirm` are real; what candidates answer is made up.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.run import confirming
from loop.run.adapting import line_of
from loop.run.session import Session
from policies.evidence import Evidence, Line, read_evidence
from policies.gates import Improvement
from policies.policy import Policy
from store.ledger import TIP_LOOKED_AT
from store.records import DecisionRow, Json, Round
from tests.support.stores import World

Answers = Literal["better", "alike", "worse"]
ANSWERS = {"better": (20, 0), "alike": (3, 3), "worse": (0, 12)}  # of 24 problems: better than the head, and worse
NUM_PROBLEMS = 24
ALPHA = 0.05

EVENTS = st.one_of(
    st.tuples(st.just("round"), st.sampled_from(["better", "better", "alike", "alike", "worse"])),
    st.tuples(st.just("confirm"), st.sampled_from(["better", "alike"])),
    st.tuples(st.just("killed"), st.sampled_from(["better", "alike"])),
    st.tuples(st.just("by hand"), st.integers(0, 5)),
    st.tuples(st.just("failed"), st.none()),
    st.tuples(st.just("rounds"), st.integers(0, 12)),
    st.tuples(st.just("max_carried"), st.integers(1, 4)),
)


def seen(answers: Answers, line: Json | None, round: int) -> Evidence:
    better, worse = ANSWERS[answers]
    problems = [
        {"task_id": str(at), "candidate": [int(at < better)] * 4, "head": [int(better <= at < better + worse)] * 4}
        for at in range(NUM_PROBLEMS)
    ]
    splits = {"select": {"suite": "s", "problems": problems}}
    return read_evidence({"round": round, "rounds_so_far": 0, "splits": splits, "line": line})


class Course:
    """A run of which only the decisions are real, with what its looks spent."""

    def __init__(self) -> None:
        self.world, self.policy = World(), Policy((Improvement(alpha=ALPHA),), "select", unclear="carry", max_carried=3)
        self.goal = 0
        self.spent = 0.0  # by looks that were not followed by a keep
        self.kept: list[int] = []

    @property
    def session(self) -> Session:
        """As much of a session as the plan of looks and `confirm` ask for."""
        world = self.world
        decide = SimpleNamespace(suite="s")
        config = SimpleNamespace(num_samples=4, greedy=False, name="s")
        decider = SimpleNamespace(of_split=lambda split: range(NUM_PROBLEMS), config=config)
        loaded = SimpleNamespace(config=SimpleNamespace(rounds=self.goal, decide=decide))
        session = SimpleNamespace(
            run=world.now, run_id=world.run.id, ledger=world.ledger, policy=self.policy, decider=decider, loaded=loaded, goal=None
        )  # fmt: skip
        return cast(Session, session)

    def look(self, line: Line, level: float, kept: bool) -> None:
        """Account for one decision, at the level that it was really taken at."""
        if not line.look:
            assert not kept, "nothing is kept without a look"
            return
        assert self.spent + level <= ALPHA * (1 + 1e-9)
        self.spent += 0.0 if kept else level

    def round(self, answers: Answers, *, killed: bool = False) -> None:
        """A round to its end. `killed`: settings change and work is repeated between the plan and the decision."""
        ledger, before = self.world.ledger, self.world.now
        round = ledger.begin_round(self.world.run.id)
        round = self.world.stage(round, "sampling", selections=[])
        round = self.world.stage(round, "training")
        line = line_of(self.session)
        assert line is not None
        ledger.begin_attempt(round, "evaluating", {"line": line.model_dump(exclude_none=True)})
        if killed:  # the process that comes has other settings, and works from what was stored
            self.goal = self.world.now.num_decided + 1
            self.policy = Policy(self.policy.gates, "select", unclear="carry", max_carried=1)
            stored = ledger.stage(round.run_id, round.number, "evaluating")
            assert stored is not None
            ledger.begin_attempt(round, "evaluating", stored.input)
        stage = ledger.stage(round.run_id, round.number, "evaluating")
        assert stage is not None and Line.model_validate(stage.input["line"]) == line
        round = ledger.finish_stage(round, "evaluating", stage.num_attempts, {}, next_state="deciding")
        row = self.decision(round, seen(answers, stage.input["line"], round.number))
        if killed:
            assert row == self.decision(round, seen(answers, stage.input["line"], round.number))
        done = ledger.decide(round, row)
        with self.world.refused():
            ledger.decide(round, row)  # a process that was killed after it
        after = self.world.now
        kept = done.state == "kept"
        self.look(line, row.gates[0]["figures"]["level"], kept)
        assert (after.head_checkpoint != before.head_checkpoint) == kept == (row.gates[0]["verdict"] == "pass")
        assert after.tip_checkpoint == (
            round.candidate_checkpoint if done.state != "rolled_back" else before.head_checkpoint
        )
        self.kept += [round.number] if kept else []

    def decision(self, round: Round, evidence: Evidence) -> DecisionRow:
        decision, head = self.policy.decide(evidence), self.world.now.head_checkpoint
        return DecisionRow(
            round.run_id, round.number, **decision.model_dump(mode="json", exclude={"need"}), policy=self.policy.as_json(),
            evidence=evidence.model_dump(mode="json"), head_before=head,
            head_after=(round.candidate_checkpoint or "") if decision.verdict == "keep" else head,
        )  # fmt: skip

    def confirm(self, answers: Answers) -> None:
        """A look at the tip between two rounds, where there is one to look at."""
        before = self.world.now
        last = self.world.ledger.last_round(before.id)
        if not before.depth or (last is not None and last.state == "failed"):
            return

        class Comparison:
            draw = ""

            def __init__(self, inputs: Json) -> None:
                self.inputs = inputs

            @classmethod
            def of(cls, session: Session, round: Round, inputs: Json) -> Any:
                return cls(inputs)

            def run(self) -> None: ...

            def evidence(self) -> Evidence:
                return seen(answers, self.inputs["line"], before.tip_round)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(confirming, "Comparison", Comparison)
            answer = confirming.confirm(self.session)
        event = self.world.ledger.events.last_of(before.id, TIP_LOOKED_AT)
        assert event is not None
        line = Line.model_validate(event.data["evidence"]["line"])
        self.look(line, answer["decision"]["gates"][0]["figures"]["level"], answer["shown"])
        after = self.world.now
        assert after.head_checkpoint == (before.tip_checkpoint if answer["shown"] else before.head_checkpoint)
        assert after.tip_checkpoint == before.tip_checkpoint
        self.kept += [before.tip_round] if answer["shown"] else []

    def happens(self, event: str, what: Any) -> None:
        before = self.world.now
        match event:
            case "round" | "killed":
                return self.round(what, killed=event == "killed")
            case "confirm":
                return self.confirm(what)
            case "by hand":
                choices = [0, *self.kept]
                self.world.ledger.move_head(before.id, choices[what % len(choices)], "a test")
                return None
            case "failed":
                self.world.ledger.fail_round(self.world.ledger.begin_round(before.id), "a test")
            case "rounds":
                self.goal = what
            case "max_carried":
                self.policy = Policy(self.policy.gates, "select", unclear="carry", max_carried=what)
        assert self.world.now.head_checkpoint == before.head_checkpoint
        return None


@settings(max_examples=40)
@given(st.lists(EVENTS, min_size=4, max_size=16))
def test_the_head_moves_by_looks_alone_and_no_more_than_alpha_is_spent(events: list[tuple[str, Any]]) -> None:
    course = Course()
    for event, what in events:
        course.happens(event, what)
    assert course.spent <= ALPHA
