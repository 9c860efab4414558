"""Experiments on the fake engine: what is shared runs once, kills and stops change no table, and every store verifies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop.config.loading import load_config
from loop.errors import LockedError
from loop.experiments import running
from loop.experiments.facts import experiment_facts
from loop.experiments.file import Experiment, ExperimentRun, check_experiment, load_experiment
from loop.experiments.planning import plan_of
from loop.experiments.running import Machine, Supervisor, machine_for, prepare
from loop.round import run_round
from loop.run.opening import open_session
from loop.run.session import Session
from loop.run.sharing import Product
from loop.system.lock import holder
from loop.system.signals import Stop
from loop.workers.up import Engines
from policies.patience import Patience
from store import shared as registry
from store.corpus import Corpus
from store.records import Probe
from store.shared import MEMBERSHIP, registry_of
from tests.support import ROOT
from tests.support.browser import Shown, chromium, needs_a_browser
from tests.support.experiments import BASE, POLICIES, THREE, facts_of, loopctl, sound, tables_of, write_experiment
from tests.support.runs import Quiet, environment
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, wait_until

__all__ = ["chromium"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often engines were asked for, in this process."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str, kind: str) -> None:
        real = getattr(owner, name)

        def wrapped(self: Any, *arguments: Any) -> Any:
            counted[kind] += 1
            return real(self, *arguments)

        monkeypatch.setattr(owner, name, wrapped)

    count(Session, "sampler", "sampler")
    count(Engines, "trainer", "trainer")
    return counted


def prepared(directory: Path, text: str = POLICIES, base: str = BASE) -> Experiment:
    experiment = load_experiment(write_experiment(directory, text, base))
    prepare(experiment, Machine(1))
    return experiment


def drive(run: ExperimentRun, rounds: int, watch: Quiet | None = None) -> None:
    """Rounds of one run in this process."""
    with open_session(load_config(run.path), watch or Quiet()) as session:
        for _ in range(rounds):
            round = run_round(session)
            assert round.state != "failed", round.error


@pytest.fixture(scope="module")
def first_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose first run has done a round; to be copied."""
    experiment = prepared(tmp_path_factory.mktemp("first"))
    drive(experiment.runs[0], 1)
    return experiment.path


@pytest.fixture
def begun(first_done: Path, tmp_path: Path) -> Experiment:
    shutil.copytree(first_done.parent, tmp_path, dirs_exist_ok=True)
    return load_experiment(tmp_path / first_done.name)


def test_four_arms_with_equal_first_rounds_run_it_once(tmp_path: Path, calls: Counter[str]) -> None:
    experiment = prepared(tmp_path)
    counted: dict[tuple[str, int], Counter[str]] = {}
    for run in experiment.runs:
        with open_session(load_config(run.path), Quiet()) as session:
            for number in (1, 2):
                calls.clear()
                assert run_round(session).state != "failed"
                counted[run.arm, number] = Counter(calls)
    first, *others = experiment.runs
    assert counted["replace", 1]["trainer"] == 1 and counted["replace", 1]["sampler"] > 3
    assert not any(counted[run.arm, 1] for run in others), "the first round was done again"
    assert [counted[run.arm, 2]["trainer"] for run in experiment.runs] == [1, 1, 1, 1]

    facts = experiment_facts(experiment)
    round_1 = [one for one in facts["shared"] if one["round"] == 1]
    kinds = {(one["stage"], one["what"]) for one in round_1}
    assert {stage for stage, _ in kinds} == {"sampling", "training", "evaluating"}
    assert ("evaluating", "round 1 on ones-greedy (greedy)") in kinds and (
        "evaluating", "locks and forks of the base") in kinds  # fmt: skip
    for one in round_1:
        assert one["ran_in"] == {"arm": "replace", "seed": 1}
        assert [used["arm"] for used in one["used_by"]] == ["accumulate", "mix", "strict"]
    second = [one for one in facts["shared"] if one["round"] == 2 and one["stage"] == "sampling"]
    assert [used["arm"] for one in second for used in one["used_by"]] == ["accumulate", "mix"], "strict: another head"
    rates = {(line["arm"], line["round"]): line["pass@1"] for line in facts["lines"]}
    assert len(rates) == 12 and facts["state"] == "done"
    assert rates["accumulate", 1] == rates["mix", 1] == rates["replace", 1] > rates["strict", 1] == rates["replace", 0]

    with open_session(load_config(others[0].path), Quiet()) as session:
        stages = session.ledger.stages(session.run_id, 1)[:3]
        for stage in stages:
            assert stage.output and stage.output["shared"][0]["ran_in"] == {"arm": "replace", "seed": 1}, stage.name
        taken = list(session.corpus.completions(session.run_id, 1))
        assert len(taken) == 10 and all(one.run_id == session.run_id for one in taken)
        assert session.ledger.events_of(session.run_id, "round_begun", 2)[0].round == 2
    checkpoints = [run.run_dir / "checkpoints" / "round-0001" / "model.safetensors" for run in (first, others[0])]
    assert len({path.stat().st_ino for path in checkpoints}) == 1, "a checkpoint is linked, not copied"
    sound(experiment.path)


INPUTS = """
name = "e"
rounds = 1
seeds = [1, 2]
[[arms]]
name = "a"
[[arms]]
name = "samples"
sampling.num_samples = 2
[[arms]]
name = "rate"
training.learning_rate = 1e-4
[[arms]]
name = "limit"
grading.timeout_s = 9.0
[[arms]]
name = "batch"
engine.batch_size = 4
"""


@pytest.mark.slow
def test_another_input_is_another_stage(tmp_path: Path) -> None:
    experiment = prepared(tmp_path, INPUTS)
    for arm, seed in (("a", 1), ("a", 2), ("samples", 1), ("rate", 1), ("limit", 1), ("batch", 1)):
        drive(experiment.run(arm, seed), 1)
    taken: dict[str, set[str]] = {}
    for one in experiment_facts(experiment)["shared"]:
        for user in one["used_by"]:
            assert one["ran_in"]["seed"] == user["seed"] == 1
            taken.setdefault(user["arm"], set()).add(one["stage"] if "ones" not in one["what"] else one["what"])
    base = {"the base on ones (T 0.9)", "the base on ones-greedy (greedy)"}
    assert "training" in taken["limit"] and not taken["limit"] & base, "answers are graded again under another limit"
    assert {"sampling", *base} <= taken["rate"] and "training" not in taken["rate"]
    assert base <= taken["samples"] and not taken["samples"] & {"sampling", "training"}
    assert taken["batch"] == {"training"}, "another batch size may draw other tokens"


def test_a_run_of_its_own_shares_nothing(begun: Experiment, calls: Counter[str]) -> None:
    (begun.runs[1].run_dir / MEMBERSHIP).unlink()
    drive(begun.runs[1], 1)
    assert calls["trainer"] == 1 and experiment_facts(begun)["shared"] == []


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_damaged_shared_checkpoint_is_not_used(begun: Experiment, calls: Counter[str]) -> None:
    experiment = begun
    first, second, third, _ = experiment.runs
    damage(first.run_dir / "checkpoints" / "round-0001" / "model.safetensors")
    damage(next((experiment.directory / "shared").glob("*.weights")) / "model.safetensors")
    calls.clear()
    watch = Quiet()
    drive(second, 1, watch)
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


def test_a_store_that_cannot_be_read_hides_no_other_run(begun: Experiment) -> None:
    (begun.runs[0].run_dir / "loop.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    check_experiment(begun)
    facts = experiment_facts(begun)
    assert [run["state"] for run in facts["runs"]] == ["failed", "waiting", "waiting", "waiting"]
    assert "not an SQLite database" in facts["runs"][0]["error"]


def test_a_registry_that_cannot_be_written_fails_no_stage(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, value: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    shutil.rmtree(begun.directory / "shared")
    prepare(begun, Machine(1))
    monkeypatch.setattr(registry, "write_json", broken)
    drive(begun.runs[1], 1, watch := Quiet())
    assert any("training: other runs cannot be told" in note for note in watch.notes)


def test_what_another_engine_had_to_do_is_not_offered_as_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, start = prepared(tmp_path), Engines.sampler

    def falls_back(engines: Engines, checkpoint: Any) -> Any:
        sampler = start(engines, checkpoint)
        engines.settings["sampler"] = "transformers"
        return sampler

    monkeypatch.setattr(Engines, "sampler", falls_back)
    drive(experiment.runs[0], 1)
    offered = [json.loads(path.read_text())["stage"] for path in (experiment.directory / "shared").glob("*.json")]
    assert "sampling" not in offered and {"training", "evaluating"} <= set(offered)


def test_what_a_checkpoint_gave_on_other_texts_is_not_taken(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where engines do not draw the same twice, two runs that both wrote their texts have different ones."""
    add = Corpus.add_probe

    def shorter(corpus: Corpus, probe: Probe) -> None:
        add(corpus, replace(probe, sequences=[one | {"token_ids": one["token_ids"][:-1]} for one in probe.sequences]))

    take = Product.take_record

    def takes_no_probe(product: Product, kind: Any, own: Any) -> None:
        if kind != "probe":
            take(product, kind, own)

    monkeypatch.setattr(Product, "take_record", takes_no_probe)
    monkeypatch.setattr(Corpus, "add_probe", shorter)
    run = begun.runs[1]
    drive(run, 1)
    with open_session(load_config(run.path), Quiet()) as session:
        (probe,) = session.corpus.probes(session.run_id)
        ids = session.corpus.probe_result_ids(session.run_id)
        assert len(ids) == 2
        for found in map(session.corpus.probe_result, ids):
            assert found is not None
            lengths = [len(record["entropy"]) for record in found.records]
            assert lengths == [len(one["token_ids"]) for one in probe.sequences]


def test_another_run_that_is_gone_or_broken_is_done_without(begun: Experiment) -> None:
    first, second, _, strict = begun.runs
    (first.run_dir / "loop.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    watch = Quiet()
    drive(second, 1, watch)
    assert any("cannot be used" in note for note in watch.notes)
    shutil.rmtree(first.directory)
    (begun.directory / "shared" / "x.json").write_text("rubbish")
    drive(strict, 1)
    taken = experiment_facts(begun)["shared"]
    assert {one["ran_in"]["arm"] for one in taken if one["stage"] != "training"} == {"accumulate"}


def test_an_altered_completion_of_another_run_is_not_taken(begun: Experiment) -> None:
    first, second, *_ = begun.runs
    import sqlite3

    with sqlite3.connect(first.run_dir / "loop.db") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{name}"')
        db.execute("UPDATE completions SET text = 'return 7' WHERE arrival IN (1, 15)")
    watch = Quiet()
    drive(second, 1, watch)
    with open_session(load_config(second.path), Quiet()) as session:
        texts = [one.text for one in session.corpus.completions(session.run_id)]
    assert len(texts) == 10 and "return 7" not in texts and any("not as it was written" in note for note in watch.notes)


def test_a_run_waits_for_one_that_is_at_the_same_stage_and_can_be_stopped_meanwhile(begun: Experiment) -> None:
    first, second = begun.runs[:2]
    keys = [path.stem for path in (begun.directory / "shared").glob("*.json")]
    registry = registry_of(first.run_dir)
    assert registry is not None and keys

    class Enough(BaseException):
        pass

    with all_held(registry, keys), open_session(load_config(second.path), watch := Quiet()) as session:
        waited = []

        def check_orders(round: Any) -> None:
            waited.append(round)
            if len(waited) > 4:
                raise Enough

        session.check_orders = check_orders
        with pytest.raises(Enough):
            run_round(session)
    assert "1 sampling: waiting for replace/seed-1, which does the same: 10 completions" in watch.parts
    drive(second, 1)


def all_held(registry: Any, keys: list[str]) -> contextlib.ExitStack:
    def never(_who: str) -> None:
        raise AssertionError("it is free")

    stack = contextlib.ExitStack()
    for key in keys:
        stack.enter_context(registry.turn(key, never))
    return stack


def test_weights_stay_for_others_until_all_are_past_that_round(begun: Experiment) -> None:
    shared = begun.directory / "shared"

    def after(rounds: list[int]) -> int:
        supervisor = Supervisor(begun, Machine(1), lambda text: None, Stop(at_once=False))
        for child, decided in zip(supervisor.children, rounds, strict=True):
            child.standing = running.Standing(decided)
        supervisor._prune()
        return len(list(shared.glob("*.weights")))

    assert running.rounds_kept(begun) == {
        "replace/seed-1": 2, "accumulate/seed-1": 1, "mix/seed-1": 1, "strict/seed-1": 2,
    }  # fmt: skip
    assert after([2, 1, 0, 2]) == 1
    assert after([2, 1, 1, 2]) == 0


def test_shared_weights_go_when_the_disk_gets_short(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(begun, Machine(1), lambda text: None, Stop(at_once=False))
    monkeypatch.setattr(running.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, -1))  # type: ignore[attr-defined]
    supervisor._prune()
    assert not list((begun.directory / "shared").glob("*.weights"))


def test_an_arm_that_was_taken_out_of_the_file_is_in_nobodys_way(begun: Experiment) -> None:
    text = begun.path.read_text()
    begun.path.write_text(text.replace('[[arms]]\nname = "replace"\n', ""))
    left = load_experiment(begun.path)
    assert len(left.runs) == 3
    Supervisor(left, Machine(1), lambda text: None, Stop(at_once=False))._prune()
    assert not list((begun.directory / "shared").glob("*.weights"))


def test_a_dry_run_says_how_much_there_is_and_what_is_shared(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    plan = json.loads(loopctl("run", path, "--dry-run", "--json"))
    assert plan["num_runs"] == 4 and plan["num_rounds"] == plan["num_rounds_left"] == 8
    assert plan["stages"] == {"sampling": 8, "training": 8, "evaluations": 24, "diagnoses": 12}
    assert (
        plan["num_shared_at_least"] == 24
    )  # all but one of: samples, weights, and base and candidate on all that measures
    assert "guess" in plan["time_from"] and plan["time_s"] > 0 and plan["disk_bytes"] > 0
    assert not (tmp_path / "policies").exists()
    said = loopctl("run", path, "--dry-run")
    assert "4 arms x 1 seed = 4 runs, 8 rounds in all" in said and "at least 24 of them" in said


def test_what_is_left_is_estimated_from_what_is_finished(begun: Experiment) -> None:
    drive(begun.runs[1], 1)
    plan = plan_of(begun, Machine(2))
    assert plan["num_rounds_left"] == 6 and plan["time_from"] == "the 2 rounds that are finished"
    taken = experiment_facts(begun)["shared"]
    assert sum(len(one["used_by"]) for one in taken) <= plan["num_shared_at_least"]


def test_the_machine_is_divided_among_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine_for(experiment) == Machine(1)
    assert machine_for(experiment, 4) == Machine(4, (), 2)
    monkeypatch.setattr(running, "visible_devices", lambda: [(str(n), n) for n in range(4)])
    found = machine_for(experiment)
    assert found == Machine(4, ("0", "1", "2", "3")) and found.environment(5) == {"CUDA_VISIBLE_DEVICES": "1"}
    two = load_experiment(
        write_experiment(tmp_path / "two", base=BASE.replace("[engine]", "[engine]\ngpus_per_engine = 2"))
    )
    assert machine_for(two) == Machine(2, ("0,1", "2,3"))
    cpu = load_experiment(write_experiment(tmp_path / "cpu", base=BASE.replace("[engine]", '[engine]\ndevice = "cpu"')))
    assert machine_for(cpu) == Machine(1)


# The whole of it, as processes


def supervise(path: Path, jobs: int = 2, **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "loop.cli.main", "experiment", "run", str(path), "--jobs", str(jobs)]
    with (path.parent / "output").open("ab") as output:
        return subprocess.Popen(
            command, env=environment() | variables, stdout=output, stderr=output, cwd="/", start_new_session=True
        )


def output_of(path: Path) -> str:
    return (path.parent / "output").read_text(errors="replace")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment run to its end by one command."""
    path = write_experiment(tmp_path_factory.mktemp("undisturbed"), THREE)
    said = loopctl("run", path, "--jobs", "2")
    assert "strict/seed-1: done, 0 of 2 rounds kept" in said and "replace/seed-1: round 2 of 2 kept" in said
    assert "accumulate and replace cannot be told apart at round 2" in said
    return path


def test_one_command_runs_it_all_and_says_what_came_out(undisturbed: Path) -> None:
    facts = facts_of(undisturbed)
    assert facts["state"] == "done" and {run["state"] for run in facts["runs"]} == {"done"}
    assert {"sampling", "training"} <= {one["stage"] for one in facts["shared"] if one["round"] == 1}
    assert len(facts["comparisons"]) == facts["num_comparisons"] == 3 and "Bonferroni" in facts["correction"]
    assert (facts["suite"], facts["decoding"]["temperature"], facts["decides"]) == ("ones", 0.9, True)
    experiment = sound(undisturbed)
    again = loopctl("run", undisturbed)
    assert "3 of 3 runs are done already" in again and "begins" not in again
    said = loopctl("status", undisturbed)
    assert "policies: done" in said and "95% interval" in said
    run = next(run for run, row in zip(experiment.runs, facts["runs"], strict=True) if row["shared"] > 5)
    command = [sys.executable, "-m", "loop.cli.main", "round", "1", "--config", str(run.path)]
    shown = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "taken from" in shown and "/seed-1" in shown


@needs_a_browser
def test_its_page_shows_what_the_command_says(undisturbed: Path, tmp_path: Path, chromium: Any) -> None:
    loopctl("report", undisturbed, "-o", str(tmp_path / "report.html"))
    shown = Shown(chromium, tmp_path / "report.html")
    words = shown.page.inner_text("main")
    facts = facts_of(undisturbed)
    for one in facts["comparisons"]:
        assert one["words"] in words
    assert facts["correction"] in words
    assert shown.page.locator("#runs tbody tr").count() == len(facts["runs"])
    assert shown.page.locator("#sharing tbody tr").count() == len(facts["shared"]) > 0
    shown.page.locator("#numbers-pass1 summary").click()
    assert shown.page.locator("#numbers-pass1 tbody tr").all_inner_texts()
    shown.check()


def test_a_failed_run_does_not_stop_the_others_and_is_said(tmp_path: Path) -> None:
    text = 'name = "e"\nrounds = 1\nseeds = [1]\n[[arms]]\nname = "none-left"\ncollect.min_lines = 99\n[[arms]]\nname = "fine"\n'
    path = write_experiment(tmp_path, text)
    said = loopctl("run", path, code=1)
    assert "none-left/seed-1: failed: round 1 failed in sampling" in said and "1 run failed (none-left/seed-1)" in said
    facts = facts_of(path)
    assert [run["state"] for run in facts["runs"]] == ["failed", "done"] and "left out" in facts["runs"][0]["error"]
    assert facts["state"] == "failed" and [line["arm"] for line in facts["lines"]] == ["fine", "fine"]
    changed = text.replace("99", "1")
    path.write_text(changed)
    assert (
        "none-left belongs to another" not in (said := loopctl("run", path, code=78))
        and "give the arm another name" in said
    )


def test_started_stopped_and_gone_on_with_the_tables_are_the_same(tmp_path: Path, undisturbed: Path) -> None:
    path, stages = write_experiment(tmp_path, THREE), Stages(tmp_path)

    def goes_on_once_told() -> None:
        num_heard = stages.num_heard()
        threading.Thread(target=lambda: (wait_until(lambda: stages.num_heard() > num_heard), stages.go_on())).start()

    stages.stand_still("training")
    process = supervise(path, **stages.variables)
    stages.wait("training")
    assert any(run["round"] for run in facts_of(path)["runs"])
    goes_on_once_told()
    process.kill()
    assert process.wait(HANG_S) == -signal.SIGKILL and alone(path)
    assert {run["rounds_done"] for run in facts_of(path)["runs"]} == {0}, "its runs stop when it is gone"
    stages.forget()
    stages.stand_still("training")
    process = supervise(path, **stages.variables)
    wait_until(lambda: holder(path.parent / "policies") == process.pid)
    assert "holds this run" in loopctl("run", path, code=75)
    stages.wait("training")
    assert facts_of(path)["state"] == "running"
    goes_on_once_told()
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_S) == 128 + signal.SIGINT and alone(path)
    assert facts_of(path)["state"] == "stopped" and "goes on where it was" in output_of(path)
    stages.forget()
    stages.stand_still("evaluating")
    assert "started (process" in loopctl("start", path, **stages.variables)
    assert "already running" in loopctl("start", path)
    stages.wait("evaluating")
    goes_on_once_told()
    assert loopctl("stop", path) == "stopped\n" and alone(path)
    assert loopctl("stop", path) == "not running\n"
    loopctl("run", path)
    assert "all of it is done already" in loopctl("start", path)
    assert tables_of(facts_of(path)) == tables_of(facts_of(undisturbed))
    sound(path)


def family(path: Path) -> list[psutil.Process]:
    """Every process that belongs to the experiment in this directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if str(path.parent) in " ".join(process.info["cmdline"] or []):
                found.append(process)
        except psutil.Error:
            continue
    return found


def alone(path: Path) -> bool:
    """True as soon as nothing of it is left."""
    return bool(wait_until(lambda: not family(path), lambda: f"left: {family(path)}"))


def killed_again_and_again(path: Path, draw: random.Random, num_kills: int) -> Counter[str]:
    """Run it to its end with kills of the supervisor, of a run's process, or of all, at random moments."""
    killed: Counter[str] = Counter()
    while killed.total() < num_kills:
        process = supervise(path, LOOP_FAKE_STEP_S="0.01")
        deadline = time.monotonic() + 0.2 + draw.expovariate(0.7)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            if process.returncode == 0:
                break
            continue  # a run was killed five times in one stage: it is tried again by whoever runs it again
        whom = draw.choice(["supervisor", "supervisor", "a run", "all"])
        members = [psutil.Process(process.pid)]
        children = members[0].children()
        if whom == "a run":
            members = draw.sample(children, min(1, len(children)))
        elif whom == "all":
            members += members[0].children(recursive=True)
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass
        killed[whom] += bool(members)
        if whom == "a run" and draw.random() < 0.5:
            try:
                process.wait(draw.expovariate(1.0))
            except subprocess.TimeoutExpired:
                process.kill()
        if whom != "a run":
            process.wait()
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(HANG_S)
    for _ in range(10):
        if supervise(path).wait(HANG_S) == 0:
            return killed
    raise AssertionError(output_of(path)[-3000:])


@pytest.mark.parametrize("num_kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_table(tmp_path: Path, undisturbed: Path, num_kills: int) -> None:
    path = write_experiment(tmp_path, THREE)
    killed_again_and_again(path, random.Random(num_kills), num_kills)
    assert tables_of(facts_of(path)) == tables_of(facts_of(undisturbed))
    assert alone(path)
    sound(path)


def test_a_run_whose_process_keeps_dying_is_given_up_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'name = "e"\nrounds = 1\nseeds = [1]\n[[arms]]\nname = "a"\n'
    experiment = load_experiment(write_experiment(tmp_path, text))
    monkeypatch.setenv("LOOP_FAILPOINT", "store.begun=kill@1")
    monkeypatch.setattr(running, "DEAD_RUN", Patience(waits_s=(0.0, 0.0)))
    said: list[str] = []
    outcome = Supervisor(experiment, Machine(1), said.append, Stop(at_once=False)).run()
    assert list(outcome.failed) == ["a/seed-1"] and "killed by signal 9" in outcome.failed["a/seed-1"]
    assert sum("started again" in line for line in said) == 2
    assert experiment_facts(experiment)["runs"][0]["state"] == "failed"
    with running.locked(experiment.directory), pytest.raises(LockedError):
        Supervisor(experiment, Machine(1), said.append, Stop(at_once=False)).run()


def test_the_experiment_of_the_docs_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-first-experiment.md").read_text()
    text = page.split("```toml\n", 1)[1].split("```", 1)[0]
    path = write_experiment(tmp_path, text)
    assert "4 arms x 2 seeds = 8 runs" in loopctl("run", path, "--dry-run")
    path.write_text(text.replace("[1, 2]", "[2]").replace("rounds = 2", "rounds = 1"))
    said = loopctl("run", path, "--jobs", "2")
    assert "hot-1.5/seed-2: done" in said and "hot-1.3" in said
    assert [arm["name"] for arm in facts_of(path)["arms"]] == ["replace", "mix", "hot-1.3", "hot-1.5"]
    sound(path)
