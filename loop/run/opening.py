"""Opening a run: the lock is taken, the run is created or continued, and nothing is loaded yet.

Everything that can be wrong with the configuration or with what it names is found here, before any model is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from loop.config.loading import LoadedConfig
from loop.config.same_run import config_sha256, differences, resolved, with_stored_gates
from loop.errors import ConfigError, LoopError
from loop.fitting.fit import refuse_what_cannot_fit
from loop.grading.grader import Grader
from loop.inputs import BUILT_IN_MODEL, Inputs, read_inputs
from loop.run.base_model import base_model
from loop.run.session import OTHER_BASE, Session
from loop.stages.evaluating import Yardstick, yardstick
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
from store.hashing import HASHED, Hasher
from store.ledger import Ledger
from store.records import Checkpoint, Json, Run
from store.verify import write_high_water


@contextlib.contextmanager
def open_session(
    loaded: LoadedConfig, watch: Watch, begins: Callable[[Inputs], None] = lambda inputs: None, trains: bool = True
) -> Iterator[Session]:
    """Everything checked, the run created or continued, nothing loaded yet. On the way out every worker is ended.

    `begins` is called when a new run is about to begin and nothing of the user's is wrong any more. `trains`: whether there must be
    room for a fine-tune.
    """
    inputs, config = read_inputs(loaded, fetch=True), loaded.config
    if trains:
        refuse_what_cannot_fit(loaded, inputs.prompts)
    suites = [yardstick(suite, table, config) for table, suite in zip(config.suites, inputs.suites, strict=True)]
    table = config.grading
    grader = Grader(table.sandbox, table.timeout_s, table.memory_bytes, table.num_workers, table.timeout_factor)
    with locked(loaded.run_dir):
        db = open_database(loaded.run_dir / DATABASE)
        ledger, corpus = Ledger(db), Corpus(db)
        engines = Engines(loaded, watch)
        hasher = Hasher(engines.pulse, loaded.run_dir / HASHED)
        try:
            sweep_temporaries(loaded.run_dir / CHECKPOINTS)
            run, content = ledger.run(), _content(inputs, suites)
            if run is None:
                base = _base(loaded, engines, inputs, hasher, begins, trains)
                corpus.add_prompts(inputs.prompts)
                for suite in suites:
                    corpus.add_prompts(suite.prompts.values())
                    corpus.evaluations.add_suite(suite.row, suite.problems)
                identity, settings = sha256_of([config_sha256(config), content]), resolved(config) | {"inputs": content}
                run = ledger.create_run(config.name, settings, identity, config.seed, base)
            else:
                loaded = replace(loaded, config=with_stored_gates(loaded.config, run.config))
                _continue(run, ledger, engines, hasher, loaded, content)
            policy = loaded.config.decide.policy()
            yield Session(
                loaded, ledger, corpus, run.id, engines, engines.grader(grader), policy, inputs.prompts, suites, watch,
                inputs.tests, hasher=hasher,
            )  # fmt: skip
        finally:
            engines.close()
            with contextlib.suppress(StoreError, OSError):  # what went wrong before matters more
                write_high_water(db, loaded.run_dir)
            db.close()


def _content(inputs: Inputs, suites: list[Yardstick]) -> Json:
    """What the configuration's names stand for, by content: a file that changes makes another run."""
    content: Json = {"prompts": sha256_of([prompt.id for prompt in inputs.prompts])}
    content["suites"] = {suite.config.name: suite.row.sha256 for suite in suites}
    if inputs.tests:
        content["tests"] = sha256_of({prompt_id: problem.content() for prompt_id, problem in inputs.tests.items()})
    return content


def _continue(run: Run, ledger: Ledger, engines: Engines, hasher: Hasher, loaded: LoadedConfig, content: Json) -> None:
    """ConfigError if the run began with other settings or inputs, LoopError if its base model is another by now."""
    _same_run(run, resolved(loaded.config), content, loaded)
    base = ledger.checkpoints.get(run.base_checkpoint)
    if base and not Path(base.path).exists():  # a cache was cleared, or the run has been moved
        directory = base_model(loaded.config, loaded.base_dir, loaded.run_dir, engines.pulse)
        if str(directory) != base.path:
            try:
                verify(directory, base.manifest, hasher)
            except DamagedCheckpoint as damage:
                raise LoopError(f"{OTHER_BASE}: {damage}; restore it") from None
            ledger.checkpoints.move(base.sha256, str(directory))


def _base(
    loaded: LoadedConfig,
    engines: Engines,
    inputs: Inputs,
    hasher: Hasher,
    begins: Callable[[Inputs], None],
    trains: bool,
) -> Checkpoint:
    """The base of a new run. LoopError where the run directory holds the weights of another one."""
    if any((loaded.run_dir / CHECKPOINTS).glob("round-*")):
        raise LoopError(
            f"{loaded.run_dir / DATABASE}: holds no run, but {CHECKPOINTS}/ beside it holds the weights of one; "
            "put a backup back, or set another run_dir"
        )
    model = loaded.config.model
    if model.source == BUILT_IN_MODEL:  # it may be converted now, for half a minute
        begins(inputs)
    engines.watch.stage(0, "preparing", model.source)
    directory = base_model(loaded.config, loaded.base_dir, loaded.run_dir, engines.pulse)
    if model.source != BUILT_IN_MODEL:
        if trains:
            refuse_what_cannot_fit(loaded, inputs.prompts)  # a model of the hub is known only now
        begins(inputs)
    manifest = hash_directory(directory, hasher)
    return Checkpoint(
        sha256=manifest_sha256(manifest),
        run_id="",
        round=0,
        kind="full",
        path=str(directory),
        parent=None,
        base=None,
        size_bytes=manifest_size_bytes(manifest),
        manifest=manifest,
        origin={"source": model.source, "revision": model.revision},
    )


def _same_run(run: Run, settings: Json, content: Json, loaded: LoadedConfig) -> None:
    changed = differences({key: value for key, value in run.config.items() if key != "inputs"}, settings)
    before = run.config["inputs"]
    for key, what in (("prompts", "prompts"), ("tests", "tests of the prompts")):
        if not changed and before.get(key) != content.get(key):
            changed = [f"the {what} of {loaded.config.prompts.source} are not those that the run began with"]
    changed = changed or [
        f"suite {name} is not the one that the run began with (a problem, the prompt format or a split changed)"
        for name, sha256 in content["suites"].items()
        if before["suites"].get(name) != sha256
    ]
    if changed:
        raise ConfigError(
            f"{loaded.run_dir} belongs to another configuration: {'; '.join(changed)}; "
            "change it back, or set another run_dir"
        )
