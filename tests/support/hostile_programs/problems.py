"""The problems that hostile programs are run on, and a right program for each.

The answers of those in SECRETS cannot be worked out.
"""

from __future__ import annotations

import bisect
import builtins
import collections
import copy
import heapq
import json
import math
import operator
import re
import statistics
import string
import typing
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from loop.grading.formats import problem_of
from loop.grading.inside.judge import PREAMBLE
from loop.grading.problem import Problem

WORD = uuid.uuid4().hex
SECRET = f"expected-{WORD}"
GIVEN = f"given-{WORD}"  # what a program is handed, for the searches that must find something


class Program(NamedTuple):
    """`may_be`: the verdicts that it may get; `on`: the problems that it is run on. ENTRY in it stands for the asked name."""

    code: str
    may_be: str = "error failed"
    on: str = "function"


def programs(
    may_be: str, codes: dict[str, str | Program], on: str = "function", code_of: Callable[[str], str] = str
) -> dict[str, Program]:
    """Programs by name: a text is code (or what `code_of` makes code of) that may get `may_be` on the problems `on`."""
    return {
        name: code if isinstance(code, Program) else Program(code_of(code), may_be, on) for name, code in codes.items()
    }


def _asserted(task_id: str, *tests: str, **more: Any) -> Problem:
    payload = {"tests": list(tests), "setup": "", "imports": [], **more}
    return Problem(task_id=task_id, statement="", kind="mbpp", payload=payload)


def _live(task_id: str, given: str, wanted: str, func_name: str | None = None) -> Problem:
    testtype = "functional" if func_name else "stdin"
    tests = [
        {"input": given.format(n=n), "output": wanted.format(n=n, more=n + 1), "testtype": testtype} for n in (1, 2)
    ]
    payload = {"public": tests, "private": ""}
    return Problem(task_id=task_id, statement="", kind="livecodebench", entry_point=func_name, payload=payload)


_NUMBER = int(WORD, 16)
# The right answers of these are known to the tests alone.
SECRETS = {
    "text": _asserted("text", f"assert f(1) == {SECRET!r}"),
    "list": _asserted("list", f"assert f(1) == [{SECRET!r}, [{_NUMBER}]]"),
    "number": _asserted("number", f"assert f(1) == {_NUMBER}"),
    "set": _asserted("set", f"assert set(f(1)) == {{{SECRET!r}}}"),
    "close": _asserted("close", f"assert math.isclose(f(1), {_NUMBER / 3})", imports=["import math"]),
    "near": _asserted("near", f"assert abs(f(1) - {_NUMBER / 3}) < 1e-6"),
    "member": _asserted("member", f"assert f(1) in ({SECRET!r}, {_NUMBER})"),
    "holds": _asserted("holds", f"assert {SECRET!r} in f(1)"),
    "negated": _asserted("negated", f"assert not f(1) != {SECRET!r}"),
    "mapped": _asserted("mapped", f"assert all(map(lambda n: f(n) == {SECRET!r}, [1, 2]))"),
    "sorted": _asserted("sorted", f"assert sorted(f(1)) == [{SECRET!r}]"),
    "shown": _asserted("shown", f"assert str(f(1)) == {SECRET!r}"),
    "swallowing": _asserted(
        "swallowing", f"try: done = f(1) == {SECRET!r}\nexcept Exception: done = False\nassert done"
    ),
    "checked": Problem(
        task_id="checked",
        statement="",
        entry_point="f",
        kind="humaneval",
        payload={"test": f"def check(candidate):\n    assert candidate(1) == {SECRET!r}\n"},
    ),
    "live": _live("live", "{n}", json.dumps([SECRET]), func_name="f"),
}
PROBLEMS = SECRETS | {
    "function": _asserted("function", "assert f(1) == 2"),
    "stdin": _live("stdin", "{n}\n", "{more}\n"),
    "hidden": _live("hidden", "{n}\n", SECRET),
    "ones": _live("ones", "1", "[2]", func_name="f"),
}
_SAME = "def same(a, b):\n    return a == b\n"
PROBLEMS |= {
    "true": _asserted("true", "assert f(1)"),
    "described": _asserted("described", "assert f.__doc__"),
    "long": _asserted("long", "assert len(f(1)) == 3"),
    "new": _asserted("new", "assert f(1) is not f(2)"),
    "helped": problem_of(
        {
            "task_id": "helped",
            "prompt": f"{_SAME}\n\ndef f(x):\n",
            "entry_point": "f",
            "test": f"def check(candidate):\n    assert same(candidate(1), {SECRET!r})\n",
        },
        "helped",
    ),
    "set_up": problem_of(
        {"task_id": "set_up", "text": "x", "test_list": [f"assert same(f(1), {SECRET!r})"], "test_setup_code": _SAME},
        "set_up",
    ),
    "around": problem_of(
        {"task_id": "around", "text": "x", "test_list": [f"assert max(f(1), f(2)) == {SECRET!r}"]}, "around"
    ),
}
TEXTS, NUMBERS = "text member negated mapped shown swallowing checked", "number close near"
ALL = " ".join(SECRETS)
SEARCHED = "text checked live"


def attack(body: str) -> str:
    """A solution whose answer is right if the lines of `body` get through."""
    return "def f(x):\n" + "".join(f"    {line}\n" for line in body.strip().split("\n")) + "    return 2\n"


def asked(on: str) -> str:
    """The name of the function that the problem asks for."""
    return on.partition(":")[2] or "f"


def right(problem: Problem) -> str:
    """A program that passes."""
    if problem.task_id in OFFERED:
        return f"def {asked(problem.task_id)}(*given): return {OFFERED[problem.task_id][1]!r}"
    whole = {"described": "def f(x): 'Something.'", "new": "def f(x): return object()"}
    whole |= {"stdin": "print(int(input()) + 1)", "hidden": f"print({SECRET!r})"}
    values = {"list": [SECRET, [_NUMBER]], "number": _NUMBER, "set": [SECRET], "close": _NUMBER / 3, "ones": [2]}
    values |= {"true": 1, "long": "abc"}
    values |= {"near": _NUMBER / 3, "holds": [SECRET], "sorted": [SECRET], "live": [SECRET], "function": 2}
    return whole.get(problem.task_id, f"def f(x): return {values.get(problem.task_id, SECRET)!r}")


def _offered_values() -> dict[str, tuple[list[Any], Any]]:
    """Arguments and answer for each function that LiveCodeBench's imports offer, where both are JSON and a call is harmless."""
    space: dict[str, Any] = {}
    exec(PREAMBLE.rpartition("sys.setrecursionlimit")[0], space)
    modules = (string, re, collections, heapq, bisect, copy, math, statistics, operator, json, typing, builtins)
    names = {name for module in modules for name in vars(module) if name[0] != "_"}
    harmful = "input print breakpoint exit quit help open exec eval compile vars dir id hash reveal_type"
    found: dict[str, tuple[list[Any], Any]] = {}
    tried = '[1] [1,2] [[3,1,2]] ["ab"] ["a","bab"] [[1,2],1] [1,[2,1]] ["a","b","abc"] [[1,2],[3,5]] [[1,2],0,7]'
    for name in sorted((names & space.keys()) - set(harmful.split(" "))):
        for arguments in map(json.loads, tried.split()):
            try:
                value = space[name](*arguments)
                if type(value) in (bool, int, float, str, list) and json.loads(json.dumps(value)) == value:
                    found.setdefault(name, (arguments, value))
            except Exception:
                continue
    return found


def _offering(kind: str, name: str, arguments: list[Any], value: Any) -> Problem:
    """A problem whose answer is what the suite's own imports, or Python, would give under the name that is asked for."""
    task_id, prompt = f"{kind}:{name}", f"def {name}(*xs):\n    'X.'\n"
    test = f"assert {name}(*{arguments!r}) == {value!r}"
    star = {"task_id": task_id, "prompt": f"from math import *\n\n\n{prompt}", "entry_point": name}
    asserted = {"task_id": task_id, "text": "x", "test_list": [test]}
    rows: dict[str, dict[str, Any]] = {
        "builtin": asserted | {"entry_point": name},
        "guessed": asserted,
        "imports": asserted | {"entry_point": name, "test_imports": ["from math import *"]},
        "setup": asserted | {"entry_point": name, "test_setup_code": f"from math import {name}\nx = 1"},
        "defines": asserted | {"entry_point": name, "test_setup_code": f"def {name}(*xs): return {value!r}"},
        "prompt": star | {"test": f"def check(candidate):\n    {test}\n    {test.replace(name, 'candidate', 1)}"},
        "test": star | {"prompt": prompt, "test": f"from math import *\ndef check(candidate):\n    {test}"},
        "plus": star | {"canonical_solution": f"    return {value!r}\n", "base_input": [arguments]},
        "live": {
            "question_id": task_id,
            "question_content": "x",
            "metadata": {"func_name": name},
            "public_test_cases": [
                {"input": "\n".join(map(json.dumps, arguments)), "output": json.dumps(value), "testtype": "functional"}
            ],
        },
    }
    return problem_of(rows[kind], task_id)


_VALUES = _offered_values()
OFFERED = {f"live:{name}": known for name, known in _VALUES.items()} | {"live:__setattr__": (["x", 1], None)}
for _number, _name in enumerate(name for name in _VALUES if hasattr(builtins, name)):
    OFFERED[f"{('builtin', 'guessed')[_number % 2]}:{_name}"] = _VALUES[_name]
for _number, _name in enumerate(name for name in _VALUES if hasattr(math, name)):
    OFFERED[f"{('imports', 'setup', 'prompt', 'test', 'plus', 'defines')[_number % 6]}:{_name}"] = _VALUES[_name]
PROBLEMS |= {task_id: _offering(*task_id.split(":"), *known) for task_id, known in OFFERED.items()}
