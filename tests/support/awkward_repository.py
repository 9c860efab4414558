"""A small repository with what makes finding problems in real ones hard, and what is to be expected of each function.

`larder` lies under src/, beside a package without __init__.py. Its tests fail, flake, sleep, skip, and want the network;
its conftest.py changes the environment, sys.path and the tree. Everything is text of `SOURCES` and `TESTS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from tests.support.awkward_sources import SOURCES
from tests.support.awkward_tests import TESTS

BESIDE = {
    "pyproject.toml": """\
[project]
name = "larder"
version = "1.2"

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
addopts = "-ra --strict-markers"
markers = ["slow: takes its time"]
""",
    "README.md": "# larder\n",
    "build/lib/larder/text.py": "def slug(title):\n    return title.lower().replace(' ', '-')\n",
    "examples/old.py": "print 'Python 2'\n",
    ".venv/pyvenv.cfg": "home = /usr/bin\n",
    ".venv/lib/python3.11/site-packages/larder/text.py": "def slug(title):\n    return 'of another release'\n",
    ".git/HEAD": "ref: refs/heads/main\n",
    "src/larder/__pycache__/stale.cpython-311.pyc": "not byte code",
}


class Expected(NamedTuple):
    file: str
    function: str
    verdict: Literal["problem", "weak", "left out"]
    level: Literal["apart", "inside", ""] = ""
    """Where a candidate can be graded: "apart" where plain values go in and come out. "" where it is left out."""
    why: str = ""


def _problems(file: str, level: Literal["apart", "inside"], functions: dict[str, str]) -> list[Expected]:
    return [Expected(f"src/{file}.py", name, "problem", level, why) for name, why in functions.items()]


def _left_out(file: str, functions: dict[str, str]) -> list[Expected]:
    return [Expected(f"src/{file}.py", name, "left out", why=why) for name, why in functions.items()]


EXPECTED: list[Expected] = [
    *_problems(
        "larder/text",
        "apart",
        {
            "_tidy": "private, and reached through slug alone",
            "slug": "re-exported, and its tests have odd ids",
            "wrap_words": "positional-only and keyword-only parameters, re-exported as wrap, raises ValueError",
            "count_words": "gives a dict",
            "join_all": "*args and **kwargs",
        },
    ),
    *_problems("larder/old", "apart", {"greet": "a Latin-1 file"}),
    *_problems("larder/windows", "apart", {"line_ends": "a file whose lines end in CRLF"}),
    *_problems(
        "larder/numbers",
        "apart",
        {
            "gcd_of": "recursion",
            "as_number": "overloads of its name stand above it",
            "bounds": "a tuple or None; unittest with subTest",
            "shared": "a set; unittest with setUp and setUpClass",
            "remember": "a default argument that holds state: right where all tests of a candidate ask the same process",
        },
    ),
    *_problems(
        "larder/numbers",
        "inside",
        {
            "running": "a generator",
            "make_counter": "gives a closure",
            "sort_in_place": "gives the very list that it was given",
            "apply_twice": "is given a function",
        },
    ),
    *_problems("larder/even", "apart", {"is_even": "a circular import, and recursion through both modules"}),
    *_problems("larder/odd", "apart", {"is_odd": "a circular import, and recursion through both modules"}),
    *_problems(
        "larder/calls",
        "apart",
        {
            "discount": "a decorator of its own around it",
            "price_of": "lru_cache around it; reads a file of the package",
            "slow_sum": "sleeps",
        },
    ),
    *_problems(
        "larder/calls",
        "inside",
        {"in_folder": "a context manager", "gather_prices": "async", "ticks": "an async generator"},
    ),
    *_problems(
        "larder/state",
        "apart",
        {
            "add_missing": "changes the dict that it is given: right where the arguments come back too",
            "default_stock": "reached in a module fixture alone",
        },
    ),
    *_problems(
        "larder/state",
        "inside",
        {
            "register": "changes a global of the package",
            "with_currency": "a global that depends on what conftest.py set before the import",
            "read_price": "raises the package's own exception",
            "save": "is given a Path",
            "save_here": "the test reads the file that it writes into the working directory",
            "label": "monkeypatch changes what it calls",
            "show": "capsys reads what it prints",
        },
    ),
    *_problems("larder/items", "apart", {"Item.is_name": "a static method"}),
    *_problems(
        "larder/items",
        "inside",
        {
            "Item.cost": "a method of a frozen dataclass",
            "Item.title": "a property",
            "Item.parse": "a class method that raises the package's own exception",
            "Box.__eq__": "may give NotImplemented",
            "Box.__len__": "called by len",
            "Box.__iter__": "a generator that a method is",
            "Box.describe": "called by super() too",
            "Box.Lid.area": "a class in a class",
            "Crate.describe": "super(): the code has the free variable __class__",
            "Crate.seal": "self.__seals, whose name the class changes",
            "Tin.volume": "a base class with an abstract method",
        },
    ),
    *_problems("larder_tools/weights", "apart", {"to_grams": "a package without __init__.py"}),
    Expected("src/larder/numbers.py", "average", "weak", "apart", "its test wants anything but None"),
    Expected("src/larder/numbers.py", "clamp", "weak", "apart", "its test asserts nothing"),
    Expected("src/larder/state.py", "log_line", "weak", "apart", "its test asserts nothing"),
    *_left_out(
        "larder/text",
        {
            "shout": "hands on to another function alone",
            "fill": "hands on to another function alone",
            "initials": "has a doctest alone, and doctests are not collected",
        },
    ),
    *_left_out(
        "larder/numbers",
        {
            "first_squares": "needed while the module is imported: with a stub nothing is collected",
            "broken_median": "its test fails",
            "only_skipped": "its test is skipped",
            "only_expected_to_fail": "its test fails as expected, with any body",
        },
    ),
    *_left_out("larder/calls", {"logged": "needed while the module is imported"}),
    *_left_out(
        "larder/state",
        {
            "today": "no test reaches it: the test of label replaces it",
            "next_ticket": "its tests pass in the order of the file alone",
            "roll": "its test passes by luck",
            "is_up": "its test needs the network",
            "never_called": "no test reaches it",
        },
    ),
    *_left_out(
        "larder/items",
        {
            "Box.Lid.__init__": "sets attributes alone",
            "Tin.__init__": "sets attributes alone",
            "Shape.volume": "abstract",
        },
    ),
    *_left_out("larder/errors", {"LarderError.__init__": "sets attributes alone"}),
]

FAILING = {
    "tests/test_numbers.py::test_broken_median",
    "tests/test_state.py::test_roll",
    "tests/test_state.py::test_is_up",
}
"""The tests that fail under plain pytest without a network; test_roll passes one time in fifty."""


def write_awkward(directory: Path) -> Path:
    """Writes the repository to directory/awkward, and gives that folder."""
    root = directory / "awkward"
    for name, text in {**BESIDE, **SOURCES, **TESTS}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1" if name.endswith("larder/old.py") else "utf-8"))
    (root / "latest").symlink_to("README.md")
    (root / "nowhere").symlink_to("is/not/there")
    return root
