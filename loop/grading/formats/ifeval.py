"""IFEval: instructions whose following can be seen from the text alone. All of a prompt's must be followed (strict).

The rules are those of google-research's instruction_following_eval (`instructions.py`, Apache-2.0). Two differ: capital and
lowercase letters are looked at without a language detector, as the official code does where the detector gives up. The
instructions in NEEDS are refused: a language detector, or NLTK's sentences and words, would decide them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format, TextVerdict
from loop.grading.json_lines import Row
from loop.grading.problem import Problem
from loop.words import shown

NEEDS = {
    "language:response_language": "a language detector",
    "length_constraints:number_sentences": "NLTK's sentences",
    "change_case:capital_word_frequency": "NLTK's words",
}
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
Arguments = dict[str, Any]


def _compared(number: int, limit: int, relation: str) -> bool:
    return number < limit if relation == "less than" else number >= limit


def _occurs(keyword: str, text: str) -> int:
    """How often a keyword occurs. It is a regular expression in the official code, and plain words in its data."""
    return len(re.findall(re.escape(keyword), text, flags=re.IGNORECASE))


def _has_words(text: str, relation: str, num_words: int) -> bool:
    return _compared(len(re.findall(r"\w+", text)), num_words, relation)


def _has_letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.lower()), let_frequency, let_relation)


def _lacks_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, flags=re.IGNORECASE) for word in forbidden_words)


def _has_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def _nth_begins_with(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    num = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > num or not (paragraph := paragraphs[nth_paragraph - 1].strip()):
        return False
    word = re.split(r"[.,?!'\"]", paragraph.split()[0].lstrip("'").lstrip('"'))[0].lower()
    return num == num_paragraphs and word == first_word.lower()


def _has_postscript(text: str, postscript_marker: str) -> bool:
    marks = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(
        re.search(marks.get(postscript_marker.strip()) or re.escape(postscript_marker.strip().lower()), text.lower())
    )


def _has_bullets(text: str, num_bullets: int) -> bool:
    lines = text.split("\n")
    starred = sum(bool(re.match(r"\s*\*[^*]", line)) for line in lines)
    return starred + sum(line.lstrip().startswith("-") for line in lines) == num_bullets


def _has_highlights(text: str, num_highlights: int) -> bool:
    marked = [part.strip("*") for part in re.findall(r"\*[^\n*]*\*", text)]
    marked += [part[2:-2] for part in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(part.strip()) for part in marked) >= num_highlights


def _has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _is_json(text: str) -> bool:
    value = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        value = value.removeprefix(fence)
    try:
        json.loads(value.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _is_two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _has_title(line: str) -> bool:
    begin, end = line.find("<<"), line.rfind(">>")
    return 0 <= begin < end - 2 and bool(line[begin : end + 2].lstrip("<").rstrip(">").strip())


def _is_quoted(text: str) -> bool:
    value = text.strip()
    return len(value) > 1 and value[0] == value[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda text, keywords: all(_occurs(keyword, text) for keyword in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: _compared(
        _occurs(keyword.strip(), text), frequency, relation
    ),
    "keywords:forbidden_words": _lacks_words,
    "keywords:letter_frequency": _has_letters,
    "length_constraints:number_words": _has_words,
    "length_constraints:number_paragraphs": _has_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_begins_with,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _has_postscript,
    "detectable_format:number_bullet_lists": _has_bullets,
    "detectable_format:constrained_response": lambda text: any(response in text for response in _CONSTRAINED),
    "detectable_format:number_highlighted_sections": _has_highlights,
    "detectable_format:multiple_sections": _has_sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda text: any(map(_has_title, text.split("\n"))),
    "combination:two_responses": _is_two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: (
        text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:end_checker": lambda text, end_phrase: (
        text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": _is_quoted,
    "change_case:english_capital": lambda text: text.isupper(),
    "change_case:english_lowercase": lambda text: text.islower(),
    "punctuation:no_comma": lambda text: "," not in text,
}


def _instructions(row: Row, where: str) -> list[tuple[str, Arguments]]:
    names, given = fields.texts(row, "instruction_id_list", where), row["kwargs"]
    if not isinstance(given, list) or len(given) != len(names) or not all(isinstance(each, dict) for each in given):
        raise ConfigError(f"{where}: kwargs is not a list of an object for each instruction; fetch the file again")
    instructions = []
    for name, arguments in zip(names, given, strict=True):
        if name in NEEDS:
            raise ConfigError(
                f"{where}: {name} cannot be checked here: {NEEDS[name]} would decide it; leave the row out"
            )
        if name not in CHECKS:
            raise ConfigError(f"{where}: the instruction {shown(name)} is unknown; leave the row out")
        kept = {
            key: value for key, value in arguments.items() if value is not None
        }  # the hub's table fills up with null
        try:
            CHECKS[name]("a text", **kept)
        except (TypeError, AttributeError, ValueError, IndexError):
            raise ConfigError(
                f"{where}: {name} lacks an argument, or one is of a wrong type; fetch the file again"
            ) from None
        instructions.append((name, kept))
    return instructions


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("prompt", "instruction_id_list", "kwargs"), FORMAT.name, where)
    prompt, instructions = fields.text(row, "prompt", where), _instructions(row, where)
    if not instructions:
        raise ConfigError(f"{where}: instruction_id_list is empty, so anything would pass; leave the row out")
    return Problem(
        task_id=fields.task_id(row, "key", where) if "key" in row else fields.named_by(prompt),
        statement=prompt,
        kind=FORMAT.kind,
        payload={"instructions": instructions},
    )


def _verdict(problem: Problem, text: str) -> TextVerdict:
    if not text.strip():
        return "no_code", "the answer is empty"
    missed = [name for name, arguments in problem.payload["instructions"] if not CHECKS[name](text, **arguments)]
    return ("failed", f"did not follow {', '.join(missed)}") if missed else ("passed", "")


FORMAT = Format(
    kind="ifeval",
    name="IFEval",
    keys="instruction_id_list",
    told_by=("instruction_id_list",),
    problem_of=_problem_of,
    reads=_verdict,
)
