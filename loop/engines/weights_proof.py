"""Which weights an engine really serves, shown by log-probabilities. Runs only inside a worker process.

Engines have reported success and then served other weights than they were told to. So before an engine serves a checkpoint,
the log-probabilities that it gives to a fixed text are compared with those of the same files under transformers, on the CPU
in float32. How far an engine may be from them depends on the model: as far as rounding to the served precision takes
transformers itself, a few times over.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from loop.engines.base import CheckpointRef, Progress, Value
from loop.engines.hf_models import DTYPES, eos_token_ids, load_model, load_tokenizer
from loop.errors import EngineError
from store.durable import written

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
LEAST_TOLERANCE = {"float32": 3e-4, "bfloat16": 0.12}  # nats, RMS; between kernels alone 1e-5 and 0.05 were seen
# An engine rounds in other places than transformers does, but as often: its error is about as large, within this factor.
SPREADS = 3.0
LOOK_S = 0.5  # between two looks whether another process has the reference


class Proof(Value):
    """A checkpoint's `logprobs` of the probe text: of each token after the first, given the tokens before it.

    `tolerance`: how far an engine may be from them, in nats (RMS). `eos`: the tokens that end the checkpoint's completions.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tolerance: float
    eos: frozenset[int] = frozenset()


def reference(
    checkpoint: CheckpointRef, dtype: str, directory: Path | None = None, progress: Progress = lambda done, total: None
) -> Proof:
    """The proof of a checkpoint that is served in `dtype`, a key of LEAST_TOLERANCE.

    In `directory` it is kept for later engines. Of those that ask for it at once one computes it, and the others wait,
    reporting progress: the model is in main memory once, however many engines there are.
    """
    if directory is None:
        return _computed(checkpoint, dtype)
    directory.mkdir(parents=True, exist_ok=True)
    named = [checkpoint.sha256, str(checkpoint.base_path), dtype, PROBE_TEXT, str(SPREADS), str(LEAST_TOLERANCE)]
    file = directory / f"{hashlib.sha256(repr(named).encode()).hexdigest()}.json"
    with file.with_suffix(".lock").open("w") as lock:
        while not _has(lock):
            progress(0, 1)
            time.sleep(LOOK_S)
        try:
            return Proof.model_validate_json(file.read_bytes())
        except (OSError, ValueError):  # not there, or of another version
            proof = _computed(checkpoint, dtype)
        with written(file) as whole:
            whole.write(proof.model_dump_json().encode())
    return proof


def _has(lock: Any) -> bool:
    """Whether this process got the lock, which goes with the process that holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _computed(checkpoint: CheckpointRef, dtype: str) -> Proof:
    tokenizer, _ = load_tokenizer(checkpoint)
    token_ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    model = load_model(checkpoint, DTYPES[dtype], torch.device("cpu")).eval()
    rounded = logprobs = _logprobs(model, token_ids)
    if dtype != "float32":
        with _computing_in_float32(model, DTYPES[dtype]):
            logprobs = _logprobs(model, token_ids)
    tolerance = max(LEAST_TOLERANCE[dtype], SPREADS * distance(logprobs, rounded))
    return Proof(token_ids=token_ids, logprobs=logprobs, tolerance=tolerance, eos=eos_token_ids(model, tokenizer))


def _logprobs(model: Any, token_ids: list[int]) -> tuple[float, ...]:
    """Natural, at temperature 1, of all tokens but the first."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, :-1].float()  # (T-1, V)
    return tuple(logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist())


@contextmanager
def _computing_in_float32(model: Any, precision: torch.dtype) -> Iterator[None]:
    """The same weights, computed with in float32: a layer at a time is cast, so that no second model is in memory.

    Afterwards the model is of no further use.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.float()
    hooks = [layer.register_forward_pre_hook(lambda module, _: module.float() and None) for layer in layers]
    hooks += [layer.register_forward_hook(lambda module, *_: module.to(precision) and None) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """The root mean square of the differences, in nats; infinite where the two cannot be compared."""
    if len(first) != len(second) or not first:
        return math.inf
    square = math.fsum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first)
    return math.sqrt(square) if math.isfinite(square) else math.inf


def serves(proof: Proof, logprobs: Sequence[float]) -> bool:
    """Whether an engine's log-probabilities of the probe text are those of the checkpoint."""
    return distance(proof.logprobs, logprobs) <= proof.tolerance


def tells_apart(old: Proof, new: Proof) -> bool:
    """Whether an engine that still serves the `old` weights would fail the proof of the `new` ones."""
    return distance(old.logprobs, new.logprobs) > old.tolerance + new.tolerance


def check(proof: Proof, logprobs: Sequence[float], where: str) -> None:
    """EngineError where an engine serves other weights. `where`: who serves what, as the beginning of the message."""
    if not serves(proof, logprobs):
        raise EngineError(
            f"{where}: does not serve the weights of this checkpoint: its log-probabilities of a fixed text are "
            f"{distance(proof.logprobs, logprobs):.2g} nats (RMS) from those under transformers, and at most "
            f"{proof.tolerance:.2g} is noise"
        )
