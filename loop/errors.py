"""What can go wrong, by the exit code that it ends in (sysexits.h where that has one), and foreign text in a message."""

from __future__ import annotations

import errno
import json
from typing import Any

from store.errors import CannotWrite

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class LoopError(Exception):
    """A failure with a one-line message for the user: the thing, the value, the place, the remedy."""

    exit_code = 1


class UsageError(LoopError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class LockedError(LoopError):
    """Another process holds the run."""

    exit_code = 75


class PermissionDenied(LoopError):
    """A file or directory cannot be read or written."""

    exit_code = 77


class ConfigError(LoopError):
    """loop.toml, or a file that it names, is wrong. May carry several lines, one per mistake."""

    exit_code = 78


class EngineError(LoopError):
    """An engine or its worker process failed: the stage failed, nothing is known about the model."""


class StalledError(EngineError):
    """A worker made no progress for too long and was ended."""


class HarnessError(LoopError):
    """Grading itself failed: the stage failed, nothing is known about the solutions."""


class NoRoom(LoopError):
    """The disk is full or cannot be written. Nothing is lost; what was being done goes on when it can be."""


def is_no_room(error: BaseException) -> bool:
    """Whether it, or what it was raised from, says that nothing more can be written; also in a worker's words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoRoom | CannotWrite):
            return True
        if isinstance(seen, OSError) and seen.errno in NO_ROOM:
            return True
        if isinstance(seen, EngineError) and ("No space left on device" in str(seen) or "os error 28" in str(seen)):
            return True
        seen = seen.__cause__
    return False


def printable(text: str, *, lines: bool = False) -> str:
    """The text with every character that does not print as itself shown as its escape; with `lines`, newlines stay.

    That is control characters, bidirectional and other format characters, lone surrogates, odd spaces.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (lines and character == "\n") else ascii(character)[1:-1]
        for character in text
    )


def shown(value: Any) -> str:
    """A value of a TOML file in one short line that is safe in a terminal."""
    text = repr(value) if isinstance(value, float) else printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."
