"""Compares an answer with the wanted one, by LiveCodeBench's rules for output and EvalPlus' rules for its oracles."""

from __future__ import annotations

import math
from typing import Any

from loop.grading.inside.remote import holds_handles


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's comparison: line by line, blanks at the ends ignored, decimals equal when both lines are numbers."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    same = (line == other or _same_decimals(line, other) for line, other in zip(lines, wanted, strict=True))
    return len(lines) == len(wanted) and all(same)


def _same_decimals(line: str, other: str) -> bool:
    from decimal import Decimal, InvalidOperation  # imported late: each library makes each fork slower

    words, wanted = line.split(), other.split()
    if len(words) != len(wanted) or max(map(len, words + wanted), default=0) > 4000:
        return False
    try:
        return all(Decimal(word) == Decimal(target) for word, target in zip(words, wanted, strict=True))
    except InvalidOperation:
        return False


def is_right(oracle: str, value: Any, wanted: Any, arguments: Any, atol: float) -> bool:
    """Whether the oracle accepts this value. `arguments` are those of the suite, whatever the solution did to its copy."""
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
    parts = value if type(value) in (list, tuple) else [value]
    return len(parts) > 0 and all(type(part) is float for part in parts)


def _is_number(value: Any) -> bool:
    """Whether NumPy's arrays of numbers can hold it. A bigger one makes an array of objects, which are never close."""
    return type(value) in (bool, float, complex) or (type(value) is int and -(1 << 63) <= value < 1 << 64)


def _is_close(value: Any, wanted: Any, atol: float) -> bool:
    """NumPy's allclose with rtol 1e-7, for numbers and for evenly nested lists of them. Shapes must be the same."""
    if _shape(wanted) is None:
        return False
    waiting = [(value, wanted)]
    while waiting:
        part, target = waiting.pop()
        if type(target) in (list, tuple):
            if type(part) not in (list, tuple) or len(part) != len(target):
                return False
            waiting += zip(part, target, strict=True)
        elif not _is_number(part):
            return False
        elif part != target:
            part, target = (number if type(number) is complex else float(number) for number in (part, target))
            if not (math.isfinite(abs(target)) and abs(part - target) <= atol + 1e-7 * abs(target)):
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
    """HumanEval/32 accepts any root of the polynomial."""
    try:
        return bool(abs(sum(factor * math.pow(x, power) for power, factor in enumerate(coefficients))) <= atol)
    except (TypeError, ValueError, OverflowError):
        return False


def _surface_area(base_edge: float, height: float) -> int:
    """The answer to Mbpp/581 if the height is not taken as the slanted one."""
    return round(base_edge**2 + 2 * base_edge * math.sqrt((base_edge / 2) ** 2 + height**2))


def _digit_distance(number: Any, other: Any) -> int:
    """The answer to Mbpp/558 if the shorter number gets zeros in front."""
    size = max(len(str(number)), len(str(other)))
    return sum(abs(int(a) - int(b)) for a, b in zip(str(number).zfill(size), str(other).zfill(size), strict=True))
