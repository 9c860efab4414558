"""Where an answer with a type becomes the JSON that `--json`, the page and its tables show."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


def as_json(answer: Any) -> Any:
    """Dataclasses as objects, tuples as lists, everything in them likewise. A field pass_at_1 is the key "pass@1"."""
    if is_dataclass(answer):
        return {
            field.name.replace("pass_at_", "pass@"): as_json(getattr(answer, field.name)) for field in fields(answer)
        }
    if isinstance(answer, dict):
        return {key: as_json(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [as_json(value) for value in answer]
    return answer
