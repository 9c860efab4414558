"""`loopctl logs` shows what the daemon wrote down, from its rotated files of JSON lines.

Messages may carry what a model or a library wrote: they are shown, never obeyed. A line that is no JSON object is shown
as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from loop.cli.options import command, the_call
from loop.words import safe, warn

if TYPE_CHECKING:
    from store.records import Json

LOG_FILE = "loopd.log"  # the older ones end in .1, .2 and so on; none of them is larger than a few MB
NO_LOG = 3
LOOK_S = 0.25
EMPTY = "no log in {} yet; `loopctl start` starts the daemon, which writes one"


@command("logs", "loopctl logs", "loopctl logs --follow          # until Ctrl-C")
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they are written, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=20, metavar="N", show_default=True, help="The newest N lines."
)
def logs_command(follow: bool, lines: int) -> int:
    """The daemon's log: time (UTC), level if it is not info, round and stage, message. With --json the lines as they are.

    Exit code 3 if there is no log yet; with -f the command waits for one.
    """
    directory = the_call().place().run_dir / "logs"
    with contextlib.suppress(KeyboardInterrupt):
        file = _opened(directory)
        if file is None and not (directory / f"{LOG_FILE}.1").exists():
            warn(EMPTY.format(safe(directory)))
            if not follow:
                return NO_LOG
        *whole, rest = file.read().split(b"\n") if file else [b""]
        _show(_newest(directory, whole, lines))
        while follow:
            time.sleep(LOOK_S)
            is_old = file is None or _is_renamed(directory, file)
            if file is not None:
                if os.fstat(file.fileno()).st_size < file.tell():  # it was emptied
                    file.seek(0)
                    rest = b""
                *whole, rest = (rest + file.read()).split(b"\n")  # the rest is the beginning of a line
                _show([*whole, rest] if is_old else whole)
            if is_old:
                file, rest = _opened(directory), b""
    return 0


def _opened(directory: Path) -> IO[bytes] | None:
    try:
        return (directory / LOG_FILE).open("rb")
    except FileNotFoundError:  # in the middle of a rotation, too
        return None


def _is_renamed(directory: Path, file: IO[bytes]) -> bool:
    """Whether another file has the log's name now; while no file has, False."""
    with contextlib.suppress(FileNotFoundError):
        return not os.path.samestat(os.stat(directory / LOG_FILE), os.fstat(file.fileno()))
    return False


def _newest(directory: Path, lines: list[bytes], num: int) -> list[bytes]:
    """Return the newest `num` lines over all files, oldest first. `lines` are those of the file that is written now."""
    for number in itertools.count(1):
        older = directory / f"{LOG_FILE}.{number}"
        if len(lines) >= num or not older.exists():
            break
        lines = older.read_bytes().removesuffix(b"\n").split(b"\n") + lines
    return lines[max(0, len(lines) - num) :]


def _show(lines: Iterable[bytes]) -> None:
    for line in filter(bytes.strip, lines):
        sys.stdout.write(_shown(line) + "\n")
    sys.stdout.flush()


def _shown(line: bytes) -> str:
    """Put a line in words, or with --json in ASCII, so that nothing in it can move a cursor. A damaged one stays as it is."""
    text, entry = line.decode(errors="replace"), None
    with contextlib.suppress(ValueError, RecursionError):
        entry = json.loads(line)
    if the_call().json:
        return json.dumps(entry if isinstance(entry, dict) else {"damaged": text}, ensure_ascii=True)
    return in_words(entry) if isinstance(entry, dict) else safe(text)


def in_words(entry: Json) -> str:
    """2026-01-01 08:06:14  warning  round 3, training: what happened"""
    at = safe(entry.get("time") or "-").replace("T", " ")
    level, message, stage = entry.get("level"), safe(entry.get("message") or ""), safe(entry.get("stage") or "")
    parts = [at.partition(".")[0].removesuffix("Z")]
    parts += [safe(level)] if level not in (None, "info") else []
    where = [f"round {safe(entry['round'])}"] if entry.get("round") else []
    where += [stage] if stage and not message.startswith(f"{stage}:") else []
    return "  ".join([*parts, f"{', '.join(where)}: {message}" if where else message])
