"""What is read of a repository's source: functions, stubs, wrong bodies, prompts. Held against real modules, too."""

from __future__ import annotations

import ast
import statistics
import textwrap
from pathlib import Path

import pytest

from loop.grading.repositories import with_lines
from loop.mining.asking import leaks, prompt_of
from loop.mining.bodies import asking_stub_of, own_program, stub_of, stub_program, wrong_programs
from loop.mining.functions import Function, Module, modules_of, roots_of

SOURCE = '''
"""A module."""
from typing import overload
import abc

LIMIT = 3

class Box:
    """Holds things."""

    size: int = 0

    def __init__(self, size):
        self.size = size

    @property
    def half(self):
        return self.size

    @staticmethod
    def doubled(things):
        result = []
        for thing in things:
            result += [thing, thing]
        return result

    def fill(self, things, *more, start=0, **named):
        """Fill it."""
        for thing in things:
            self.size += thing
        return super().__init__(start)

@overload
def f(x: int) -> int: ...

def f(x):
    x += 1
    return x

@abc.abstractmethod
def g(): raise KeyError

def numbers(up_to, /, *, by=1):
    """Numbers.

    Up to a limit.
    """
    number = 0
    while number < up_to and number < LIMIT:
        yield number
        number += by

def wrapper(x):
    return f(x)

def one(): return [1]; pass
'''


def module(tmp_path: Path, text: str = SOURCE, name: str = "package/thing.py") -> Module:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (found,), broken = modules_of(tmp_path, roots_of(tmp_path), min_lines=2)
    assert broken == {}
    return found


def test_functions_have_their_places_and_reasons(tmp_path: Path) -> None:
    thing = module(tmp_path)
    reasons = {function.qualname: function.left_out for function in thing.functions}
    assert thing.name == "package.thing"
    assert reasons == {
        "Box.__init__": "an __init__ that only assigns",
        "Box.half": "a trivial wrapper",
        "Box.doubled": "",
        "Box.fill": "",
        "f": "",
        "g": "abstract",
        "numbers": "",
        "wrapper": "a trivial wrapper",
        "one": "on one line",
    }
    by_name = {function.qualname: function for function in thing.functions}
    assert by_name["Box.fill"].parameters == [
        *(("args", "self"), ("args", "things"), ("vararg", "more"), ("kwonlyargs", "start"), ("kwarg", "named")),
    ]
    assert asking_stub_of(by_name["Box.fill"], "ask") == "return ask(self, things, *more, start=start, **named)"
    assert [name for name, function in by_name.items() if function.is_plain] == [
        "Box.doubled",
        "f",
        "g",
        "numbers",
        "wrapper",
        "one",
    ]
    assert by_name["Box.doubled"].source.startswith("@staticmethod\ndef doubled(things):\n    result = []\n")


def test_the_id_is_that_of_the_function_alone(tmp_path: Path) -> None:
    before = {function.qualname: function.id for function in module(tmp_path).functions}
    moved = SOURCE.replace("LIMIT = 3", "\n\nLIMIT = 4\n").replace("number += by", "number += by + 0")
    after = {function.qualname: function.id for function in module(tmp_path, moved).functions}
    assert [name for name in before if before[name] != after[name]] == ["numbers"]


def test_tests_examples_and_what_is_no_python_are_left_aside(tmp_path: Path) -> None:
    for name in (
        "tests/helper.py",
        "package/test_x.py",
        "setup.py",
        "docs/conf.py",
        "package/conftest.py",
        "not-a-name/x.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("def f(x):\n    x += 1\n    return x\n")
    (tmp_path / "package" / "old.py").write_text("print 'no'\n")
    (tmp_path / "package" / "latin.py").write_bytes(
        b"# -*- coding: latin-1 -*-\ndef caf\xe9(x):\n    x += 1\n    return x\n"
    )
    modules, broken = modules_of(tmp_path, roots_of(tmp_path), min_lines=2)
    assert [each.file for each in modules] == ["package/latin.py"] and modules[0].functions[0].qualname == "café"
    assert list(broken) == ["package/old.py"]


@pytest.mark.parametrize("real", [textwrap, statistics], ids=lambda real: real.__name__)
def test_every_function_of_a_real_module_can_be_stubbed_and_asked_for(real: object, tmp_path: Path) -> None:
    text = Path(real.__file__).read_text("utf-8")  # type: ignore[attr-defined]
    thing = module(tmp_path, text)
    taken = [function for function in thing.functions if not function.left_out]
    assert len(taken) > 8
    for function in taken:
        stubbed = with_lines(text, function.body_first, function.last, stub_of(function))
        assert others_of(stubbed, function) == others_of(text, function), function.id
        prompt = prompt_of(function, thing)
        assert not leaks(prompt, function)
        ast.parse(prompt + " " * (4 * function.qualname.count(".") + 4) + "pass\n")
        for program in (own_program(function), stub_program(function), *(text for _, text in wrong_programs(function))):
            (defined,) = ast.parse(program).body
            assert isinstance(defined, ast.FunctionDef | ast.AsyncFunctionDef) and defined.name == function.node.name


def others_of(text: str, function: Function) -> list[str]:
    """The statements of a module, without the body of this function."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef)
            and node.name == function.node.name
            and node.lineno == function.node.lineno
        ):
            node.body = []
    return [ast.dump(node) for node in tree.body]


def test_wrong_bodies_differ_from_the_own_and_from_each_other(tmp_path: Path) -> None:
    by_name = {function.qualname: function for function in module(tmp_path).functions}
    wrong = dict(wrong_programs(by_name["Box.doubled"]))
    assert set(wrong) == {"a constant", "None", "its first argument", "one operator turned"}
    assert len({*wrong.values(), own_program(by_name["Box.doubled"])}) == 5
    names: dict[str, object] = {}
    exec(wrong["its first argument"], names)
    assert names["doubled"]([1]) == [1]  # type: ignore[operator]
    exec(dict(wrong_programs(by_name["numbers"]))["None"], names)
    assert list(names["numbers"](3)) == []  # type: ignore[operator]


def test_a_prompt_shows_the_place_and_nothing_of_the_body(tmp_path: Path) -> None:
    thing = module(tmp_path)
    by_name = {function.qualname: function for function in thing.functions}
    prompt = prompt_of(by_name["Box.fill"], thing)
    assert prompt.endswith('    def fill(self, things, *more, start=0, **named):\n        """Fill it."""\n')
    assert "class Box:" in prompt and "self.size = size" in prompt and "self.size += thing" not in prompt
    small = prompt_of(by_name["numbers"], thing, budget_chars=10)
    assert "class Box" not in small and small.endswith('Up to a limit.\n    """\n') and "import abc" in small
    said = by_name["numbers"].body
    assert leaks(said, by_name["numbers"]) and not leaks("number = 0\n", by_name["numbers"])
