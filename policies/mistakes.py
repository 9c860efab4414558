"""One line out of a pydantic ValidationError: where the first mistake is, and what it is.

Used for evidence files and for the policies in loop.toml. It does not know about files or line numbers.
"""

from __future__ import annotations

import reprlib

from pydantic import ValidationError

Path = tuple[str | int, ...]


def shown(value: object) -> str:
    """A short form of a stranger's value that is safe in a terminal (repr escapes control characters)."""
    return reprlib.repr(value)


def dotted(path: Path) -> str:
    """("decide", "gates", 0, "power") as "decide.gates[0].power"; odd keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if part.isprintable() and len(part) <= 80 else shown(part))
    return text


def first_mistake(error: ValidationError) -> tuple[Path, str]:
    """Path and problem of the first mistake, the problem in one line without the path."""
    details = error.errors(include_url=False)[0]
    path: Path = tuple(
        part for part in details["loc"] if part != "[key]"
    )  # pydantic's mark of a mistake in a key itself
    if details["type"] == "missing":
        return path, "is missing"
    if details["type"] == "extra_forbidden":
        return path, "unknown key"
    own = details.get("ctx", {}).get("error")
    if isinstance(own, ValueError):  # raised by a validator of ours: the message is complete
        return path, str(own)
    message = details["msg"].splitlines()[0]
    return path, f"{message[:1].lower()}{message[1:]}, got {shown(details['input'])}"
