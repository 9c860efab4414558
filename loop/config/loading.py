"""Finding, reading and checking loop.toml. All mistakes come at once, each as one line with its place and its remedy.

It looks at the file alone; what the file names, prompts and suites and a model directory, is for `loop.inputs`.
Nothing here imports torch, transformers or datasets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.mistakes import model_mistakes
from loop.config.settings import Config, naming_mistakes
from loop.config.toml_file import TomlFile, read_toml
from loop.config.toml_lines import KeyPath
from loop.errors import ConfigError
from loop.words import printable


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid loop.toml. Paths are absolute."""

    config: Config
    path: Path
    run_dir: Path
    base_dir: Path
    file: TomlFile


def find_config(explicit: str | None) -> Path:
    """`explicit` (from --config), else LOOP_CONFIG, else ./loop.toml. ConfigError if none of them is given or there."""
    given = explicit if explicit is not None else os.environ.get("LOOP_CONFIG") or None
    if given is not None:
        return Path(given)
    if not os.path.lexists("loop.toml"):
        raise ConfigError(f"no loop.toml in {printable(os.getcwd())}; run `loopctl init` or give --config FILE")
    return Path("loop.toml")


def load_config(path: Path) -> LoadedConfig:
    """Read and validate a loop.toml. ConfigError with a line per mistake; PermissionDenied if it cannot be read."""
    file = read_toml(path)
    file.refuse(config_mistakes(file.tables, file.json).items())
    config = Config.model_validate_json(file.json)
    path = Path(os.path.abspath(path))
    run_dir = Path(os.path.abspath(path.parent / config.run_dir.expanduser()))
    return LoadedConfig(config, path, run_dir, path.parent, file)


def config_mistakes(tables: dict[str, Any], text: str) -> dict[KeyPath, str]:
    """Every mistake in the tables of a loop.toml by its key, the first one of each key; `text`: the same as JSON."""
    found = model_mistakes(Config, tables, text)
    suites, decide = tables.get("suites"), tables.get("decide")
    if isinstance(suites, list) and isinstance(decide, dict):  # a mistake elsewhere keeps Config from looking at these
        wrong_splits = any("splits" in key for key in found)
        for key, problem in naming_mistakes([suite if isinstance(suite, dict) else {} for suite in suites], decide):
            if not (wrong_splits and key == ("decide", "split")):  # a mistake that only follows from another
                found.setdefault(key, problem)
    return found
