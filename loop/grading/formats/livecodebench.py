"""LiveCodeBench: problems with tests on standard input or of a function, and its packed private tests.

The packed tests are base64 of zlib of a pickle that holds one string of JSON. A pickle is a program, so it is never run: its
opcodes are read, and anything but one constant string is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats import fields
from loop.grading.formats.format import Format
from loop.grading.inside.judge import PREAMBLE
from loop.grading.json_lines import Row
from loop.grading.problem import Problem, UntestedProblem
from loop.words import shown

MAX_UNPACKED_BYTES = 512 << 20

_STRING = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def unpack_tests(packed: str, key: str) -> str:
    """The JSON text inside. Raises ValueError, with a message for the user, if it holds anything else."""
    try:
        inflater = zlib.decompressobj()
        pickled = inflater.decompress(base64.b64decode(packed, validate=True), MAX_UNPACKED_BYTES)
    except (binascii.Error, ValueError, zlib.error):
        raise ValueError(f"{key} is neither JSON nor the packed form (base64 of zlib of a pickled string)") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError(f"{key} is cut short or unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
    text = foreign = None
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _STRING and text is None:
                text = argument
            elif opcode.name not in _HARMLESS:
                foreign = opcode.name
                break
    except (ValueError, IndexError, OverflowError):
        raise ValueError(f"{key} holds a broken pickle; fetch the file again") from None
    if foreign:
        raise ValueError(f"{key} holds a pickle that is not one plain string ({foreign}); it was not run")
    if text is None:
        raise ValueError(f"{key} holds a pickle without a string")
    return str(text)


def livecodebench_tests(problem: Problem) -> list[dict[str, str]]:
    """The public, then the private tests, each with input, output and testtype."""
    return _all_tests(**problem.payload)


def _all_tests(public: Any, private: Any) -> list[dict[str, str]]:
    return _read_tests(public, "public_test_cases") + _read_tests(private, "private_test_cases")


def _problem_of(row: Row, where: str) -> Problem:
    fields.require(row, ("question_id", "question_content"), FORMAT.name, where)
    public, private = row.get("public_test_cases"), row.get("private_test_cases")
    try:
        tests = _all_tests(public, private)
        func_name = _func_name(row.get("metadata") or {})
        _check_tests(tests, func_name)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if not tests:
        words = "has neither public_test_cases nor private_test_cases, so anything would pass; add a list of tests"
        raise UntestedProblem(f"{where}: {words}")
    starter = row.get("starter_code") or ""
    if not isinstance(starter, str):
        raise ConfigError(f"{where}: starter_code is {fields.json_type(starter)}; expected a string")
    statement = fields.text(row, "question_content", where)
    if tests[0]["testtype"] == "stdin":
        statement = statement.rstrip() + "\n\nRead from standard input and write the answer to standard output."
    return Problem(
        task_id=fields.task_id(row, "question_id", where),
        statement=statement,
        prompt_code=starter,
        entry_point=func_name if tests[0]["testtype"] == "functional" else None,
        difficulty=fields.difficulty(row, where),
        date=fields.date(row),
        kind=FORMAT.kind,
        payload={"public": public, "private": private},
    )


def _func_name(metadata: Any) -> Any:
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            raise ValueError("metadata is not JSON") from None
    return metadata.get("func_name") if isinstance(metadata, dict) else None


def _read_tests(value: Any, key: str) -> list[dict[str, str]]:
    """The tests of a list, of JSON in a string, or of a string as the published files pack it. Raises ValueError."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        text = value if value.lstrip()[:1] in ("[", "{") else unpack_tests(value, key)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{key} is a string that is not JSON; expected a list of tests") from None
    if not isinstance(value, list):
        raise ValueError(f"{key} is {fields.json_type(value)}; expected a list of tests, or one as a JSON string")
    for number, test in enumerate(value, start=1):
        if not isinstance(test, dict) or not all(isinstance(test.get(k), str) for k in ("input", "output", "testtype")):
            raise ValueError(f"test {number} of {key} lacks the strings input, output and testtype")
    return value


def _check_tests(tests: list[dict[str, str]], func_name: Any) -> None:
    kinds = {test["testtype"] for test in tests}
    if unknown := kinds - {"stdin", "functional"}:
        raise ValueError(f'testtype {shown(min(unknown))} is unknown; "stdin" or "functional"')
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
                words = f"functional test {number} is not JSON; each input line and the output must be"
                raise ValueError(words) from None


def _judge_job(problem: Problem) -> dict[str, Any]:
    tests = livecodebench_tests(problem)
    if not tests:
        raise ValueError("has no tests")
    pairs = [(test["input"], test["output"]) for test in tests]
    return {"kind": tests[0]["testtype"], "imports": PREAMBLE, "tests": pairs}


FORMAT = Format(
    kind="livecodebench",
    name="LiveCodeBench",
    keys="question_id, question_content, public_test_cases or private_test_cases",
    told_by=("question_id", "question_content"),
    problem_of=_problem_of,
    judge_job=_judge_job,
    test_keys=("public_test_cases", "private_test_cases"),
    more_keys=("metadata",),
    row_of_prompt=lambda row, name, statement, code: (
        {"question_id": name, "question_content": statement} | row | {"starter_code": code}
    ),
)
