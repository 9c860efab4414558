"""How a round's comparison goes: part by part, from split to split, canaries, the best round; and after a kill."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.engines.base import CheckpointRef
from loop.round import run_round
from loop.run.opening import open_session
from loop.run.session import Session
from loop.stages.deciding import Measured, Opened, parts_of, signals_of, since_base
from loop.stages.deciding import evidence as gathered
from loop.stages.evaluating import SIGNALS, figures
from loop.workers.up import Engines
from policies.evidence import Evidence, read_evidence
from policies.policy import build_policy
from store.records import Completion, DecisionRow, GradedVerdict, Json, Problem
from tests.support.runs import CONFIG, Quiet, drive, dump, findings, write_run

SURE = '{ type = "improvement", target_gain = 0.1 }'


def config(decide: str, *, steps: int = 40) -> str:
    """A run whose candidates train for that many steps a round, decided like this; where that confirms, on two splits."""
    text = CONFIG.replace("[training]", f"[training]\nnum_steps = {steps}").replace("rounds = 2", "rounds = 3")
    if "confirm" in decide:
        text = text.replace("temperature = 0.9", "splits = { select = 0.6, confirm = 0.4 }\ntemperature = 0.9", 1)
    text = text.replace('unclear = "rollback"\n', "") if "unclear" in decide else text
    return text.replace('suite = "ones"', f'suite = "ones"\n{decide}')


@contextmanager
def opened(directory: Path, text: str, num_problems: int = 60) -> Iterator[Session]:
    with open_session(load_config(write_run(directory, text, num_problems)), Quiet()) as session:
        yield session
        assert findings(session.loaded.run_dir) == []


def decided(session: Session, number: int) -> DecisionRow:
    row = session.ledger.decision(session.run_id, number)
    assert row
    return row


def sizes(session: Session, number: int) -> Any:
    stage = session.ledger.stage(session.run_id, number, "evaluating")
    assert stage and stage.output
    return stage.output["opened"]


def replayed(session: Session, number: int) -> bool:
    """Whether the stored policy says the same of the stored evidence, bit by bit."""
    row = decided(session, number)
    decision = build_policy(**row.policy).decide(read_evidence(row.evidence))
    return [gate.model_dump(mode="json") for gate in decision.gates] == row.gates and decision.action == row.action


def test_a_great_gain_is_clear_before_all_problems_are_in(tmp_path: Path) -> None:
    with opened(tmp_path, config(f"looks = 6\ngates = [{SURE}]")) as session:
        assert run_round(session).state == "kept"
        assert 10 <= sizes(session, 1)["select"] < 60
        assert len(decided(session, 1).evidence["splits"]["select"]["problems"]) == sizes(session, 1)["select"]
        assert replayed(session, 1)


def test_one_that_learns_nothing_never_opens_the_split_that_confirms(tmp_path: Path) -> None:
    with opened(tmp_path, config(f'confirm = "confirm"\nlooks = 3\ngates = [{SURE}]', steps=1)) as session:
        for number in (1, 2):
            assert run_round(session).state == "rolled_back"
            assert set(sizes(session, number)) == {"select"} and replayed(session, number)
        assert decided(session, 2).evidence["fruitless_looks"] == {}, "a screen costs nothing"


def test_what_is_confirmed_is_kept_and_the_head_is_measured_afresh(tmp_path: Path) -> None:
    with opened(tmp_path, config(f'confirm = "confirm"\ngates = [{SURE}]')) as session:
        assert json.loads(json.dumps(session.policy.as_json()))["confirm"] == "confirm"
        assert run_round(session).state == "kept"
        assert set(sizes(session, 1)) == {"select", "confirm"} and replayed(session, 1)
        splits = decided(session, 1).evidence["splits"]
        names = [{problem["task_id"] for problem in splits[name]["problems"]} for name in ("select", "confirm")]
        assert len(names[0]) + len(names[1]) == 60 and not names[0] & names[1]
        run_round(session)
        kept = session.ledger.round(session.run_id, 1)
        assert kept and kept.candidate_checkpoint
        evaluations = session.corpus.evaluations.all(session.run_id, kept.candidate_checkpoint)
        seeds = [each.seed for each in evaluations if (each.suite_name, each.split) == ("ones", "select")]
        assert len(seeds) == len({*seeds}) == 2, "as a candidate, and as a head"
        conditions = decided(session, 2).evidence["splits"]["select"]["conditions"]
        assert conditions["head"] == conditions["candidate"] != conditions["base"]


def test_the_heads_samples_are_used_again_until_it_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path, config(f"gates = [{SURE}]", steps=1)) as session:
        for looks in ({}, {"select": 1}, {"select": 2}):
            round = run_round(session)
            assert round.state == "rolled_back" and decided(session, round.number).evidence["fruitless_looks"] == looks
        base = session.corpus.evaluations.all(session.run_id, session.run.base_checkpoint)
        assert sorted(each.suite_name for each in base) == ["ones", "ones-greedy"], "measured once, not in each round"


def test_suites_that_are_only_reported_load_each_side_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "".join(
        f'[[suites]]\nname = "greedy-{number}"\nsource = "ones.jsonl"\ngreedy = true\nlimit = {number}\n\n'
        for number in (2, 3)
    )
    text = config(f"gates = [{SURE}]").replace("[decide]", f"{more}[decide]")
    with opened(tmp_path, text) as session:
        served: list[str] = []
        sampler = Engines.sampler

        def asked(engines: Engines, checkpoint: CheckpointRef) -> Any:
            served.append(checkpoint.sha256)
            return sampler(engines, checkpoint)

        monkeypatch.setattr(Engines, "sampler", asked)
        round = run_round(session)
        assert len(list(session.corpus.evaluations.all(session.run_id, served[0]))) == 4
        # Head (to sample), head and candidate where it is decided, and on all other suites the candidate and then the head.
        base, candidate = session.run.base_checkpoint, round.candidate_checkpoint
        assert [who for who, _ in itertools.groupby(served)] == [base, candidate, base]


def test_a_canary_that_a_gate_wants_is_in_the_evidence(tmp_path: Path) -> None:
    harmless = '{ type = "no_regression", suite = "ones-greedy", margin = 0.9, unclear = "pass" }'
    with opened(tmp_path, config(f"gates = [{SURE}, {harmless}]")) as session:
        assert run_round(session).state == "kept"
        row = decided(session, 1)
        assert set(row.evidence["splits"]) == {"select", "ones-greedy"}
        assert [gate["type"] for gate in row.gates] == ["improvement", "no_regression"] and replayed(session, 1)


def test_an_unclear_round_waits_for_a_person_where_that_was_chosen(tmp_path: Path) -> None:
    text = config('unclear = "pause"\ngates = [{ type = "improvement" }]', steps=1)
    with opened(tmp_path, text, num_problems=8) as session:
        assert run_round(session).state == "rolled_back"
        control = session.ledger.control(session.run_id)
        assert control.held_by == "decision" and (control.hold_reason or "").startswith("round 1 is inconclusive")


def test_the_best_round_is_measured_beside_head_and_candidate(tmp_path: Path) -> None:
    loose = '{ type = "improvement", min_gain = -0.99, target_gain = 0.5, budget = "round" }'
    with opened(tmp_path, config(f'gates = [{loose}, {{ type = "best_so_far" }}]'), num_problems=40) as session:
        assert run_round(session).state == "kept"
        session.ledger.move_head(session.run_id, 0, "as if it had slid")
        state = run_round(session).state
        evidence = decided(session, 2).evidence
        assert evidence["best_round"] == 1 and state in ("kept", "rolled_back") and replayed(session, 2)
        assert all("best" in problem for problem in evidence["splits"]["select"]["problems"])
        # The base is worse than round 1; unless the candidate made up for all of it, the head goes back.
        assert session.run.head_round == (1 if state == "rolled_back" else 2)


@pytest.mark.parametrize(
    "place", ["after add_verdicts", "after add_completions", "after finish_evaluation", "after begin_evaluation"]
)
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7])
def test_a_kill_in_the_middle_of_the_parts_changes_nothing(tmp_path: Path, place: str, count: int) -> None:
    text = config(f'confirm = "confirm"\nlooks = 4\ngates = [{SURE}]', steps=12).replace("rounds = 3", "rounds = 2")
    quiet, killed = write_run(tmp_path / "quiet", text, 40), write_run(tmp_path / "killed", text, 40)
    assert drive(quiet) == 0
    assert drive(killed, place, count) == -9
    assert drive(killed) == 0
    assert dump(killed.parent / ".loop") == dump(quiet.parent / ".loop")


def said(*answers: list[tuple[str, Any]]) -> tuple[list[GradedVerdict], list[Completion]]:
    """Verdicts and completions of problems; an answer is its text and its verdict."""
    verdicts, completions = [], []
    for task, each in enumerate(answers):
        for index, (text, verdict) in enumerate(each):
            id = f"{task}-{index}"
            verdicts.append(GradedVerdict("e", f"t{task}", index, id, verdict, "", 0.0, "none", "select", None))
            completions.append(
                Completion(
                    id=id, run_id="r", round=1, checkpoint="c", evaluation_id="e", prompt_id=f"p{task}",
                    sample_index=index, decode_settings_id="d", seed=1, text=text, token_ids=(), prompt_token_ids=(),
                    num_tokens=len(text), num_prompt_tokens=0, finish_reason="eos", logprob_sum=None, tokenizer_sha256="t",
                )
            )  # fmt: skip
    return verdicts, completions


def test_the_spread_of_a_strong_model_is_no_smaller_than_that_of_a_weak_one() -> None:
    """A share of what is left to be won: half of it is half of it, at pass@1 .5 as at .95."""

    def spread(num_solved: int, num_mixed: int, num_problems: int) -> Any:
        solved, failed = ("a", "passed"), ("a", "failed")
        num_failed = num_problems - num_solved - num_mixed
        answers = [[solved, solved]] * num_solved + [[solved, failed]] * num_mixed + [[failed, failed]] * num_failed
        return figures(*said(*answers), (1, 2))["spread"]

    weak, strong = spread(0, 10, 10), spread(18, 2, 20)
    assert weak == pytest.approx(1.0) and strong == pytest.approx(1.0)
    assert all(0.0 <= spread(num_solved, 2, num) <= 1.0 for num in range(2, 40) for num_solved in range(num - 1))
    assert spread(5, 0, 10) == 0.0 and spread(10, 0, 10) is None


def test_diversity_is_counted_among_right_answers_too_and_comes_with_its_error() -> None:
    right, other, wrong = ("a", "passed"), ("bb", "passed"), ("cccc", "failed")
    measured = figures(*said([right, other, wrong, wrong], [right, right, right, right], [wrong] * 4), (1, 4))
    assert (measured["distinct_rate"], measured["distinct_correct_rate"]) == pytest.approx((5 / 12, 3 / 12))
    assert measured["mean_tokens"] == pytest.approx((11 + 4 + 16) / 12)
    assert measured["errors"]["distinct_correct_rate"] == pytest.approx(0.25 / 3**0.5)
    assert measured["errors"].keys() == {*SIGNALS.values()}
    seen = signals_of(measured)
    assert (seen["pass@1"], seen["num_samples"], seen["spread"]) == pytest.approx((0.5, 12, 1 / 3))
    assert seen["distinct_correct_rate_error"] == measured["errors"]["distinct_correct_rate"]


def test_losses_are_signals_and_learning_by_heart_is_refused() -> None:
    same = {"select": Opened("s", {}, [Problem("s", "t", 0, "select", None, "p", {}, "x")], 1, 1,
                             {who: Measured({"t": [1]}, {}) for who in ("candidate", "head")})}  # fmt: skip

    def seen(training: Json) -> Evidence:
        measured: dict[str, Json] = {"candidate": {}, "head": {}, "base": {}}
        return gathered(1, 0, same, draw=0, figures=measured, training=training, fruitless_looks={}, best_round=None, line=None, more_signals={}, tip={}, drift={})  # fmt: skip

    assert seen({"losses": [0.4, 0.2]}).signals["candidate"] == {"train_loss": pytest.approx(0.3)}
    report = {"losses": [0.4, 0.2], "held_out_loss": 0.75, "train_loss": 0.2}
    assert seen(report).signals["candidate"] == {"train_loss": 0.2, "held_out_loss": 0.75, "loss_gap": 0.55}
    gate = build_policy([{"type": "collapse"}], "select")
    (result,) = gate.decide(seen(report)).gates
    assert result.verdict == "fail" and result.reason == "loss_gap 0.55 is more than 0.5 above 0"
    assert gate.decide(seen(report | {"held_out_loss": 0.6})).verdict == "keep"


def test_drift_is_counted_on_the_problems_and_samples_that_both_answered() -> None:
    base, (verdicts, completions) = (
        said([("1", "passed"), ("2", "passed")], [("1", "failed"), ("1", "passed")]),
        said([("1", "failed"), ("2", "failed"), ("5", "passed")], [("3", "passed")] * 2 + [("4", "passed")], [("1", "passed")] * 2),
    )  # fmt: skip
    more = verdicts, [*completions, replace(completions[0], id="of a process that was killed")]
    compared = since_base(parts_of(*more, 2), parts_of(*base, 2))
    assert compared["distinct_correct_rate"] == {
        "candidate": 0.25, "base": 0.75, "candidate_variance": 0.125, "base_variance": 0.125, "covariance": -0.125,
        "num_problems": 2,
    }  # fmt: skip
    assert [compared["solved"][who] for who in ("candidate", "base")] == [0.5, 1.0]
    assert [compared["pass@1"][who] for who in ("candidate", "base")] == [0.5, 0.75]
    assert since_base(parts_of(*more, 2), {}) == {}


def test_a_round_is_compared_with_the_base_where_a_gate_asks_for_it(tmp_path: Path) -> None:
    text = config('gates = [{ type = "improvement" }, { type = "drift" }]')
    with opened(tmp_path, text) as session:
        run_round(session)
        row = decided(session, 1)
        compared = row.evidence["since_base"]
        assert compared["solved"]["num_problems"] == 60
        assert [gate["type"] for gate in row.gates] == ["improvement", "drift"]
        assert "of the base's" in row.gates[1]["reason"]
        run_round(session)
        again = decided(session, 2).evidence["since_base"]
        assert again["pass@1"]["base"] == compared["pass@1"]["base"], "the base is measured once"
        assert replayed(session, 1) and replayed(session, 2)
