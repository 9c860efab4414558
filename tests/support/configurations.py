"""The configuration of a small run on the fake engine, and the ways in which tests and benches need it to differ."""

from __future__ import annotations

from typing import Any

from loop.config.toml_text import toml_text

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
    "decide": {"suite": "ones"},
    "diagnosis": {"num_prompts": 0},
    "engine": {"sampler": "fake", "trainer": "fake", "batch_size": 8, "retry_wait_s": 0.0},
}


def configuration(**changes: Any) -> str:
    """The text of a loop.toml: the small run with these keys and tables changed.

    A table's keys are put over those that stand here, a list takes the place of a list, and None leaves a key or table out.
    """
    tables = {name: value for name in _SMALL | changes if (value := _changed(name, changes)) is not None}
    return toml_text(tables)


def _changed(name: str, changes: dict[str, Any]) -> Any:
    standing, change = _SMALL.get(name), changes.get(name, _SMALL.get(name))
    return standing | change if isinstance(standing, dict) and isinstance(change, dict) else change
