"""Sampling with transformers: a running batch, in which new rows take the places of finished ones.

Each row draws from its own seeded stream (one uniform number per token, inverted through the truncated distribution),
so a completion does not depend on who shares its batch, beyond floating-point noise. Runs only inside a worker process.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from loop.engines.base import CheckpointRef, EngineConfig, Forced, Generated, Probed, Progress, Request, SamplingParams
from loop.engines.drawing import draw, truncated_distribution
from loop.engines.feed import Feed, feed_of
from loop.engines.hf_cache import Batch, Places, takes_rows_later, use_grouped_attention
from loop.engines.hf_models import DTYPES, choose_device, choose_dtype, eos_token_ids, load_model, load_tokenizer
from loop.engines.hf_prober import probe
from loop.engines.prompting import completion, fitting_prompts
from loop.errors import EngineError

PREFILL_TOKENS = 4096  # of padded prompts in one forward pass, after which progress is reported; bounds the memory
REFILL_SHARE = 8  # new rows come in when one place in eight is free: fewer prefills, each of several prompts


def shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens with which all prompts begin; at least one token of each prompt comes after them."""
    pairs = zip(min(prompts), max(prompts), strict=False)  # all prompts between these two begin as both do
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(min(prompts)))
    return min(same, min(map(len, prompts)) - 1)


@dataclass
class Row:
    """One completion in the making."""

    request: Request
    prompt_token_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0
    finish_reason: str | None = None


class Beginning:
    """The tokens with which all prompts of a call begin, as far as they are known; they need computing only once."""

    def __init__(self) -> None:
        self.token_ids: tuple[int, ...] = ()
        self.cache: DynamicCache | None = None
        self.before: set[tuple[int, ...]] = set()  # one prompt that stands for all before

    def take(self, prompts: Iterable[tuple[int, ...]]) -> bool:
        """More prompts come. Whether `cache` has to be computed, because the tokens are others now."""
        known = self.before.union(prompts)
        if len(known) == 1:
            self.before = known  # a prompt that is the only one is computed once anyway
            return False
        token_ids = min(known)[: shared_beginning(list(known))]
        self.before = {(*token_ids, -1)}  # goes on with no token of any other prompt
        changed = token_ids != self.token_ids
        self.token_ids, self.cache = token_ids, None if changed else self.cache
        return changed and bool(token_ids)


class TransformersSampler:
    """A Sampler and a Prober over one checkpoint loaded with transformers."""

    def __init__(self, checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> None:
        self.device = choose_device(settings.device)
        self.dtype = DTYPES[choose_dtype(settings.dtype, self.device)]
        self.batch_size, self.progress = settings.batch, progress
        self.change(checkpoint)

    def change(self, checkpoint: CheckpointRef) -> bool:
        self.model: Any = None  # its memory is free before the next model is loaded
        self.tokenizer, self.tokenizer_sha256 = load_tokenizer(checkpoint)
        self.model = load_model(checkpoint, self.dtype, self.device).eval()
        grouped = use_grouped_attention(self.model)
        self.takes_rows_later = grouped and takes_rows_later(DynamicCache(config=self.model.config))
        self.eos = eos_token_ids(self.model, self.tokenizer)
        self.texts: dict[int, str] = {}  # of single tokens
        self.max_tokens: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return True

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        """See `Sampler.generate`. The rows that come in together stand longest prompt first."""
        feed = feed_of(requests)
        return self._run(lambda num, wait: self._rows(feed.take(num, wait), params), feed.total, params)

    def _run(
        self, take: Callable[[int, bool], list[Row]], num_total: int, params: SamplingParams
    ) -> Iterator[list[Generated]]:
        """Run over all rows that `take` gives, as `Feed.take` does; after each token, yield those that finished."""
        num_done = 0
        room = Places(self.device) if self.takes_rows_later else Batch()
        beginning = Beginning()
        active: list[Row] = []
        draws: list[random.Random] = []
        seen: torch.Tensor | None = None
        tokens = torch.zeros(0, dtype=torch.long, device=self.device)
        while True:
            num_free = self.batch_size - len(active)
            refill = not active or (self.takes_rows_later and num_free * REFILL_SHARE >= self.batch_size)
            incoming = take(num_free, not active) if refill else []
            if not active and not incoming:
                return
            done: list[Generated] = []
            with torch.inference_mode():
                logits = None
                if active:
                    if seen is not None:
                        seen.scatter_(1, tokens[:, None], True)
                    logits = self._forward(tokens[:, None], *room.inputs())
                if incoming:
                    # Not with sliding windows: the padding of shorter prompts comes after what all begin with, and would count.
                    if self.takes_rows_later and beginning.take(row.prompt_token_ids for row in incoming):
                        beginning.cache = self._begin(beginning.token_ids)
                    for new in self._slices(incoming, len(beginning.token_ids)):
                        more, cache, mask, index = self._prefill(new, beginning.token_ids, beginning.cache)
                        room.put(cache, mask, index)
                        del cache
                        logits = more if logits is None else torch.cat([logits, more])
                        active += new
                        draws += [random.Random(row.request.seed) for row in new]
                        if params.repetition_penalty != 1.0:
                            fresh = torch.zeros_like(more, dtype=torch.bool)
                            for i, row in enumerate(new):
                                fresh[i, list(row.prompt_token_ids)] = True
                            seen = fresh if seen is None else torch.cat([seen, fresh])
                        self.progress(num_done, num_total)
                assert logits is not None
                tokens, logprobs = self._choose(logits, [stream.random() for stream in draws], params, seen)
                for row, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
                    self._append(row, token, logprob, params)
                kept = [i for i, row in enumerate(active) if row.finish_reason is None]
                if len(kept) < len(active):
                    done = [self._completion(row) for row in active if row.finish_reason is not None]
                    num_done += len(active) - len(kept)
                    order = room.keep(kept)
                    active, draws = [active[i] for i in order], [draws[i] for i in order]
                    tokens = tokens[order]
                    seen = seen[order] if seen is not None else None
            self.progress(num_done, num_total)
            if done:
                yield done

    def _rows(self, requests: Sequence[Request], params: SamplingParams) -> list[Row]:
        """A row for each request, longest prompt first; those with the same prompt side by side."""
        prompts = fitting_prompts(self.tokenizer, requests, params, self.max_tokens)
        rows = [Row(request, tuple(prompts[request.id])) for request in requests]
        return sorted(rows, key=lambda row: (-len(row.prompt_token_ids), row.prompt_token_ids))

    def _slices(self, rows: list[Row], start: int) -> list[list[Row]]:
        """Rows, longest first, in slices whose distinct prompts hold at most PREFILL_TOKENS beyond their `start` tokens.

        A model whose rows must begin together gets them in one.
        """
        if not self.takes_rows_later:
            return [rows]
        slices: list[list[Row]] = []
        prompts: set[tuple[int, ...]] = set()
        width = 0
        for row in rows:
            prompt = row.prompt_token_ids
            if not slices or (prompt not in prompts and (len(prompts) + 1) * width > PREFILL_TOKENS):
                slices.append([])
                prompts, width = set(), len(prompt) - start  # no later prompt is longer
            slices[-1].append(row)
            prompts.add(prompt)
        return slices

    def _begin(self, common: tuple[int, ...]) -> DynamicCache:
        """The cache of the tokens with which all prompts of a call begin."""
        cache = DynamicCache(config=self.model.config)
        ids = self._tensor([common])
        self._forward(ids, cache, torch.ones_like(ids), torch.arange(len(common), device=self.device)[None])
        return cache

    def _prefill(
        self, rows: list[Row], common: tuple[int, ...], beginning: DynamicCache | None
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
        """The logits after each row's prompt (n, V); the cache and mask (B, T) of the distinct prompts; each row's (n,).

        Each distinct prompt is computed once, after `beginning`, which holds the `common` tokens.
        """
        prompts = list(dict.fromkeys(row.prompt_token_ids for row in rows))
        start = len(common)
        width = max(map(len, prompts)) - start
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.eos, default=0)
        padding = [width + start - len(prompt) for prompt in prompts]
        input_ids = self._tensor([[pad] * n + [*prompt[start:]] for n, prompt in zip(padding, prompts, strict=True)])
        mask = self._tensor([[1] * start + [0] * n + [1] * (width - n) for n in padding])
        positions = (mask.cumsum(-1) - 1)[:, start:].clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        if beginning is not None:
            cache = copy.deepcopy(beginning)
            cache.batch_repeat_interleave(len(prompts))
        logits = self._forward(input_ids, cache, mask, positions)
        number = {prompt: i for i, prompt in enumerate(prompts)}
        index = self._tensor([number[row.prompt_token_ids] for row in rows])
        return logits[index], cache, mask, index

    def _forward(
        self, input_ids: torch.Tensor, cache: Any, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """The next token's logits in float32. (B, t), cache, (B, T), (B, t) -> (B, V)."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _tensor(self, values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _choose(
        self, logits: torch.Tensor, uniforms: list[float], params: SamplingParams, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row and the model's own log-probability of it. (B, V) -> (B,), (B,)."""
        mass = logits.logsumexp(-1)
        scores = logits
        if seen is not None:
            penalised = torch.where(logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty)
            scores = torch.where(seen, penalised, logits)
        if params.temperature == 0.0:
            tokens = scores.argmax(-1)
        else:
            probabilities, ids = truncated_distribution(scores, params)
            tokens = draw(probabilities, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
            if ids is not None:
                tokens = ids.gather(1, tokens[:, None])[:, 0]
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - mass

    def _append(self, row: Row, token: int, logprob: float, params: SamplingParams) -> None:
        if not math.isfinite(logprob):
            raise EngineError(f"request {row.request.id}: the model's logits are not finite; its weights are damaged")
        row.token_ids.append(token)
        row.logprob_sum += logprob
        if token in self.eos:
            row.finish_reason = "eos"
        elif params.stop and self._stopped(row, params.stop):
            row.finish_reason = "stop"
        elif len(row.token_ids) >= params.max_new_tokens:
            row.finish_reason = "length"

    def _stopped(self, row: Row, stop: tuple[str, ...]) -> bool:
        last = row.token_ids[-1]
        if last not in self.texts:
            self.texts[last] = self.tokenizer.decode([last], skip_special_tokens=True)
        text = self.texts[last]  # alone, a token may lose its blanks or be a part of a character
        if text and "\ufffd" not in text and not any(string[-1] in text or string[-1].isspace() for string in stop):
            return False
        longest = max(len(string.encode()) for string in stop)  # each token stands for at least a byte
        tail = self.tokenizer.decode(row.token_ids[-longest - 1 :], skip_special_tokens=True)
        return any(string in tail for string in stop)

    def _completion(self, row: Row) -> Generated:
        return completion(
            self.tokenizer, row.request.id, row.prompt_token_ids, row.token_ids, row.finish_reason, row.logprob_sum
        )

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        """See `Prober.probe`. The model is loaded already, which is the expensive part."""
        return probe(self, texts, truncation, top)

    def close(self) -> None:
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
