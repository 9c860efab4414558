"""Experiment files: what arms they give, and for each mistake the exact line that a user reads."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config.loading import load_config
from loop.config.toml_text import toml_text
from loop.errors import ConfigError
from loop.experiments.file import Experiment, check_experiment, configuration_of, load_experiment, run_text
from tests.support.experiments import BASE, POLICIES, loopctl, run_of, write_experiment

HEAD = 'name = "e"\nrounds = 2\nseeds = [1, 2]\n'


def experiment(directory: Path, text: str, base: str = BASE) -> Experiment:
    return load_experiment(write_experiment(directory, text, base))


def mistakes(directory: Path, text: str, base: str = BASE) -> list[str]:
    path = write_experiment(directory, text, base)
    with pytest.raises(ConfigError) as caught:
        check_experiment(load_experiment(path))
    return [line.replace(f"{directory}/", "") for line in str(caught.value).splitlines()]


def test_an_arm_and_a_seed_make_a_run_with_a_whole_configuration_of_its_own(tmp_path: Path) -> None:
    two_seeds = experiment(tmp_path, POLICIES.replace("seeds = [1]", "seeds = [1, 7]"))
    names = ["replace/seed-1", "replace/seed-7", "accumulate/seed-1", "accumulate/seed-7"]
    assert [run.name for run in two_seeds.runs[:4]] == names
    run = run_of(two_seeds, "accumulate", 7)
    assert run.directory == tmp_path / "policies" / "accumulate" / "seed-7"
    assert (run.config.seed, run.config.rounds, run.config.name) == (7, 2, "policies-accumulate-7")
    assert run.config.collect.data.type == "accumulate" and run.config.training.num_steps == 20
    assert two_seeds.suite == "ones"
    assert two_seeds.pairs[0] == ("strict", "mix") and len(two_seeds.pairs) == 6
    text = POLICIES.replace("rounds = 2", 'rounds = 2\nsuite = "ones-greedy"\ncompare = [["mix", "replace"]]')
    named = experiment(tmp_path, text)
    assert (named.suite, named.pairs) == ("ones-greedy", (("mix", "replace"),))


def test_the_written_configuration_is_the_runs_and_finds_its_files(tmp_path: Path) -> None:
    for run in experiment(tmp_path, POLICIES).runs:
        run.directory.mkdir(parents=True)
        run.path.write_text(run_text(run, tmp_path, num_threads=3))
        loaded = load_config(run.path)
        assert loaded.run_dir == run.run_dir
        written, asked = loaded.config.model_dump(), run.config.model_dump()
        asked["engine"]["num_threads"] = asked["grading"]["num_workers"] = 3
        for suite in asked["suites"]:
            suite["source"] = "../../../ones.jsonl"
        assert written == asked


def test_a_list_where_the_key_takes_none_is_a_grid(tmp_path: Path) -> None:
    text = HEAD + '[[arms]]\nname = "hot"\nsampling.temperature = [0.8, 1.1]\nsampling.stop = ["a", "b"]\n'
    text += '[[arms]]\nname = "data"\ncollect.data = [{ type = "replace" }, { type = "mix", earlier = 0.25 }]\n'
    text += '[[arms]]\nname = "m"\n[arms.collect.data]\ntype = "mix"\nearlier = [0.1, 0.2]\nbase = [0.1, 0.3]\n'
    text += '[[arms]]\nname = "two"\ncollect.data = [{ type = "mix", base = 0.1 }, { type = "mix", earlier = 0.5 }]\n'
    grid = experiment(tmp_path, text)
    assert " ".join(arm.name for arm in grid.arms) == (
        "hot-0.8 hot-1.1 data-replace data-mix m-0.1-0.1 m-0.1-0.3 m-0.2-0.1 m-0.2-0.3 two-mix-0.1 two-mix-0.5"
    )
    assert [run_of(grid, name, 2).config.sampling.temperature for name in ("hot-0.8", "hot-1.1")] == [0.8, 1.1]
    assert run_of(grid, "hot-1.1", 1).config.sampling.stop == ("a", "b")
    assert run_of(grid, "m-0.2-0.3", 1).config.collect.data.base == 0.3  # type: ignore[union-attr]
    assert grid.arms[1].overrides == {"sampling": {"temperature": 1.1, "stop": ["a", "b"]}}


def test_a_suite_is_changed_by_its_name_and_a_table_with_a_type_is_taken_whole(tmp_path: Path) -> None:
    base = BASE.replace("[training]", '[collect]\ndata = { type = "mix", earlier = 0.5 }\n[training]')
    suites = "suites = { ones-greedy = { limit = 2 }, ones = { pass_at = [1] } }\n"
    run = experiment(tmp_path, HEAD + ARM + suites + 'collect.data.type = "accumulate"\n', base).runs[0]
    assert [(suite.limit, suite.pass_at) for suite in run.config.suites] == [(None, (1,)), (2, (1,))]
    assert run.config.collect.data.type == "accumulate"


ARM = '[[arms]]\nname = "a"\n'
# A file, or one line of its arm, and how its mistake begins.
BAD: list[tuple[str, str]] = [
    ("rounds = 2\n" + ARM, "1: name: is missing; what reports call the experiment"),
    ('name = "e"\n' + ARM, "1: rounds: is missing; how many rounds each run has"),
    (HEAD.replace("[1, 2]", "[1, 1]") + ARM, "3: seeds: 1 is given twice; each seed makes a run of its own"),
    (HEAD.replace("[1, 2]", "[-1]") + ARM, "3: seeds: -1 is not a seed; give whole numbers from 0 on"),
    (HEAD, "1: arms: is missing; add a table [[arms]]"),
    (HEAD + "arms = []\n", "4: arms: is empty; give at least one entry, a list of tables"),
    (HEAD + "rownds = 2\n" + ARM, "4: rownds: unknown key; the closest is rounds"),
    (HEAD + "[model]\nsource = 'x'\n" + ARM,
     "4: model: unknown key; put what all runs have in common into the base configuration, and what differs into an arm"),
    (HEAD + 'config = "no.toml"\n' + ARM, "4: config: no.toml: no such file; name a loop.toml (`loopctl init` writes one)"),
    (HEAD + 'suite = "tens"\n' + ARM, "4: suite: arm a has no suite 'tens'; name one that all arms have (ones, ones-greedy)"),
    (HEAD + 'compare = [["a", "c"]]\n' + ARM, "4: compare[0]: 'c' is not an arm; the arms are: a"),
    (HEAD + 'compare = [["a", "a"]]\n' + ARM, "4: compare[0]: compares an arm with itself; name two"),
    (HEAD + 'compare = [["a"]]\n' + ARM, "4: compare[0]"),
    (HEAD + "[[arms]]\n", "4: arms[0]: has no name; give one"),
    (HEAD + '[[arms]]\nname = "a/b"\n',
     "5: arms[0].name: \"a/b\" is not a name; use letters, digits, '.', '_' and '-', beginning with a letter or digit"),
    (HEAD + ARM.replace('"a"', '"shared"'),
     "5: arms[0].name: 'shared' is the name of something else in the experiment's directory; choose another"),
    (HEAD + ARM + ARM, "7: arms[1].name: two arms are called 'a'; give each its own name"),
    (HEAD + ARM + '[[arms]]\nname = "b"\nsuites.ones.num_samples = 8\n',
     "6: arms[1]: suite 'ones', which figures come from, differs between the arms b and a (num_samples); set `suite` to "
     "one that is the same in all arms"),
    ("seed = 3", "seed: cannot differ between arms; set the experiment's `seeds`"),
    ("sampling.temperatur = 1", "sampling.temperatur: unknown key; the closest is temperature"),
    ("sampling.temperature = []", "sampling.temperature: is an empty list; give the values of the grid"),
    ("sampling.temperature = [0.8, 11]",
     "sampling.temperature: 11 is not between 0 and 10; give a number above 0 and at most 10"),
    ("suites.twos = { limit = 3 }",
     "suites.twos: is not a suite of the base configuration, which has: ones, ones-greedy"),
    ("suites.ones-greedy = { limit = 0 }",
     "suites.ones-greedy.limit: 0 is too small; give a whole number of at least 1"),
    ('suites.ones-greedy = { source = "no.jsonl" }',
     'suites.ones-greedy.source: no.jsonl: no such file; suites are "first-steps", "humaneval", other benchmarks by name, or a .jsonl, '
     ".jsonl.gz or .json file"),
    ('collect.data = { type = "mux" }', "collect.data.type: "),
    ('decide.gates = [{ type = "improvment" }]', "decide.gates[0].type: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_mistake_is_one_line_with_its_place_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    if "\n" not in text:
        text, expected = HEAD + ARM + text + "\n", f"6: arms[0].{expected}"
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(f"experiment.toml:{expected}")


def test_a_mistake_in_the_base_is_said_once_and_stands_in_the_base(tmp_path: Path) -> None:
    base = BASE.replace("top_k = 20", "top_k = -1")
    assert mistakes(tmp_path, POLICIES, base) == [
        "loop.toml:13: sampling.top_k: -1 is too small; give a whole number of at least 0"
    ]
    arms = HEAD + ARM + "sampling.top_k = 5\n"
    assert experiment(tmp_path / "given", arms, base).runs[0].config.sampling.top_k == 5


def test_the_fixed_point_is_allowed_as_a_control_alone(tmp_path: Path) -> None:
    text = HEAD + ARM + "sampling = { temperature = 1.0, top_k = 0 }\n"
    assert "is a fixed point" in mistakes(tmp_path, text)[0]
    control = experiment(tmp_path, text.replace("top_k = 0", "top_k = 0, control = true"))
    assert control.runs[0].config.sampling.temperature == 1.0


def test_a_mistake_ends_the_command_with_78_before_anything_is_made(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, HEAD + ARM + "training.batch_size = 0\n")
    for command in ("run", "status"):
        assert "arms[0].training.batch_size: 0 is too small" in loopctl(command, path, code=78)
    assert "no such file" in loopctl("run", tmp_path / "no.toml", code=78)
    assert not (tmp_path / "e").exists()


CHARACTERS = st.characters(exclude_categories=["Cs"])  # a lone surrogate has no UTF-8
KEYS, TEXTS = st.text(CHARACTERS, min_size=1, max_size=8), st.text(CHARACTERS, max_size=20)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=200)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_is_written_as_toml_is_read_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(tables)) == tables


@settings(max_examples=30)
@given(overrides=st.dictionaries(st.sampled_from(["sampling", "collect", "decide", "suites", "name", "odd"]), VALUES))
def test_whatever_an_arm_changes_it_is_a_valid_run_or_a_line_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
) -> None:
    path = write_experiment(tmp_path_factory.mktemp("odd"), HEAD + toml_text({"arms": [overrides | {"name": "a"}]}))
    try:
        for run in load_experiment(path).runs:
            configuration_of(run, path.parent)
    except ConfigError as error:
        for line in str(error).splitlines():
            assert f"{path.parent}/" in line and line.isprintable(), line
