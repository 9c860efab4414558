"""How two texts are compared for shared wording.

The script that prepares the shipped hashes and the tests that use them must cut and hash texts in exactly the same way, or a
copied sentence would slip through unnoticed.
"""

import hashlib
import re

RUN_LENGTH = 8


def fingerprints(text: str, n: int = RUN_LENGTH) -> set[str]:
    """The first 8 bytes of the SHA-256, as hex digits, of every run of `n` words; of all of a text that is shorter.

    The words are in lower case and without punctuation. Eight bytes keep the shipped list small, and with some ten thousand
    entries a chance hit is out of the question.
    """
    words = re.findall(r"[^\W_]+", text.lower())
    runs = [words[start : start + n] for start in range(len(words) - n + 1)] or [words]
    return {hashlib.sha256(" ".join(run).encode()).hexdigest()[:16] for run in runs}
