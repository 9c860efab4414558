"""Probing with transformers: the model follows a text, and its next-token distribution is recorded at every token.

The model runs over a batch a slice of positions at a time, with a cache, so that the logits in memory are bounded for
texts of any length. Rows are padded on the right: attention looks back only, so padding changes nothing before it. Runs
only inside a worker process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from loop.engines.base import LEAST_LOGPROB, CheckpointRef, EngineConfig, Forced, Probed, Progress, SamplingParams
from loop.engines.drawing import truncated_distribution
from loop.engines.prompting import check_text
from loop.errors import EngineError

if TYPE_CHECKING:
    from loop.engines.hf_sampler import TransformersSampler

MAX_LOGITS = 1 << 24  # in one slice: 64 MB in float32, and a few copies of it
# The digits that are kept: a fine-tune changes figures by more, and half of the bytes are saved.
DIGITS, LOGPROB_DIGITS = 6, 4


class ProbesHere:
    """A Prober for a sampler whose weights are elsewhere: the same ones under transformers, until the next completions.

    They are on the CPU. A server gives no whole distributions.
    """

    checkpoint: CheckpointRef
    settings: EngineConfig
    progress: Progress
    prober: TransformersSampler | None = None

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        from loop.engines.hf_sampler import TransformersSampler

        if self.prober is None:
            self.prober = TransformersSampler(self.checkpoint, self.settings.changed(device="cpu"), self.progress)
        yield from self.prober.probe(texts, truncation, top)

    def end_prober(self) -> None:
        """Free its memory."""
        if self.prober is not None:
            self.prober.close()
            self.prober = None


@dataclass
class Record:
    """A text, and the entries of its record so far."""

    text: Forced
    entries: list[dict[str, Any]] = field(default_factory=list)


def probe(
    loaded: TransformersSampler, texts: Sequence[Forced], truncation: SamplingParams, top: int
) -> Iterator[list[Probed]]:
    """See `Prober.probe`. The longest texts come first, so that one that does not fit in memory fails at once."""
    for text in texts:
        check_text(text, loaded.max_tokens)
    waiting = sorted(texts, key=lambda text: -len(text.prompt_token_ids) - len(text.token_ids))
    num_done = 0
    while waiting:
        batch, waiting = waiting[: loaded.batch_size], waiting[loaded.batch_size :]
        records = [Record(text) for text in batch]
        with torch.inference_mode():
            for _ in _slices(loaded, records, truncation, top):
                loaded.progress(num_done, len(texts))
        num_done += len(batch)
        loaded.progress(num_done, len(texts))
        yield [Probed.of(record.text, record.entries) for record in records]


def _slices(loaded: TransformersSampler, records: list[Record], truncation: SamplingParams, top: int) -> Iterator[None]:
    """Run over the batch slice by slice and fill in the records."""
    rows = [[*record.text.prompt_token_ids, *record.text.token_ids] for record in records]
    begins = [len(record.text.prompt_token_ids) for record in records]
    width = max(map(len, rows)) - 1  # nobody asks what follows the last token
    input_ids = torch.tensor([[*row, *[0] * (width + 1 - len(row))] for row in rows], device=loaded.device)  # (B, T+1)
    step = max(1, MAX_LOGITS // (len(rows) * loaded.model.config.get_text_config().vocab_size))
    cache = DynamicCache(config=loaded.model.config)
    start, end = 0, min(begins)  # the first slice ends where an answer begins
    while start < width:
        end = min(end, width)
        output = loaded.model(
            input_ids=input_ids[:, start:end],
            attention_mask=torch.ones_like(input_ids[:, :end]),
            position_ids=torch.arange(start, end, device=loaded.device).expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1 if start == 0 else 0,
        )
        first = end - output.logits.shape[1]  # logits are (B, t, V), for what follows the tokens from `first` to `end`
        wanted = [
            (number, position)
            for number, row in enumerate(rows)
            for position in range(max(first, begins[number] - 1), min(end, len(row) - 1))
        ]
        if wanted:
            chosen = torch.tensor(wanted, device=loaded.device)
            logits = output.logits[chosen[:, 0], chosen[:, 1] - first].float()  # (N, V)
            look(logits, [(records[n], position + 1 - begins[n]) for n, position in wanted], truncation, top)
        start, end = end, end + step
        yield


def look(logits: torch.Tensor, places: list[tuple[Record, int]], truncation: SamplingParams, top: int) -> None:
    """Add an entry for each row of logits (N, V), in float32, to its record; those of a record in order of position."""
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    top_probability, top_token_id = probabilities.max(-1)
    if not bool(top_probability.isfinite().all()):
        name = places[0][0].text.id
        raise EngineError(f"text {name}: the model's logits are not finite; its weights are damaged")
    entropy = torch.special.entr(probabilities).sum(-1)
    kept, ids = truncated_distribution(logits, truncation)
    num_kept = (kept > 0).sum(-1) if ids is not None else torch.full_like(top_token_id, logits.shape[-1])
    own = logprobs.topk(min(top, logits.shape[-1]), dim=-1).indices.tolist()
    at = [
        own[row] if record.text.at is None else list(record.text.at[index])
        for row, (record, index) in enumerate(places)
    ]
    figures = (each.tolist() for each in (entropy, top_token_id, top_probability, num_kept))
    rows = zip(places, at, *figures, *_at(logprobs, at), strict=True)
    for (record, _), ids, nats, token, share, count, masses, rest in rows:
        entry = {
            "entropy": round(max(0.0, nats), DIGITS),
            "top_token_id": token,
            "top_probability": round(share, DIGITS),
            "at": ids,
            "logprobs": [round(mass, LOGPROB_DIGITS) for mass in masses],
            "rest": round(rest, LOGPROB_DIGITS),
            "num_kept": min(count, len(ids)),
        }
        record.entries.append(entry)


def _at(logprobs: torch.Tensor, at: list[list[int]]) -> tuple[list[list[float]], list[float]]:
    """The log-probabilities of each row's tokens, and the log of what all its other tokens hold together. (N, V)"""
    longest = max(map(len, at))
    padded = torch.tensor([[*tokens, *tokens[-1:] * (longest - len(tokens))] for tokens in at], device=logprobs.device)
    values = logprobs.gather(1, padded).clamp(min=LEAST_LOGPROB).tolist()
    others = logprobs.scatter(1, padded, -torch.inf).logsumexp(-1).clamp(min=LEAST_LOGPROB).tolist()
    return [row[: len(tokens)] for row, tokens in zip(values, at, strict=True)], others
