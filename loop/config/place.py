"""Where the run of a loop.toml lies, read without pydantic: a command that only looks must start at once."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """The run that a loop.toml names."""

    path: Path
    run_dir: Path
    name: str
    rounds: int | None = None  # only if the file says so
    every: str | None = None  # schedule.every or schedule.cron, likewise


def _quick_place(path: Path) -> Place | None:
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
        run_dir, name, rounds = table.get("run_dir", ".loop"), table.get("name", ""), table.get("rounds")
        if not isinstance(run_dir, str) or not isinstance(name, str) or not run_dir.strip():
            return None
        schedule = table.get("schedule", {})
        every = schedule.get("cron", schedule.get("every")) if isinstance(schedule, dict) else None
        path = Path(os.path.abspath(path))
        directory = Path(os.path.abspath(path.parent / Path(run_dir).expanduser()))
        rounds = rounds if isinstance(rounds, int) and rounds >= 0 else None
        return Place(path, directory, name, rounds, every if isinstance(every, str) else None)
    except (OSError, ValueError, RuntimeError, RecursionError):
        return None  # whoever reads it in full says what is wrong
