"""`loopctl compare A B`: two models on the same problems with the same random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loop.engines.fake import write_fake_model
from tests.support.cli import Loopctl, interrupt, one_line, start, write_configuration
from tests.support.waiting import wait_until

ASKED = ("--suite", "sixty/ones.jsonl", "--samples", "8", "--prompt-format", "chat-fence")


@pytest.fixture
def models(here: Path) -> Path:
    """Two directories with fake models of which the second is far better, and one that is the first one's twin."""
    for name, skill in (("worse", 0.1), ("better", 0.6), ("twin", 0.1)):
        write_fake_model(here / name, skill)
    write_configuration(here / "sixty", num_problems=60)
    return here


def test_the_better_of_two_models(models: Path, call: Loopctl) -> None:
    said = call("compare", "worse", "better", *ASKED)
    assert said.code == 0, said.err
    assert "B is better" in said.out and "one suite, no correction" in said.out and "passed" in said.out
    (judged,) = json.loads(call("compare", "worse", "better", *ASKED, "--json").out)["comparisons"]
    assert judged["verdict"] == "B is better" and judged["num_problems"] == 60
    assert (judged["a"]["model"], judged["b"]["model"]) == ("worse", "better")
    (swapped,) = json.loads(call("compare", "better", "worse", *ASKED, "--json").out)["comparisons"]
    assert swapped["gain"] == -judged["gain"] and swapped["verdict"] == "A is better"


def test_equal_models_answer_the_same(models: Path, call: Loopctl) -> None:
    """The same seeds for both, so that a difference is one of the models."""
    (judged,) = json.loads(call("compare", "worse", "twin", *ASKED, "--json").out)["comparisons"]
    assert (judged["verdict"], judged["num_same"], judged["gain"]) == ("the same", 60, 0.0)


def test_it_stops_when_it_is_clear(models: Path, call: Loopctl) -> None:
    many = (*ASKED, "--sequential", "0.2")
    said = call("compare", "worse", "better", *many)
    (judged,) = json.loads(call("compare", "worse", "better", *many, "--json").out)["comparisons"]
    assert judged["verdict"] == "B is better" and judged["stopped_after"] < 1 and judged["p_value"] is None
    assert f"after {judged['stopped_after']:.0%} of the problems" in said.out
    assert judged["interval"][0] > 0


def test_interrupted_it_continues(models: Path, call: Loopctl) -> None:
    slow = start(models, "compare", "worse", "better", *ASKED, LOOP_FAKE_STEP_S="0.2")
    wait_until(lambda: list((models / ".loop-judged").glob("better-*/.loop/logs/sampler.log")))
    assert interrupt(slow).code != 0
    again = call("compare", "worse", "better", *ASKED)
    assert again.code == 0 and "B is better" in again.out
    assert "evaluating: worse" not in again.err, "that one was done"


@pytest.mark.usefixtures("models")
def test_mistakes(call: Loopctl) -> None:
    for arguments, words in (
        (("worse",), "give two models and --suite, or --results with two files"),
        (("worse", "better"), "give two models and --suite"),
        (("worse", "better", "--results", "a", "b"), "--results compares files"),
    ):
        result = call("compare", *arguments)
        assert result.code == 2 and words in result.err, result
    one_line(call("compare", "worse", "better", "--suite", "nowhere.jsonl"), 78, "nowhere.jsonl: no such file")
