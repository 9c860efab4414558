"""Engines and workers as tests start them: settings, requests, and samplers over one checkpoint in process and remote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop.config.settings import Engine
from loop.engines.base import CheckpointRef, EngineConfig, Generated, Request, Sampler, SamplingParams
from loop.prompts.templates import ask as ask_for
from loop.workers.up import engine_config
from loop.workers.worker import RemoteSampler, Worker
from tests.support.tiny import FUNCTIONS
from tests.support.waiting import HANG_S

ON_A_CPU = engine_config(Engine(device="cpu", dtype="float32", batch_size=4, num_threads=1))
HOT = SamplingParams(temperature=1.2, top_k=20, top_p=0.95, max_new_tokens=32)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=64)


def settings(**changed: Any) -> EngineConfig:
    """Those of an engine on one thread of the CPU, in float32, with batches of 4."""
    return ON_A_CPU.model_copy(update=changed)


def no_progress(done: int, total: int) -> None:
    pass


def chat(identifier: str, seed: int, task: int = 0) -> Request:
    signature, _, statement = FUNCTIONS[task % len(FUNCTIONS)]
    content = ask_for(statement * (1 + task // len(FUNCTIONS)), signature)  # so that the lengths differ
    return Request(id=identifier, messages=({"role": "user", "content": content},), prefill="```python\n", seed=seed)


def ask(sampler: Sampler, requests: list[Request], params: SamplingParams) -> dict[str, Generated]:
    """Each request's completion, by its id."""
    lists = list(sampler.generate(requests, params))
    assert all(lists), "an empty list"
    completions = [generated for batch in lists for generated in batch]
    assert sorted(generated.id for generated in completions) == sorted(request.id for request in requests)
    return {generated.id: generated for generated in completions}


def in_process(checkpoint: CheckpointRef, **changed: Any) -> Any:
    """A sampler over transformers."""
    from loop.engines.hf_sampler import TransformersSampler

    return TransformersSampler(checkpoint, settings(**changed), no_progress)


def remote(checkpoint: CheckpointRef, name: str, log_file: Path, **changed: Any) -> RemoteSampler:
    """The sampler of that name in a worker."""
    init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(sampler=name, **changed)}
    return RemoteSampler(Worker(init, log_file=log_file, stall_timeout_s=HANG_S, progress=no_progress, tag="sampler"))
