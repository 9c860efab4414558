"""What the tests of published benchmarks share: no cache of the machine is seen, and nothing is fetched by accident."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("slow"):
        return  # those take the real files, where there are some
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("LOOP_SUITES", raising=False)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as JSON lines and gives the file's path."""

    def write(*rows: dict[str, Any], name: str = "problems.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return write
