"""The steps of `bench/gpu.py` that sample: vLLM's start, its proof, its feed, other weights in place; and the transformers sampler."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.measuring import timed
from bench.on_gpu.models import in_a_process
from bench.on_gpu.setting import Bench, Figure, Figures, MemoryPeak, Skip
from bench.sampling_vllm import requests_of
from loop.engines.base import CheckpointRef, Generated, Request, SamplingParams
from loop.engines.feed import Listed
from loop.workers.up import best_sampler
from loop.workers.worker import RemoteSampler

FULL = 0.95  # of an engine's places
NEAR, FAR = (
    0.01,
    1.0,
)  # noise in a model's weights, as a share of them: little more than bfloat16's rounding; another model


def engine_start(bench: Bench) -> Figures:
    name, why = best_sampler(bench.device)
    if name != "vllm":
        raise Skip(why)
    checkpoint = bench.model()
    engines = bench.engines("vllm", "vllm", engine={"num_engines": 1})
    sampler, seconds = timed(lambda: engines.sampler(checkpoint))
    assert isinstance(sampler, RemoteSampler)
    told, proof = sampler.worker.call({"op": "figures"}), sampler.worker.call({"op": "proof"})
    return {
        "start, in a worker": Figure(seconds, "s"),
        "of it the reference on the CPU": Figure(told["reference_s"], "s"),
        "completions at once": Figure(told["batch_size"]),
        "proof: engine from reference": Figure(proof["distance"], "nats"),
        "proof: tolerance": Figure(proof["tolerance"], "nats"),
    }


def _sampler_up(bench: Bench) -> RemoteSampler:
    sampler = bench.up.serving(bench.model().sha256) if bench.up else None
    if not isinstance(sampler, RemoteSampler):
        raise Skip("vLLM is not up")
    return sampler


class Noting(Listed[Request]):
    """A feed that notes when the last request was taken."""

    over_at: float | None = None

    def take(self, num: int, wait: bool = False) -> list[Request]:
        taken = super().take(num, wait)
        if num > 0 and self.over_at is None and len(taken) < num:
            self.over_at = time.monotonic()
        return taken


def feed(bench: Bench) -> Figures:
    sampler = _sampler_up(bench)
    places = sampler.worker.call({"op": "figures"})["batch_size"]
    params = SamplingParams(temperature=1.0, max_new_tokens=bench.size.new_tokens)
    requests = requests_like(bench.size.num_feeds * places)
    first = params.model_copy(update={"max_new_tokens": min(32, bench.size.new_tokens)})
    drawn(sampler, requests[:places], first)  # so that nothing is compiled or captured later
    sampler.worker.call({"op": "reset_figures"})
    asked = Noting(requests, len(requests))
    (num_tokens, longest), seconds = timed(lambda: drawn(sampler, asked, params))
    moments = sampler.worker.call({"op": "figures"})["moments"]
    mean, full = fullness(moments, places, asked.over_at or moments[-1][0])
    return {
        "completions": Figure(len(requests)),
        "tokens, mean and longest": Figure(f"{num_tokens / len(requests):.0f}, {longest}"),
        "rows computed at once, mean until the last was handed out": Figure(mean),
        "of places": Figure(places),
        "time in which the engine was full, until then": Figure(full, "share"),
        "rows computed at once, mean of all": Figure(fullness(moments, places, moments[-1][0])[0]),
        "speed": Figure(num_tokens / seconds, "tokens/s"),
    }


def fullness(moments: Sequence[Sequence[float]], places: int, until: float) -> tuple[float, float]:
    """(mean rows, share of the time in which the engine was full) of [when, rows computed, rows held], up to `until`.

    Full is an engine whose places are taken, but for FULL, or that has rows waiting because its cache has no room for them.
    """
    total = rows = full = 0.0
    for (begin, _, _), (end, running, inside) in itertools.pairwise(moments):
        spent = min(end, until) - begin
        if spent <= 0:
            break
        total, rows = total + spent, rows + spent * running
        full += spent * (running >= FULL * places or inside > running)
    return (rows / total, full / total) if total else (0.0, 0.0)


def requests_like(num: int) -> list[Request]:
    """So many: the first starter prompts over and over, with seeds of their own."""
    some = itertools.cycle(requests_of(64))
    return [next(some).model_copy(update={"id": str(number), "seed": number}) for number in range(num)]


def drawn(sampler: Any, requests: Any, params: SamplingParams) -> tuple[int, int]:
    """Tokens of all completions, and of the longest."""
    lengths = [len(each.token_ids) for batch in sampler.generate(requests, params) for each in _checked(batch)]
    return sum(lengths), max(lengths)


def _checked(batch: list[Generated]) -> list[Generated]:
    assert all(each.token_ids for each in batch), "a completion without tokens"
    return batch


def reload(bench: Bench) -> Figures:
    """Another model first, then one that is near to it. Ends the engine."""
    sampler, figures = _sampler_up(bench), Figures()
    source = bench.model().path
    try:
        for name, amount in (("another model", FAR), ("a near one", NEAR)):
            path = bench.place / "models" / f"changed-{amount:g}"
            in_a_process("change", source, amount, path)
            sampler.worker.call({"op": "reset_figures"})
            checkpoint = CheckpointRef(sha256=path.name, path=path)
            in_place, seconds = timed(partial(sampler.change, checkpoint))
            told = sampler.worker.call({"op": "figures"})
            figures[f"{name}: in place"] = Figure(in_place)
            figures[f"{name}: took"] = Figure(seconds, "s")
            figures[f"{name}: of it the reference on the CPU"] = Figure(told["reference_s"], "s")
            if not in_place:  # a run would start an engine again
                break
            figures |= {f"{name}: {what}": each for what, each in _held(sampler, path).items()}
            source = path
    finally:
        bench.close()
        for path in (bench.place / "models").glob("changed-*"):
            shutil.rmtree(path)
    return figures


def _held(sampler: RemoteSampler, path: Path) -> Figures:
    """Whether the engine's parameters are those of the files; RuntimeError where one is another."""
    held = sampler.worker.call({"op": "held", "path": str(path)})
    if other := [name for rank in held for name in rank["other"]]:
        raise RuntimeError(f"{len(other)} parameters are not those of the files, the first is {other[0]}")
    proof = sampler.worker.call({"op": "proof"})
    return {
        "parameters equal to the files": Figure(sum(rank["num_same"] for rank in held)),
        "in a layout of the kernels": Figure(sum(len(rank["checksums"]) for rank in held)),
        "packed away": Figure(sum(rank["num_empty"] for rank in held)),
        "engine from reference": Figure(proof["distance"], "nats"),
    }


# The sampler over transformers


def transformers_sampler(bench: Bench) -> Figures:
    checkpoint = bench.model()
    engines = bench.engines("transformers", "transformers", engine={"num_engines": 1})
    sampler, start_s = timed(lambda: engines.sampler(checkpoint))
    params = SamplingParams(temperature=1.0, max_new_tokens=bench.size.new_tokens // 2)
    drawn(sampler, requests_like(2), params.model_copy(update={"max_new_tokens": 8}))
    sampler.worker.call({"op": "reset_figures"})
    with MemoryPeak(bench, sampler.worker) as peak:
        (num_tokens, _), seconds = timed(lambda: drawn(sampler, requests_like(bench.size.num_drawn), params))
    told = sampler.worker.call({"op": "figures"})
    bench.close()
    return {
        "start": Figure(start_s, "s"),
        "completions at once": Figure(told["batch_size"]),
        "speed": Figure(num_tokens / seconds, "tokens/s"),
        **peak.figures(told["allocated_bytes"]),
    }
