"""Rounds whose training leaves several candidates: they compete on the split that chooses, and one goes on to the one that shows."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.config.place import Place
from loop.daemon.commands import planned_collection
from loop.errors import ConfigError
from loop.reading.as_json import as_json
from loop.reading.reader import reader
from loop.reading.replaying import replay
from loop.reading.rounds import whole_round
from loop.report.facts import run_facts
from loop.round import run_round
from loop.run import competing
from loop.run.opening import open_session
from loop.run.session import Session
from loop.words import candidates_words
from policies.halving import num_asked, rungs
from policies.sequential import drawing_order
from store.garbage import collect
from store.ledger import CHOSEN, Ledger
from tests.support.configurations import configuration, load_text
from tests.support.runs import Quiet, acknowledged, check_end, drive, dump, findings, finish, write_run

KILLED = -9
GATE = {"type": "improvement", "min_gain": -0.9}


def several(num: int = 4, rounds: int = 2, num_steps: int = 20, **more: Any) -> str:
    """A run whose rounds are kept, and leave so many candidates; of 40 problems some 24 choose."""
    suites = [
        {"name": "ones", "source": "ones.jsonl", "temperature": 0.9, "num_samples": 4, "pass_at": [1, 4],
         "splits": {"select": 0.6, "confirm": 0.4}},
    ]  # fmt: skip
    decide = {"gates": [GATE], "confirm": "confirm"} | more.pop("decide", {})
    training = {"num_steps": num_steps, "candidates": num} | more.pop("training", {})
    return configuration(rounds=rounds, suites=suites, decide=decide, training=training, **more)


CONFIG = several()


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Open a run of this configuration, on 40 problems."""
    with contextlib.ExitStack() as stack:

        def open_run(text: str = CONFIG, watch: Quiet | None = None, where: str = "run") -> Session:
            config = write_run(tmp_path / where, text, 40)
            return stack.enter_context(open_session(load_config(config), watch or Quiet()))

        yield open_run


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let trainings in worker processes turn bad after so many steps."""
    return lambda steps: monkeypatch.setenv("LOOP_FAKE_PEAK", str(steps))


def clean(session: Session) -> None:
    plan = planned_collection(session.ledger, session.run, session.loaded.run_dir, session.loaded.config)
    collect(session.ledger, session.loaded.run_dir, plan)


def directories(session: Session) -> set[str]:
    return {path.name for path in (session.loaded.run_dir / "checkpoints").iterdir()}


def test_the_best_on_select_goes_on_to_confirm_and_the_others_are_let_go(
    opened: Any, peak: Callable[[int], None]
) -> None:
    peak(40)
    session = opened(several(4, num_steps=84))  # a skill of .4 at the base, then .61, .78, .57, .36
    round = run_round(session)
    assert round.state == "kept"
    (event,) = session.ledger.events.of(session.run_id, CHOSEN)
    told = event.data["candidates"]
    assert [each["step"] for each in told] == [21, 42, 63, 84]
    num_select = len(session.decider.of_split("select"))
    first, last = (rung.num_problems for rung in rungs(4, num_select))
    assert [len(each["rungs"]) for each in told] == [
        2 if each["rungs"][-1]["num_problems"] == last else 1 for each in told
    ]
    assert sorted(len(each["rungs"]) for each in told) == [1, 1, 2, 2]
    assert all(each["rungs"][0]["num_problems"] == first for each in told)
    finalists = [each for each in told if len(each["rungs"]) == 2]
    best = max(finalists, key=lambda each: (each["rungs"][1]["pass@1"], each["step"]))
    assert best["step"] == 42 and round.candidate_checkpoint == event.data["candidate"] == best["checkpoint"]
    chosen = session.ledger.checkpoints.known(best["checkpoint"])
    assert chosen.origin["step"] == chosen.origin["training"]["num_steps"] == 42
    decision = session.ledger.decision(session.run_id, 1)
    assert decision is not None and decision.head_after == best["checkpoint"]
    select, confirm = (decision.evidence["splits"][name]["problems"] for name in ("select", "confirm"))
    assert len(select) == num_select and len(confirm) == 40 - num_select
    assert best["rungs"][-1]["pass@1"] == pytest.approx(sum(sum(p["candidate"]) / 4 for p in select) / num_select)

    asked: Counter[str] = Counter()
    for evaluation in session.corpus.evaluations.all(session.run_id):
        if evaluation.split == "select" and evaluation.checkpoint != session.run.base_checkpoint:
            asked[evaluation.checkpoint] += evaluation.metrics["num_problems"]
        if evaluation.split == "confirm":
            assert evaluation.checkpoint in (session.run.base_checkpoint, best["checkpoint"])
    assert sum(asked.values()) == num_asked(4, num_select), "only the winner is compared, on what it has answered"

    assert directories(session) == {"round-0001", *(f"round-0001-step-{step:06d}" for step in (21, 42, 63))}
    clean(session)
    assert directories(session) == {"round-0001-step-000042"}
    states = {row.origin["step"]: row.state for row in session.ledger.checkpoints.all(session.run_id) if row.round}
    assert states == {21: "collected", 42: "present", 63: "collected", 84: "collected"}
    assert len(session.corpus.evaluations.all(session.run_id, told[0]["checkpoint"])) == 1, "its figures stay"
    second = run_round(session)
    assert second.parent_checkpoint == best["checkpoint"] and second.state == "kept"
    clean(session)
    assert findings(session.loaded.run_dir) == []
    replayed = replay(session.ledger.decisions(session.run_id), session.policy)["summary"]
    assert replayed["num_identical"] == 2 and replayed["num_changed"] == 0


def test_everybody_answers_the_same_and_a_person_sees_it(opened: Any, peak: Callable[[int], None]) -> None:
    peak(40)
    watch = Quiet()
    session = opened(several(4, rounds=1, num_steps=84), watch)
    round = run_round(session)
    seeds = {
        (row.seed, row.num_samples, row.decode_settings_id, row.suite_sha256)
        for row in session.corpus.evaluations.all(session.run_id)
        if row.split == "select"
    }
    assert len(seeds) == 1, "the head's, too"
    select = [problem.task_id for problem in session.decider.of_split("select")]
    order = drawing_order(0, select)
    for evaluation in session.corpus.evaluations.all(session.run_id):
        if evaluation.split == "select":
            answered = {verdict.task_id for verdict in session.corpus.evaluations.verdicts(evaluation.id)}
            assert answered == set(order[: len(answered)])
    for step in (21, 42, 63, 84):
        assert any(f"candidate of step {step} on ones" in part for part in watch.parts), watch.parts
    with reader(session.loaded.run_dir) as store:
        told = whole_round(store, 1)
        assert told is not None
        answer = as_json(told)
    assert [each["step"] for each in answer["candidates"] if each["chosen"]] == [42]
    words = candidates_words(answer["candidates"])
    assert words.startswith("step 21 0.") and words.count(", chosen") == 1 and "step 84" in words
    assert all("candidates" not in (stage["output"] or {}) for stage in answer["stages"])
    assert answer["candidate"] == round.candidate_checkpoint
    facts = run_facts(Place(session.loaded.path, session.loaded.run_dir, "small", 1, None))
    assert facts["rounds"][0]["candidates"] == answer["candidates"]
    assert [row["made_in"] for row in facts["lineage"]].count([1]) == 1


def test_without_candidates_a_round_is_what_it_was(opened: Any) -> None:
    """And the last of several is that of one alone."""
    one, four = opened(several(1), where="one"), opened(several(4), where="four")
    for session in (one, four):
        run_round(session)
    row = one.ledger.checkpoints.known(one.ledger.round(one.run_id, 1).candidate_checkpoint)
    assert "step" not in row.origin and one.ledger.events.of(one.run_id, CHOSEN) == []
    assert "candidates" not in one.ledger.stage(one.run_id, 1, "training").output
    assert row.sha256 == four.ledger.stage(four.run_id, 1, "training").output["checkpoint"]
    with reader(one.loaded.run_dir) as store:
        assert whole_round(store, 1).candidates == []


def test_candidates_with_the_same_weights_count_once(opened: Any, peak: Callable[[int], None]) -> None:
    """Steps 5 and 15 of 20 are alike here, and so are the base, step 20 and, in one that learns nothing, all of them."""
    peak(10)
    session = opened(several(4, rounds=3))
    round = run_round(session)
    told = session.ledger.events.of(session.run_id, CHOSEN)[0].data["candidates"]
    assert told[0]["checkpoint"] == told[2]["checkpoint"] and told[0]["rungs"] == told[2]["rungs"]
    assert told[3]["checkpoint"] == session.run.base_checkpoint or told[3]["checkpoint"] != told[1]["checkpoint"]
    rows = [row for row in session.ledger.checkpoints.all(session.run_id) if row.round]
    assert {row.path for row in rows if row.sha256 == told[0]["checkpoint"]} == {"checkpoints/round-0001-step-000015"}
    clean(session)
    base = session.ledger.checkpoints.known(session.run.base_checkpoint)
    assert base.state == "present" and Path(base.path).exists()
    assert directories(session) == {session.ledger.checkpoints.known(round.candidate_checkpoint).path.split("/")[1]}
    peak(0)
    assert run_round(session).state == "kept", "any candidate is, here"
    clean(session)
    assert findings(session.loaded.run_dir) == []


def test_one_step_leaves_one_candidate(opened: Any) -> None:
    session = opened(several(4, rounds=1, num_steps=1))
    round = run_round(session)
    assert session.ledger.candidates(round) == [round.candidate_checkpoint]
    assert session.ledger.events.of(session.run_id, CHOSEN) == []


def test_all_alike_leave_nothing_to_choose(opened: Any) -> None:
    session = opened(several(4, rounds=1, num_steps=400))  # a skill of 1 is the most
    round = run_round(session)
    assert session.ledger.events.of(session.run_id, CHOSEN) == [] and round.state == "kept"
    assert len(session.ledger.candidates(round)) == 1
    clean(session)
    assert directories(session) == {"round-0001"} and findings(session.loaded.run_dir) == []


def test_a_tie_goes_to_the_later_step(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competing, "score", lambda outcomes, k: 0)
    session = opened(several(4, rounds=1))
    round = run_round(session)
    assert session.ledger.checkpoints.known(round.candidate_checkpoint).origin["step"] == 20


def test_carried_rounds_have_candidates_too(opened: Any) -> None:
    """Nothing is shown: the tip goes on with each round's winner, and the last look asks for more samples."""
    gates = [{"type": "improvement", "alpha": 1e-9}]
    text = several(3, rounds=3, num_steps=3, decide={"unclear": "carry", "gates": gates, "max_carried": 2})
    session = opened(text)
    for _ in range(3):
        run_round(session)
        clean(session)
    rounds = session.ledger.rounds(session.run_id)
    assert {round.state for round in rounds[:2]} == {"carried"}
    assert [round.parent_checkpoint for round in rounds[1:]] == [round.candidate_checkpoint for round in rounds[:-1]]
    assert findings(session.loaded.run_dir) == []


def test_parts_save_nothing_where_all_of_select_was_asked_to_choose(opened: Any) -> None:
    """Head and winner are compared on all of it, and their figures are those of the same problems."""
    session = opened(several(4, rounds=1, decide={"looks": 3}))
    run_round(session)
    num_select = len(session.decider.of_split("select"))
    decision = session.ledger.decision(session.run_id, 1)
    assert decision is not None and len(decision.evidence["splits"]["select"]["problems"]) == num_select
    head, candidate = (decision.evidence["signals"][who]["num_samples"] for who in ("head", "candidate"))
    assert head == candidate == 4 * num_select


def test_they_compete_by_the_metric_that_decides(opened: Any) -> None:
    session = opened(several(2, rounds=1, decide={"gates": [GATE | {"metric": "pass@4"}]}))
    run_round(session)
    (event,) = session.ledger.events.of(session.run_id, CHOSEN)
    assert {key for each in event.data["candidates"] for rung in each["rungs"] for key in rung} == {
        "num_problems",
        "pass@4",
    }


def test_a_head_moved_by_hand_gives_the_round_up(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(several(4, rounds=3))
    run_round(session)
    clean(session)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("loop.round.compete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_round(session)
    clean(session)
    assert len(directories(session)) == 1 + 4, "an open round works with them"
    session.ledger.move_head(session.run_id, 0, "by hand")
    clean(session)
    assert len(directories(session)) == 1 + 4, "a failed round may still be looked at"
    assert run_round(session).number == 3
    clean(session)
    assert "round-0002" not in {name[:10] for name in directories(session)}
    assert findings(session.loaded.run_dir) == []


@pytest.mark.parametrize(
    ("step", "place"),
    [
        pytest.param(5, "before finish_evaluation", marks=pytest.mark.slow),
        pytest.param(20, "before finish_evaluation", marks=pytest.mark.slow),
        pytest.param(5, "before decide", marks=pytest.mark.slow),
    ],
)
def test_lost_candidates_are_trained_again(step: int, place: str, tmp_path: Path) -> None:
    config = write_run(tmp_path, several(4, rounds=1), 40)
    assert drive(config, place, 3 if "evaluation" in place else 1) == KILLED
    name = "round-0001" if step == 20 else f"round-0001-step-{step:06d}"
    shutil.rmtree(tmp_path / ".loop" / "checkpoints" / name)
    left = dump(finish(config))
    expected = dump(finish(write_run(tmp_path / "whole", several(4, rounds=1), 40)))
    for table in ("decisions", "completions", "verdicts", "rounds"):
        assert left[table] == expected[table], table
    with open_session(load_config(config), Quiet()) as session:
        clean(session)
        assert len(directories(session)) == 1
    assert findings(tmp_path / ".loop") == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dump(finish(write_run(tmp_path_factory.mktemp("undisturbed"), CONFIG, 40)))


PLACES = [
    ("before commit_directory", 2), ("after commit_directory", 3), ("before finish_stage", 2), ("after finish_stage", 2),
    ("before begin_evaluation", 3), ("after finish_evaluation", 1), ("before finish_evaluation", 5), ("after add_verdicts", 9),
    ("before decide", 1), ("after decide", 1),
]  # fmt: skip


FAST = {"after commit_directory"}


@pytest.mark.parametrize(
    ("place", "count"),
    [each if each[0] in FAST else pytest.param(*each, marks=pytest.mark.slow) for each in PLACES],
)
def test_killed_it_ends_as_an_undisturbed_run(
    place: str, count: int, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    config = write_run(tmp_path, CONFIG, 40)
    assert drive(config, place, count) == KILLED
    finish(config)
    check_end(config, undisturbed)
    assert set(Counter(acknowledged(config)).values()) == {1}, "work was repeated"
    assert not list((tmp_path / ".loop" / "checkpoints").glob("tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_choice_it_chooses_the_same(when: str, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    choose = Ledger.choose_candidate

    def left(*args: Any, **more: Any) -> Any:
        if when == "after":
            choose(*args, **more)
        raise KeyboardInterrupt

    config = write_run(tmp_path, CONFIG, 40)
    with open_session(load_config(config), Quiet()) as session, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ledger, "choose_candidate", left)
        with pytest.raises(KeyboardInterrupt):
            run_round(session)
        round = session.ledger.round(session.run_id, 1)
        assert round is not None and (round.candidate_checkpoint is None) == (when == "before")
    finish(config)
    check_end(config, undisturbed)


def test_candidates_without_a_split_that_shows_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "ones.jsonl").write_text("")
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, several(4, decide={"confirm": None}).replace('confirm = "confirm"\n', ""))
    (line,) = str(caught.value).splitlines()
    assert "training.candidates: decide.split chooses among 4 candidates" in line
    assert line.endswith("set decide.confirm to another split, or candidates = 1") and caught.value.exit_code == 78
