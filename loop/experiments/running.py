"""Running an experiment: one process per run, as many at a time as wanted, until all have their rounds.

A run is an ordinary one, with `loopd` working on it, which minds windows, disk and pauses itself and ends when the rounds
are done. Here it is only started, with a share of the machine, and started again when it dies. Everything that matters is
in the runs' directories: this process may be killed at any moment, and a new one goes on. Its children then stop at
their next safe point, and the new one waits for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loop.errors import LockedError, LoopError
from loop.experiments.facts import FAILURE
from loop.experiments.file import LOGS, SHARED, Experiment, ExperimentRun, run_text
from loop.system.gpus import visible_devices
from loop.system.lock import holder, locked
from loop.system.ourselves import found_again
from loop.system.signals import Stop
from loop.system.trees import PR_SET_PDEATHSIG, prctl
from policies.patience import DEAD_RUN
from store.checkpoints import make_directory, remove_directory, sweep_temporaries
from store.db import DATABASE, open_database
from store.errors import StoreError
from store.ledger import Ledger
from store.shared import MEMBERSHIP, WEIGHTS, read_entry, write_json

TICK_S = 0.2
LOOK_S = 1.0  # between two looks into the stores of the runs that go on
GRACE_S = 20.0  # for a run to end after it was told to end at once
HELD, MISTAKES = 75, (2, 77, 78)  # exit codes of loopd


@dataclass(frozen=True, slots=True)
class Machine:
    """How the machine is divided: so many runs at a time, each with a share of the devices or of the cores."""

    jobs: int
    devices: tuple[str, ...] = ()  # of each slot, as CUDA_VISIBLE_DEVICES has them; none on a CPU
    num_threads: int | None = None

    def environment(self, slot: int) -> dict[str, str]:
        """What a run in this slot is told."""
        return {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]} if self.devices else {}


def machine_for(experiment: Experiment, jobs: int | None = None) -> Machine:
    """`jobs`, else the file's, else one per GPU or one. A run that uses several GPUs gets as many."""
    configs = [run.config for run in experiment.runs]
    wanted = jobs or experiment.jobs
    names = [name for name, _ in visible_devices()] if any(one.engine.device != "cpu" for one in configs) else []
    if not names:
        jobs = wanted or 1
        cores = len(os.sched_getaffinity(0))
        return Machine(jobs, (), max(1, cores // jobs) if jobs > 1 else None)
    engines = [one.engine for one in configs]
    each = max(max(e.gpus_per_engine * (e.num_engines or 1), e.num_training_processes) for e in engines)
    groups = [",".join(names[start : start + each]) for start in range(0, len(names) - each + 1, each)]
    return Machine(wanted or max(1, len(groups)), tuple(groups or [",".join(names)]))


@dataclass(frozen=True, slots=True)
class Standing:
    """A run as its store has it, in a few numbers."""

    decided: int = 0
    kept: tuple[str, ...] = ()  # "kept" or "rolled back" by round
    progress: tuple[object, ...] = ()  # changes whenever anything is finished
    held_by: str | None = None
    reason: str | None = None


def standing_of(run: ExperimentRun) -> Standing:
    """How far a run is. A store that is not there or cannot be read has not begun."""
    try:
        db = open_database(run.run_dir / DATABASE, read_only=True)
    except StoreError:
        return Standing()
    try:
        ledger = Ledger(db)
        found = ledger.run()
        if found is None:
            return Standing()
        control, last = ledger.control(found.id), ledger.last_round(found.id)
        verdicts = ledger.last_verdicts(found.id, 1000)
        return Standing(
            found.num_kept + found.num_rolled_back,
            tuple("kept" if verdict == "keep" else "rolled back" for verdict in verdicts),
            (found.num_completions, len(verdicts), last.number if last else 0, last.stage if last else ""),
            control.held_by,
            control.hold_reason or found.reason,
        )
    except StoreError:
        return Standing()
    finally:
        db.close()


@dataclass(slots=True)
class Child:
    """A run and, while it goes on, its process."""

    run: ExperimentRun
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    num_deaths: int = 0  # in a row, without anything finished in between
    not_before: float = 0.0  # monotonic
    standing: Standing = field(default_factory=Standing)
    said: str = ""  # the last thing of its kind: a pause, or a lock
    told: bool = False  # to end


@dataclass(slots=True)
class Outcome:
    """How it ended: what failed and why, what was stopped by hand, and whether all of it was."""

    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    interrupted: bool = False


class Supervisor:
    """Runs an experiment to its end, or to the first signal. Holds the experiment's directory."""

    def __init__(self, experiment: Experiment, machine: Machine, say: Callable[[str], None], stop: Stop) -> None:
        self.experiment, self.machine, self.say, self.stop = experiment, machine, say, stop
        self.children = [Child(run) for run in experiment.runs]
        self.outcome = Outcome()
        self._looked = 0.0
        self._partners = partners_of(experiment)

    def run(self) -> Outcome:
        """LockedError if somebody else runs it already."""
        with locked(self.experiment.directory):
            sweep_temporaries(self.experiment.directory / SHARED)
            prepare(self.experiment, self.machine)
            waiting: deque[Child] = deque()
            for child in self.children:
                child.standing = standing_of(child.run)
                if child.standing.decided < self.experiment.rounds:
                    waiting.append(child)
            if num_done := len(self.children) - len(waiting):
                self.say(f"{num_done} of {len(self.children)} runs are done already")
            try:
                self._until_done(waiting)
            finally:
                self._end_at_once()
                with contextlib.suppress(OSError, StoreError):
                    self._prune()
        self.outcome.interrupted = self.stop.asked
        return self.outcome

    def _until_done(self, waiting: deque[Child]) -> None:
        while True:
            going = [child for child in self.children if child.process is not None]
            for child in going:
                if child.process is not None and child.process.poll() is not None:
                    self._ended(child, waiting)
            if time.monotonic() - self._looked >= LOOK_S:
                self._looked = time.monotonic()
                for child in self.children:
                    if child.process is not None:
                        self._look(child)
            going = [child for child in self.children if child.process is not None]
            if self.stop.asked:
                if not going:
                    return
                for child in going:
                    self._tell(child)
            elif not waiting and not going:
                return
            else:
                for _ in range(len(waiting)):
                    if len(going) >= self.machine.jobs:
                        break
                    child = waiting.popleft()
                    if not self._start(child, going):
                        waiting.append(child)
                    going = [one for one in self.children if one.process is not None]
            self.stop.check()
            time.sleep(TICK_S)

    def _start(self, child: Child, going: list[Child]) -> bool:
        """Start its process; False if that has to wait."""
        run = child.run
        if time.monotonic() < child.not_before:
            return False
        if (pid := holder(run.run_dir)) is not None:
            self._once(child, f"{run.name}: process {pid} holds this run; it is waited for")
            return False
        if standing_of(run).held_by == "failure" and not _release(run):
            return False
        (run.directory / FAILURE).unlink(missing_ok=True)
        slots = {one.slot for one in going}
        child.slot = next(slot for slot in range(len(slots) + 1) if slot not in slots)
        command = [sys.executable, "-P", "-m", "loop.daemon", "--quiet", "--config", str(run.path)]
        myself = os.getpid()

        def die_with_us() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != myself:
                os._exit(0)

        with _errors(run).open("wb") as errors:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us, and we tell it
                cwd="/",
                env=_environment() | self.machine.environment(child.slot),
                preexec_fn=die_with_us,
            )
        if not child.num_deaths:
            where = (
                f" on GPU {self.machine.environment(child.slot)['CUDA_VISIBLE_DEVICES']}"
                if self.machine.devices
                else ""
            )
            self.say(f"{run.name}: begins{where}" if not child.standing.progress else f"{run.name}: goes on{where}")
        child.told, child.said = False, ""
        return True

    def _ended(self, child: Child, waiting: deque[Child]) -> None:
        assert child.process is not None
        code, child.process, run = child.process.returncode, None, child.run
        before = child.standing.progress
        self._look(child)
        if child.standing.decided >= self.experiment.rounds:
            self.say(f"{run.name}: done, {child.standing.kept.count('kept')} of {child.standing.decided} rounds kept")
            return
        if run.name in self.outcome.failed or (self.stop.asked and code in (0, HELD, -signal.SIGTERM)):
            return
        if code == HELD:
            waiting.append(child)
            return
        if code == 0:
            self.outcome.stopped.append(run.name)
            self.say(f"{run.name}: ended after {child.standing.decided} rounds: {child.standing.reason or 'stopped'}")
            return
        said = _last_line(_errors(run)) or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        child.num_deaths = child.num_deaths + 1 if child.standing.progress == before else 1
        wait_s = None if code in MISTAKES else DEAD_RUN.wait_s(child.num_deaths)
        if wait_s is None:
            self._fail(child, said)
        elif not self.stop.asked:
            child.not_before = time.monotonic() + wait_s
            self.say(f"{run.name}: its process died ({said}); started again{f' in {wait_s:g} s' if wait_s else ''}")
            waiting.appendleft(child)

    def _look(self, child: Child) -> None:
        run, before = child.run, child.standing
        child.standing = now = standing_of(run)
        for number in range(before.decided + 1, now.decided + 1):
            self.say(
                f"{run.name}: round {number} of {self.experiment.rounds} {now.kept[number - 1 - now.decided + len(now.kept)]}"
            )
        if now.decided != before.decided:
            with contextlib.suppress(OSError, StoreError):
                self._prune()
        if child.process is None or now.held_by is None:
            return
        if now.held_by == "failure":
            self._fail(child, now.reason or "it failed")
            self._tell(child)
        else:
            self._once(
                child, f"{run.name}: paused: {now.reason or 'by hand'}; `loopctl resume --config {run.path}` goes on"
            )

    def _fail(self, child: Child, why: str) -> None:
        if child.run.name in self.outcome.failed:
            return
        self.outcome.failed[child.run.name] = why
        self.say(f"{child.run.name}: failed: {why}")
        with contextlib.suppress(OSError):
            (child.run.directory / FAILURE).write_text(f"{why}\n", encoding="utf-8")

    def _once(self, child: Child, text: str) -> None:
        if child.said != text:
            child.said = text
            self.say(text)

    def _tell(self, child: Child) -> None:
        """To stop at its next safe point."""
        if child.process is not None and not child.told:
            child.told = True
            child.process.send_signal(signal.SIGTERM)

    def _end_at_once(self) -> None:
        """Whatever happens to us, no child is left."""
        left = [child.process for child in self.children if child.process is not None]
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for process in left:
                if process.poll() is None:
                    process.send_signal(signum)
            deadline = time.monotonic() + (GRACE_S if signum == signal.SIGTERM else 5.0)
            while any(process.poll() is None for process in left) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _prune(self) -> None:
        """Let the shared weights go that no run can want any more, and all of them when the disk gets short."""
        shared, decided = self.experiment.directory / SHARED, {c.run.name: c.standing.decided for c in self.children}
        reserve = 2 * max(run.config.storage.min_free_bytes for run in self.experiment.runs)
        short = shutil.disk_usage(shared).free < reserve
        for weights in shared.glob(f"*{WEIGHTS}"):
            entry = read_entry(shared / f"{weights.name.removesuffix(WEIGHTS)}.json")
            if entry is not None and not short:
                name, number = f"{entry['ran_in']['arm']}/seed-{entry['ran_in']['seed']}", entry["round"]
                partners = self._partners.get(name, ([], []))  # none of an arm that the file has no more
                if any(decided[other] < number for other in partners[number > 1]):
                    continue
            remove_directory(weights)


def prepare(experiment: Experiment, machine: Machine) -> None:
    """Write what each run is started with: its loop.toml, and how it finds what others have done."""
    make_directory(experiment.directory / SHARED)
    make_directory(experiment.directory / LOGS)
    kept = rounds_kept(experiment)
    for run in experiment.runs:
        make_directory(run.run_dir)
        text = run_text(run, experiment.base_dir, machine.num_threads)
        if not run.path.exists() or run.path.read_text(encoding="utf-8") != text:
            partial = run.path.with_suffix(".partial")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, run.path)
        membership = {
            "experiment": experiment.name,
            "arm": run.arm,
            "seed": run.seed,
            "shared": os.path.relpath(experiment.directory / SHARED, run.run_dir),
            "run_dir": os.path.relpath(run.run_dir, experiment.directory / SHARED),
            "keeps_rounds": kept[run.name],
        }
        if read_entry(run.run_dir / MEMBERSHIP) != membership:
            write_json(run.run_dir / MEMBERSHIP, membership)


def partners_of(experiment: Experiment) -> dict[str, tuple[list[str], list[str]]]:
    """By run: the others that may turn out to train the same in round 1, and those that may later.

    Both have its seed and settings. Before there are earlier completions data policies hardly differ, afterwards they do.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    for place, more in enumerate((set[str](), {"collect", "after_rollback"})):
        groups: dict[str, list[str]] = {}
        for run in experiment.runs:
            include = {"model", "prompts", "sampling", "training", "engine"} | more
            settings = [run.seed, run.config.model_dump(mode="json", include=include)]
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run.name)
        for names in groups.values():
            for name in names:
                found.setdefault(name, ([], []))[place].extend(other for other in names if other != name)
    return found


def rounds_kept(experiment: Experiment) -> dict[str, int]:
    """By run: of how many rounds, the first ones, its checkpoints stay for others."""
    return {
        name: experiment.rounds if later else 1 if first else 0
        for name, (first, later) in partners_of(experiment).items()
    }


def _release(run: ExperimentRun) -> bool:
    """Take back the hold that a failure left: who runs the experiment again wants it tried again."""
    try:
        with locked(run.run_dir):
            db = open_database(run.run_dir / DATABASE)
            try:
                ledger = Ledger(db)
                if found := ledger.run():
                    ledger.release_run(found.id)
            finally:
                db.close()
    except LockedError:
        return False
    except (LoopError, StoreError):
        pass  # its own process says what is wrong
    return True


def _environment() -> dict[str, str]:
    """Ours, without what a service manager has told us alone."""
    ours = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
    return {name: value for name, value in found_again().items() if name not in ours}


def _errors(run: ExperimentRun) -> Path:
    """What its process says on standard error."""
    return run.directory / "loopd.err"


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""
