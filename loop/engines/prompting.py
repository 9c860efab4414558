"""From a request to token ids, the same way for every engine, so that the corpus holds the ids that the model saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loop.engines.base import Request, SamplingParams
from loop.errors import EngineError


def prompt_token_ids(tokenizer: Any, request: Request) -> list[int]:
    """The chat template's text with the assistant's turn opened by the prefill; or the bare prefill."""
    if not request.messages:
        return list(tokenizer(request.prefill)["input_ids"])
    if tokenizer.chat_template is None:
        raise EngineError("this model has no chat template; set model.chat_template = false")
    text = tokenizer.apply_chat_template(
        [dict(message) for message in request.messages], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text + request.prefill, add_special_tokens=False)["input_ids"])


def fitting_prompts(
    tokenizer: Any, requests: Sequence[Request], params: SamplingParams, max_tokens: int | None
) -> dict[str, list[int]]:
    """The prompt of each request, by its id. EngineError for one that is empty or does not fit the model."""
    prompts = {request.id: prompt_token_ids(tokenizer, request) for request in requests}
    for request in requests:
        num_tokens = len(prompts[request.id])
        if not num_tokens:
            raise EngineError(f"request {request.id}: the prompt is empty")
        if max_tokens and num_tokens + params.max_new_tokens > max_tokens:
            raise EngineError(
                f"a prompt that begins {request.beginning!r}: {num_tokens} prompt tokens and max_new_tokens "
                f"{params.max_new_tokens} exceed the model's {max_tokens}; lower max_new_tokens or shorten the prompt"
            )
    return prompts
