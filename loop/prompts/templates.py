"""How a task becomes what the model is asked. The wording is part of each prompt's hash, and of a suite's identity."""

from __future__ import annotations

import re
from typing import Any

TEMPLATE_VERSION = 1
FENCE = "```python\n"
_SIGNATURE = re.compile(r"(def|class)\s+(\S[^\n]*?)\s*:")


def ask(statement: str, starter_code: str = "", *, program: bool = False) -> str:
    """The user's message: what to write and, for a function, its signature; for a program, where its input comes from."""
    code, statement = starter_code.strip(), statement.strip()
    if program:
        where = "Write a Python program that reads from standard input and prints the answer to standard output."
        return f"{statement}\n\n{where}" if statement else where
    if signature := _SIGNATURE.fullmatch(code):
        noun = "class" if signature[1] == "class" else "function"
        return f"Write a Python {noun} `{signature[2]}`. {statement}".strip()
    if code:
        return f"{statement}\n\nComplete this Python code:\n\n{FENCE}{starter_code.rstrip()}\n```".strip()
    return f"{statement}\n\nAnswer with Python code."


def opening(starter_code: str = "") -> str:
    """How an answer begins if its fence is opened for the model: with the code that the model continues."""
    return FENCE + starter_code.rstrip()


def content(question: str, *, chat: bool, opening: str = "", system_prompt: str | None = None) -> dict[str, Any]:
    """What the engine gets: chat messages and the text that opens the answer; or bare text, if `chat` is false.

    `opening` has a key of its own, because an answer's code is the opening's code and then the completion.
    """
    if not chat:
        prefill = f"{question}\n\n{opening}" if opening else question
        return {"messages": [], "prefill": prefill, "opening": opening}
    system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
    return {"messages": [*system, {"role": "user", "content": question}], "prefill": opening, "opening": opening}


def answer(opening: str, text: str) -> str:
    """The whole answer without the opened fence: the text from which code is extracted."""
    return opening.removeprefix(FENCE) + text
