"""Which weights an engine really serves, shown by log-probabilities. Runs only inside a worker process.

Engines have reported success and then served other weights than they were told to. So before an engine serves a checkpoint,
the log-probabilities that it gives to a fixed text are compared with those of the same files under transformers, on the CPU,
at the same precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loop.engines.base import CheckpointRef
from loop.engines.hf_models import DTYPES, eos_token_ids, load_model, load_tokenizer
from loop.errors import EngineError

PROBE_TEXT = """\
def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    \"\"\"Merge all overlapping intervals and return them sorted by their start.\"\"\"
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged

Each morning the harbour master walks down to the quay, counts 17 boats, writes their names in pencil, and wonders
aloud why the tide tables of 1924 still hang beside the door. {"retries": 3, "wait_s": 0.5} SELECT name FROM boats;
"""
TOLERANCE = {"float32": 3e-4, "bfloat16": 0.12}  # nats, RMS; between kernels alone 1e-5 and 0.05 were seen


@dataclass(frozen=True, slots=True)
class Proof:
    """A checkpoint's `logprobs` of the probe text: of each token after the first, given the tokens before it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    eos: frozenset[int] = frozenset()  # the tokens that end its completions


def reference(checkpoint: CheckpointRef, dtype: str) -> Proof:
    """The log-probabilities (natural, temperature 1) under transformers, on the CPU. `dtype`: a key of TOLERANCE."""
    tokenizer, _ = load_tokenizer(checkpoint)
    token_ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    model = load_model(checkpoint, DTYPES[dtype], torch.device("cpu")).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, :-1].float()  # (T-1, V)
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
    return Proof(tuple(token_ids), tuple(logprobs.tolist()), eos_token_ids(model, tokenizer))


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """The root mean square of the differences, in nats; infinite where the two cannot be compared."""
    if len(first) != len(second) or not first:
        return math.inf
    square = math.fsum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first)
    return math.sqrt(square) if math.isfinite(square) else math.inf


def serves(proof: Proof, logprobs: Sequence[float], dtype: str) -> bool:
    """Whether an engine's log-probabilities of the probe text are those of the checkpoint."""
    return distance(proof.logprobs, logprobs) <= TOLERANCE[dtype]


def tells_apart(old: Proof, new: Proof, dtype: str) -> bool:
    """Whether an engine that still serves the `old` weights would fail the proof of the `new` ones."""
    return distance(old.logprobs, new.logprobs) > 2 * TOLERANCE[dtype]


def check(proof: Proof, logprobs: Sequence[float], where: str, dtype: str) -> None:
    """EngineError where an engine serves other weights. `where`: who serves what, as the beginning of the message."""
    if not serves(proof, logprobs, dtype):
        raise EngineError(
            f"{where}: does not serve the weights of this checkpoint: its log-probabilities of a fixed text are "
            f"{distance(proof.logprobs, logprobs):.2g} nats (RMS) from those under transformers, and at most "
            f"{TOLERANCE[dtype]:g} is noise"
        )
