"""Values that lie, and huge and recursive ones."""

from __future__ import annotations

from tests.support.hostile_programs.problems import ALL, NUMBERS, TEXTS, Program, programs

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


_RAISED = (
    "StopIteration; StopAsyncIteration; GeneratorExit; KeyboardInterrupt; SystemExit(0); AssertionError; BaseException; "
    "MemoryError; RecursionError; type('E', (StopIteration, KeyError), {})(); UnicodeDecodeError('utf-8', b'', 0, 1, ''); "
    "ExceptionGroup('', [ValueError()]); Warning"
)
VALUES = programs(
    "error failed",
    {
        "an object equal to everything": _liar("", "E()"),
        "a list": _liar("list", "E([0])"),
        "a list in a list": _liar("list", "[E([0]), [E([1])]]"),
        "a text": _liar("str", "E('x')"),
        "texts in a list": _liar("str", "[E('x')]"),
        "a number": _liar("int", "E(1)"),
        "a float": _liar("float", "E(1)"),
        "a complex number": _liar("complex", "E(1)"),
        "a dict": _liar("dict", "E()"),
        "a set": _liar("set", "E()"),
        "a frozenset": _liar("frozenset", "E()"),
        "a tuple": _liar("tuple", "E((1,))"),
        "bytes": _liar("bytes", "E(b'x')"),
        "a class equal to everything": _liar("type", "E('F', (), {})"),
        "an object as an element": _liar("", "[E()]"),
        "an object in a tuple": _liar("", "(E(), (E(),))"),
        "an object as a key": _liar("", "{E(): E()}"),
        "an object in a set": _liar("", "{E()}"),
        "an object in an object": _liar("", "iter([E(), iter([E()])])"),
        "says that it is a text": Program(
            "class E:\n    __class__ = str\n    __eq__ = lambda s, o: True\ndef f(x): return E()"
        ),
        "says that it is a list": "class E:\n    __class__ = list\n    __eq__ = lambda s, o: True\ndef f(x): return E()",
        "is of another class each time": (
            "class E:\n    n = 0\n    @property\n    def __class__(s):\n        E.n += 1\n        return (str, list, int)[E.n % 3]\n"
            "    __eq__ = lambda s, o: True\ndef f(x): return E()"
        ),
        "true and false by turns": (
            "class E:\n    n = 0\n    def __bool__(s):\n        E.n += 1\n        return E.n % 2 == 0\n"
            "    def __eq__(s, o): return s\n    __ne__ = __eq__\ndef f(x): return E()"
        ),
        "equal by turns": (
            "class E(str):\n    n = 0\n    def __eq__(s, o):\n        E.n += 1\n        return bool(E.n % 2)\n"
            "    __hash__ = str.__hash__\ndef f(x): return E('x')"
        ),
        "an endless iterator": Program(
            "import itertools\ndef f(x): return itertools.repeat(1)", "error failed timeout", ALL
        ),
        "an iterator that ends by turns": Program(
            "class E:\n    n = 0\n    def __iter__(s): return s\n    def __next__(s):\n        E.n += 1\n"
            "        if E.n % 2: raise StopIteration\n        return s\ndef f(x): return E()",
            "error failed timeout",
            ALL,
        ),
        "lengths that lie": Program(
            "class E:\n    def __len__(s): return 10**18\n    def __getitem__(s, n): return s\ndef f(x): return E()",
            "error failed timeout",
            ALL,
        ),
        "a length below zero": "class E(list):\n    def __len__(s): return -1\n    def __iter__(s): return iter(s)\ndef f(x): return E()",
        "mock.ANY": "from unittest import mock\ndef f(x): return mock.ANY",
        "a mock": (
            "from unittest import mock\nE = mock.MagicMock()\nE.__eq__.return_value = True\nE.__ne__.return_value = False\n"
            "E.__contains__.return_value = True\ndef f(x): return E"
        ),
        "a data class equal to everything": (
            "from dataclasses import dataclass\n@dataclass(eq=False)\nclass E:\n    x: int\n    __eq__ = lambda s, o: True\n"
            "def f(x): return E(x)"
        ),
        "an enumeration equal to everything": (
            "import enum\nclass E(enum.IntEnum):\n    A = 1\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
            "def f(x): return E.A"
        ),
        "a proxy": _liar("", "weakref.proxy(KEPT)", "import weakref\n") + "KEPT = E()\n",
        "a module equal to everything": _liar("type(__import__('sys'))", "E('m')"),
        "a program that is such a module": _liar("type(__import__('sys'))", "E('m')")
        + "import sys\nm = sys.modules[__name__] = E('m')\nf = m",
        "an empty deque": Program("from collections import deque\ndef f(x): return deque()", "failed", "true"),
        "no part of anything": Program(
            "from fractions import Fraction\ndef f(x): return Fraction(0)", "failed", "true"
        ),
        "an object that is false": Program(
            "class E:\n    __bool__ = lambda s: False\ndef f(x): return E()", "failed", "true"
        ),
        "an object that is of no length": Program(
            "class E:\n    __len__ = lambda s: 0\ndef f(x): return E()", "failed", "true"
        ),
        "an object that is neither": Program(
            "class E:\n    __bool__ = lambda s: 1\ndef f(x): return E()", "error", "true"
        ),
        "a length in words": Program("class E:\n    __len__ = lambda s: '3'\ndef f(x): return E()", "error", "long"),
        "a length between": Program("class E:\n    __len__ = lambda s: 3.5\ndef f(x): return E()", "error", "long"),
        "a length that lies": Program("class E:\n    __len__ = lambda s: s\ndef f(x): return E()", on="long"),
        "an object that is not new": Program("OLD = object()\ndef f(x): return OLD", "failed", "new"),
        "a function without words": Program("def f(x): return 1", "failed", "described"),
        "not a number": "def f(x): return float('nan')",
        "nothing": "def f(x): pass",
        "True": "def f(x): return True",
        "NotImplemented": "def f(x): return NotImplemented",
        "a built-in type": "def f(x): return object",
        "is a built-in type": "f = object",
        "is type": "f = type",
        "is the importer": "f = __loader__\nx = f",
        "is print": "f = print",
        "is a class": "class f:\n    def __new__(cls, x): return cls\n    __eq__ = lambda s, o: True",
        "is a generator": "def f(x): yield from ()",
        "is a coroutine": "async def f(x): return 1",
        "is a module": "import os as f",
        "is a module that runs": "import sys\nf = type(sys)('unittest.__main__')",
        "is a module that is none": "import sys\nf = type(sys)('loop.grading.inside.judge')",
        "gives itself back": "def f(x): return f",
        "patched str.__eq__": Program(
            "import ctypes, gc\nnames = gc.get_referents(str.__dict__)[0]\nnames['__eq__'] = lambda s, o: True\n"
            "ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))\ndef f(x): return 'x'",
            on=TEXTS,
        ),
        "the number 1 is another": Program(
            "import ctypes, sys\ndef f(x):\n    ctypes.c_uint32.from_address(id(1) + 24).value = 5\n    return 1",
            on=NUMBERS,
        ),
    },
    on=ALL,
) | {
    f"raises {error}": Program(
        f"def f(x): raise {error}", "error failed timeout", "mapped swallowing" if "Stop" in error else ALL
    )
    for error in _RAISED.split("; ")
}


def _gives(lines: str) -> str:
    return "import sys\ndef f(x):\n" + "".join(f"    {line}\n" for line in lines.split("\n"))


_PLAIN = "text list number set sorted live"
RESULTS = programs(
    "error failed timeout",
    {
        "a list in itself": Program(_gives("y = []\ny.append(y)\nreturn y"), on=_PLAIN),
        "a dict in itself": Program(_gives("y = {}\ny[1] = [y]\nreturn y"), on=_PLAIN),
        "a tuple in itself": Program(_gives("y = []\nz = (y,)\ny.append(z)\nreturn z"), on=_PLAIN),
        "a deep list": Program(_gives("y = []\nfor _ in range(20000): y = [y]\nreturn y"), on=_PLAIN),
        "a deep tuple": Program(_gives("y = ()\nfor _ in range(20000): y = (y,)\nreturn y"), on=_PLAIN),
        "a deep dict": Program(_gives("y = {}\nfor _ in range(20000): y = {1: y}\nreturn y"), on=_PLAIN),
        "deep frozensets": "y = frozenset()\nfor _ in range(10**3): y = frozenset([y])\nreturn y",
        "a tangle": "y = (1,)\nfor _ in range(60): y = (y, y)\nreturn y",
        "a tangle of lists": "y = [1]\nfor _ in range(60): y = [y, y]\nreturn y",
        "ten million elements": "return [0] * 10**7",
        "many different elements": "return list(range(3 * 10**5))",
        "a huge range": "return range(10**18)",
        "a long text": "return 'x' * 10**8",
        "a long text of others": "return chr(0x10ffff) * 10**7",
        "long bytes": "return bytes(10**8)",
        "a giant number": "return 1 << 10**8",
        "a number that is hard to show": Program(_gives("return 10 ** 10**5"), on=_PLAIN),
        "numbers that collide": "return {n * sys.hash_info.modulus for n in range(3000)}",
        "many handles": "return [object() for _ in range(20000)]",
        "a memory view": Program(_gives("return memoryview(bytes(10))"), on=_PLAIN),
        "surrogates": Program(_gives("return chr(0xd83d) + chr(0xde00)"), on=_PLAIN),
    },
    _PLAIN,
    _gives,
)
DESCRIBED = programs(
    "failed error",
    {
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
    },
    "ones",
    "def f(x): return {}".format,
)
