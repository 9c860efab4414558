"""Opening a run: the lock is taken, the run is created or continued, and nothing is loaded yet.

Everything that can be wrong with the configuration or with what it names is found here, before any model is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig
from loop.config.same_run import as_begun, config_sha256, differences, resolved
from loop.config.settings import Suite as SuiteConfig
from loop.errors import ConfigError, LoopError
from loop.grading.grader import Grader
from loop.grading.problem import Problem as GradingProblem
from loop.grading.problems import Suite as GradingSuite
from loop.inputs import BUILT_IN_MODEL, Inputs, read_inputs
from loop.run.base_model import base_model
from loop.run.session import OTHER_BASE, Session, Yardstick
from loop.stages.evaluating import yardstick
from loop.system.lock import locked
from loop.workers.up import Engines, Watch
from store.canonical import sha256_of
from store.checkpoints import (
    CHECKPOINTS,
    hash_directory,
    manifest_sha256,
    manifest_size_bytes,
    sweep_temporaries,
    verify,
)
from store.corpus import Corpus
from store.db import DATABASE, open_database
from store.errors import DamagedCheckpoint, StoreError
from store.ledger import Ledger
from store.records import Checkpoint, Prompt, Run
from store.shared import registry_of
from store.verify import write_high_water


@contextlib.contextmanager
def open_session(
    loaded: LoadedConfig, watch: Watch, begins: Callable[[Inputs], None] = lambda inputs: None
) -> Iterator[Session]:
    """Everything checked, the run created or found, nothing loaded yet. On the way out every worker is ended.

    `begins` is called when a new run is about to begin and nothing of the user's is wrong any more.
    """
    inputs, config = read_inputs(loaded, fetch=True), loaded.config
    prompts, tests = inputs.prompts, inputs.tests
    suites = [_yardstick(loaded, *pair) for pair in zip(config.suites, inputs.suites, strict=True)]
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
            run = _run(loaded, ledger, corpus, prompts, tests, suites, watch, engines.pulse, lambda: begins(inputs))
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


def _yardstick(loaded: LoadedConfig, suite: SuiteConfig, found: GradingSuite) -> Yardstick:
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
    begins: Callable[[], None],
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
    if loaded.config.model.source == BUILT_IN_MODEL:  # it may be converted now, for half a minute
        begins()
    watch.stage(0, "preparing", loaded.config.model.source)
    directory = base_model(loaded.config, loaded.base_dir, loaded.run_dir, pulse)
    if loaded.config.model.source != BUILT_IN_MODEL:
        begins()
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
