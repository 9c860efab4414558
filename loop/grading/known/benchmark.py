"""What is known of a published benchmark: its files, how its problems are asked by whom, and how that harness decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loop.grading.json_lines import Row
from loop.grading.problem import Problem

PlacedRow = tuple[int, Row]  # with its line
FENCE = "```python\n"


@dataclass(frozen=True)
class File:
    """A published file: what it is called, where it lies, and its SHA-256, where that is known for certain."""

    name: str
    url: str
    sha256: str = ""


def on_hub(repo: str, revision: str, path: str, sha256: str = "") -> File:
    """A file of a data set on the hub, at one commit."""
    return File(path.rpartition("/")[2], f"https://huggingface.co/datasets/{repo}/resolve/{revision}/{path}", sha256)


@dataclass(frozen=True)
class Harness:
    """How somebody published asks and decodes. It is part of a suite's name, because scores depend on it.

    `asks` gives what the model gets (`loop.prompts.templates.content`); it raises ConfigError. `decoding` has keys of a
    [[suites]] table. `window` is the one that counts where a name has none.
    """

    asks: Callable[[Row, Problem], dict[str, Any]]
    decoding: Mapping[str, Any] = field(default_factory=dict)
    window: str = ""


def as_they_are(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """All rows, unchanged."""
    yield from rows


@dataclass(frozen=True)
class Benchmark:
    """A benchmark under the name that a suite's `source` may have.

    `about` says in a line what it is, its date and its licence. `rows` chooses the rows that are problems of it, and may add
    what a harness needs to ask them. `refused` is why it cannot be graded here.
    """

    name: str
    about: str
    files: tuple[File, ...] = ()
    harnesses: Mapping[str, Harness] = field(default_factory=dict)
    rows: Callable[[Iterable[PlacedRow]], Iterator[PlacedRow]] = as_they_are
    has_dates: bool = False
    refused: str = ""


def chat(question: str, system: str | None = None, prefill: str = "") -> dict[str, Any]:
    """A question through the chat template. With a `prefill` the answer begins with it, which ends in an opened fence."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    opening = FENCE if prefill.endswith(FENCE) else ""
    return {"messages": [*messages, {"role": "user", "content": question}], "prefill": prefill, "opening": opening}


def bare(text: str) -> dict[str, Any]:
    """A text that the model continues, without the chat template."""
    return {"messages": [], "prefill": text, "opening": ""}
