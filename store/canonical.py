"""One way of writing a value down, so that equal values have equal hashes; and text that SQLite can hold.

Canonical JSON: keys sorted, no spaces, no NaN or infinity, characters as they are; hashed as UTF-8 (a lone surrogate as
the three bytes that UTF-8 would give it). SQLite's text functions stop at NUL, and a lone surrogate has no UTF-8, so
both are stored escaped: U+241B (the symbol for escape) and four hex digits. That symbol itself is stored as its own
escape. All other text is stored as it is, and `unescape(escape(text)) == text` for every Python string.
"""

from __future__ import annotations

import hashlib
import json
import re
from json import encoder
from typing import Any

_MARK = "\u241b"
_UNSAFE = re.compile("[\0\u241b\ud800-\udfff]")
_ESCAPED = re.compile("\u241b([0-9a-f]{4})")
# Canonical JSON of a value whose keys are strings already, in half the time.
compact_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
quoted = encoder.encode_basestring  # a string as canonical JSON


def canonical_json(value: Any) -> str:
    """Canonical JSON of anything that JSON can say; ValueError or TypeError for the rest (NaN, sets, objects)."""
    return compact_json(json.loads(compact_json(value)))  # keys that were not strings sort differently once they are


def sha256_of(value: Any) -> str:
    """The SHA-256 of the value's canonical JSON, in hex."""
    return sha256_of_text(canonical_json(value))


def sha256_of_text(text: str) -> str:
    """The SHA-256 of the text's UTF-8, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def escape(text: str) -> str:
    """The text as SQLite stores it."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSAFE.sub(lambda match: f"{_MARK}{ord(match[0]):04x}", text)


def unescape(stored: str) -> str:
    """The text that `escape` was given."""
    if stored.isascii():
        return stored
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), stored)
