"""The package `larder` of the awkward repository: path -> text."""

from __future__ import annotations

SOURCES = {
    "src/larder/__init__.py": """\
\"\"\"What is in the larder.\"\"\"

from larder.items import Box, Crate, Item, Tin
from .errors import LarderError
from .text import slug, wrap_words as wrap

__all__ = ["Box", "Crate", "Item", "LarderError", "Tin", "slug", "wrap"]
""",
    "src/larder/errors.py": """\
class LarderError(Exception):
    def __init__(self, what, line=0):
        super().__init__(f"line {line}: {what}")
        self.line = line
""",
    "src/larder/prices.txt": "apple 30\nbread 250\nmilk 120\n",
    "src/larder/text.py": '''\
"""Texts."""

import re
import textwrap


def _tidy(word):
    word = word.strip().lower()
    return re.sub(r"[^a-z0-9]+", "-", word)


def slug(title: str) -> str:
    """A title as a part of an address: "Big Red Apples!" is "big-red-apples"."""
    words = _tidy(title).split("-")
    return "-".join(word for word in words if word)


def wrap_words(text, /, width, *, indent=""):
    """The lines of a text, each at most `width` characters; the indent counts."""
    if width < 1:
        raise ValueError(f"a width of {width} holds no word")
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + len(line) + 1 + len(word) > width:
            lines.append(indent + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return lines + [indent + line] if line else lines


def count_words(text: str) -> dict:
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def join_all(*parts, sep=", ", **named):
    """The parts, then "name=value" for each named one, in the order of the names."""
    texts = [str(part) for part in parts]
    texts += [f"{name}={named[name]}" for name in sorted(named)]
    return sep.join(texts)


def shout(text):
    return text.upper()


def initials(name):
    """The initials.

    >>> initials("Ada Lovelace")
    'AL'
    """
    words = name.split()
    return "".join(word[0] for word in words)


def fill(text, width=70):
    return textwrap.fill(text, width)
''',
    "src/larder/numbers.py": '''\
from typing import overload


def gcd_of(a: int, b: int) -> int:
    if b == 0:
        return abs(a)
    return gcd_of(b, a % b)


def first_squares(count):
    """Used while the module is imported."""
    squares = []
    for number in range(count):
        squares.append(number * number)
    return squares


SQUARES = first_squares(6)


def running(values):
    """The sums so far, one by one."""
    total = 0
    for value in values:
        total += value
        yield total


def make_counter(step=1):
    """A function that counts on by `step` with each call."""
    count = 0

    def bump():
        nonlocal count
        count += step
        return count

    return bump


@overload
def as_number(text: int) -> int: ...
@overload
def as_number(text: str) -> float: ...
def as_number(text):
    if isinstance(text, int):
        return text
    return float(text.replace(",", "."))


def bounds(values):
    """(smallest, largest); None for no values."""
    ordered = sorted(values)
    return (ordered[0], ordered[-1]) if ordered else None


def shared(left, right) -> set:
    both = set(left)
    return both & set(right)


def sort_in_place(values):
    """Sorts the list and returns that same list."""
    values.sort(reverse=True)
    return values


def apply_twice(function, value):
    once = function(value)
    return function(once)


def remember(entry, seen=[]):
    """How many entries were given so far, in all calls together."""
    seen.append(entry)
    return len(seen)


def average(values):
    total = sum(values)
    return total / len(values)


def clamp(value, low=0, high=10):
    if value < low:
        return low
    return min(value, high)


def broken_median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2 + 1]


def only_skipped(values):
    total = max(values)
    return total - min(values)


def only_expected_to_fail(values):
    total = 1
    for value in values:
        total += value
    return total
''',
    "src/larder/calls.py": '''\
"""Decorated functions, async ones and slow ones."""

import asyncio
import functools
import os
import time
from contextlib import contextmanager
from pathlib import Path

CALLS = []


def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        CALLS.append(function.__name__)
        return function(*args, **kwargs)

    return inner


@logged
def discount(price, percent):
    cut = price * percent // 100
    return price - cut


@functools.lru_cache(maxsize=None)
def price_of(name):
    """The price in prices.txt, beside this module."""
    for line in (Path(__file__).parent / "prices.txt").read_text().splitlines():
        key, price = line.split()
        if key == name:
            return int(price)
    raise KeyError(name)


@contextmanager
def in_folder(folder):
    """Within it the working directory is `folder`."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


async def gather_prices(names):
    """The prices of the names, asked for at the same time."""

    async def ask(name):
        await asyncio.sleep(0)
        return price_of(name)

    return await asyncio.gather(*(ask(name) for name in names))


async def ticks(count, step=1):
    for number in range(count):
        await asyncio.sleep(0)
        yield number * step


def slow_sum(values):
    total = 0
    for value in values:
        total += value
    time.sleep(0.2)
    return total
''',
    "src/larder/state.py": '''\
"""What changes something outside of the function."""

import datetime
import os
import random
import socket
from pathlib import Path

from . import numbers
from .errors import LarderError

CURRENCY = os.environ.get("LARDER_CURRENCY", "EUR")
REGISTRY = {}
_ticket = 0


def register(name, maker):
    """Puts the maker into the registry. A name can be taken once."""
    if name in REGISTRY:
        raise LarderError(f"{name} is taken", line=len(REGISTRY))
    REGISTRY[name] = maker
    return maker


def with_currency(amount):
    whole, rest = divmod(amount, 100)
    return f"{whole}.{rest:02d} {CURRENCY}"


def read_price(text, line=1):
    try:
        return numbers.as_number(text)
    except ValueError as error:
        raise LarderError(f"no price: {text}", line) from error


def add_missing(stock: dict, names: list) -> None:
    """Puts a 0 into the stock for each name that it lacks."""
    for name in names:
        if name not in stock:
            stock[name] = 0


def default_stock():
    names = ["apple", "bread"]
    return {name: len(name) for name in names}


def save(path, stock):
    lines = [f"{name} {count}" for name, count in sorted(stock.items())]
    path.write_text("\\n".join(lines))
    return len(lines)


def save_here(name, text):
    """Writes into the working directory."""
    with open(name, "w") as file:
        return file.write(text * 2)


def today():
    return datetime.date.today().isoformat()


def label(name):
    day = today()
    return f"{name} ({day}, {os.environ.get('LARDER_SHELF', 'no shelf')})"


def show(stock):
    for name in sorted(stock):
        print(f"{name:>8}: {stock[name]}")


def log_line(text):
    line = text.strip()
    return f"[log] {line}"


def next_ticket():
    global _ticket
    _ticket += 1
    return _ticket


def roll(sides):
    number = random.randrange(sides)
    return number + 1


def is_up(host, port=80):
    with socket.create_connection((host, port), timeout=3):
        return True


def never_called(a, b):
    both = a + b
    return both * 2
''',
    "src/larder/items.py": '''\
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from .errors import LarderError


@dataclass(frozen=True)
class Item:
    name: str
    price: int
    count: int = 1

    def cost(self) -> int:
        cost = self.price * self.count
        return cost - cost // 10 if self.count >= 10 else cost

    @property
    def title(self) -> str:
        words = self.name.split("_")
        return " ".join(word.capitalize() for word in words)

    @classmethod
    def parse(cls, line: str) -> Item:
        """An item of "name:price:count"; the count may be left away."""
        name, *numbers = line.split(":")
        if not numbers or not cls.is_name(name):
            raise LarderError(line)
        return cls(name, *map(int, numbers))

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether the text has letters and underscores alone, and a letter first."""
        letters = text.replace("_", "a")
        return letters.isalpha() and not text.startswith("_")


@dataclass(eq=False)
class Box:
    items: list = field(default_factory=list)

    def __eq__(self, other):
        if not isinstance(other, Box):
            return NotImplemented
        return sorted(i.name for i in self.items) == sorted(i.name for i in other.items)

    def __len__(self):
        length = 0
        for item in self.items:
            length += item.count
        return length

    def __iter__(self):
        for item in self.items:
            yield from [item.name] * item.count

    def describe(self) -> str:
        names = [item.name for item in self.items]
        return "box of " + ", ".join(names)

    class Lid:
        def __init__(self, side):
            self.side = side

        def area(self):
            side = self.side + 1
            return side * side


class Crate(Box):
    __seals = 0

    def describe(self) -> str:
        inner = super().describe()
        return f"crate with a {inner}"

    def seal(self) -> int:
        """Puts a seal on and says how many it has; at most three."""
        if self.__seals < 3:
            self.__seals += 1
        return self.__seals


class Shape(ABC):
    @abstractmethod
    def volume(self): ...


class Tin(Shape):
    def __init__(self, base, height):
        self.base, self.height = base, height

    def volume(self):
        volume = self.base * self.height
        return max(volume, 0)
''',
    "src/larder/even.py": '''\
"""`even` and `odd` import each other."""

from . import odd


def is_even(number):
    if number == 0:
        return True
    return odd.is_odd(abs(number) - 1)
''',
    "src/larder/odd.py": """\
from larder import even


def is_odd(number):
    if number == 0:
        return False
    return even.is_even(abs(number) - 1)
""",
    "src/larder_tools/weights.py": '''\
"""A package without __init__.py."""

UNITS = {"g": 1, "kg": 1000, "lb": 454}


def to_grams(amount: float, unit: str = "g") -> float:
    factor = UNITS[unit]
    return amount * factor
''',
    "src/larder/old.py": '# -*- coding: latin-1 -*-\ndef greet(name):\n    word = "Grüß"\n    return f"{word} {name}"\n',
    "src/larder/windows.py": 'def line_ends(text):\r\n    """Each line ends in one way."""\r\n'
    '    lines = text.splitlines()\r\n    return "".join(line + "\\r\\n" for line in lines)\r\n',
}
