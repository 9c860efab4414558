"""This program's own modules as child processes: where they lie, and the environment that finds them."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """The project importable from anywhere, whatever else is set."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def found_again() -> dict[str, str]:
    """The environment in which the packages are found again from "/", where a working directory is in nobody's way."""
    import os

    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
