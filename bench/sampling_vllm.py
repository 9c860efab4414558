"""Sampling with the vLLM engine beside raw `LLM.generate`: same model, same engine settings, same prompts, in turns.

`python bench/sampling_vllm.py [--pairs K] [--requests N] [--compiled]`, where vLLM is installed (`make test-vllm` does). Both
stay up in processes of their own. Raw vLLM gives neither log-probabilities nor seeds per request, as by default;
`--compiled` lets it compile, which the engine does not do on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from loop.config.settings import Engine, Model, Prompts  # noqa: E402
from loop.engines.base import CheckpointRef, Request, SamplingParams  # noqa: E402
from loop.prompts.sources import load_prompts  # noqa: E402
from loop.run.base_model import CONVERSION, cache_directory  # noqa: E402
from loop.workers.up import engine_config  # noqa: E402

MODEL = cache_directory() / "models" / CONVERSION
BATCH = 32
PARAMS = SamplingParams(temperature=1.2, top_k=20, top_p=0.8, max_new_tokens=96, stop=("\n```",))


def requests_of(count: int) -> list[Request]:
    """The first starter prompts, with the fence opened."""
    found = load_prompts(Prompts(limit=count), Model(source="smollm2-135m"), ROOT)
    return [
        Request(
            id=prompt.id, messages=tuple(prompt.content["messages"]), prefill=prompt.content["prefill"], seed=number
        )
        for number, prompt in enumerate(found)
    ]


def ours(requests: list[Request], compiled: bool) -> Callable[[], int]:
    from loop.engines.vllm_sampler import VllmSampler

    settings = engine_config(Engine(dtype="float32", batch_size=BATCH))
    sampler = VllmSampler(CheckpointRef(sha256="", path=MODEL), settings, lambda done, total: None)
    return lambda: sum(len(one.token_ids) for found in sampler.generate(requests, PARAMS) for one in found)


def raw(requests: list[Request], compiled: bool) -> Callable[[], int]:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from transformers import AutoTokenizer
    from vllm import LLM
    from vllm import SamplingParams as VllmParams

    from loop.engines.prompting import prompt_token_ids

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = [{"prompt_token_ids": prompt_token_ids(tokenizer, request)} for request in requests]
    llm = LLM(
        str(MODEL), dtype="float32", max_num_seqs=BATCH, enforce_eager=not compiled, kv_cache_memory_bytes=2 << 30
    )
    params = VllmParams(
        temperature=PARAMS.temperature, top_k=PARAMS.top_k, top_p=PARAMS.top_p, max_tokens=PARAMS.max_new_tokens,
        stop=list(PARAMS.stop),
    )  # fmt: skip
    return lambda: sum(len(one.outputs[0].token_ids) for one in llm.generate(prompts, params, use_tqdm=False))


def child(who: str, num_requests: int, compiled: bool) -> None:
    """Sample once for each line that comes in; tokens and seconds go out. What is served from a cache is the prompts."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    run = {"ours": ours, "raw": raw}[who](requests_of(num_requests), compiled)
    run()
    print("ready", file=answers)
    for _ in sys.stdin:
        started = time.perf_counter()
        tokens = run()
        print(json.dumps([tokens, time.perf_counter() - started]), file=answers)


def awake(pid: int, wanted: bool) -> None:
    """Let a process and all below it run, or stop them: an idle vLLM worker waits in a loop that takes a whole core."""
    tree = psutil.Process(pid)
    for process in (tree, *tree.children(recursive=True)):
        process.resume() if wanted else process.suspend()


def measure(num_requests: int = 96, pairs: int = 3, compiled: bool = False) -> dict[str, Any]:
    """Tokens a second of both, medians, and the median ratio of a pair."""
    more = ["--compiled"] if compiled else []
    up: dict[str, Any] = {}

    def start(who: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--one", who, "--requests", str(num_requests), *more]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )

    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    try:
        for who in rates:
            up[who] = start(who)
            assert up[who].stdout.readline().strip() == "ready", f"{who} did not start"
            awake(up[who].pid, False)
        for pair in range(pairs):
            for who in ("raw", "ours") if pair % 2 == 0 else ("ours", "raw"):
                awake(up[who].pid, True)
                up[who].stdin.write("\n")
                tokens, spent_s = json.loads(up[who].stdout.readline())
                rates[who].append(tokens / spent_s)
                awake(up[who].pid, False)
    finally:
        for process in up.values():
            awake(process.pid, True)
            process.stdin.close()
            process.wait()
    ratios = [one / other for one, other in zip(rates["ours"], rates["raw"], strict=True)]
    return {"raw": median(rates["raw"]), "ours": median(rates["ours"]), "ratio": median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--one", choices=("ours", "raw"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        child(asked.one, asked.requests, asked.compiled)
        return
    found = measure(asked.requests, asked.pairs, asked.compiled)
    print(f"raw LLM.generate {found['raw']:.0f} tokens/s, ours {found['ours']:.0f}, ratio {found['ratio']:.2f}")
    print("by pair: " + ", ".join(f"{ratio:.2f}" for ratio in found["ratios"]))


if __name__ == "__main__":
    main()
