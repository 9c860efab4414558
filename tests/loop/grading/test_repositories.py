"""Candidates in their own package: what the tests of a repository say of honest and of hostile bodies, at both levels."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.errors import ConfigError
from loop.grading.grader import Grader, Job
from loop.grading.problem import Problem
from loop.grading.suite import load_suite
from loop.mining.suite import Wishes, make_suite
from tests.support.hostile_acts import USING_UP
from tests.support.hostile_bodies import HONEST, HOSTILE, write_shop

SIGNATURE = "def total(prices: list[int], discount: float = 0.0) -> float:\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Problem]]:
    """The problem of `total`, by level."""
    directory = tmp_path_factory.mktemp("shop")
    source = write_shop(directory / "repository")
    make_suite(source, directory / "suite", Wishes(python=Path(sys.executable), train=0.0), lambda _: None)
    (problem,) = [
        each for each in load_suite(str(directory / "suite" / "problems.jsonl")).problems if each.entry_point == "total"
    ]
    assert problem.payload["level"] == "apart"
    yield {
        level: problem.model_copy(update={"payload": {**problem.payload, "level": level}})
        for level in ("apart", "inside")
    }


def program(body: str) -> str:
    return SIGNATURE + textwrap.indent(body, "    ")


@pytest.mark.parametrize("level", ["apart", "inside"])
def test_honest_bodies_pass_and_what_is_wrong_is_said(shop: dict[str, Problem], level: str) -> None:
    wrong = {
        "wrong": ("def total(prices, discount=0.0):\n    return 1.0", "failed", "test_"),
        "other": ("def other():\n    pass", "error", "defines no total"),
        "parameters": ("def total(prices):\n    return 1", "error", "its parameters are (prices)"),
        "syntax": ("def total(prices, discount=0.0:\n", "error", "SyntaxError"),
        "raises": ("def total(prices, discount=0.0):\n    raise KeyError(prices[99])", "failed", "IndexError"),
        "ends": ("def total(prices, discount=0.0):\n    import sys\n    sys.exit(0)", "failed", "SystemExit"),
    }
    jobs = [Job(name, shop[level], program(body)) for name, body in HONEST.items()]
    jobs += [Job(name, shop[level], text) for name, (text, _, _) in wrong.items()]
    verdicts = dict(Grader(num_workers=1).grade(jobs))
    assert {name: verdicts[name].detail for name in HONEST if verdicts[name].verdict != "passed"} == {}
    for name, (_, word, words) in wrong.items():
        assert verdicts[name].verdict == word and words in verdicts[name].detail, (name, verdicts[name])


@pytest.mark.parametrize("level", [pytest.param("apart", marks=pytest.mark.slow), "inside"])
def test_no_hostile_body_passes(shop: dict[str, Problem], level: str) -> None:
    """But for those that use up time or memory, which the next test has."""
    jobs = [Job(name, shop[level], program(body)) for name, body in HOSTILE.items() if name not in USING_UP]
    verdicts = dict(Grader(num_workers=2).grade(jobs))
    assert len(verdicts) > 100
    assert [name for name, verdict in verdicts.items() if verdict.verdict == "passed"] == []
    assert [verdict.detail for verdict in verdicts.values() if verdict.verdict == "harness_error"] == []


@pytest.mark.slow
@pytest.mark.parametrize("level", ["apart", "inside"])
def test_what_uses_up_time_or_memory_ends(shop: dict[str, Problem], level: str) -> None:
    jobs = [Job(name, shop[level], program(body)) for name, body in USING_UP.items()]
    for name, verdict in Grader(num_workers=2, timeout_s=2.0).grade(jobs):
        assert verdict.verdict not in ("passed", "harness_error"), (name, verdict)


def test_a_suite_that_was_moved_apart_from_its_files_is_refused(shop: dict[str, Problem], tmp_path: Path) -> None:
    place = Path(shop["apart"].place or "")
    (tmp_path / "problems.jsonl").write_text((place / "problems.jsonl").read_text())
    problem = load_suite(str(tmp_path / "problems.jsonl")).problems[0]
    with pytest.raises(ConfigError, match=r"suite\.json.*loopctl suite from-repo"):
        list(Grader(num_workers=1).grade([Job(1, problem, problem.reference)]))
    facts = json.loads((place / "suite.json").read_text())
    (tmp_path / "suite.json").write_text(json.dumps(facts | {"environment": {}}))
    with pytest.raises(ConfigError, match=r"suite\.json.*environment\.python"):
        list(Grader(num_workers=1).grade([Job(1, problem, problem.reference)]))


@pytest.mark.parametrize("level", ["apart", "inside"])
def test_a_candidate_finds_no_place_that_outlives_it(shop: dict[str, Problem], level: str) -> None:
    """Only /tmp and the tree's own view take files, and both are gone with it."""
    text = """def total(prices, discount=0.0):
    import os
    taken = []
    for folder, _, _ in os.walk("/"):
        try:
            with open(os.path.join(folder, "left-behind"), "x") as file:
                file.write("x")
            taken.append(folder)
        except OSError:
            pass
    raise KeyError(" ".join(sorted({"/" + each.split("/")[1] for each in taken})))"""
    grader = Grader(num_workers=1)
    jobs = [Job(number, shop[level], f"{text}\n# {number}") for number in range(2)]
    details = [verdict.detail for _, verdict in grader.grade(jobs)]
    assert details[0] == details[1], "the second found what the first had left"
    places = set(details[0].partition("KeyError: ")[2].strip("'").split())
    assert places <= {"/tmp", "/repo", "/upper2"}, details
