"""The program's side of the questions that its tests ask: here it is loaded, called, and run on standard input."""

from __future__ import annotations
import __future__

import builtins
import functools
import operator
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from loop.grading.inside import remote
from loop.grading.inside.values import Decoder, Encoder

MAX_DETAIL = 300
_ANNOTATIONS = __future__.annotations.compiler_flag


class Link:
    """Answers questions about one program. A program that tampers with this can only change what its own values are."""

    def __init__(self, shut_in: bool) -> None:
        self._shut_in = shut_in
        self._space: dict[str, Any] = {}
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._program: tuple[CodeType, str] | None = None
        # bound before the program runs, because it may replace these builtins
        self._get, self._next = getattr, next
        self._operations: dict[str, Callable[..., Any]] = {
            "attribute": getattr,
            "assign": setattr,
            "truth": bool,
            "iterate": iter,
            "proceed": self._proceed,
            "call": operator.call,
        }

    def answers(self, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answers to one question, as they come: values or exceptions, and what became of the arguments.

        Only "calls" has several: one for each call, as its value is before the next call. The first exception is the last of them.
        """
        given = Decoder(question.get("containers", ()), lambda rest: self._objects[rest[0]])
        if question["do"] != "calls":
            yield self._reply(lambda: getattr(self, "_" + question["do"])(question, given), given.objects)
            return
        function = self._objects[question["object"]]
        for arguments in question["args"]:
            reply = self._reply(functools.partial(lambda items: function(*map(given.value, items)), arguments), [])
            yield reply
            if "raised" in reply:
                return

    def _reply(self, act: Callable[[], Any], given: list[Any]) -> dict[str, Any]:
        try:
            reply = {"value": act()}
        except BaseException as error:
            reply = {"raised": described(error)}
        encoder = Encoder(self._other)
        if "value" in reply:
            reply["value"] = encoder.item(reply["value"])
        changed = [
            [number, encoder.item(thing)[0]]
            for number, thing in enumerate(given)
            if isinstance(thing, (list, dict, set, bytearray))
        ]
        return {**reply, "containers": encoder.containers, "given": changed}

    def _other(self, value: Any) -> Any:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return ["o", number, type(value).__name__[:80]]

    def _load(self, question: dict[str, Any], _: Decoder) -> None:
        code = question["code"].encode("utf-8", "replace").decode()  # a lone surrogate cannot be part of a program
        if question["kind"] == "stdin":
            self._program = compile(code, "<solution>", "exec", dont_inherit=True), question["imports"]
            return
        self._space = remote.new_module("solution")
        exec(question["imports"], self._space)
        given, own = _parts(code, question["before"])
        exec(given, self._space)
        # the tests must call what the program binds, so the suite's own definitions are only builtins to it
        offered = {name: self._space.pop(name) for name in question["called"] if name in self._space}
        if offered:
            self._space["__builtins__"] = {**vars(builtins), **offered}
        exec(own, self._space)

    def _name(self, question: dict[str, Any], _: Decoder) -> tuple[Any, ...]:
        """The value of a global name of the program."""
        if question["name"] not in self._space:
            return ("missing",)
        value = self._space[question["name"]]
        return ("module", value.__name__) if isinstance(value, type(sys)) else ("value", value)

    def _entry(self, question: dict[str, Any], _: Decoder) -> Any:
        """LiveCodeBench: a method of a Solution, or a function. Methods that every object has are not the program's."""
        name, solution = question["name"], self._space.get("Solution")
        if any(name in kind.__dict__ for kind in getattr(solution, "__mro__", ()) if kind is not object):
            return self._get(self._space["Solution"](), name)
        return self._space.get(name)

    def _operate(self, question: dict[str, Any], given: Decoder) -> Any:
        """An operation on one of the program's objects."""
        arguments = [given.value(item) for item in question["args"]]
        names = {name: given.value(item) for name, item in question["names"].items()}
        return self._operations[question["operation"]](self._objects[question["object"]], *arguments, **names)

    def _proceed(self, iterator: Any, most: int) -> list[Any]:
        """At most `most` further values of an iterator; fewer mean that it has ended."""
        values: list[Any] = []
        try:
            while len(values) < most:
                values.append(self._next(iterator))
        except StopIteration:
            pass
        return values

    def _run(self, question: dict[str, Any], _: Decoder) -> dict[str, Any]:
        assert self._program is not None
        return run_program(*self._program, question["input"], question["max_output"], self._shut_in)


def _parts(code: str, before: str) -> tuple[CodeType, CodeType]:
    """The program in two parts: what the suite put before it (`before` may be ""), and the rest with its line numbers."""
    whole = compile(code, "<solution>", "exec", dont_inherit=True)
    end = len(code) - len(code.lstrip()) + len(before)
    if not (before and code[:end].lstrip() == before and code[end : end + 1].isspace()):
        end = 0
    while end > 0:
        try:
            given = compile(code[:end], "<solution>", "exec", dont_inherit=True)
            rest = "\n" * code.count("\n", 0, end) + code[end:]
            return given, compile(rest, "<solution>", "exec", given.co_flags & _ANNOTATIONS, dont_inherit=True)
        except SyntaxError:  # its last line, such as a decorator, belongs to the rest
            end = code.rfind("\n", 0, end)
    return compile("", "<solution>", "exec"), whole


def described(error: BaseException) -> dict[str, Any]:
    """An exception as plain data: type, text, line and arguments. A solution's exceptions may themselves raise or lie."""
    line = remote.last_line(error, "<solution>")
    if line is None and isinstance(error, SyntaxError) and error.filename == "<solution>":
        line = error.lineno
    built_in = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        text = "".join(character if character.isprintable() else " " for character in str(text)[:MAX_DETAIL])
    except BaseException:
        text = "an exception that cannot be shown"
    arguments = [part if isinstance(part, (str, int, float, type(None))) else None for part in error.args[:8]]
    return {
        "kind": type(error).__name__[:80],
        "builtin": built_in[0],
        "text": text,
        "line": line,
        "args": [part[:MAX_DETAIL] if isinstance(part, str) else part for part in arguments],
    }


def run_program(code: CodeType, imports: str, text: str, max_output: int, shut_in: bool) -> dict[str, Any]:
    """Run a program on this input in a process of its own. Gives what it wrote, or what went wrong.

    With `shut_in` this process and the program's are alone in their namespace, so all that the program started is ended.
    """
    stdin, stdout, failure = (os.path.join(os.getcwd(), name) for name in (".stdin", ".stdout", ".error"))
    for path, content in ((stdin, text), (stdout, ""), (failure, "")):
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "x", encoding="utf-8", newline="", errors="surrogatepass") as file:
            file.write(content)
    child = os.fork()
    if child == 0:
        try:
            _program(code, imports, stdin, stdout, failure)
        finally:  # it could not even write down what went wrong
            os.kill(os.getpid(), signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if shut_in:
        _empty_namespace()
    with open(failure, encoding="utf-8", errors="replace") as file:
        error = file.read(2 * MAX_DETAIL)
    if status == -signal.SIGXCPU:
        return {"timeout": True}
    if error or status < 0:
        return {"error": error or f"killed by signal {-status}"}
    with open(stdout, encoding="utf-8", errors="replace", newline="") as file:
        output = file.read(max_output + 1)
    return {"too_much": True} if len(output) > max_output else {"output": output}


def _empty_namespace() -> None:
    """Kill every process that a program left behind, so that the next test begins alone."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _program(code: CodeType, imports: str, stdin: str, stdout: str, failure: str) -> None:
    """Be the child: run a program with these files as its standard streams. Never returns."""
    os.closerange(3, 256)
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_APPEND), 1)
    os.closerange(3, 256)
    random.seed(0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = ["solution.py"]
    space = remote.new_module("__main__")
    leave, error = os._exit, None
    try:
        exec(imports, space)
        exec(code, space)
        _wait_for_threads()
    except SystemExit:
        pass
    except BaseException as raised:
        error = raised
    try:
        sys.stdout.flush()
    except BaseException as raised:
        error = error or raised
    if error is not None:
        with open(failure, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(remote.exception_text(described(error)))
    leave(0)


def _wait_for_threads() -> None:
    if threading := sys.modules.get("threading"):
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
