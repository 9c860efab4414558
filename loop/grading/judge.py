"""The tests of one problem, in a process of their own: they run unchanged, and what they call is asked of a solution.

A solution gives back plain values (`loop.grading.values`) and nothing else. An object of any other type is a `Handle` here: it
can be passed back, called, and asked for attributes and elements, and is true; but it cannot be compared, hashed or shown,
because its own answer would count. Whatever breaks once, counts to the end: tests that swallow exceptions pass nothing.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import marshal
import math
import os
import socket
import sys
from decimal import Decimal, InvalidOperation

from loop.grading.values import Closed, Decoder, Encoder, NotPlain, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_WORDS = 300
# LiveCodeBench runs every solution after these lines.
_STARS = ["string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"]
_STARS += ["itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"]
PREAMBLE = "\n".join(
    [f"from {name} import *" for name in _STARS]
    + [f"import {name}" for name in _STARS[:-2]]
    + ["sys.setrecursionlimit(50000)", ""]
)


class SuiteAtFault(Exception):
    """What the suite brings itself does not run; nothing is known of the solution."""


class NotReady(Exception):
    """The solution's process could not be shut in."""


class Gone(BaseException):
    """The solution's process has ended, or speaks nonsense."""


class NoPlainValue(Exception):
    """A test did something with a value that is not plain."""


def main(host: int) -> None:
    """Judge solutions of the problem that the grader sends first, each over a socket of its own. Never returns."""
    grader = socket.socket(fileno=host)
    problem = marshal.loads(_exactly(grader, int.from_bytes(_exactly(grader, 8), "little")))
    while True:
        size, handles, _, _ = socket.recv_fds(grader, 8, 1)
        if not size:
            os._exit(0)
        with socket.socket(fileno=handles[0]) as link:
            code = _exactly(grader, int.from_bytes(size, "little")).decode()
            solution = Solution(link.recv, link.send)
            try:
                solution.begin()
                prepare(problem)
                send(grader.send, {"ready": True})
                send(grader.send, judge({**problem, "code": code}, solution))
            except (SuiteAtFault, NotReady) as error:
                send(grader.send, {"broken": str(error)})


def _exactly(grader: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = grader.recv(min(size, 1 << 20))
        if not part:
            os._exit(0)  # the grader has gone
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def prepare(job: dict[str, Any]) -> None:
    """What the suite's own program answers, once and before a solution's time begins. Raises SuiteAtFault."""
    if job["kind"] != "plus" or "answers" in job:
        return
    space = type(sys)("canonical").__dict__
    _own(job["program"], space)
    found: dict[str, list[Any]] = {}
    for part, inputs in job["inputs"].items():
        found[part] = answers = []
        for number, arguments in enumerate(inputs, start=1):
            try:
                value = space[job["entry_point"]](*_copied(arguments))
                answers.append(value is not None if job["oracle"] == "not_none" else _plain(value))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                raise SuiteAtFault(f"the canonical solution fails on {part} input {number}: {text}") from None
    job["answers"] = found


def _copied(arguments: Any) -> Any:
    return marshal.loads(marshal.dumps(arguments))


def _plain(value: Any) -> Any:
    """The value as it would be if a solution had given it."""
    encoder = Encoder(_handed)
    item = encoder.item(value)
    return Decoder(encoder.containers, _handed).value(item)


def judge(job: dict[str, Any], solution: Solution) -> dict[str, Any]:
    """`verdict` and `detail`; with `ended`, the solution's process has ended by itself, and how it did is the reason."""
    place = _Place()
    try:
        word, detail = _KINDS[job["kind"]](job, solution, place)
    except SuiteAtFault:
        raise
    except Gone:
        word, detail = "error", ""
    except NoPlainValue as error:
        word, detail = "failed", f"{place}{error}"
    except BaseException as error:
        word, detail = _word_for(error, solution, place), place.of(error) + solution.words_for(error)
    if solution.trouble:  # whatever the tests made of it
        word, detail = "error", solution.trouble
    elif solution.misused and word == "passed":
        word, detail = "failed", solution.misused
    return {"verdict": word, "detail": detail, "ended": solution.ended}


def _word_for(error: BaseException, solution: Solution, place: _Place) -> str:
    return "failed" if isinstance(error, AssertionError) and solution.last_raised is not error else "error"


class _Place:
    """Where the tests are, for people: `test 2: ` or `test line 7: `."""

    def __init__(self) -> None:
        self.words = ""

    def __str__(self) -> str:
        return f"{self.words}: " if self.words else ""

    def of(self, error: BaseException) -> str:
        trace, line = error.__traceback__, None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<check>":
                line = trace.tb_lineno
            trace = trace.tb_next
        return f"test line {line}: " if line else str(self)


# the solution, seen from its tests


class Solution:
    """Asks the solution's process. `trouble` says that it broke, `misused` that a value was used which is not plain."""

    def __init__(self, read: Callable[[int], bytes], write: Callable[[Any], int]) -> None:
        self._read, self._write = read, write
        self.ended = False
        self.trouble = self.misused = ""
        self.last_raised: BaseException | None = None
        self._said: dict[str, Any] = {}

    def begin(self) -> None:
        """Wait until the process is shut in; nothing foreign has run there yet. Raises NotReady."""
        try:
            said = receive(self._read)
        except (Closed, OSError, NotPlain):
            raise NotReady("the solution's process could not start") from None
        if said != {"ready": True}:
            raise NotReady(str(said.get("broken", said) if isinstance(said, dict) else said))

    def ask(self, question: dict[str, Any], encoder: Encoder | None = None) -> Any:
        """The value of the answer. Raises what the solution raised, and Gone when it cannot answer any more."""
        encoder = encoder or Encoder(_handed)
        if self.ended or self.trouble:
            raise Gone
        try:
            send(self._write, {**question, "containers": encoder.containers})
            reply = receive(self._read)
        except (Closed, OSError):
            self.ended, self.trouble = True, "ended before the last test was done"
            raise Gone from None
        except NotPlain as error:
            self.trouble = f"the program's answer: {error}"
            raise Gone from None
        try:
            known = {there: encoder.met[here] for here, there in reply["given"] if type(here) is type(there) is int}
            decoder = Decoder(reply["containers"], self._handle, known)
            if "raised" not in reply:
                return decoder.value(reply["value"])
            raised = self._exception(reply["raised"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, MemoryError):
            self.trouble = "the program spoke in the harness's name"
            raise Gone from None
        except NotPlain as error:
            self.trouble = f"the program's answer: {error}"
            raise Gone from None
        self.last_raised = raised
        raise raised

    def _handle(self, said: list[Any]) -> Handle:
        return Handle(self, int(said[0]), str(said[1])[:MAX_WORDS])

    def _exception(self, said: dict[str, Any]) -> BaseException:
        """The built-in exception that the solution's is, or extends."""
        kind = getattr(builtins, str(said["builtin"]), None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            kind = Exception
        if issubclass(kind, (StopIteration, StopAsyncIteration)):  # would end a loop of the tests in silence
            kind = RuntimeError
        self._said = {"kind": str(said["kind"])[:MAX_WORDS], "text": str(said["text"])[:MAX_WORDS], "line": None}
        if type(said["line"]) is int and 0 < said["line"] < 1 << 31:
            self._said["line"] = said["line"]
        try:
            return kind(*said["args"])
        except Exception:
            return RuntimeError(self._said["text"])

    def words_for(self, error: BaseException) -> str:
        """What kind of exception, and what it says."""
        if error is self.last_raised:
            return in_words(self._said)
        kind = type(error).__name__
        try:
            text = error.msg if isinstance(error, SyntaxError) else str(error)
        except Exception:
            text = ""
        return kind + (f": {text[:MAX_WORDS]}" if text.strip() else "")

    def load(self, job: dict[str, Any]) -> None:
        """Run the program, but for its functions."""
        self.ask({"do": "load", "code": job["code"], "kind": job["kind"], "imports": job["imports"]})

    def global_named(self, name: str) -> Any:
        """What the program calls so. Raises KeyError if nothing."""
        kind, *rest = self.ask({"do": "name", "name": name})
        if kind == "missing":
            raise KeyError(name)
        if kind == "module":  # by another name than its own: `import numpy as np` would be one
            known = str(rest[0]).partition(".")[0] in sys.stdlib_module_names and sys.modules.get(str(rest[0]))
            if not known:  # nor is one imported because a program says so: some run when they are
                raise KeyError(name)
            return known
        return rest[0]


def in_words(said: dict[str, Any]) -> str:
    """A solution's exception as text: line, kind, what it says."""
    where = f"line {said['line']}: " if said["line"] else ""
    return where + str(said["kind"]) + (f": {said['text']}" if said["text"].strip() else "")


def _handed(value: Any) -> Any:
    if type(value) is Handle:
        return ["o", object.__getattribute__(value, "_number"), ""]
    raise NoPlainValue(f"an argument of type {type(value).__name__} is not plain data")


class Handle:
    """An object in the solution's process. Its operations are asked for there; what would decide a test is refused."""

    __slots__ = ("_kind", "_number", "_solution")

    def __init__(self, solution: Solution, number: int, kind: str) -> None:
        for name, value in (("_solution", solution), ("_number", number), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            return object.__getattribute__(self, name)
        return _ask(self, {"do": "attribute", "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        encoder = Encoder(_handed)
        _ask(self, {"do": "assign", "name": name, "value": encoder.item(value)}, encoder)

    def __call__(self, *args: Any, **names: Any) -> Any:
        encoder = Encoder(_handed)
        items = [encoder.item(value) for value in args]
        named = {name: encoder.item(value) for name, value in names.items()}
        return _ask(self, {"do": "call", "args": items, "names": named}, encoder)

    def __iter__(self) -> Iterator[Any]:
        return _elements(_ask(self, {"do": "iterate"}))

    def __next__(self) -> Any:
        found = _ask(self, {"do": "proceed", "most": 1})
        if type(found) is not list or len(found) != 1:
            raise StopIteration
        return found[0]

    def __len__(self) -> int:
        return int(_method(self, "__len__")())

    def __getitem__(self, key: Any) -> Any:
        return _method(self, "__getitem__")(key)

    def _refuse(self, *_: Any) -> Any:
        solution, kind = object.__getattribute__(self, "_solution"), object.__getattribute__(self, "_kind")
        solution.misused = solution.misused or f"a value of type {kind} is not plain data"
        raise NoPlainValue(solution.misused)

    def __bool__(self) -> bool:
        return True  # as an object is, and as `True` would be: no object gets further with this than a plain value

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _refuse
    __hash__ = __int__ = __index__ = __float__ = __str__ = __repr__ = __format__ = _refuse


def _ask(handle: Handle, question: dict[str, Any], encoder: Encoder | None = None) -> Any:
    number = object.__getattribute__(handle, "_number")
    return object.__getattribute__(handle, "_solution").ask({**question, "object": number}, encoder)


def _method(handle: Handle, name: str) -> Any:
    try:
        return _ask(handle, {"do": "attribute", "name": name})
    except AttributeError:  # TypeError is what `list` expects of what has no length
        raise TypeError(f"a value of type {object.__getattribute__(handle, '_kind')} has no {name}") from None


def _elements(iterator: Any) -> Iterator[Any]:
    """Twice as many at a time, so that an endless one is not waited for and a long one not asked for one by one."""
    most = 1
    while type(iterator) is Handle:
        found = _ask(iterator, {"do": "proceed", "most": most})
        yield from found
        if len(found) < most:
            return
        most = min(2 * most, 1 << 12)


class _Names(dict):  # type: ignore[type-arg]
    """The builtins of the tests; what they lack is looked up in the solution, as if both shared a module."""

    def __init__(self, solution: Solution) -> None:
        super().__init__(vars(builtins))
        self._solution = solution

    def __missing__(self, name: str) -> Any:
        # tests may use a module that they leave to the solution to import; then it is ours that they get
        ours = name in sys.stdlib_module_names
        value = self[name] = importlib.import_module(name) if ours else self._solution.global_named(name)
        return value


def _space(solution: Solution, name: str = "tests") -> dict[str, Any]:
    module = type(sys)(name)
    sys.modules[name] = module
    module.__dict__["__builtins__"] = _Names(solution)
    return module.__dict__


# the kinds of tests


def _run_humaneval(job: dict[str, Any], solution: Solution, place: _Place) -> tuple[str, str]:
    """`check(candidate)` beside the prompt's own helper functions, which are the suite's and not the solution's."""
    space = _space(solution)
    _own(_compiled_prompt(job["prompt"]), space)
    solution.load(job)
    try:
        space[job["entry_point"]] = solution.global_named(job["entry_point"])
    except KeyError:
        return "error", f"the program defines no {job['entry_point']}"
    exec(_compiled(job["test"], "<check>"), space)
    space["check"](space[job["entry_point"]])
    return "passed", ""


def _own(code: Any, space: dict[str, Any]) -> None:
    """Run what is the suite's."""
    try:
        exec(code, space)
    except Exception as error:
        raise SuiteAtFault(f"the suite's own code fails: {type(error).__name__}: {error}") from None


@functools.cache
def _compiled(text: str, name: str) -> Any:
    return compile(text, name, "exec", dont_inherit=True)


@functools.cache
def _compiled_prompt(prompt: str) -> Any:
    """The prompt as a module; where its last function still lacks a body, with one."""
    last = [line for line in prompt.split("\n") if line.strip()][-1:]
    indent = last[0][: len(last[0]) - len(last[0].lstrip())] if last else ""
    for text in (prompt, f"{prompt}\n{indent}    pass\n", f"{prompt}\n{indent}pass\n"):
        try:
            return compile(text, "<prompt>", "exec", dont_inherit=True)
        except SyntaxError:
            continue
    return compile("", "<prompt>", "exec")


def _run_mbpp(job: dict[str, Any], solution: Solution, place: _Place) -> tuple[str, str]:
    """Statements with assertions that call the solution by its name."""
    space = _space(solution)
    _own(job["imports"], space)
    solution.load(job)
    for name in job["shadowing"]:  # a solution may be named like a builtin, and only then hides it
        try:
            space[name] = solution.global_named(name)
        except KeyError:
            continue
    for step, text in job["steps"]:
        place.words = step
        exec(_compiled(text, f"<{step}>"), space)
    return "passed", ""


def _run_functional(job: dict[str, Any], solution: Solution, place: _Place) -> tuple[str, str]:
    """LiveCodeBench with a function."""
    solution.load(job)
    function = solution.ask({"do": "entry", "name": job["func_name"]})
    if type(function) is not Handle:
        return "error", f"the program defines no {job['func_name']}"
    for number, (text, expected) in enumerate(job["tests"], start=1):
        place.words = f"test {number}"
        value = function(*[json.loads(line) for line in text.split("\n")])
        value = list(value) if type(value) is tuple else value  # as LiveCodeBench does, at the top only
        if _holds_handles(value) or value != json.loads(expected):
            return "failed", f"{place}wrong answer"
    return "passed", ""


def _holds_handles(value: Any) -> bool:
    waiting, met = [value], set()
    while waiting:
        part = waiting.pop()
        if type(part) is Handle:
            return True
        if type(part) in (list, tuple, set, frozenset, dict) and id(part) not in met:
            met.add(id(part))
            waiting += part
            if type(part) is dict:
                waiting += part.values()
    return False


def _run_stdin(job: dict[str, Any], solution: Solution, place: _Place) -> tuple[str, str]:
    """LiveCodeBench with standard input: a process for each test; exit codes do not count, exceptions do."""
    solution.load(job)
    for number, (text, expected) in enumerate(job["tests"], start=1):
        place.words = f"test {number}"
        # rounded up, so that a program learns little about its answers from where it is cut off
        most = 1 << max(13, (2 * len(expected)).bit_length())
        said = solution.ask({"do": "run", "input": text, "max_output": most})
        if "timeout" in said:
            return "timeout", f"{place}used up its CPU time"
        if "error" in said:
            return "error", f"{place}{said['error']}"
        if "too_much" in said:
            return "failed", f"{place}wrote far more than the answer"
        if not same_output(str(said["output"]), expected):
            return "failed", f"{place}wrong answer"
    return "passed", ""


def _run_plus(job: dict[str, Any], solution: Solution, place: _Place) -> tuple[str, str]:
    """EvalPlus: the values of all calls against those of the canonical solution."""
    solution.load(job)
    try:
        function = solution.global_named(job["entry_point"])
    except KeyError:
        return "error", f"the program defines no {job['entry_point']}"
    for part, inputs in job["inputs"].items():
        atol = job["atol"]
        for number, (arguments, wanted) in enumerate(zip(inputs, job["answers"][part], strict=True), start=1):
            place.words = f"{part} test {number}"
            value = function(*_copied(arguments))
            if atol == 0 and _is_floats(wanted):
                atol = 1e-6  # from here on, as EvalPlus does
            if not _is_right(job["oracle"], value, wanted, arguments, atol):
                return "failed", f"{place}wrong answer"
    return "passed", ""


def _is_right(oracle: str, value: Any, wanted: Any, arguments: Any, atol: float) -> bool:
    """`arguments` are as the suite has them, whatever the solution did to its own."""
    if oracle == "anything":
        return True
    if oracle == "not_none":
        return bool((value if type(value) is bool else value is not None) == wanted)
    if oracle == "set":
        try:
            exact = set(value) == set(wanted)
        except TypeError:
            return False
    elif _holds_handles(value):
        return False
    elif oracle == "root":
        return _is_number(value) and _is_root(arguments[0], value, atol)
    else:
        exact = value == wanted
    if oracle == "or_zero":
        exact = exact or value == 0
    elif oracle == "surface_area":
        exact = exact or (_is_number(value) and abs(value - _surface_area(*arguments)) <= atol)
    elif oracle == "digit_distance":
        exact = exact or value == _digit_distance(*arguments)
    return exact or (atol != 0 and type(value) is type(wanted) and _is_close(value, wanted, atol))


def _is_floats(value: Any) -> bool:
    return type(value) is float or (
        type(value) in (list, tuple) and len(value) > 0 and all(type(part) is float for part in value)
    )


def _is_number(value: Any) -> bool:
    """One that an array of numbers holds; a bigger one makes it an array of objects, which are never close."""
    return type(value) in (bool, float, complex) or (type(value) is int and -(1 << 63) <= value < 1 << 64)


def _is_close(value: Any, wanted: Any, atol: float) -> bool:
    """NumPy's allclose with rtol 1e-7, for numbers and for evenly nested lists of them. Shapes must be the same."""
    if _shape(wanted) is None:
        return False
    waiting = [(value, wanted)]
    while waiting:
        one, other = waiting.pop()
        if type(other) in (list, tuple):
            if type(one) not in (list, tuple) or len(one) != len(other):
                return False
            waiting += zip(one, other, strict=True)
        elif not _is_number(one):
            return False
        elif one != other:
            one, other = (part if type(part) is complex else float(part) for part in (one, other))
            if not (math.isfinite(abs(other)) and abs(one - other) <= atol + 1e-7 * abs(other)):
                return False
    return True


def _shape(value: Any) -> tuple[int, ...] | None:
    if type(value) not in (list, tuple):
        return () if _is_number(value) else None
    shapes = {_shape(part) for part in value}
    if len(shapes) > 1:
        return None
    inner = shapes.pop() if shapes else ()
    return None if inner is None else (len(value), *inner)


def _is_root(coefficients: Any, x: Any, atol: float) -> bool:
    """HumanEval/32: any root of the polynomial will do."""
    try:
        return bool(abs(sum(factor * math.pow(x, power) for power, factor in enumerate(coefficients))) <= atol)
    except (TypeError, ValueError, OverflowError):
        return False


def _surface_area(base_edge: float, height: float) -> int:
    """Mbpp/581, if the height is not the slanted one."""
    return round(base_edge**2 + 2 * base_edge * math.sqrt((base_edge / 2) ** 2 + height**2))


def _digit_distance(one: Any, other: Any) -> int:
    """Mbpp/558, if the shorter number has zeros in front."""
    size = max(len(str(one)), len(str(other)))
    return sum(abs(int(a) - int(b)) for a, b in zip(str(one).zfill(size), str(other).zfill(size), strict=True))


_KINDS = {
    "humaneval": _run_humaneval,
    "mbpp": _run_mbpp,
    "plus": _run_plus,
    "functional": _run_functional,
    "stdin": _run_stdin,
}


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's comparison: line by line, blanks at the ends ignored, decimals equal when both lines are numbers."""
    lines, wanted = _stripped(output), _stripped(expected)
    return len(lines) == len(wanted) and all(
        line == other or _same_decimals(line, other) for line, other in zip(lines, wanted, strict=True)
    )


def _stripped(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_decimals(line: str, other: str) -> bool:
    words, wanted = line.split(), other.split()
    if len(words) != len(wanted) or max(map(len, words + wanted), default=0) > 4000:
        return False
    try:
        return all(Decimal(word) == Decimal(target) for word, target in zip(words, wanted, strict=True))
    except InvalidOperation:
        return False
