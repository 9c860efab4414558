"""A solution as its tests see it: it lives in another process, answers questions, and gives back plain values.

An object of any other type is a `Handle` here. Tests can pass it back, call it, and ask for its attributes, elements, length
and truth. They cannot compare, hash or print it, because its own answer would count. A solution that broke once is broken to
the end, so tests that swallow exceptions pass nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from loop.grading.inside.values import Closed, Decoder, Encoder, NotPlain, receive, send

MAX_WORDS = 300
_DESCRIBING = {"__name__", "__qualname__", "__doc__", "__annotations__", "__dict__"}


class NotReady(Exception):
    """The solution's process could not be shut in."""


class Gone(BaseException):
    """The solution's process has ended, or speaks nonsense."""


class NoPlainValue(Exception):
    """A test did something with an object that only plain values can do."""


class Solution:
    """Asks the solution's process.

    `place` is the test that asks, for messages (`test 2: `). `trouble` says how the process broke, `misused` which value was
    used as if it were plain, and `used` whether the tests did something with what the program defines.
    """

    def __init__(self, read: Callable[[int], bytes], write: Callable[[Any], int]) -> None:
        self._read, self._write = read, write
        self.ended = self.used = False
        self.place = self.trouble = self.misused = ""
        self.last_raised: BaseException | None = None
        self._last_description: dict[str, Any] = {}
        self._handles: dict[int, Handle] = {}

    def begin(self) -> None:
        """Wait until the process is shut in; nothing foreign has run there yet. Raises NotReady."""
        try:
            message = receive(self._read)
        except (Closed, OSError, NotPlain):
            raise NotReady("the solution's process could not start") from None
        if message != {"ready": True}:
            raise NotReady(str(message.get("broken", message) if isinstance(message, dict) else message))

    def ask(self, question: dict[str, Any], encoder: Encoder | None = None) -> Any:
        """The value of the answer. Raises what the solution raised, and Gone if it cannot answer any more."""
        encoder = encoder or Encoder(handed)
        self.put(question, encoder)
        return self.answer(encoder)

    def put(self, question: dict[str, Any], encoder: Encoder) -> None:
        """Ask, and wait for no answer. Raises Gone if there will be none."""
        if self.ended or self.trouble:
            raise Gone
        self.used = self.used or question["do"] not in ("load", "name")
        with self._speaking():
            send(self._write, {**question, "containers": encoder.containers})

    def answer(self, encoder: Encoder) -> Any:
        """The next answer to a question that this encoder made. Raises what `ask` does."""
        with self._speaking():
            reply = receive(self._read)
            existing = {its: encoder.met[ours] for ours, its in reply["given"] if type(ours) is type(its) is int}
            decoder = Decoder(reply["containers"], self._handle, existing)
            if "raised" not in reply:
                return decoder.value(reply["value"])
            self.last_raised = self._exception(reply["raised"])
        raise self.last_raised

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except (Closed, OSError):
            self.ended, self.trouble = True, "ended before the last test was done"
            raise Gone from None
        except NotPlain as error:
            self.trouble = f"the program's answer: {error}"
            raise Gone from None
        except MemoryError:
            self.trouble = "a value was too big for the memory of the tests"
            raise Gone from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
            self.trouble = "the program spoke in the harness's name"
            raise Gone from None

    def _handle(self, described: list[Any]) -> Handle:
        number = int(described[0])
        if number not in self._handles:  # an object has the same handle each time
            self._handles[number] = Handle(self, number, str(described[1])[:MAX_WORDS])
        return self._handles[number]

    def _exception(self, described: dict[str, Any]) -> BaseException:
        """The built-in exception that the solution's exception is, or extends."""
        kind = getattr(builtins, str(described["builtin"]), None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            kind = Exception
        if issubclass(kind, (StopIteration, StopAsyncIteration)):  # would silently end a loop of the tests
            kind = RuntimeError
        line = described["line"] if type(described["line"]) is int and 0 < described["line"] < 1 << 31 else None
        words = {key: str(described[key])[:MAX_WORDS] for key in ("kind", "text")}
        self._last_description = {**words, "line": line}
        try:
            return kind(*described["args"])
        except Exception:
            return RuntimeError(words["text"])

    def words_for(self, error: BaseException) -> str:
        """An exception as text. One of the solution's own has its line there, too."""
        if error is self.last_raised:
            return exception_text(self._last_description)
        try:
            text = error.msg if isinstance(error, SyntaxError) else str(error)
        except Exception:
            text = ""
        return exception_text({"line": None, "kind": type(error).__name__, "text": text[:MAX_WORDS]})

    def load(self, job: dict[str, Any]) -> None:
        """Run the program's top level."""
        self.ask({"do": "load", **{key: job[key] for key in ("kind", "code", "imports", "before", "called")}})

    def global_named(self, name: str) -> Any:
        """The value that the program gave this name. Raises KeyError if it gave none."""
        kind, *rest = self.ask({"do": "name", "name": name})
        if kind == "missing":
            raise KeyError(name)
        if kind == "module":  # the program may have given it another name, as in `import math as m`
            module = str(rest[0]).partition(".")[0] in sys.stdlib_module_names and sys.modules.get(str(rest[0]))
            if not module:  # none is imported because a program names it: some modules do things when they are imported
                raise KeyError(name)
            return module
        return rest[0]


def exception_text(described: dict[str, Any]) -> str:
    """A solution's exception as text: its line, its type and its message."""
    where = f"line {described['line']}: " if described["line"] else ""
    return where + str(described["kind"]) + (f": {described['text']}" if described["text"].strip() else "")


def last_line(error: BaseException, file_name: str) -> int | None:
    """The line of this file where the exception was raised; None if it came through no line of the file."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file_name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def new_module(name: str) -> dict[str, Any]:
    """The names of an empty module, which can be imported under this name."""
    module = sys.modules[name] = type(sys)(name)
    return module.__dict__


def handed(value: Any) -> Any:
    if type(value) is Handle:
        return ["o", object.__getattribute__(value, "_number"), ""]
    raise NoPlainValue(f"an argument of type {type(value).__name__} is not plain data")


class Handle:
    """An object in the solution's process, where its operations are carried out. Those that would decide a test are refused."""

    __slots__ = ("_kind", "_number", "_solution")

    def __init__(self, solution: Solution, number: int, kind: str) -> None:
        for name, value in (("_solution", solution), ("_number", number), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in _DESCRIBING:
            return object.__getattribute__(self, name)
        return _operate(self, "attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _operate(self, "assign", name, value)

    def __call__(self, /, *args: Any, **names: Any) -> Any:
        return _operate(self, "call", *args, **names)

    def __iter__(self) -> Iterator[Any]:
        return _elements(_operate(self, "iterate"))

    def __next__(self) -> Any:
        values = _operate(self, "proceed", 1)
        if type(values) is not list or len(values) != 1:
            raise StopIteration
        return values[0]

    def __len__(self) -> int:
        return _method(self, "__len__")()  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> Any:
        return _method(self, "__getitem__")(key)

    def _refuse(self, *_: Any) -> Any:
        solution, kind = object.__getattribute__(self, "_solution"), object.__getattribute__(self, "_kind")
        solution.misused = solution.misused or f"a value of type {kind} is not plain data"
        raise NoPlainValue(solution.misused)

    def __bool__(self) -> bool:
        return _operate(self, "truth") is True  # no risk: the solution could have given True itself

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _refuse
    __hash__ = __int__ = __index__ = __float__ = __str__ = __repr__ = __format__ = _refuse


def _operate(handle: Handle, operation: str, /, *args: Any, **names: Any) -> Any:
    """The result of one of `Link`'s operations on the object."""
    encoder = Encoder(handed)
    question = {
        "do": "operate",
        "operation": operation,
        "object": object.__getattribute__(handle, "_number"),
        "args": [encoder.item(value) for value in args],
        "names": {name: encoder.item(value) for name, value in names.items()},
    }
    return object.__getattribute__(handle, "_solution").ask(question, encoder)


def calls(solution: Solution, function: Any, arguments: list[list[Any]]) -> Iterator[Any]:
    """The values of these calls as they come. The solution's process goes on to the next call while a value is looked at.

    What a call does to its arguments is not told. Raises what the first call that fails raised. No other question may be asked
    before the last value was taken.
    """
    if type(function) is not Handle:
        for each in arguments:
            yield function(*each)
        return
    encoder = Encoder(handed)
    question = {
        "do": "calls",
        "object": object.__getattribute__(function, "_number"),
        "args": [[encoder.item(value) for value in each] for each in arguments],
    }
    solution.put(question, encoder)
    for _ in arguments:
        yield solution.answer(encoder)


def _method(handle: Handle, name: str) -> Any:
    try:
        return _operate(handle, "attribute", name)
    except AttributeError:  # TypeError is what `list` expects of what has no length
        raise TypeError(f"a value of type {object.__getattribute__(handle, '_kind')} has no {name}") from None


def _elements(iterator: Any) -> Iterator[Any]:
    """An iterator's values in doubling numbers: few of an endless one are made, and a long one takes few questions."""
    most = 1
    while type(iterator) is Handle:
        values = _operate(iterator, "proceed", most)
        yield from values
        if len(values) < most:
            return
        most = min(2 * most, 1 << 12)


def holds_handles(value: Any) -> bool:
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
