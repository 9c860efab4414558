"""How fast the sampler over transformers is beside plain `model.generate`: `python bench/sampling.py [--pairs K]`.

Both run the same prompts in batches of the same size, with the same temperature, top-k and top-p, in float32 on two
threads, in turn within one run: only the ratio of a pair means something. Two kinds of ragged lengths:

- natural: as the model ends its answers, by its end token or the stop string of loop.toml;
- forced: each request's length is drawn beforehand and nothing else ends it, so that both draw equally many tokens.

Plain generate gets its prompts in the order of the requests, padded on the left. A token counts if it belongs to a
completion; padding behind a finished one does not.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import StoppingCriteria, StopStringCriteria

from bench.measuring import ROOT, in_turns, num_tokens, timed
from loop.config.settings import Engine
from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.engines.hf_models import load_model
from loop.engines.hf_sampler import Row, TransformersSampler
from loop.engines.prompting import prompt_token_ids
from loop.prompts.templates import FENCE, ask
from loop.run.base_model import CONVERSION, cache_directory
from loop.workers.up import engine_config

MAX_NEW_TOKENS = 192
LENGTHS = (16, MAX_NEW_TOKENS)  # of the forced kind, uniform


def requests_of(count: int) -> list[Request]:
    """The first starter prompts, in chat form with the fence opened."""
    lines = (ROOT / "loop" / "prompts" / "starter.jsonl").read_text().splitlines()
    rows = [json.loads(lines[i % len(lines)]) for i in range(count)]
    asked = [{"role": "user", "content": ask(row["statement"], row.get("signature", ""))} for row in rows]
    return [Request(id=str(i), messages=(message,), prefill=FENCE, seed=i) for i, message in enumerate(asked)]


class OwnLengths(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own number of new tokens."""

    def __init__(self, start: int, lengths: Sequence[int]) -> None:
        self.start, self.lengths = start, torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.start >= self.lengths


class ForcedLengths(TransformersSampler):
    """The sampler, but a row ends at its own length and for no other reason."""

    lengths: dict[str, int]

    def _append(self, row: Row, token: int, logprob: float, params: SamplingParams) -> None:
        row.token_ids.append(token)
        row.logprob_sum += logprob
        if len(row.token_ids) >= self.lengths[row.request.id]:
            row.finish_reason = "length"


def plain(
    sampler: TransformersSampler, model: Any, requests: list[Request], params: SamplingParams, lengths: Any, stops: Any
) -> int:
    """Batched generate over all requests; how many tokens the completions have."""
    count = 0
    pad = sampler.tokenizer.pad_token_id
    for start in range(0, len(requests), sampler.batch_size):
        batch = requests[start : start + sampler.batch_size]
        prompts = [prompt_token_ids(sampler.tokenizer, request) for request in batch]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        named: dict[str, Any] = {"stopping_criteria": [stops]}
        if lengths:
            ends = [lengths[request.id] for request in batch]
            named = {"stopping_criteria": [OwnLengths(width, ends)], "eos_token_id": -1}
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=params.temperature, top_k=params.top_k,
                top_p=params.top_p, max_new_tokens=params.max_new_tokens, pad_token_id=pad, **named,
            )  # fmt: skip
        if lengths:
            assert output.shape[1] - width == max(ends)
            count += sum(ends)
        else:
            count += sum(_until_end(sampler, row, params.stop) for row in output[:, width:].tolist())
    return count


def _until_end(sampler: TransformersSampler, tokens: list[int], stop: tuple[str, ...]) -> int:
    """How many tokens a completion has, by the sampler's own rules, without what was padded behind it."""
    for number, token in enumerate(tokens, 1):
        row = Row(Request(id="", seed=0), [], tokens[:number])
        if token in sampler.eos or sampler._stopped(row, stop):
            return number
    return len(tokens)


def measure(num_requests: int, batch_size: int, pairs: int) -> dict[str, Any]:
    """For each kind of lengths: tokens per second of both, median over the pairs, and the median ratio of a pair."""
    torch.set_num_threads(2)
    settings = tomllib.loads((ROOT / "loop.toml").read_text())["sampling"]
    taken = {name: settings[name] for name in ("top_k", "top_p", "stop")}
    params = SamplingParams(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, **taken)
    checkpoint = CheckpointRef(sha256="", path=cache_directory() / "models" / CONVERSION)
    engine = engine_config(Engine(device="cpu", dtype="float32", batch_size=batch_size))
    natural = TransformersSampler(checkpoint, engine, lambda done, total: None)
    forced = ForcedLengths(checkpoint, engine, lambda done, total: None)
    model = load_model(checkpoint, natural.model.dtype, natural.device).eval()  # with transformers' own attention
    requests = requests_of(num_requests)
    stream = random.Random(0)
    forced.lengths = {request.id: stream.randint(*LENGTHS) for request in requests}
    stops = StopStringCriteria(natural.tokenizer, list(params.stop))  # takes seconds, so it is made once
    figures = {}
    for kind, sampler, lengths in (("natural", natural, None), ("forced", forced, forced.lengths)):
        sides = {
            "plain": partial(plain, sampler, model, requests, params, lengths, stops),
            "ours": lambda sampler=sampler: num_tokens(sampler.generate(requests, params)),
        }
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        means: dict[str, list[float]] = {"plain": [], "ours": []}
        for pair, who in in_turns(sides, pairs):
            torch.manual_seed(pair)
            count, seconds = timed(sides[who])
            means[who].append(count / num_requests)
            rates[who].append(count / seconds)
        ratios = [ours / other for ours, other in zip(rates["ours"], rates["plain"], strict=True)]
        figures[kind] = {
            **{f"{who}_tokens_per_s": round(statistics.median(values), 1) for who, values in rates.items()},
            **{f"{who}_mean_tokens": round(statistics.mean(values), 1) for who, values in means.items()},
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    for kind, figures in measure(options.requests, options.batch_size, options.pairs).items():
        print(
            f"{kind} lengths: plain {figures['plain_tokens_per_s']} tokens/s, ours {figures['ours_tokens_per_s']}, "
            f"ratio {figures['ratio']} (pairs: {', '.join(map(str, figures['ratios']))}); "
            f"mean tokens {figures['plain_mean_tokens']} and {figures['ours_mean_tokens']}"
        )


if __name__ == "__main__":
    main()
