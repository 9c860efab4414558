"""From a request to token ids and from drawn ids to a completion, the same way for every engine: the corpus holds what the
model saw and drew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from loop.engines.base import Forced, Generated, Request, SamplingParams
from loop.errors import EngineError

# Today, for every chat template that asks: GPT-OSS and Llama 3.2 tell the model the date. A head and a candidate that are
# measured on two days must get the same prompts, and so must a run that is repeated. Any day would do that is later than
# what the models know.
TODAY = datetime(2026, 1, 1)

# What GPT-OSS's harmony format marks a message, its channel and its end with. A text without them cannot be taken apart.
CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")


def prompt_token_ids(tokenizer: Any, request: Request) -> list[int]:
    """The chat template's text with the assistant's turn opened by the prefill; or the bare prefill."""
    if not request.messages:
        return list(tokenizer(request.prefill)["input_ids"])
    if tokenizer.chat_template is None:
        raise EngineError("this model has no chat template; set model.chat_template = false")
    # A variable of that name hides transformers' own function, which asks the clock.
    date = {"strftime_now": TODAY.strftime} if "strftime_now" in str(tokenizer.chat_template) else {}
    messages = [dict(message) for message in request.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **date)
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
        text=text_of(tokenizer, token_ids),
        token_ids=tuple(token_ids),
        prompt_token_ids=tuple(prompt),
        finish_reason=reason,
        logprob_sum=logprob_sum,
    )


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of what was drawn, without special tokens, except for those that mark the channels of a harmony answer."""
    added = tokenizer.get_added_vocab()
    if not all(mark in added for mark in CHANNEL_MARKS):
        return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    left_out = set(tokenizer.all_special_ids) - {added[mark] for mark in CHANNEL_MARKS}
    kept = [token for token in token_ids if token not in left_out]
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
