"""Runs for tests: a fake one in a directory, a driver that can be killed, and a dump that two runs are compared by."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from store.corpus import Corpus
from store.db import open_database, query
from store.verify import verify_store
from tests.support import ROOT
from tests.support.configurations import configuration
from tests.support.waiting import HANG_S, wait_until

CONFIG = configuration()


class Quiet:
    """A watch that shows nothing and keeps what it was told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.parts: list[str] = []
        self.notes: list[str] = []

    def stage(self, round: int, stage: str, what: str) -> None:
        self.stages.append(stage)
        self.parts.append(f"{round} {stage}: {what}")

    def progress(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def pulse(self) -> None: ...


# Its rounds are kept: the fake model learns much, and any gain will do.
KEEPING = CONFIG.replace("[training]", "[training]\nnum_steps = 20").replace(
    'suite = "ones"', 'suite = "ones"\ngates = [{ type = "improvement", min_gain = -0.9 }]'
)


def write_run(directory: Path, config: str = CONFIG, num_problems: int = 10) -> Path:
    """A loop.toml with its suite of problems that the fake model solves now and then; the path of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "ones.jsonl").open("w") as file:
        for number in range(num_problems):
            problem = {
                "task_id": f"ones/{number}",
                "text": f"Return the number one, variant {number}.",
                "entry_point": f"one_{number}",
                "signature": f"def one_{number}():",
                "test_list": [f"assert one_{number}() == 1"],
                "code": f"def one_{number}():\n    return 1\n",
                "difficulty": ["easy", "hard"][number % 2],
            }
            file.write(json.dumps(problem) + "\n")
    (directory / "loop.toml").write_text(config)
    return directory / "loop.toml"


DRIVER = r"""
import os, signal, sys
from pathlib import Path
from loop import round as rounds
from loop.run import opening
from loop.config.loading import load_config
from store import checkpoints, corpus, evaluations, ledger, probes
from loop.stages import sampling, training

config, where, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
PLACES = {
    "create_run": (ledger.Ledger, "create_run"), "begin_round": (ledger.Ledger, "begin_round"),
    "begin_attempt": (ledger.Ledger, "begin_attempt"), "finish_stage": (ledger.Ledger, "finish_stage"),
    "decide": (ledger.Ledger, "decide"), "add_completions": (corpus.Corpus, "add_completions"),
    "add_verdicts": (evaluations.Evaluations, "add_verdicts"), "begin_evaluation": (evaluations.Evaluations, "begin"),
    "finish_evaluation": (evaluations.Evaluations, "finish"), "add_probe": (probes.Probes, "add"),
    "add_probe_result": (probes.Probes, "add_result"), "commit_directory": (training, "commit_directory"),
    "rename": (os, "rename"),
}
ACKNOWLEDGED = {"add_completions": "completion", "add_verdicts": "verdict", "add_probe": "probe", "add_probe_result": "probe result"}
sampling.STORED_AT_ONCE = 1  # kills are to come between the lists of one stage
calls = 0

def maybe(place, moment):
    global calls
    calls += where == f"{moment} {place}"
    if where == f"{moment} {place}" and calls == count:
        os.kill(os.getpid(), signal.SIGKILL)

def wrap(place, owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        maybe(place, "before")
        result = real(*args, **kwargs)
        if place in ACKNOWLEDGED:
            with open(Path(config).parent / "acknowledged", "a") as file:
                for row in args[1] if isinstance(args[1], list) else [args[1]]:
                    print(ACKNOWLEDGED[place], getattr(row, "completion_id", None) or row.id, file=file)
        maybe(place, "after")
        return result
    setattr(owner, name, wrapped)

for place, (owner, name) in PLACES.items():
    wrap(place, owner, name)

class Quiet:
    def stage(self, round, stage, what): maybe(f"stage {stage}", "at")
    def progress(self, done, total): maybe("progress", "at")
    def note(self, text): print(text, file=sys.stderr)

loaded = load_config(Path(config))
with opening.open_session(loaded, Quiet()) as session:
    session.check_orders = lambda round: maybe("between_stages", "at") if round else None
    while len(session.ledger.decisions(session.run_id)) < loaded.config.rounds:
        round = rounds.run_round(session)
        assert round.state != "failed", round.error
"""


# loopctl, which otherwise gives up waiting for a daemon or an experiment after seconds.
PATIENT = f"""
from loop.daemon import control
from loop.cli import experiment, main, service
experiment.PATIENCE_S = service.PATIENCE_S = {HANG_S}
control.ask.__defaults__ = ({HANG_S},)
main.main()
"""


def patient_loopctl(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run loopctl to its end. `variables` are those of its environment that differ."""
    command = [sys.executable, "-P", "-c", PATIENT, *map(str, arguments)]
    env = environment() | variables
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)


def environment() -> dict[str, str]:
    """The project importable from anywhere."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def imported_by(*modules: str) -> set[str]:
    """All modules that are loaded in a new process once these are."""
    words = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], env=environment(), capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def drive(config: Path, place: str = "never", count: int = 1, kill_after_s: float | None = None) -> int:
    """Run to the end, or to the kill; the exit code. Whatever the driver started must be gone when it is."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER, str(config), place, str(count)],
        env=environment(),
        stderr=(config.parent / "stderr").open("ab"),
        start_new_session=True,
    )
    return end_of(process, kill_after_s)


def end_of(process: subprocess.Popen[bytes], kill_after_s: float | None) -> int:
    """The exit code; the process and all below it are killed after that time."""
    try:
        return process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        kill(family(process.pid))
        return process.wait()


def family(pid: int) -> list[psutil.Process]:
    """A process that runs, and all that it has started."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill all of these that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def finish(config: Path) -> Path:
    """Run to the end; the run directory."""
    assert drive(config) == 0, (config.parent / "stderr").read_text()[-3000:]
    return config.parent / ".loop"


def findings(run_dir: Path) -> list[str]:
    """What is wrong with a store and the checkpoints beside it."""
    with contextlib.closing(open_database(run_dir / "loop.db", read_only=True)) as db:
        return [finding.message for finding in verify_store(db, run_dir).findings]


def check_end(config: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Check that a run ended as the one whose dump is `expected`, and left no process; the run's own dump."""
    run_dir = config.parent / ".loop"
    left = assert_same(run_dir, expected)
    complaints = findings(run_dir)
    assert complaints == [], complaints
    assert processes_of(config) == [], "a process survived"
    return left


def workers_of(directory: Path) -> list[psutil.Process]:
    """The workers that have a file open in a directory, as their log is."""
    workers = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "loop.workers.child" in (process.info["cmdline"] or []):
                workers += [process] if any(str(directory) in file.path for file in process.open_files()) else []
    return workers


@contextlib.contextmanager
def watched() -> Iterator[dict[psutil.Process, list[str]]]:
    """All processes that are below this one at some moment of the block, with the command line that each had last."""
    seen: dict[psutil.Process, list[str]] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if words := process.cmdline():  # one that ends has none any more
                        seen[process] = words

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def ranks_among(seen: dict[psutil.Process, list[str]]) -> list[psutil.Process]:
    """Those of watched processes that trained together, without what launched them, which has the same words."""
    module = "loop.engines.distributed_rank"
    return [each for each, words in seen.items() if module in words and "loop.engines.distributed_launch" not in words]


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended, even where nobody has asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(config: Path) -> list[psutil.Process]:
    """The workers of a run, once none is left or it hangs."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not workers_of(config.parent))
    return workers_of(config.parent)


def dump(run_dir: Path) -> dict[str, Any]:
    """All that a run leaves, without times, durations, attempts, arrival order and absolute paths.

    Compared are: rounds and their states, stage inputs and outputs, the run's head and counters, prompts, every
    completion with text, token ids, seeds and hashes, selections, verdicts, figures, probes and their results,
    decisions with evidence, and checkpoints by the hash of their weights.
    """
    without = {"created_at", "started_at", "finished_at", "decided_at", "duration_s", "arrival", "path", "detail"}
    tables = (
        "runs", "rounds", "stages", "prompts", "completions", "suites", "problems", "evaluations",
        "verdicts", "decisions", "checkpoints", "probes", "probe_results",
    )  # fmt: skip
    with contextlib.closing(open_database(run_dir / "loop.db", read_only=True)) as db:
        rounds = query(db, "SELECT run_id, number FROM rounds")
        lists = [Corpus(db).selections(row["run_id"], row["number"]) for row in rounds]
        contents = {table: query(db, f"SELECT * FROM {table}") for table in tables}
        contents["selections"] = [asdict(selection) for listed in lists for selection in listed]
    dumped: dict[str, Any] = {}
    for table, rows in contents.items():
        plain = [{key: value for key, value in row.items() if key not in without} for row in rows]
        dumped[table] = sorted(plain, key=lambda row: json.dumps(row, sort_keys=True, default=str))
    return dumped


def assert_same(run_dir: Path, expected: dict[str, Any], *tables: str) -> dict[str, Any]:
    """A run has left the same as a dump, table by table: in these, by default in all. Its own dump."""
    dumped = dump(run_dir)
    for table in tables or expected:
        assert dumped[table] == expected[table], f"{table} differs: {run_dir}"
    return dumped


def acknowledged(config: Path) -> list[str]:
    """Each row that was acknowledged, in order, across all processes of a run."""
    path = config.parent / "acknowledged"
    return path.read_text().splitlines() if path.exists() else []
