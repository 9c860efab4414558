"""What can go wrong, by the exit code that a program then ends with (from sysexits.h where that has one)."""

from __future__ import annotations


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


class LostEngine(EngineError):
    """What an engine asks elsewhere is gone, or of no use any more: the engine is, too, and the work is not at fault."""


class StalledError(EngineError):
    """A worker made no progress for too long, so its process was ended."""


class LeftTraining(LoopError):
    """A training was asked to end and has saved its state. No failure: it continues from there when it is asked for again."""


class HarnessError(LoopError):
    """Grading itself failed: the stage failed, nothing is known about the solutions."""


class NoRoom(LoopError):
    """The disk is full or cannot be written. Nothing is lost; the work continues once there is room."""
