"""Probing with the engine's own weights. Runs inside vLLM's own worker processes.

vLLM gives the log-probabilities of a prompt's tokens, not the distribution's entropy, nor what the truncation would keep. So
while a text is forced through as a prompt, its hidden states are looked at where vLLM itself would make those log-probabilities
of them: both of its model runners pass that place in every step. The logits are those of vLLM's own output layer.
"""

from __future__ import annotations

from typing import Any

import torch

from loop.engines.base import Forced, SamplingParams
from loop.engines.hf_prober import MAX_LOGITS, Record, look
from loop.errors import EngineError


class Probe:
    """One text on its way through the model, alone and from its beginning."""

    def __init__(self, text: dict[str, Any], truncation: dict[str, Any], top: int, model: Any) -> None:
        self.record = Record(Forced.model_validate(text))
        self.truncation, self.top = SamplingParams.model_validate(truncation), top
        self.model = model
        self.num_seen = 0  # of its tokens
        self.error: str | None = None

    def see(self, hidden_states: torch.Tensor) -> None:
        """The hidden states of the tokens that come next, (T, d). What cannot be recorded is kept as `error`.

        Every rank computes the logits, of which each has a part; those that get none of the whole record nothing.
        """
        text = self.record.text
        begins, length = len(text.prompt_token_ids), len(text.prompt_token_ids) + len(text.token_ids)
        start, self.num_seen = self.num_seen, self.num_seen + len(hidden_states)
        first, end = max(start, begins - 1), min(self.num_seen, length - 1)  # a token is foretold by the one before it
        while first < end:
            step = self._step()
            logits = self.model.compute_logits(hidden_states[first - start : min(first + step, end) - start])
            places = [(self.record, position + 1 - begins) for position in range(first, min(first + step, end))]
            first += step
            try:
                if logits is not None:
                    look(logits.float(), places, self.truncation, self.top)
            except EngineError as error:  # raised here it would end the engine, which is not at fault
                self.error = str(error)

    def _step(self) -> int:
        return max(1, MAX_LOGITS // int(self.model.config.get_text_config().vocab_size))


class Probes:
    """Mixed into vLLM's worker class, which has the `model_runner`."""

    model_runner: Any

    def begin_probe(self, text: dict[str, Any], truncation: dict[str, Any], top: int) -> None:
        """From now on record the text, which must be the only request inside."""
        runner = self.model_runner
        self.probe = probe = Probe(text, truncation, top, runner.get_model())
        if worker := getattr(runner, "prompt_logprobs_worker", None):  # vLLM's second model runner
            follow = worker.compute_prompt_logprobs

            def second(logits_of: Any, hidden_states: torch.Tensor, batch: Any, *more: Any, **named: Any) -> Any:
                probe.see(hidden_states[: batch.num_tokens])
                return follow(logits_of, hidden_states, batch, *more, **named)

            worker.compute_prompt_logprobs = second
        else:
            follow = runner._get_prompt_logprobs_dict

            def first(hidden_states: torch.Tensor, *more: Any, **named: Any) -> Any:
                probe.see(hidden_states)
                return follow(hidden_states, *more, **named)

            runner._get_prompt_logprobs_dict = first

    def end_probe(self) -> dict[str, Any]:
        """What was recorded, `entries` as `Probed.of` takes them, or why not: `error`."""
        runner = self.model_runner
        if worker := getattr(runner, "prompt_logprobs_worker", None):
            del worker.compute_prompt_logprobs  # the class has its own
        else:
            del runner._get_prompt_logprobs_dict
        return {"entries": self.probe.record.entries, "error": self.probe.error}
