"""A solution, seen from its tests: it lives in another process, is asked, and gives back plain values.

An object of any other type is a `Handle` here: it can be passed back, called, and asked for attributes and elements, and is
true; but it cannot be compared, hashed or shown, because its own answer would count. Whatever breaks once counts to the end:
tests that swallow exceptions pass nothing.
"""

from __future__ import annotations

import builtins
import sys

from loop.grading.inside.values import Closed, Decoder, Encoder, NotPlain, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_WORDS = 300
_DESCRIBING = {"__name__", "__qualname__", "__doc__", "__annotations__", "__dict__"}


class NotReady(Exception):
    """The solution's process could not be shut in."""


class Gone(BaseException):
    """The solution's process has ended, or speaks nonsense."""


class NoPlainValue(Exception):
    """A test did something with a value that is not plain."""


class Solution:
    """Asks the solution's process. `trouble` says that it broke, `misused` that a value was used which is not plain,
    `used` that the tests did something with what the program defines.
    """

    def __init__(self, read: Callable[[int], bytes], write: Callable[[Any], int]) -> None:
        self._read, self._write = read, write
        self.ended = self.used = False
        self.trouble = self.misused = ""
        self.last_raised: BaseException | None = None
        self._said: dict[str, Any] = {}
        self._handles: dict[int, Handle] = {}

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
        encoder = encoder or Encoder(handed)
        if self.ended or self.trouble:
            raise Gone
        self.used = self.used or question["do"] not in ("load", "name")
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
        number = int(said[0])
        if number not in self._handles:  # one object is one here, too
            self._handles[number] = Handle(self, number, str(said[1])[:MAX_WORDS])
        return self._handles[number]

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
        self.ask({"do": "load", **{key: job[key] for key in ("kind", "code", "imports", "before", "called")}})

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


def handed(value: Any) -> Any:
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
        if name.startswith("__") and name.endswith("__") and name not in _DESCRIBING:
            return object.__getattribute__(self, name)
        return _ask(self, {"do": "attribute", "name": name})

    def __setattr__(self, name: str, value: Any) -> None:
        encoder = Encoder(handed)
        _ask(self, {"do": "assign", "name": name, "value": encoder.item(value)}, encoder)

    def __call__(self, *args: Any, **names: Any) -> Any:
        encoder = Encoder(handed)
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
        return _method(self, "__len__")()  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> Any:
        return _method(self, "__getitem__")(key)

    def _refuse(self, *_: Any) -> Any:
        solution, kind = object.__getattribute__(self, "_solution"), object.__getattribute__(self, "_kind")
        solution.misused = solution.misused or f"a value of type {kind} is not plain data"
        raise NoPlainValue(solution.misused)

    def __bool__(self) -> bool:
        return _ask(self, {"do": "truth"}) is True  # it could have answered with this value itself

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
