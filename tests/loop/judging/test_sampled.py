"""`loopctl eval`: a model on a suite, stored as it comes, continued, and written for others to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Loopctl, interrupt, one_line, start
from tests.support.waiting import wait_until

EVAL = ("eval", "fake", "--suite", "first-steps", "--limit", "20", "--samples", "3")


@pytest.mark.usefixtures("here")
def test_a_model_on_a_suite_once_and_at_once_the_second_time(call: Loopctl) -> None:
    first = call(*EVAL, "--out", "s.jsonl", "--json")
    assert first.code == 0, first.err
    answer = json.loads(first.out)
    assert (answer["num_problems"], answer["num_samples"], answer["suite"]) == (20, 3, "first-steps")
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert sum(sum(row["passed"]) for row in rows) / 60 == pytest.approx(answer["pass@1"])
    assert answer["pass@1_interval"][0] <= answer["pass@1"] <= answer["pass@1_interval"][1]
    again = call(*EVAL, "--json")
    assert json.loads(again.out) == answer
    assert "evaluating" in first.err and "evaluating" not in again.err
    assert "pass@1" in call(*EVAL).out
    other = json.loads(call(*EVAL, "--temperature", "0", "--samples", "1", "--json").out)
    assert other["decoding"]["temperature"] == 0.0 and other["config"] != answer["config"]


@pytest.mark.usefixtures("here")
def test_samples_are_lines_of_lm_eval(call: Loopctl) -> None:
    assert call(*EVAL, "--out", "s.jsonl").code == 0
    row = json.loads(Path("s.jsonl").read_text().splitlines()[0])
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} <= row.keys()
    assert {"doc_hash", "prompt_hash", "target_hash", "pass@1"} <= row.keys()
    assert len(row["resps"][0]) == 3 and row[row["metrics"][0]] == sum(row["passed"]) / 3


def test_interrupted_it_continues_with_what_is_missing(here: Path, call: Loopctl) -> None:
    slow = start(here, *EVAL, "--json", LOOP_FAKE_STEP_S="0.3")
    wait_until(lambda: list((here / ".loop-judged").glob("*/.loop/logs/sampler.log")))
    said = interrupt(slow)
    assert said.code != 0 and "the same command continues where it was" in said.err
    answer = json.loads(call(*EVAL, "--json").out)
    assert sum(answer["verdicts"].values()) == 60


@pytest.mark.usefixtures("here")
def test_mistakes_come_before_any_work(call: Loopctl) -> None:
    one_line(call(*EVAL, "--temperature", "0"), 2, "greedy completions of a problem are all the same")
    result = call("eval", "fake", "--suite", "first-steps", "--suite", "nowhere.jsonl", "--limit", "5")
    assert result.code == 78 and "nowhere.jsonl: no such file" in result.err
    assert "evaluating" not in result.err
