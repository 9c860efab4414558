"""MBPP: a list of assertions, with code that sets them up."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format
from loop.grading.json_lines import Row
from loop.grading.problem import Problem, UntestedProblem


def _problem_of(row: Row, where: str) -> Problem:
    statement_key = "text" if "text" in row else "prompt"
    if statement_key not in row:
        raise ConfigError(f"{where}: lacks the key text (or prompt) of an MBPP problem; add the statement")
    fields.require(row, ("task_id", "test_list"), FORMAT.name, where)
    tests = fields.texts(row, "test_list", where)
    if isinstance(row.get("test"), str):
        fields.refuse_numpy(row["test"], where)
    if not tests:
        raise UntestedProblem(f"{where}: test_list is empty, so anything would pass; add tests")
    for number, test in enumerate(tests, start=1):
        if not re.search(r"\bassert|\braise\b", test):
            raise ConfigError(f"{where}: test {number} of test_list asserts nothing; write it as an assert statement")
    statement = fields.text(row, statement_key, where)
    signature = fields.text(row, "signature", where) if row.get("signature") else ""
    setup = fields.text(row, "test_setup_code", where) if row.get("test_setup_code") else ""
    imports = fields.texts(row, "test_imports", where) if row.get("test_imports") else []
    if "entry_point" in row:
        entry_point: str | None = fields.identifier(row, "entry_point", where)
    else:
        entry_point = _tested_function(tests[0], row.get("code"), "\n".join([setup, *imports]))
        if entry_point is None and len(set(called_names(tests[0]))) > 1:
            raise ConfigError(f"{where}: test 1 of test_list calls builtins only; add entry_point, the function's name")
    if not signature:  # MBPP's statements do not name the function: its tests are part of the question
        statement = statement.rstrip() + "\n\nYour code should pass these tests:\n" + "\n".join(tests)
    return Problem(
        task_id=fields.task_id(row, "task_id", where),
        statement=statement,
        prompt_code=signature,
        entry_point=entry_point,
        difficulty=fields.difficulty(row, where),
        date=fields.date(row),
        kind=FORMAT.kind,
        payload={"tests": tests, "setup": setup, "imports": imports},
        reference=fields.reference(row, "code"),
    )


def called_names(test: str) -> list[str]:
    """The names that a test calls, in order."""
    called = re.findall(r"(?<![.\w])([A-Za-z_]\w*)\s*\(", test)
    return [name for name in called if not keyword.iskeyword(name)]


def _tested_function(test: str, code: Any, preparation: str) -> str | None:
    """The name that the test calls. The best is one that the reference solution defines, then one that is neither a builtin nor
    in the preparation, then any that is no builtin, then a builtin that tests seldom use.
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


def _judge_job(problem: Problem) -> dict[str, Any]:
    payload = problem.payload
    if not payload["tests"]:
        raise ValueError("has no tests")
    steps = [(f"test {number}", test) for number, test in enumerate(payload["tests"], start=1)]
    if payload["setup"]:  # builds what the tests use, and may need what the solution defines
        steps.insert(0, ("setup", payload["setup"]))
    imports = "\n".join([*payload["imports"], *_imports_of(payload["setup"])])
    return {"kind": "mbpp", "imports": imports, "steps": steps, "called": _called(problem)}


def _imports_of(setup: str) -> list[str]:
    """The setup's import statements: the solution may use them, too, as it does where both run in one process."""
    try:
        statements = ast.parse(setup).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # the tests' process reports it
    return [ast.unparse(statement) for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]


def _called(problem: Problem) -> list[str]:
    """The tested function, which may be named like a builtin; where its name is not known, the builtins that are called."""
    if problem.entry_point:
        return [problem.entry_point]
    called = set(called_names(problem.payload["tests"][0]))
    return sorted(called) if all(hasattr(builtins, name) for name in called) else []


FORMAT = Format(
    kind="mbpp",
    name="MBPP",
    keys="task_id, text or prompt, test_list",
    told_by=("test_list",),
    problem_of=_problem_of,
    judge_job=_judge_job,
    test_keys=("test_list",),
    more_keys=("test_setup_code", "test_imports", "prompt", "entry_point", "code"),
    row_of_prompt=lambda row, name, statement, code: {"task_id": name, "text": statement} | row | {"signature": code},
)
