"""The table of formats: what the rest of the program derives from it, and what may never change in it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from loop.cli.grade import grade_command
from loop.errors import ConfigError
from loop.grading import formats
from loop.grading.formats import FORMATS_OF_PROMPTS, problem_of
from loop.prompts import sources


def test_the_kinds_and_keys_that_stores_and_caches_know() -> None:
    """A problem's kind is part of a suite's hash, and the name of a fetched data set is a hash of these keys, in this order."""
    kinds = ["gsm8k", "humaneval", "ifeval", "livecodebench", "math500", "mbpp", "mmlu_pro", "plus", "repository"]
    assert sorted(formats._BY_KIND) == kinds
    assert list(dict.fromkeys(sources._TEST_KEYS + sources._MORE_KEYS)) == [
        *("test_list", "test", "public_test_cases", "private_test_cases"),
        *("test_setup_code", "test_imports", "prompt", "entry_point", "code", "metadata"),
    ]


def test_a_row_with_keys_of_several_formats_has_the_first() -> None:
    rows = [
        ({"options": [], "question_id": 1}, "MMLU-Pro"),
        ({"question_id": 1, "base_input": [], "test_list": [], "test": ""}, "LiveCodeBench"),
        ({"base_input": [], "test_list": [], "test": ""}, "HumanEval\\+ or MBPP\\+"),
        ({"text": "x", "test_list": [], "test": ""}, "MBPP"),
        ({"test": "", "answer": ""}, "HumanEval"),
        ({"problem": ""}, "MATH-500"),
        ({"answer": ""}, "GSM8K"),
    ]
    for row, name in rows:
        with pytest.raises(ConfigError, match=f"here: lacks .*; a {name} problem has "):
            problem_of(row, "here")


def test_every_format_is_named_where_a_user_may_give_one() -> None:
    help_text = " ".join(CliRunner().invoke(grade_command, ["--help"]).output.split())
    assert (
        "GSM8K, MATH-500, IFEval, HumanEval, MBPP, HumanEval+ or MBPP+, LiveCodeBench, MMLU-Pro, a repository's functions, "
        "the loop's own, or a name." in help_text
    )
    with pytest.raises(ConfigError) as caught:
        problem_of({"a": 1}, "here")
    assert str(caught.value).startswith("here: is in no known format (keys: a); expected GSM8K (question, answer), ")
    assert all(f"{known.name} ({known.keys})" in str(caught.value) for known in formats._FORMATS)


def test_a_prompts_row_is_read_by_the_format_of_its_tests() -> None:
    row = {"question_id": "q", "test_list": ["assert f() == 1"], "test": "x"}
    tested_in = next(known for known in FORMATS_OF_PROMPTS if any(row.get(key) for key in known.test_keys))
    problem = tested_in.problem_of(tested_in.row_of_prompt(row, "name", "Return one.", "def f():"), "here")
    assert (problem.kind, problem.task_id, problem.prompt_code) == ("mbpp", "name", "def f():")
