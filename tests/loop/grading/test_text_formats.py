"""Problems that ask for a text: GSM8K, MATH-500, MMLU-Pro and IFEval. Right answers pass, wrong ones fail, nothing is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.settings import Config, Model
from loop.config.settings import Suite as SuiteTable
from loop.errors import ConfigError
from loop.grading.extract import extract_code, why_none
from loop.grading.formats import asks_for_text, problem_of, verdict_on_text
from loop.grading.formats.gsm8k import last_number
from loop.grading.formats.ifeval import CHECKS, NEEDS
from loop.grading.formats.math500 import boxed, written_alike
from loop.grading.formats.mmlu_pro import letter
from loop.grading.grader import Grader, Job
from loop.grading.problem import Problem
from loop.grading.suite import load_suite
from loop.stages.evaluating import yardstick

GSM8K = {
    "question": "Ann bakes 3 cakes a day and sells each for $1,200. What does she earn in a week?",
    "answer": "She bakes 3*7=<<3*7=21>>21 cakes.\nShe earns 21*1200=<<21*1200=25200>>25200.\n#### 25,200",
}
MATH = {
    "problem": "What is $\\frac{1}{4}+\\frac{1}{4}$?",
    "solution": "It is $\\frac{2}{4} = \\boxed{\\frac{1}{2}}$.",
    "answer": "\\frac{1}{2}",
    "subject": "Prealgebra",
    "level": 2,
    "unique_id": "test/prealgebra/7.json",
}
MMLU = {
    "question_id": 70,
    "question": "Which of these is a prime number?",
    "options": ["4", "6", "7", "N/A"],
    "answer": "C",
    "answer_index": 2,
    "cot_content": "",
    "category": "math",
    "src": "made up",
}
IFEVAL = {
    "key": 1000,
    "prompt": "Name a colour without commas, in at least 3 words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"relation": None}, {"num_words": 3, "relation": "at least"}],
}
ROWS = {"gsm8k": GSM8K, "math500": MATH, "mmlu-pro": MMLU, "ifeval": IFEVAL}


def verdict(problem: Problem, answer: str) -> str:
    text = extract_code(answer, problem, prefilled_fence=False)
    return "no_code" if text is None else verdict_on_text(problem, text)[0]


def gsm8k(answer: str) -> str:
    return verdict(problem_of(GSM8K, "here"), answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GSM8K["answer"], "passed"),
        ("The answer is $25,200.", "passed"),
        ("25200.00", "passed"),
        ("#### 25200\nAs she has 7 days.", "passed"),
        ("Seven days, so 25200. That is all for 7 days", "failed"),
        ("#### 25201", "failed"),
        ("<think>25200</think>It is 3.", "failed"),
        ("<think>It is 25200", "no_code"),
        ("I do not know", "no_code"),
        ("", "no_code"),
        ("-25200", "failed"),
        ("####", "no_code"),
        ("#### nothing\n25200", "passed"),
    ],
)
def test_gsm8k(answer: str, expected: str) -> None:
    assert gsm8k(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (MATH["solution"], "passed"),
        ("So \\boxed{1/2}", "passed"),
        ("\\boxed{0.5}", "passed"),
        ("\\boxed{\\dfrac12}", "passed"),
        ("\\boxed{ \\frac{1}{2} }", "passed"),
        ("\\boxed{x = \\frac{1}{2}}", "passed"),
        ("\\boxed{1/2} or rather \\boxed{1/3}", "failed"),
        ("\\boxed{2}", "failed"),
        ("\\boxed{}", "no_code"),
        ("\\boxed{1/2", "no_code"),
        ("It is 1/2.", "no_code"),
    ],
)
def test_math500(answer: str, expected: str) -> None:
    assert verdict(problem_of(MATH, "here"), answer) == expected


def test_latex_is_written_alike() -> None:
    same = [
        ("\\tfrac{3}{4}", "\\frac34"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("90^\\circ", "90"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("10\\%", "10"),
        ("5\\text{ cm}", "5"),
        (".5", "0.5"),
        ("\\$36", "36"),
        ("1,\\!000", "1,000"),
        ("-3/4", "\\frac{-3}{4}"),
        ("\\frac1{72}", "\\frac{1}{72}"),
    ]
    assert [pair for pair in same if written_alike(pair[0]) != written_alike(pair[1])] == []
    different = [("x+1", "1+x"), ("3", "4"), ("\\text{even}", "\\text{odd}"), ("a=b=c", "c"), ("10", "1")]
    assert [pair for pair in different if written_alike(pair[0]) == written_alike(pair[1])] == []
    assert boxed("\\boxed{a{b}c} and \\fbox{d}") == "d" and boxed("\\boxed 7$ euros") == "7"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The answer is (C).", "passed"),
        ("the answer is C", "passed"),
        ("Answer: C\nNot A", "passed"),
        ("7 is prime, so C", "passed"),
        ("The answer is (A). No, the answer is (C).", "failed"),
        ("Not C but B", "failed"),
        ("Chemistry", "no_code"),
        ("none", "no_code"),
    ],
)
def test_mmlu_pro(answer: str, expected: str) -> None:
    assert verdict(problem_of(MMLU, "here"), answer) == expected
    assert letter("Answer: A. Or Answer: B\nAnswer: D") == "B", "the last on the first line that has any"


FOLLOWED: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["red", "Sky"]}, "A RED sky", "A red sea"),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, "a b A", "a b"),
    ("keywords:frequency", {"keyword": "b", "frequency": 2, "relation": "less than"}, "a b", "b b"),
    ("keywords:forbidden_words", {"forbidden_words": ["can"]}, "I cannot", "I can"),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, "eve", "never"[:2]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "it's", "one two three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n***\n\n***\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First\n\n\"then, more",
        "Then\n\nfirst",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a [b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP. S. me", "Bye\nP.S"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. x", "P.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n** b"),
    ("detectable_format:constrained_response", {}, "Well: My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1 a SECTION 2", "SECTION 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say it. Yes", "Yes. Say it."),
    ("startend:end_checker", {"end_phrase": "The End"}, 'so. "the end"', "the end."),
    ("startend:quotation", {}, ' "a" ', '"a" b'),
    ("change_case:english_capital", {}, "ABC 1", "ABc"),
    ("change_case:english_lowercase", {}, "abc 1", "aBc"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "follows", "does_not"), FOLLOWED)
def test_an_instruction_is_seen_to_be_followed_or_not(
    name: str, arguments: dict[str, Any], follows: str, does_not: str
) -> None:
    row = {"key": 1, "prompt": "Do it.", "instruction_id_list": [name], "kwargs": [arguments]}
    problem = problem_of(row, "here")
    assert (verdict(problem, follows), verdict(problem, does_not)) == (
        "passed",
        "failed" if does_not.strip() else "no_code",
    )
    assert verdict(problem, "") == "no_code"


def test_every_instruction_is_either_tried_or_refused() -> None:
    assert {name for name, *_ in FOLLOWED} == set(CHECKS) and not CHECKS.keys() & NEEDS.keys()
    assert len(CHECKS) + len(NEEDS) == 25, "as many as the official registry has"


def test_all_instructions_of_a_prompt_must_be_followed() -> None:
    problem = problem_of(IFEVAL, "here")
    assert verdict(problem, "Blue is one") == "passed"
    assert verdict_on_text(problem, "Blue, is one") == ("failed", "did not follow punctuation:no_comma")
    assert verdict(problem, "Blue") == "failed"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GSM8K, "answer": "25200"}, "answer does not end in #### and a number"),
        ({**GSM8K, "question": 3}, "question is a number; expected a string with text"),
        ({"answer": "#### 3"}, "lacks question; a GSM8K problem has question, answer"),
        ({**MMLU, "answer": "F"}, "answer is not the letter of one of the 4 options"),
        ({**MMLU, "options": "A, B"}, "options is not a list of strings"),
        ({**MATH, "answer": ""}, "answer is blank"),
        ({**IFEVAL, "instruction_id_list": ["language:response_language", "x"]}, "a language detector would decide it"),
        ({**IFEVAL, "instruction_id_list": ["x", "y"]}, 'the instruction "x" is unknown'),
        ({**IFEVAL, "kwargs": [{}]}, "kwargs is not a list of an object for each instruction"),
        (
            {**IFEVAL, "kwargs": [{}, {"num_words": "3", "relation": "at least"}]},
            "lacks an argument, or one is of a wrong type",
        ),
        ({**IFEVAL, "instruction_id_list": [], "kwargs": []}, "so anything would pass"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as caught:
        problem_of(row, "here")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: dict[str, Any]) -> str:
        file = tmp_path / "problems.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return write


def test_by_name_each_asks_as_its_harness_does(written: Callable[..., str]) -> None:
    def content(source: str, *rows: dict[str, Any]) -> Any:
        return load_suite(f"{source}={written(*rows)}").problems[0].asked

    assert (
        content("gsm8k@lm-eval", GSM8K)["messages"][0]["content"]
        == f"Q: {GSM8K['question']}\nA: Let's think step by step."
    )
    system, user = content("math500@qwen", MATH)["messages"]
    assert "\\boxed{}" in system["content"] and user["content"] == MATH["problem"]
    assert content("ifeval@lm-eval", IFEVAL)["messages"] == [{"role": "user", "content": IFEVAL["prompt"]}]


def test_mmlu_pro_shows_five_examples_of_the_subject(written: Callable[..., str]) -> None:
    shot = {**MMLU, "cot_content": "A: Let's think step by step. 7 it is. The answer is (C)."}
    shots = [{**shot, "question_id": number, "question": f"Shot {number}?"} for number in range(6)]
    (problem,) = load_suite(f"mmlu-pro@tiger={written(*shots, MMLU)}").problems
    assert problem.task_id == "70" and problem.difficulty == "math" and problem.asked
    text = problem.asked["prefill"]
    assert text.startswith("You are an expert in math. Below is") and text.count("Shot") == 5
    assert "Options:\nA. 4\nB. 6\nC. 7\nAnswer: Let's think step by step. 7 it is. The answer is (C).\n\n" in text
    assert text.endswith(
        "Question:\nWhich of these is a prime number?\nOptions:\nA. 4\nB. 6\nC. 7\nAnswer: Let's think step by step."
    )
    with pytest.raises(ConfigError, match="math has no five examples"):
        load_suite(f"mmlu-pro@tiger={written(MMLU)}")


def test_ifeval_leaves_out_what_a_rule_cannot_see(written: Callable[..., str]) -> None:
    rows = [{**IFEVAL, "key": 1 + n, "instruction_id_list": [name], "kwargs": [{}]} for n, name in enumerate(NEEDS)]
    suite = load_suite(f"ifeval={written(*rows, IFEVAL)}")
    assert [problem.task_id for problem in suite.problems] == ["1000"]
    with pytest.raises(ConfigError, match="leave the row out"):
        load_suite(written(*rows))


def test_gsm8k_has_the_numbers_of_its_rows_for_ids(written: Callable[..., str]) -> None:
    rows = [{**GSM8K, "question": f"{number}?"} for number in range(3)]
    assert [problem.task_id for problem in load_suite(f"gsm8k={written(*rows)}").problems] == [
        "gsm8k/0",
        "gsm8k/1",
        "gsm8k/2",
    ]
    ids = [problem.task_id for problem in load_suite(written(*rows)).problems]
    assert len(set(ids)) == 3 and ids == [problem.task_id for problem in load_suite(written(*rows)).problems]


def test_the_grader_answers_without_running_anything(grader: Grader, written: Callable[..., str]) -> None:
    problem = problem_of(GSM8K, "here")
    answers = ["#### 25200", "#### 7", "who knows", "", "import os; os._exit(0)  # 25200"]
    jobs = [Job(text, problem, extract_code(text, problem, False), why_none(text)) for text in answers]
    verdicts = [(key, each.verdict, each.detail, each.duration_s) for key, each in grader.grade(jobs)]
    assert verdicts == [
        ("#### 25200", "passed", "", 0.0),
        ("#### 7", "failed", "wrong number", 0.0),
        ("who knows", "no_code", "the answer holds no number", 0.0),
        ("", "no_code", "the answer holds no number", 0.0),
        ("import os; os._exit(0)  # 25200", "passed", "", 0.0),
    ]


def test_such_a_suite_asks_its_question_as_it_stands(written: Callable[..., str]) -> None:
    config = Config.model_construct(model=Model(source="fake"))
    source = f"gsm8k={written(GSM8K)}"
    measured = yardstick(load_suite(source), SuiteTable(name="a", source=source, prompt_format="chat"), config)
    (prompt,) = measured.prompts.values()
    assert prompt.content["messages"][0]["content"].endswith("as #### and a number.")


PIECES = [
    "#",
    "1",
    ",",
    "$",
    ".",
    "-",
    "\\boxed{",
    "}",
    "{",
    "\\frac",
    "\\sqrt",
    "answer is",
    "Answer: ",
    "A",
    "[",
    "]",
]
PIECES += ["<<", ">>", "*", "***", "\n", " ", "\t", "```json", "p.", "s.", '"', "\ud800", "=", "/", "Section 1"]
HOSTILE = [problem_of(row, "here") for row in ROWS.values()] + [
    problem_of({"key": 1, "prompt": "Do it.", "instruction_id_list": [name], "kwargs": [arguments]}, "here")
    for name, arguments, *_ in FOLLOWED
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.sampled_from(HOSTILE))
def test_no_text_breaks_a_verdict(text: str, problem: Problem) -> None:
    assert asks_for_text(problem)
    word, detail = verdict_on_text(problem, text)
    assert word in ("passed", "failed", "no_code") and bool(detail) == (word != "passed")


@pytest.mark.parametrize("piece", [*PIECES, "[[", "<<<", "* *", "\\boxed", "Answer:", "\\frac1", "1,"])
def test_a_long_text_is_read_in_linear_time(piece: str) -> None:
    """Each takes a fraction of a second; with a quadratic rule the test would not end in hours."""
    text = piece * (900_000 // len(piece))
    for problem in HOSTILE:
        verdict_on_text(problem, text)


def test_numbers_are_numbers() -> None:
    assert [str(last_number(text)) for text in ("#### -5", "$.50", "1,234.5 km", "no")] == [
        "-5",
        "0.50",
        "1234.5",
        "None",
    ]
