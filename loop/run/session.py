"""An open run: the lock, the store, the yardsticks, the engines. What `run_round` works with, and how a run begins.

Everything that can be wrong with the configuration is found here, before any model is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig
from loop.config.same_run import as_begun, config_sha256, differences, resolved
from loop.config.settings import Suite as SuiteConfig
from loop.engines.base import CheckpointRef, Prober, Sampler
from loop.errors import ConfigError, LockedError, LoopError, PermissionDenied
from loop.grading.grader import Grader
from loop.grading.problems import Problem as GradingProblem
from loop.grading.problems import load_suite
from loop.inputs import check_inputs
from loop.prompts.sources import load_prompts, load_tests
from loop.run.base_model import base_model
from loop.stages.evaluating import yardstick
from loop.workers.pool import Pool
from loop.workers.up import Engines, Watch
from loop.workers.worker import RemoteSampler
from policies.policy import Policy
from store.canonical import sha256_of
from store.checkpoints import (
    hash_directory,
    make_directory,
    manifest_sha256,
    manifest_size_bytes,
    quarantine,
    stamps,
    sweep_temporaries,
    verify,
)
from store.corpus import Corpus
from store.db import open_database
from store.errors import DamagedCheckpoint, StoreError
from store.failpoints import reach
from store.ledger import Ledger
from store.records import Checkpoint, Problem, Prompt, Round, Run, Suite
from store.shared import Registry, registry_of
from store.verify import write_high_water

DATABASE = "loop.db"
CHECKPOINTS = "checkpoints"
OTHER_BASE = "the base model has changed since the run began"


class LostWeights(LoopError):
    """Weights that a round made are missing or damaged; what was left of them is set aside."""

    def __init__(self, message: str, checkpoint: Checkpoint) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One suite of the configuration, as it is asked and as it is graded."""

    config: SuiteConfig
    row: Suite
    problems: list[Problem]
    graded_as: dict[str, GradingProblem]  # by prompt id
    prompts: dict[str, Prompt]  # by prompt id, in the suite's order


@dataclass(slots=True)
class Session:
    """An open run. The store says where it is; this only holds what is needed to go on."""

    loaded: LoadedConfig
    ledger: Ledger
    corpus: Corpus
    run_id: str
    engines: Engines
    grader: Grader
    policy: Policy
    prompts: list[Prompt]
    suites: list[Yardstick]
    watch: Watch
    tests: dict[str, GradingProblem] = field(default_factory=dict)  # of prompts, by prompt id, if a data policy asks
    guide: Callable[[Round | None], None] = field(default=lambda round: None)
    wait: Callable[[float], None] = field(default=time.sleep)  # seconds, before a stage is tried again
    verified: dict[str, Any] = field(default_factory=dict)  # the stamps of checkpoints when they were read whole
    shared: Registry | None = None  # what other runs of its experiment have done, if it belongs to one

    def safe_point(self, round: Round | None = None) -> None:
        """Everything so far is stored. What the guide raises here leaves a round that can be resumed.

        Between two stages it is told the round, between two batches of one stage nothing.
        """
        reach("round.safe_point")
        self.guide(round)

    def index_texts(self) -> None:
        """Let what was written be found by its text. A round does not fail because that cannot be done."""
        try:
            for _ in self.corpus.index_texts():
                self.engines.pulse()
        except StoreError as error:
            self.watch.note(f"the full-text index could not be brought up to date: {error}")

    @property
    def decider(self) -> Yardstick:
        """The suite that decides."""
        name = self.loaded.config.decide.suite
        return next(suite for suite in self.suites if suite.config.name == name)

    @property
    def run(self) -> Run:
        """The run as the ledger has it now."""
        run = self.ledger.run(self.loaded.config.name)
        assert run is not None
        return run

    def sampler(self, sha256: str) -> Sampler:
        """A sampler with these weights: the one that is up already, or a new one over verified weights."""
        return self._serving(sha256)

    def prober(self, sha256: str) -> Prober:
        """A prober with these weights: the worker that samples from them."""
        return self._serving(sha256)

    def _serving(self, sha256: str) -> RemoteSampler | Pool:
        return self.engines.serving(sha256) or self.engines.sampler(self.weights(sha256))

    def weights(self, sha256: str) -> CheckpointRef:
        """A checkpoint, every byte of it verified, again whenever its files were touched since.

        A damaged one is set aside, and the error says what to do.
        """
        row = self.ledger.checkpoint(sha256)
        assert row is not None, sha256
        path = self.loaded.run_dir / row.path  # an absolute path stays as it is
        try:
            stamped = stamps(path, row.manifest)
            if not stamped or self.verified.get(sha256) != stamped:  # nobody has written to it since it was read
                verify(path, row.manifest)
                self.verified[sha256] = stamped
        except DamagedCheckpoint as damage:
            if not row.round:
                raise LoopError(f"{OTHER_BASE}: {damage}; restore it") from None
            self.ledger.set_checkpoint_state(sha256, "quarantined")
            aside = f" (set aside as {quarantine(path)})" if path.exists() else ""
            raise LostWeights(f"checkpoint of round {row.round} is damaged: {damage}{aside}", row) from None
        base = self.weights(row.base) if row.base else None
        return CheckpointRef(sha256=sha256, path=path, base_path=base.path if base else None)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory as its only writer. LockedError names who has it; the lock dies with its process."""
    try:
        make_directory(run_dir)
        descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        raise PermissionDenied(f"{run_dir}: permission denied; choose a run_dir that this user can write to") from None
    except OSError as error:
        raise LoopError(f"{error.filename or run_dir}: {error.strerror}; choose another run_dir or make room") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise LockedError(f"{run_dir}: process {holder} holds this run; wait for it or stop it first") from None
        os.pwrite(descriptor, words := f"{os.getpid():<20}\n".encode(), 0)  # in place, which needs no room
        os.ftruncate(descriptor, len(words))
        _may_write(run_dir)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_session(loaded: LoadedConfig, watch: Watch) -> Iterator[Session]:
    """Everything checked, the run created or found, nothing loaded yet. On the way out every worker is ended."""
    config = loaded.config
    if mistakes := check_inputs(loaded):
        raise ConfigError("\n".join(mistakes))
    prompts = load_prompts(config.prompts, config.model, loaded.base_dir)
    tests = load_tests(config.prompts, config.model, loaded.base_dir) if config.wants_tests else {}
    suites = [_yardstick(loaded, suite) for suite in config.suites]
    grader = Grader(
        config.grading.sandbox,
        config.grading.timeout_s,
        config.grading.memory_bytes,
        config.grading.num_workers,
        config.grading.timeout_factor,
    )
    with locked(loaded.run_dir):
        db = open_database(loaded.run_dir / DATABASE)
        ledger, corpus = Ledger(db), Corpus(db)
        engines = Engines(loaded, watch)
        try:
            sweep_temporaries(loaded.run_dir / CHECKPOINTS)
            if begun := ledger.run():
                loaded = replace(loaded, config=as_begun(loaded.config, begun.config))
            run = _run(loaded, ledger, corpus, prompts, tests, suites, watch, engines.pulse)
            policy = loaded.config.decide.policy()
            shared = registry_of(loaded.run_dir)
            yield Session(
                loaded, ledger, corpus, run.id, engines, grader, policy, prompts, suites, watch, tests, shared=shared
            )
        finally:
            engines.close()
            with contextlib.suppress(StoreError, OSError):  # what went wrong before matters more
                write_high_water(db, loaded.run_dir)
            db.close()


def _yardstick(loaded: LoadedConfig, suite: SuiteConfig) -> Yardstick:
    found = load_suite(suite.source, suite.limit, loaded.base_dir)
    row, problems, prompts = yardstick(found, suite, loaded.config)
    graded_as: dict[str, GradingProblem] = {}
    for prompt, problem in zip(prompts, found.problems, strict=True):
        if twin := graded_as.get(prompt.id):
            raise ConfigError(
                f"{suite.source}: problems {twin.task_id!r} and {problem.task_id!r} ask the same question; remove one"
            )
        graded_as[prompt.id] = problem
    return Yardstick(suite, row, problems, graded_as, {prompt.id: prompt for prompt in prompts})


def _inputs(prompts: list[Prompt], tests: dict[str, GradingProblem], suites: list[Yardstick]) -> dict[str, Any]:
    """What the configuration's names stand for, by content: a file that changes makes another run."""
    found: dict[str, Any] = {
        "prompts": sha256_of([prompt.id for prompt in prompts]),
        "suites": {suite.config.name: suite.row.sha256 for suite in suites},
    }
    if tests:
        found["tests"] = sha256_of({prompt_id: problem.content() for prompt_id, problem in tests.items()})
    return found


def _run(
    loaded: LoadedConfig,
    ledger: Ledger,
    corpus: Corpus,
    prompts: list[Prompt],
    tests: dict[str, GradingProblem],
    suites: list[Yardstick],
    watch: Watch,
    pulse: Callable[[], None],
) -> Run:
    """The run of this directory: found and compared with the configuration, or begun."""
    settings, inputs = resolved(loaded.config), _inputs(prompts, tests, suites)
    run = ledger.run()
    if run is not None:
        _same_run(run, settings, inputs, loaded)
        base = ledger.checkpoint(run.base_checkpoint)
        if base and not Path(base.path).exists():  # a cache was cleared, or the run has been moved
            directory = base_model(loaded.config, loaded.base_dir, loaded.run_dir, pulse)
            if str(directory) != base.path:
                try:
                    verify(directory, base.manifest)
                except DamagedCheckpoint as damage:
                    raise LoopError(f"{OTHER_BASE}: {damage}; restore it") from None
                ledger.move_checkpoint(base.sha256, str(directory))
        return run
    if any((loaded.run_dir / CHECKPOINTS).glob("round-*")):
        raise LoopError(
            f"{loaded.run_dir / DATABASE}: holds no run, but {CHECKPOINTS}/ beside it holds the weights of one; "
            "put a backup back, or set another run_dir"
        )
    watch.stage(0, "preparing", loaded.config.model.source)
    directory = base_model(loaded.config, loaded.base_dir, loaded.run_dir, pulse)
    manifest = hash_directory(directory)
    base = Checkpoint(
        sha256=manifest_sha256(manifest),
        run_id="",
        round=0,
        kind="full",
        path=str(directory),
        parent=None,
        base=None,
        size_bytes=manifest_size_bytes(manifest),
        manifest=manifest,
        origin={"source": loaded.config.model.source, "revision": loaded.config.model.revision},
    )
    corpus.add_prompts(prompts)
    for suite in suites:
        corpus.add_prompts(suite.prompts.values())
        corpus.add_suite(suite.row, suite.problems)
    identity = sha256_of([config_sha256(loaded.config), inputs])
    return ledger.create_run(loaded.config.name, settings | {"inputs": inputs}, identity, loaded.config.seed, base)


def _may_write(run_dir: Path) -> None:
    """Say before hours of sampling that a part of the run directory belongs to somebody else."""
    for path in (run_dir, *(run_dir / name for name in (DATABASE, CHECKPOINTS, "logs"))):
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionDenied(f"{path}: permission denied; make it writable for this user, or set another run_dir")


def _same_run(run: Run, settings: dict[str, Any], inputs: dict[str, Any], loaded: LoadedConfig) -> None:
    changed = differences({key: value for key, value in run.config.items() if key != "inputs"}, settings)
    before = run.config["inputs"]
    if not changed and (before["prompts"], before.get("tests")) != (inputs["prompts"], inputs.get("tests")):
        what = "prompts" if before["prompts"] != inputs["prompts"] else "tests of the prompts"
        changed = [f"the {what} of {loaded.config.prompts.source} are not those that the run began with"]
    if not changed:
        changed = [
            f"suite {name} is not the one that the run began with (a problem, the prompt format or a split changed)"
            for name, sha256 in inputs["suites"].items()
            if before["suites"].get(name) != sha256
        ]
    if changed:
        raise ConfigError(
            f"{loaded.run_dir} belongs to another configuration: {'; '.join(changed)}; "
            "change it back, or set another run_dir"
        )
