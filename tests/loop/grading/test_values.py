"""Plain values come across as they were, and whatever is not plain is refused and breaks nothing."""

from __future__ import annotations

import builtins
import io
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.grading.inside.values import MAX_FRAME_BYTES, Closed, Decoder, Encoder, NotPlain, receive, send

TYPES = [value for value in vars(builtins).values() if type(value) is type and not value.__name__.startswith("_")]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.characters(categories=("Cs", "Cc", "L")))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.builds(range, st.integers(-9, 1 << 80), st.integers(), st.integers(1, 1 << 70))
    | st.sampled_from([type for type in TYPES if type.__name__ in ("int", "list", "object", "ValueError")])
    | st.just(...)
)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4), max_leaves=10
)
PLAIN = st.recursive(
    HASHABLE | st.binary().map(bytearray) | st.sets(HASHABLE, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
    ),
    max_leaves=30,
)


def not_plain(value: Any) -> Any:
    raise NotPlain(type(value).__name__)


def across(value: Any) -> Any:
    """As it is after a way through JSON."""
    encoder = Encoder(not_plain)
    item = encoder.item(value)
    written = bytearray()

    def write(part: memoryview) -> int:
        some = max(1, len(part) // 2)
        written.extend(part[:some])
        return some

    send(write, [item, encoder.containers])
    file = io.BytesIO(written)
    item, containers = receive(lambda size: file.read(max(1, size // 2)))
    return Decoder(containers, not_plain).value(item)


def shape(value: Any) -> Any:
    """Type, content and sharing of a value, without looking at it by `==`; whatever may hold itself is met once."""
    numbers: dict[int, int] = {}
    seen: list[Any] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (list, tuple, dict, set, frozenset, bytearray)):
            if id(part) in numbers:
                seen.append(("again", numbers[id(part)]))
                continue
            numbers[id(part)] = len(numbers)
            seen.append((type(part), len(part)))
            if isinstance(part, dict):
                waiting += [inner for pair in part.items() for inner in pair]
            elif isinstance(part, (set, frozenset)):
                seen.append(sorted(map(repr, map(shape, part))))
            elif isinstance(part, bytearray):
                seen.append(bytes(part))
            else:
                waiting += part
        else:
            seen.append((type(part), repr(part)))
    return seen


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_plain_values_come_back_the_same(value: Any) -> None:
    arrived = across(value)
    assert arrived == value and type(arrived) is type(value)
    assert shape(arrived) == shape(value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_shared_stays_shared(data: st.DataObject) -> None:
    """Containers that hold each other and themselves in any way."""
    made: list[Any] = [kind() for kind in data.draw(st.lists(st.sampled_from([list, dict]), min_size=1, max_size=6))]
    for container in list(made):
        inner = data.draw(st.lists(st.sampled_from(made) | SCALARS, max_size=5))
        if isinstance(container, list):
            container += inner
        else:
            container |= dict(enumerate(inner))
        if data.draw(st.booleans()):
            made.append((container, tuple(made[:2])))
    assert shape(across(made)) == shape(made)
    assert shape(across(made[-1])) == shape(made[-1])


def test_equal_is_not_the_same() -> None:
    a, b = across([[1], [1]])
    assert a is not b
    a, b = across([a, a])
    assert a is b


@settings(max_examples=80, deadline=None)
@given(st.lists(PLAIN, max_size=4), st.lists(PLAIN, max_size=4), st.integers(0, 3))
def test_changes_in_place_arrive(before: list[Any], after: list[Any], kind: int) -> None:
    """A question with arguments, and an answer in which one of them has become another, as `judge` and `cell` do it."""
    outer = [before, {"key": before}]
    question = Encoder(not_plain)
    item = question.item(outer)
    theirs = Decoder(json.loads(json.dumps(question.containers)), not_plain)
    arrived = theirs.value(json.loads(json.dumps(item)))
    arrived[0][:] = after
    arrived[1]["key"].append(arrived)
    if kind:
        del arrived[kind % 2]
    answer = Encoder(not_plain)
    value = answer.item(arrived[0])
    given = [
        [number, answer.item(thing)[0]]
        for number, thing in enumerate(theirs.objects)
        if isinstance(thing, (list, dict, set, bytearray))
    ]
    containers, value, given = json.loads(json.dumps([answer.containers, value, given]))
    existing = {at: question.met[here] for here, at in given}
    ours = Decoder(containers, not_plain, existing).value(value)
    assert ours is outer[0]
    assert shape(outer) == shape(arrived)
    assert any(part is outer for part in before)


def test_a_value_nested_deeper_than_the_stack() -> None:
    deep: Any = []
    for _ in range(20_000):
        deep = [deep]
    arrived, depth = across(deep), 0
    while arrived:
        arrived, depth = arrived[0], depth + 1
    assert depth == 20_000


class Odd(list):  # type: ignore[type-arg]
    """Its methods are not asked."""

    def __iter__(self) -> Any:
        raise AssertionError

    __len__ = __getitem__ = __eq__ = __iter__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Odd([1, 2]), [1, 2]),
        (type("I", (int,), {"__pos__": None, "__eq__": None})(7), 7),
        (type("S", (str,), {"__str__": None})("x"), "x"),
        (type("D", (dict,), {"items": None})({1: 2}), {1: 2}),
        (type("T", (tuple,), {"__iter__": None})((1,)), (1,)),
        (type("Z", (set,), {"__iter__": None})({1}), {1}),
        (type("F", (float,), {"__pos__": None})(0.5), 0.5),
        (type("B", (bytes,), {"hex": None})(b"x"), b"x"),
        (type("C", (complex,), {"real": 5, "__pos__": None})(1j), 1j),
    ],
)
def test_subclasses_count_as_what_they_extend(value: Any, plain: Any) -> None:
    arrived = across(value)
    assert type(arrived) is type(plain) and arrived == plain


def test_what_is_not_plain_is_handed_to_other() -> None:
    for value in (object(), iter([]), print, json, type("A", (), {}), memoryview(b""), NotImplemented):
        with pytest.raises(NotPlain):
            across([value])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.floats()
    | st.sampled_from(["l", "t", "s", "z", "d", "B", "i", "c", "u", "b", "r", "T", "e", "o", "ff", "int", "0x1", "q"])
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=25,
)
CONTAINER = st.tuples(st.sampled_from("ltszdBq"), st.lists(JSON | st.integers(-2, 6).map(lambda n: [n]), max_size=4))


@settings(max_examples=150, deadline=None)
@given(JSON | st.lists(CONTAINER, max_size=6), JSON | st.integers(-2, 6).map(lambda n: [n]))
def test_any_message_is_a_value_or_refused(containers: Any, item: Any) -> None:
    try:
        decoder = Decoder(containers, lambda rest: str(rest[0]), {0: [1], 1: {2: 3}, 2: set(), 3: bytearray(b"x")})
        Encoder(not_plain).item(decoder.value(item))
    except NotPlain:
        pass


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_message_or_refused(given: bytes, framed: bool) -> None:
    try:
        receive(io.BytesIO(struct.pack("<I", len(given)) + given if framed else given).read)
    except (NotPlain, Closed):
        pass


@pytest.mark.parametrize(
    "text", [b"[" * 10**6, b"9" * 10**6, b"\xff\xfe", b"", b"{", b'"\\ud800', b"[1,]", b"NaN1", b"\0" * 9]
)
def test_messages_that_are_none(text: bytes) -> None:
    with pytest.raises(NotPlain):
        receive(io.BytesIO(struct.pack("<I", len(text)) + text).read)


def test_messages_that_are_too_long() -> None:
    with pytest.raises(NotPlain):
        receive(io.BytesIO(struct.pack("<I", MAX_FRAME_BYTES + 1)).read)
    with pytest.raises(NotPlain):
        send(len, "x" * MAX_FRAME_BYTES)
    with pytest.raises(Closed):
        receive(io.BytesIO(b"\1\0").read)
