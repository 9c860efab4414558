"""A deterministic, instant engine for tests of everything else. It is a real implementation of both protocols.

Its model is a number, `skill`: the share of functions that it writes to return 1 instead of 0. Fine-tuning raises it a
little for every completion seen. Tokens are bytes. LOOP_FAKE_STEP_S makes each batch and each step take so many seconds,
for tests that need a stage to be going on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, Generated, Progress, Request, SamplingParams, TrainingResult, TrainingRow
from loop.errors import EngineError

END = 256  # the end-of-sequence token
MAX_TOKENS = 65536  # prompt and completion together
STEP_S = float(os.environ.get("LOOP_FAKE_STEP_S") or 0)


def write_fake_model(directory: Path, skill: float) -> None:
    """A checkpoint of the fake model: a config and a safetensors file without tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "fake", "skill": skill}))
    header = json.dumps({"__metadata__": {"skill": repr(skill)}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


class FakeSampler:
    """A Sampler that writes `return 1` with the probability `skill`."""

    def __init__(self, checkpoint: CheckpointRef, settings: dict[str, Any], progress: Progress) -> None:
        self.skill: float = json.loads((checkpoint.path / "config.json").read_text())["skill"]
        self.batch_size: int = settings["batch_size"]
        self.progress = progress
        self.tokenizer_sha256 = hashlib.sha256(b"fake: one token per byte").hexdigest()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Generated]]:
        """See `Sampler.generate`."""
        for start in range(0, len(requests), self.batch_size):
            completions = [self._complete(request, params) for request in requests[start : start + self.batch_size]]
            time.sleep(STEP_S)
            self.progress(start + len(completions), len(requests))
            yield completions

    def _complete(self, request: Request, params: SamplingParams) -> Generated:
        prompt = "\n".join(message["content"] for message in request.messages) + request.prefill
        if not prompt:
            raise EngineError(f"request {request.id}: the prompt is empty")
        if len(prompt.encode()) + params.max_new_tokens > MAX_TOKENS:
            raise EngineError(
                f"a prompt that begins {request.beginning!r}: exceeds the model's {MAX_TOKENS} tokens; lower max_new_tokens"
            )
        draw = random.Random(request.seed).random() if params.temperature else 0.5
        opened = request.prefill.rstrip().endswith(":")  # the signature stands there: only the body is wanted
        text = f"{'' if opened else 'def answer():'}\n    return {int(draw < self.skill)}\n```"
        ends = [text.index(string) + len(string) for string in params.stop if string in text]
        token_ids = [*(text[: min(ends)].encode() if ends else [*text.encode(), END])][: params.max_new_tokens]
        ended = token_ids[-1] == END
        stopped = bool(ends) and len(token_ids) == min(ends)
        return Generated(
            id=request.id,
            text=bytes(token for token in token_ids if token != END).decode(errors="replace"),
            token_ids=tuple(token_ids),
            prompt_token_ids=tuple(prompt.encode()),
            finish_reason="eos" if ended else "stop" if stopped else "length",
            logprob_sum=-0.125 * len(token_ids),
        )

    def close(self) -> None:
        """Nothing to free."""


class FakeTrainer:
    """A Trainer that raises `skill` by a hundredth per step."""

    def __init__(self, settings: dict[str, Any], progress: Progress) -> None:
        self.progress = progress

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`."""
        rows = [TrainingRow.model_validate_json(line) for line in rows_file.read_text().splitlines()]
        if not rows:
            raise EngineError("there is no completion to train on")
        num_steps = settings["num_steps"] or -(-len(rows) // settings["batch_size"]) * (settings["num_epochs"] or 1)
        for step in range(num_steps):
            time.sleep(STEP_S)
            self.progress(step + 1, num_steps)
        skill = json.loads((parent.path / "config.json").read_text())["skill"]
        write_fake_model(out_dir, min(1.0, skill + 0.01 * num_steps))
        return TrainingResult(
            num_steps=num_steps,
            num_rows=len(rows),
            num_completion_tokens=sum(len(row.completion_token_ids) for row in rows),
            losses=tuple(1.0 / (step + 1) for step in range(num_steps)),
        )

    def close(self) -> None:
        """Nothing to free."""
