"""The one line that an error is told in, and the exit code that a program then ends with."""

from __future__ import annotations

import errno
import os

import click

from loop.errors import LoopError
from store.errors import NoStore, NotAStore, StoreError, StoreTooNew


def version() -> str:
    """The version that is installed."""
    from importlib import metadata  # a command that only looks does not wait for it

    try:
        return metadata.version("ssd-loop")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def explained(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line for an error that ended a command."""
    if isinstance(error, LoopError):
        return error.exit_code, str(error)
    if isinstance(error, click.ClickException):
        return error.exit_code, _usage(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return getattr(error, "exit_code", 130), "interrupted; `loopctl run` goes on where it was"
    if isinstance(error, PermissionError):
        return 77, f"{_file(error)}permission denied; use a place that this user can read and write"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, f"{_file(error)}the disk is full; free some space and run it again: it goes on where it was"
    if isinstance(error, FileNotFoundError):
        return 1, f"{_file(error)}no such file or directory; check the name"
    if isinstance(error, IsADirectoryError):
        return 1, f"{_file(error)}is a directory; name a file"
    if isinstance(error, OSError):
        return 1, f"{_file(error)}{error.strerror or error}"
    if isinstance(error, NoStore):
        return 1, f"no run in {os.path.dirname(str(error).partition(': ')[0])} yet; start one with `loopctl run`"
    if isinstance(error, NotAStore):
        return 1, f"{error}; restore a backup, or set another run_dir"
    if isinstance(error, StoreError):
        return (78 if isinstance(error, StoreTooNew) else 1), str(error)
    text = " ".join(str(error).split())
    hint = "this is a bug in the loop; LOOP_TRACEBACK=1 shows where"
    return 1, f"{type(error).__name__}: {text}; {hint}" if text else f"{type(error).__name__}; {hint}"


def _usage(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    context: click.Context | None = getattr(error, "ctx", None)
    return f"{text}; see `{context.command_path if context else 'loopctl'} --help`"


def _file(error: OSError) -> str:
    return f"{error.filename or repr('')}: " if error.filename is not None else ""
