"""The slow half of `loopctl doctor` does for real what a run will need."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loop.errors import LoopError
from loop.words import one_line
from store.durable import fsync
from store.errors import StoreError

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig


def try_everything(loaded: LoadedConfig) -> Iterator[tuple[str, bool, str, str]]:
    """Do what a run needs, beside the run. Yields each check's name, whether it works, the words and the remedy."""
    loaded.run_dir.mkdir(parents=True, exist_ok=True)
    for name, attempt, remedy in (
        ("sync", _sync, "set run_dir to a local disk"),
        ("database", _database, "set run_dir to a local disk, not a network file system"),
        ("socket", _socket, "set run_dir to a local disk"),
        ("model", _model, "see logs/doctor.log in the run directory; `loopctl config check` checks what it names"),
        ("store", _store, "`loopctl verify` lists all of it; restore a backup"),
    ):
        began = time.monotonic()
        try:
            words, works = attempt(loaded), True
        except (OSError, LoopError, StoreError) as error:
            words, works = one_line(error), False
        yield name, works, f"{words} ({time.monotonic() - began:.1f} s)" if works else words, "" if works else remedy


def _sync(loaded: LoadedConfig) -> str:
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=loaded.run_dir) as place:
        directory, renamed = Path(place) / "tmp", Path(place) / "renamed"
        directory.mkdir()
        with (directory / "file").open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        os.rename(directory, renamed)
        fsync(Path(place))
    return "files and directories can be written, synced and renamed"


def _database(loaded: LoadedConfig) -> str:
    from store.db import open_database, scalar

    with tempfile.TemporaryDirectory(prefix="doctor-", dir=loaded.run_dir) as place:
        path = Path(place) / "loop.db"
        with contextlib.closing(open_database(path)), contextlib.closing(open_database(path, read_only=True)) as reader:
            number = scalar(reader, "SELECT max(number) FROM schema_migrations")
    return f"a store can be made and read beside its writer, schema {number}"


def _socket(loaded: LoadedConfig) -> str:
    from loop.daemon.control import Control, ask

    with (
        tempfile.TemporaryDirectory(prefix="doctor-", dir=loaded.run_dir) as place,
        Control(Path(place), lambda request: request),
    ):
        ask(Path(place), "ping")
    return "commands reach a daemon"


def _model(loaded: LoadedConfig) -> str:
    """Start the sampler with the base model, have it write a few tokens, and end it; of several servers, one by one."""
    from loop.config.samplers import sampler_kind
    from loop.engines.base import CheckpointRef, Request, SamplingParams
    from loop.run.base_model import base_model
    from loop.workers.up import engine_config
    from loop.workers.worker import RemoteSampler, Worker
    from store.checkpoints import hash_directory, manifest_sha256

    path = base_model(loaded.config, loaded.base_dir, loaded.run_dir)
    checkpoint = CheckpointRef(sha256=manifest_sha256(hash_directory(path)), path=path)
    engine, num_tokens = loaded.config.engine, 0
    for url in engine.servers or (None,):
        worker = Worker(
            {"op": "load_sampler", "settings": engine_config(engine).changed(server_url=url), "checkpoint": checkpoint},
            log_file=loaded.run_dir / "logs" / "doctor.log",
            stall_timeout_s=engine.stall_timeout_s,
            progress=lambda done, total: None,
            tag="doctor",
            has_gpu=engine.device != "cpu" and not sampler_kind(engine.sampler).is_elsewhere,
        )
        try:
            request = Request(
                id="doctor", messages=({"role": "user", "content": "Add two numbers."},), prefill="", seed=1
            )
            params = SamplingParams(temperature=1.0, max_new_tokens=4)
            num_tokens += sum(
                len(answer.token_ids) for batch in RemoteSampler(worker).generate([request], params) for answer in batch
            )
        finally:
            worker.end()
    return f"{loaded.config.model.source} wrote {num_tokens} tokens with {engine.sampler}"


def _store(loaded: LoadedConfig) -> str:
    from store.db import open_database
    from store.errors import NoStore
    from store.verify import verify_store

    try:
        with contextlib.closing(open_database(loaded.run_dir / "loop.db", read_only=True)) as db:
            findings = verify_store(db, loaded.run_dir).findings
    except NoStore:
        return "nothing has been run here yet"
    if findings:
        raise LoopError(f"{findings[0].message}{f' and {len(findings) - 1} more' if len(findings) > 1 else ''}")
    return "every hash, sequence and manifest is as it was written"
