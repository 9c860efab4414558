"""`loopctl logs`: what the daemon wrote down, from its rotated files of JSON lines.

Messages may carry what a model or a library wrote: they are shown, never obeyed. A line that is no JSON object is shown
as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from loop.cli.options import shared_options, the_call
from loop.words import safe, warn

if TYPE_CHECKING:
    from store.records import Json

LOG_FILE = "loopd.log"  # the older ones end in .1, .2 and so on
NO_LOG = 3
LOOK_S = 0.25
BLOCK_BYTES = 1 << 16
EMPTY = "no log in {} yet; `loopctl start` starts the daemon, which writes one"


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=20, metavar="N", show_default=True, help="The newest N lines."
)
@shared_options
@click.pass_context
def logs_command(context: click.Context, follow: bool, lines: int) -> None:
    """The daemon's log: time (UTC), level if it is not info, round and stage, message. With --json the lines as they are.

    Exit code 3 if there is no log yet; with -f it is waited for.

    \b
    Examples:
      loopctl logs
      loopctl logs --follow          # until Ctrl-C
    """
    directory = the_call().place().run_dir / "logs"
    there = (directory / LOG_FILE).exists() or (directory / f"{LOG_FILE}.1").exists()
    show = _as_json if the_call().json else _for_people
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if not there:
            warn(EMPTY.format(safe(directory)))
            if not follow:
                context.exit(NO_LOG)
        file = _opened(directory)
        if file is not None:
            stack.callback(file.close)
        for line in _newest(directory, file, lines):
            show(line)
        sys.stdout.flush()
        if follow:
            _follow(directory, file, show)


def _opened(directory: Path) -> IO[bytes] | None:
    try:
        return (directory / LOG_FILE).open("rb")
    except FileNotFoundError:  # in the middle of a rotation, too
        return None


# What is there


def _newest(directory: Path, file: IO[bytes] | None, num: int) -> list[bytes]:
    """The newest lines over all files, oldest first. Leaves the file behind the last whole line."""
    lines: deque[bytes] = deque()
    if file is not None:
        end = _whole(file)
        lines.extendleft(_backwards(file, end, num))
        file.seek(end)
    number = 1
    while len(lines) < num:
        try:
            with (directory / f"{LOG_FILE}.{number}").open("rb") as older:
                lines.extendleft(_backwards(older, os.fstat(older.fileno()).st_size, num - len(lines)))
        except FileNotFoundError:
            break
        number += 1
    return list(lines)


def _whole(file: IO[bytes]) -> int:
    """Where the last whole line of a file ends: what follows is being written."""
    end = os.fstat(file.fileno()).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        found = os.pread(file.fileno(), end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _backwards(file: IO[bytes], end: int, num: int) -> Iterator[bytes]:
    """At most so many lines before a place, the newest first, without reading the whole file."""
    rest = b""
    while end > 0 and num > 0:
        start = max(0, end - BLOCK_BYTES)
        rest = os.pread(file.fileno(), end - start, start) + rest
        end = start
        found = rest.removesuffix(b"\n").split(b"\n")
        whole = found if start == 0 else found[1:]
        yield from reversed(whole[-num:])
        num -= len(whole)
        rest = b"" if start == 0 else found[0] + b"\n"


# What comes


def _follow(directory: Path, file: IO[bytes] | None, show: Callable[[bytes], None]) -> None:
    """Show whole lines as they come, into whichever file they are written; forever."""
    rest = b""
    while True:
        if file is None:
            file = _opened(directory)
        if file is not None:
            rest = _shown(file, rest, show)
            if _left_behind(directory, file):
                rest = _shown(file, rest, show)  # what came in between
                if rest:
                    show(rest)
                file.close()
                file, rest = _opened(directory), b""
                continue
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # it was emptied
                rest = b""
                continue
        time.sleep(LOOK_S)


def _shown(file: IO[bytes], rest: bytes, show: Callable[[bytes], None]) -> bytes:
    """Show the whole lines up to the file's present end; what remains is the beginning of one."""
    *lines, rest = (rest + file.read()).split(b"\n")
    for line in lines:
        show(line)
    if lines:
        sys.stdout.flush()
    return rest


def _left_behind(directory: Path, file: IO[bytes]) -> bool:
    """Whether another file has the log's name now."""
    try:
        return not os.path.samestat(os.stat(directory / LOG_FILE), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False  # until there is one


# One line


def _entry(line: bytes) -> Json | None:
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line)
        if isinstance(entry, dict):
            return entry
    return None


def _as_json(line: bytes) -> None:
    """ASCII, so that nothing in it can move a cursor; a damaged line under a key of its own."""
    if line.strip():
        entry = _entry(line)
        value = {"damaged": line.decode(errors="replace")} if entry is None else entry
        sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")


def _for_people(line: bytes) -> None:
    if line.strip():
        entry = _entry(line)
        text = safe(line.decode(errors="replace")) if entry is None else in_words(entry)
        sys.stdout.write(f"{text}\n")


def in_words(entry: Json) -> str:
    """2026-01-01 08:06:14  warning  round 3, training: what happened"""
    at = safe(entry.get("time") or "-").replace("T", " ")
    level, message = entry.get("level"), safe(entry.get("message") or "")
    parts = [at.partition(".")[0].removesuffix("Z")]
    if level not in (None, "info"):
        parts.append(safe(level))
    stage = safe(entry.get("stage") or "")
    where = [f"round {safe(entry['round'])}"] if entry.get("round") else []
    where += [stage] if stage and not message.startswith(f"{stage}:") else []
    parts.append(f"{', '.join(where)}: {message}" if where else message)
    return "  ".join(parts)
