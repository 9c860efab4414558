"""Experiments as processes on the fake engine: kills and stops change no table, and every store verifies."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from loop.errors import LockedError
from loop.experiments import running
from loop.experiments.facts import experiment_facts
from loop.experiments.file import Experiment, load_experiment
from loop.experiments.running import Machine, Supervisor, machine_for
from loop.system.lock import holder
from loop.system.signals import Stop
from policies.retries import Retries
from tests.support import ROOT
from tests.support.browser import Shown, browser, needs_a_browser
from tests.support.experiments import BASE, THREE, facts_of, loopctl, sound, tables_of, write_experiment
from tests.support.runs import environment, family, kill, patient_loopctl
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, wait_until


def num_left(experiment: Experiment, rounds: Iterable[int]) -> int:
    """How many shared weights stay once so many rounds of each run are decided."""
    supervisor = Supervisor(experiment, Machine(1), lambda text: None, Stop(at_once=False))
    for child, decided in zip(supervisor.children, rounds, strict=True):
        child.standing = running.RunStanding(decided)
    supervisor._prune()
    return len(list((experiment.directory / "shared").glob("*.weights")))


def test_weights_stay_for_others_until_all_are_past_that_round(begun: Experiment) -> None:
    kept = {"replace/seed-1": 2, "accumulate/seed-1": 1, "mix/seed-1": 1, "strict/seed-1": 2}
    assert running.rounds_kept(begun) == kept
    assert num_left(begun, [2, 1, 0, 2]) == 1
    assert num_left(begun, [2, 1, 1, 2]) == 0


def test_shared_weights_go_when_the_disk_gets_short(begun: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(begun.directory)
    monkeypatch.setattr(running.shutil, "disk_usage", lambda path: usage._replace(free=-1))
    assert num_left(begun, [0] * 4) == 0


def test_an_arm_that_was_taken_out_of_the_file_is_in_nobodys_way(begun: Experiment) -> None:
    begun.path.write_text(begun.path.read_text().replace('[[arms]]\nname = "replace"\n', ""))
    assert num_left(load_experiment(begun.path), [0] * 3) == 0


def test_the_machine_is_divided_among_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(line: str = "", jobs: int | None = None) -> Machine:
        base = BASE.replace("[engine]", f"[engine]\n{line}")
        return machine_for(load_experiment(write_experiment(tmp_path, base=base)), jobs)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine() == Machine(1) and machine(jobs=4) == Machine(4, (), 2)
    monkeypatch.setattr(running, "visible_devices", lambda: [(str(n), n) for n in range(4)])
    assert machine() == Machine(4, ("0", "1", "2", "3"))
    assert machine().environment(5) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert machine("gpus_per_engine = 2") == Machine(2, ("0,1", "2,3"))
    assert machine('device = "cpu"') == Machine(1)


# The whole of it, as processes


def supervise(path: Path, jobs: int = 2, **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "loop.cli.main", "experiment", "run", str(path), "--jobs", str(jobs)]
    env = environment() | variables
    with (path.parent / "output").open("ab") as output:
        return subprocess.Popen(command, env=env, stdout=output, stderr=output, cwd="/", start_new_session=True)


def output_of(path: Path) -> str:
    return (path.parent / "output").read_text(errors="replace")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment run to its end by one command."""
    path = write_experiment(tmp_path_factory.mktemp("undisturbed"), THREE)
    words = loopctl("run", path, "--jobs", "2")
    assert "strict/seed-1: done, 0 of 2 rounds kept" in words and "replace/seed-1: round 2 of 2 kept" in words
    assert "accumulate and replace cannot be told apart at round 2" in words
    return path


def test_one_command_runs_it_all_and_says_what_came_out(undisturbed: Path) -> None:
    facts = facts_of(undisturbed)
    assert facts["state"] == "done" and {run["state"] for run in facts["runs"]} == {"done"}
    assert {"sampling", "training"} <= {product["stage"] for product in facts["shared"] if product["round"] == 1}
    assert len(facts["comparisons"]) == facts["num_comparisons"] == 3 and "Bonferroni" in facts["correction"]
    assert (facts["suite"], facts["decoding"]["temperature"], facts["decides"]) == ("ones", 0.9, True)
    experiment = sound(undisturbed)
    again = loopctl("run", undisturbed)
    assert "3 of 3 runs are done already" in again and "begins" not in again
    words = loopctl("status", undisturbed)
    assert "policies: done" in words and "95% interval" in words
    run = next(run for run, row in zip(experiment.runs, facts["runs"], strict=True) if row["shared"] > 5)
    shown = patient_loopctl("round", "1", "--config", run.path).stdout
    assert "taken from" in shown and "/seed-1" in shown


@needs_a_browser
def test_its_page_shows_what_the_command_says(undisturbed: Path, tmp_path: Path) -> None:
    loopctl("report", undisturbed, "-o", str(tmp_path / "report.html"))
    with browser() as chromium:
        shown = Shown(chromium, (tmp_path / "report.html").as_uri())
        words = shown.page.inner_text("main")
        facts = facts_of(undisturbed)
        assert all(comparison["words"] in words for comparison in facts["comparisons"]) and facts["correction"] in words
        assert shown.page.locator("#runs tbody tr").count() == len(facts["runs"])
        assert shown.page.locator("#sharing tbody tr").count() == len(facts["shared"]) > 0
        shown.check()


ONE_ROUND = 'name = "e"\nrounds = 1\nseeds = [1]\n'


def test_a_failed_run_does_not_stop_the_others_and_is_said(tmp_path: Path) -> None:
    text = ONE_ROUND + '[[arms]]\nname = "none-left"\ncollect.min_lines = 99\n[[arms]]\nname = "fine"\n'
    path = write_experiment(tmp_path, text)
    words = loopctl("run", path, code=1)
    assert "none-left/seed-1: failed: round 1 failed in sampling" in words
    assert "1 run failed (none-left/seed-1)" in words
    facts = facts_of(path)
    assert [run["state"] for run in facts["runs"]] == ["failed", "done"] and "left out" in facts["runs"][0]["error"]
    assert facts["state"] == "failed" and [line["arm"] for line in facts["lines"]] == ["fine", "fine"]
    path.write_text(text.replace("99", "1"))
    assert "give the arm another name" in loopctl("run", path, code=78)


@pytest.mark.slow
def test_started_stopped_and_gone_on_with_the_tables_are_the_same(tmp_path: Path, undisturbed: Path) -> None:
    path, stages = write_experiment(tmp_path, THREE), Stages(tmp_path)

    def goes_on_once_told() -> None:
        num_heard = stages.num_heard()
        threading.Thread(target=lambda: (wait_until(lambda: stages.num_heard() > num_heard), stages.go_on())).start()

    def begins() -> subprocess.Popen[bytes]:
        stages.forget()
        stages.stand_still("training")
        return supervise(path, **stages.variables)

    process = begins()
    stages.wait("training")
    assert any(run["round"] for run in facts_of(path)["runs"])
    goes_on_once_told()
    process.kill()
    assert process.wait(HANG_S) == -signal.SIGKILL and alone(path)
    assert {run["rounds_done"] for run in facts_of(path)["runs"]} == {0}, "its runs stop when it is gone"
    process = begins()
    wait_until(lambda: holder(path.parent / "policies") == process.pid)
    assert "holds this run" in loopctl("run", path, code=75)
    stages.wait("training")
    assert facts_of(path)["state"] == "running"
    goes_on_once_told()
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_S) == 128 + signal.SIGINT and alone(path)
    assert facts_of(path)["state"] == "stopped" and "continues where it was" in output_of(path)
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


def alone(path: Path) -> bool:
    """True as soon as no process of the experiment in this directory is left."""

    def left() -> list[list[str]]:
        commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
        return [command for command in commands if str(path.parent) in " ".join(command)]

    return bool(wait_until(lambda: not left(), lambda: f"left: {left()}"))


def killed_again_and_again(path: Path, draw: random.Random, num_kills: int) -> Counter[str]:
    """Run it to its end with kills of the supervisor, of a run's process, or of all, at random moments."""
    killed: Counter[str] = Counter()
    while killed.total() < num_kills:
        process = supervise(path, LOOP_FAKE_STEP_S="0.01")
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(0.2 + draw.expovariate(0.7)) == 0:
                break
            continue  # a run was killed five times in one stage: it is tried again by whoever runs it again
        whom = draw.choice(["supervisor", "supervisor", "a run", "all"])
        members = family(process.pid)
        runs = members[0].children() if whom == "a run" else []
        chosen = {"supervisor": members[:1], "a run": draw.sample(runs, min(1, len(runs))), "all": members}[whom]
        kill(chosen)
        killed[whom] += bool(chosen)
        if whom == "a run" and draw.random() < 0.5:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.expovariate(1.0))
            process.kill()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(HANG_S)
    for _ in range(10):
        if supervise(path).wait(HANG_S) == 0:
            return killed
    raise AssertionError(output_of(path)[-3000:])


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [2, 5, 30])
def test_kills_at_random_moments_change_no_table(tmp_path: Path, undisturbed: Path, num_kills: int) -> None:
    path = write_experiment(tmp_path, THREE)
    killed_again_and_again(path, random.Random(num_kills), num_kills)
    assert tables_of(facts_of(path)) == tables_of(facts_of(undisturbed))
    assert alone(path)
    sound(path)


def test_a_run_whose_process_keeps_dying_is_given_up_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(write_experiment(tmp_path, ONE_ROUND + '[[arms]]\nname = "a"\n'))
    monkeypatch.setenv("LOOP_FAILPOINT", "store.begun=kill@1")
    monkeypatch.setattr(running, "DEAD_RUN", Retries(waits_s=(0.0, 0.0), max_failures=3))
    lines: list[str] = []
    failed = Supervisor(experiment, Machine(1), lines.append, Stop(at_once=False)).run()
    assert list(failed) == ["a/seed-1"] and "killed by signal 9" in failed["a/seed-1"]
    assert sum("started again" in line for line in lines) == 2
    assert experiment_facts(experiment).runs[0].state == "failed"
    with running.locked(experiment.directory), pytest.raises(LockedError):
        Supervisor(experiment, Machine(1), lines.append, Stop(at_once=False)).run()


@pytest.mark.slow
def test_the_experiment_of_the_docs_runs_as_it_stands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-first-experiment.md").read_text()
    path = write_experiment(tmp_path, text := page.split("```toml\n", 1)[1].split("```", 1)[0])
    assert "4 arms x 2 seeds = 8 runs" in loopctl("run", path, "--dry-run")
    path.write_text(text.replace("[1, 2]", "[2]").replace("rounds = 2", "rounds = 1"))
    words = loopctl("run", path, "--jobs", "2")
    assert "hot-1.5/seed-2: done" in words and "hot-1.3" in words
    assert [arm["name"] for arm in facts_of(path)["arms"]] == ["replace", "mix", "hot-1.3", "hot-1.5"]
    sound(path)
