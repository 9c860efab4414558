"""A deterministic, instant engine for tests of everything else. It is a real implementation of all three protocols.

Its model is a number, `skill`: the share of functions that it writes to return 1 instead of 0. Fine-tuning raises it a
little with each step. Tokens are bytes. A probe also finds a small doubt about every byte, smaller with more skill, which
sampling leaves out. With LOOP_FAKE_STEP_S each batch and each step takes that many seconds, for tests that need a stage to
last; with LOOP_FAKE_PEAK each step after so many lowers skill again, for tests of a training that goes too far.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from loop.engines.base import (
    LEAST_LOGPROB,
    CheckpointRef,
    EngineConfig,
    Forced,
    Generated,
    Kept,
    Probed,
    Progress,
    Request,
    SamplingParams,
    TrainingResult,
    TrainingRow,
    candidate_steps,
    earlier_dir,
    held_out,
)
from loop.engines.feed import Feed, feed_of
from loop.engines.prompting import check_prompt, check_text
from loop.errors import EngineError, LeftTraining
from store.checkpoints import make_directory
from store.durable import written

END = 256  # the end-of-sequence token
DOUBT = 0.02  # the mass that a model without skill spreads over all tokens
MAX_TOKENS = 65536  # prompt and completion together
STEP_S = float(os.environ.get("LOOP_FAKE_STEP_S") or 0)
PEAK = int(os.environ.get("LOOP_FAKE_PEAK") or 2**31)


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
        self.batch_size, self.progress = settings.batch, progress
        self.tokenizer_sha256 = hashlib.sha256(b"fake: one token per byte").hexdigest()

    def change(self, checkpoint: CheckpointRef) -> bool:
        self.skill: float = json.loads((checkpoint.path / "config.json").read_text())["skill"]
        return True

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        return self._batches(feed_of(requests), lambda request: self._complete(request, params))

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        return self._batches(feed_of(texts), lambda text: self._follow(text, truncation, top))

    def _batches(self, asked: Feed[Any], answer: Callable[[Any], Any]) -> Iterator[list[Any]]:
        num_done = 0
        while batch := asked.take(self.batch_size, wait=True):
            answers = [answer(each) for each in batch]
            time.sleep(STEP_S)
            num_done += len(answers)
            self.progress(num_done, asked.total)
            yield answers

    def _complete(self, request: Request, params: SamplingParams) -> Generated:
        prompt = ("\n".join(message["content"] for message in request.messages) + request.prefill).encode()
        check_prompt(request, len(prompt), params, MAX_TOKENS)
        draw = random.Random(request.seed).random() if params.temperature else 0.5
        opened = request.prefill.rstrip().endswith(":")  # the prompt has the signature: only the body is wanted
        text = _answer(opened, int(draw < self.skill))
        ends = [text.index(string) + len(string) for string in params.stop if string in text]
        token_ids = [*(text[: min(ends)].encode() if ends else [*text.encode(), END])][: params.max_new_tokens]
        stopped = bool(ends) and len(token_ids) == min(ends)
        return Generated(
            id=request.id,
            text=bytes(token for token in token_ids if token != END).decode(errors="replace"),
            token_ids=tuple(token_ids),
            prompt_token_ids=tuple(prompt),
            finish_reason="eos" if token_ids[-1] == END else "stop" if stopped else "length",
            logprob_sum=-0.125 * len(token_ids),
        )

    def _follow(self, text: Forced, truncation: SamplingParams, top: int) -> Probed:
        check_text(text, MAX_TOKENS)
        entries = []
        for index in range(len(text.token_ids)):
            masses = self._distribution(text.prompt_token_ids, text.token_ids[:index])
            likeliest = sorted(range(len(masses)), key=lambda token: (-masses[token], token))
            at = list(text.at[index]) if text.at is not None else likeliest[:top]
            others = set(likeliest).difference(at)
            num_kept = _num_kept([masses[token] for token in likeliest], truncation)
            entry = {
                "entropy": -math.fsum(mass * math.log(mass) for mass in masses if mass),
                "top_token_id": likeliest[0],
                "top_probability": masses[likeliest[0]],
                "at": at,
                "logprobs": [_log(masses[token]) for token in at],
                "rest": _log(math.fsum(masses[token] for token in others)),
                "num_kept": min(len(at), num_kept),
            }
            entries.append(entry)
        return Probed.of(text, entries)

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
    limit = truncation.top_p * sum(powers)
    return sum(before < limit for before in [0.0, *itertools.accumulate(powers)][:-1])


def _effective(num_steps: int) -> int:
    """How many hundredths of skill so many steps bring. After LOOP_FAKE_PEAK steps each further one takes a hundredth away."""
    return num_steps if num_steps <= PEAK else 2 * PEAK - num_steps


class FakeTrainer:
    """A Trainer that raises `skill` by a hundredth per step."""

    def __init__(self, settings: EngineConfig, progress: Progress) -> None:
        self.progress = progress

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
    ) -> TrainingResult:
        rows = [TrainingRow.model_validate_json(line) for line in rows_file.read_text().splitlines()]
        if not rows:
            raise EngineError("there is no completion to train on")
        left_out = held_out([row.completion_token_ids for row in rows], settings)
        rows = [row for index, row in enumerate(rows) if index not in left_out]
        num_steps = settings["num_steps"] or -(-len(rows) // settings["batch_size"]) * (settings["num_epochs"] or 1)
        self._take_steps(num_steps, settings, kept)
        skill = json.loads((parent.path / "config.json").read_text())["skill"]
        completion_tokens = sum(len(row.completion_token_ids) for row in rows)

        def left_at(step: int, directory: Path) -> TrainingResult:
            write_fake_model(directory, max(0.0, min(1.0, skill + 0.01 * _effective(step))))
            return TrainingResult(
                num_steps=step,
                num_rows=len(rows),
                num_completion_tokens=completion_tokens,
                losses=tuple(1.0 / (number + 1) for number in range(step)),
                num_held_out=len(left_out),
                held_out_loss=1.0 / step if left_out else None,
                train_loss=1.0 / (step + 1) if left_out else None,
            )

        *steps, last = candidate_steps(num_steps, settings)
        earlier = tuple(left_at(step, earlier_dir(out_dir, step)) for step in steps)
        return left_at(last, out_dir).model_copy(update={"earlier": earlier})

    def _take_steps(self, num_steps: int, settings: dict[str, Any], kept: Kept | None) -> None:
        """All that are missing. The state of a training is how many it has behind it."""
        file = kept.directory / "step" if kept else None
        done, saved_at = int(file.read_text()) if file and file.exists() else 0, time.monotonic()
        for step in range(done + 1, num_steps + 1):
            time.sleep(STEP_S)
            self.progress(step, num_steps)
            if kept is None or file is None or step == num_steps:
                continue
            is_asked = kept.is_asked_to_end()
            if is_asked or time.monotonic() - saved_at >= settings["save_every_s"]:
                make_directory(kept.directory)
                with written(file) as out:
                    out.write(str(step).encode())
                saved_at = time.monotonic()
            if is_asked:
                raise LeftTraining(f"the training was left after step {step} of {num_steps}")

    def close(self) -> None:
        """Nothing to free."""
