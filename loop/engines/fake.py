"""A deterministic, instant engine for tests of everything else. It is a real implementation of all three protocols.

Its model is a number, `skill`: the share of functions that it writes to return 1 instead of 0. Fine-tuning raises it a
little with each step. Tokens are bytes. A probe also finds a small doubt about every byte, smaller with more skill, which
sampling leaves out. With LOOP_FAKE_STEP_S each batch and each step takes that many seconds, for tests that need a stage to
last.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loop.engines.base import (
    LEAST_LOGPROB,
    CheckpointRef,
    EngineConfig,
    Forced,
    Generated,
    Probed,
    Progress,
    Request,
    SamplingParams,
    TrainingResult,
    TrainingRow,
    held_out,
)
from loop.errors import EngineError

END = 256  # the end-of-sequence token
DOUBT = 0.02  # the mass that a model without skill spreads over all tokens
MAX_TOKENS = 65536  # prompt and completion together
STEP_S = float(os.environ.get("LOOP_FAKE_STEP_S") or 0)


def write_fake_model(directory: Path, skill: float) -> None:
    """A checkpoint of the fake model: a config and a safetensors file without tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "fake", "skill": skill}))
    header = json.dumps({"__metadata__": {"skill": repr(skill)}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


class FakeSampler:
    """A Sampler that writes `return 1` with the probability `skill`, and the Prober of the same model."""

    def __init__(self, checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> None:
        self.change(checkpoint)
        self.batch_size = settings.batch_size
        self.progress = progress
        self.tokenizer_sha256 = hashlib.sha256(b"fake: one token per byte").hexdigest()

    def change(self, checkpoint: CheckpointRef) -> bool:
        """See `Sampler.change`."""
        self.skill: float = json.loads((checkpoint.path / "config.json").read_text())["skill"]
        return True

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
        opened = request.prefill.rstrip().endswith(":")  # the prompt has the signature: only the body is wanted
        text = _answer(opened, int(draw < self.skill))
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

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        """See `Prober.probe`."""
        for start in range(0, len(texts), self.batch_size):
            records = [self._follow(text, truncation, top) for text in texts[start : start + self.batch_size]]
            time.sleep(STEP_S)
            self.progress(start + len(records), len(texts))
            yield records

    def _follow(self, text: Forced, truncation: SamplingParams, top: int) -> Probed:
        num_tokens = len(text.prompt_token_ids) + len(text.token_ids)
        if not text.prompt_token_ids or not text.token_ids or num_tokens > MAX_TOKENS:
            raise EngineError(f"text {text.id}: has no prompt or no token, or its {num_tokens} exceed {MAX_TOKENS}")
        columns: dict[str, list[Any]] = {name: [] for name in Probed.model_fields if name != "id"}
        for index in range(len(text.token_ids)):
            masses = self._distribution(text.prompt_token_ids, text.token_ids[:index])
            likeliest = sorted(range(len(masses)), key=lambda token: (-masses[token], token))
            at = list(text.at[index]) if text.at is not None else likeliest[:top]
            named = set(at)
            others = math.fsum(mass for token, mass in enumerate(masses) if token not in named)
            columns["entropy"].append(-math.fsum(mass * math.log(mass) for mass in masses if mass))
            columns["top_token_id"].append(likeliest[0])
            columns["top_probability"].append(masses[likeliest[0]])
            columns["at"].append(at)
            columns["logprobs"].append([_log(masses[token]) for token in at])
            columns["rest"].append(_log(others))
            columns["num_kept"].append(min(len(at), _num_kept([masses[token] for token in likeliest], truncation)))
        return Probed.model_validate({"id": text.id, **columns})

    def _distribution(self, prompt: Sequence[int], before: Sequence[int]) -> list[float]:
        """The probability of each token after these: nearly all of it is on the next bytes of the model's two answers."""
        opened = bytes(token for token in prompt if token != END).rstrip().endswith(b":")
        doubt = DOUBT * (1 - self.skill)
        masses = [doubt / (END + 1)] * (END + 1)
        shares = {
            tuple(_answer(opened, digit).encode()): share for digit, share in ((1, self.skill), (0, 1 - self.skill))
        }
        possible = {answer: share for answer, share in shares.items() if answer[: len(before)] == tuple(before)}
        total = sum(possible.values())
        for answer, share in possible.items():
            masses[(*answer, END)[len(before)]] += (1 - doubt) * share / total if total else (1 - doubt) / len(possible)
        if not possible:  # after the end, and after a text that the model never writes
            masses[END] += 1 - doubt
        return masses

    def close(self) -> None:
        """Nothing to free."""


def _answer(opened: bool, digit: int) -> str:
    return f"{'' if opened else 'def answer():'}\n    return {digit}\n```"


def _log(mass: float) -> float:
    return max(LEAST_LOGPROB, math.log(mass)) if mass > 0 else LEAST_LOGPROB


def _num_kept(likeliest_first: Sequence[float], truncation: SamplingParams) -> int:
    powers = [mass ** (1 / truncation.temperature) for mass in likeliest_first][: truncation.top_k or None]
    before = 0.0
    for count, power in enumerate(powers):
        if before >= truncation.top_p * sum(powers):
            return count
        before += power
    return len(powers)


class FakeTrainer:
    """A Trainer that raises `skill` by a hundredth per step."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.progress = progress

    def fit(self, rows_file: Path, parent: CheckpointRef, settings: dict[str, Any], out_dir: Path) -> TrainingResult:
        """See `Trainer.fit`."""
        rows = [TrainingRow.model_validate_json(line) for line in rows_file.read_text().splitlines()]
        if not rows:
            raise EngineError("there is no completion to train on")
        left_out = held_out([row.completion_token_ids for row in rows], settings)
        rows = [row for index, row in enumerate(rows) if index not in left_out]
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
            num_held_out=len(left_out),
            held_out_loss=1.0 / num_steps if left_out else None,
            train_loss=1.0 / (num_steps + 1) if left_out else None,
        )

    def close(self) -> None:
        """Nothing to free."""
