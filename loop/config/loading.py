"""Finding, reading and checking loop.toml. All mistakes come at once, each as one line with its place and its remedy.

It looks at the file alone; what the file names, prompts and suites and a model directory, is for `loop.inputs`.
Nothing here imports torch, transformers or datasets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.mistakes import model_mistakes
from loop.config.settings import Config, Mistake, naming_mistakes
from loop.config.toml_file import TomlFile, read_toml
from loop.config.toml_lines import KeyPath
from loop.errors import ConfigError
from loop.words import printable, shown
from policies.by_type import BadPolicy
from policies.data import build_data
from policies.policy import build_policy
from policies.schedule import build_stops

_DATA = (("collect", "data"), ("after_rollback", "data"))  # where a data policy stands


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


# Mistakes


def config_mistakes(tables: dict[str, Any], text: str) -> dict[KeyPath, str]:
    """Every mistake in the tables of a loop.toml by its key, the first one of each key; `text`: the same as JSON."""
    found = model_mistakes(Config, tables, text, _a_policys)
    suites, decide = tables.get("suites"), tables.get("decide")
    if isinstance(suites, list) and isinstance(decide, dict):  # a mistake elsewhere keeps Config from looking at these
        wrong_splits = any("splits" in key for key in found)
        for key, problem in naming_mistakes([suite if isinstance(suite, dict) else {} for suite in suites], decide):
            if not (wrong_splits and key == ("decide", "split")):  # a mistake that only follows from another
                found.setdefault(key, problem)
    found_elsewhere = (
        *_gate_mistakes(decide, suites),
        *_stop_mistakes(tables.get("schedule")),
        *_data_mistakes(tables),
        *_run_dir_mistakes(tables.get("run_dir")),
    )
    for key, problem in found_elsewhere:
        found.setdefault(key, problem)
    return found


def _a_policys(location: KeyPath) -> bool:
    """Whether build_data or build_stops will report this mistake in better words.: see `_stop_mistakes` and `_data_mistakes`."""
    return location[:2] in _DATA or (location[:2] == ("schedule", "stop") and len(location) > 2)


def _gate_mistakes(decide: Any, suites: Any) -> Iterator[Mistake]:
    gates = decide.get("gates") if isinstance(decide, dict) else None
    if not isinstance(gates, list):
        return
    if not gates:
        yield from _policy_mistake([], 0, [])
    canaries = [suite.get("name") for suite in (suites if isinstance(suites, list) else []) if isinstance(suite, dict)]
    for index, gate in enumerate(gates):
        if isinstance(gate, dict):
            yield from _policy_mistake([gate], index, [name for name in canaries if name != decide.get("suite")])


def _policy_mistake(gates: list[dict[str, Any]], index: int, canaries: list[Any]) -> Iterator[Mistake]:
    try:
        policy = build_policy(gates, "select")
    except BadPolicy as error:
        key = error.path
        yield (*key[:2], index, *key[3:]) if len(key) > 2 else key, error.problem
        return
    for name in policy.canaries:
        if name not in canaries:
            known = ", ".join(map(str, canaries)) or "none"
            yield (
                ("decide", "gates", index, "suite"),
                f"{shown(name)} is no suite beside the one that decides; there: {known}",
            )


def _stop_mistakes(schedule: Any) -> Iterator[Mistake]:
    stops = schedule.get("stop") if isinstance(schedule, dict) else None
    for index, stop in enumerate(stops if isinstance(stops, list) else []):
        try:
            build_stops([stop])
        except BadPolicy as error:
            yield (*error.path[:2], index, *error.path[3:]), error.problem


def _data_mistakes(tables: Mapping[str, Any]) -> Iterator[Mistake]:
    for section, key in _DATA:
        table = tables.get(section)
        if isinstance(table, dict) and key in table:
            try:
                build_data(table[key], (section, key))
            except BadPolicy as error:
                yield error.path, error.problem


def _run_dir_mistakes(run_dir: Any) -> Iterator[Mistake]:
    if not isinstance(run_dir, str):
        return
    try:
        Path(run_dir).expanduser()
        broken = not run_dir.strip() or "\0" in run_dir
    except RuntimeError:  # "~nobody"
        broken = True
    if broken:
        yield ("run_dir",), f"{shown(run_dir)} is not the name of a directory; leave the key out for .loop"
