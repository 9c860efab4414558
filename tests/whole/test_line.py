"""Runs that carry: gains that no look can see alone add up, and whatever is lost or moved, the head is what was shown."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loop.cli.tables import console, round_report
from loop.config.loading import load_config
from loop.config.place import Place
from loop.errors import LoopError
from loop.experiments.facts import heads_of
from loop.reading.as_json import as_json
from loop.reading.reader import OF_THE_TIP, reader
from loop.reading.rounds import Carried, fates, rows, whole_round
from loop.reading.standing import status
from loop.reading.status_words import labelled
from loop.report.facts import run_facts
from loop.report.page import body
from loop.round import run_round
from loop.run.confirming import confirm
from loop.run.opening import open_session
from loop.run.session import Session
from loop.words import fate, signed
from policies.evidence import TIP, read_evidence
from policies.policy import build_policy
from store.ledger import TIP_LOOKED_AT
from store.records import Round, Run
from tests.support.configurations import configuration
from tests.support.runs import Quiet, drive, dump, findings, finish, write_run
from tests.whole.test_round_recovers import damage

KILLED = -9


def slowly(num_rounds: int, alpha: float = 0.05, training_steps: int = 1, **decide: Any) -> str:
    """A run that learns a hundredth in each round; the fake model answers alike but for that."""
    gates = [{"type": "improvement", "alpha": alpha}, {"type": "collapse"}, {"type": "drift"}]
    return configuration(
        rounds=num_rounds, training={"num_steps": training_steps}, decide={"unclear": "carry", "gates": gates, "last_samples": 2} | decide,
        after_rollback={"learning_rate_factor": 0.5},
    )  # fmt: skip


SLOWLY, NEVER = slowly(9), slowly(4, alpha=1e-9, max_carried=2)


def all_rounds(session: Session) -> list[Round]:
    while session.run.num_decided < session.loaded.config.rounds:
        assert run_round(session).state != "failed"
    return session.ledger.rounds(session.run_id)


def replays(session: Session) -> bool:
    decisions = session.ledger.decisions(session.run_id)
    again = [build_policy(**row.policy).decide(read_evidence(row.evidence)) for row in decisions]
    return all(now.action == row.action and [g.model_dump(mode="json") for g in now.gates] == row.gates
               for now, row in zip(again, decisions, strict=True))  # fmt: skip


@pytest.mark.slow
def test_gains_that_no_look_can_see_alone_add_up(tmp_path: Path) -> None:
    config = write_run(tmp_path, SLOWLY, 60)
    with open_session(load_config(config), Quiet()) as session:
        rounds, run = all_rounds(session), session.run
        states = [round.state for round in rounds]
        first = states.index("kept")
        assert first >= 1 and set(states[:first]) == {"carried"}, states
        assert [round.parent_checkpoint for round in rounds[1:]] == [
            round.candidate_checkpoint for round in rounds[:-1]
        ]
        decisions = session.ledger.decisions(run.id)
        assert {row.head_before for row in decisions[: first + 1]} == {run.base_checkpoint}
        lines = [row.evidence["line"] for row in decisions]
        assert [line["depth"] for line in lines[: first + 2]] == [*range(first + 1), 0]
        looked = [len(row.evidence["splits"]["select"]["problems"]) == 60 for row in decisions]
        assert looked == [line["next_look"] <= line["depth"] + 1 or line["last"] for line in lines] and not all(looked)
        samples = [len(row.evidence["splits"]["select"]["problems"][0]["head"]) for row in decisions]
        assert samples == [8 if line["last"] and line["depth"] else 4 for line in lines]
        for before, row, round in zip([None, *decisions], decisions, rounds, strict=False):
            from_tip = round.parent_checkpoint != row.head_before
            tip = before.evidence["signals"]["candidate"] if before and from_tip else None
            if tip and row.evidence["line"]["last"]:
                tip = {name: value for name, value in tip.items() if "distinct" not in name and "spread" not in name}
            assert row.evidence["signals"].get("tip") == tip, "a round is held against what it was trained from"
        compared = [row.evidence["since_base"]["solved"]["num_problems"] for row in decisions]
        assert compared == [60 if whole else 30 for whole in looked]
        later = [row.evidence for row in decisions if row.head_before != run.base_checkpoint]
        sides = [evidence["splits"]["select"]["problems"][0] for evidence in later if evidence["line"]["last"]]
        assert sides and all(len(side.get("base", side["head"])) == len(side["head"]) == 8 for side in sides), (
            "figures that count different answers are not compared between few and many samples"
        )
        assert all("base" not in later[-1]["signals"] or "base" in side for side in sides)
        became = fates(rounds, run)
        assert [became[number] for number in range(1, first + 1)] == [Carried(rounds[first].number, False)] * first
        assert all(round.state == "carried" for round in rounds if round.number in became)
        assert run.num_carried == states.count("carried") and replays(session)
        standing = status(tmp_path / ".loop", "small")
        assert states[-1] == "kept" and standing.last_decision is not None
        assert dict(labelled(standing))["shown"] == "", "the line of the last decision says it"
        later = replace(standing, last_decision=replace(standing.last_decision, round=99))
        figures, before = decisions[-1].gates[0]["figures"], first + 1
        expected = f"by round 9: {signed(figures['gain'])} over round {before}, at least {signed(figures['lower'])}, on 60 problems x 8"
        assert dict(labelled(later))["shown"].startswith(expected)
        assert rounds[first].number <= run.head_round <= run.tip_round
    assert findings(tmp_path / ".loop") == []


def test_a_line_that_shows_nothing_ends_at_the_head(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, NEVER)), Quiet()) as session:
        rounds, run = all_rounds(session), session.run
        assert [round.state for round in rounds] == ["carried", "carried", "rolled_back", "carried"]
        base = run.base_checkpoint
        assert rounds[3].parent_checkpoint == rounds[0].parent_checkpoint == run.head_checkpoint == base
        assert (run.tip_round, run.depth, run.num_failed_lines) == (4, 1, 1)
        gone = Carried(None, True)
        assert fates(rounds, run) == {1: gone, 2: gone, 4: Carried(None, False)}
        inputs = [session.ledger.stages(run.id, number)[0].input["adapted"] for number in (1, 2, 3, 4)]
        assert inputs[:3] == [None] * 3 and inputs[3].startswith("after 1 rollback in a row: learning_rate")
        left = [row.evidence["line"]["left"] for row in session.ledger.decisions(run.id)]
        assert left == pytest.approx([1.0, 1.0, 1.0, 0.4]) and replays(session)
    shown = " ".join(body(run_facts(Place(tmp_path / "loop.toml", tmp_path / ".loop", "small", 4, None))).split())
    for words in ('<span class="mark carried">carried</span><span class="dim">, given up</span>', "Tip, not shown yet",
                  "compared with the head of then, the base. Inconclusive: the head stays the base, and the next round begins "
                  "from it; what was carried since is given up."):  # fmt: skip
        assert words in shown, words
    assert findings(tmp_path / ".loop") == []


def test_it_says_what_is_shown_and_what_is_carried(tmp_path: Path) -> None:
    config = write_run(tmp_path, NEVER.replace("rounds = 4", "rounds = 2"))
    finish(config)
    standing = status(tmp_path / ".loop", "small")
    answer = json.loads(json.dumps(as_json(standing)))
    assert answer["rounds"] == {"kept": 0, "carried": 2, "rolled_back": 0, "failed": 0, "planned": 2}
    tip = answer["tip"]
    assert (tip["round"], tip["depth"], answer["head"]["round"]) == (2, 2, 0)
    assert tip["path"].endswith("round-0002") and answer["last_decision"]["verdict"] == "carry"
    words = dict(labelled(standing))
    assert words["tip"].startswith("round 2   2 rounds carried since the head: +0.0")
    assert words["tip"].endswith(", not shown yet") and words["last"].startswith("round 2   carried: pass@1 on ones")
    assert "0 kept · 2 carried · 0 rolled back · 0 failed" in words["trend"]
    with reader(tmp_path / ".loop") as store:
        told = rows(store)
        assert [row.verdict for row in told] == ["carry", "carry"]
        gains = [row.suites["ones"].gain for row in told]
        assert gains == [decision.gates[0]["figures"]["gain"] for decision in store.ledger.decisions(store.run.id)]
        second = whole_round(store, 2)
        assert second is not None and (second.head_round, second.parent_round) == (0, 1)
        assert second.carried == told[1].carried == told[0].carried == Carried(None, False)
        said = page(as_json(second))
        assert "trained from round 1, which was carried; compared with the head of then, the base" in said
        assert "the next round begins from round 2" in said and "later" not in said


def slow_but(fast: set[tuple[str, int]], *cases: tuple[str, int]) -> list[Any]:
    return [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def ends_as(whole: dict[str, Any], config: Path, place: str, count: int) -> None:
    """Killed there, a run goes on to the end of the one that nothing disturbed."""
    assert drive(config, place, count) == KILLED
    left = dump(finish(config))
    for table in ("decisions", "rounds", "checkpoints", "runs"):
        assert left[table] == whole[table], table
    assert findings(config.parent / ".loop") == []


@pytest.fixture(scope="module")
def whole_line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dump(finish(write_run(tmp_path_factory.mktemp("line"), NEVER)))


PLACES = ("before decide", "after decide", "before finish_evaluation", "after begin_round")


@pytest.mark.parametrize(
    ("place", "count"),
    slow_but({("after decide", 3)}, *itertools.product(PLACES, (1, 3))),
)
def test_a_kill_changes_nothing(place: str, count: int, tmp_path: Path, whole_line: dict[str, Any]) -> None:
    ends_as(whole_line, write_run(tmp_path, NEVER), place, count)


def test_a_lost_tip_ends_the_line_at_the_head(tmp_path: Path) -> None:
    config = write_run(tmp_path, slowly(6, alpha=1e-9))
    with open_session(load_config(config), Quiet()) as session:
        for _ in range(2):
            assert run_round(session).state == "carried"
    damage(tmp_path / ".loop" / "checkpoints" / "round-0002")
    with open_session(load_config(config), watch := Quiet()) as session:
        assert run_round(session).state == "failed"
        assert any("the next round begins from the head, the base" in note for note in watch.notes), watch.notes
        run = session.run
        assert (run.tip_checkpoint, run.depth, run.num_failed_lines) == (run.base_checkpoint, 0, 1)
        following = run_round(session)
        assert following.number == 4 and following.parent_checkpoint == run.base_checkpoint
        decision = session.ledger.decision(run.id, 4)
        assert decision is not None and decision.evidence["line"]["left"] == pytest.approx(0.4), (
            "a line that was given up has spent its share"
        )
    assert findings(tmp_path / ".loop") == []


def test_a_run_that_is_given_more_rounds_continues_its_line(tmp_path: Path) -> None:
    config = write_run(tmp_path, NEVER.replace("rounds = 4", "rounds = 1"))
    finish(config)
    config.write_text(config.read_text().replace("rounds = 1", "rounds = 2"))
    finish(config)
    with reader(tmp_path / ".loop") as store:
        run = store.run
        assert (run.depth, run.tip_round) == (2, 2)
        lines = [row.evidence["line"] for row in store.ledger.decisions(run.id)]
        assert [(line["last"], line["left"], line["num_looks"]) for line in lines] == [(True, 1.0, 0), (True, 0.4, 0)]


def test_a_run_that_began_under_another_rule_keeps_it(tmp_path: Path) -> None:
    """The default of decide.unclear changed: what loop.toml does not say is as it was when the run began."""
    config = write_run(tmp_path, configuration(decide={"unclear": "rollback"}))
    finish(config)
    config.write_text(configuration(rounds=3, decide={"unclear": None}))
    with open_session(load_config(config), Quiet()) as session:
        assert session.policy.unclear == "rollback"
        assert run_round(session).state in ("kept", "rolled_back")


def looked_at(session: Session) -> list[dict[str, Any]]:
    return [event.data for event in session.ledger.events.every() if event.kind == TIP_LOOKED_AT]


@pytest.mark.slow
def test_a_look_at_the_tip_shows_what_the_line_gained(tmp_path: Path) -> None:
    config = write_run(tmp_path, slowly(20, training_steps=2, last_samples=6), 60)
    with open_session(load_config(config), Quiet()) as session:
        with pytest.raises(LoopError, match="the tip is the head"):
            confirm(session)
        first = run_round(session)
        assert first.state == "carried", "a gain of 2 points is not shown by 60 problems"
        answer = confirm(session)
        run, round = session.run, session.ledger.round(session.run_id, 1)
        assert answer["shown"] and (answer["round"], answer["depth"], answer["head_before"]) == (1, 1, 0)
        assert round is not None and round.state == "kept" and (run.head_round, run.tip_round, run.depth) == (1, 1, 0)
        assert (run.num_kept, run.num_carried, run.num_failed_lines) == (1, 0, 0)
        (look,) = looked_at(session)
        problems = look["evidence"]["splits"]["select"]["problems"]
        assert (len(problems), len(problems[0]["candidate"]), len(problems[0]["head"])) == (60, 24, 24)
        assert build_policy(**session.policy.as_json()).decide(read_evidence(look["evidence"])).verdict == "keep"
        second = run_round(session)
        decision = session.ledger.decision(run.id, 2)
        assert second.parent_checkpoint == first.candidate_checkpoint and decision is not None
        assert (
            decision.evidence["line"]["left"] == pytest.approx(0.76)
            and decision.head_before == first.candidate_checkpoint
        )
    assert findings(tmp_path / ".loop") == []


def test_a_look_in_vain_spends_what_the_line_had(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, slowly(9, alpha=1e-9))), Quiet()) as session:
        run_round(session)
        for number in (1, 2):
            answer = confirm(session)
            assert not answer["shown"] and (session.run.tip_round, session.run.depth) == (1, 1)
            assert [look["number"] for look in looked_at(session)] == [*range(1, number + 1)]
        seen = [look["evidence"]["splits"]["select"] for look in looked_at(session)]
        assert seen[0]["problems"] != seen[1]["problems"], "each look draws anew"
        run_round(session)
        decision = session.ledger.decision(session.run_id, 2)
        assert decision is not None and decision.evidence["line"]["left"] == pytest.approx(0.16)
        session.ledger.begin_round(session.run_id)
        with pytest.raises(LoopError, match="round 3 is at sampling"):
            confirm(session)
    assert findings(tmp_path / ".loop") == []


def test_the_last_round_is_the_last_that_was_asked_for(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, slowly(9, alpha=1e-9))), Quiet()) as session:
        session.goal = 2
        for number, last in ((1, False), (2, True), (3, True)):
            run_round(session)
            decision = session.ledger.decision(session.run_id, number)
            assert decision is not None and decision.evidence["line"]["last"] == last


def test_a_failed_round_of_the_tip_comes_before_a_look_at_it(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, slowly(9, alpha=1e-9))), Quiet()) as session:
        run_round(session)
        session.ledger.fail_round(session.ledger.begin_round(session.run_id), "no memory")
        with pytest.raises(LoopError, match="round 2 failed, and is trained from the tip"):
            confirm(session)


@pytest.mark.slow
def test_a_confirmed_round_is_told_as_kept(tmp_path: Path) -> None:
    with open_session(
        load_config(write_run(tmp_path, slowly(9, training_steps=2, last_samples=6), 60)), Quiet()
    ) as session:
        run_round(session)
        assert confirm(session)["shown"]
    standing = status(tmp_path / ".loop", "small")
    assert standing.last_decision is not None and standing.last_decision.verdict == "keep"
    words = dict(labelled(standing))
    assert re.fullmatch(r"by a look at it after round 1: \+0\.\d+ over the base, at least \+0\.\d+, on 60 problems x 24 samples "
                        r"\(select\); wrong with a chance of 1\.80%", words["shown"]), words  # fmt: skip
    assert standing.last_decision.reasons[0] == "carried, and shown to be better by a later look at the tip"
    with reader(tmp_path / ".loop") as store:
        first = whole_round(store, 1)
        assert first is not None and first.head_after == first.candidate and first.state == "kept"
        assert first.carried is None


def page(answer: dict[str, Any]) -> str:
    """A round as a person reads it."""
    out = console(io.StringIO())
    with out.capture() as seen:
        out.print(round_report(answer, 160))
    return " ".join(seen.get().split())


def test_a_line_that_was_given_up_is_told_from_one_that_was_shown() -> None:
    """Two rounds given up, one carried into the kept round 5, one whose weights are those of a round before, two open."""
    history = [("base", "a", "carried"), ("a", "b", "carried"), ("b", "c", "rolled_back"), ("base", "d", "carried"), ("d", "e", "kept"),
               ("e", None, "failed"), ("e", "a", "carried"), ("a", "f", "carried")]  # fmt: skip
    columns = {field.name: None for field in fields(Round)}
    rounds = [
        Round(**columns | {"number": number, "parent_checkpoint": parent, "candidate_checkpoint": made, "state": state})  # type: ignore[arg-type]
        for number, (parent, made, state) in enumerate(history, 1)
    ]
    run = SimpleNamespace(depth=2, tip_round=8)
    gone, into, unknown = Carried(None, True), Carried(5, False), Carried(None, False)
    assert fates(rounds, cast(Run, run)) == {1: gone, 2: gone, 4: into, 7: unknown, 8: unknown}
    assert [fate(as_json(each)) for each in (gone, into, unknown, None)] == [", given up", " into 5", ", open", ""]


def ending(num_rounds: int) -> str:
    """A run whose second candidate fails a gate, when the first one has gained what no look has shown."""
    collapse = {"type": "collapse", "limits": {"pass@1": {"max_of_base": 1.12}}}
    gates = [{"type": "improvement"}, collapse]
    decide = {"unclear": "carry", "gates": gates, "last_samples": 6}
    return configuration(rounds=num_rounds, training={"num_steps": 3}, decide=decide)


def test_what_was_carried_is_looked_at_before_it_is_given_up(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, ending(3), 60)), Quiet()) as session:
        first, second = run_round(session), run_round(session)
        run, decision = session.run, session.ledger.decision(session.run_id, 2)
        assert (first.state, second.state, decision and decision.action) == ("carried", "rolled_back", "rollback")
        assert decision is not None and decision.gates[0]["verdict"] == "pass", "shown, but a gate fails"
        assert (decision.head_before, decision.head_after) == (run.base_checkpoint, first.candidate_checkpoint)
        assert (run.head_round, run.tip_round, run.depth) == (
            1,
            1,
            0,
        ) and run.head_checkpoint == first.candidate_checkpoint
        assert (run.num_kept, run.num_carried, run.num_rolled_back, run.num_failed_lines) == (1, 0, 1, 0)
        looked = decision.evidence["splits"]["the tip"]["problems"]
        assert (len(looked), len(looked[0]["candidate"]), len(looked[0]["head"])) == (60, 24, 24)
        assert [look["shown"] for look in looked_at(session)] == [True]
        assert session.ledger.last_verdicts(run.id, 9) == ["inconclusive", "keep"], "no plateau: the head has moved"
        standing = status(tmp_path / ".loop", "small")
        figures = decision.gates[-1]["figures"]
        expected = f"by a look at it after round 1: {signed(figures['gain'])} over the base, at least {signed(figures['lower'])}, on 60 problems x 24"
        assert dict(labelled(standing))["shown"].startswith(expected)
        with reader(tmp_path / ".loop") as store:
            told = whole_round(store, 2)
            assert told is not None and "but its tip, round 1, is shown and is the head now" in page(as_json(told))
            assert fates(store.ledger.rounds(run.id), run) == {}
            assert (OF_THE_TIP, [*told.suites]) == (TIP, ["ones", "ones-greedy"]), (
                "the tip's answers are no figures of the round's own candidate"
            )
            assert store.evaluations().newest[run.base_checkpoint, "ones"].num_samples == 4
            assert [head.kept for head in heads_of(store, "ones")] == [False, False, True]
        third = run_round(session)
        after = session.ledger.decision(run.id, 3)
        assert third.parent_checkpoint == first.candidate_checkpoint and after is not None
        assert after.evidence["line"]["left"] == pytest.approx(0.4), "the line has spent all of its share"
        assert replays(session)
    shown = " ".join(body(run_facts(Place(tmp_path / "loop.toml", tmp_path / ".loop", "small", 4, None))).split())
    assert "its tip, round 1, was looked at itself, is shown, and is the head from here on" in shown
    assert findings(tmp_path / ".loop") == []


@pytest.mark.parametrize(
    ("place", "count"),
    slow_but(
        set(),
        ("before decide", 2),
        ("after decide", 2),
        *(("before finish_evaluation", count) for count in (4, 5, 6)),
    ),
)
def test_a_kill_while_the_tip_is_looked_at_changes_nothing(place: str, count: int, tmp_path: Path) -> None:
    whole = dump(finish(write_run(tmp_path / "whole", ending(2), 60)))
    ends_as(whole, write_run(tmp_path / "killed", ending(2), 60), place, count)
