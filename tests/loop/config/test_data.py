"""loop.toml's data policies and changes after rollbacks: each mistake in one line with its place."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from loop.config.same_run import resolved
from policies.data import DataPolicy, Mix, Pool, Replace
from tests.support.configurations import load_text, mistakes_in

TEXT = """\
name = "demo"
[model]
source = "fake"
[sampling]
temperature = 1.2
[training]
num_epochs = 1
learning_rate = 1e-5
[[suites]]
name = "first"
source = "first-steps"
[decide]
suite = "first"
"""
TYPES = "replace, accumulate, mix, window, pool"


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ('[collect]\ndata = "replace"', [
            "15: collect.data: 'replace' is not a table; give one such as { type = \"accumulate\" }"]),
        ("[collect]\ndata = {}", [f"15: collect.data: type is missing; known types: {TYPES}"]),
        ('[collect]\ndata = { type = "all" }', [f"15: collect.data.type: unknown type 'all'; known types: {TYPES}"]),
        ('[collect]\nmin_line = 3\n[collect.data]\ntype = "pool"\nsize = "5"', [
            "15: collect.min_line: unknown key; the closest is min_lines",
            "18: collect.data.size: input should be a valid integer, got '5' (How many completions training sees)"]),
        ('[collect]\ndata = { type = "mix", earlier = 0.6, base = 0.6 }', [
            "15: collect.data: earlier 0.6 and base 0.6 leave no share for fresh completions"]),
        ('[collect]\ndata = { type = "pool", size = 5, rounds = 3 }', [
            "15: collect.data.rounds: unknown key; the keys of 'pool' are type, dedup, near_similarity, min_tokens, "
            "max_tokens, passed_tests, without_tests, only_kept, size"]),
        ('[after_rollback]\ndata = { type = "window" }', [
            "15: after_rollback.data.rounds: is missing (How many rounds, this one among them)"]),
        ("[after_rollback]\npatience = 0\nlearning_rate_factor = 2\ntemperatures = [0]\nlearning_rate = 1", [
            "15: after_rollback.patience: 0 is too small; give a whole number of at least 1",
            "16: after_rollback.learning_rate_factor: 2 is not between 0 and 1; give a number above 0 and at most 1",
            "17: after_rollback.temperatures[0]: 0 is not between 0 and 10; give a number above 0 and at most 10",
            "18: after_rollback.learning_rate: unknown key here; it is a key of [training]"]),
        ("[after_rollback]\ntemperatures = [1.1, 1.0]\nlearning_rate_floor = 1e-4\nlength_factor = 0.5", [
            "15: after_rollback.temperatures[1]: 1 without top_k, top_p or repetition_penalty in [sampling] is a fixed "
            "point; give another",
            "16: after_rollback.learning_rate_floor: 0.0001 is above training.learning_rate 1e-05; give at most that",
            "17: after_rollback.length_factor: a single epoch cannot be made shorter; give training.num_steps, or leave "
            "this out"]),
        ('[schedule]\nstop = [{ type = "hours" }]', [
            "15: schedule.stop[0].value: is missing (Hours of work: what all attempts took, failed ones included)"]),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line(tmp_path: Path, more: str, lines: list[str]) -> None:
    assert mistakes_in(tmp_path, TEXT + more) == lines


class Longest(DataPolicy):
    """A data policy of somebody else's package."""

    type: Literal["longest"] = "longest"
    num: int = Field(gt=0)


def test_a_third_partys_data_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    points = EntryPoints([EntryPoint("longest", "third_party:Longest", "loop.data_policies")])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    config = load_text(tmp_path, TEXT + '[collect]\ndata = { type = "longest", num = 3 }\n').config
    assert config.collect.data == Longest(num=3)
    assert resolved(config)["collect"]["data"]["num"] == 3  # the run is known by it
    lines = mistakes_in(tmp_path, TEXT + '[collect]\ndata = { type = "longest", num = 0 }\n')
    assert lines == ["15: collect.data.num: input should be greater than 0, got 0"]


def test_what_is_read(tmp_path: Path) -> None:
    config = load_text(tmp_path, TEXT).config
    assert config.collect.data == Replace() and config.after_rollback.data is None
    assert not config.wants_tests
    more = (
        '[collect]\ndata = { type = "pool", size = 9, dedup = "near" }\n[after_rollback]\ntemperatures = [1.1, 0.8]\n'
        'data = { type = "mix", base = 0.1, passed_tests = true }\n'
    )
    config = load_text(tmp_path, TEXT + more).config
    assert config.collect.data == Pool(size=9, dedup="near")
    assert config.after_rollback.data == Mix(base=0.1, passed_tests=True)
    assert config.wants_tests
    assert resolved(config)["after_rollback"]["data"]["near_similarity"] == 0.9
