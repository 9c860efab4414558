"""Experiment trackers, each against its real library and without a network: what was logged is read back."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from loop.config.settings import Watching
from loop.grading.bubblewrap import find_bwrap
from loop.reading.as_json import as_json
from loop.reading.reader import reader
from loop.reading.rounds import whole_round
from loop.watching import tracker_thread
from loop.watching.tracker_process import about, figures_of
from loop.watching.tracker_thread import TrackerThread, trackers_of, tracking_command
from loop.watching.trackers import EXTRA, TRACKERS, Mlflow, missing, missing_in_words
from store.records import STAGES
from tests.support import ROOT
from tests.support.cli import Loopctl, Said, call, environment, finish, finished, one_line, process
from tests.support.runs import imported_by
from tests.support.waiting import HANG_S, Clock, Log, pid_in, returns, wait_until

__all__ = ["call", "finished"]

Figures = dict[int, dict[str, float]]  # by round


def needs(name: str) -> Any:
    """Skips where a tracker's library is not installed."""
    return pytest.mark.skipif(bool(missing([name])), reason=f"{name} is not installed: {EXTRA}")


ALL = pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in TRACKERS])


def expected(run_dir: Path) -> Figures:
    """What the store says, by round."""
    with reader(run_dir) as store:
        return {number: figures_of(store, number) for number in about(store, "x").rounds}


def track(name: str, directory: Path, *, offline: bool = False, code: str | None = None) -> Said:
    """Bring a tracker up to date as the daemon does, in a process of its own; `offline`: where there is no network."""
    command = tracking_command(name, directory / ".loop", "small", anew=True)
    if code is not None:
        command = [sys.executable, "-P", "-c", code, *command[4:]]
    if offline:
        bwrap = find_bwrap()
        assert bwrap is not None
        command = [bwrap, "--unshare-net", "--dev-bind", "/", "/", *command]
    return finish(command, directory, timeout=HANG_S)


def read_back(name: str, directory: Path, project: str = "small") -> tuple[Figures, dict[str, Any]]:
    """What a tracker of a run holds: the figures by round, without a round twice, and the configuration."""
    read = {"trackio": from_trackio, "wandb": from_wandb, "mlflow": from_mlflow}[name]
    return read(directory / ".loop" / "trackers" / name, project)


TRACKIO = """
import json, sys
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs(sys.argv[1])
print(json.dumps([SQLiteStorage.get_logs(sys.argv[1], run.name, run_id=run.id), run.config], default=str))
"""


def from_trackio(directory: Path, project: str) -> tuple[Figures, dict[str, Any]]:
    variables = environment(TRACKIO_DIR=str(directory))  # trackio reads it when it is imported
    rows, config = finish([sys.executable, "-c", TRACKIO, project], directory, env=variables).json
    assert len({row["step"] for row in rows}) == len(rows), "a round came twice"
    return {row.pop("step"): {key: value for key, value in row.items() if key != "timestamp"} for row in rows}, config


def from_wandb(directory: Path, project: str) -> tuple[Figures, dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    rows: Figures = {}
    config: dict[str, Any] = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            assert record.run.project == project and file.parent.name.endswith(record.run.run_id)
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = record.history.step.num
            assert step not in rows, "a round came twice"
            rows[step] = {key: value for key, value in row.items() if not key.startswith("_")}
    return rows, config


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind seven bytes of W&B's own."""
    assert content.startswith(b":W&B")
    at, data = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<xxxxHB", content[at : at + 7])
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


def from_mlflow(directory: Path, project: str) -> tuple[Figures, dict[str, Any]]:
    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(directory.absolute().as_uri())
    experiment = client.get_experiment_by_name(project)
    (run,) = client.search_runs([experiment.experiment_id])
    rows: Figures = {}
    for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
            row = rows.setdefault(metric.step, {})
            assert key not in row, "a round came twice"
            row[key.replace("_at_", "@")] = metric.value
    return rows, dict(run.data.params)


def test_a_rounds_figures_and_what_the_run_is_called(finished: Path) -> None:
    with reader(finished / ".loop") as store:
        answer, figures = as_json(whole_round(store, 2)), figures_of(store, 2)
        first, again = about(store, "x"), about(store, "x")
        store.run = dataclasses.replace(store.run, created_at="2026-01-01T00:00:00Z")
        assert first.id == again.id != about(store, "x").id, "another beginning of a run is another run"
    ones = answer["suites"]["ones"]
    for who in ("base", "head", "candidate"):
        for key in ("pass@1", "pass@2"):
            assert figures[f"ones/{who}/{key}"] == ones[who][key]
        ends = [figures[f"ones/{who}/pass@1_low"], figures[f"ones/{who}/pass@1_high"]]
        assert ends == ones[who]["pass@1_interval"] and f"greedy/{who}/pass@1" in figures
    assert figures["ones/gain"] == ones["gain"]["gain"] and figures["ones/gain_low"] == ones["gain"]["interval"][0]
    assert figures["ones/gain_over_base_high"] == ones["gain_over_base"]["interval"][1]
    assert [figures[key] for key in ("round", "decision/kept", "decision/conclusive")] == [2, 0, 0]
    assert figures["training/loss_last"] == answer["training"]["loss_last"]
    assert set(answer["signals"]) == {"base", "candidate", "head"} and figures["signals/candidate/code_rate"] == 1.0
    assert all(figures[f"seconds/{stage}"] >= 0 for stage in STAGES)
    tokens = figures["tokens/training"]
    assert figures["tokens/sampling"] >= tokens == answer["training"]["num_completion_tokens"] > 0
    assert all(isinstance(value, float) for value in figures.values())


def test_tokens_are_counted_where_they_were_drawn(finished: Path) -> None:
    """Round 2 trained the weights that round 1 had, so nothing was measured in it."""
    figures = expected(finished / ".loop")
    with reader(finished / ".loop") as store:
        ids = [row.id for row in store.evaluations().by_id.values()]
        drawn = sum(row.num_tokens for id in ids for row in store.corpus.completions(store.run.id, evaluation_id=id))
    assert figures[1]["tokens/evaluating"] == pytest.approx(drawn) and figures[2]["tokens/evaluating"] == 0


@pytest.mark.slow
@ALL
def test_what_was_logged_is_read_back(name: str, finished: Path) -> None:
    """All of it, with the decoding settings, where there is no network; and nothing lands beside the run directory."""
    assert (done := track(name, finished, offline=True)).code == 0, done.err
    held, config = read_back(name, finished)
    assert held == expected(finished / ".loop") and len(held) == 2
    for key, value in {"suite": "ones", "temperature": 0.9, "top_p": 0.95}.items():
        assert config[f"decoding.{key}"] == str(value) if name == "mlflow" else config["decoding"][key] == value
    assert not [path for path in finished.iterdir() if path.name in ("wandb", "mlruns", "trackio", "mlflow.db")]


KILLED = """
import os, sys
from loop.watching import tracker_process
for kind in tracker_process.TRACKERS.values():
    def killed(self, round, figures, log=kind.log):
        if round == 2:
            os._exit(9)
        log(self, round, figures)
    kind.log = killed
tracker_process.main()
"""


@pytest.mark.slow
@ALL
def test_killed_and_started_again_it_doubles_nothing(name: str, finished: Path) -> None:
    """And a round more is a round more, however often it is told."""
    assert track(name, finished, code=KILLED).code == 9
    assert not (finished / ".loop/trackers" / name / "told.json").exists()
    assert (done := track(name, finished)).code == 0, done.err
    if name == "wandb":  # what the killed one left is a run of its own, which is removed with the next
        assert len(list((finished / ".loop/trackers/wandb/wandb").glob("offline-run-*"))) == 1
    assert read_back(name, finished)[0] == expected(finished / ".loop")
    assert process(finished, "run", "--rounds", "1").code == 0
    for _ in range(2):
        assert track(name, finished).code == 0
    held, _ = read_back(name, finished)
    assert held == expected(finished / ".loop") and len(held) == 3


def telling(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have a program of ours in the place of the tracker's process."""
    command = [sys.executable, "-c", code]
    monkeypatch.setattr(tracker_thread, "tracking_command", lambda *_, **__: command)


def test_what_hangs_is_ended_and_the_next_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end does not wait either."""
    telling(monkeypatch, "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(1000)")
    log, clock, pids = Log(), Clock(), [0]
    trackers = TrackerThread(["wandb", "mlflow", "trackio"], tmp_path, "p", log, clock)
    returns(trackers.look)
    for _ in range(2):
        pids.append(pid_in(tmp_path / "pid", but=pids[-1]))
        assert len(log) == len(pids) - 2 and psutil.pid_exists(pids[-1]), "nobody waits for it"
        clock.now_s += tracker_thread.TIMEOUT_S
    pids.append(pid_in(tmp_path / "pid", but=pids[-1]))
    returns(lambda: trackers.close(0.0))
    assert [line.split(" took")[0] for line in log[:2]] == ["watching.trackers: wandb", "watching.trackers: mlflow"]
    assert len(log) == 3 and not any(map(psutil.pid_exists, pids[1:]))
    trackers.look()
    trackers.close(0.0)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    monkeypatch.setattr(tracker_thread, "STOP_S", 0.1)
    monkeypatch.setattr(tracker_thread, "END_S", HANG_S)
    monkeypatch.setattr(Mlflow, "packages", ("pytest",))
    patience_s: list[float] = []
    close = TrackerThread.close
    monkeypatch.setattr(TrackerThread, "close", lambda self, s: patience_s.append(s) or close(self, s))
    telling(monkeypatch, "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nopen('told', 'w')")
    with trackers_of(Watching(trackers=("mlflow",)), "small", tmp_path, Log(), lambda: stopped) as trackers:
        assert trackers is not None
        if not stopped:
            go = tmp_path / "go"
            threading.Thread(target=lambda: (wait_until(lambda: trackers._closing), go.touch())).start()
    assert (tmp_path / "told").exists() != stopped and patience_s == [0.1 if stopped else HANG_S]


def test_what_fails_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telling(monkeypatch, "import sys; print('noise', file=sys.stderr); sys.exit('no\\x1b[31m server ' + 'x' * 1000)")
    log = Log()
    trackers = TrackerThread(["mlflow"], tmp_path, "p", log)
    for number in (1, 2):
        trackers.look()
        wait_until(lambda number=number: len(log) == number)
    trackers.close(HANG_S)
    assert log[0] == log[1] and log[0].startswith("watching.trackers: mlflow: no [31m server xxx")
    assert len(log[0]) < 500 and "loopctl track" in log[0]


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, packages in (("trackio", ("nope",)), ("wandb", ("pytest",)), ("mlflow", ("no", "nor"))):
        monkeypatch.setattr(TRACKERS[name], "packages", packages)
    assert missing(["wandb", "mlflow", "trackio", "mlflow"]) == ["mlflow", "trackio"]
    assert missing_in_words(["wandb"]) is None
    log = Log()
    for names in (("mlflow",), ()):
        with trackers_of(Watching(trackers=names), "small", tmp_path, log) as trackers:
            assert trackers is None
        assert log == [f"watching.trackers: mlflow is not installed, so nothing is sent there; {EXTRA}"]


def test_every_tracker_can_be_configured_and_installed() -> None:
    trackers = Watching.model_fields["trackers"].annotation
    assert get_args(get_args(trackers)[0]) == tuple(TRACKERS), "its name belongs in loop.config.settings.Watching"
    with (ROOT / "pyproject.toml").open("rb") as file:
        extra = tomllib.load(file)["project"]["optional-dependencies"]["trackers"]
    assert [line.partition("==")[0] for line in extra] == [tracker.packages[0] for tracker in TRACKERS.values()]


def configured(name: str, more: str = "") -> None:
    with Path("loop.toml").open("a") as file:
        file.write(f'\n[watching]\ntrackers = ["{name}"]\n{more}')


def test_checks_name_what_is_missing(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    configured("mlflow")
    monkeypatch.setattr(Mlflow, "packages", ("nope",))
    done = call("config", "check")
    assert done.code == 0 and "mlflow is not installed" in done.err and "pip install 'ssd-loop[trackers]'" in done.err
    assert "mlflow" in call("config", "check", "--json").json["warnings"][0]
    monkeypatch.setattr("loop.cli.doctor._DEVICES", 'print(\'{"gpus": [], "threads": 2}\')')
    (line,) = [each for each in call("doctor", "--json").json["checks"] if each["name"] == "trackers"]
    assert line["verdict"] == "warn" and "ssd-loop[trackers]" in line["remedy"]
    done = call("track")
    assert done.code == 1 and "mlflow: not installed; pip install" in done.err


@needs("mlflow")
def test_a_run_tells_its_tracker(finished: Path, call: Loopctl) -> None:
    """Rounds that were there before, and a new one: `loopctl run` and no more."""
    configured("mlflow", 'project = "shared"\n')
    (finished / "sitecustomize.py").write_text(  # put before loopctl: mlflow takes its time to start on a busy machine
        "import sys\nif 'loop.cli.main' in sys.orig_argv:\n"
        f"    from loop.watching import tracker_thread\n    tracker_thread.END_S = tracker_thread.TIMEOUT_S = {HANG_S}\n"
    )
    done = process(finished, "run", "--rounds", "1", PYTHONPATH=f"{finished}{os.pathsep}{ROOT}")
    assert done.code == 0, done.err
    held, config = read_back("mlflow", finished, "shared")
    assert held == expected(finished / ".loop") and len(held) == 3 and config["name"] == "small"
    assert call("config", "check").err == ""


@needs("mlflow")
def test_a_mistake_of_the_library_is_told_in_a_line(finished: Path, call: Loopctl) -> None:
    (finished / ".loop/trackers").mkdir()
    (finished / ".loop/trackers/mlflow").touch()
    done = track("mlflow", finished)
    assert done.code == 1 and "Traceback" not in done.err and "mlflow" in done.err.splitlines()[-1]
    one_line(call("track", "mlflow"), 1, "tracker-mlflow.log has all of it")


@pytest.mark.slow
@needs("mlflow")
def test_a_run_that_is_over_is_sent_afterwards(finished: Path, call: Loopctl) -> None:
    assert call("track").code == 1
    done = call("track", "mlflow", "--project", "later")
    assert (done.code, done.out) == (0, "mlflow: up to date: project later\n"), done.err
    assert read_back("mlflow", finished, "later")[0] == expected(finished / ".loop")
    told = {"tracker": "mlflow", "project": "later", "directory": str(finished / ".loop/trackers/mlflow")}
    assert call("track", "mlflow", "--json", "--project", "later").json == [told]


def test_mistakes_on_the_command_line(finished: Path, call: Loopctl, tmp_path: Path) -> None:
    assert call("track", "tensorboard").code == 2 and call("track", "mlflow", "--project", "../up").code == 2
    configured("tensorboard")
    assert "watching.trackers" in call("config", "check").err


def test_nothing_is_imported_unless_it_is_configured() -> None:
    modules = ("daemon.loopd", "daemon.commands", "watching.tracker_thread", "cli.run", "cli.status", "cli.track")
    imported = imported_by(*(f"loop.{name}" for name in modules))
    assert not {*TRACKERS, "loop.watching.tracker_process", "huggingface_hub"} & imported
