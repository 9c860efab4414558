"""Runs the tests of one problem, unchanged, in a process of their own.

The solution is in another process: `loop.grading.inside.remote` asks it, and gets back plain values.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import marshal
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

from loop.grading.inside import remote
from loop.grading.inside.compare import is_floats, is_right, same_output
from loop.grading.inside.remote import Gone, Handle, NoPlainValue, NotReady, Solution
from loop.grading.inside.values import Decoder, Encoder, exactly, send

# LiveCodeBench runs every solution after these lines.
_STARS = ["string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"]
_STARS += ["itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"]
_IMPORTS = [f"from {name} import *" for name in _STARS] + [f"import {name}" for name in _STARS[:-2]]
PREAMBLE = "\n".join([*_IMPORTS, "sys.setrecursionlimit(50000)", ""])


MOST_CALLS = 64
"""So many calls of a function are asked for at once."""
MAX_ANSWERS = 32 << 20
"""Hexadecimal digits. More are not handed out, and computed anew by the next process."""


class SuiteAtFault(Exception):
    """The suite's own code does not run; nothing is known of the solution."""


def main(host: int) -> None:
    """Judge solutions of the problem that the grader sends first, each over a socket of its own, until the grader has gone."""
    grader = socket.socket(fileno=host)
    problem = marshal.loads(exactly(grader.recv, int.from_bytes(exactly(grader.recv, 8), "little")))
    while True:
        size, handles, _, _ = socket.recv_fds(grader, 8, 1)
        if not size:
            return
        with socket.socket(fileno=handles[0]) as link:
            code = exactly(grader.recv, int.from_bytes(size, "little")).decode()
            random.seed(0)  # tests that draw should draw the same for each solution
            solution = Solution(link.recv, link.send)
            try:
                solution.begin()
                known = "answers" in problem
                prepare(problem)
                answers = (
                    {"answers": marshal.dumps(problem["answers"]).hex()} if "answers" in problem and not known else {}
                )
                small = sum(map(len, answers.values())) < MAX_ANSWERS
                send(grader.send, {"ready": True, **(answers if small else {})})
                send(grader.send, judge({**problem, "code": code}, solution))
            except (SuiteAtFault, NotReady) as error:
                send(grader.send, {"broken": str(error)})


def prepare(job: dict[str, Any]) -> None:
    """Compute the answers of the suite's own program, once and before a solution's time begins. Raises SuiteAtFault."""
    if job["kind"] != "plus" or "answers" in job:
        return
    space = type(sys)("canonical").__dict__
    _run_suites_code(job["program"], space)
    answers_by_part: dict[str, list[Any]] = {}
    for part, inputs in job["inputs"].items():
        answers_by_part[part] = answers = []
        for number, arguments in enumerate(inputs, start=1):
            try:
                value = space[job["called"][0]](*_copied(arguments))
                answers.append(value is not None if job["oracle"] == "not_none" else _plain(value))
            except MemoryError:
                text = f"the canonical solution runs out of memory on {part} input {number}"
                raise SuiteAtFault(f"{text}; raise grading.memory_bytes, or leave the problem out") from None
            except Exception as error:
                text = f"the canonical solution fails on {part} input {number}: {type(error).__name__}: {error}"
                raise SuiteAtFault(f"{text}; leave the problem out") from None
    job["answers"] = answers_by_part


def _copied(arguments: Any) -> Any:
    return marshal.loads(marshal.dumps(arguments))


def _plain(value: Any) -> Any:
    """The value as it would arrive from a solution. Raises NotPlain if it is too big for that."""
    encoder = Encoder(remote.handed)
    item = encoder.item(value)
    send(len, {"value": item, "containers": encoder.containers, "given": []})
    return Decoder(encoder.containers, remote.handed).value(item)


def judge(job: dict[str, Any], solution: Solution) -> dict[str, Any]:
    """`verdict` and `detail`. With `ended` the solution's process has ended by itself, and its exit status is the reason."""
    try:
        word, detail = _KINDS[job["kind"]](job, solution)
    except SuiteAtFault:
        raise
    except Gone:
        word, detail = "error", ""
    except NoPlainValue as error:
        word, detail = "failed", f"{solution.place}{error}"
    except BaseException as error:
        word = "failed" if isinstance(error, AssertionError) and solution.last_raised is not error else "error"
        line = remote.last_line(error, "<check>")
        detail = (f"test line {line}: " if line else solution.place) + solution.words_for(error)
    if solution.trouble:  # it counts whatever the tests made of it
        word, detail = "error", solution.trouble
    elif solution.misused and word == "passed":
        word, detail = "failed", solution.misused
    elif word == "passed" and not solution.used:
        raise SuiteAtFault("the tests use nothing that a solution defines: anything would pass; leave the problem out")
    return {"verdict": word, "detail": detail, "ended": solution.ended}


class _Names(dict):  # type: ignore[type-arg]
    """The builtins of the tests; what they lack is looked up in the solution, as if both shared a module."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(vars(builtins))
        self._solution = solution

    def __missing__(self, name: str) -> Any:
        # tests may use a module that only the solution imports: they get the one of this process
        ours = name in sys.stdlib_module_names
        value = self[name] = importlib.import_module(name) if ours else self._solution.global_named(name)
        self._solution.used = self._solution.used or not ours
        return value


def _space(solution: Solution) -> dict[str, Any]:
    space = remote.new_module("tests")
    space["__builtins__"] = _Names(solution)
    return space


def _humaneval(job: dict[str, Any], solution: Solution) -> tuple[str, str]:
    """`check(candidate)`, with the prompt's own helper functions, which are the suite's and not the solution's."""
    space = _space(solution)
    _run_suites_code(_compiled_prompt(job["prompt"]), space)
    solution.load(job)
    (name,) = job["called"]
    try:
        candidate = space[name] = solution.global_named(name)
    except KeyError:
        return "error", f"the program defines no {name}"
    exec(_compiled(job["test"], "<check>"), space)
    space[name] = candidate  # even if the test imports something under this name
    space["check"](candidate)
    return "passed", ""


def _run_suites_code(code: Any, space: dict[str, Any]) -> None:
    try:
        exec(code, space)
    except Exception as error:
        raise SuiteAtFault(f"the suite's own code fails: {type(error).__name__}: {error}") from None


@functools.cache
def _compiled(text: str, name: str) -> Any:
    """The suite's code, compiled. Raises SuiteAtFault if it is not Python."""
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except Exception as error:
        raise SuiteAtFault(f"the suite's own code fails: {name[1:-1]}: {type(error).__name__}: {error}") from None


@functools.cache
def _compiled_prompt(prompt: str) -> Any:
    """The prompt as a module. A last function without a body gets one."""
    last = [line for line in prompt.split("\n") if line.strip()][-1:]
    indent = last[0][: len(last[0]) - len(last[0].lstrip())] if last else ""
    for text in (prompt, f"{prompt}\n{indent}    pass\n", f"{prompt}\n{indent}pass\n"):
        try:
            return compile(text, "<prompt>", "exec", dont_inherit=True)
        except SyntaxError:
            continue
    return compile("", "<prompt>", "exec")


def _mbpp(job: dict[str, Any], solution: Solution) -> tuple[str, str]:
    """Statements with assertions that call the solution by its name."""
    space = _space(solution)
    _run_suites_code(job["imports"], space)
    solution.load(job)
    own: dict[str, Any] = {}
    for name in job["called"]:  # a solution may have the name of a builtin, and hides no other builtin
        try:
            own[name] = solution.global_named(name)
        except KeyError:
            continue
    offered = {name: space[name] for name in own if name in space}
    space.update(own)
    solution.used = any(type(value) is not Handle for value in own.values())  # no test has a question to a constant
    for step, text in job["steps"]:
        solution.place = f"{step}: "
        exec(_compiled(text, f"<{step}>"), space)
        if step == "setup":  # it has imported the suite's names again, over the solution's
            space.update({name: own[name] for name, value in offered.items() if space.get(name) is value})
        elif job["called"] and not own and not solution.used:  # the answer came from a builtin or from the suite
            return "error", f"the program defines no {' or '.join(job['called'])}"
    return "passed", ""


def _functional(job: dict[str, Any], solution: Solution) -> tuple[str, str]:
    """LiveCodeBench with a function."""
    solution.load(job)
    (name,) = job["called"]
    function = solution.ask({"do": "entry", "name": name})
    if type(function) is not Handle:
        return "error", f"the program defines no {name}"
    for number, (text, expected) in enumerate(job["tests"], start=1):
        solution.place = f"test {number}: "
        value = function(*[json.loads(line) for line in text.split("\n")])
        value = list(value) if type(value) is tuple else value  # as LiveCodeBench does, at the top only
        if remote.holds_handles(value) or value != json.loads(expected):
            return "failed", f"{solution.place}wrong answer"
    return "passed", ""


def _stdin(job: dict[str, Any], solution: Solution) -> tuple[str, str]:
    """LiveCodeBench with standard input: each test has a process of its own. Exit codes do not count, exceptions do."""
    solution.load(job)
    for number, (text, expected) in enumerate(job["tests"], start=1):
        solution.place = f"test {number}: "
        # rounded up, so that the limit tells a program little about its answer
        max_output = 1 << max(13, (2 * len(expected)).bit_length())
        result = solution.ask({"do": "run", "input": text, "max_output": max_output})
        if "timeout" in result:
            return "timeout", f"{solution.place}used up its CPU time"
        if "error" in result:
            return "error", f"{solution.place}{result['error']}"
        if "too_much" in result:
            return "failed", f"{solution.place}wrote far more than the answer"
        if not same_output(str(result["output"]), expected):
            return "failed", f"{solution.place}wrong answer"
    return "passed", ""


def _plus(job: dict[str, Any], solution: Solution) -> tuple[str, str]:
    """EvalPlus: the values of all calls against those of the canonical solution."""
    solution.load(job)
    (name,) = job["called"]
    try:
        function = solution.global_named(name)
    except KeyError:
        return "error", f"the program defines no {name}"
    for part, inputs in job["inputs"].items():
        atol = job["atol"]
        values = _values(solution, function, inputs, part)
        for number, (arguments, wanted) in enumerate(zip(inputs, job["answers"][part], strict=True), start=1):
            solution.place = f"{part} test {number}: "
            value = next(values)
            if atol == 0 and is_floats(wanted):
                atol = 1e-6  # for all further calls, too, as in EvalPlus
            if not is_right(job["oracle"], value, wanted, arguments, atol):
                return "failed", f"{solution.place}wrong answer"
    return "passed", ""


def _values(solution: Solution, function: Any, inputs: list[Any], part: str) -> Iterator[Any]:
    """The values of all calls in turn. They are asked for in doubling numbers, since most programs that fail do so early."""
    done, most = 0, 1
    while done < len(inputs):
        for value in remote.calls(solution, function, [_copied(each) for each in inputs[done : done + most]]):
            yield value
            done += 1
            solution.place = f"{part} test {done + 1}: "  # what is raised next is of the next call
        most = min(2 * most, MOST_CALLS)


_KINDS = {"humaneval": _humaneval, "mbpp": _mbpp, "plus": _plus, "functional": _functional, "stdin": _stdin}
