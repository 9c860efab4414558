"""Prompts do not depend on the day; a harmony answer keeps the marks of its channels."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils

from loop.engines.base import Request
from loop.engines.prompting import CHANNEL_MARKS, completion, prompt_token_ids
from loop.grading.extract import final_channel, is_harmony
from tests.support.tiny import CHAT_TEMPLATE, END, make_tokenizer

# As GPT-OSS's template, in a macro, and as that of Llama 3.2.
DATED = {
    "gpt-oss": "{%- macro system() %}{{ 'Current date: ' + strftime_now('%Y-%m-%d') }}{% endmacro %}{{ system() }}",
    "llama": "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ 'Today: ' + date_string }}",
}
ASKED = Request(id="r", messages=({"role": "user", "content": "Hello"},), seed=1)


@pytest.fixture(scope="module")
def harmony() -> Any:
    tokenizer = make_tokenizer()
    marks = [*CHANNEL_MARKS, "<|return|>", "<|call|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


@pytest.mark.parametrize("name", DATED)
def test_a_prompt_is_the_same_on_every_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED[name] + CHAT_TEMPLATE
    days, prompts, rendered = (datetime(2025, 8, 5), datetime(2031, 2, 3)), set(), set()
    for day in days:

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None, day: datetime = day) -> datetime:
                return day

        monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)
        rendered.add(tokenizer.apply_chat_template(ASKED.messages, tokenize=False))
        prompts.add(tokenizer.decode(prompt_token_ids(tokenizer, ASKED)))
    assert len(rendered) == 2, "the template tells the date"
    (prompt,) = prompts
    assert "2026-01-01" in prompt or "01 Jan 2026" in prompt


def test_a_template_without_a_date_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer may refuse what its template does not use."""
    tokenizer, given = make_tokenizer(), []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda *a, **named: (given.append(named), render(*a, **named))[1]
    )
    prompt_token_ids(tokenizer, ASKED)
    assert set(given[0]) == {"tokenize", "add_generation_prompt"}


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_harmony_answer_keeps_its_channels(harmony: Any) -> None:
    text = "<|channel|>analysis<|message|>Sum\n```<|end|><|start|>assistant<|channel|>final<|message|>return a + b"
    drawn = ids(harmony, text + "<|return|>" + END)
    generated = completion(harmony, "r", [1], drawn, "eos", -1.0)
    assert generated.token_ids == tuple(drawn)
    assert generated.text == text and is_harmony(generated.text)
    assert final_channel(generated.text) == "return a + b"


def test_no_other_tokenizers_text_changes() -> None:
    """Not even where the model spells the marks letter by letter."""
    tokenizer = make_tokenizer()
    text = "<|channel|>final<|message|>return a + b<|end|>"
    drawn = [*ids(tokenizer, text), tokenizer.eos_token_id]
    assert completion(tokenizer, "r", [1], drawn, "eos", -1.0).text == text
    assert completion(tokenizer, "r", [1], drawn, "eos", -1.0).text == tokenizer.decode(drawn, skip_special_tokens=True)
