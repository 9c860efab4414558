"""Each harness's files are read as the harness means them: its own means come out, and what is broken is refused by name.

The files of EvalPlus, lm-eval, inspect and lighteval were written by these tools (tests/support/make_harness_results.py), with what
they printed beside them. Those of LiveCodeBench, BigCodeBench and ml-ssd are made here in the form that the source of each has,
which the docstring of each format names.
"""

import gzip
import json
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from loop.errors import LoopError
from loop.judging.formats import read_results
from loop.judging.results import Results, of_mean
from tests.support import TESTS

HARNESSES = TESTS / "data" / "harnesses"


def mean(results: Results) -> float:
    rates = [float(problem.rate) for problem in results.problems.values()]
    return sum(rates) / len(rates)


def by_metric(place: Path) -> dict[tuple[str, str], Results]:
    return {(each.suite, each.metric): each for each in read_results(place)}


def printed(harness: str, model: str) -> list[str]:
    lines: list[str] = json.loads((HARNESSES / harness / "printed.json").read_text())[model]
    return lines


EACH_MODEL = pytest.mark.parametrize("model", ["a", "b"])


@EACH_MODEL
def test_evalplus(model: str) -> None:
    found = by_metric(HARNESSES / "evalplus" / f"{model}_eval_results.json")
    base, plus = (float(line.split()[-1]) for line in printed("evalplus", model) if line.startswith("pass@1"))
    assert list(found) == [("HumanEval", "base + extra tests"), ("HumanEval", "base tests")]
    assert [f"{mean(each):.3f}" for each in found.values()] == [f"{plus:.3f}", f"{base:.3f}"]
    assert {each.num_samples for each in found.values()} == {(5, 5)} and base > plus


@EACH_MODEL
def test_lm_eval(model: str) -> None:
    found = by_metric(HARNESSES / "lm-eval" / model)
    rows = [[cell.strip() for cell in line.split("|")] for line in printed("lm-eval", model)[2:]]
    told, task = {}, ""
    for _, name, _, filter, _, metric, _, value, *_ in rows:
        task = name or task
        told[task, metric if filter == "none" else f"{metric},{filter}"] = value
    assert {key: f"{mean(each):.4f}" for key, each in found.items()} == told and len(told) == 3
    sums = found["toy_sums", "exact_match,strict"]
    assert (
        sums.model == f"toy/{model}"
        and sums.decoding["temperature"] == 0.7
        and sums.conditions == {"version": 1.0, "number of shots": 0}
    )


@EACH_MODEL
def test_inspect(model: str) -> None:
    found = by_metric(HARNESSES / "inspect-ai" / f"{model}.eval")
    told = {name: value for name, _, value in map(str.split, printed("inspect-ai", model))}
    assert {metric: f"{mean(each):.3f}" for (_, metric), each in found.items()} == told and list(told) == [
        "match",
        "includes",
    ]
    each = found["toy_sums", "match"]
    assert (
        each.decoding == {"temperature": 0.7, "top_p": 0.95}
        and each.num_samples == (3, 3)
        and each.model == f"mockllm/toy-{model}"
    )
    assert each.problems["sum-0"].difficulty == "easy" and each.problems["sum-0"].date == "2025-01-15"


@EACH_MODEL
def test_lighteval(model: str) -> None:
    found = by_metric(HARNESSES / "lighteval" / model)
    rows = [[cell.strip() for cell in line.split("|")] for line in printed("lighteval", model)[2:4]]
    assert {metric: f"{mean(each):.4f}" for (_, metric), each in found.items()} == {row[3]: row[4] for row in rows}
    each = found["toy_sums|0", "avg@n:n=4"]
    assert (
        each.num_samples == (4, 4)
        and each.graded_0_or_1
        and each.model == f"toy/{model}"
        and each.decoding == {"temperature": 0}
    )


def test_lighteval_finds_its_settings_where_lighteval_puts_them(tmp_path: Path) -> None:
    (details,) = (HARNESSES / "lighteval" / "a").glob("*.parquet")
    (results,) = (HARNESSES / "lighteval" / "a").glob("*.json")
    for file, place in ((details, "details/toy/a/2026"), (results, "results/toy/a")):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(file, tmp_path / place)
    assert {each.model for each in read_results(tmp_path)} == {"toy/a"}


# In the form of others, made here


def livecodebench(grades: dict[str, list[bool]]) -> list[dict[str, Any]]:
    return [
        {
            "question_title": id, "question_content": f"Solve {id}.", "platform": "leetcode", "question_id": id, "contest_id": "c",
            "contest_date": f"2025-0{2 + number % 2}-01T00:00:00", "starter_code": "", "difficulty": ["easy", "hard"][number % 2],
            "output_list": ["..."] * len(graded), "code_list": [""] * len(graded), "graded_list": graded,
            "pass@1": graded.count(True) / len(graded), "metadata": [],
        }
        for number, (id, graded) in enumerate(grades.items())
    ]  # fmt: skip


def bigcodebench(grades: dict[str, list[bool]]) -> dict[str, Any]:
    rows = {
        id: [{"task_id": id, "solution": "...", "status": "pass" if each else "fail", "details": {}} for each in graded]
        for id, graded in grades.items()
    }
    return {"date": "2025-03-01 10:00", "eval": rows}


def ml_ssd(grades: dict[str, list[bool]]) -> dict[str, Any]:
    examples = [
        {
            "task_id": id, "prompt": f"Solve {id}.", "entry_point": "", "is_stdin": True, "content": ["..."], "difficulty": "hard",
            "correctness": graded[-1], "reason": "" if graded[-1] else "Code is incorrect.", "test_input": None, "test_output": None,
            "test_expected": None, "num_tests_passed": 1, "num_tests_failed": 0, "test_results": [1],
        }
        for id, graded in grades.items()
    ]  # fmt: skip
    config = {
        "model": "apple/SimpleSD-4B",
        "max_tokens": 32768,
        "n_repeat": 2,
        "sampling_params": "temperature=0.6,top_p=0.95",
    }
    results = {"pass@1": 0.5, "examples": examples, "num_total": len(grades), "num_repeat": 2}
    return {"results": results, "config": config, "date": 1.0}


GRADES = {"p1": [True, False], "p2": [False, False], "p3": [True, True]}


def test_livecodebench(tmp_path: Path) -> None:
    file = tmp_path / "Qwen3-4B" / "Scenario.codegeneration_10_0.2_eval_all.json"
    file.parent.mkdir()
    file.write_text(json.dumps(livecodebench(GRADES), indent=4))
    (found,) = read_results(tmp_path)
    assert (found.suite, found.model, found.decoding) == (
        "LiveCodeBench codegeneration",
        "Qwen3-4B",
        {"temperature": 0.2},
    )
    assert mean(found) == 0.5 and found.num_samples == (2, 2)
    assert found.problems["p2"].difficulty == "hard" and found.problems["p2"].date == "2025-03-01"


def test_bigcodebench(tmp_path: Path) -> None:
    name = "meta--Llama-3--main--bigcodebench-hard-instruct--vllm-0.8-2-sanitized_calibrated_eval_results.json"
    (tmp_path / name).write_text(json.dumps(bigcodebench(GRADES), indent=2))
    (found,) = read_results(tmp_path / name)
    assert (found.suite, found.model, found.decoding) == (
        "BigCodeBench-hard-instruct",
        "meta/Llama-3--main",
        {"temperature": 0.8},
    )
    assert mean(found) == 0.5


def test_ml_ssd_says_that_its_file_holds_one_repeat_only(tmp_path: Path) -> None:
    rows = ml_ssd(GRADES)
    rows["results"]["examples"][1]["reason"] = "Evaluation error: out of memory"
    (tmp_path / "results_20260101.json").write_text(json.dumps(rows, indent=2))
    (found,) = read_results(tmp_path)
    assert found.model == "apple/SimpleSD-4B" and found.decoding == {
        "temperature": "0.6",
        "top_p": "0.95",
        "max_tokens": 32768,
    }
    assert [problem.outcomes for problem in found.problems.values()] == [(0.0,), (0.0,), (1.0,)]
    assert "the last of 2 repeats only" in found.notes[0] and "1 samples count as wrong" in found.notes[1]


def grade_lines(grades: dict[str, list[bool]]) -> str:
    lines: list[dict[str, Any]] = [
        {
            "task_id": id,
            "index": index,
            "verdict": "passed" if passed else "failed",
            "detail": "",
            "duration_s": 0.1,
            "difficulty": "easy",
        }
        for id, graded in grades.items()
        for index, passed in enumerate(graded)
    ]
    return "".join(json.dumps(line) + "\n" for line in [*lines, {"summary": {"num_problems": len(grades)}}])


def test_our_own_grades_and_what_was_never_graded_is_no_wrong_answer(tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    file.write_text(grade_lines(GRADES).replace('"passed"', '"harness_error"', 1))
    (found,) = read_results(file)
    assert found.problems["p1"].outcomes == (0.0,) and found.problems["p3"].outcomes == (1.0, 1.0)
    assert found.notes == ("1 samples were not graded (harness_error) and are left out",)


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x_eval_all.json.gz").write_bytes(gzip.compress(json.dumps(livecodebench(GRADES)).encode()))
    assert mean(read_results(tmp_path)[0]) == 0.5


def test_a_mean_of_samples_becomes_outcomes_where_it_can() -> None:
    assert (
        of_mean(0.75, 4) == (1, 1, 1, 0)
        and of_mean(0.3, 4) == (0.3,)
        and of_mean("x", 4) == ("x",)
        and of_mean(1, 0) == (1,)
    )


# What is refused, with a line


def refused(place: Path, *words: str) -> None:
    with pytest.raises(LoopError) as caught:
        read_results(place)
    text = str(caught.value)
    assert "\n" not in text and all(re.search(word, text) for word in words), text


def test_what_no_harness_left(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such file")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "results.json").write_text('{"results": {"gsm8k": {"exact_match,none": 0.5}}}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not parquet")
    refused(tmp_path, "holds no file that is any of these", "EvalPlus", "samples_", ".eval")
    refused(tmp_path / "notes.txt", "is not any of these")


def test_a_file_of_another_shape_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "x_eval_results.json"
    file.write_text(
        json.dumps({"eval": {"HumanEval/0": [{"base_status": "pass", "plus_status": "pass"}, {"base_status": 7}]}})
    )
    refused(file, r"looks like a file of evalplus, but eval\.HumanEval/0\[1\]\.base_status: ", "got 7")
    file.write_text(json.dumps({"eval": {"HumanEval/0": [{"status": "pass"}, {}]}}))
    refused(file, "bigcodebench", r"eval\.HumanEval/0\[1\]\.status: is missing")


def test_a_row_that_is_no_json_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    file.write_text(grade_lines(GRADES) + "{broken\n")
    refused(file, r"grades\.jsonl:8: is not JSON")


def test_an_inspect_log_that_has_not_ended_or_is_damaged(tmp_path: Path) -> None:
    whole = (HARNESSES / "inspect-ai" / "a.eval").read_bytes()
    file = tmp_path / "damaged.eval"
    with zipfile.ZipFile(HARNESSES / "inspect-ai" / "a.eval") as archive:
        member = archive.getinfo("summaries.json")
    at = member.header_offset + 80
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    refused(file, "looks like a file of inspect, but cannot be unpacked")
    file.write_bytes(whole.replace(struct.pack("<L", member.CRC), struct.pack("<L", member.CRC ^ 1)))
    refused(file, "cannot be unpacked", "summaries.json does not have the checksum")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("_journal/start.json", "{}")
    refused(file, r"header\.json", "has not ended")
    header = {"status": "error", "eval": {"task": "t", "model": "m"}}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("summaries.json", "[]")
    refused(file, 'ended as "error"')


def test_an_inspect_sample_without_a_score_is_left_out_and_said(tmp_path: Path) -> None:
    header = {"status": "success", "eval": {"task": "t", "model": "m"}}
    values = [
        ("C", {"s": {"value": "C"}}),
        ("none", {}),
        ("nan", {"s": {"value": float("nan")}}),
        ("half", {"s": {"value": "P"}}),
    ]
    samples = [{"id": id, "epoch": 1, "input": "?", "target": "!", "scores": scores} for id, scores in values]
    file = tmp_path / "x.eval"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("summaries.json", json.dumps(samples))
    (found,) = read_results(file)
    assert {id: problem.outcomes for id, problem in found.problems.items()} == {"C": (1.0,), "half": (0.5,)}
    assert found.notes == ("2 samples were not graded (no score of s) and are left out",)


def test_a_score_outside_0_and_1_is_refused_only_where_it_is_compared(tmp_path: Path) -> None:
    (source,) = (HARNESSES / "lm-eval" / "a").glob("samples_toy_sums_*")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        row["metrics"].append("bleu")
        row["bleu"] = 31.4
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {each.metric: each for each in read_results(tmp_path)}
    assert found["exact_match,strict"].scored() is found["exact_match,strict"]
    with pytest.raises(
        LoopError, match=r'bleu,strict of problem "0" is 31\.4, which does not lie between 0 and 1; name another'
    ):
        found["bleu,strict"].scored()
