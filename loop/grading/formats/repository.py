"""Functions of a repository, as `loop.mining` writes them: the body is asked for, and the repository's own tests judge.

`stub` and `asks` are bodies that stand in the function's `lines` while it is graded, and `sha256` is that of its module and tests.
"""

from __future__ import annotations

from typing import Any

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format
from loop.grading.json_lines import Row
from loop.grading.problem import Problem, UntestedProblem
from loop.words import shown

STATEMENT = "Write the body of the last function in this code, so that it does what its place in the package asks for."
_TEXTS = ("file", "function", "module", "stub", "asks", "body", "sha256")


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("task_id", "prompt", "repository", "tests", *_TEXTS), FORMAT.name, where)
    lists = {key: _texts(row, key, where) for key in ("tests", "test_files")}
    if not lists["tests"]:
        raise UntestedProblem(f"{where}: has no tests, so anything would pass; leave the problem out")
    level = row.get("level")
    if level not in ("apart", "inside"):
        raise ConfigError(f'{where}: level is {shown(level)}; expected "apart" or "inside"')
    texts = {key: fields.text(row, key, where) for key in _TEXTS}
    group, lines = row.get("group"), row.get("lines")
    if not isinstance(lines, list) or [type(line) for line in lines] != [int, int]:
        raise ConfigError(f"{where}: lines is {shown(lines)}; expected the first and the last line of the body")
    return Problem(
        task_id=fields.task_id(row, "task_id", where),
        statement=STATEMENT,
        prompt_code=fields.text(row, "prompt", where),
        entry_point=texts["function"].rpartition(".")[2],
        difficulty=fields.difficulty(row, where),
        kind=FORMAT.kind,
        payload={**{key: texts[key] for key in _TEXTS if key != "body"}, **lists, "level": level, "lines": lines},
        reference=texts["body"],
        group=group if isinstance(group, str) and group else None,
    )


def _texts(row: Row, key: str, where: str) -> list[str]:
    value: Any = row.get(key)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ConfigError(f"{where}: {key} is {shown(value)}; expected a list of texts")
    return value


FORMAT = Format(
    kind="repository",
    name="a repository's functions",
    keys="task_id, prompt, repository, file, function, tests",
    told_by=("repository",),
    problem_of=_problem_of,
    prompt_has_helpers=True,
    test_keys=("repository",),
)
