"""How two texts are compared for shared wording.

The script that prepares the shipped hashes and the tests that use them must cut and hash texts in exactly the same way,
or a copied sentence would slip through unnoticed. Both take these functions.
"""

import hashlib
import re
from collections.abc import Sequence

RUN_LENGTH = 8

_WORD = re.compile(r"[^\W_]+")


def normalise(text: str) -> list[str]:
    """Return the words of `text` in lower case without punctuation, so that only wording counts and not its dress."""
    return _WORD.findall(text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of `n` consecutive words; a text of fewer than `n` words has none."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def digest(words: Sequence[str]) -> str:
    """Return the first 8 bytes of the SHA-256 of `words` as 16 hex digits.

    Eight bytes keep the shipped list small, and with some ten thousand entries a chance hit is out of the question.
    """
    return hashlib.sha256(" ".join(words).encode("utf-8")).hexdigest()[:16]


def fingerprints(text: str, n: int = RUN_LENGTH) -> set[str]:
    """Return the digests that stand for `text`: one per run of `n` words, or one for all of it if it is shorter.

    Short texts need the second form, because they could otherwise be copied whole without sharing any run.
    """
    words = normalise(text)
    return {digest(run) for run in ngrams(words, n) or [tuple(words)]}
