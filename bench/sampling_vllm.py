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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT, in_turns, num_tokens, timed
from loop.config.settings import Engine, Model, Prompts
from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.prompts.sources import load_prompts
from loop.run.base_model import CONVERSION, cache_directory
from loop.workers.up import engine_config

MODEL = cache_directory() / "models" / CONVERSION
BATCH = 32
PARAMS = SamplingParams(temperature=1.2, top_k=20, top_p=0.8, max_new_tokens=96, stop=("\n```",))


def requests_of(count: int) -> list[Request]:
    """The first starter prompts, with the fence opened."""
    prompts = load_prompts(Prompts(limit=count), Model(source="smollm2-135m"), ROOT)
    return [
        Request(id=prompt.id, messages=prompt.content["messages"], prefill=prompt.content["prefill"], seed=number)
        for number, prompt in enumerate(prompts)
    ]


def ours(requests: list[Request], compiled: bool) -> Callable[[], int]:
    from loop.engines.vllm_sampler import VllmSampler

    settings = engine_config(Engine(dtype="float32", batch_size=BATCH))
    sampler = VllmSampler(CheckpointRef(sha256="", path=MODEL), settings, lambda done, total: None)
    return lambda: num_tokens(sampler.generate(requests, PARAMS))


def raw(requests: list[Request], compiled: bool) -> Callable[[], int]:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from transformers import AutoTokenizer
    from vllm import LLM
    from vllm import SamplingParams as VllmParams

    from loop.engines.prompting import prompt_token_ids

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = [{"prompt_token_ids": prompt_token_ids(tokenizer, request)} for request in requests]
    same: dict[str, Any] = {"dtype": "float32", "max_num_seqs": BATCH, "kv_cache_memory_bytes": 2 << 30}
    llm = LLM(str(MODEL), enforce_eager=not compiled, **same)
    same = PARAMS.model_dump(include={"temperature", "top_k", "top_p"})
    params = VllmParams(max_tokens=PARAMS.max_new_tokens, stop=list(PARAMS.stop), **same)
    return lambda: sum(len(each.outputs[0].token_ids) for each in llm.generate(prompts, params, use_tqdm=False))


def child(who: str, num_requests: int, compiled: bool) -> None:
    """Sample once for each line that comes in; tokens and seconds go out. What is served from a cache is the prompts."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    run = {"ours": ours, "raw": raw}[who](requests_of(num_requests), compiled)
    run()
    print("ready", file=answers)
    for _ in sys.stdin:
        print(json.dumps(timed(run)), file=answers)


def awake(pid: int, wanted: bool) -> None:
    """Let a process and all below it run, or stop them: an idle vLLM worker waits in a loop that takes a whole core."""
    tree = psutil.Process(pid)
    for process in (tree, *tree.children(recursive=True)):
        process.resume() if wanted else process.suspend()


def measure(num_requests: int = 96, pairs: int = 3, compiled: bool = False) -> dict[str, Any]:
    """Tokens a second of both, medians, and the median ratio of a pair."""
    more = ["--compiled"] if compiled else []
    up: dict[str, Any] = {}
    rates: dict[str, list[float]] = {"raw": [], "ours": []}
    try:
        for who in rates:
            command = [sys.executable, __file__, "--one", who, "--requests", str(num_requests), *more]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            up[who] = subprocess.Popen(command, **pipes, text=True, bufsize=1)
            assert up[who].stdout.readline().strip() == "ready", f"{who} did not start"
            awake(up[who].pid, False)
        for _, who in in_turns(up, pairs):
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
    ratios = [ours / raw for ours, raw in zip(rates["ours"], rates["raw"], strict=True)]
    return {"raw": median(rates["raw"]), "ours": median(rates["ours"]), "ratio": median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--one", choices=("ours", "raw"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        child(asked.one, asked.requests, asked.compiled)
        return
    rates = measure(asked.requests, asked.pairs, asked.compiled)
    print(f"raw LLM.generate {rates['raw']:.0f} tokens/s, ours {rates['ours']:.0f}, ratio {rates['ratio']:.2f}")
    print("by pair: " + ", ".join(f"{ratio:.2f}" for ratio in rates["ratios"]))


if __name__ == "__main__":
    main()
