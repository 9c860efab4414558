"""Reads the prompts of training, and their tests, from their source; and chooses those of a round.

A source is "starter" (shipped), a .jsonl or .jsonl.gz file, or a data set: a name on the hub, or files on disk.
Data sets are read by `loop.prompts.data_set` in a child process, so that the caller never imports the library for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loop.config.section import HUB_NAME
from loop.config.settings import Model, Prompts
from loop.errors import ConfigError, PermissionDenied
from loop.grading.formats import FORMATS_OF_PROMPTS, beside, repository
from loop.grading.json_lines import Row, raised, read_file, sound
from loop.grading.problem import Problem as TestedProblem
from loop.grading.problem import UntestedProblem
from loop.prompts.data_set import FORMATS, NAME_COLUMNS
from loop.prompts.templates import ask, content, opening
from loop.system.ourselves import command, environment
from loop.words import safe, shown
from store.canonical import sha256_of
from store.records import Prompt

SourceKind = Literal["starter", "file", "local", "hub"]
_PlacedRow = tuple[str, str, Row | ConfigError]

_ROWS_VERSION = 1  # of the cached files: raise it when loop.prompts.data_set writes other rows
_TEST_KEYS = [key for form in FORMATS_OF_PROMPTS for key in form.test_keys]
_MORE_KEYS = [key for form in FORMATS_OF_PROMPTS for key in form.more_keys]
_MOST_BROKEN_LINES = 10
_SOURCES = 'give "starter", a .jsonl or .jsonl.gz file, a data set on disk, or owner/name of one on the hub'


def source_kind(source: str, base_dir: Path) -> SourceKind:
    """What kind of source a `prompts.source` is, by its shape and by what is on disk. Raises ConfigError if it is none."""
    if source == "starter":
        return "starter"
    if source.endswith((".jsonl", ".jsonl.gz")):
        return "file"
    try:
        if source.strip() and (base_dir / Path(source).expanduser()).exists():
            return "local"
    except (OSError, ValueError, RuntimeError):
        pass
    if HUB_NAME.fullmatch(source) and not source.endswith(tuple(FORMATS)):
        return "hub"
    raise ConfigError(f"{shown(source)} is no source of prompts, and no such file or directory exists; {_SOURCES}")


def load_prompts(prompts: Prompts, model: Model, base_dir: Path) -> list[Prompt]:
    """Every distinct prompt in the order of its source, the first of equal ones; at most `prompts.limit`.

    What is asked depends on the model's chat settings, and so do the ids. A hub data set is fetched once and then read from
    `default_cache_dir()`. Raises ConfigError, with a line for each broken row, and PermissionDenied.
    """
    return load_prompts_and_tests(prompts, model, base_dir, with_tests=False)[0]


def load_prompts_and_tests(
    prompts: Prompts, model: Model, base_dir: Path, with_tests: bool
) -> tuple[list[Prompt], dict[str, TestedProblem]]:
    """What `load_prompts` gives and, `with_tests`, the tests of the prompts that have some in their rows, by prompt id.

    Of equal prompts the first that has tests counts. Raises ConfigError if a test is broken, too, or if no prompt has any.
    """
    distinct: dict[str, Prompt] = {}
    tests: dict[str, TestedProblem] = {}
    broken: list[str] = []
    has_starter_code = False
    for place, number, row_or_error in _rows(prompts, base_dir, with_tests):
        try:
            row = raised(row_or_error)
            prompt = _prompt(row, place, number, prompts, model)
            if prompt.id not in distinct and len(distinct) == prompts.limit:
                break
            distinct.setdefault(prompt.id, prompt)
            has_starter_code |= prompts.starter_code_column in row
            if with_tests and (tested := _tested(row, prompt, prompts, place)):
                tests.setdefault(prompt.id, beside(tested, _path(prompts.source, base_dir)))
        except ConfigError as error:
            broken.append(str(error))
        if len(distinct) == prompts.limit and not with_tests:  # an equal prompt that comes later may have tests
            break
    if broken:
        more = len(broken) - _MOST_BROKEN_LINES
        rest = [f"{prompts.source}: {more} more rows are broken in the same or other ways; correct them too"]
        raise ConfigError("\n".join(broken[:_MOST_BROKEN_LINES] + (rest if more > 0 else [])))
    if not distinct:
        raise ConfigError(f"{shown(prompts.source)} holds no prompts; give at least one row with a statement")
    column, default = prompts.starter_code_column, Prompts.model_fields["starter_code_column"].default
    if column not in (None, default) and not has_starter_code:
        raise ConfigError(f"no row of {shown(prompts.source)} has {shown(column)}; correct starter_code_column")
    if with_tests and not tests:
        remedy = f"give rows with {', '.join(_TEST_KEYS[:-1])} or {_TEST_KEYS[-1]}, or leave passed_tests out"
        raise ConfigError(f"no row of {shown(prompts.source)} has tests, and passed_tests asks for them; {remedy}")
    return list(distinct.values()), tests


def prompts_of_round(prompts: Sequence[Prompt], per_round: int | None, seed: int, round_number: int) -> list[Prompt]:
    """The prompts of one round (rounds count from 1): `per_round` of them, taken in turn from seeded shuffles.

    Each pass through the set is a new shuffle. Where a round reaches into the next pass, that pass begins with prompts
    that the round does not have yet, so a round never has a prompt twice, and no prompt falls behind by more than one
    use. The result depends on the arguments alone, and on the prompts' ids rather than on their order in the file. Without
    `per_round`, or if it is at least the size of the set, a round has the whole set in its own order.
    """
    count = len(prompts)
    if per_round is None or per_round >= count:
        return list(prompts)
    first = (round_number - 1) * per_round  # position in the endless sequence of passes
    taken: list[Prompt] = []
    while len(taken) < per_round:
        number, offset = divmod(first + len(taken), count)
        taken += _pass(prompts, per_round, seed, number)[offset : offset + per_round - len(taken)]
    return taken


def _pass(prompts: Sequence[Prompt], per_round: int, seed: int, number: int) -> list[Prompt]:
    """The whole set in the order of one pass."""
    count = len(prompts)

    def carried(of_pass: int) -> int:
        """How many prompts of a pass's first round come from the pass before it."""
        return of_pass * count % per_round

    # A pass is rearranged only within its first `per_round` places. Where the end of the pass before lies behind them,
    # its plain shuffle suffices; otherwise the rearranging has to be computed from an earlier pass on.
    start = number
    while carried(start) and count - carried(start) < per_round:
        start -= 1
    order = _shuffled(prompts, seed, start - 1) if carried(start) else []
    for current in range(start, number + 1):
        already = {prompt.id for prompt in order[count - carried(current) :]} if carried(current) else set()
        plain = _shuffled(prompts, seed, current)
        head = [prompt for prompt in plain if prompt.id not in already][: per_round - carried(current)]
        in_head = {prompt.id for prompt in head}
        order = head + [prompt for prompt in plain if prompt.id not in in_head]
    return order


def _shuffled(prompts: Sequence[Prompt], seed: int, number: int) -> list[Prompt]:
    # by hash rather than by a random generator, whose shuffles may change between versions of Python
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed} {number} {prompt.id}".encode()).digest())


def default_cache_dir() -> Path:
    """Where fetched data sets stay: XDG_CACHE_HOME or ~/.cache, under ssd-loop/prompts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd-loop" / "prompts"


def _rows(prompts: Prompts, base_dir: Path, with_tests: bool) -> Iterator[_PlacedRow]:
    """Each row of the source with its place for messages and its number there, which names a prompt that has no name."""
    kind = source_kind(prompts.source, base_dir)
    if kind in ("hub", "local"):
        yield from _rows_of_data_set(prompts, kind, base_dir, with_tests)
        return
    path = Path(__file__).with_name("starter.jsonl") if kind == "starter" else _path(prompts.source, base_dir)
    for line, row in read_file(path, "prompts", _SOURCES):
        yield f"{safe(path)}:{line}", str(line), row


def _prompt(row: Row, place: str, number: str, prompts: Prompts, model: Model) -> Prompt:
    statement = _text(row, prompts.statement_column, "statement_column", place)
    if not statement.strip():
        column = shown(prompts.statement_column)
        raise ConfigError(f"{place}: {column} is blank; write the task there, or remove the row")
    starter_code = _starter_code(row, prompts, place)
    is_program = prompts.starter_code_column in row and not starter_code.strip()
    asked = content(
        ask(statement, starter_code, program=is_program),
        chat=model.chat_template,
        opening=opening(starter_code) if prompts.prefill_fence else "",
        system_prompt=model.system_prompt,
    )
    name = next((row[key] for key in NAME_COLUMNS if isinstance(row.get(key), str | int) and row[key] != ""), number)
    return Prompt(id=sha256_of(asked), source=prompts.source, name=str(name), statement=statement, content=asked)


def _tested(row: Row, prompt: Prompt, prompts: Prompts, place: str) -> TestedProblem | None:
    """The row as a problem of the format that its tests are in; None if it has no tests."""
    forms = (repository.FORMAT, *FORMATS_OF_PROMPTS)
    tested_in = next((form for form in forms if any(row.get(key) for key in form.test_keys)), None)
    if tested_in is None:
        return None
    starter_code = _starter_code(row, prompts, place)
    try:
        return tested_in.problem_of(tested_in.row_of_prompt(row, prompt.name, prompt.statement, starter_code), place)
    except UntestedProblem:
        return None


def _starter_code(row: Row, prompts: Prompts, place: str) -> str:
    column = prompts.starter_code_column
    return "" if column is None or row.get(column) is None else _text(row, column, "starter_code_column", place)


def _text(row: Row, column: str, option: str, place: str) -> str:
    if column not in row:
        keys = ", ".join(map(shown, list(row)[:8])) or "none"
        words = f"has no {shown(column)} (its keys: {keys}); add it, or name the right key in {option}"
        raise ConfigError(f"{place}: {words}")
    value = row[column]
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {shown(column)} is {shown(value)}; expected text")
    if re.search("[\ud800-\udfff]", value):
        raise ConfigError(f"{place}: {shown(column)} holds half of a surrogate pair; write the whole character")
    return value


def _path(source: str, base_dir: Path) -> Path:
    try:
        return base_dir / Path(source).expanduser()
    except RuntimeError:
        raise ConfigError(f"{shown(source)} is in the home of a user that does not exist; correct the path") from None


def _rows_of_data_set(prompts: Prompts, kind: SourceKind, base_dir: Path, with_tests: bool) -> Iterator[_PlacedRow]:
    """The rows from the hub, once, and then from the cache; or from disk, every time, because files there may change."""
    request: dict[str, Any] = {
        "version": _ROWS_VERSION,
        "columns": [prompts.statement_column, prompts.starter_code_column],
        **prompts.model_dump(include={"source", "config", "split", "revision", "limit"}),
    }
    if with_tests:
        request["also"] = list(dict.fromkeys(_TEST_KEYS + _MORE_KEYS))
    with contextlib.ExitStack() as stack:
        folder = default_cache_dir()
        if kind == "local":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loop-prompts-")))
            request["source"] = os.path.abspath(_path(prompts.source, base_dir))
        fetched = folder / f"{sha256_of(request)[:32]}.jsonl"
        if not fetched.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                problem = f"cannot be made ({error.strerror}); set XDG_CACHE_HOME to a directory that can be written"
                raise PermissionDenied(f"{safe(folder)}: {problem}") from None
            _fetch(request, fetched, prompts.source)
        for _, row in sound(read_file(fetched, "rows", "fetch the data set again")):
            number = str(row.pop("row", "?"))  # in the data set, from 1
            yield f"{safe(prompts.source)}: row {number}", number, row


def _fetch(request: Mapping[str, Any], out: Path, source: str) -> None:
    """Have a child process write `out`, whole or not at all. Raises ConfigError with the child's last line."""
    quiet = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY")
    words, env = command("loop.prompts.data_set", json.dumps(request), out), environment() | dict.fromkeys(quiet, "1")
    child = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=env, check=False
    )
    if child.returncode == 0:
        return
    lines = (child.stdout if child.returncode == ConfigError.exit_code else child.stderr).strip().splitlines()
    reason = safe(lines[-1].strip()) if lines else f"its reader ended with {child.returncode}; try again"
    raise ConfigError(f"{safe(source)}: {reason}")
