"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.durable import written


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path, plain = tmp_path / ("ä" * 120), tmp_path / "plain"
    plain.touch()
    for before in (None, "old"):
        with pytest.raises(RuntimeError), written(path) as file:
            file.write(b"half")
            raise RuntimeError
        assert (path.read_text() if path.exists() else None) == before
        with written(path) as file:
            file.write(b"old")
            assert path.exists() == (before is not None)
    assert sorted(tmp_path.iterdir()) == [plain, path], "nothing else is left"
    assert path.stat().st_mode == plain.stat().st_mode


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("replace"), replace(old, new)))
    with written(tmp_path / "file") as file:
        file.write(b"x")
    partial, *rest = steps
    assert partial.endswith(".partial") and rest == ["replace", str(tmp_path)]
