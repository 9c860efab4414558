"""The tests of the awkward repository: path -> text."""

from __future__ import annotations

TESTS = {
    "tests/conftest.py": '''\
"""Changes the world when it is imported."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
os.environ["LARDER_CURRENCY"] = "CHF"
sys.path.insert(0, str(HERE / "helpers"))
(HERE / "conftest_ran.txt").write_text("yes")

import pytest
from larder import state


@pytest.fixture(autouse=True)
def _clean_registry():
    yield
    state.REGISTRY.clear()


@pytest.fixture
def stock():
    return {"apple": 2}


@pytest.fixture(scope="module")
def first_stock():
    return state.default_stock()
''',
    "tests/helpers/helping.py": "def doubled(number):\n    twice = number + number\n    return twice\n",
    "tests/test_text.py": """\
import pytest
from larder import slug, wrap
from larder.old import greet
from larder.text import count_words, fill, join_all, shout
from larder.windows import line_ends


@pytest.mark.parametrize(
    "title, wanted",
    [("Red Apples", "red-apples"), (" a  B!", "a-b"), ("x::y[1]", "x-y-1"), ("--", ""), ("Äpfel 2", "pfel-2")],
    ids=["plain", "with blanks", "a::b[c]", "", "Äpfel/ü"],
)
def test_slug(title, wanted):
    assert slug(title) == wanted


class TestWrap:
    def setup_method(self):
        self.text = "one two three four"

    def test_breaks(self):
        assert wrap(self.text, 9) == ["one two", "three", "four"]

    def test_indents(self):
        assert wrap(self.text, 9, indent="  ") == ["  one two", "  three", "  four"]

    def test_nothing(self):
        assert wrap("", 9) == []

    @pytest.mark.parametrize("width", [0, -1])
    def test_refuses(self, width):
        with pytest.raises(ValueError, match=f"width of {width}"):
            wrap(self.text, width)


def test_counts():
    assert count_words("a B b") == {"a": 1, "b": 2}
    assert count_words("") == {}


def test_joins():
    assert join_all(1, "b", z=2, a=None) == "1, b, a=None, z=2"
    assert join_all("x", "y", sep="/") == "x/y"


def test_shouts():
    assert shout("a") == "A"


def test_fills():
    assert fill("a b", 1) == "a\\nb"


def test_other_encodings_and_line_ends():
    assert greet("Eva") == "Grüß Eva"
    assert greet("") == "Grüß "
    assert line_ends("a\\nb") == "a\\r\\nb\\r\\n"
    assert line_ends("") == ""
""",
    "tests/test_numbers.py": """\
import unittest

import pytest
from helping import doubled
from larder import numbers
from larder.even import is_even
from larder.odd import is_odd


class WithSets(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.left = [1, 2, 3]

    def setUp(self):
        self.right = [2, 3, 4]

    def test_shared(self):
        self.assertEqual(numbers.shared(self.left, self.right), {2, 3})
        self.assertEqual(numbers.shared([], self.right), set())

    def test_bounds(self):
        for values, wanted in (([3, 1, 2], (1, 3)), ([], None)):
            with self.subTest(values=values):
                self.assertEqual(numbers.bounds(values), wanted)


@pytest.mark.parametrize("a", [12, -12])
@pytest.mark.parametrize("b, wanted", [(18, 6), (0, 12), (5, 1)])
def test_gcd(a, b, wanted):
    assert numbers.gcd_of(a, b) == wanted


def test_squares():
    assert numbers.SQUARES == [0, 1, 4, 9, 16, 25]
    assert numbers.first_squares(2) == [0, 1]


def test_running():
    sums = numbers.running(iter([1, 2, 3]))
    assert next(sums) == 1
    assert list(sums) == [3, 6]


def test_counter():
    bump = numbers.make_counter(3)
    assert [bump(), bump()] == [3, 6]
    assert numbers.make_counter()() == 1


def test_as_number():
    assert numbers.as_number("1,5") == pytest.approx(1.5)
    assert numbers.as_number(7) == 7
    with pytest.raises(ValueError):
        numbers.as_number("x")


def test_sorts_that_list():
    values = [1, 3, 2]
    assert numbers.sort_in_place(values) is values
    assert values == [3, 2, 1]


def test_apply_twice():
    assert numbers.apply_twice(doubled, 3) == 12
    assert numbers.apply_twice(lambda text: text + "!", "a") == "a!!"


def test_remembers():
    before = numbers.remember("a")
    assert numbers.remember("b") == before + 1


def test_average_gives_something():
    assert numbers.average([2, 4]) is not None


def test_clamp_runs():
    numbers.clamp(3)
    numbers.clamp(-3)
    numbers.clamp(30)


def test_broken_median():
    assert numbers.broken_median([1, 2, 3]) == 2


@pytest.mark.skip(reason="not now")
def test_skipped():
    assert numbers.only_skipped([1, 5]) == 4


@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert numbers.only_expected_to_fail([1, 2]) == 3


@pytest.mark.parametrize("number", [0, 1, -4, 7])
def test_even_and_odd(number):
    assert is_even(number) is (number % 2 == 0)
    assert is_odd(number) is (number % 2 == 1)
""",
    "tests/test_calls.py": """\
import asyncio
import os

import pytest
from larder import calls


def test_discount_is_logged():
    calls.CALLS.clear()
    assert calls.discount(200, percent=25) == 150
    assert calls.discount(99, 10) == 90
    assert calls.CALLS == ["discount", "discount"]
    assert calls.discount.__name__ == "discount"


def test_price_is_cached():
    calls.price_of.cache_clear()
    assert calls.price_of("bread") == calls.price_of("bread") == 250
    assert calls.price_of("milk") == 120
    assert calls.price_of.cache_info().hits == 1
    with pytest.raises(KeyError):
        calls.price_of("gold")


def test_in_folder(tmp_path):
    before = os.getcwd()
    with pytest.raises(LookupError), calls.in_folder(tmp_path) as folder:
        assert folder == tmp_path
        assert os.getcwd() == str(tmp_path.resolve())
        raise LookupError
    assert os.getcwd() == before


def test_gather():
    assert asyncio.run(calls.gather_prices(["milk", "apple"])) == [120, 30]
    assert asyncio.run(calls.gather_prices([])) == []


def test_ticks():
    async def all_of(source):
        return [each async for each in source]

    assert asyncio.run(all_of(calls.ticks(3, step=2))) == [0, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("values, wanted", [([1, 2], 3), ([], 0)])
def test_slow_sum(values, wanted):
    assert calls.slow_sum(values) == wanted
""",
    "tests/test_state.py": '''\
import pytest
from larder import LarderError, state


def test_registers():
    assert state.register("apple", int) is int
    assert state.REGISTRY == {"apple": int}


def test_registers_each_name_only_at_first():
    state.register("apple", int)
    with pytest.raises(LarderError, match="line 1: apple is taken"):
        state.register("apple", str)
    assert state.REGISTRY["apple"] is int


def test_currency_is_that_of_conftest():
    assert state.with_currency(1205) == "12.05 CHF"
    assert state.with_currency(30) == "0.30 CHF"


def test_read_price():
    assert state.read_price("2,5") == 2.5
    with pytest.raises(LarderError) as caught:
        state.read_price("much", 4)
    assert caught.value.line == 4
    assert isinstance(caught.value.__cause__, ValueError)


def test_add_missing(stock):
    assert state.add_missing(stock, ["apple", "milk"]) is None
    assert stock == {"apple": 2, "milk": 0}


def test_first_stock(first_stock):
    assert first_stock == {"apple": 5, "bread": 5}


def test_first_stock_is_small(first_stock):
    assert len(first_stock) == 2


def test_save(tmp_path, stock):
    path = tmp_path / "stock.txt"
    assert state.save(path, {"b": 1, **stock}) == 2
    assert path.read_text() == "apple 2\\nb 1"


def test_save_here():
    assert state.save_here("here.txt", "ab") == 4
    with open("here.txt") as file:
        assert file.read() == "abab"


def test_label(monkeypatch):
    monkeypatch.setattr(state, "today", lambda: "2020-02-02")
    monkeypatch.delenv("LARDER_SHELF", raising=False)
    assert state.label("jam") == "jam (2020-02-02, no shelf)"
    monkeypatch.setenv("LARDER_SHELF", "top")
    assert state.label("tea") == "tea (2020-02-02, top)"


def test_show(capsys, stock):
    state.show({**stock, "a": 10})
    assert capsys.readouterr().out == "       a: 10\\n   apple: 2\\n"


def test_log_line_runs():
    state.log_line(" x ")


@pytest.mark.parametrize("place", range(1, 13))
def test_tickets_in_order(place):
    """Passes in the order of the file alone."""
    assert state.next_ticket() == place


def test_roll():
    """Passes one time in fifty."""
    assert state.roll(50) == 7


def test_is_up():
    """Needs the network, and must not have it."""
    assert state.is_up("example.com")
''',
    "tests/test_items.py": """\
import pytest
from larder import Box, Crate, Item, LarderError, Tin

APPLES, JAM = Item("red_apple", 30, 2), Item("jam", 250)


def test_cost():
    assert APPLES.cost() == 60
    assert Item("nut", 5, 10).cost() == 45


def test_title():
    assert (APPLES.title, JAM.title) == ("Red Apple", "Jam")


@pytest.mark.parametrize("line, wanted", [("jam:250", JAM), ("red_apple:30:2", APPLES)])
def test_parse(line, wanted):
    assert Item.parse(line) == wanted


@pytest.mark.parametrize("line", ["jam", "_x:3", ":1"])
def test_parse_refuses(line):
    with pytest.raises(LarderError):
        Item.parse(line)


def test_is_name():
    assert [Item.is_name(text) for text in ("a", "a_b", "_a", "a1", "")] == [True, True, False, False, False]


class TestBox:
    @pytest.fixture
    def box(self):
        return Box([APPLES, JAM])

    def test_equal(self, box):
        assert box == Box([JAM, APPLES])
        assert box != Box([JAM])
        assert box != [APPLES, JAM]

    def test_length(self, box):
        assert len(box) == 3
        assert len(Box()) == 0

    def test_iterates(self, box):
        assert list(box) == ["red_apple", "red_apple", "jam"]

    def test_describes(self, box):
        assert box.describe() == "box of red_apple, jam"
        assert Crate([JAM]).describe() == "crate with a box of jam"

    def test_lid(self):
        assert Box.Lid(3).area() == 16


def test_seals():
    crate = Crate()
    assert [crate.seal() for _ in range(4)] == [1, 2, 3, 3]
    assert Crate().seal() == 1


def test_volume():
    assert Tin(2, 3).volume() == 6
    assert Tin(-2, 3).volume() == 0
""",
    "tests/tools/test_weights.py": """\
import pytest
from larder_tools.weights import to_grams


def test_to_grams():
    assert to_grams(2) == 2
    assert to_grams(1.5, "kg") == 1500
    with pytest.raises(KeyError):
        to_grams(1, "stone")
""",
}
