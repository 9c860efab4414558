"""vLLM for real, on a CPU: the contract over all samplers, the proof of weights, and what a change of weights may do.

Runs where vLLM is installed (`make test-vllm`); each engine takes ten seconds or more to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` installs it")

from test_engines_samplers import (  # noqa: F401  (the contract: they run over this module's pair)
    GREEDY,
    HOT,
    SETTINGS,
    ask,
    chat,
    no_progress,
    teacher_forced,
    test_a_completion_does_not_depend_on_its_batch,
    test_a_stop_string_ends_a_completion,
    test_bare_text_and_no_requests,
    test_reasons_and_limits,
    test_same_requests_same_completions,
    test_seeds_make_the_difference_and_greedy_knows_none,
    test_the_tokenizer_has_one_hash,
    test_what_can_never_fit_is_refused_by_name,
)
from tiny import make_tiny_model

from loop.engines.base import CheckpointRef, Sampler
from loop.worker import RemoteSampler, Worker

Start = Callable[..., RemoteSampler]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointRef]:
    """Two checkpoints of one shape with other weights: "one" and "other"."""
    root = tmp_path_factory.mktemp("models")
    paths = {
        "one": make_tiny_model(root / "one", head_size=32),
        "other": make_tiny_model(root / "other", head_size=32, seed=1),
    }
    return {name: CheckpointRef(sha256=name, path=path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[RemoteSampler] = []
    log = tmp_path_factory.mktemp("logs") / "sampler.log"

    def start(checkpoint: CheckpointRef, **changed: Any) -> RemoteSampler:
        init = {
            "op": "load_sampler",
            "checkpoint": checkpoint.model_dump(mode="json"),
            "settings": SETTINGS | {"sampler": "vllm", "kv_cache_bytes": 64 << 20} | changed,
        }
        worker = Worker(init, log_file=log, stall_timeout_s=300, progress=no_progress, tag="sampler")
        started.append(RemoteSampler(worker))
        return started[-1]

    yield start
    for sampler in started:
        sampler.close()


@pytest.fixture(scope="module")
def pair(models: dict[str, CheckpointRef], start: Start) -> tuple[Sampler, Sampler]:
    return start(models["one"]), start(models["one"], batch_size=7)
