"""Running an experiment: one process per run, as many at a time as wanted, until all have their rounds.

Each run is an ordinary one with a `loopd` of its own, which minds windows, disk and pauses and ends when the rounds are
done. The supervisor here only starts it, with a share of the machine, and starts it again when it dies. Everything that
matters is in the runs' directories: this process may be killed at any moment, and a new one continues. The runs then stop at
their next safe point, and the new supervisor waits for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loop.errors import LockedError, LoopError
from loop.experiments.facts import FAILURE
from loop.experiments.file import LOGS, SHARED, Experiment, ExperimentRun, run_text
from loop.reading.reader import reader
from loop.system.gpus import visible_devices
from loop.system.lock import holder, locked
from loop.system.ourselves import command, environment
from loop.system.signals import Stop
from loop.system.trees import PR_SET_PDEATHSIG, prctl
from policies.retries import DEAD_RUN
from store.checkpoints import make_directory, remove_directory, sweep_temporaries
from store.db import DATABASE, open_database
from store.durable import written
from store.errors import StoreError
from store.ledger import Ledger
from store.records import DECIDED
from store.shared import MEMBERSHIP, WEIGHTS, read_entry, write_json

ERRORS = "loopd.err"  # beside a run's loop.toml: the standard error of its process
TICK_S = 0.2
LOOK_S = 1.0  # between two looks into the stores of the runs that have a process
GRACE_S = 20.0  # for a run to end after it was told to end at once
HELD, MISTAKES = 75, (2, 77, 78)  # exit codes of loopd: another process holds the run; a user's mistake
OF_A_SERVICE_MANAGER = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")  # meant for this process alone


@dataclass(frozen=True, slots=True)
class Machine:
    """How the machine is divided: `jobs` runs at a time, each with a share of the devices or of the cores.

    `devices`: the GPUs of each slot, as CUDA_VISIBLE_DEVICES names them; empty on a CPU. `num_threads`: the cores of each run;
    None leaves it to the run.
    """

    jobs: int
    devices: tuple[str, ...] = ()
    num_threads: int | None = None

    def environment(self, slot: int) -> dict[str, str]:
        """The environment variables that give a run the devices of a slot."""
        return {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]} if self.devices else {}


def machine_for(experiment: Experiment, jobs: int | None = None) -> Machine:
    """How many runs go at a time (`jobs`, else what the file says, else one for each group of GPUs, else 1), and each one's GPUs."""
    configs = [run.config for run in experiment.runs]
    wanted = jobs or experiment.jobs
    wants_gpu = any(config.engine.device != "cpu" for config in configs)
    names = [name for name, _ in visible_devices()] if wants_gpu else []
    if not names:
        jobs = wanted or 1
        cores = len(os.sched_getaffinity(0))
        return Machine(jobs, (), max(1, cores // jobs) if jobs > 1 else None)
    engines = [config.engine for config in configs]
    each = max(max((e.gpus_per_engine or 1) * (e.num_engines or 1), e.num_training_processes or 1) for e in engines)
    groups = [",".join(names[start : start + each]) for start in range(0, len(names) - each + 1, each)]
    return Machine(wanted or max(1, len(groups)), tuple(groups or [",".join(names)]))


@dataclass(frozen=True, slots=True)
class RunStanding:
    """How far a run has come, by its store.

    `outcomes`: "kept", "carried" or "rolled back" for each round. `progress` differs whenever anything was finished.
    """

    decided: int = 0
    outcomes: tuple[str, ...] = ()
    progress: tuple[object, ...] = ()
    held_by: str | None = None
    reason: str | None = None


def standing_of(run: ExperimentRun) -> RunStanding:
    """How far a run has come; nowhere if its store is missing or cannot be read."""
    try:
        with reader(run.run_dir) as store:
            row, ledger = store.run, store.ledger
            control, last = ledger.control(row.id), ledger.last_round(row.id)
            decided = [round.state for round in ledger.rounds(row.id) if round.state in DECIDED]
            return RunStanding(
                row.num_decided,
                tuple(state.replace("_", " ") for state in decided),
                (row.num_completions, len(decided), last.number if last else 0, last.stage if last else ""),
                control.held_by,
                control.hold_reason or row.reason,
            )
    except (StoreError, LoopError):
        return RunStanding()


@dataclass(slots=True)
class SupervisedRun:
    """A run with its process, while it has any.

    `num_deaths`: in a row, with nothing finished in between. `not_before`: seconds on the monotonic clock. `last_notice`: the last
    pause or lock that was reported, so that each is reported once.
    """

    run: ExperimentRun
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    num_deaths: int = 0
    not_before: float = 0.0
    standing: RunStanding = field(default_factory=RunStanding)
    last_notice: str = ""
    is_told_to_stop: bool = False


class Supervisor:
    """Runs an experiment to its end, or to the first signal. Holds the experiment's directory."""

    def __init__(self, experiment: Experiment, machine: Machine, say: Callable[[str], None], stop: Stop) -> None:
        self.experiment, self.machine, self.say, self.stop = experiment, machine, say, stop
        self.children = [SupervisedRun(run) for run in experiment.runs]
        self.failed: dict[str, str] = {}  # by run, why
        self._looked_at_s = 0.0
        self._partners = partners_of(experiment)

    def run(self) -> dict[str, str]:
        """Which runs failed, and why. LockedError if somebody else runs it already."""
        with locked(self.experiment.directory):
            sweep_temporaries(self.experiment.directory / SHARED)
            prepare(self.experiment, self.machine)
            for child in self.children:
                child.standing = standing_of(child.run)
            waiting = deque(child for child in self.children if child.standing.decided < self.experiment.rounds)
            if num_done := len(self.children) - len(waiting):
                self.say(f"{num_done} of {len(self.children)} runs are done already")
            try:
                self._until_done(waiting)
            finally:
                self._end_at_once()
                self._prune()
        return self.failed

    def _until_done(self, waiting: deque[SupervisedRun]) -> None:
        while True:
            for child in self._with_process():
                if child.process is not None and child.process.poll() is not None:
                    self._ended(child, waiting)
            going = self._with_process()
            if time.monotonic() - self._looked_at_s >= LOOK_S:
                self._looked_at_s = time.monotonic()
                for child in going:
                    self._look(child)
            if not going and (self.stop.asked or not waiting):
                return
            if self.stop.asked:
                for child in going:
                    self._ask_to_stop(child)
            else:
                for _ in range(len(waiting)):
                    if len(self._with_process()) < self.machine.jobs:
                        child = waiting.popleft()
                        if not self._start(child):
                            waiting.append(child)
            self.stop.check()
            time.sleep(TICK_S)

    def _with_process(self) -> list[SupervisedRun]:
        return [child for child in self.children if child.process is not None]

    def _start(self, child: SupervisedRun) -> bool:
        """Start its process; False if that has to wait."""
        run = child.run
        if time.monotonic() < child.not_before:
            return False
        if (pid := holder(run.run_dir)) is not None:
            self._say_once(child, f"{run.name}: process {pid} holds this run; waiting for it to end")
            return False
        if standing_of(run).held_by == "failure" and not _release(run):
            return False
        (run.directory / FAILURE).unlink(missing_ok=True)
        slots = {other.slot for other in self._with_process()}
        child.slot = next(slot for slot in range(len(slots) + 1) if slot not in slots)
        inherited = {name: value for name, value in environment().items() if name not in OF_A_SERVICE_MANAGER}
        share = self.machine.environment(child.slot)
        myself = os.getpid()

        def die_with_us() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != myself:
                os._exit(0)

        with (run.directory / ERRORS).open("wb") as errors:
            child.process = subprocess.Popen(
                command("loop.daemon", "--quiet", "--config", run.path),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which tells its runs
                cwd="/",
                env=inherited | share,
                preexec_fn=die_with_us,
            )
        if not child.num_deaths:
            what = "continues" if child.standing.progress else "begins"
            where = f" on GPU {share['CUDA_VISIBLE_DEVICES']}" if share else ""
            self.say(f"{run.name}: {what}{where}")
        child.is_told_to_stop, child.last_notice = False, ""
        return True

    def _ended(self, child: SupervisedRun, waiting: deque[SupervisedRun]) -> None:
        assert child.process is not None
        code, child.process, run = child.process.returncode, None, child.run
        before = child.standing.progress
        self._look(child)
        now = child.standing
        if now.decided >= self.experiment.rounds:
            self.say(f"{run.name}: done, {now.outcomes.count('kept')} of {now.decided} rounds kept")
            return
        if run.name in self.failed or (self.stop.asked and code in (0, HELD, -signal.SIGTERM)):
            return
        if code == HELD:
            waiting.append(child)
            return
        if code == 0:
            self.say(f"{run.name}: ended after {now.decided} rounds: {now.reason or 'stopped'}")
            return
        last_words = _last_line(run.directory / ERRORS)
        last_words = last_words or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        child.num_deaths = child.num_deaths + 1 if now.progress == before else 1
        wait_s = None if code in MISTAKES else DEAD_RUN.wait_s(child.num_deaths)
        if wait_s is None:
            self._fail(child, last_words)
        elif not self.stop.asked:
            child.not_before = time.monotonic() + wait_s
            when = f" in {wait_s:g} s" if wait_s else ""
            self.say(f"{run.name}: its process died ({last_words}); started again{when}")
            waiting.appendleft(child)

    def _look(self, child: SupervisedRun) -> None:
        run, before = child.run, child.standing
        child.standing = now = standing_of(run)
        for number in range(before.decided + 1, now.decided + 1):
            self.say(f"{run.name}: round {number} of {self.experiment.rounds} {now.outcomes[number - 1 - now.decided]}")
        if now.decided != before.decided:
            self._prune()
        if child.process is None or now.held_by is None:
            return
        if now.held_by == "failure":
            self._fail(child, now.reason or "it failed")
            self._ask_to_stop(child)
        else:
            why = now.reason or "by hand"
            self._say_once(child, f"{run.name}: paused: {why}; `loopctl resume --config {run.path}` continues")

    def _fail(self, child: SupervisedRun, why: str) -> None:
        if child.run.name in self.failed:
            return
        self.failed[child.run.name] = why
        self.say(f"{child.run.name}: failed: {why}")
        with contextlib.suppress(OSError):
            (child.run.directory / FAILURE).write_text(f"{why}\n", encoding="utf-8")

    def _say_once(self, child: SupervisedRun, text: str) -> None:
        if child.last_notice != text:
            child.last_notice = text
            self.say(text)

    def _ask_to_stop(self, child: SupervisedRun) -> None:
        """Have a run stop at its next safe point."""
        if child.process is not None and not child.is_told_to_stop:
            child.is_told_to_stop = True
            child.process.send_signal(signal.SIGTERM)

    def _end_at_once(self) -> None:
        """End every process of ours, whatever happens to the supervisor."""
        left = [child.process for child in self.children if child.process is not None]
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for process in left:
                process.send_signal(signum)  # nothing, where it has ended
            deadline = time.monotonic() + (GRACE_S if signum == signal.SIGTERM else 5.0)
            while any(process.poll() is None for process in left) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _prune(self) -> None:
        """Remove the shared weights that no run can want any more, and all of them when the disk gets short."""
        shared, decided = self.experiment.directory / SHARED, {c.run.name: c.standing.decided for c in self.children}
        reserve = 2 * max(run.config.storage.min_free_bytes for run in self.experiment.runs)
        with contextlib.suppress(OSError, StoreError):
            short = shutil.disk_usage(shared).free < reserve
            for weights in shared.glob(f"*{WEIGHTS}"):
                entry = read_entry(shared / f"{weights.name.removesuffix(WEIGHTS)}.json")
                if entry is not None and not short:
                    name, number = f"{entry['ran_in']['arm']}/seed-{entry['ran_in']['seed']}", entry["round"]
                    partners = self._partners.get(name, ([], []))  # none where the file no longer has this arm
                    if any(decided[other] < number for other in partners[number > 1]):
                        continue
                remove_directory(weights)


def prepare(experiment: Experiment, machine: Machine) -> None:
    """Write what each run starts with: its loop.toml, and where it finds what others have done."""
    make_directory(experiment.directory / SHARED)
    make_directory(experiment.directory / LOGS)
    kept = rounds_kept(experiment)
    for run in experiment.runs:
        make_directory(run.run_dir)
        text = run_text(run, experiment.base_dir, machine.num_threads)
        if not run.path.exists() or run.path.read_text(encoding="utf-8") != text:
            with written(run.path) as file:
                file.write(text.encode())
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
    """For each run the others that may turn out to train the same in round 1, and those that may in later rounds.

    Both have its seed and settings. Data policies differ only once there are earlier completions, hence two lists.
    """
    partners: dict[str, tuple[list[str], list[str]]] = {}
    for place, more in enumerate((set[str](), {"collect", "after_rollback"})):
        groups: dict[str, list[str]] = {}
        for run in experiment.runs:
            include = {"model", "prompts", "sampling", "training", "engine"} | more
            settings = [run.seed, run.config.model_dump(mode="json", include=include)]
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run.name)
        for names in groups.values():
            for name in names:
                partners.setdefault(name, ([], []))[place].extend(other for other in names if other != name)
    return partners


def rounds_kept(experiment: Experiment) -> dict[str, int]:
    """For each run, of how many of its first rounds the weights stay in `shared/` for other runs."""
    partners = partners_of(experiment)
    return {name: experiment.rounds if later else min(1, len(first)) for name, (first, later) in partners.items()}


def _release(run: ExperimentRun) -> bool:
    """Release the hold that a failure left, because running the experiment again means to try again; False if it is locked."""
    try:
        with locked(run.run_dir), contextlib.closing(open_database(run.run_dir / DATABASE)) as db:
            ledger = Ledger(db)
            if row := ledger.run():
                ledger.release_run(row.id)
    except LockedError:
        return False
    except (LoopError, StoreError):
        pass  # its own process says what is wrong
    return True


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
    return ""
