"""Prompts: from files and data sets, without duplicates, and dealt out to rounds."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.config.settings import Model, Prompts
from loop.errors import ConfigError
from loop.grading.problem import Problem
from loop.prompts import sources
from loop.prompts.sources import load_prompts, load_prompts_and_tests, prompts_of_round
from store.canonical import sha256_of
from store.records import Prompt

MODEL = Model(source="fake")
ROWS = [
    {"id": "one", "statement": "Add two numbers.", "signature": "def add(a, b):"},
    {"statement": "Echo the input.", "signature": ""},
    {"statement": "Print a poem."},
    {"id": "again", "statement": "  Add two numbers.\n", "signature": "def add(a, b):\n"},
]


def write(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def problem(source: Path | str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompts(Prompts.model_validate({"source": str(source), **options}), MODEL, Path("/"))
    return str(caught.value)


def test_the_starter_prompts() -> None:
    loaded = load_prompts(Prompts(), MODEL, Path("/"))
    assert len(loaded) > 300
    assert len({prompt.id for prompt in loaded}) == len(loaded)
    assert (loaded[0].source, loaded[0].name) == ("starter", "starter/001")
    assert all(prompt.id == sha256_of(prompt.content) for prompt in loaded)
    assert load_prompts(Prompts(limit=7), MODEL, Path("/")) == loaded[:7]


def test_rows_become_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *ROWS)
    function, program, code = load_prompts(Prompts(source="p.jsonl"), MODEL, tmp_path)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    compressed = load_prompts(Prompts(source="p.jsonl.gz"), MODEL, tmp_path)
    assert [prompt.id for prompt in compressed] == [function.id, program.id, code.id]
    asked = [prompt.content["messages"][0]["content"] for prompt in (function, program, code)]
    assert asked[0] == "Write a Python function `add(a, b)`. Add two numbers."
    assert "standard input" in asked[1]
    assert asked[2] == "Print a poem.\n\nAnswer with Python code."
    assert [prompt.name for prompt in (function, program, code)] == ["one", "2", "3"]
    assert function.source == "p.jsonl"
    assert function.content["prefill"] == "```python\ndef add(a, b):"


def test_the_first_of_equal_prompts_stays_and_the_limit_counts_distinct_ones(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", ROWS[0], ROWS[3], ROWS[0], ROWS[1], ROWS[2])
    loaded = load_prompts(Prompts(source="p.jsonl", limit=2), MODEL, tmp_path)
    assert [prompt.name for prompt in loaded] == ["one", "4"]


def test_the_model_settings_are_part_of_a_prompt(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", ROWS[0])
    models = [MODEL, Model(source="fake", chat_template=False), Model(source="fake", system_prompt="Be brief.")]
    ids = {load_prompts(Prompts(source="p.jsonl"), model, tmp_path)[0].id for model in models}
    ids |= {load_prompts(Prompts(source="p.jsonl", prefill_fence=False), MODEL, tmp_path)[0].id}
    assert len(ids) == 4


def test_broken_lines_are_all_named(tmp_path: Path) -> None:
    broken: list[tuple[object, str]] = [
        ([1], "is [1]; expected a JSON object"),
        (
            {"question": "x", "n": 2},
            'has no "statement" (its keys: "question", "n"); add it, or name the right key in statement_column',
        ),
        ({"statement": " "}, '"statement" is blank; write the task there, or remove the row'),
        ({"statement": 5}, '"statement" is 5; expected text'),
        ({"statement": "x", "signature": 5}, '"signature" is 5; expected text'),
        ({"statement": "\ud800"}, '"statement" holds half of a surrogate pair; write the whole character'),
    ]
    path = write(tmp_path / "p.jsonl", ROWS[0], "", *(row for row, _ in broken))
    assert problem(path).splitlines() == [f"{path}:{line}: {text}" for line, (_, text) in enumerate(broken, start=3)]
    write(path, *["{"] * 30)
    lines = problem(path).splitlines()
    assert (len(lines), lines[-1]) == (
        11,
        f"{path}: 20 more rows are broken in the same or other ways; correct them too",
    )


def test_files_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "dir.jsonl").mkdir()
    assert problem(tmp_path / "empty.jsonl").endswith("holds no prompts; give at least one row with a statement")
    assert problem(tmp_path / "dir.jsonl") == f"{tmp_path}/dir.jsonl: is a directory; name the file with the prompts"
    assert problem(tmp_path / "no.jsonl").startswith(f"{tmp_path}/no.jsonl: no such file; give ")
    assert "is no source of prompts" in problem("nonsense")


def test_a_misspelt_starter_code_column_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROWS[0])
    assert problem(path, starter_code_column="starter").endswith('has "starter"; correct starter_code_column')


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that `datasets` reads as it reads one from the hub, with the columns of rStar-Coder."""
    directory = tmp_path_factory.mktemp("data") / "tasks"
    directory.mkdir()
    rows = [
        {"question_id": "a", "question": "Add.", "starter_code": "def add(a, b):", "response": "no"},
        {"question_id": "b", "question": "Echo.", "starter_code": None, "response": "no"},
        {"question_id": "c", "question": "", "starter_code": "", "response": "no"},
        {"question_id": "d", "question": "Add.", "starter_code": "def add(a, b):\n", "response": "other"},
        {"question_id": "e", "question": "Sort.", "starter_code": "", "response": "no"},
    ]
    write(directory / "train.jsonl", *rows)
    return directory


COLUMNS = {"statement_column": "question", "starter_code_column": "starter_code"}


def test_a_data_set_on_disk(data_set: Path) -> None:
    loaded = load_prompts(Prompts(source="tasks", **COLUMNS), MODEL, data_set.parent)  # type: ignore[arg-type]
    assert [prompt.name for prompt in loaded] == ["a", "b", "e"]
    asked = [prompt.content["messages"][0]["content"] for prompt in loaded]
    assert ["standard input" in question for question in asked] == [False, True, True]


@pytest.mark.slow
def test_the_tests_of_a_data_sets_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files' own keys survive the child, which is started once; rows without tests are passed over."""
    children, fetch = [], sources._fetch
    monkeypatch.setattr(sources, "_fetch", lambda *given: children.append(given) or fetch(*given))
    (tmp_path / "tasks").mkdir()
    write(
        tmp_path / "tasks" / "train.jsonl",
        {"task_id": 7, "text": "Add one to a number, as add(a).", "test_list": ["assert add(1) == 2"], "code": "x"},
        {"task_id": 8, "text": "Print a poem.", "test_list": [], "code": "x"},
    )
    prompts = Prompts(source="tasks", statement_column="text", starter_code_column=None)
    [first, second], tests = load_prompts_and_tests(prompts, MODEL, tmp_path, with_tests=True)
    [(prompt_id, tested)] = tests.items()
    assert prompt_id == first.id and len(children) == 1
    assert load_prompts_and_tests(prompts, MODEL, tmp_path, with_tests=False) == ([first, second], {})
    assert (tested.task_id, tested.kind, tested.payload["tests"]) == ("7", "mbpp", ["assert add(1) == 2"])


def test_tests_of_prompts_in_a_file(tmp_path: Path) -> None:
    def tests_of(prompts: Prompts) -> dict[str, Problem]:
        return load_prompts_and_tests(prompts, MODEL, tmp_path, with_tests=True)[1]

    own = {"statement": "Return one.", "signature": "def one():", "test_list": ["assert one() == 1"]}
    write(tmp_path / "p.jsonl", ROWS[0], own, {**own, "test_list": ["assert one() == 2"]}, ROWS[1])
    prompts = Prompts(source="p.jsonl")
    asked = {prompt.id: prompt.name for prompt in load_prompts(prompts, MODEL, tmp_path)}
    [(prompt_id, tested)] = tests_of(prompts).items()
    assert asked[prompt_id] == tested.task_id == "2" and tested.prompt_code == "def one():"
    assert tested.payload["tests"] == ["assert one() == 1"], "of equal prompts the first"
    with pytest.raises(ConfigError, match="no row of .* has tests"):
        tests_of(Prompts(source="p.jsonl", limit=1))
    write(tmp_path / "p.jsonl", ROWS[0], {**ROWS[3], "test_list": ["assert add(1, 2) == 3"]})
    assert tests_of(Prompts(source="p.jsonl", limit=1)), "of a prompt that is equal to the last one that counts"
    write(tmp_path / "p.jsonl", {**own, "test_list": ["one() == 1"]}, {**own, "test_list": "assert"})
    with pytest.raises(ConfigError) as caught:
        tests_of(prompts)
    first, second = str(caught.value).splitlines()
    assert first.endswith("p.jsonl:1: test 1 of test_list asserts nothing; write it as an assert statement")
    assert "p.jsonl:2: test_list is not a list of strings" in second


def test_mistakes_with_a_data_set_are_one_line(data_set: Path) -> None:
    assert problem(data_set, statement_column="q") == (
        f"{data_set}: has no column 'q'; set statement_column to one of question_id, question, starter_code, response"
    )


def test_a_hub_data_set_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    message = problem("microsoft/rStar-Coder", config="seed_sft", **COLUMNS)
    assert message.startswith("microsoft/rStar-Coder: cannot be fetched (")
    assert message.endswith("); connect to the hub, or name a copy of the data set on disk")
    assert "\n" not in message
    assert os.listdir(tmp_path / "ssd-loop" / "prompts") == []


def test_a_hub_data_set_is_fetched_once_for_each_way_of_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(request: dict[str, object], out: Path, source: str) -> None:
        fetched.append(request["limit"])
        write(out, {"row": 1, "question": "Add.", "starter_code": None})

    monkeypatch.setattr(sources, "_fetch", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for limit in (3, 3, 4):
        prompts = Prompts(source="a/b", limit=limit, **COLUMNS)  # type: ignore[arg-type]
        [prompt] = load_prompts(prompts, MODEL, tmp_path)
    assert fetched == [3, 4]
    assert (prompt.source, prompt.name) == ("a/b", "1")


def prompt_set(count: int) -> list[Prompt]:
    return [Prompt(id=f"{number:03d}", source="s", name="n", statement="t", content={}) for number in range(count)]


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**63 - 1), st.integers(1, 25))
def test_prompts_are_dealt_out_in_turn(count: int, per_round: int, seed: int, num_rounds: int) -> None:
    prompts = prompt_set(count)
    used: Counter[str] = Counter({prompt.id: 0 for prompt in prompts})
    for number in range(1, num_rounds + 1):
        ids = [prompt.id for prompt in prompts_of_round(prompts, per_round, seed, number)]
        assert len(ids) == len(set(ids)) == min(per_round, count)
        used.update(ids)
        assert max(used.values()) - min(used.values()) <= 1
    again = prompts_of_round(prompts[::-1], per_round, seed, num_rounds)
    assert {prompt.id for prompt in again} == set(ids)


def test_each_pass_is_another_shuffle_and_each_seed_another_run() -> None:
    prompts = prompt_set(50)
    passes = [tuple(p.id for n in range(5) for p in prompts_of_round(prompts, 10, 1, 5 * k + n + 1)) for k in range(3)]
    assert len(set(passes)) == 3
    assert all(sorted(order) == [prompt.id for prompt in prompts] for order in passes)
    assert prompts_of_round(prompts, 10, 1, 1) != prompts_of_round(prompts, 10, 2, 1)


def test_without_a_number_every_round_has_all() -> None:
    prompts = prompt_set(5)
    assert prompts_of_round(prompts, None, 1, 3) == prompts_of_round(prompts, 9, 1, 7) == prompts


def test_a_late_round_costs_no_more_than_an_early_one() -> None:
    prompts = prompt_set(300)
    assert len(prompts_of_round(prompts, 128, 1, 10**9)) == 128
