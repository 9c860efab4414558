"""MBPP: a list of assertions, with code that sets them up."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats.fields import _date, _difficulty, _identifier, _need, _reference, _task_id, _text, _texts
from loop.grading.formats.plus import _refuse_numpy
from loop.grading.problem import Problem, UntestedProblem


def _mbpp(row: dict[str, Any], where: str) -> Problem:
    statement_key = "text" if "text" in row else "prompt"
    if statement_key not in row:
        raise ConfigError(f"{where}: lacks the key text (or prompt) of an MBPP problem; add the statement")
    _need(row, ("task_id", "test_list"), "MBPP", where)
    tests = _texts(row, "test_list", where)
    if isinstance(row.get("test"), str):
        _refuse_numpy(row["test"], where)
    if not tests:
        raise UntestedProblem(f"{where}: test_list is empty, so anything would pass; add tests")
    for number, test in enumerate(tests, start=1):
        if not re.search(r"\bassert|\braise\b", test):
            raise ConfigError(f"{where}: test {number} of test_list asserts nothing; write it as an assert statement")
    statement = _text(row, statement_key, where)
    signature = _text(row, "signature", where) if row.get("signature") else ""
    setup = _text(row, "test_setup_code", where) if row.get("test_setup_code") else ""
    imports = _texts(row, "test_imports", where) if row.get("test_imports") else []
    if "entry_point" in row:
        entry_point: str | None = _identifier(row, "entry_point", where)
    else:
        entry_point = _tested_function(tests[0], row.get("code"), "\n".join([setup, *imports]))
        if entry_point is None and len(set(called_names(tests[0]))) > 1:
            raise ConfigError(f"{where}: test 1 of test_list calls builtins only; add entry_point, the function's name")
    if not signature:  # MBPP's statements do not name the function: its tests are part of the question
        statement = statement.rstrip() + "\n\nYour code should pass these tests:\n" + "\n".join(tests)
    return Problem(
        task_id=_task_id(row, "task_id", where),
        statement=statement,
        prompt_code=signature,
        entry_point=entry_point,
        difficulty=_difficulty(row, where),
        date=_date(row),
        kind="mbpp",
        payload={
            "tests": tests,
            "setup": setup,
            "imports": imports,
        },
        reference=_reference(row, "code"),
    )


def called_names(test: str) -> list[str]:
    """The names that a test calls, in order."""
    called = re.findall(r"(?<![.\w])([A-Za-z_]\w*)\s*\(", test)
    return [name for name in called if not keyword.iskeyword(name)]


def _tested_function(test: str, code: Any, preparation: str) -> str | None:
    """The name that the test calls: one that the reference solution defines; else the first that is neither a builtin nor
    named in what is done before; else the first that is no builtin; else one that is an unusual builtin.
    """
    called = called_names(test)
    if isinstance(code, str):
        defined = set(re.findall(r"^(?:async\s+)?(?:def|class)\s+([A-Za-z_]\w*)", code, re.MULTILINE))
        called = [name for name in called if name in defined] or called
    unknown = [name for name in called if not hasattr(builtins, name)]
    prepared = set(re.findall(r"\w+", preparation))
    usual = {"set", "sorted", "list", "tuple", "dict", "len", "abs", "round", "sum", "str", "int"}
    unusual = [name for name in called if name not in usual]
    return next(iter([name for name in unknown if name not in prepared] or unknown or unusual), None)


def _imports_of(setup: str) -> list[str]:
    """What the setup imports is there for the solution, too, as it is where both run in one process."""
    try:
        found = [node for node in ast.parse(setup).body if isinstance(node, ast.Import | ast.ImportFrom)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # the tests' process says it
    return [ast.unparse(node) for node in found]
