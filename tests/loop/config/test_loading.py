"""loop.toml: what is accepted, and for each mistake the exact line that a user reads."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from loop.config.loading import config_mistakes, find_config, load_config
from loop.config.page_of_keys import tables_in
from loop.config.same_run import differences, resolved
from loop.config.settings import Config
from loop.config.toml_lines import KeyPath
from loop.errors import ConfigError, PermissionDenied
from policies.data import DataPolicy, Mix, Pool, Replace
from policies.mistakes import dotted
from tests.support import ROOT
from tests.support.configurations import VALID, load_text, mistakes_in


@pytest.mark.parametrize("text", ["\ufeff" + VALID, VALID.replace("\n", "\r\n")])
def test_windows_files_are_read_too(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, text).config == load_text(tmp_path, VALID).config


def test_a_good_file_and_run_dir_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    for more, run_dir in (("", "deep/.loop"), ('run_dir = "../runs/a"\n', "runs/a")):
        Path("deep/my.toml").write_text(more + VALID)
        loaded = load_config(Path("deep/my.toml"))
        assert loaded.config.suite("first").pass_at == (1, 4)
        assert (loaded.path, loaded.base_dir) == (tmp_path / "deep/my.toml", tmp_path / "deep")
        assert loaded.run_dir == tmp_path / run_dir


# One change to the good file (old text, new text) and the lines that it must give.
TABLE = [
    ('name = "demo"', 'name = "my demo"', ["1: name: \"my demo\" is not a name; use letters, digits, '.', '_' and '-', "
                                           "beginning with a letter or digit"]),
    ('name = "demo"', "", ["1: name: is missing; the run's name in every report"]),
    ('name = "demo"', 'name = "demo"\nrounds = -1', ["2: rounds: -1 is too small; give a whole number of at least 0"]),
    ('name = "demo"', 'name = "demo"\nseed = 1.5',
     ["2: seed: 1.5 is not a whole number; give a whole number of at least 0 and below 9223372036854775808"]),
    ('name = "demo"', 'name = "demo"\nrun_dir = 3', ["2: run_dir: 3 is not text; give text in quotes"]),
    *(('name = "demo"', f'name = "demo"\nrun_dir = "{text}"',
       [f'2: run_dir: "{text}" is not the name of a directory; leave the key out for .loop'])
      for text in ("", "a\\u0000b", "~nobody-here/x", "./~nobody-here")),
    ('name = "demo"', 'name = "demo"\ntemperature = 1',
     ["2: temperature: unknown key here; it is a key of [sampling] and [[suites]]"]),
    ('[model]\nsource = "smollm2-135m"', "", ["1: model: is missing; add a table [model]"]),
    ('source = "smollm2-135m"', "",
     ['2: model.source: is missing; "smollm2-135m" (built in), a Hugging Face model directory, or a name on the hub']),
    ('source = "smollm2-135m"', 'source = "smollm2-135m"\nrounds = 3',
     ["4: model.rounds: unknown key here; rounds is a key above the first [table]"]),
    ('source = "smollm2-135m"', 'source = "smollm2-135m"\nrevision = 2026-01-02',
     ["4: model.revision: 2026-01-02 is a date or time; no key takes one (text stands in quotes)"]),
    ('source = "smollm2-135m"', 'source = "smollm2-135m"\nchat_template = "true"',
     ['4: model.chat_template: "true" is text; give true or false']),
    ("[model]", "[[model]]", ["2: model: is a list; write [model] with single brackets, once"]),
    ("temperature = 1.2", "temperature = 0",
     ["5: sampling.temperature: 0 is not a temperature; the training data is always sampled, so give one above 0, "
      "such as 1.2"]),
    ("temperature = 1.2", 'temperature = "1.2"',
     ['5: sampling.temperature: "1.2" is text; give a number above 0 and at most 10']),
    ("temperature = 1.2", "temperature = nan",
     ["5: sampling.temperature: nan is not a finite number; give a number above 0 and at most 10"]),
    *(("temperature = 1.2\ntop_p = 0.8", sampling,
       [f"{line}: sampling.temperature: 1 without top_k, top_p or repetition_penalty is a fixed point: the expected gradient "
        "of training on its samples is zero; set temperature above 1, or top_k or top_p (control = true allows it)"])
      for sampling, line in (("temperature = 1", 5), ("", 4))),
    ("top_p = 0.8", "top_p = 2", ["6: sampling.top_p: 2 is not between 0 and 1; give a number above 0 and at most 1"]),
    ("top_p = 0.8", "topp = 0.8", ["6: sampling.topp: unknown key; the closest is top_p"]),
    ("top_p = 0.8", "greedy = true", ["6: sampling.greedy: unknown key here; it is a key of [[suites]]"]),
    ("top_p = 0.8", "zzz = 1",
     ["6: sampling.zzz: unknown key; [sampling] has temperature, top_k, top_p, repetition_penalty, max_new_tokens, "
      "stop, num_samples, control"]),
    ("top_p = 0.8", 'stop = "```"', ['6: sampling.stop: "```" is text; give a list of texts in quotes']),
    ("top_p = 0.8", 'stop = [\n  "a",\n  3,\n]', ["8: sampling.stop[1]: 3 is not text; give text in quotes"]),
    ("num_steps = 4", "num_steps = 4\nnum_epochs = 1\nmicro_batch_size = 5\nlearning_rate = 1e-7",
     ["7: training.min_learning_rate: 1e-06 is above learning_rate 1e-07; give at most that",
      "8: training.num_steps: num_epochs and num_steps are both given; give one",
      "10: training.micro_batch_size: 5 does not divide batch_size 32; give a divisor of it"]),
    ("num_steps = 4", 'method = "fulll"', ['8: training.method: "fulll" is unknown; give "full" or "lora"']),
    ("num_steps = 4", "lora = { rank = true, target_modules = [1] }",
     ["8: training.lora.rank: true is not a whole number; give a whole number of at least 1",
      '8: training.lora.target_modules: is a list; give a list of texts in quotes or "all-linear"']),
    ("[[suites]]", "[suites]",
     ["9: suites: is a single table; write [[suites]] with double brackets"]),
    ('source = "first-steps"', 'source = "first-steps"\ntemperature = 0',
     ["12: suites[0].temperature: 0 is not a temperature; for always taking the most likely token a suite has "
      "greedy = true"]),
    ('source = "first-steps"', 'source = "first-steps"\nsplits = { select = 0.5 }',
     ["12: suites[0].splits: the shares sum to 0.5; they must sum to 1"]),
    ('source = "first-steps"',
     'source = "first-steps"\n[suites.splits]\ntrain = 1\n[[suites]]\nname = "b"\nsource = "b"',
     ['13: suites[0].splits.train: unknown key; it can be "select", "confirm" or "final"']),
    ("num_samples = 4", "num_samples = 2",
     ["13: suites[0].pass_at: pass@4 needs as many samples but num_samples is 2; raise num_samples to at least 4, or "
      "ask for a smaller k"]),
    ("num_samples = 4", "num_samples = 4\ngreedy = true\ntop_k = 2",
     ["12: suites[0].num_samples: 4 greedy completions of a problem are all the same; set num_samples = 1",
      "13: suites[0].greedy: excludes temperature, top_k and top_p; remove them or greedy"]),
    ("pass_at = [1, 4]", "pass_at = []",
     ["13: suites[0].pass_at: is empty; give at least one entry, a list of whole numbers"]),
    ("[decide]", '[[suites]]\nname = "first"\nsource = "humaneval"\n[decide]',
     ["15: suites[1].name: two suites are called 'first'; give each its own name"]),
    ('suite = "first"', 'suite = "frist"', ["15: decide.suite: 'frist' is not among the suites; name one of first"]),
    ('suite = "first"', 'suite = "first"\nsplit = "final"',
     ["16: decide.split: 'final' has no share of the problems of suite 'first'; its splits are select"]),
    ('suite = "first"', 'suite = "first"\nsplit = "test"',
     ['16: decide.split: "test" is unknown; give "select", "confirm" or "final"']),
    ('"improvement"', '"improvment"',
     ["16: decide.gates[0].type: unknown type 'improvment'; known types: improvement, no_regression, collapse, best_so_far"]),
    ('[{ type = "improvement" }]', "[]",
     ['16: decide.gates: no gates, so every candidate would be kept; give at least one, {type = "improvement"}']),
    ('[{ type = "improvement" }]', '[{ type = "no_regression", suite = "second" }]',
     ["16: decide.gates[0].suite: \"second\" is no suite beside the one that decides; there: none"]),
    ('[{ type = "improvement" }]', "[\n 3]", ['17: decide.gates[0]: 3 is not a table; give one such as { type = "improvement" }']),
    ("[decide]", "[grading]\nsandbox = true\n[promts]\n[decide]",
     ['15: grading.sandbox: true is unknown; give "bubblewrap" or "none"',
      "16: promts: unknown key; the closest is prompts"]),
    ("[decide]", '[watching]\non = "decision"\n[decide]',
     ['15: watching.on: "decision" is text; give a list of "decision", "pause" or "failure"']),
    ("num_steps = 4", "num_steps = 9_999_999_999",
     ["8: training.num_steps: 9999999999 is out of all range; give a whole number of at least 1 and at most 2147483647"]),
    ("[decide]", "[grading]\nmemory_bytes = 99_999_999_999_999_999\ntimeout_s = 99_999_999_999_999_999\n[decide]",
     ["15: grading.memory_bytes: 99999999999999999 is out of all range; give a whole number of at least 1 and at most "
      "9007199254740992",
      "16: grading.timeout_s: 99999999999999999 is out of all range; give a number above 0 and at most 9007199254740992"]),
    ('"improvement"', '"improvement", power = -99_999_999_999_999_999',
     ["16: decide.gates[0].power: -99999999999999999 is out of all range; give a number of at least -9007199254740992"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), TABLE, ids=[row[1][:40] or "removed" for row in TABLE])
def test_a_mistake_has_its_line(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert old in VALID
    assert mistakes_in(tmp_path, VALID.replace(old, new, 1)) == expected


TYPES = "replace, accumulate, mix, window, pool"
# Nothing is cut from the distribution, and there is a single epoch. What is added begins in line 17.
PLAIN = VALID.replace("top_p = 0.8\n", "").replace("num_steps = 4", "num_epochs = 1\nlearning_rate = 1e-5")


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ('[collect]\ndata = "replace"', [
            "18: collect.data: 'replace' is not a table; give one such as { type = \"accumulate\" }"]),
        ("[collect]\ndata = {}", [f"18: collect.data: type is missing; known types: {TYPES}"]),
        ('[collect]\ndata = { type = "all" }', [f"18: collect.data.type: unknown type 'all'; known types: {TYPES}"]),
        ('[collect]\nmin_line = 3\n[collect.data]\ntype = "pool"\nsize = "5"', [
            "18: collect.min_line: unknown key; the closest is min_lines",
            "21: collect.data.size: input should be a valid integer, got '5' (How many completions training sees)"]),
        ('[collect]\ndata = { type = "mix", earlier = 0.6, base = 0.6 }', [
            "18: collect.data: earlier 0.6 and base 0.6 leave no share for fresh completions"]),
        ('[collect]\ndata = { type = "pool", size = 5, rounds = 3 }', [
            "18: collect.data.rounds: unknown key; the keys of 'pool' are type, dedup, near_similarity, min_tokens, "
            "max_tokens, passed_tests, without_tests, only_kept, size"]),
        ('[after_rollback]\ndata = { type = "window" }', [
            "18: after_rollback.data.rounds: is missing (How many rounds, this one among them)"]),
        ("[after_rollback]\npatience = 0\nlearning_rate_factor = 2\ntemperatures = [0]\nlearning_rate = 1", [
            "18: after_rollback.patience: 0 is too small; give a whole number of at least 1",
            "19: after_rollback.learning_rate_factor: 2 is not between 0 and 1; give a number above 0 and at most 1",
            "20: after_rollback.temperatures[0]: 0 is not between 0 and 10; give a number above 0 and at most 10",
            "21: after_rollback.learning_rate: unknown key here; it is a key of [training]"]),
        ("[after_rollback]\ntemperatures = [1.1, 1.0]\nlearning_rate_floor = 1e-4\nlength_factor = 0.5", [
            "18: after_rollback.temperatures[1]: 1 without top_k, top_p or repetition_penalty in [sampling] is a fixed "
            "point; give another",
            "19: after_rollback.learning_rate_floor: 0.0001 is above training.learning_rate 1e-05; give at most that",
            "20: after_rollback.length_factor: a single epoch cannot be made shorter; give training.num_steps, or leave "
            "this out"]),
        ('[schedule]\nstop = [{ type = "hours" }]', [
            "18: schedule.stop[0].value: is missing (Hours of work: what all attempts took, failed ones included)"]),
    ],
)  # fmt: skip
def test_a_mistake_in_what_is_added_has_its_line(tmp_path: Path, more: str, lines: list[str]) -> None:
    assert mistakes_in(tmp_path, PLAIN + more) == lines


def numeric_keys(table: type[BaseModel] = Config, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Where a number stands in loop.toml, by the models: every key that takes one, or the first of its list."""
    for name, field in table.model_fields.items():
        kind = str(field.annotation)
        here: KeyPath = (*path, name, 0) if "uple[" in kind and name != "lora" else (*path, name)
        below = list(tables_in(field.annotation))
        for inner in below:
            yield from numeric_keys(inner, here)
        if not below and re.search(r"\b(int|float)\b", kind):
            yield here


@pytest.mark.parametrize("key", sorted(set(numeric_keys()), key=str), ids=dotted)
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400], ids=["above", "below", "far above"])
def test_a_number_that_no_store_takes_is_refused_in_one_line(key: KeyPath, number: int) -> None:
    value: Any = number
    for part in reversed(key):
        value = [value] if part == 0 else {part: value}
    problem = config_mistakes(value, json.dumps(value))[key]
    assert len(problem) < 200 and re.search(r"\d.*; give a ", problem), problem


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        VALID.replace('"demo"', "3")
        .replace("top_p = 0.8", "top_p = 8")
        .replace('suite = "first"', 'suite = "none"')
        .replace('gates = [{ type = "improvement" }]', 'gates = [{ type = "a" }, { type = "b" }]')
    )
    places = [": ".join(line.split(": ")[:2]) for line in mistakes_in(tmp_path, text)]
    gates = ["16: decide.gates[0].type", "16: decide.gates[1].type"]
    assert places == ["1: name", "6: sampling.top_p", "15: decide.suite", *gates]


def test_an_empty_file_lists_what_is_needed(tmp_path: Path) -> None:
    keys = [line.split(": ")[1] for line in mistakes_in(tmp_path, "# nothing\n")]
    assert keys == ["decide", "model", "name", "sampling", "suites"]


NO_VALUE = 'is not TOML: Invalid value; text stands in "quotes", true and false are lower case'
TOO_DEEP = " is nested too deeply, or holds a number out of all range; simplify it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a",
            "1: is not TOML: Expected '=' after a key in a key/value pair; a line is key = value, [table] or # comment",
        ),
        ("\na = b\n", f"2: {NO_VALUE}"),
        (
            "a=1\na=2\n",
            "2: is not TOML: Cannot overwrite a value; a key or table is given a second time; keep one of them",
        ),
        ('a = "x\nb = 1', "1: is not TOML: Illegal character '\\n'; correct this line or the one before"),
        ("a = [\n", f"1: {NO_VALUE}"),
        ("a = " + "[" * 5000, TOO_DEEP),
        ("a = " + "9" * 5000, TOO_DEEP),
        ("a = 0x" + "f" * 5000, TOO_DEEP),
    ],
)
def test_broken_toml(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes_in(tmp_path, text) == [expected]


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.toml").write_bytes(b'name = "a"\n# caf\xe9\n')
    for name, problem in (
        ("latin.toml", ":2: is not UTF-8; save the file as UTF-8"),
        ("no.toml", ": no such file; run `loopctl init` or give --config FILE"),
        (".", ": is a directory; name the file, loop.toml"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(Path(name))
        assert str(caught.value) == name + problem

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(PermissionDenied) as refused:
        load_config(Path("secret.toml"))
    assert str(refused.value) == "secret.toml: permission denied; make the file readable for this user"
    assert refused.value.exit_code == 77


def test_a_hostile_value_stays_one_printable_line(tmp_path: Path) -> None:
    [line] = mistakes_in(tmp_path, VALID.replace('"demo"', '"\\u001b[31m\\u202e\\nred' + "x" * 500 + '"'))
    assert line.isprintable() and len(line) < 250


def test_finding_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    with pytest.raises(ConfigError) as caught:
        find_config(None)
    assert str(caught.value) == f"no loop.toml in {os.getcwd()}; run `loopctl init` or give --config FILE"
    Path("loop.toml").touch()
    assert find_config(None) == Path("loop.toml")
    monkeypatch.setenv("LOOP_CONFIG", "env.toml")
    assert find_config(None) == Path("env.toml")
    assert find_config("given.toml") == Path("given.toml")


def test_differences_in_words(tmp_path: Path) -> None:
    old = resolved(load_text(tmp_path, VALID).config)
    changed = VALID.replace("1.2", "1.1").replace("num_steps = 4", "num_epochs = 2")
    new = load_text(tmp_path, changed + '[[suites]]\nname = "b"\nsource = "humaneval"\ngreedy = true\n')
    lines = differences(old, resolved(new.config))
    assert lines[:3] == [
        "sampling.temperature is 1.1 here and 1.2 in the run directory",
        "training.num_epochs is 2 here and not set in the run directory",
        "training.num_steps is not set here and 4 in the run directory",
    ]
    assert 'suites[1].name is "b" here and not set in the run directory' in lines


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'numpy'}"
    code = f"import sys, loop.config.loading; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Longest(DataPolicy):
    """A data policy of somebody else's package."""

    type: Literal["longest"] = "longest"
    num: int = Field(gt=0)


def test_a_third_partys_data_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "third_party", sys.modules[__name__])
    points = EntryPoints([EntryPoint("longest", "third_party:Longest", "loop.data_policies")])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points.select(group=group))
    config = load_text(tmp_path, VALID + '[collect]\ndata = { type = "longest", num = 3 }\n').config
    assert config.collect.data == Longest(num=3)
    assert resolved(config)["collect"]["data"]["num"] == 3  # the run is known by it
    lines = mistakes_in(tmp_path, VALID + '[collect]\ndata = { type = "longest", num = 0 }\n')
    assert lines == ["18: collect.data.num: input should be greater than 0, got 0"]


def test_what_is_read(tmp_path: Path) -> None:
    config = load_text(tmp_path, VALID).config
    assert config.collect.data == Replace() and config.after_rollback.data is None
    assert not config.wants_tests
    more = (
        '[collect]\ndata = { type = "pool", size = 9, dedup = "near" }\n[after_rollback]\ntemperatures = [1.1, 0.8]\n'
        'data = { type = "mix", base = 0.1, passed_tests = true }\n'
    )
    config = load_text(tmp_path, VALID + more).config
    assert config.collect.data == Pool(size=9, dedup="near")
    assert config.after_rollback.data == Mix(base=0.1, passed_tests=True)
    assert config.wants_tests
    assert resolved(config)["after_rollback"]["data"]["near_similarity"] == 0.9
