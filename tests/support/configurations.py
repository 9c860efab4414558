"""The configuration of a small run on the fake engine, and the ways in which tests and benches need it to differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig, load_config
from loop.config.toml_text import toml_text
from loop.errors import ConfigError

# Mistakes are asserted with their lines: keep it at 16.
VALID = """\
name = "demo"
[model]
source = "smollm2-135m"
[sampling]
temperature = 1.2
top_p = 0.8
[training]
num_steps = 4
[[suites]]
name = "first"
source = "first-steps"
num_samples = 4
pass_at = [1, 4]
[decide]
suite = "first"
gates = [{ type = "improvement" }]
"""

_SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 2,
    "seed": 3,
    "model": {"source": "fake"},
    "prompts": {"per_round": 10},
    "sampling": {"temperature": 1.2, "top_k": 20},
    "training": {"batch_size": 2, "micro_batch_size": 2},
    "suites": [
        {"name": "ones", "source": "ones.jsonl", "temperature": 0.9, "num_samples": 4, "pass_at": [1, 4]},
        {"name": "ones-greedy", "source": "ones.jsonl", "greedy": True, "limit": 4},
    ],
    "decide": {"suite": "ones", "unclear": "rollback"},
    "diagnosis": {"num_prompts": 0},
    "engine": {"sampler": "fake", "trainer": "fake", "batch_size": 8, "retry_wait_s": 0.0},
}


def configuration(**changes: Any) -> str:
    """The text of a loop.toml: the small run with these keys and tables changed.

    A table's keys are put over those that stand here, a list takes the place of a list, and None leaves a key or table out.
    """
    tables = {name: value for name in _SMALL | changes if (value := _changed(name, changes)) is not None}
    return toml_text(tables)


def load_text(directory: Path, text: str) -> LoadedConfig:
    """The configuration of this text, which then is the directory's loop.toml."""
    path = directory / "loop.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def mistakes_in(directory: Path, text: str) -> list[str]:
    """The lines that a user reads of this loop.toml, without the file's name; none if it is valid."""
    try:
        load_text(directory, text)
    except ConfigError as error:
        assert error.exit_code == 78
        place, lines = f"{directory / 'loop.toml'}:", str(error).splitlines()
        assert all(line.startswith(place) for line in lines), lines
        return [line.removeprefix(place) for line in lines]
    return []


def _changed(name: str, changes: dict[str, Any]) -> Any:
    standing, change = _SMALL.get(name), changes.get(name, _SMALL.get(name))
    return standing | change if isinstance(standing, dict) and isinstance(change, dict) else change
