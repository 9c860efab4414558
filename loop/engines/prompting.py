"""From a request to token ids and from drawn ids to a completion, the same way for every engine: the corpus holds what the
model saw and drew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loop.engines.base import Forced, Generated, Request, SamplingParams
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
        check_prompt(request, len(prompts[request.id]), params, max_tokens)
    return prompts


def check_prompt(request: Request, num_tokens: int, params: SamplingParams, max_tokens: int | None) -> None:
    """EngineError for a prompt of `num_tokens` that is empty or does not fit the model."""
    if not num_tokens:
        raise EngineError(f"request {request.id}: the prompt is empty")
    if max_tokens and num_tokens + params.max_new_tokens > max_tokens:
        raise EngineError(
            f"a prompt that begins {request.beginning!r}: {num_tokens} prompt tokens and max_new_tokens "
            f"{params.max_new_tokens} exceed the model's {max_tokens}; lower max_new_tokens or shorten the prompt"
        )


def check_text(text: Forced, max_tokens: int | None) -> None:
    """EngineError for a text that has nothing to look at or does not fit the model."""
    num_tokens = len(text.prompt_token_ids) + len(text.token_ids)
    if not text.prompt_token_ids or not text.token_ids:
        raise EngineError(f"text {text.id}: has no prompt or no token to look at")
    if max_tokens and num_tokens > max_tokens:
        raise EngineError(f"text {text.id}: {num_tokens} tokens exceed the model's {max_tokens}; lower max_new_tokens")


def completion(
    tokenizer: Any, id: str, prompt: Sequence[int], token_ids: Sequence[int], reason: Any, logprob_sum: float
) -> Generated:
    """What was drawn after a prompt, with its text. `reason`: why it ended."""
    return Generated(
        id=id,
        text=tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        token_ids=tuple(token_ids),
        prompt_token_ids=tuple(prompt),
        finish_reason=reason,
        logprob_sum=logprob_sum,
    )
