"""Published benchmarks by name: what a name says, which rows and prompts it gives, and what a hash covers."""

from __future__ import annotations

import base64
import json
import pickle
import re
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.settings import Suite as SuiteTable
from loop.engines.base import SamplingParams
from loop.errors import ConfigError
from loop.grading.extract import extract_code
from loop.grading.grader import Grader, Job
from loop.grading.known import BENCHMARKS, wanted
from loop.grading.known.files import NotHere
from loop.grading.problem import Problem
from loop.grading.suite import Suite, load_suite

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """Twice x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
PLUS = {**HUMANEVAL, "base_input": [[1]], "plus_input": [[7]], "atol": 0}
MBPP_PLUS = {
    "task_id": "Mbpp/9",
    "prompt": '"""\nTwice x.\nassert twice(2) == 4\n"""\n',
    "entry_point": "twice",
    "canonical_solution": "\ndef twice(x):\n    return 2 * x\n",
    "base_input": [[2]],
    "plus_input": [[5]],
    "atol": 0,
}


def mbpp(number: int) -> dict[str, object]:
    code = "def twice(x):\n    return 2 * x"
    return {"task_id": number, "text": f"Twice x, {number}.", "code": code, "test_list": ["assert twice(2) == 4"]}


def packed(tests: list[dict[str, str]]) -> str:
    """Tests as the published files have them; only here is anything pickled, and nowhere is it unpickled."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def contest(number: int, date: str, starter_code: str = "") -> dict[str, object]:
    testtype = "functional" if starter_code else "stdin"
    tests = [{"input": "3", "output": "6", "testtype": testtype}]
    return {
        "question_title": "Twice",
        "question_content": f"Twice x, {number}.",
        "platform": "atcoder",
        "question_id": f"abc{number}_a",
        "contest_id": f"abc{number}",
        "contest_date": f"{date}T00:00:00",
        "starter_code": starter_code,
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed([{"input": "5", "output": "10", "testtype": testtype}]),
        "metadata": json.dumps({"func_name": "twice"} if starter_code else {}),
    }


CONTESTS = [
    contest(1, "2024-08-01"),
    contest(2, "2025-01-31"),
    contest(3, "2025-02-01"),
    contest(4, "2025-05-31", "class Solution:\n    def twice(self, x: int) -> int:\n        "),
    contest(5, "2025-06-01"),
]


@pytest.mark.parametrize(
    ("source", "name", "window", "harness", "path"),
    [
        ("humaneval+", "humaneval+", "", None, None),
        ("mbpp/sanitized@google", "mbpp/sanitized", "", "google", None),
        ("livecodebench/v6:2024-08..2025-02", "livecodebench/v6", "2024-08..2025-02", None, None),
        ("livecodebench/v6@apple", "livecodebench/v6", "2025-02..2025-05", "apple", None),
        ("livecodebench/v5:2024-08-01..2024-09@official=a=b.jsonl", "livecodebench/v5", "2024-08-01..2024-09", "official", "a=b.jsonl"),
    ],
)  # fmt: skip
def test_a_name_says_what_is_wanted(source: str, name: str, window: str, harness: str | None, path: str | None) -> None:
    named = wanted(source)
    assert named is not None
    assert (named.benchmark.name, named.window, named.harness, named.path) == (name, window, harness, path)
    assert named.name == source.removesuffix("=a=b.jsonl")


@pytest.mark.parametrize(
    "source", ["humanevall", "./humaneval", "mbpp.jsonl", "dir@home/x.jsonl", "livecodebench/v9", ""]
)
def test_other_sources_are_no_names(source: str) -> None:
    assert wanted(source) is None


@given(st.text(max_size=40) | st.from_regex(r"[a-z+/0-9]{1,9}[:@=][-.0-9a-z]{0,9}", fullmatch=True))
def test_any_source_is_a_name_or_none_or_one_line(source: str) -> None:
    for text in (source, f"humaneval+{source}"):
        try:
            named = wanted(text)
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert named is None or named.benchmark.name in BENCHMARKS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("humaneval+@nobody", "what can be had is humaneval[+]@evalplus"),
        ("livecodebench/v5@apple", "what can be had is livecodebench/v5@official"),
        ("mbpp:2024-01..2024-02", "the problems of mbpp have no dates"),
        ("bigcodebench/hard", "cannot be graded here: its solutions need numpy, pandas"),
        ("multipl-e/sh", "cannot be graded here: its tests and a solution are one Bash script"),
    ],
)
def test_a_name_that_is_half_right_says_what_would_be(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_suite(source)


def test_every_pinned_file_has_its_hash_or_its_commit() -> None:
    files = [file for benchmark in BENCHMARKS.values() for file in benchmark.files]
    assert len(files) > 10
    for file in files:
        at_commit = any(len(part) == 40 and not part.strip("0123456789abcdef") for part in file.url.split("/"))
        assert len(file.sha256) == 64 or (at_commit and not file.sha256), file
        assert file.url.startswith("https://") and file.url.endswith(file.name)


def test_mbpp_is_its_test_split_and_shows_its_three_examples(written: Callable[..., str]) -> None:
    file = written(*[mbpp(number) for number in (2, 3, 4, 10, 11, 510, 511)])
    assert [problem.task_id for problem in load_suite(f"mbpp={file}").problems] == ["11", "510"]
    problem = load_suite(f"mbpp@google={file}").problems[0]
    assert problem.asked and problem.asked["messages"] == []
    text = problem.asked["prefill"]
    assert text.count("[DONE]") == 3 and text.endswith(
        "Twice x, 11. Your code should pass these tests:\n\nassert twice(2) == 4\n[BEGIN]\n"
    )
    assert works(problem, "def twice(x):\n    return x + x\n")
    with pytest.raises(ConfigError, match="problems.jsonl:4: lacks what mbpp@google asks with; fetch the file again"):
        load_suite(f"mbpp@google={written({'task_id': 2}, mbpp(3), mbpp(4), mbpp(11))}")
    with pytest.raises(ConfigError, match="lacks problems 2, 3 and 4"):
        load_suite(f"mbpp@google={written(mbpp(11))}")


def test_the_plus_suites_ask_as_evalplus_does(written: Callable[..., str]) -> None:
    for suite, row in (("humaneval+", PLUS), ("mbpp+", MBPP_PLUS)):
        problem = load_suite(f"{suite}@evalplus={written(row)}").problems[0]
        assert problem.asked is not None
        (message,) = problem.asked["messages"]
        assert message["content"].startswith(
            "Please provide a self-contained Python script that solves the following problem"
        )
        assert message["content"].endswith(f"\n```\n{str(row['prompt']).strip()}\n```\n")
        assert problem.asked["prefill"].endswith("passes corresponding tests:\n```python\n")
        assert problem.asked["opening"] == "```python\n", "the answer is code up to the closing fence"
        assert works(problem, "def twice(x):\n    return 2 * x\n```\nDone.", prefilled=True)


def test_the_inputs_whose_answers_are_too_large_are_left_out(written: Callable[..., str]) -> None:
    row = {**MBPP_PLUS, "task_id": "Mbpp/255", "plus_input": [[number] for number in range(1, 110)]}
    (problem,) = load_suite(f"mbpp+={written(row)}").problems
    assert json.loads(problem.payload["plus"]) == [
        [each] for each in range(1, 110) if each not in (86, 87, 91, 97, 101)
    ]


def works(problem: Problem, answer: str, prefilled: bool = False) -> bool:
    code = extract_code(answer, problem, prefilled_fence=prefilled)
    ((_, verdict),) = Grader(num_workers=1).grade([Job(None, problem, code)])
    return verdict.verdict == "passed"


def test_livecodebench_by_window_and_harness(written: Callable[..., str]) -> None:
    file = written(*CONTESTS)

    def ids(source: str) -> list[str]:
        return [problem.task_id for problem in load_suite(f"{source}={file}").problems]

    assert len(ids("livecodebench/v6")) == 5
    assert ids("livecodebench/v6:2024-08..2025-01") == ["abc1_a", "abc2_a"]
    assert ids("livecodebench/v6:2025-01-31..2025-02-01") == ["abc2_a", "abc3_a"], "both ends are meant"
    assert ids("livecodebench/v6@apple") == ["abc3_a", "abc4_a"], "ml-ssd evaluates February to May 2025"
    with pytest.raises(ConfigError, match="holds no problems"):
        ids("livecodebench/v6:2026-01..2026-02")


def test_the_two_wordings_of_livecodebench(written: Callable[..., str]) -> None:
    file = written(*CONTESTS[2:4])
    stdin, functional = load_suite(f"livecodebench/v6@official={file}").problems
    assert stdin.asked and functional.asked
    system, user = stdin.asked["messages"]
    assert system == {
        "role": "system",
        "content": "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
        "correct Python program that matches the specification and passes all tests.",
    }
    assert user["content"].startswith(
        "### Question:\nTwice x, 3.\n\n### Format: Read the inputs from stdin solve the problem"
    )
    assert user["content"].endswith(
        "\n```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert (
        f"within delimiters.\n```python\n{CONTESTS[3]['starter_code']}\n```\n\n"
        in functional.asked["messages"][1]["content"]
    )
    stdin, functional = load_suite(f"livecodebench/v6@apple={file}").problems
    assert stdin.asked and functional.asked
    (user,) = stdin.asked["messages"]
    assert user["content"].startswith(
        "You will be given a question (problem specification) and will generate a correct"
    )
    assert (
        "passes all tests. You will NOT return anything except for the program.\n\nQuestion: Twice x, 3.\n\nRead"
        in user["content"]
    )
    assert user["content"].endswith("output to STDOUT.\n```python\n  # YOUR CODE HERE\n```")
    (user,) = functional.asked["messages"]
    assert user["content"].endswith(f"within delimiters as follows.\n```python\n{CONTESTS[3]['starter_code']}\n```")
    assert works(stdin, "```python\nprint(2 * int(input()))\n```") and not works(stdin, "```python\nprint(6)\n```")
    right = "```python\nclass Solution:\n    def twice(self, x):\n        return 2 * x\n```"
    assert works(functional, right) and not works(functional, right.replace("2 *", "4 +"))


def test_the_harness_is_in_the_hash_and_the_path_is_not(written: Callable[..., str]) -> None:
    first, second = written(*CONTESTS[2:4]), written(*CONTESTS[2:4], name="other.jsonl")
    sources = ("livecodebench/v6", "livecodebench/v6@official", "livecodebench/v6@apple")
    suites = [load_suite(f"{source}={first}") for source in sources]
    assert len({suite.sha256 for suite in suites}) == len({suite.identity for suite in suites}) == 3
    assert [load_suite(f"{source}={second}").identity for source in sources] == [suite.identity for suite in suites]
    again = suites[1].model_copy(update={"decoding": suites[1].decoding | {"temperature": 0.3}})
    assert again.identity != suites[1].identity, "how the harness decodes is part of it"
    assert suites[0].identity == load_suite(first).identity, "without a harness it is the file's own"


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.harnesses])
def test_published_decoding_is_what_a_suites_table_takes(name: str) -> None:
    for each, harness in BENCHMARKS[name].harnesses.items():
        table = SuiteTable(name="canary", source=f"{name}@{each}", **harness.decoding)
        assert table.prompt_format == "published"


def test_a_table_asks_as_published_where_its_source_names_a_harness() -> None:
    assert SuiteTable(name="a", source="humaneval+").prompt_format == "chat-fence"
    assert SuiteTable(name="a", source="humaneval+@evalplus").prompt_format == "published"
    assert SuiteTable(name="a", source="livecodebench/v6:2025-02..2025-05@official=x/y").prompt_format == "published"
    assert SuiteTable(name="a", source="humaneval+@evalplus", prompt_format="chat").prompt_format == "chat"
    assert SuiteTable(name="a", source="data@home/x.jsonl").prompt_format == "chat-fence", "a path"


def test_a_benchmark_that_is_not_here_is_not_fetched_where_that_is_not_wanted() -> None:
    with pytest.raises(NotHere, match="is not on this machine"):
        load_suite("humaneval+", fetch=False)


def references(suite: Suite) -> list[Job]:
    """Of each problem the reference, nothing, a stub, and the reference with another name."""
    jobs = []
    for problem in suite.problems:
        reference = extract_code(str(problem.reference), problem, prefilled_fence=False)
        name = problem.entry_point or ""
        broken = re.sub(rf"\bdef\s+{name}\b", f"def other_{name}", str(problem.reference))
        stub = f"def {name}(*given, **named):\n    return 'a stub'\n"
        answers = (("passed", reference), ("no_code", None), ("failed", stub), ("error", broken))
        jobs += [Job((problem.task_id, word), problem, code) for word, code in answers]
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "humaneval+", "mbpp", "mbpp/sanitized", "mbpp+"])
def test_every_reference_passes_and_nothing_else_does(name: str) -> None:
    """Takes the real files from LOOP_SUITES or the cache. Where a stub passes, its suite lets anything pass there."""
    try:
        suite = load_suite(name, fetch=False)
    except ConfigError as error:
        pytest.skip(str(error))
    wrong = [
        (task_id, expected, verdict.verdict, verdict.detail)
        for (task_id, expected), verdict in Grader(num_workers=2).grade(references(suite))  # type: ignore[misc]
        if (verdict.verdict == "passed") != (expected == "passed") or verdict.verdict == "harness_error"
    ]
    assert wrong == []


def test_the_params_have_the_harness_own_stops(written: Callable[..., str]) -> None:
    from loop.config.settings import Config
    from loop.stages.evaluating import params_of, yardstick

    table = SuiteTable(name="a", source=f"humaneval+@evalplus={written(PLUS)}", stop=("\n```\n",), greedy=True)
    config = Config.model_construct(model=Config.model_fields["model"].annotation(source="fake"))
    measured = yardstick(load_suite(table.source), table, config)
    params = params_of(measured.config)
    assert isinstance(params, SamplingParams) and params.stop == ("\n```\n", "\nif __name__", "\ndef main(", "\nprint(")
    assert next(iter(measured.prompts.values())).content == load_suite(table.source).problems[0].asked
