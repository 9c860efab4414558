"""What arms have in common on the fake engine: it runs once, and what is damaged, gone or another's is not taken."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.config.loading import load_config
from loop.config.toml_text import toml_text
from loop.experiments.facts import experiment_facts
from loop.experiments.file import Experiment, check_experiment
from loop.experiments.running import Machine, prepare
from loop.round import run_round
from loop.run.opening import open_session
from loop.run.session import Session
from loop.run.sharing import Product
from loop.workers.up import Engines
from store import shared as registry
from store.ledger import CHOSEN
from store.probes import Probes
from store.records import Probe
from store.shared import MEMBERSHIP, registry_of
from tests.loop.run.test_competing import several
from tests.support.cli import altered
from tests.support.experiments import drive, prepared, run_of, sound
from tests.support.runs import Quiet


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often engines were asked for, in this process."""
    counted: Counter[str] = Counter()
    for owner, name in ((Session, "sampler"), (Engines, "trainer")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, name=name, real=real: counted.update([name]) or real(*given))
    return counted


def test_four_arms_with_equal_first_rounds_run_it_once(tmp_path: Path, calls: Counter[str]) -> None:
    experiment = prepared(tmp_path)
    counted: dict[tuple[str, int], Counter[str]] = {}
    for run in experiment.runs:
        for number in (1, 2):
            calls.clear()
            drive(run, 1)
            counted[run.arm, number] = Counter(calls)
    first, *others = experiment.runs
    assert counted["replace", 1]["trainer"] == 1 and counted["replace", 1]["sampler"] > 3
    assert not any(counted[run.arm, 1] for run in others), "the first round was done again"
    assert [counted[run.arm, 2]["trainer"] for run in experiment.runs] == [1, 1, 1, 1]

    facts = experiment_facts(experiment).as_json()
    round_1 = [product for product in facts["shared"] if product["round"] == 1]
    assert {product["stage"] for product in round_1} == {"sampling", "training", "evaluating"}
    evaluated = {product["what"] for product in round_1 if product["stage"] == "evaluating"}
    assert evaluated >= {"round 1 on ones-greedy (greedy)", "locks and forks of the base"}
    for product in round_1:
        assert product["ran_in"] == {"arm": "replace", "seed": 1}
        assert [used["arm"] for used in product["used_by"]] == ["accumulate", "mix", "strict"]
    second = [product for product in facts["shared"] if (product["round"], product["stage"]) == (2, "sampling")]
    users = [used["arm"] for product in second for used in product["used_by"]]
    assert users == ["accumulate", "mix"], "strict: another head"
    rates = {(line["arm"], line["round"]): line["pass@1"] for line in facts["lines"]}
    assert len(rates) == 12 and facts["state"] == "done"
    assert rates["accumulate", 1] == rates["mix", 1] == rates["replace", 1] > rates["strict", 1] == rates["replace", 0]

    with open_session(load_config(others[0].path), Quiet()) as session:
        stages = session.ledger.stages(session.run_id, 1)[:3]
        for stage in stages:
            assert stage.output and stage.output["shared"][0]["ran_in"] == {"arm": "replace", "seed": 1}, stage.name
        assert [taken.run_id for taken in session.corpus.completions(session.run_id, 1)] == [session.run_id] * 10
        assert session.ledger.events.of(session.run_id, "round_begun", 2)[0].round == 2
    checkpoints = [run.run_dir / "checkpoints" / "round-0001" / "model.safetensors" for run in (first, others[0])]
    assert len({path.stat().st_ino for path in checkpoints}) == 1, "a checkpoint is linked, not copied"
    sound(experiment.path)


ARMS = [
    {"name": "a"},
    {"name": "samples", "sampling": {"num_samples": 2}},
    {"name": "rate", "training": {"learning_rate": 1e-4}},
    {"name": "limit", "grading": {"timeout_s": 9.0}},
    {"name": "batch", "engine": {"batch_size": 4}},
]


@pytest.mark.slow
def test_another_input_is_another_stage(tmp_path: Path) -> None:
    experiment = prepared(tmp_path, toml_text({"name": "e", "rounds": 1, "seeds": [1, 2], "arms": ARMS}))
    for arm, seed in (("a", 1), ("a", 2), ("samples", 1), ("rate", 1), ("limit", 1), ("batch", 1)):
        drive(run_of(experiment, arm, seed), 1)
    taken: dict[str, set[str]] = {}
    for product in experiment_facts(experiment).shared:
        for user in product["used_by"]:
            assert product["ran_in"]["seed"] == user["seed"] == 1
            what = product["what" if "ones" in product["what"] else "stage"]
            taken.setdefault(user["arm"], set()).add(what)
    base = {"the base on ones (T 0.9)", "the base on ones-greedy (greedy)"}
    assert "training" in taken["limit"] and not taken["limit"] & base, "answers are graded again under another limit"
    assert {"sampling", *base} <= taken["rate"] and "training" not in taken["rate"]
    assert base <= taken["samples"] and not taken["samples"] & {"sampling", "training"}
    assert taken["batch"] == {"training"}, "another batch size may draw other tokens"


def test_several_candidates_are_trained_by_each_run_and_share_what_they_answer(
    tmp_path: Path, calls: Counter[str]
) -> None:
    arms = [{"name": "a"}, {"name": "b", "decide": {"margin": 0.02}}]
    base = several(4, rounds=1, num_steps=8, storage={"min_free_bytes": 0})
    experiment = prepared(tmp_path, toml_text({"name": "e", "rounds": 1, "seeds": [1], "arms": arms}), base)
    for run in experiment.runs:
        calls.clear()
        drive(run, 1)
        assert calls["trainer"] == 1
    assert not calls["sampler"], "the same candidates have answered the same"
    shared = {product["stage"] for product in experiment_facts(experiment).shared}
    assert shared == {"sampling", "evaluating"}
    chosen = []
    for run in experiment.runs:
        with open_session(load_config(run.path), Quiet()) as session:
            (event,) = session.ledger.events.of(session.run_id, CHOSEN)
            chosen.append(event.data)
            trained = session.ledger.stage(session.run_id, 1, "training")
            assert trained is not None and "shared" not in (trained.output or {})
    assert chosen[0] == chosen[1]
    sound(experiment.path)


def test_a_run_of_its_own_shares_nothing(begun: Experiment, calls: Counter[str]) -> None:
    (begun.runs[1].run_dir / MEMBERSHIP).unlink()
    drive(begun.runs[1], 1)
    assert calls["trainer"] == 1 and experiment_facts(begun).shared == []


def test_a_damaged_shared_checkpoint_is_not_used(begun: Experiment, calls: Counter[str]) -> None:
    first, second, third, _ = begun.runs
    for weights in (first.run_dir / "checkpoints" / "round-0001", next((begun.directory / "shared").glob("*.weights"))):
        content = bytearray((weights / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (weights / "model.safetensors").write_bytes(content)
    calls.clear()
    drive(second, 1, watch := Quiet())
    assert calls["trainer"] == 1 and any("cannot be used" in note for note in watch.notes), watch.notes
    calls.clear()
    drive(third, 1)
    assert calls["trainer"] == 0, "the good one is shared again"
    for run in (second, third):
        with open_session(load_config(run.path), Quiet()) as session:
            candidate = session.ledger.rounds(session.run_id)[0].candidate_checkpoint
            session.weights(str(candidate))


def test_a_run_directory_away_from_its_experiment_is_a_run_of_its_own(begun: Experiment, tmp_path: Path) -> None:
    run = begun.runs[1]
    assert registry_of(run.run_dir) is not None
    shutil.copytree(run.directory, tmp_path / "away" / "copy")
    moved = tmp_path / "away" / "copy" / ".loop"
    assert registry_of(moved) is None
    os.makedirs(moved / "../../../shared")  # somebody else's
    assert registry_of(moved) is None


def test_a_registry_that_cannot_be_written_fails_no_stage(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(begun.directory / "shared")
    prepare(begun, Machine(1))
    monkeypatch.setattr(registry, "write_json", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    drive(begun.runs[1], 1, watch := Quiet())
    assert any("training: other runs cannot be told" in note for note in watch.notes)


def test_what_another_engine_had_to_do_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, start = prepared(tmp_path), Engines.sampler

    def falls_back(engines: Engines, checkpoint: Any) -> Any:
        sampler = start(engines, checkpoint)
        engines.settings = engines.settings.model_copy(update={"sampler": "transformers"})
        return sampler

    monkeypatch.setattr(Engines, "sampler", falls_back)
    drive(experiment.runs[0], 1)
    offered = [json.loads(path.read_text())["stage"] for path in (experiment.directory / "shared").glob("*.json")]
    assert "sampling" not in offered and {"training", "evaluating"} <= set(offered)


def test_what_a_checkpoint_gave_on_other_texts_is_not_taken(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where engines do not draw the same twice, two runs that both wrote their texts have different ones."""
    add, take = Probes.add, Product.take_record

    def shorter(probes: Probes, probe: Probe) -> None:
        sequences = [text | {"token_ids": text["token_ids"][:-1]} for text in probe.sequences]
        add(probes, replace(probe, sequences=sequences))

    monkeypatch.setattr(Product, "take_record", lambda self, kind, own: kind != "probe" and take(self, kind, own))
    monkeypatch.setattr(Probes, "add", shorter)
    run = begun.runs[1]
    drive(run, 1)
    with open_session(load_config(run.path), Quiet()) as session:
        (probe,) = session.corpus.probes.all(session.run_id)
        ids = session.corpus.probes.result_ids(session.run_id)
        assert len(ids) == 2
        for result in map(session.corpus.probes.result, ids):
            assert result is not None
            lengths = [len(record["entropy"]) for record in result.records]
            assert lengths == [len(text["token_ids"]) for text in probe.sequences]


def test_another_run_that_is_gone_or_broken_is_done_without(begun: Experiment) -> None:
    first, second, _, strict = begun.runs
    (first.run_dir / "loop.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    check_experiment(begun)
    failed, *others = experiment_facts(begun).runs
    assert failed.state == "failed" and "not an SQLite database" in (failed.error or "")
    assert {run.state for run in others} == {"waiting"}, "it hides no other run"
    drive(second, 1, watch := Quiet())
    assert any("cannot be used" in note for note in watch.notes)
    shutil.rmtree(first.directory)
    (begun.directory / "shared" / "x.json").write_text("rubbish")
    drive(strict, 1)
    shared = experiment_facts(begun).shared
    assert {product["ran_in"]["arm"] for product in shared if product["stage"] != "training"} == {"accumulate"}


def test_an_altered_completion_of_another_run_is_not_taken(begun: Experiment) -> None:
    first, second, *_ = begun.runs
    with altered(first.directory) as db:
        db.execute("UPDATE completions SET text = 'return 7' WHERE arrival IN (1, 15)")
    drive(second, 1, watch := Quiet())
    with open_session(load_config(second.path), Quiet()) as session:
        texts = [completion.text for completion in session.corpus.completions(session.run_id, 1)]
    assert len(texts) == 10 and "return 7" not in texts and any("not as it was written" in note for note in watch.notes)


def test_a_run_waits_for_one_that_is_at_the_same_stage_and_can_be_stopped_meanwhile(begun: Experiment) -> None:
    first, second = begun.runs[:2]
    keys = [path.stem for path in (begun.directory / "shared").glob("*.json")]
    registry = registry_of(first.run_dir)
    assert registry is not None and keys

    with contextlib.ExitStack() as stack:
        for key in keys:
            stack.enter_context(registry.turn(key, Mock(side_effect=AssertionError("it is free"))))
        session = stack.enter_context(open_session(load_config(second.path), watch := Quiet()))
        session.check_orders = Mock(side_effect=[None] * 4 + [KeyboardInterrupt])
        with pytest.raises(KeyboardInterrupt):
            run_round(session)
    assert "1 sampling: waiting for replace/seed-1, which does the same: 10 completions" in watch.parts
    drive(second, 1)
