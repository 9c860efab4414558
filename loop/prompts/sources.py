"""Where the prompts of training come from, and which of them a round uses.

A source is "starter" (shipped), a .jsonl or .jsonl.gz file, or a data set: a name on the hub, or files on disk.
Data sets are read by `loop.prompts.data_set` in a child process, so that the caller never imports the library for them.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import tee
from pathlib import Path
from typing import IO, Any, Literal, cast

from loop.config.settings import HUB_NAME, Model, Prompts
from loop.errors import ConfigError, PermissionDenied
from loop.grading.problem import Problem as TestedProblem
from loop.grading.problem import UntestedProblem
from loop.grading.problems import problem_of
from loop.prompts.templates import ask, content, opening
from loop.words import printable
from store.canonical import sha256_of
from store.records import Prompt

SourceKind = Literal["starter", "file", "local", "hub"]

_ROWS_VERSION = 1  # of the cached files: raise it when loop.prompts.data_set writes other rows
_NAME_KEYS = ("id", "task_id", "question_id", "name")
_TEST_KEYS = ("test_list", "test", "public_test_cases", "private_test_cases")
# what a row needs beside its statement to be a problem with tests
_PROBLEM_KEYS = (*_TEST_KEYS, "test_setup_code", "test_imports", "prompt", "entry_point", "code", "metadata")
_MOST_BROKEN_LINES = 10
_SOURCES = 'give "starter", a .jsonl or .jsonl.gz file, a data set on disk, or owner/name of one on the hub'


def source_kind(source: str, base_dir: Path) -> SourceKind:
    """What a `prompts.source` is, by its shape and by what is on disk. ConfigError if it can be nothing."""
    if source == "starter":
        return "starter"
    if source.endswith((".jsonl", ".jsonl.gz")):
        return "file"
    try:
        if source.strip() and (base_dir / Path(source).expanduser()).exists():
            return "local"
    except (OSError, ValueError, RuntimeError):
        pass
    if HUB_NAME.fullmatch(source) and not source.endswith((".parquet", ".json", ".csv", ".arrow")):
        return "hub"
    raise ConfigError(f"{_shown(source)} is no source of prompts, and no such file or directory is there; {_SOURCES}")


def load_prompts(prompts: Prompts, model: Model, base_dir: Path, cache_dir: Path | None = None) -> list[Prompt]:
    """Every distinct prompt in the order of its source, the first of equal ones; at most `prompts.limit`.

    What is asked depends on the model's chat settings, and so do the ids. A hub data set is fetched once and then read
    from `cache_dir` (default: `default_cache_dir()`). Raises ConfigError, with a line for each broken row, and
    PermissionDenied.
    """
    return _distinct(_rows(prompts, base_dir, cache_dir), prompts, model)


def load_tests(
    prompts: Prompts, model: Model, base_dir: Path, cache_dir: Path | None = None
) -> dict[str, TestedProblem]:
    """The tests of the prompts that have some, by prompt id: HumanEval's, MBPP's or LiveCodeBench's keys in their rows.

    Of equal prompts the first that has tests counts. ConfigError if a test is broken, or if no prompt has any.
    """
    return _tests(_rows(prompts, base_dir, cache_dir, with_tests=True), prompts, model)


def load_prompts_and_tests(
    prompts: Prompts, model: Model, base_dir: Path, with_tests: bool
) -> tuple[list[Prompt], dict[str, TestedProblem]]:
    """What `load_prompts` and, `with_tests`, `load_tests` give; the source is read once."""
    if not with_tests:
        return load_prompts(prompts, model, base_dir), {}
    rows, again = tee(_rows(prompts, base_dir, None, with_tests=True))
    return _distinct(rows, prompts, model), _tests(again, prompts, model)


def _tests(rows: Iterable[tuple[str, str, dict[str, Any]]], prompts: Prompts, model: Model) -> dict[str, TestedProblem]:
    found: dict[str, TestedProblem] = {}
    ids: set[str] = set()
    broken: list[str] = []
    for place, number, row in rows:
        prompt = _prompt(row, number, prompts, model)
        if prompt.id not in ids and len(ids) == prompts.limit:
            break
        ids.add(prompt.id)
        try:
            tested = _tested(row, prompt, prompts, place)
        except ConfigError as error:
            broken.append(str(error))
            continue
        if tested is not None:
            found.setdefault(prompt.id, tested)
    if broken:
        raise ConfigError("\n".join(broken[:_MOST_BROKEN_LINES]))
    if not found:
        raise ConfigError(
            f"no row of {_shown(prompts.source)} has tests, and passed_tests asks for them; "
            "give rows with test_list, test or public_test_cases, or leave passed_tests out"
        )
    return found


def prompts_of_round(prompts: Sequence[Prompt], per_round: int | None, seed: int, round_number: int) -> list[Prompt]:
    """The prompts of one round (rounds count from 1): `per_round` of them, taken in turn from seeded shuffles.

    Each pass through the set is a new shuffle. Where a round reaches into the next pass, that pass begins with prompts
    that the round does not have yet, so a round never has a prompt twice and no prompt falls behind by more than one
    use. A pure function of its arguments, and of the prompts' ids rather than of their order in the file. Without
    `per_round`, or with one as large as the set, it is the whole set in its own order.
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
        """How many prompts of its first round a pass leaves to the pass before it."""
        return of_pass * count % per_round

    # A pass is rearranged only within its first `per_round` places. As long as the pass before ends with other places,
    # its plain shuffle says all; otherwise the rearranging has to be followed from further back.
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
    # by hash and not by a random generator, whose shuffles may change between versions of Python
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed} {number} {prompt.id}".encode()).digest())


def default_cache_dir() -> Path:
    """Where fetched data sets stay: XDG_CACHE_HOME or ~/.cache, under ssd-loop/prompts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd-loop" / "prompts"


# Rows to prompts


def _rows(
    prompts: Prompts, base_dir: Path, cache_dir: Path | None, with_tests: bool = False
) -> Iterable[tuple[str, str, dict[str, Any]]]:
    kind = source_kind(prompts.source, base_dir)
    if kind == "starter":
        shipped = importlib.resources.files("loop.prompts") / "starter.jsonl"
        return _rows_of_lines(shipped.read_bytes().split(b"\n"), "starter.jsonl")
    if kind == "file":
        return _rows_of_file(_path(prompts.source, base_dir))
    return _rows_of_data_set(prompts, kind, base_dir, cache_dir or default_cache_dir(), with_tests)


def _distinct(rows: Iterable[tuple[str, str, dict[str, Any]]], prompts: Prompts, model: Model) -> list[Prompt]:
    """Rows come as (place for messages, name if the row has none, row)."""
    found: dict[str, Prompt] = {}
    broken: list[str] = []
    num_rows, has_starter_code = 0, False
    place = prompts.source
    for place, number, row in rows:
        num_rows += 1
        try:
            prompt = _prompt(row, number, prompts, model)
        except ValueError as error:
            broken.append(f"{place}: {error}")
            continue
        has_starter_code |= prompts.starter_code_column in row
        found.setdefault(prompt.id, prompt)
        if len(found) == prompts.limit:
            break
    if broken:
        more = len(broken) - _MOST_BROKEN_LINES
        rest = [f"{prompts.source}: {more} more rows are broken in the same or other ways; correct them too"]
        raise ConfigError("\n".join(broken[:_MOST_BROKEN_LINES] + (rest if more > 0 else [])))
    if not num_rows:
        raise ConfigError(f"{_shown(prompts.source)} holds no prompts; give at least one row with a statement")
    column, default = prompts.starter_code_column, Prompts.model_fields["starter_code_column"].default
    if column not in (None, default) and not has_starter_code:
        raise ConfigError(f"no row of {_shown(prompts.source)} has {_shown(column)}; correct starter_code_column")
    return list(found.values())


def _prompt(row: dict[str, Any], number: str, prompts: Prompts, model: Model) -> Prompt:
    """ValueError says what is wrong with the row."""
    if _BROKEN in row:
        raise ValueError(row[_BROKEN])
    statement = _text(row, prompts.statement_column, "statement_column")
    if not statement.strip():
        raise ValueError(f"{_shown(prompts.statement_column)} is blank; write the task there, or remove the row")
    starter_code, program = "", False
    column = prompts.starter_code_column
    if column is not None and column in row:
        starter_code = _text(row, column, "starter_code_column") if row[column] is not None else ""
        program = not starter_code.strip()
    asked = content(
        ask(statement, starter_code, program=program),
        chat=model.chat_template,
        opening=opening(starter_code) if prompts.prefill_fence else "",
        system_prompt=model.system_prompt,
    )
    name = next((row[key] for key in _NAME_KEYS if isinstance(row.get(key), str | int) and row[key] != ""), number)
    return Prompt(id=sha256_of(asked), source=prompts.source, name=str(name), statement=statement, content=asked)


def _tested(row: Mapping[str, Any], prompt: Prompt, prompts: Prompts, place: str) -> TestedProblem | None:
    """The row as a problem of the format that its tests are in; None if it has no tests."""
    if not any(row.get(key) for key in _TEST_KEYS):
        return None
    column = prompts.starter_code_column
    starter_code = str((row.get(column) if column is not None else "") or "")
    if row.get("test_list"):
        whole = {"task_id": prompt.name, "text": prompt.statement} | dict(row) | {"signature": starter_code}
    elif row.get("test"):
        whole = {"task_id": prompt.name, "prompt": starter_code or prompt.statement} | dict(row)
    else:
        own = {"question_id": prompt.name, "question_content": prompt.statement}
        whole = own | dict(row) | {"starter_code": starter_code}
    try:
        return problem_of(whole, place)
    except UntestedProblem:
        return None


def _text(row: Mapping[str, Any], column: str, option: str) -> str:
    if column not in row:
        keys = ", ".join(_shown(key) for key in list(row)[:8]) or "none"
        raise ValueError(f"has no {_shown(column)} (its keys: {keys}); add it, or name the right key in {option}")
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"{_shown(column)} is {_shown(value)}; expected text")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{_shown(column)} holds half of a surrogate pair; write the whole character")
    return value


# Files


def _path(source: str, base_dir: Path) -> Path:
    try:
        return base_dir / Path(source).expanduser()
    except RuntimeError:
        problem = "is in the home of a user that does not exist; correct the path"
        raise ConfigError(f"{_shown(source)} {problem}") from None


_BROKEN = "\0broken"  # the key of a row that could not be read, with the reason


def _rows_of_file(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    place = printable(str(path))
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            lines = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw
            yield from _rows_of_lines(lines, place)
    except FileNotFoundError:
        raise ConfigError(f"{place}: no such file; {_SOURCES}") from None
    except IsADirectoryError:
        raise ConfigError(f"{place}: is a directory; name the file with the prompts") from None
    except PermissionError:
        raise PermissionDenied(f"{place}: permission denied; make the file readable for this user") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{place}: is not a whole gzip file ({error}); fetch or write it again") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{place}: cannot be read ({reason}); give a readable file") from None


def _rows_of_lines(lines: Iterable[bytes], place: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for line, raw in enumerate(lines, start=1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if not raw.strip():
            continue
        yield f"{place}:{line}", str(line), _row(raw)


def _row(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return {_BROKEN: "is not UTF-8; save the file as UTF-8"}
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or out of range"
        return {_BROKEN: f"is not JSON ({reason}); expected one JSON object per line"}
    return row if isinstance(row, dict) else {_BROKEN: f"is {_shown(row)}; expected a JSON object"}


# Data sets


def _rows_of_data_set(
    prompts: Prompts, kind: SourceKind, base_dir: Path, cache_dir: Path, with_tests: bool
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """From the hub once, then from the cache; from disk every time, since what is there may have changed."""
    request: dict[str, Any] = {
        "version": _ROWS_VERSION,
        "source": prompts.source,
        "config": prompts.config,
        "split": prompts.split,
        "revision": prompts.revision,
        "columns": [prompts.statement_column, prompts.starter_code_column],
        "limit": prompts.limit,
    }
    if with_tests:
        request["also"] = list(_PROBLEM_KEYS)
    if kind == "hub":
        rows = cache_dir / f"{sha256_of(request)[:32]}.jsonl"
        if not rows.exists():
            _make_directory(cache_dir)
            _fetch(request, rows, prompts.source)
        yield from _places(rows, prompts.source)
        return
    request["source"] = os.path.abspath(_path(prompts.source, base_dir))
    with tempfile.TemporaryDirectory(prefix="loop-prompts-") as scratch:
        rows = Path(scratch) / "rows.jsonl"
        _fetch(request, rows, prompts.source)
        yield from _places(rows, prompts.source)


def _places(rows: Path, source: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The child's rows under the place that a user knows: the data set and the number of the row in it, from 1."""
    for _, _, row in _rows_of_file(rows):
        number = str(row.pop("row", "?"))
        yield f"{printable(source)}: row {number}", number, row


def _fetch(request: Mapping[str, Any], out: Path, source: str) -> None:
    """Let the child write `out`, whole or not at all."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    child = subprocess.run(
        [sys.executable, "-P", "-m", "loop.prompts.data_set", json.dumps(request), str(out)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if child.returncode == 0:
        return
    said = (child.stdout if child.returncode == ConfigError.exit_code else child.stderr).strip().splitlines()
    reason = printable(said[-1].strip()) if said else f"its reader ended with {child.returncode}; try again"
    raise ConfigError(f"{printable(source)}: {reason}")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror}); set XDG_CACHE_HOME to a directory that can be written"
        raise PermissionDenied(f"{printable(str(directory))}: {problem}") from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
