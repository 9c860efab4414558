"""Values that lie, and huge and recursive ones."""

from __future__ import annotations

from tests.support.hostile_programs.problems import ALL, NUMBERS, TEXTS, Program

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
    "an object equal to everything": Program(_liar("", "E()"), on=ALL),
    "a list": Program(_liar("list", "E([0])"), on=ALL),
    "a list in a list": Program(_liar("list", "[E([0]), [E([1])]]"), on=ALL),
    "a text": Program(_liar("str", "E('x')"), on=ALL),
    "texts in a list": Program(_liar("str", "[E('x')]"), on=ALL),
    "a number": Program(_liar("int", "E(1)"), on=ALL),
    "a float": Program(_liar("float", "E(1)"), on=ALL),
    "a complex number": Program(_liar("complex", "E(1)"), on=ALL),
    "a dict": Program(_liar("dict", "E()"), on=ALL),
    "a set": Program(_liar("set", "E()"), on=ALL),
    "a frozenset": Program(_liar("frozenset", "E()"), on=ALL),
    "a tuple": Program(_liar("tuple", "E((1,))"), on=ALL),
    "bytes": Program(_liar("bytes", "E(b'x')"), on=ALL),
    "a class equal to everything": Program(_liar("type", "E('F', (), {})"), on=ALL),
    "an object as an element": Program(_liar("", "[E()]"), on=ALL),
    "an object in a tuple": Program(_liar("", "(E(), (E(),))"), on=ALL),
    "an object as a key": Program(_liar("", "{E(): E()}"), on=ALL),
    "an object in a set": Program(_liar("", "{E()}"), on=ALL),
    "an object in an object": Program(_liar("", "iter([E(), iter([E()])])"), on=ALL),
    "says that it is a text": Program(
        "class E:\n    __class__ = str\n    __eq__ = lambda s, o: True\ndef f(x): return E()"
    ),
    "says that it is a list": Program(
        "class E:\n    __class__ = list\n    __eq__ = lambda s, o: True\ndef f(x): return E()", on=ALL
    ),
    "is of another class each time": Program(
        "class E:\n    n = 0\n    @property\n    def __class__(s):\n        E.n += 1\n        return (str, list, int)[E.n % 3]\n"
        "    __eq__ = lambda s, o: True\ndef f(x): return E()",
        on=ALL,
    ),
    "true and false by turns": Program(
        "class E:\n    n = 0\n    def __bool__(s):\n        E.n += 1\n        return E.n % 2 == 0\n"
        "    def __eq__(s, o): return s\n    __ne__ = __eq__\ndef f(x): return E()",
        on=ALL,
    ),
    "equal by turns": Program(
        "class E(str):\n    n = 0\n    def __eq__(s, o):\n        E.n += 1\n        return bool(E.n % 2)\n"
        "    __hash__ = str.__hash__\ndef f(x): return E('x')",
        on=ALL,
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
    "a length below zero": Program(
        "class E(list):\n    def __len__(s): return -1\n    def __iter__(s): return iter(s)\ndef f(x): return E()",
        on=ALL,
    ),
    "mock.ANY": Program("from unittest import mock\ndef f(x): return mock.ANY", on=ALL),
    "a mock": Program(
        "from unittest import mock\nE = mock.MagicMock()\nE.__eq__.return_value = True\nE.__ne__.return_value = False\n"
        "E.__contains__.return_value = True\ndef f(x): return E",
        on=ALL,
    ),
    "a data class equal to everything": Program(
        "from dataclasses import dataclass\n@dataclass(eq=False)\nclass E:\n    x: int\n    __eq__ = lambda s, o: True\n"
        "def f(x): return E(x)",
        on=ALL,
    ),
    "an enumeration equal to everything": Program(
        "import enum\nclass E(enum.IntEnum):\n    A = 1\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
        "def f(x): return E.A",
        on=ALL,
    ),
    "a proxy": Program(_liar("", "weakref.proxy(KEPT)", "import weakref\n") + "KEPT = E()\n", on=ALL),
    "a module equal to everything": Program(_liar("type(__import__('sys'))", "E('m')"), on=ALL),
    "a program that is such a module": Program(
        _liar("type(__import__('sys'))", "E('m')") + "import sys\nm = sys.modules[__name__] = E('m')\nf = m", on=ALL
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
    "not a number": Program("def f(x): return float('nan')", on=ALL),
    "nothing": Program("def f(x): pass", on=ALL),
    "True": Program("def f(x): return True", on=ALL),
    "NotImplemented": Program("def f(x): return NotImplemented", on=ALL),
    "a built-in type": Program("def f(x): return object", on=ALL),
    "is a built-in type": Program("f = object", on=ALL),
    "is type": Program("f = type", on=ALL),
    "is the importer": Program("f = __loader__\nx = f", on=ALL),
    "is print": Program("f = print", on=ALL),
    "is a class": Program("class f:\n    def __new__(cls, x): return cls\n    __eq__ = lambda s, o: True", on=ALL),
    "is a generator": Program("def f(x): yield from ()", on=ALL),
    "is a coroutine": Program("async def f(x): return 1", on=ALL),
    "is a module": Program("import os as f", on=ALL),
    "is a module that runs": Program("import sys\nf = type(sys)('unittest.__main__')", on=ALL),
    "is a module that is none": Program("import sys\nf = type(sys)('loop.grading.inside.judge')", on=ALL),
    "gives itself back": Program("def f(x): return f", on=ALL),
    "patched str.__eq__": Program(
        "import ctypes, gc\nnames = gc.get_referents(str.__dict__)[0]\nnames['__eq__'] = lambda s, o: True\n"
        "ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))\ndef f(x): return 'x'",
        on=TEXTS,
    ),
    "the number 1 is another": Program(
        "import ctypes, sys\ndef f(x):\n    ctypes.c_uint32.from_address(id(1) + 24).value = 5\n    return 1",
        on=NUMBERS,
    ),
} | {
    f"raises {error}": Program(
        f"def f(x): raise {error}", "error failed timeout", "mapped swallowing" if "Stop" in error else ALL
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
