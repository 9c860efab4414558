"""Finding, reading and checking loop.toml. All mistakes come at once, each as one line with its place and its remedy.

It looks at the file alone; what the file names, prompts and suites and a model directory, is for `loop.inputs`.
Nothing here imports torch, transformers or datasets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.mistakes import model_mistakes
from loop.config.section import Mistake
from loop.config.settings import Config
from loop.config.toml_file import TomlFile, read_toml
from loop.config.toml_lines import KeyPath
from loop.errors import ConfigError
from loop.words import safe, shown
from policies.by_type import BadPolicy
from policies.gates import GATES


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
        raise ConfigError(f"no loop.toml in {safe(os.getcwd())}; run `loopctl init` or give --config FILE")
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
    mistakes = model_mistakes(Config, tables, text)
    suites, decide = tables.get("suites"), tables.get("decide")
    if isinstance(suites, list) and isinstance(decide, dict):
        wrong_splits = any("splits" in key for key in mistakes)
        for key, problem in _naming_mistakes([suite if isinstance(suite, dict) else {} for suite in suites], decide):
            if not (wrong_splits and key == ("decide", "split")):  # a mistake that only follows from another
                mistakes.setdefault(key, problem)
    return mistakes


def _naming_mistakes(suites: list[dict[str, Any]], decide: dict[str, Any]) -> Iterator[Mistake]:
    """Suites that share a name, and a gate or a decision on what is not there, whatever else is wrong with the tables."""
    named: dict[str, dict[str, Any]] = {}
    for index, suite in enumerate(suites):
        name = suite.get("name")
        if isinstance(name, str):
            if name in named:
                yield ("suites", index, "name"), f"two suites are called {name!r}; give each its own name"
            named.setdefault(name, suite)
    chosen, gates = decide.get("suite"), decide.get("gates")
    others = [name for name in named if name != chosen]
    for index, gate in enumerate(gates if isinstance(gates, list) else ()):
        with contextlib.suppress(BadPolicy):  # which is told of the gate itself
            canary = GATES.build(gate).canary
            if canary is not None and canary not in others:
                problem = f"{shown(canary)} is no suite beside the one that decides"
                yield ("decide", "gates", index, "suite"), f"{problem}; there: {', '.join(others) or 'none'}"
    if not isinstance(chosen, str) or not named:
        return
    if chosen not in named:
        yield ("decide", "suite"), f"{chosen!r} is not among the suites; name one of {', '.join(named)}"
        return
    splits = named[chosen].get("splits", {"select": 1.0})
    if not isinstance(splits, dict):
        return
    shares = ", ".join(str(name) for name, share in splits.items() if share) or "none"
    remedies = {"split": f"its splits are {shares}", "confirm": "set its splits, as in { select = 0.2, confirm = 0.8 }"}
    for key, remedy in remedies.items():
        split = decide.get(key, "select" if key == "split" else None)
        if isinstance(split, str) and not splits.get(split):
            yield ("decide", key), f"{split!r} has no share of the problems of suite {chosen!r}; {remedy}"
