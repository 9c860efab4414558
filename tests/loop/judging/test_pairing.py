"""Only what was measured alike is compared, as far as the files say; what differs is named."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.cli.compare import compare_command
from loop.errors import LoopError
from loop.judging.pairing import DESPITE, paired
from loop.judging.results import Problem, Results

PROBLEMS = {"p1": Problem((1,), content="c1", prompt="q1"), "p2": Problem((0,), content="c2", prompt="q2")}
DECODING = {"temperature": 0.7, "top_p": 0.9}


def side(name: str, **changed: Any) -> Results:
    base = Results(
        file=Path(f"{name}.json"), harness="lm-eval", suite="gsm8k", metric="exact_match", problems=PROBLEMS,
        decoding=DECODING, conditions={"version": 1.0},
    )  # fmt: skip
    return replace(base, **changed)


def refused(a: list[Results], b: list[Results], *words: str, **more: Any) -> None:
    with pytest.raises(LoopError) as caught:
        paired(a, b, **more)
    text, place = str(caught.value), 0
    for word in words:
        found = re.search(word, text[place:])
        assert found, (word, text)
        place += found.end()


def test_alike() -> None:
    found = paired([side("a")], [side("b")])
    assert [(a.file.name, b.file.name) for a, b in found.pairs] == [("a.json", "b.json")] and found[1:] == ([], [])


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("problems", {"problems": {"p1": PROBLEMS["p1"]}}, r"1 problem only in A \(p2\)"),
        ("problems", {"problems": PROBLEMS | {"p3": Problem((1,))}}, r"1 problem only in B \(p3\)"),
        (
            "problems",
            {"problems": PROBLEMS | {"p2": Problem((1,), content="other", prompt="q")}},
            r"1 of 2 problems .* \(p2\)",
        ),
        (
            "prompts",
            {"problems": PROBLEMS | {"p2": Problem((1,), content="c2", prompt="q")}},
            r"1 of 2 problems .* \(p2\)",
        ),
        ("decoding", {"decoding": DECODING | {"temperature": 0.2}}, "temperature 0.7 and 0.2"),
        ("tests", {"conditions": {"version": 2.0}}, "version 1.0 and 2.0"),
        ("tests", {"harness": "lighteval"}, 'harness "lm-eval" and "lighteval"'),
        ("tests", {"metric": "acc"}, 'metric "exact_match" and "acc"'),
    ],
)
def test_what_differs_is_refused_by_name_and_may_be_allowed(kind: str, changed: dict[str, Any], words: str) -> None:
    other = side("b", **changed)
    refused([side("a")], [other], rf"a\.json and b\.json differ in {kind}: ", words, f"give --despite {kind}")
    ((a, b),) = paired([side("a")], [other], despite=[kind]).pairs
    assert list(a.problems) == list(b.problems) and any(
        note.startswith(f"A and B differ in {kind}") for note in a.notes
    )


def test_what_only_one_side_says_is_no_difference() -> None:
    bare = {id: Problem(problem.outcomes) for id, problem in PROBLEMS.items()}
    assert paired([side("a")], [side("b", decoding={}, conditions={}, problems=bare)]).pairs


def test_no_problem_in_common_is_refused_whatever_is_allowed() -> None:
    refused([side("a")], [side("b", problems={"x": Problem((1,))})], "no problem in common", despite=DESPITE)


def test_suites_are_paired_by_name_and_every_mistake_has_its_line() -> None:
    a = [side("a1"), side("a2", suite="mmlu"), side("a3", suite="mine")]
    b = [side("b2", suite="mmlu"), side("b1"), side("b4", suite="theirs")]
    found = paired(a, b)
    assert [(x.file.stem, y.file.stem) for x, y in found.pairs] == [("a1", "b1"), ("a2", "b2")]
    assert found.only_a == ["mine"] and found.only_b == ["theirs"]
    hot = [replace(each, decoding={"temperature": 2}) for each in b]
    refused(a, hot, "a1.json and b1.json differ", "\n.*a2.json and b2.json differ")
    refused(a[2:] + a[:1], b[2:] + b[:1], "no suite is on both sides: A has mine, gsm8k, B has theirs, mmlu")


def test_one_suite_on_each_side_is_a_pair_whatever_its_name() -> None:
    assert paired([side("a")], [side("b", suite="gsm8k_copy")]).pairs


def test_two_files_of_one_suite_on_a_side_are_refused() -> None:
    refused(
        [side("monday"), side("tuesday")],
        [side("b")],
        r"tuesday\.json: holds gsm8k, as monday\.json does; name one file",
    )


def test_metrics() -> None:
    a, b = (
        [side(name), side(name, metric="f1", problems={"p1": Problem((40,)), "p2": Problem((1,))})] for name in "ab"
    )
    ((ours, _),) = paired(a, b).pairs
    assert ours.metric == "exact_match" and ours.notes == ("compared by exact_match; --metric names another: f1",)
    ((ours, _),) = paired(a, b, ["bleu", "exact_match"]).pairs
    assert ours.metric == "exact_match" and ours.notes == ()
    refused(a, b, r'a\.json: f1 of problem "p1" is 40', metrics=["f1"])
    refused(a, b, "--metric: gsm8k has bleu on one side at most; there: exact_match, f1", metrics=["bleu"])


def test_the_command_offers_what_may_differ() -> None:
    (option,) = (each for each in compare_command.params if each.name == "despite")
    assert tuple(option.type.choices) == DESPITE  # type: ignore[attr-defined]
