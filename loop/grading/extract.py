"""Takes the program out of an answer.

The text comes from a model and may be hostile, so it is only read line by line with short regular expressions. Whether it is
Python shows in the sandbox, because parsing deeply nested text can end an interpreter. The rules are part of what a suite
measures: whoever changes one raises EXTRACTION_VERSION.
"""

from __future__ import annotations

import re
import textwrap

from loop.grading.formats import DEFINITION, asks_for_text, code_before
from loop.grading.problem import Problem

# Harmony answers came later without raising it: before that they were stored without the marks of their channels, by runs over a base
# in MXFP4, which cannot be continued anyway since the base is dequantised now. All other answers are read as before.
EXTRACTION_VERSION = 1

MAX_COMPLETION_CHARS = 1_000_000

_CHANNEL, _BARE_FINAL = "<|channel|>", "assistantfinal"
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([\w+.#-]{0,20})[^`]*$")
_PYTHON = {"", "py", "python", "python3", "py3", "pycon", "ipython", "ipython3"}
_CODE_LINE = re.compile(
    r"(?:async\s+def|def|class)\s+\w+\s*[(:\[]"
    r"|(?:async\s+)?(?:for|while|if|elif|with|match|case)\b.*:"
    r"|(?:try|else|finally)\s*:|except\b.*:"
    r"|@\w|import\s+[\w., ]+$|from\s+[\w.]+\s+import\b"
    r"|(?:return|assert|raise|yield|await)\b(?!\s+(?:the|an?|this|that|it|to|of)\s+\w+\s+\w)"
    r"|(?:del|global|nonlocal)\s+\w"
    r"|(?:return|pass|break|continue|yield)\s*$"
    r"|#|\"\"\"|'''|[rbfRBF]?[\"'].*[\"']\s*$|[)\]}]"
    r"|\(?[A-Za-z_*][\w., *\[\]()'\":+-]*(?:[-+*/%&|^@]|//|\*\*|<<|>>)?=(?!=)"
    r"|[A-Za-z_][\w.]*\(.*[)(\[{,\\:\"']\s*(?:[#;].*)?$"
)


def extract_code(completion: str, problem: Problem, prefilled_fence: bool) -> str | None:
    """The whole program to grade, with the code of the problem that it needs; None if the answer holds no code.

    For a problem that asks for text it is the answer without its thoughts. With `prefilled_fence` the prompt ended with "```python", so the completion is code up to the closing fence. Never raises.
    """
    if len(completion) > MAX_COMPLETION_CHARS:
        return None
    text = completion.replace("\r\n", "\n").replace("\r", "\n")
    if is_harmony(text):
        final = final_channel(text)
        if final is None:
            return None
        text, prefilled_fence = final, False  # it opens its own fences
    text = _without_thoughts(text)
    if asks_for_text(problem):
        return text.strip() or None
    code, text = (_until_fence(text), "") if prefilled_fence else _fenced(text, problem)
    if code is not None:
        return _program(code, problem) if code.strip() else None
    return _unfenced_program(text, problem)


def why_none(completion: str) -> str:
    """The detail of the verdict on an answer for which `extract_code` gives None."""
    if len(completion) > MAX_COMPLETION_CHARS:
        return f"the answer has {len(completion):,} characters; one of more than {MAX_COMPLETION_CHARS:,} is not read"
    if is_harmony(completion) and final_channel(completion) is None:
        return "the answer has no final channel: it ended in its analysis"
    return "the answer holds no code"


def is_harmony(text: str) -> bool:
    """Whether it is an answer in harmony, GPT-OSS's format, which begins with a channel.

    Decoded without its special tokens such an answer is "analysis...assistantfinal...". Nothing tells one of those that has
    no final channel from other text, which is why the loop keeps the special tokens.
    """
    start = text.lstrip()
    return start.startswith(_CHANNEL) or (start.startswith("analysis") and _BARE_FINAL in text)


def final_channel(text: str) -> str | None:
    """What a harmony answer says in its last message on the final channel; None if it has none there."""
    if not text.lstrip().startswith(_CHANNEL):
        return text.rpartition(_BARE_FINAL)[2]
    final = None
    for message in text.split(_CHANNEL)[1:]:
        header, has_content, content = message.partition("<|message|>")
        name = header.partition("<|")[0].split()  # "final", "commentary to=functions.run", "final <|constrain|>json"
        if has_content and name[:1] == ["final"]:
            final = re.split(r"<\|(?:end|return|call|start)\|>", content, maxsplit=1)[0]
    return final


def _without_thoughts(text: str) -> str:
    """The answer without its <think> blocks, even one that never ended and one that the chat template had opened."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL) if "</think>" in text else text
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0]


def _until_fence(text: str) -> str:
    lines = text.lstrip("\n").split("\n")
    if (opening := _fence(lines[0])) and opening[3]:
        lines = lines[1:]  # the model opened the fence a second time
    for number, line in enumerate(lines):
        if _fence(line):
            return "\n".join(lines[:number])
        if line.endswith("```") and line.count("```") == 1:  # closed at the end of a line of code
            return "\n".join([*lines[:number], line[:-3]])
    return "\n".join(lines)


def _fenced(text: str, problem: Problem) -> tuple[str | None, str]:
    """The code of the fence that counts; or None, and the text in which code is to be looked for without fences.

    The last closed fence counts, or the last of those that define the entry point, if any does. Without a closed fence it is
    the open one.
    """
    blocks: list[tuple[str, str]] = []  # language, code
    lines = text.split("\n")
    opening: re.Match[str] | None = None
    start = 0
    for number, line in enumerate(lines):
        match = _fence(line)
        if match is None:
            continue
        if opening is None:
            opening, start = match, number + 1
        elif match[2].startswith(opening[2]) and not match[3]:
            blocks.append((opening[3].lower(), _dedent(lines[start:number], opening[1])))
            opening = None
    if blocks:
        python = [code for language, code in blocks if language in _PYTHON and code.strip()]
        candidates = python or [code for _, code in blocks]
        defining = [code for code in candidates if _defines(code, problem.entry_point)]
        return (defining or candidates)[-1], text
    if opening is None:
        return None, text
    before, rest = lines[: start - 1], lines[start:]
    if not opening[3] and _has_code(before, problem) and not _has_code(rest, problem):
        return None, "\n".join(before)  # the answer continues the prompt and closes a fence that it never opened
    return _dedent(rest, opening[1]), text


def _fence(line: str) -> re.Match[str] | None:
    return _FENCE.match(line) if len(line) <= 200 else None


def _dedent(lines: list[str], indent: str) -> str:
    return "\n".join(line.removeprefix(indent) for line in lines)


def _program(code: str, problem: Problem) -> str:
    """A fenced answer as a whole program."""
    if _defines(code, problem.entry_point):
        code = textwrap.dedent(code)
        return _before_entry_point(problem, code) + code
    return _continued(problem.prompt_code, code.split("\n")) or code


def _unfenced_program(text: str, problem: Problem) -> str | None:
    """An answer without fences: a whole program with prose around it, or a continuation with prose after it."""
    lines = text.split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    whole = _defines(text, problem.entry_point)
    if not whole and (program := _continued(problem.prompt_code, _until_prose(lines[start:]))):
        return program
    start = next((number for number, line in enumerate(lines) if _is_code(line)), len(lines))
    code = "\n".join(_until_prose(lines[start:])).rstrip()
    return _before_entry_point(problem, code) + code + "\n" if code else None


def _defines(code: str, entry_point: str | None) -> bool:
    """Whether the code defines the entry point at its outer level; a function inside a body does not count."""
    if not entry_point:
        return False
    name = re.escape(entry_point)
    match = re.search(rf"^([ \t]*){DEFINITION}{name}\b|^{name}[ \t]*=(?!=)", code, re.MULTILINE)
    if match is None:
        return False
    indent = match[1]
    if not indent or re.search(r"^[ \t]*class[ \t]", code[: match.start()], re.MULTILINE):
        return True
    first_line = next(line for line in code.split("\n") if line.strip())
    return first_line.startswith(indent) and not re.search(rf"^{indent}(?:return|yield)\b", code, re.MULTILINE)


def _before_entry_point(problem: Problem, program: str) -> str:
    """The prompt's imports and helper functions for a program that lacks them, as whole programs often do; or ""."""
    before = code_before(problem)
    if not before or before in program or "from __future__" in program:
        return ""
    return before + "\n\n\n"


def _continued(prompt: str, lines: list[str]) -> str | None:
    """The prompt's code with these lines as the body that continues it; None if they do not look like one."""
    last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    indent = last[: _width(last)] + ("    " if last.rstrip().endswith(":") else "")
    body = _as_body(lines, indent)
    return None if body is None else prompt.rstrip() + "\n" + body


def _as_body(lines: list[str], indent: str) -> str | None:
    """The lines as the body of a function, with this indentation; None if they do not look like one."""
    lines = lines[next((number for number, line in enumerate(lines) if line.strip()), len(lines)) :]
    if not lines or not indent:
        return None
    first, rest = lines[0], [line for line in lines[1:] if line.strip()]
    if first[0] in " \t":
        if first.startswith(indent) and first[len(indent)] not in " \t":
            return "\n".join(lines) + "\n"
        return textwrap.indent(textwrap.dedent("\n".join(lines)), indent) + "\n"
    if re.match(DEFINITION + r"|import\b|from\b|@", first):
        return None
    if rest and all(line[0] in " \t" for line in rest):
        opens = first.rstrip().endswith((":", "(", "[", "{", ",", "\\"))
        if not opens or _width(rest[0]) > min(map(_width, rest)):  # only the first line lost its indentation
            return "\n".join([indent + first, *lines[1:]]) + "\n"
    if any(re.match(r"(?:return|yield|pass)\b", line) for line in lines):  # a body without indentation
        return textwrap.indent("\n".join(lines), indent) + "\n"
    return None


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_code(line: str) -> bool:
    """Whether a line without indentation may be code."""
    return bool(line.strip()) and _CODE_LINE.match(line[:400]) is not None


def _has_code(lines: list[str], problem: Problem) -> bool:
    return _defines("\n".join(lines), problem.entry_point) or any(_is_code(line.strip()) for line in lines)


def _until_prose(lines: list[str]) -> list[str]:
    """The lines before the first that has no indentation and cannot be code; strings over several lines are kept."""
    quote: str | None = None
    for number, line in enumerate(lines):
        if quote is None and line[:1] not in (" ", "\t", "") and not _is_code(line):
            return lines[:number]
        for mark in re.findall(r'"""|' + "'''", line):
            if quote is None:
                quote = mark
            elif quote == mark:
                quote = None
    return lines
