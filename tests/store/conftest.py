"""A store for each test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import World


@pytest.fixture
def world() -> World:
    """In memory."""
    return World()


@pytest.fixture
def on_disk(tmp_path: Path) -> World:
    """As loop.db in the test's own directory."""
    return World(tmp_path / "loop.db")
