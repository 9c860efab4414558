"""Programs of our own making that cheat, attack or waste, by class. They run in the sandbox and nowhere else.

Where an attack can succeed, the program passes exactly if it does: `attack` gives the right answer once its lines got
through, and the tests in SECRETS hold an answer that no program can work out. `test_hostile.py` runs them.
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
import platform
import re
import statistics
import string
import typing
import uuid
from typing import Any, NamedTuple

from loop.grading.formats import problem_of
from loop.grading.inside import seccomp
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
_TEXT, _NUMBERS = "text member negated mapped shown swallowing checked", "number close near"
_ALL = " ".join(SECRETS)
_SEARCHED = "text checked live"


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
    if problem.task_id == "described":
        return "def f(x): 'Something.'"
    if problem.task_id == "new":
        return "def f(x): return object()"
    if problem.task_id == "stdin":
        return "print(int(input()) + 1)"
    if problem.task_id == "hidden":
        return f"print({SECRET!r})"
    values = {"list": [SECRET, [_NUMBER]], "number": _NUMBER, "set": [SECRET], "close": _NUMBER / 3, "ones": [2]}
    values |= {"true": 1, "long": "abc"}
    values |= {"near": _NUMBER / 3, "holds": [SECRET], "sorted": [SECRET], "live": [SECRET], "function": 2}
    return f"def f(x): return {values.get(problem.task_id, SECRET)!r}"


# --- a solution that defines nothing, and names that the suite itself offers


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
_NOTHING = {
    "nothing": "pass",
    "an empty class": "class Solution: pass",
    "another function": "def other(*xs): return 0",
    "a use": "def other(*xs): return ENTRY(*xs)",
    "another name for it": "try: other = ENTRY\nexcept NameError: pass",
    "a name in a class": "class Solution:\n    try: other = ENTRY\n    except NameError: pass",
    "a name that is not bound": "try: pass\nexcept Exception as ENTRY: pass\nfor ENTRY in (): pass",
    "a name that would be bound": "def other():\n    global ENTRY\n    ENTRY = 1\nif 0:\n    def ENTRY(*xs): pass",
    "a name that is gone": "ENTRY = 1\ndel ENTRY",
    "every name of the module": "def __getattr__(name): return lambda *xs: 0",
    "every name of an object": "class Solution:\n    __getattr__ = lambda s, name: lambda *xs: 0",
    "every name of a class": (
        "class M(type):\n    __getattr__ = lambda s, name: lambda *xs: 0\nclass Solution(metaclass=M): pass"
    ),
}
_PROMPTED = [task_id for task_id in OFFERED if task_id.startswith(("prompt:", "plus:"))]
_IMPORTED = [task_id for task_id in OFFERED if task_id not in _PROMPTED]
NAMES = {
    f"{name}, {where}": Program(before + code, "error", " ".join(ids[number :: len(_NOTHING)]))
    for where, before, ids in (
        ("beside imports", "", _IMPORTED),
        ("after a prompt", "from math import *\n\n\n", _PROMPTED),
    )
    for number, (name, code) in enumerate(_NOTHING.items())
    if ids[number :: len(_NOTHING)]
} | {
    # what is called is the program's, whatever the suite imports under the same name
    "wrong where the suite is right": Program(
        "def ENTRY(*xs): return 'wrong'",
        "failed",
        " ".join(task_id for task_id in OFFERED if not task_id.startswith(("live:", "defines:"))),
    ),
    "names of the tests' own": Program(
        "set = sorted = str = all = map = abs = max = len = isinstance = lambda *xs: True\n"
        "class math: isclose = staticmethod(lambda *xs: True)\ndef f(x): return 0",
        on=f"{_ALL} around",
    ),
    "a check of its own": Program("def check(x): pass\ncandidate = METADATA = check\ndef f(x): return 0", on="checked"),
    "helpers of its own": Program("def same(a, b): return True\ndef f(x): return 0", on="helped set_up"),
    "the tests as a module": Program("import tests\ndef f(x): return 0", "error", _SEARCHED),
    "exceptions of the harness": Program(
        "import sys\nfrom loop.grading.inside import judge, remote\nraise judge.SuiteAtFault('x')", "error", "function"
    ),
    "exceptions of the harness, when asked": Program(
        "from loop.grading.inside import remote\ndef f(x): raise remote.NotReady('x')", "error", "function"
    ),
}

# --- values that lie

_LIES = "".join(
    f"    def __{name}__(s, *a): return {value}\n"
    for name, value in {
        **dict.fromkeys(("eq", "le", "ge", "contains", "bool", "subclasscheck", "instancecheck"), "True"),
        **dict.fromkeys(("ne", "lt", "gt"), "False"),
        **dict.fromkeys(("sub", "rsub", "add", "radd", "abs", "getitem", "call", "enter", "getattr"), "s"),
        **dict.fromkeys(("len", "hash", "index", "int"), "1"),
        "float": "1.0",
        "iter": "iter([s])",
    }.items()
)


def _liar(bases: str, made: str, first: str = "") -> str:
    return f"{first}class E({bases}):\n{_LIES}def f(x): return {made}\n"


VALUES = {
    "an object equal to everything": Program(_liar("", "E()"), on=_ALL),
    "a list": Program(_liar("list", "E([0])"), on=_ALL),
    "a list in a list": Program(_liar("list", "[E([0]), [E([1])]]"), on=_ALL),
    "a text": Program(_liar("str", "E('x')"), on=_ALL),
    "texts in a list": Program(_liar("str", "[E('x')]"), on=_ALL),
    "a number": Program(_liar("int", "E(1)"), on=_ALL),
    "a float": Program(_liar("float", "E(1)"), on=_ALL),
    "a complex number": Program(_liar("complex", "E(1)"), on=_ALL),
    "a dict": Program(_liar("dict", "E()"), on=_ALL),
    "a set": Program(_liar("set", "E()"), on=_ALL),
    "a frozenset": Program(_liar("frozenset", "E()"), on=_ALL),
    "a tuple": Program(_liar("tuple", "E((1,))"), on=_ALL),
    "bytes": Program(_liar("bytes", "E(b'x')"), on=_ALL),
    "a class equal to everything": Program(_liar("type", "E('F', (), {})"), on=_ALL),
    "an object as an element": Program(_liar("", "[E()]"), on=_ALL),
    "an object in a tuple": Program(_liar("", "(E(), (E(),))"), on=_ALL),
    "an object as a key": Program(_liar("", "{E(): E()}"), on=_ALL),
    "an object in a set": Program(_liar("", "{E()}"), on=_ALL),
    "an object in an object": Program(_liar("", "iter([E(), iter([E()])])"), on=_ALL),
    "says that it is a text": Program(
        "class E:\n    __class__ = str\n    __eq__ = lambda s, o: True\ndef f(x): return E()"
    ),
    "says that it is a list": Program(
        "class E:\n    __class__ = list\n    __eq__ = lambda s, o: True\ndef f(x): return E()", on=_ALL
    ),
    "is of another class each time": Program(
        "class E:\n    n = 0\n    @property\n    def __class__(s):\n        E.n += 1\n        return (str, list, int)[E.n % 3]\n"
        "    __eq__ = lambda s, o: True\ndef f(x): return E()",
        on=_ALL,
    ),
    "true and false by turns": Program(
        "class E:\n    n = 0\n    def __bool__(s):\n        E.n += 1\n        return E.n % 2 == 0\n"
        "    def __eq__(s, o): return s\n    __ne__ = __eq__\ndef f(x): return E()",
        on=_ALL,
    ),
    "equal by turns": Program(
        "class E(str):\n    n = 0\n    def __eq__(s, o):\n        E.n += 1\n        return bool(E.n % 2)\n"
        "    __hash__ = str.__hash__\ndef f(x): return E('x')",
        on=_ALL,
    ),
    "an endless iterator": Program(
        "import itertools\ndef f(x): return itertools.repeat(1)", "error failed timeout", _ALL
    ),
    "an iterator that ends by turns": Program(
        "class E:\n    n = 0\n    def __iter__(s): return s\n    def __next__(s):\n        E.n += 1\n"
        "        if E.n % 2: raise StopIteration\n        return s\ndef f(x): return E()",
        "error failed timeout",
        _ALL,
    ),
    "lengths that lie": Program(
        "class E:\n    def __len__(s): return 10**18\n    def __getitem__(s, n): return s\ndef f(x): return E()",
        "error failed timeout",
        _ALL,
    ),
    "a length below zero": Program(
        "class E(list):\n    def __len__(s): return -1\n    def __iter__(s): return iter(s)\ndef f(x): return E()",
        on=_ALL,
    ),
    "mock.ANY": Program("from unittest import mock\ndef f(x): return mock.ANY", on=_ALL),
    "a mock": Program(
        "from unittest import mock\nE = mock.MagicMock()\nE.__eq__.return_value = True\nE.__ne__.return_value = False\n"
        "E.__contains__.return_value = True\ndef f(x): return E",
        on=_ALL,
    ),
    "a data class equal to everything": Program(
        "from dataclasses import dataclass\n@dataclass(eq=False)\nclass E:\n    x: int\n    __eq__ = lambda s, o: True\n"
        "def f(x): return E(x)",
        on=_ALL,
    ),
    "an enumeration equal to everything": Program(
        "import enum\nclass E(enum.IntEnum):\n    A = 1\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
        "def f(x): return E.A",
        on=_ALL,
    ),
    "a proxy": Program(_liar("", "weakref.proxy(KEPT)", "import weakref\n") + "KEPT = E()\n", on=_ALL),
    "a module equal to everything": Program(_liar("type(__import__('sys'))", "E('m')"), on=_ALL),
    "a program that is such a module": Program(
        _liar("type(__import__('sys'))", "E('m')") + "import sys\nm = sys.modules[__name__] = E('m')\nf = m", on=_ALL
    ),
    "an empty deque": Program("from collections import deque\ndef f(x): return deque()", "failed", "true"),
    "no part of anything": Program("from fractions import Fraction\ndef f(x): return Fraction(0)", "failed", "true"),
    "an object that is false": Program(
        "class E:\n    __bool__ = lambda s: False\ndef f(x): return E()", "failed", "true"
    ),
    "an object that is of no length": Program(
        "class E:\n    __len__ = lambda s: 0\ndef f(x): return E()", "failed", "true"
    ),
    "an object that is neither": Program("class E:\n    __bool__ = lambda s: 1\ndef f(x): return E()", "error", "true"),
    "a length in words": Program("class E:\n    __len__ = lambda s: '3'\ndef f(x): return E()", "error", "long"),
    "a length between": Program("class E:\n    __len__ = lambda s: 3.5\ndef f(x): return E()", "error", "long"),
    "a length that lies": Program("class E:\n    __len__ = lambda s: s\ndef f(x): return E()", on="long"),
    "an object that is not new": Program("OLD = object()\ndef f(x): return OLD", "failed", "new"),
    "a function without words": Program("def f(x): return 1", "failed", "described"),
    "not a number": Program("def f(x): return float('nan')", on=_ALL),
    "nothing": Program("def f(x): pass", on=_ALL),
    "True": Program("def f(x): return True", on=_ALL),
    "NotImplemented": Program("def f(x): return NotImplemented", on=_ALL),
    "a built-in type": Program("def f(x): return object", on=_ALL),
    "is a built-in type": Program("f = object", on=_ALL),
    "is type": Program("f = type", on=_ALL),
    "is the importer": Program("f = __loader__\nx = f", on=_ALL),
    "is print": Program("f = print", on=_ALL),
    "is a class": Program("class f:\n    def __new__(cls, x): return cls\n    __eq__ = lambda s, o: True", on=_ALL),
    "is a generator": Program("def f(x): yield from ()", on=_ALL),
    "is a coroutine": Program("async def f(x): return 1", on=_ALL),
    "is a module": Program("import os as f", on=_ALL),
    "is a module that runs": Program("import sys\nf = type(sys)('unittest.__main__')", on=_ALL),
    "is a module that is none": Program("import sys\nf = type(sys)('loop.grading.inside.judge')", on=_ALL),
    "gives itself back": Program("def f(x): return f", on=_ALL),
    "patched str.__eq__": Program(
        "import ctypes, gc\nnames = gc.get_referents(str.__dict__)[0]\nnames['__eq__'] = lambda s, o: True\n"
        "ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))\ndef f(x): return 'x'",
        on=_TEXT,
    ),
    "the number 1 is another": Program(
        "import ctypes, sys\ndef f(x):\n    ctypes.c_uint32.from_address(id(1) + 24).value = 5\n    return 1",
        on=_NUMBERS,
    ),
} | {
    f"raises {error}": Program(
        f"def f(x): raise {error}", "error failed timeout", "mapped swallowing" if "Stop" in error else _ALL
    )
    for error in (
        "StopIteration",
        "StopAsyncIteration",
        "GeneratorExit",
        "KeyboardInterrupt",
        "SystemExit(0)",
        "AssertionError",
        "BaseException",
        "MemoryError",
        "RecursionError",
        "type('E', (StopIteration, KeyError), {})()",
        "UnicodeDecodeError('utf-8', b'', 0, 1, '')",
        "ExceptionGroup('', [ValueError()])",
        "Warning",
    )
}

# --- looking for the answer

_FIND = (
    "import re\nPATTERN = re.compile('expected-[0-9a-f]{32}')\n"
    "def found(text):\n    return next(iter(PATTERN.findall(text if isinstance(text, str) else repr(text))), None)\n"
)
# What is not mapped cannot be written from: EFAULT instead of the end. Reads all that lies near the objects of every kind.
SWEEP = (
    "import ctypes, os, re\ndef sweep(pattern):\n    libc = ctypes.CDLL(None)\n"
    "    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]\n    libc.sbrk.restype = ctypes.c_void_p\n"
    "    near = [id(libc), id(ctypes), id(b'x' * 1000), libc.sbrk(0), ctypes.cast(libc.sbrk, ctypes.c_void_p).value,\n"
    "            ctypes.addressof(ctypes.create_string_buffer(1 << 22)), id(sweep), id(0), id('a'), id(object)]\n"
    "    seen, step = set(), 1 << 14\n    r, w = os.pipe2(os.O_NONBLOCK)\n    hits, last = set(), b''\n"
    "    for middle in near:\n        middle -= middle % step\n"
    "        for at in range(middle - (24 << 20), middle + (24 << 20), step):\n"
    "            if at in seen or at < 0: continue\n            seen.add(at)\n"
    "            for page in range(at, at + step, 4096) if libc.write(w, at, step) != step else ():\n"
    "                libc.write(w, page, 4096)\n"
    "            try: text = os.read(r, 1 << 17)\n            except BlockingIOError: last = b''; continue\n"
    "            hits.update(re.findall(pattern, last[-64:] + text)); last = text\n"
    "    return sorted(hits)\n"
)


def _search(body: str, may_be: str = "error failed", on: str = _SEARCHED, first: str = "") -> Program:
    """`body` looks through things and gives what it found."""
    lines = "".join(f"    {line}\n" for line in body.strip().split("\n"))
    return Program(
        f"{_FIND}{first}def look(x=None):\n{lines}def f(x):\n    y = look(x)\n    return [y] if ON_LIVE else y\n",
        may_be,
        on,
    )


SEARCHES = {
    "frames": _search(
        "import sys\nframe, hits = sys._getframe(), []\nwhile frame:\n"
        "    hits.append(found([frame.f_locals, frame.f_code.co_consts])); frame = frame.f_back\nreturn next(filter(None, hits), None)"
    ),
    "frames' globals": _search(
        "import sys\nframe, hits = sys._getframe(), []\nwhile frame:\n"
        "    hits += [found([name, value]) for name, value in list(frame.f_globals.items()) if name != 'PATTERN']; frame = frame.f_back\n"
        "return next(filter(None, hits), None)"
    ),
    "all objects": _search(
        "import gc\nfor thing in gc.get_objects():\n    for part in [thing, *gc.get_referents(thing)]:\n"
        "        if type(part) in (str, bytes):\n            hit = found(part if type(part) is str else part.decode('latin-1'))\n"
        "            if hit: return hit"
    ),
    "the objects of frozen generations": _search(
        "import gc\ngc.unfreeze(); gc.collect()\nfor thing in gc.get_objects():\n    if isinstance(thing, dict):\n"
        "        for part in list(thing.values()):\n            hit = type(part) in (str, bytes) and found(str(part))\n"
        "            if hit: return hit"
    ),
    "modules": _search(
        "import sys\nfor module in list(sys.modules.values()):\n    for name, part in list(vars(module).items()):\n"
        "        if type(part) in (str, list, dict, tuple, bytes):\n            try: hit = found(part)\n"
        "            except Exception: continue\n            if hit: return hit"
    ),
    "tracebacks": _search(
        "import sys\ntry: raise ValueError\nexcept ValueError as error:\n    frame, hits = error.__traceback__.tb_frame, []\n"
        "    while frame.f_back: frame = frame.f_back; hits.append(found(frame.f_locals))\nreturn next(filter(None, hits), None)"
    ),
    "a trace of the harness": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import sys\nHITS = []\ndef trace(frame, event, value):\n    try: HITS.append(found([frame.f_locals, value]))\n"
            "    except Exception: pass\n    return trace\nsys.settrace(trace); sys.setprofile(trace)\n"
            "frame = sys._getframe()\nwhile frame: frame.f_trace = trace; frame = frame.f_back\n"
        ),
    ),
    "an audit hook": _search(
        "return next(filter(None, HITS), None)",
        first="import sys\nHITS = []\nsys.addaudithook(lambda event, args: HITS.append(found(args)))\n",
    ),
    "memory": _search(
        "return (sweep(rb'expected-[0-9a-f]{32}') or [b''])[0].decode()", "error failed timeout", first=SWEEP
    ),
    "memory, as wide characters": _search(
        "return ''.join(map(chr, (sweep(b'(?:' + b'..'.join(b'expected-').replace(b'..', b'\\0') + b'\\0)(?:[0-9a-f]\\0){32}') or [b''])[0][::2]))",
        "error failed timeout",
        first=SWEEP,
    ),
    "/proc/self/mem": _search("return found(open('/proc/self/mem', 'rb').read().decode('latin-1'))"),
    "/proc/self/environ": _search("return found(open('/proc/self/environ').read())"),
    "other processes' memory": _search(
        "import os\nfor pid in range(1, 40000):\n    if os.path.exists(f'/proc/{pid}/mem'): return found(open(f'/proc/{pid}/cmdline').read())"
    ),
    "the environment": _search("import os, sys\nreturn found([dict(os.environ), sys.argv, sys.orig_argv, sys.path])"),
    "every file": _search(
        "import os\nfor top in ('/tmp', '/dev', '/proc', '/run', '/var', '/home', '/root', '/etc', '/mnt', '/opt'):\n"
        "    for folder, _, names in os.walk(top):\n        for name in names:\n            path = os.path.join(folder, name)\n"
        "            if os.path.isfile(path) and path.endswith(('.json', '.py', '.txt', '.stdin')) and '/lib/python' not in path:\n"
        "                hit = found(open(path, errors='replace').read())\n                if hit: return hit",
        "error failed timeout",
    ),
    "every descriptor": _search(
        "import os\nhits = []\nfor fd in range(256):\n    try: os.set_blocking(fd, False); hits.append(found(os.read(fd, 1 << 20).decode('latin-1')))\n"
        "    except OSError: pass\nreturn next(filter(None, hits), None)"
    ),
    "what comes next on the socket": _search(
        "import socket, time\none = socket.socket(fileno=3)\none.setblocking(False)\ntime.sleep(0.1)\n"
        "try: return found(one.recv(1 << 20, socket.MSG_PEEK).decode('latin-1'))\nexcept OSError: return None"
    ),
    "who is at the other end": _search(
        "import os, socket\none = socket.socket(fileno=3)\npid = os.open and one.getsockopt(1, 17, 12)\n"
        "pid = int.from_bytes(pid[:4], 'little')\nassert pid, 'a process that is not seen'\nreturn found(open(f'/proc/{pid}/mem', 'rb').read())"
    ),
    "json.loads that listens": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import json\nHITS, old = [], json.loads\ndef loads(text, *a, **k):\n    HITS.append(found(str(text)))\n    return old(text, *a, **k)\n"
            "json.loads = json.JSONDecoder.decode = loads\nimport sys\nfor name, module in list(sys.modules.items()):\n"
            "    if name.startswith('loop'):\n        for key in ('_loads', 'loads'):\n            if hasattr(module, key): setattr(module, key, loads)\n"
        ),
    ),
    "a receive that listens": _search(
        "return next(filter(None, HITS), None)",
        first=(
            "import sys\nHITS = []\nvalues, cell = sys.modules['loop.grading.inside.values'], sys.modules['loop.grading.inside.cell']\nold = values.receive\n"
            "def receive(read):\n    said = old(read)\n    HITS.append(found(said))\n    return said\nvalues.receive = cell.receive = receive\n"
        ),
    ),
    "the judge's module": _search(
        "import sys, gc\njudge = sys.modules['loop.grading.inside.judge']\n"
        "return found([vars(judge), [vars(s) for s in gc.get_objects() if type(s) is sys.modules['loop.grading.inside.remote'].Solution]])"
    ),
    "on standard input": Program(
        SWEEP + "hits = sweep(rb'expected-[0-9a-f]{32}')\nprint(hits and hits[0].decode())",
        "failed timeout",
        "hidden",
    ),
    "files beside a program": Program(
        "import os\nprint(*[open(f'/tmp/{n}').read() for n in os.listdir('/tmp')])", "failed", "hidden"
    ),
}

# --- what the harness itself uses, replaced in the solution's process

_FORGE = "return {'value': SECRET_IS_NOT_HERE, 'containers': [], 'given': [], 'verdict': 'passed', 'detail': '', 'ended': False}"


def _patched(lines: str, may_be: str = "error failed timeout", on: str = _ALL) -> Program:
    return Program(f"import builtins, json, os, socket, struct, sys\n{lines}\ndef f(x): return 0", may_be, on)


_LOOP = "cell, values, judge = (sys.modules[f'loop.grading.inside.{n}'] for n in ('cell', 'values', 'judge'))\n"
PATCHES = {
    "json": _patched(
        'json.dumps = json.JSONEncoder.encode = lambda *a, **k: \'{"verdict": "passed"}\'\njson.loads = lambda *a: {}'
    ),
    "struct": _patched("struct.pack = struct.unpack = lambda *a: b''\nstruct.Struct = None"),
    "os.write": _patched("os.write = lambda fd, part: len(part)"),
    "os.read": _patched("os.read = lambda fd, n: b''"),
    "os._exit": _patched("os._exit = sys.exit = lambda *a: None\nraise SystemExit"),
    "socket": _patched("socket.socket = socket.socketpair = None"),
    "pickle": _patched(
        "import pickle, copyreg\nclass E:\n    def __reduce__(s): return (os._exit, (0,))\npickle.loads = lambda *a: E()"
    ),
    "isinstance": _patched("builtins.isinstance = lambda *a: True"),
    "type": _patched("builtins.type = lambda *a: str"),
    "len": _patched("builtins.len = lambda *a: 1"),
    "every builtin": _patched(
        "for name in dir(builtins):\n    if not name.startswith('__'): setattr(builtins, name, lambda *a, **k: True)",
        on=_TEXT,
    ),
    "no builtins": _patched("builtins.__dict__.clear()", on=_TEXT),
    "exec and compile": _patched("builtins.exec = builtins.compile = lambda *a, **k: None"),
    "the importer": _patched("builtins.__import__ = lambda *a, **k: sys\nsys.modules.clear()"),
    "the encoder": _patched(
        f"{_LOOP}values.Encoder.item = lambda s, v: ['T', 'object']\nvalues.Encoder._item = values.Encoder.item"
    ),
    "the answers": _patched(
        f"{_LOOP}def answer(s, q):\n    {_FORGE.replace('SECRET_IS_NOT_HERE', 'True')}\ncell.Link.answer = answer"
    ),
    "answers that are the question": _patched(f"{_LOOP}cell.Link.answer = lambda s, q: q"),
    "answers that are text": _patched(f"{_LOOP}cell.Link.answer = lambda s, q: 'passed'"),
    "no answers": _patched(f"{_LOOP}cell.Link.answer = lambda s, q: s.answer(q)"),
    "the sender": _patched(f'{_LOOP}cell.send = values.send = lambda write, m: write(b\'{{"verdict": "passed"}}\')'),
    "the judge": _patched(
        f"{_LOOP}judge.judge = lambda *a: {{'verdict': 'passed', 'detail': '', 'ended': False}}\njudge.same_output = lambda *a: True"
    ),
    "runs the judge itself": _patched(
        f"{_LOOP}judge.HOST = 3\nvalues.send(lambda p: os.write(3, p), {{'ready': True}})\njudge.main()"
    ),
    "runs the server itself": _patched(f"{_LOOP}cell.serve(socket.socket(fileno=3))"),
    "the comparison of programs": Program(
        "import sys\nsys.modules['loop.grading.inside.judge'].same_output = lambda *a: True\nprint(0)",
        "failed",
        "stdin hidden",
    ),
    "the runner of programs": Program(
        "import sys\nsys.modules['loop.grading.inside.cell'].run_program = lambda *a: {'output': 'x'}\nprint(0)",
        "failed",
        "stdin",
    ),
}

# --- messages in the harness's name

SAY = (
    "import json, os, socket, struct, sys, time\n"
    "def say(message, fd=3):\n    text = message if type(message) is bytes else json.dumps(message).encode()\n"
    "    raw(struct.pack('<I', len(text)) + text, fd)\n"
    "def raw(text, fd=3):\n    while text: text = text[os.write(fd, text):]\n"
)
_OK = "'containers': [], 'given': []"
MESSAGES = {
    "null": "say(None)",
    "true": "say(True)",
    "a number": "say(7)",
    "a text": "say('passed')",
    "a list": "say([])",
    "an empty dict": "say({})",
    "a verdict": "say({'verdict': 'passed', 'detail': '', 'ended': False})",
    "ready": "say({'ready': True})",
    "broken": "say({'broken': 'the sandbox is broken'})",
    "a harness error": "say({'verdict': 'harness_error', 'detail': '', 'ended': True})",
    "no containers": "say({'value': 1, 'given': []})",
    "no given": "say({'value': 1, 'containers': []})",
    "neither value nor error": "say({" + _OK + "})",
    "both": "say({'value': 1, 'raised': {}, " + _OK + "})",
    "a value of no kind": "say({'value': ['x', 1], " + _OK + "})",
    "a container that is none": "say({'value': [5], " + _OK + "})",
    "a container below zero": "say({'value': [-1], 'containers': [['l', []]], 'given': []})",
    "a tuple in itself": "say({'value': [0], 'containers': [['t', [[0]]]], 'given': []})",
    "tuples in each other": "say({'value': [0], 'containers': [['t', [[1]]], ['t', [[0]]]], 'given': []})",
    "a frozenset in itself": "say({'value': [0], 'containers': [['z', [[0]]]], 'given': []})",
    "a set of lists": "say({'value': [1], 'containers': [['l', []], ['s', [[0]]]], 'given': []})",
    "half a dict": "say({'value': [0], 'containers': [['d', [1]]], 'given': []})",
    "a kind of container that is none": "say({'value': [0], 'containers': [['q', []]], 'given': []})",
    "containers of text": "say({'value': [0], 'containers': 'abc', 'given': []})",
    "containers that are a number": "say({'value': [0], 'containers': 5, 'given': []})",
    "containers without end": "say({'value': [0], 'containers': [['l', [[0]] * 99]] * 10**4, 'given': []})",
    "hex that is none": "say({'value': [0], 'containers': [['B', 'xyz']], 'given': []})",
    "a number that is none": "say({'value': ['i', 'zz'], " + _OK + "})",
    "a very long number": "say({'value': ['i', '0x' + 'f' * 10**7], " + _OK + "})",
    "a decimal without end": "say(b'{\"value\": ' + b'9' * 10**6 + b', \"containers\": [], \"given\": []}')",
    "a type that is none": "say({'value': ['T', 'exec'], " + _OK + "})",
    "the importer as a type": "say({'value': ['T', '__loader__'], " + _OK + "})",
    "a type by a list": "say({'value': ['T', []], " + _OK + "})",
    "a range of texts": "say({'value': ['r', 'a', 'b', 'c'], " + _OK + "})",
    "surrogates": "say({'value': ['u', 'eda080'], " + _OK + "})",
    "an object below zero": "say({'value': ['o', -1, 'x'], " + _OK + "})",
    "an object far away": "say({'value': ['o', 10**30, 'x'], " + _OK + "})",
    "an object without a number": "say({'value': ['o', 'x', 'x'], " + _OK + "})",
    "an infinite object": 'say(b\'{"value": ["o", Infinity, "x"], "containers": [], "given": []}\')',
    "an object with a very long kind": "say({'value': ['o', 0, '\u00e9' * 9 * 10**6], " + _OK + "})",
    "an object of a deep kind": "say(b'{\"value\": [\"o\", 0, ' + b'[' * 900 + b']' * 900 + b'], \"containers\": [], \"given\": []}')",
    "objects as keys": "say({'value': [0], 'containers': [['d', [['o', 0, 'x'], 1]]], 'given': []})",
    "given that is a number": "say({'value': 1, 'containers': [], 'given': 5})",
    "given without numbers": "say({'value': 1, 'containers': [], 'given': [['a', 'b'], [None, None]]})",
    "given too short": "say({'value': 1, 'containers': [], 'given': [[0]]})",
    "given that is not there": "say({'value': [0], 'containers': [['l', []]], 'given': [[0, 0], [99, 0]]})",
    "given below zero": "say({'value': [0], 'containers': [['l', []]], 'given': [[-1, -1], [0, -1]]})",
    "an error that is none": "say({'raised': 5, " + _OK + "})",
    "an error of the kind exec": (
        "say({'raised': {'builtin': 'exec', 'kind': 'E', 'text': '', 'line': 1, 'args': ['1']}, " + _OK + "})"
    ),
    "an error StopIteration": (
        "say({'raised': {'builtin': 'StopIteration', 'kind': 'E', 'text': '', 'line': 1, 'args': []}, " + _OK + "})"
    ),
    "an error with a very long text": (
        "say({'raised': {'builtin': 'ValueError', 'kind': 'E' * 10**7, 'text': '\u00e9' * 10**7, 'line': 10**4000, 'args': 5}, "
        + _OK
        + "})"
    ),
    "an error with a deep argument": (
        'say(b\'{"raised": {"builtin": "KeyError", "kind": [], "text": {}, "line": "x", "args": [\' + b\'[\' * 900 '
        "+ b']' * 900 + b']}, \"containers\": [], \"given\": []}')"
    ),
    "deep JSON": "say(b'[' * 10**6 + b']' * 10**6)",
    "deep containers": (
        "say({'value': [0], 'containers': [['t', [[n + 1]]] for n in range(10**4)] + [['t', []]], 'given': []})"
    ),
    "a tangle of tuples": (
        "say({'value': [0], 'containers': [['t', [[n + 1], [n + 1]]] for n in range(60)] + [['t', [1]]], 'given': []})"
    ),
    "numbers that collide": (
        "say({'value': [0], 'containers': [['s', [n * ((1 << 61) - 1) for n in range(1, 8)] + "
        "[['i', hex(n * ((1 << 61) - 1))] for n in range(10**5)]]], 'given': []})"
    ),
    "many empty dicts": "say(b'[' + b'{},' * (16 << 20) + b'0]')",
    "not JSON": "say(b'{passed}')",
    "not UTF-8": "say(b'\\xff\\xfe\\xff')",
    "UTF-16": "say('{}'.encode('utf-16'))",
    "nothing at all": "say(b'')",
    "a length of four gigabytes": "raw(b'\\xff\\xff\\xff\\xff')",
    "a length and no message": "raw(struct.pack('<I', 1000) + b'x')\nos.close(3)",
    "half a length": "raw(b'\\x01\\x00')\nos._exit(0)",
    "noise": "raw(bytes(range(256)) * 1000)",
    "the same answer twice": "say({'value': None, " + _OK + "})\nsay({'value': None, " + _OK + "})",
    "a hundred answers in advance": "for n in range(100): say({'value': True, " + _OK + "})",
    "handles in advance": (
        "for n in range(20): say({'value': [0], 'containers': [['t', ['value', ['o', n, 'f']]]], 'given': []})"
    ),
    "a module in advance": (
        "say({'value': None, " + _OK + "})\n"
        "for n in range(9): say({'value': [0], 'containers': [['t', ['module', 'os']]], 'given': []})"
    ),
    "descriptors": (
        "socket.send_fds(socket.socket(fileno=os.dup(3)), [b'\\x04\\x00\\x00\\x00null'], [os.open('/dev/zero', 0)] * 50)"
    ),
    "bytes out of band": "socket.socket(fileno=os.dup(3)).send(b'x', socket.MSG_OOB)",
    "a closed socket": "socket.socket(fileno=os.dup(3)).shutdown(2)",
    "another socket in its place": "one, other = socket.socketpair()\nos.dup2(one.fileno(), 3)\nsay({})",
    "a file in its place": "os.dup2(os.open('/dev/zero', 2), 3)",
    "a flood": "while True: raw(b'\\0' * 65536)",
    "answers of another thread": (
        "import threading\ndef more():\n    for n in range(2000): say({'value': True, " + _OK + "})\n"
        "threading.Thread(target=more, daemon=True).start()"
    ),
    "answers of another process": "if os.fork() == 0:\n    for n in range(50): say({'value': 1, "
    + _OK
    + "})\n    os._exit(0)",
    "answers on every descriptor": (
        "for fd in range(256):\n    try: say({'verdict': 'passed', 'detail': '', 'ended': False}, fd)\n    except OSError: pass"
    ),
}
_SAID = "text swallowing checked"
_ONCE = (
    "a flood",
    "many empty dicts",
    "numbers that collide",
    "a tangle of tuples",
    "noise",
    "another socket in its place",
)
LINK = {
    f"{name}, {when}": Program(code, "error failed timeout", _SAID)
    for name, lines in MESSAGES.items()
    for when, code in {
        "at once": f"{SAY}{lines}\ndef f(x): return 0\n",
        "when asked": SAY + "def f(x):\n" + "".join(f"    {line}\n" for line in lines.split("\n")) + "    return 0\n",
    }.items()
    # twice would only cost time
    if when == "when asked" or name not in _ONCE
}

# --- leaving early, or saying that all is well

LEAVING = {
    "sys.exit at the top": Program("import sys; sys.exit(0)", "error"),
    "os._exit at the top": Program("import os; os._exit(0)", "error"),
    "exit inside": Program("def f(x):\n    raise SystemExit(0)", "error"),
    "os._exit inside": Program("import os\ndef f(x):\n    os._exit(0)", "error"),
    "kill itself": Program("import os\ndef f(x):\n    os.kill(os.getpid(), 9)"),
    "abort": Program("import os\nos.abort()", "error"),
    "exec another program": Program(
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'pass'])", "error"
    ),
    "exec one that talks": Program(
        "import os, sys\nos.set_inheritable(3, True)\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'import os\\nwhile os.write(3, b\"\\\\x04\\\\0\\\\0\\\\0true\"): pass'])",
        "error",
    ),
    "print a verdict": Program("print('verdict passed')\nprint('passed')\nimport os; os._exit(0)", "error"),
    "close everything": Program("import os\nos.closerange(0, 256)\nos._exit(0)", "error"),
    "close everything and stay": Program("import os, time\nos.closerange(0, 256)\ntime.sleep(60)", "error"),
    "atexit": Program("import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit", "error"),
    "a child that leaves twice": Program("import os\nos.fork()\ndef f(x):\n    os._exit(0)", "error failed timeout"),
    "a finalizer that leaves": Program("import os\nclass E:\n    def __del__(s): os._exit(0)\nx = E(); del x", "error"),
    "a signal that leaves": Program(
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(0, 0.01)\n"
        "import time\ndef f(x): time.sleep(0.5); return 0",
        "error",
    ),
    "leaves in the middle of an answer": Program(
        "import os\nclass E(list):\n    def __iter__(s): os._exit(0)\n    __len__ = __getitem__ = __iter__\ndef f(x): return E([2])"
    ),
    "read the job again": Program(attack("import os\nos.lseek(0, 0, 0)\nassert os.read(0, 100)"), "error"),
    "a hook for exceptions": Program(
        "import os, sys\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\n1 / 0", "error"
    ),
    "nothing at all": Program("pass", "error"),
    "no such name": Program("def g(x): return 2", "error", "function ones text live"),
}

# --- using up the machine

USING_UP = {
    "infinite loop": Program("while True: pass", "timeout"),
    "a loop that cannot be interrupted": Program(
        "def f(x):\n    while True:\n        try:\n            while True: 9 ** 999999\n        except BaseException: pass",
        "timeout",
    ),
    "ignore every signal": Program(
        "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
        "timeout",
    ),
    "block every signal": Program(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.sigwait([signal.SIGUSR1])",
        "timeout",
    ),
    "wait for a pipe": Program("import os\nos.mkfifo('/tmp/p')\nopen('/tmp/p')", "timeout"),
    "fork bomb": Program("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
    "a family that never ends": Program(
        "import os\nwhile True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass", "error timeout"
    ),
    "too many processes": Program(
        "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(60); os._exit(0)\ndef f(x): return 2",
        "error",
    ),
    "thread bomb": Program(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()", "error"
    ),
    "memory hog": Program("x = [b'x' * (1 << 30)]\nwhile True: x.append(b'x' * (1 << 28))", "error"),
    "many hogs together": Program(
        "import os, time\nfor _ in range(12):\n    if os.fork() == 0: x = b'x' * (200 << 20); time.sleep(60); os._exit(0)\ntime.sleep(60)",
        "error timeout",
    ),
    "hogs that cannot be looked at": Program(
        "import ctypes, os, time\nfor _ in range(12):\n    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "        x = b'x' * (200 << 20); time.sleep(60); os._exit(0)\ntime.sleep(60)",
        "error timeout",
    ),
    "memory without a process": Program(
        attack("import os\nn = os.memfd_create('x')\nx = b'x' * (1 << 20)\nfor _ in range(32): os.write(n, x)")
    ),
    "memory in many files without a name": Program(
        attack(
            "import os\nx = b'x' * (1 << 20)\nfor _ in range(20):\n    n = os.memfd_create('x')\n    for _ in range(60): os.write(n, x)"
        )
    ),
    "shared memory that stays": Program(
        attack("import ctypes\nassert ctypes.CDLL(None).shmget(0, 64 << 20, 0o1666) >= 0")
    ),
    "messages that stay": Program(attack("import ctypes\nassert ctypes.CDLL(None).msgget(7, 0o1666) >= 0")),
    "semaphores that stay": Program(attack("import ctypes\nassert ctypes.CDLL(None).semget(7, 100, 0o1666) >= 0")),
    "shared memory in files": Program(
        attack(
            "from multiprocessing import shared_memory\nx = [shared_memory.SharedMemory(create=True, size=32 << 20) for _ in range(9)]\n"
            "for one in x: one.buf[:] = bytes(32 << 20)"
        ),
        "error",
    ),
    "big number": Program("x = 9 ** 9 ** 9", "timeout error"),
    "output flood": Program("for _ in range(10**4): print('x' * 10000)\nraise ValueError", "error timeout"),
    "error flood": Program(
        "import sys\nfor _ in range(10**4): sys.stderr.write('x' * 10000)\nraise ValueError", "error timeout"
    ),
    "flood every descriptor": Program(
        "import os\nwhile True:\n  for fd in range(3, 256):\n    try: os.write(fd, b'x' * 65536)\n    except OSError: pass",
        "error",
    ),
    "fill the disk": Program(
        attack("for n in range(64):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * (16 << 20))"), "error"
    ),
    "fill the disk with names": Program(
        attack("for n in range(10**6): open(f'/tmp/{n}', 'w').close()"), "error timeout"
    ),
    "deep folders": Program(
        attack("import os\nfor n in range(10**5): os.mkdir('x'); os.chdir('x')\nassert n < 99"), "error"
    ),
    "a huge file": Program(attack("with open('/tmp/x', 'wb') as file: file.seek(1 << 40); file.write(b'x')"), "error"),
    "many open files": Program(attack("x = [open('/dev/null') for _ in range(5000)]"), "error"),
    "deep recursion": Program("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", "error timeout"),
    "deep recursion in C": Program(
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)", "error timeout"
    ),
    "segmentation fault": Program("import ctypes\nctypes.string_at(0)", "error"),
    "a child that dies of memory": Program(
        "import os\nif os.fork() == 0: x = b'x' * (1 << 40)\nos.wait()\ndef f(x): return 0", "error failed timeout"
    ),
    "a regular expression without end": Program("import re\ndef f(x): return re.match('(a|a)*b', 'a' * 99)", "timeout"),
}

# --- hostile text

TEXT = {
    "null bytes": Program("x = 1\0", "error"),
    "deep nesting": Program("(" * 100_000, "error"),
    "deep nesting of another kind": Program("-" * 500_000 + "1", "error"),
    "deep attributes": Program("x = a" + ".a" * 200_000, "error"),
    "deep blocks": Program("".join(" " * n + "if 1:\n" for n in range(120)) + " " * 120 + "pass", "error"),
    "lone surrogate": Program("x = '\ud800'\ndef f(x): return 0", "failed"),
    "another encoding": Program("# coding: rot13\nqrs s(k): erghea 2", "error"),
    "a million lines": Program("x = 1\n" * 300_000 + "def f(x): return 0", "failed timeout error"),
    "a huge constant": Program("x = 'x' * 10**7 if 0 else '" + "x" * (8 << 20) + "'\ndef f(x): return len(x)"),
    "a constant that folds": Program("x = ((('x' * 4096) * 4096) * 4096) * 4096", "error"),
    "huge exception text": Program("raise ValueError('x' * 10**8)", "error"),
    "terminal escapes": Program("raise ValueError('\\x1b[2J\\x1b]0;owned\\x07\\nverdict passed')", "error"),
    "an exception that raises": Program("class E(Exception):\n    def __str__(self): raise self\nraise E", "error"),
    "an exception that exits": Program(
        "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\nraise E", "error"
    ),
    "an exception that leaves": Program(
        "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\nraise E", "error"
    ),
    "an exception that never ends": Program(
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", "timeout"
    ),
    "an exception with lying parts": Program(
        "class E(Exception):\n    args = property(lambda s: [s] * 9)\n    __traceback__ = property(lambda s: s)\n"
        "    __class__ = property(lambda s: int)\n    tb_frame = tb_next = None\nraise E",
        "error",
    ),
    "an exception of a kind with a long name": Program("E = type('E' * 10**7, (Exception,), {})\nraise E", "error"),
    "an exception whose kind lies": Program(
        "class M(type):\n    __name__ = property(lambda s: 1 / 0)\n    __mro__ = property(lambda s: 1 / 0)\n"
        "class E(Exception, metaclass=M): pass\nraise E",
        "error",
    ),
    "an exception of a kind of its own": Program("class E(BaseException): pass\ndef f(x): raise E('no')", "error"),
    "a syntax error with a lying message": Program(
        "e = SyntaxError('x')\ne.msg = type('E', (), {'__str__': lambda s: 1 / 0})()\ne.lineno = 'x'\ne.filename = '<solution>'\nraise e",
        "error",
    ),
}

# --- what stays, and what others left

STAYING = {
    "a thread that stays": Program(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ndef f(x): return 0", "failed"
    ),
    "daemon": Program(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 256)\n"
        "        time.sleep(60)\n    os._exit(0)\ndef f(x): return 0",
        "failed",
    ),
    "daemon of one that leaves": Program(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)\nos._exit(0)",
        "error timeout",
    ),
    "a stopped child": Program(
        "import os, signal\nif os.fork() == 0:\n    os.kill(os.getpid(), signal.SIGSTOP)\ndef f(x): return 0", "failed"
    ),
    "a child in a session of its own that takes the name": Program(
        "import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "def f(x): return 0",
        "failed",
    ),
    "kill the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 9)\nassert 0")),
    "stop the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 19)\nassert 0")),
    "interrupt the parent": Program(attack("import os\nassert os.getppid()\nos.kill(os.getppid(), 2)\nassert 0")),
    "kill everyone": Program(attack("import os\nos.kill(-1, 9)\nassert 0")),
    "stop everyone": Program(attack("import os\nos.kill(-1, 19)\nassert 0")),
    "every signal to everyone": Program(
        attack("import os\nfor n in range(1, 65):\n    if n != 32 and n != 33: os.kill(-1, n)\nassert 0")
    ),
    "signals to all numbers": Program(
        attack(
            "import os\nfor pid in range(1, 33000):\n    if pid != os.getpid():\n        try: os.kill(pid, 9)\n        except OSError: pass\nassert 0"
        )
    ),
    "kill the group": Program(attack("import os\nos.killpg(0, 9)\nassert 0"), "error failed timeout"),
    "signals through the other end": Program(
        attack(
            "import os, signal, socket\none = socket.socket(fileno=3)\npidfd = int.from_bytes(one.getsockopt(1, 77, 4), 'little')\n"
            "signal.pidfd_send_signal(pidfd, 0)"
        )
    ),
    "leave a file": Program("open('/tmp/left', 'w').write('x')\ndef f(x): return 0", "failed"),
    "find a file": Program(attack("open('/tmp/left')"), "error"),
    "leave a file in shared memory": Program(
        "from multiprocessing import shared_memory\nx = shared_memory.SharedMemory('left', True, 9)\nx.close()\ndef f(x): return 0",
        "failed",
    ),
    "find a file in shared memory": Program(
        attack("from multiprocessing import shared_memory\nx = shared_memory.SharedMemory('left')"), "error"
    ),
    "leave a queue of messages": Program(
        "import ctypes, os\nctypes.CDLL(None).mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o666, None)\ndef f(x): return 0",
        "failed",
    ),
    "find a queue of messages": Program(
        attack("import ctypes, os\nassert ctypes.CDLL(None).mq_open(b'/left', os.O_RDWR) >= 0"), "error"
    ),
    "leave System V memory": Program(
        "import ctypes\nctypes.CDLL(None).shmget(77, 4096, 0o1666)\ndef f(x): return 0", "failed"
    ),
    "find System V memory": Program(
        attack("import ctypes\nassert ctypes.CDLL(None).shmget(77, 4096, 0) >= 0"), "error"
    ),
    "leave a key": Program(
        "import ctypes\nctypes.CDLL(None).syscall(KEYS, b'user', b'left', b'x', 1, -4)\ndef f(x): return 0", "failed"
    ),
    "find a key": Program(
        attack("import ctypes\nassert ctypes.CDLL(None).syscall(KEYS + 1, b'user', b'left', None, -4) > 0"), "error"
    ),
    "leave a name of the machine": Program(
        "import socket\ntry: socket.sethostname('left')\nexcept OSError: pass\ndef f(x): return 0", "failed"
    ),
    "find a name of the machine": Program(
        attack("import socket\nassert socket.gethostname() == 'left'"), "error failed"
    ),
    "leave a change to Python": Program(
        "import os, builtins\nbuiltins.left = os.left = 1\nint.__doc__\ndef f(x): return 0", "failed"
    ),
    "find a change to Python": Program(
        attack("import os, builtins\nassert hasattr(builtins, 'left') or hasattr(os, 'left')"), "failed error"
    ),
    "leave a way to get out": Program(
        "import os\nos.environ['LEFT'] = '1'\nos.umask(0o777)\nos.nice(19)\ndef f(x): return 0", "failed"
    ),
    "find a way to get out": Program(
        attack("import os\nassert 'LEFT' in os.environ or os.umask(0) == 0o777 or os.nice(0) == 19"), "failed error"
    ),
    "open a door for the others": Program(
        "import socket, time\none = socket.socket(socket.AF_UNIX)\none.bind('\\0door')\none.listen()\n"
        "try: two = socket.create_server(('127.0.0.1', 17171))\nexcept OSError: pass\ntime.sleep(0.4)\ndef f(x): return 0",
        "failed",
    ),
    "go through a door": Program(
        attack(
            "import socket, time\nfor _ in range(30):\n    time.sleep(0.01)\n    try: socket.socket(socket.AF_UNIX).connect('\\0door'); return 2\n"
            "    except OSError: pass\n    try: socket.create_connection(('127.0.0.1', 17171)); return 2\n    except OSError: pass\nassert 0"
        ),
        "failed error",
    ),
    "keep a file for the others": Program(
        "import time\nopen('/tmp/shared', 'w').write('x')\ntime.sleep(0.3)\ndef f(x): return 0", "failed"
    ),
    "look for a file of the others": Program(
        attack(
            "import os, time\nfor _ in range(20):\n    time.sleep(0.01)\n    if os.path.exists('/tmp/shared'): return 2\nassert 0"
        ),
        "failed error",
    ),
}

# --- getting out


def _call(*arguments: str, first: str = "") -> Program:
    """A system call that must not do what it is for."""
    body = f"import ctypes, os, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n{first}\nassert libc.{arguments[0]}({', '.join(arguments[1:])}) >= 0"
    return Program(attack(body.replace("\n\n", "\n")))


OUT = {
    "network": Program(attack("import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)"), "error"),
    "abstract sockets": Program(attack("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0NAME')"), "error"),
    "sockets with a name": Program(attack("import socket\nsocket.socket(socket.AF_UNIX).connect('SOCKET')"), "error"),
    "name resolution": Program(attack("import socket\nsocket.gethostbyname('example.com')"), "error"),
    "the machine below": Program(attack("import socket\nsocket.socket(40, socket.SOCK_STREAM)"), "error"),
    "the kernel's ciphers": Program(attack("import socket\nsocket.socket(38, socket.SOCK_SEQPACKET)"), "error"),
    "raw packets": Program(attack("import socket\nsocket.socket(17, socket.SOCK_RAW)"), "error"),
    "raw sockets": Program(attack("import socket\nsocket.socket(2, socket.SOCK_RAW, 1)"), "error"),
    "another interface": Program(
        attack("import socket\nassert len(socket.if_nameindex()) > 1 or socket.if_nameindex()[0][1] != 'lo'")
    ),
    "passwords": Program(attack("open('/etc/passwd').read()"), "error"),
    "a host file": Program(attack("open('HOSTFILE').read()"), "error"),
    "a link to a host file": Program(
        attack("import os\nos.symlink('HOSTFILE', '/tmp/l')\nopen('/tmp/l').read()"), "error"
    ),
    "a host file from above": Program(attack("open('/tmp/../' * 20 + 'HOSTFILE').read()"), "error"),
    "a host file by its handle": _call("open_by_handle_at", "-100", "b'\\0' * 32", "0"),
    "home": Program(attack("import os\nassert len(os.listdir('HOME')) > 1")),
    "processes of the host": Program(attack("import os\nassert os.listdir('/proc')"), "error"),
    "the kernel's files": Program(attack("import os\nassert os.listdir('/sys')"), "error"),
    "the kernel's words": _call("klogctl", "3", "ctypes.create_string_buffer(9999)", "9999"),
    "disks": Program(
        attack("import os\nassert set(os.listdir('/dev')) - {'null', 'zero', 'urandom', 'shm', 'stdin'}"),
        "failed error",
    ),
    "make a disk": Program(
        attack("import os\nos.mknod('/tmp/d', 0o60666, os.makedev(8, 0))\nopen('/tmp/d', 'rb')"), "error"
    ),
    "make a null device": Program(
        attack("import os\nos.mknod('/tmp/d', 0o20666, os.makedev(1, 3))\nopen('/tmp/d', 'wb')"), "error"
    ),
    "close a device to all": Program(attack("import os\nos.chmod('/dev/null', 0o666)"), "error"),
    "date a device": Program(attack("import os\nos.utime('/dev/null')"), "error"),
    "the name of the machine": Program(attack("import os\nassert os.uname().nodename == 'HOSTNAME'"), "error"),
    "a terminal": Program(attack("open('/dev/tty')"), "error"),
    "type into a terminal": Program(attack("import fcntl\nfor fd in range(4): fcntl.ioctl(fd, 0x5412, b'x')"), "error"),
    "third-party packages": Program(attack("import sys\nsys.path += PACKAGES\nimport pydantic"), "error"),
    "environment": Program(attack("import os\nassert any('LOOP' in name for name in os.environ)")),
    "write to the host": Program(attack("open('HOSTFILE', 'a').write('x')"), "error"),
    "write to Python": Program(attack("import os\nopen(os.__file__, 'a').write('x')"), "error"),
    "write beside Python": Program(
        attack("import os\nopen(os.path.dirname(os.__file__) + '/site-packages/x', 'w')"), "error"
    ),
    "compile beside Python": Program(
        attack("import os, py_compile\npy_compile.compile(os.__file__, doraise=True)"), "error"
    ),
    "write at the root": Program(attack("open('/x', 'w')"), "error"),
    "write to devices": Program(attack("open('/dev/x', 'w')"), "error"),
    "remove a device": Program(attack("import os\nos.unlink('/dev/null')"), "error"),
    "become root": Program(attack("import os\nos.setuid(0)\nos.chroot('/')"), "error"),
    "become someone else": Program(attack("import os\nos.setgroups([0])\nos.setresuid(1, 1, 1)"), "error"),
    "a file with root's rights": Program(
        attack(
            "import os\nopen('/tmp/x', 'w')\nos.chown('/tmp/x', 0, 0)\nos.chmod('/tmp/x', 0o4755)\nos.chown('/tmp/x', 1, 1)"
        ),
        "error",
    ),
    "mount": _call("mount", "b'none'", "b'/tmp'", "b'tmpfs'", "0", "None"),
    "mount after exec": Program(
        attack(
            'import subprocess, sys\ncode = \'import ctypes, sys; sys.exit(ctypes.CDLL(None).mount(b"n", b"/tmp", b"tmpfs", 0, None) & 1)\'\n'
            "subprocess.run([sys.executable, '-c', code], check=True)"
        ),
        "error",
    ),
    "unmount": _call("umount2", "b'/tmp'", "2"),
    "a namespace of users": _call("unshare", "0x10000000"),
    "a namespace of mounts": _call("unshare", "0x20000"),
    "a namespace of networks": _call("unshare", "0x40000000"),
    "a child in a namespace": Program(
        attack(
            "import ctypes, os\npid = ctypes.CDLL(None).syscall(CLONE, 0x10000011, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nassert pid > 0"
        )
    ),
    "a child in a namespace, the new way": Program(
        attack(
            "import ctypes, os, struct\npid = ctypes.CDLL(None).syscall(435, struct.pack('<8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)\n"
            "if pid == 0: os._exit(0)\nassert pid > 0"
        )
    ),
    "trace": _call(
        "ptrace",
        "16",
        "CHILD",
        "0",
        "0",
        first="CHILD = os.fork() or os._exit(0)".replace("os._exit(0)", "__import__('time').sleep(9)"),
    ),
    "read another process": Program(
        attack(
            "import ctypes, os, time\nx = ctypes.create_string_buffer(8)\nv = (ctypes.c_size_t * 2)(ctypes.addressof(x), 8)\nc = os.fork()\n"
            "if c == 0: time.sleep(9)\nassert ctypes.CDLL(None).process_vm_readv(c, v, 1, v, 1, 0) > 0"
        )
    ),
    "rings": Program(attack("import ctypes\nassert ctypes.CDLL(None).syscall(425, 8, b'\\0' * 120) >= 0")),
    "faults": Program(attack("import ctypes\nassert ctypes.CDLL(None).syscall(FAULTS, 1) >= 0")),
    "programs in the kernel": Program(
        attack("import ctypes\nassert ctypes.CDLL(None).syscall(BPF, 0, b'\\0' * 72, 72) >= 0")
    ),
    "another machine's calls": Program(
        attack(
            "import ctypes, mmap\ncode = b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3'\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(code)\n"
            "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\nassert ctypes.CFUNCTYPE(ctypes.c_int)(at)() > 0"
        )
    ),
    "chroot": _call("chroot", "b'/tmp'"),
    "another root": _call(
        "pivot_root", "b'/tmp'", "b'/tmp'", first="libc.pivot_root = lambda *a: libc.syscall(PIVOT, *a)"
    ),
    "a key": Program(attack("import ctypes\nassert ctypes.CDLL(None).syscall(KEYS, b'user', b'k', b'x', 1, -3) >= 0")),
    "all rights": _call("capset", "struct.pack('<Ii', 0x20080522, 0)", "b'\\xff' * 24"),
    "rights that stay": _call("prctl", "47", "2", "21", "0", "0"),
    "raise its limits": Program(
        attack("import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)"), "error"
    ),
    "more open files": Program(
        attack("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))"), "error"
    ),
    "a better priority": Program(attack("import os\nos.nice(-5)"), "error"),
    "before all others": Program(
        attack("import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(9))"), "error"
    ),
    "the clock": Program(attack("import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())"), "error"),
    "restart the machine": _call("reboot", "0"),
    "swap": _call("swapoff", "b'/swap'"),
    "modules of the kernel": _call("syscall", "MODULE", "b'x'", "1", "b''"),
    "no more filter": _call("prctl", "22", "0", "0", "0", "0"),
}
REFUSED = {
    f"the call {name}": Program(
        attack(
            f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.syscall({numbers[platform.machine() == 'aarch64']}, "
            "0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1"
        )
    )
    for name, numbers in seccomp.REFUSED.items()
}

# --- huge and recursive results

_PLAIN = "text list number set sorted live"
RESULTS = {
    name: Program(
        f"import sys\ndef f(x):\n{''.join(f'    {line}{chr(10)}' for line in lines.split(chr(10)))}", may_be, _PLAIN
    )
    for name, lines, may_be in (
        ("a list in itself", "y = []\ny.append(y)\nreturn y", "error failed"),
        ("a dict in itself", "y = {}\ny[1] = [y]\nreturn y", "error failed"),
        ("a tuple in itself", "y = []\nz = (y,)\ny.append(z)\nreturn z", "error failed"),
        ("a deep list", "y = []\nfor _ in range(20000): y = [y]\nreturn y", "error failed"),
        ("a deep tuple", "y = ()\nfor _ in range(20000): y = (y,)\nreturn y", "error failed"),
        ("a deep dict", "y = {}\nfor _ in range(20000): y = {1: y}\nreturn y", "error failed"),
        (
            "deep frozensets",
            "y = frozenset()\nfor _ in range(10**3): y = frozenset([y])\nreturn y",
            "error failed timeout",
        ),
        ("a tangle", "y = (1,)\nfor _ in range(60): y = (y, y)\nreturn y", "error failed timeout"),
        ("a tangle of lists", "y = [1]\nfor _ in range(60): y = [y, y]\nreturn y", "error failed timeout"),
        ("ten million elements", "return [0] * 10**7", "error failed timeout"),
        ("many different elements", "return list(range(3 * 10**5))", "error failed timeout"),
        ("a huge range", "return range(10**18)", "error failed timeout"),
        ("a long text", "return 'x' * 10**8", "error failed timeout"),
        ("a long text of others", "return chr(0x10ffff) * 10**7", "error failed timeout"),
        ("long bytes", "return bytes(10**8)", "error failed timeout"),
        ("a giant number", "return 1 << 10**8", "error failed timeout"),
        ("a number that is hard to show", "return 10 ** 10**5", "error failed"),
        ("numbers that collide", "return {n * sys.hash_info.modulus for n in range(3000)}", "error failed timeout"),
        ("many handles", "return [object() for _ in range(20000)]", "error failed timeout"),
        ("a memory view", "return memoryview(bytes(10))", "error failed"),
        ("surrogates", "return chr(0xd83d) + chr(0xde00)", "error failed"),
    )
}
DESCRIBED = {
    name: Program(f"def f(x): return {value}", "failed error", "ones")
    for name, value in {
        "a set": "{2}",
        "a tuple in a list": "[(2,)]",
        "text": "'[2]'",
        "a description of a tuple": "{'tuple': [2]}",
        "an item of the protocol": "['T', 'int']",
        "a container of the protocol": "[['l', [2]]]",
        "bytes": "b'[2]'",
        "an iterator": "iter([2])",
        "a range": "range(2, 3)",
        "a handle in a list": "[object()]",
    }.items()
}

# --- programs on standard input

STDIN = {
    name: Program(code, may_be, "stdin")
    for name, (code, may_be) in {
        "nothing": ("pass", "failed"),
        "exit": ("import os; os._exit(0)", "failed"),
        "answer the first only": ("print(2)", "failed"),
        "say the results everywhere": (
            'import os\nfor fd in range(3, 256):\n    try: os.write(fd, b\'{"output": "2"}\')\n    except OSError: pass',
            "failed",
        ),
        "flood": ("while True: print('x' * 10000)", "failed error"),
        "too much": ("print(2)\nprint('x' * 100_000)", "failed"),
        "right, then killed": ("import os\nprint(int(input()) + 1, flush=True)\nos.kill(os.getpid(), 11)", "error"),
        "right, then raises": ("print(int(input()) + 1, flush=True)\nraise ValueError", "error"),
        "replace its output by a pipe": ("import os\nos.remove('/tmp/.stdout'); os.mkfifo('/tmp/.stdout')", "timeout"),
        "replace its output by a folder": ("import os\nos.remove('/tmp/.stdout'); os.mkdir('/tmp/.stdout')", "error"),
        "replace its input by a folder": (
            "import os\nos.remove('/tmp/.stdin'); os.mkdir('/tmp/.stdin')",
            "failed error",
        ),
        "replace its output by zeros": (
            "import os\nos.remove('/tmp/.stdout'); os.symlink('/dev/zero', '/tmp/.stdout')",
            "failed",
        ),
        "replace its errors by zeros": (
            "import os\nos.remove('/tmp/.error'); os.symlink('/dev/zero', '/tmp/.error')",
            "error failed",
        ),
        "replace its input by Python": (
            "import os\nos.remove('/tmp/.stdin'); os.symlink(os.__file__, '/tmp/.stdin')",
            "failed error",
        ),
        "take the folder away": ("import os\nos.chmod('/tmp', 0); os.remove('/tmp/.stdin')", "failed error"),
        "loop": ("while True: pass", "timeout"),
        "invalid output": ("import os\nos.write(1, b'\\xff\\xfe')", "failed"),
        "kill the one that asks": ("import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)", "failed error"),
        "write for the next test": (
            "import os, time\nmain = os.getpid()\nif os.fork() == 0:\n    while os.getppid() == main: time.sleep(0.001)\n"
            "    while True: time.sleep(0.03); open('/tmp/.stdout', 'w').write('3')\nprint(2)",
            "failed",
        ),
        "keep its output open": (
            "import os, time\nif os.fork() == 0:\n    while True: os.write(1, b'3'); time.sleep(0.001)\nprint(2)",
            "failed",
        ),
        "a child that stays": (
            "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)\nprint(0)",
            "failed",
        ),
        "remember the test before": (
            "import os\nn = len(open('/tmp/n').read()) if os.path.exists('/tmp/n') else 0\nopen('/tmp/n', 'a').write('x')\nprint(n + 5)",
            "failed",
        ),
        "fill the disk": ("while True: open('/tmp/' + str(id(input)), 'ab').write(b'x' * (1 << 24))", "error"),
        "numbers that are slow to compare": ("print('9' * 3000 + 'e999999999')", "failed"),
        "a number without end": ("print('1e' + '9' * 3990)", "failed"),
        "a million lines": ("print('2\\n' * 10**6)", "failed"),
    }.items()
}

CLASSES: dict[str, dict[str, Program]] = {
    "names": NAMES,
    "values that lie": VALUES,
    "searches": SEARCHES,
    "patches": PATCHES,
    "messages": LINK,
    "leaving": LEAVING,
    "using up": USING_UP,
    "text": TEXT,
    "staying": STAYING,
    "getting out": OUT,
    "refused calls": REFUSED,
    "results": RESULTS,
    "descriptions": DESCRIBED,
    "standard input": STDIN,
}
_NUMBERS_OF_CALLS = {"KEYS": (248, 217), "CLONE": (56, 220), "FAULTS": (323, 282), "BPF": (321, 280)}
_NUMBERS_OF_CALLS |= {"PIVOT": (155, 41), "MODULE": (175, 105)}
CALLS = {name: str(numbers[platform.machine() == "aarch64"]) for name, numbers in _NUMBERS_OF_CALLS.items()}
