"""loop.toml: what is accepted, and for each mistake the exact line that a user reads."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pydantic import BaseModel

from loop.config.loading import config_mistakes, find_config, load_config
from loop.config.page_of_keys import tables_in
from loop.config.same_run import differences, resolved
from loop.config.settings import Config
from loop.config.toml_lines import KeyPath
from loop.errors import ConfigError, PermissionDenied
from policies.data import Mix, Pool, Replace
from policies.mistakes import dotted
from tests.support.configurations import VALID, load_text, mistakes_in
from tests.support.runs import imported_by


def test_a_good_file_and_run_dir_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    for more, run_dir in (("", "deep/.loop"), ('run_dir = "../runs/a"\n', "runs/a")):
        Path("deep/my.toml").write_text(more + VALID)
        loaded = load_config(Path("deep/my.toml"))
        assert loaded.config.suite("first").pass_at == (1, 4)
        assert (loaded.path, loaded.base_dir) == (tmp_path / "deep/my.toml", tmp_path / "deep")
        assert loaded.run_dir == tmp_path / run_dir
    for text in ("\ufeff" + VALID, VALID.replace("\n", "\r\n")):
        assert load_text(tmp_path, text).config == load_text(tmp_path, VALID).config, "a file from Windows"


# One change to the good file (old text, new text) and the lines that it must give.
TABLE = [
    ('name = "demo"', 'name = "my demo"', ["1: name: \"my demo\" is not a name; use letters, digits, '.', '_' and '-', "
                                           "beginning with a letter or digit"]),
    ('name = "demo"', "", ["1: name: is missing; the run's name in every report"]),
    ('name = "demo"', 'name = "demo"\nrounds = -1\nseed = 1.5\nrun_dir = 3\ntemperature = 1',
     ["2: rounds: -1 is too small; give a whole number of at least 0",
      "3: seed: 1.5 is not a whole number; give a whole number of at least 0 and below 9223372036854775808",
      "4: run_dir: 3 is not text; give text in quotes",
      "5: temperature: unknown key here; it is a key of [sampling] and [[suites]]"]),
    *(('name = "demo"', f'name = "demo"\nrun_dir = "{text}"',
       [f'2: run_dir: "{text}" is not the name of a directory; leave the key out for .loop'])
      for text in ("", "a\\u0000b", "~nobody-here/x", "./~nobody-here")),
    ('[model]\nsource = "smollm2-135m"', "", ["1: model: is missing; add a table [model]"]),
    ('source = "smollm2-135m"', "",
     ['2: model.source: is missing; "smollm2-135m" (built in), a Hugging Face model directory, or a name on the hub']),
    ('source = "smollm2-135m"', 'source = "smollm2-135m"\nrounds = 3\nrevision = 2026-01-02\nchat_template = "true"',
     ["4: model.rounds: unknown key here; rounds is a key above the first [table]",
      "5: model.revision: 2026-01-02 is a date or time; no key takes one (text stands in quotes)",
      '6: model.chat_template: "true" is text; give true or false']),
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
    ("top_p = 0.8", 'topp = 0.8\ngreedy = true\nzzz = 1\nstop = "```"',
     ["6: sampling.topp: unknown key; the closest is top_p",
      "7: sampling.greedy: unknown key here; it is a key of [[suites]]",
      "8: sampling.zzz: unknown key; [sampling] has temperature, top_k, top_p, repetition_penalty, max_new_tokens, "
      "stop, num_samples, control",
      '9: sampling.stop: "```" is text; give a list of texts in quotes']),
    ("top_p = 0.8", 'stop = [\n  "a",\n  3,\n]', ["8: sampling.stop[1]: 3 is not text; give text in quotes"]),
    ("num_steps = 4", "num_steps = 4\nnum_epochs = 1\nmicro_batch_size = 5\nlearning_rate = 1e-7",
     ["7: training.min_learning_rate: 1e-06 is above learning_rate 1e-07; give at most that",
      "8: training.num_steps: num_epochs and num_steps are both given; give one"]),
    ("num_steps = 4", "num_steps = 4\ncandidates = 4",
     ["9: training.candidates: decide.split chooses among 4 candidates, so it cannot show that the chosen one is better; "
      "set decide.confirm to another split, or candidates = 1"]),
    ("num_steps = 4", "num_steps = 4\ncandidates = 17",
     ["9: training.candidates: 17 is not between 1 and 16; give a whole number of at least 1 and at most 16"]),
    ("num_steps = 4", 'method = "fulll"\nlora = { rank = true, target_modules = [1] }',
     ['8: training.method: "fulll" is unknown; give "full" or "lora"',
      "9: training.lora.rank: true is not a whole number; give a whole number of at least 1",
      '9: training.lora.target_modules: is a list; give a list of texts in quotes or "all-linear"']),
    ("[[suites]]", "[suites]",
     ["9: suites: is a single table; write [[suites]] with double brackets"]),
    ('source = "first-steps"', 'source = "first-steps"\ntemperature = 0\nsplits = { select = 0.5 }',
     ["12: suites[0].temperature: 0 is not a temperature; for always taking the most likely token a suite has "
      "greedy = true",
      "13: suites[0].splits: the shares sum to 0.5; they must sum to 1"]),
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
    ('[{ type = "improvement" }]', '[{ type = "improvment" },\n{ type = "improvement", power = -99999999999999999 },\n3]',
     ["16: decide.gates[0].type: unknown type 'improvment'; known types: improvement, no_regression, collapse, "
      "drift, best_so_far",
      "17: decide.gates[1].power: -99999999999999999 is out of all range; give a number of at least -9007199254740992",
      '18: decide.gates[2]: 3 is not a table; give one such as { type = "improvement" }']),
    ('[{ type = "improvement" }]', "[]",
     ['16: decide.gates: no gates, so every candidate would be kept; give at least one, {type = "improvement"}']),
    ('[{ type = "improvement" }]', '[{ type = "no_regression", suite = "second" }]',
     ["16: decide.gates[0].suite: \"second\" is no suite beside the one that decides; there: none"]),
    ("num_steps = 4", "num_steps = 9_999_999_999",
     ["8: training.num_steps: 9999999999 is out of all range; give a whole number of at least 1 and at most 2147483647"]),
    ("[decide]", "[grading]\nsandbox = true\nmemory_bytes = 99999999999999999\ntimeout_s = 99999999999999999\n"
     '[promts]\n[watching]\non = "decision"\n[decide]',
     ['15: grading.sandbox: true is unknown; give "bubblewrap" or "none"',
      "16: grading.memory_bytes: 99999999999999999 is out of all range; give a whole number of at least 1 and at most "
      "9007199254740992",
      "17: grading.timeout_s: 99999999999999999 is out of all range; give a number above 0 and at most 9007199254740992",
      "18: promts: unknown key; the closest is prompts",
      '20: watching.on: "decision" is text; give a list of "decision", "pause" or "failure"']),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), TABLE, ids=[row[1][:40] or "removed" for row in TABLE])
def test_a_mistake_has_its_line(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert old in VALID
    assert mistakes_in(tmp_path, VALID.replace(old, new, 1)) == expected


FOUR_BIT = 'num_steps = 4\nmethod = "lora"\nlora = { four_bit = true }'
NO_RAY = "needs the package ray; run `pip install 'ssd-loop[cluster]'`, or remove the table"


@pytest.mark.parametrize(
    ("more", "training", "installed", "expected"),
    [
        ("[cluster]", "num_steps = 4", True, []),
        ("[cluster]", "num_steps = 4", False, [f"17: cluster: {NO_RAY}"]),
        ("[cluster]\n[grading]\nsandbox = \"none\"", "num_steps = 4", True,
         ['19: grading.sandbox: "none" lets what a model wrote run programs on every node of [cluster]; use "bubblewrap"']),
        ("[cluster]\ntraining_nodes = 2", FOUR_BIT, True,
         ["20: cluster.training_nodes: a base in four bits is not shared among processes; leave it out, or set "
          "training.lora.four_bit = false"]),
        ("[cluster]", FOUR_BIT, True, []),
        ("[cluster]\ntraining_nodes = 5", "num_steps = 4\nbatch_size = 4", True,
         ["19: cluster.training_nodes: each of 5 nodes needs a row of every step, but training.batch_size is 4; lower it, or "
          "raise that"]),
        ('[cluster]\ntraining_nodes = 2\n[engine]\nsampler = "server"\nserver_url = "http://gpu-host:8000/v1"',
         "num_steps = 4", True, []),
    ],
    ids=["with ray", "without", "no sandbox", "four bits on nodes", "four bits here", "few rows", "a server that samples"],
)  # fmt: skip
def test_what_goes_together_with_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, training: str, installed: bool, expected: list[str]
) -> None:
    """Whatever is installed here: distributions are asked by name."""
    monkeypatch.setattr("loop.config.settings.metadata.distributions", lambda name: [name] * installed)
    assert mistakes_in(tmp_path, VALID.replace("num_steps = 4", training) + more) == expected


TYPES = "replace, accumulate, mix, window, pool"
# Nothing is cut from the distribution, and there is a single epoch. What is added begins in line 17.
PLAIN = VALID.replace("top_p = 0.8\n", "").replace("num_steps = 4", "num_epochs = 1\nlearning_rate = 1e-5")


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        ('[collect]\ndata = "replace"',
         ["18: collect.data: 'replace' is not a table; give one such as { type = \"accumulate\" }"]),
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
    text = VALID.replace('"demo"', "3").replace("top_p = 0.8", "top_p = 8").replace('suite = "first"', 'suite = "none"')
    text = text.replace('{ type = "improvement" }', '{ type = "a" }, { type = "b" }')
    places = [": ".join(line.split(": ")[:2]) for line in mistakes_in(tmp_path, text)]
    gates = ["16: decide.gates[0].type", "16: decide.gates[1].type"]
    assert places == ["1: name", "6: sampling.top_p", "15: decide.suite", *gates]


def test_an_empty_file_lists_what_is_needed(tmp_path: Path) -> None:
    keys = [line.split(": ")[1] for line in mistakes_in(tmp_path, "# nothing\n")]
    assert keys == ["decide", "model", "name", "sampling", "suites"]


NO_TOML = "is not TOML: "
NO_VALUE = f'{NO_TOML}Invalid value; text stands in "quotes", true and false are lower case'
TOO_DEEP = " is nested too deeply, or holds a number out of all range; simplify it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", f"1: {NO_TOML}Expected '=' after a key in a key/value pair; a line is key = value, [table] or # comment"),
        ("\na = b\n", f"2: {NO_VALUE}"),
        (
            "a=1\na=2\n",
            f"2: {NO_TOML}Cannot overwrite a value; a key or table is given a second time; keep one of them",
        ),
        ('a = "x\nb = 1', f"1: {NO_TOML}Illegal character '\\n'; correct this line or the one before"),
        ("a = [\n", f"1: {NO_VALUE}"),
        *((f"a = {value}", TOO_DEEP) for value in ("[" * 5000, "9" * 5000, "0x" + "f" * 5000)),
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

    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "Permission denied", "secret.toml")))
    with pytest.raises(PermissionDenied) as refused:
        load_config(Path("secret.toml"))
    assert str(refused.value) == "secret.toml: permission denied; make the file readable for this user"
    assert refused.value.exit_code == 77


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
    assert not {"torch", "transformers", "datasets", "numpy"} & imported_by("loop.config.loading")


def test_what_is_read(tmp_path: Path) -> None:
    config = load_text(tmp_path, VALID).config
    assert config.collect.data == Replace() and config.after_rollback.data is None
    assert not config.wants_tests
    collect = '[collect]\ndata = { type = "pool", size = 9, dedup = "near" }\n'
    after = '[after_rollback]\ntemperatures = [1.1, 0.8]\ndata = { type = "mix", base = 0.1, passed_tests = true }\n'
    config = load_text(tmp_path, VALID + collect + after).config
    assert config.collect.data == Pool(size=9, dedup="near")
    assert config.after_rollback.data == Mix(base=0.1, passed_tests=True)
    assert config.wants_tests
    assert resolved(config)["after_rollback"]["data"]["near_similarity"] == 0.9
