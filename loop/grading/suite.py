"""Problem suites: HumanEval, MBPP, their plus forms, LiveCodeBench and the shipped first steps, in the field's own formats.

Formats are told apart by their keys. Everything wrong with a file is a ConfigError of one line with the place and the
remedy, found here and not in the middle of a run. Nothing in a file is executed or unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.resources
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError
from loop.grading.extract import EXTRACTION_VERSION
from loop.grading.formats.fields import (
    _json_type,
    _shown,
)
from loop.grading.formats.humaneval import _humaneval, _humaneval_bytes
from loop.grading.formats.livecodebench import _livecodebench
from loop.grading.formats.mbpp import _mbpp
from loop.grading.formats.plus import _plus
from loop.grading.problem import Problem

SPLIT_ORDER = ("select", "confirm", "final")

_FORMATS = (
    "HumanEval (task_id, prompt, entry_point, test), MBPP (task_id, text or prompt, test_list), HumanEval+ or MBPP+ "
    "(task_id, prompt, entry_point, canonical_solution, base_input) or LiveCodeBench (question_id, question_content, public_test_cases or private_test_cases)"
)


class Suite(BaseModel):
    """Problems in the order of their file. `sha256` covers every problem, statements and tests included."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    source: str
    problems: tuple[Problem, ...]
    sha256: str

    @property
    def identity(self) -> str:
        """What makes two gradings comparable: the problems and the way in which code is taken from an answer."""
        return hashlib.sha256(f"{self.sha256} extraction {EXTRACTION_VERSION}".encode()).hexdigest()


def load_suite(source: str, limit: int | None = None, base_dir: Path | None = None) -> Suite:
    """Read "first-steps", "humaneval" or a .jsonl, .jsonl.gz or .json file (relative to `base_dir`).

    `limit` takes the problems with the smallest hash of their id, so that a suite that grows keeps most of its subset.
    Raises ConfigError.
    """
    name, place, content = open_problems(source, base_dir)
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for line, row in rows_of(content, place):
        where = f"{place}:{line}"
        problem = problem_of(row, where)
        if problem.task_id in lines:
            raise ConfigError(
                f"{where}: task_id {_shown(problem.task_id)} is already used in line {lines[problem.task_id]}; "
                "each problem needs its own"
            )
        lines[problem.task_id] = line
        problems.append(problem)
    if not problems:
        raise ConfigError(f"{place}: holds no problems; expected one JSON object per line: {_FORMATS}")
    if limit is not None and limit < len(problems):
        chosen = set(sorted(lines, key=_limit_key)[:limit])
        problems = [problem for problem in problems if problem.task_id in chosen]
    return Suite(name=name, source=source, problems=tuple(problems), sha256=_content_hash(problems))


def split_of(task_id: str, shares: Mapping[str, float]) -> str:
    """The split of a problem: the SHA-256 of its id as a number in [0, 1) against the shares, laid end to end.

    It depends on nothing else, so it never moves when problems are added or the shares are written in another order.
    """
    position = int.from_bytes(hashlib.sha256(_utf8(task_id)).digest()[:8], "big") / 2**64
    known = [name for name in SPLIT_ORDER if shares.get(name, 0.0) > 0.0]
    names = known + sorted(name for name in shares if name not in SPLIT_ORDER and shares[name] > 0.0)
    end = 0.0
    for name in names:
        end += shares[name]
        if position < end:
            return name
    return names[-1]  # the shares sum to 1 but for rounding


def open_problems(source: str, base_dir: Path | None) -> tuple[str, str, bytes]:
    """The suite's name, what messages call its file, and the file's content without its compression."""
    if source == "first-steps":
        file = importlib.resources.files("loop.grading") / "suites" / "first_steps.jsonl"
        return source, "first_steps.jsonl", file.read_bytes()
    if source == "humaneval":
        return source, "HumanEval.jsonl.gz", _inflate(_humaneval_bytes(), "HumanEval.jsonl.gz")
    path = Path(source).expanduser()
    if base_dir is not None:
        path = base_dir / path
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f'{path}: no such file; suites are "first-steps", "humaneval" or a .jsonl, .jsonl.gz or .json file'
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; name the file with the problems") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{_shown(str(path))}: cannot be read ({reason}); make it readable") from None
    return re.sub(r"\.(jsonl|json)(\.gz)?$", "", path.name), str(path), _inflate(content, str(path))


def _inflate(content: bytes, place: str) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{place}: is not a whole gzip file ({error}); fetch it again") from None


def rows_of(content: bytes, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with its line: JSON lines, or one JSON list (MBPP's sanitized file)."""
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from _rows_of_list(content, place)
        return
    for line, raw in enumerate(content.split(b"\n"), start=1):
        text = _decode(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw, place, line).strip()
        if text:
            yield line, _object(_parse(text, place, line), place, line)


def _rows_of_list(content: bytes, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{place}:{line}: is not UTF-8; save the file as UTF-8") from None
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    separator = re.compile(r"[\s,]*")
    while True:
        position = separator.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not text[position + 1 :].strip():
            return
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, place, line) from None
        yield line, _object(row, place, line)


def _decode(raw: bytes, place: str, line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{place}:{line}: is not UTF-8; save the file as UTF-8") from None


def _parse(text: str, place: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, place, line) from None


def _not_json(error: Exception, place: str, line: int) -> ConfigError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or out of range"
    return ConfigError(f"{place}:{line}: is not JSON ({reason}); expected one JSON object per line")


def _object(row: Any, place: str, line: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}:{line}: is {_json_type(row)}; expected a JSON object: {_FORMATS}")
    return row


def problem_of(row: dict[str, Any], where: str) -> Problem:
    if "question_id" in row or "question_content" in row:
        return _livecodebench(row, where)
    if "base_input" in row:
        return _plus(row, where)
    if "test_list" in row:
        return _mbpp(row, where)
    if "entry_point" in row or "test" in row:
        return _humaneval(row, where)
    keys = ", ".join(_shown(key)[1:-1] for key in list(row)[:8]) or "none"
    raise ConfigError(f"{where}: is in no known format (keys: {keys}); expected {_FORMATS}")


def _content_hash(problems: list[Problem]) -> str:
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(hashlib.sha256(json.dumps(problem.content(), sort_keys=True).encode()).digest())
    return digest.hexdigest()


def _limit_key(task_id: str) -> bytes:
    # salted, or a limit would keep only problems of the first split
    return hashlib.sha256(b"limit:" + _utf8(task_id)).digest()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
