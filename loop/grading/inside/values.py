"""Plain values between two processes that do not trust each other: the receiver rebuilds them from built-in types.

A value is one *item* of JSON beside a table of *containers*. None, True, False, floats, texts and whole numbers of up to 64
bits stand for themselves. The other scalars are `["i", hex]`, `["c", real, imaginary]`, `["u", hex]` (a text with surrogates),
`["b", hex]`, `["r", start, stop, step]`, `["T", name]` (a built-in type) and `["e"]` (Ellipsis). `["o", number, type]` is an
object that stays in its process, `[n]` is container n. A container is `[kind, contents]`: l list, t tuple, s set, z frozenset,
d dict (keys and values in turn), B bytearray (hex). A container that occurs twice is sent once, so that the receiver has one
object, too; it may hold itself.

Both sides of the sandbox use this file. Its names are bound before a solution runs.
"""

from __future__ import annotations

import builtins
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_FRAME_BYTES = 64 << 20

_dumps, _loads = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode, json.loads
_length = struct.Struct("<I")
_LETTERS: dict[Any, str] = {list: "l", tuple: "t", dict: "d", set: "s", frozenset: "z"}
_IN_PLACE = {"l": list, "s": set, "d": dict, "B": bytearray}
_SCALARS = (type(None), bool, int, float, str)
_MALFORMED = (TypeError, ValueError, LookupError, OverflowError, RecursionError, MemoryError)
_BUILT_IN = {name: value for name, value in vars(builtins).items() if type(value) is type and name[0] != "_"}
_NAMES = {value: name for name, value in _BUILT_IN.items()}
_READ: dict[str, Callable[..., Any]] = {
    "i": lambda digits: int(digits, 16),
    "c": lambda real, imaginary: complex(float(real), float(imaginary)),
    "u": lambda digits: bytes.fromhex(digits).decode("utf-8", "surrogatepass"),
    "b": bytes.fromhex,
    "T": _BUILT_IN.__getitem__,
    "e": lambda: ...,
}


class NotPlain(Exception):
    """A value that cannot be sent, or a message that describes no value."""


class Closed(Exception):
    """The other side has gone."""


def send(write: Callable[[Any], int], message: Any) -> None:
    """Send one message: its length, then JSON. Raises OSError if the other side has gone, NotPlain if it is too long."""
    text = _dumps(message).encode("ascii")
    if len(text) > MAX_FRAME_BYTES:
        raise NotPlain(f"a value of {len(text) >> 20} MiB is too big")
    rest = memoryview(_length.pack(len(text)) + text)
    while rest:
        rest = rest[write(rest) :]


def receive(read: Callable[[int], bytes]) -> Any:
    """The next message. Raises Closed at the end, NotPlain if the bytes are no message."""
    (size,) = _length.unpack(exactly(read, 4))
    if size > MAX_FRAME_BYTES:
        raise NotPlain("a message that is too long")
    text = exactly(read, size)
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        raise NotPlain("a message that is not JSON") from None
    except MemoryError:
        raise NotPlain("a message that is too big when unpacked") from None


def exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """The next `size` bytes. Raises Closed if the other side has gone."""
    parts = []
    while size:
        part = read(min(size, 1 << 20))
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Encoder:
    """Makes items of values that share one table. `other` gives the item of an object that is not plain, or raises."""

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self.containers: list[Any] = []
        self.met: list[Any] = []  # the objects of the table; while they live, no others can get their id()
        self._numbers: dict[int, int] = {}
        self._waiting: list[tuple[list[Any], Iterable[Any]]] = []
        self._other = other

    def item(self, value: Any) -> Any:
        """The item of a value. A subclass counts as the built-in type that it extends; its own methods are not called."""
        item = self._item(value)
        while self._waiting:  # not by recursion: a value may be nested deeper than any stack
            contents, parts = self._waiting.pop()
            contents.extend(map(self._item, parts))
        return item

    def _item(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if isinstance(value, int):
            value = int.__pos__(value)
            return value if -(1 << 63) <= value < 1 << 64 else ["i", hex(value)]
        if isinstance(value, float):
            return float.__pos__(value)
        if isinstance(value, str):
            text = str.__str__(value)
            try:
                str.encode(text)
            except UnicodeEncodeError:  # JSON would make one character of two surrogates
                return ["u", str.encode(text, "utf-8", "surrogatepass").hex()]
            return text
        if isinstance(value, (list, tuple, dict, set, frozenset, bytearray)):
            return [self._container(value)]
        if isinstance(value, complex):
            value = complex.__pos__(value)
            return ["c", value.real, value.imag]
        if isinstance(value, bytes):
            return ["b", bytes.hex(value)]
        if kind is range:
            return ["r", *map(self._item, (value.start, value.stop, value.step))]
        if kind is type and value in _NAMES:
            return ["T", _NAMES[value]]
        return ["e"] if value is ... else self._other(value)

    def _container(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is not None:
            return number
        number = self._numbers[id(value)] = len(self.containers)
        self.met.append(value)
        if isinstance(value, bytearray):
            self.containers.append(["B", bytearray.hex(value)])
            return number
        contents: list[Any] = []
        for base, letter in _LETTERS.items():
            if isinstance(value, base):
                items = [part for pair in dict.items(value) for part in pair] if base is dict else base.__iter__(value)
                self.containers.append([letter, contents])
                self._waiting.append((contents, list(items)))
                break
        return number


class Decoder:
    """Rebuilds the values that an Encoder described, from exact built-in types only. Raises NotPlain for any other message.

    `existing` are containers that are here already: lists, dicts, sets and bytearrays get the new contents in place. `other`
    makes the stand-in for an object that stayed in the other process.
    """

    def __init__(self, containers: Any, other: Callable[[Any], Any], existing: Mapping[int, Any] | None = None) -> None:
        self._other = other
        try:
            self._build([(kind, contents) for kind, contents in containers], existing or {})
        except _MALFORMED as error:
            raise NotPlain(f"a value that cannot be rebuilt ({type(error).__name__})") from None

    def value(self, item: Any) -> Any:
        """The value of one item."""
        try:
            return self._value(item)
        except _MALFORMED as error:
            raise NotPlain(f"a value that cannot be rebuilt ({type(error).__name__})") from None

    def _build(self, containers: list[tuple[str, Any]], existing: Mapping[int, Any]) -> None:
        self.objects: list[Any] = [_MISSING] * len(containers)
        for number, (kind, _) in enumerate(containers):
            if kind in _IN_PLACE:
                old = existing.get(number)
                self.objects[number] = old if type(old) is _IN_PLACE[kind] else _IN_PLACE[kind]()
        for number in range(len(containers)):
            self._build_fixed(number, containers)
        for (kind, contents), container in zip(containers, self.objects, strict=True):
            if kind == "l":
                container[:] = map(self._value, contents)
            elif kind == "B":
                container[:] = bytes.fromhex(contents)
            elif kind in _IN_PLACE:
                parts = list(map(self._value, contents))
                new = set(parts) if kind == "s" else dict(zip(parts[::2], parts[1::2], strict=True))
                container.clear()
                container.update(new)

    def _build_fixed(self, number: int, containers: list[tuple[str, Any]]) -> None:
        """Build a tuple or a frozenset, after the containers that it holds."""
        stack, begun = [number], set[int]()
        while stack:
            number = stack[-1]
            if self.objects[number] is not _MISSING:
                stack.pop()
                continue
            kind, contents = containers[number]
            inner = [item[0] for item in contents if type(item) is list and len(item) == 1 and type(item[0]) is int]
            missing = [child for child in inner if self.objects[child] is _MISSING]
            if missing:
                if number in begun:
                    raise ValueError("a tuple in itself")
                begun.add(number)
                stack += missing
                continue
            self.objects[number] = {"t": tuple, "z": frozenset}[kind](map(self._value, contents))

    def _value(self, item: Any) -> Any:
        if type(item) in _SCALARS:
            return item
        head, *rest = item
        if type(head) is int:
            if rest or head < 0 or self.objects[head] is _MISSING:
                raise ValueError(head)
            return self.objects[head]
        if head == "r":
            return range(*map(self._value, rest))
        return self._other(rest) if head == "o" else _READ[head](*rest)


_MISSING = object()
