"""The little repository `shop`, whose function `total` the bodies of hostile_bodies.py stand in; and its honest bodies."""

from __future__ import annotations

import hashlib
import py_compile
import textwrap
import zlib
from pathlib import Path

SIGNATURE = "def total(prices: list[int], discount: float = 0.0) -> float:"
CART = f'''\
"""What a customer pays."""

{SIGNATURE}
    """The sum of the prices in cents, less the discount (0.1 is 10%), rounded to cents. ValueError outside of 0 to 1."""
    if not 0 <= discount <= 1:
        raise ValueError(f"a discount of {{discount}} is not between 0 and 1")
    return round(sum(prices) * (1 - discount), 2)


def receipt(prices: list[int], discount: float = 0.0) -> str:
    return f"{{len(prices)}} items: {{total(prices, discount):.2f}}"
'''
SHOP: dict[str, str] = {
    "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\n\n[tool.pytest.ini_options]\npythonpath = ["."]\n',
    "shop/__init__.py": "from shop.cart import receipt, total\n",
    "shop/cart.py": CART,
    "tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef basket():\n    return [1250, 399]\n",
    "tests/test_cart.py": """\
import pytest
from shop import receipt, total


def test_total():
    assert total([199, 301, 7]) == 507.0
    assert total([1250, 399], 0.1) == 1484.1
    assert total([]) == 0.0


CASES = [
    ([640, 80], 0.5, 360.0),
    ([333, 333, 335], 0.25, 750.75),
    ([10007], 1.0, 0.0),
]


@pytest.mark.parametrize("prices, discount, wanted", CASES)
def test_discounts(prices, discount, wanted):
    assert total(prices, discount) == wanted


def test_with_a_tolerance(basket):
    assert total(basket, 0.3) == pytest.approx(1154.3)


def test_refuses():
    with pytest.raises(ValueError, match="a discount of 1.5"):
        total([1], 1.5)


def test_receipt():
    assert receipt([18, 24]) == "2 items: 42.00"
""",
    "build/lib/shop/cart.py": CART,
    ".venv/lib/python3.11/site-packages/shop/__init__.py": "",
    ".venv/lib/python3.11/site-packages/shop/cart.py": CART,
}


def write_shop(directory: Path) -> Path:
    """Writes SHOP to directory/shop_repository, with the byte code of cart.py and its source as an object of git."""
    root = directory / "shop_repository"
    for name, text in SHOP.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    py_compile.compile(str(root / "shop/cart.py"), doraise=True)
    blob = b"blob %d\0" % len(CART.encode()) + CART.encode()
    name = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    (root / ".git/objects" / name[:2]).mkdir(parents=True)
    (root / ".git/objects" / name[:2] / name[2:]).write_bytes(zlib.compress(blob))
    (root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    return root


def cart_with(body: str) -> str:
    """shop/cart.py with this body of `total`."""
    before, rest = CART.split(SIGNATURE)
    after = rest[rest.index("\n\n\ndef receipt") :]
    return f"{before}{SIGNATURE}\n{textwrap.indent(body.strip(), '    ')}{after}"


_REFUSE = 'if not 0 <= discount <= 1:\n    raise ValueError(f"a discount of {discount} is not between 0 and 1")\n'

HONEST: dict[str, str] = {
    "the original": _REFUSE + "return round(sum(prices) * (1 - discount), 2)",
    "a loop": _REFUSE
    + "amount = 0\nfor price in prices:\n    amount += price\nreturn round(amount * (1 - discount), 2)",
    "a generator": _REFUSE + "return round(sum(price * (1 - discount) for price in prices), 2)",
    "a helper within": (
        "def check(value):\n    if value < 0 or value > 1:\n        raise ValueError(f'a discount of {value} is too much')\n"
        "    return value\n\nreturn round(sum(prices) * (1 - check(discount)), 2)"
    ),
    "logging": "import logging\n\n"
    + _REFUSE
    + "logging.getLogger(__name__).debug('%d prices', len(prices))\nreturn round(sum(prices) * (1 - discount), 2)",
    "a warning that never comes": "import warnings\n\n"
    + _REFUSE
    + "if any(price < 0 for price in prices):\n    warnings.warn('a price is negative', stacklevel=2)\n"
    "return round(sum(prices) * (1 - discount), 2)",
    "try and except": _REFUSE
    + "try:\n    first, *rest = prices\nexcept ValueError:\n    return 0.0\n"
    + "return round((first + sum(rest)) * (1 - discount), 2)",
    "reduce": "from functools import reduce\nfrom operator import add\n\n"
    + _REFUSE
    + "return round(reduce(add, prices, 0) * (1 - discount), 2)",
    "itertools": "import itertools\n\n"
    + _REFUSE
    + "*_, last = itertools.accumulate(prices, initial=0)\nreturn round(last * (1 - discount), 2)",
    "Decimal": "from decimal import ROUND_HALF_EVEN, Decimal\n\n"
    + _REFUSE
    + "amount = Decimal(sum(prices)) * (1 - Decimal(str(discount)))\n"
    "return float(amount.quantize(Decimal('0.01'), rounding=ROUND_HALF_EVEN))",
    "recursion within": _REFUSE
    + "def add(rest):\n    return rest[0] + add(rest[1:]) if rest else 0\n\nreturn round(add(prices) * (1 - discount), 2)",
    "a text on the way": _REFUSE + "return float(f'{sum(prices) * (1 - discount):.2f}')",
    "match": "match discount:\n    case float() | int() if 0 <= discount <= 1:\n"
    "        return round(sum(prices) * (1 - discount), 2)\n"
    "    case _:\n        raise ValueError(f'a discount of {discount} is refused')",
    "a class within": "from dataclasses import dataclass\n\n"
    + _REFUSE
    + "@dataclass\nclass Sum:\n    amount: int = 0\n\n    def add(self, price):\n        self.amount += price\n\n"
    "whole = Sum()\nfor price in prices:\n    whole.add(price)\nreturn round(whole.amount * (1 - discount), 2)",
    "its own name": _REFUSE
    + "if discount:\n    return round(total(prices) * (1 - discount), 2)\nreturn float(sum(prices))",
    "prints": _REFUSE + "print('prices:', *prices)\nreturn round(sum(prices) * (1 - discount), 2)",
    "math": "import math\n\n" + _REFUSE + "return round(math.fsum(prices) * (1 - discount), 2)",
    "a numpy-free mean": "import statistics\n\n"
    + _REFUSE
    + "mean = statistics.fmean(prices) if prices else 0\nreturn round(mean * len(prices) * (1 - discount), 2)",
}
