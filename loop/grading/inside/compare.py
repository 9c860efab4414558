"""How an answer is compared with the one that is wanted: LiveCodeBench's rules for output, EvalPlus' for its oracles."""

from __future__ import annotations

import math

from loop.grading.inside.remote import holds_handles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's comparison: line by line, blanks at the ends ignored, decimals equal when both lines are numbers."""
    lines, wanted = _stripped(output), _stripped(expected)
    return len(lines) == len(wanted) and all(
        line == other or _same_decimals(line, other) for line, other in zip(lines, wanted, strict=True)
    )


def _stripped(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_decimals(line: str, other: str) -> bool:
    from decimal import Decimal, InvalidOperation  # here: each library that is loaded makes each fork slower

    words, wanted = line.split(), other.split()
    if len(words) != len(wanted) or max(map(len, words + wanted), default=0) > 4000:
        return False
    try:
        return all(Decimal(word) == Decimal(target) for word, target in zip(words, wanted, strict=True))
    except InvalidOperation:
        return False


def is_right(oracle: str, value: Any, wanted: Any, arguments: Any, atol: float) -> bool:
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
    elif holds_handles(value):
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


def is_floats(value: Any) -> bool:
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
