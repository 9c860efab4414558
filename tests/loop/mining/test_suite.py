"""A suite made of a repository with everything awkward, whole: what becomes a problem, at which level, and what stays untouched."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.errors import ConfigError, PermissionDenied
from loop.grading.suite import load_suite, split_of
from loop.mining.suite import Wishes, make_suite
from loop.mining.toml import can_see, toml_for
from loop.mining.tree import commit_of, copy_tree
from tests.support.awkward_repository import EXPECTED, FAILING, write_awkward

WISHES = Wishes(python=Path(sys.executable), min_lines=1, train=0.0)


def state(directory: Path) -> dict[str, tuple[bytes | str, int]]:
    return {
        str(path): (os.readlink(path) if path.is_symlink() else path.read_bytes(), path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("awkward")
    source = write_awkward(directory)
    before = state(source)
    facts = make_suite(source, directory / "suite", WISHES, lambda _: None)
    assert state(source) == before, "the repository was changed"
    yield directory / "suite", facts


@pytest.mark.slow
def test_functions_become_what_they_should(made: tuple[Path, dict[str, Any]]) -> None:
    out, facts = made
    rows = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    got = {}
    for id, reason in facts["left_out"].items():
        file, _, rest = id.partition("::")
        got[file, rest.rpartition("#")[0]] = ("weak" if reason.startswith("weak") else "left out", "")
    got |= {(row["file"], row["function"]): ("problem", row["level"]) for row in rows}
    assert set(got) >= {(each.file, each.function) for each in EXPECTED}
    wrong = [
        (each, got[each.file, each.function])
        for each in EXPECTED
        if (each.file, each.function) not in TAKEN_OTHERWISE
        and got[each.file, each.function] != (each.verdict, each.level if each.verdict == "problem" else "")
    ]
    assert wrong == []


TAKEN_OTHERWISE = {
    ("src/larder/numbers.py", "make_counter"): "the closure stays in its process, and is called there",
    ("src/larder/numbers.py", "sort_in_place"): "what a call does to its arguments comes back",
    ("src/larder/calls.py", "gather_prices"): "weak: sleep(0) turned to sleep(1) is seen by no test",
    ("src/larder/calls.py", "ticks"): "weak, for the same reason",
    ("src/larder/errors.py", "LarderError.__init__"): "it calls something, too",
}


@pytest.mark.slow
def test_failing_and_flaky_tests_are_named(made: tuple[Path, dict[str, Any]]) -> None:
    _, facts = made
    assert set(FAILING) <= set(facts["tests_left_out"])
    assert any(reason.startswith("skipped") for reason in facts["tests_left_out"].values())
    assert all("roll" not in name or reason for name, reason in facts["tests_left_out"].items())


@pytest.mark.slow
def test_the_suite_loads_and_its_page_and_toml_say_what_is_in_it(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, facts = made
    suite = load_suite(str(out / "problems.jsonl"))
    assert len(suite.problems) == facts["num_problems"] > 30
    assert {each.place for each in suite.problems} == {str(out.resolve())}
    page = (out / "page.html").read_text()
    assert facts["problems"][0]["task_id"] in page and "flaky" in page
    shares = {"select": 0.5, "confirm": 0.5}
    of_group: dict[str, set[str]] = {}
    for each in suite.problems:
        of_group.setdefault(each.group or "", set()).add(split_of(each.group or each.task_id, shares))
    assert all(len(splits) == 1 for splits in of_group.values())
    text = toml_for((files("loop.cli") / "loop.toml").read_text(), facts)
    (tmp_path / "loop.toml").write_text(text)
    os.symlink(out, tmp_path / "suite")
    config = load_config(tmp_path / "loop.toml").config
    assert [suite.name for suite in config.suites] == [
        "repository",
        "humaneval",
    ] and config.decide.suite == "repository"
    assert "pp in one round" in can_see(facts)


def test_a_newer_commit_keeps_the_ids_of_what_is_the_same(tmp_path: Path) -> None:
    source = tmp_path / "shop"
    (source / "shop").mkdir(parents=True)
    (source / "tests").mkdir()
    code = "def add(a, b):\n    c = a + b\n    return c\n\n\ndef less(a, b):\n    c = a - b\n    return c\n"
    (source / "shop" / "__init__.py").write_text(code)
    (source / "tests" / "test_shop.py").write_text(
        "from shop import add, less\ndef test_add(): assert add(2, 1) == 3\ndef test_less(): assert less(3, 1) == 2\n"
    )
    first = make_suite(source, tmp_path / "suite", WISHES, lambda _: None)
    (source / "shop" / "__init__.py").write_text("# newer\n" + code.replace("a - b", "a - b + 0"))
    second = make_suite(source, tmp_path / "suite", WISHES, lambda _: None)
    ids = [[row["task_id"] for row in facts["problems"]] for facts in (first, second)]
    assert ids[0][0] == ids[1][0] and ids[0][1] != ids[1][1] and first["tree_sha256"] != second["tree_sha256"]


def bad(tmp_path: Path, kind: str) -> Path:
    source = tmp_path / "bad"
    (source / "package").mkdir(parents=True)
    (source / "package" / "__init__.py").write_text("def f(a, b):\n    c = a + b\n    return c\n")
    if kind == "failing":
        (source / "test_f.py").write_text("def test_f(): assert 0\n")
    elif kind == "network":
        (source / "test_f.py").write_text("import socket\ndef test_f(): socket.create_connection(('192.0.2.1', 80))\n")
    elif kind == "broken":
        (source / "test_f.py").write_text("import nowhere_to_be_had\n")
    elif kind == "many":
        (source / "package" / "__init__.py").write_text("def f(a): a += 1; return a\n" * 50_001)
    return source


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "no tests: pytest collects none"),
        ("broken", "no tests: pytest collects none in the sandbox .*nowhere_to_be_had"),
        ("failing", "none of 1 tests passes in the sandbox.*assert 0"),
        ("network", "none of 1 tests passes in the sandbox, without a network"),
        ("many", "50,001 functions, more than 50,000"),
    ],
)
def test_what_cannot_be_used_gets_one_line(tmp_path: Path, kind: str, words: str) -> None:
    source = bad(tmp_path, kind)
    before = state(source)
    with pytest.raises(ConfigError, match=words) as raised:
        make_suite(source, tmp_path / "out", WISHES, lambda _: None)
    assert "\n" not in str(raised.value) and state(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_paths_that_cannot_be_used_get_one_line(tmp_path: Path) -> None:
    source = bad(tmp_path, "failing")
    with pytest.raises(ConfigError, match="is no directory"):
        make_suite(tmp_path / "nowhere", tmp_path / "out", WISHES, lambda _: None)
    with pytest.raises(ConfigError, match="exists and holds no suite.json"):
        make_suite(source, source.parent, WISHES, lambda _: None)
    with pytest.raises(ConfigError, match="lies in the repository"):
        make_suite(source, source / "out", WISHES, lambda _: None)
    with pytest.raises(ConfigError, match="--python .*nothing.*No such file"):
        make_suite(source, tmp_path / "out", Wishes(python=tmp_path / "nothing"), lambda _: None)
    with pytest.raises(ConfigError, match="--python .*is no Python"):
        make_suite(source, tmp_path / "out", Wishes(python=Path("/bin/true")), lambda _: None)


def test_a_copy_has_what_is_needed_and_no_more(tmp_path: Path) -> None:
    source = write_awkward(tmp_path)
    first = copy_tree(source, tmp_path / "copy")
    assert first == copy_tree(source, tmp_path / "again")
    names = {path.relative_to(tmp_path / "copy").parts[0] for path in (tmp_path / "copy").rglob("*")}
    assert not names & {".git", ".venv", "build"} and "src" in names
    assert not list((tmp_path / "copy").rglob("*.pyc"))
    (source / ".git" / "refs" / "heads").mkdir(parents=True)
    (source / ".git" / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert commit_of(source) == "a" * 40 and commit_of(tmp_path / "copy") is None
    if os.geteuid():
        (source / "README.md").chmod(0)
        with pytest.raises(PermissionDenied, match="README.md"):
            copy_tree(source, tmp_path / "third")
