"""Shells complete what loopctl offers, and `config show` says where values come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def loopctl(*words: str, cwd: Path = ROOT, **variables: str) -> str:
    command = [sys.executable, "-m", "loop.cli.main", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    assert "_LOOPCTL_COMPLETE" in loopctl("completion", shell)


def test_commands_and_options_are_completed() -> None:
    typed = {"COMP_WORDS": "loopctl con", "COMP_CWORD": "1", "_LOOPCTL_COMPLETE": "bash_complete"}
    assert loopctl(**typed).split() == ["plain,config", "plain,confirm"]
    typed = {"COMP_WORDS": "loopctl init --from", "COMP_CWORD": "2", "_LOOPCTL_COMPLETE": "bash_complete"}
    assert loopctl(**typed).split() == ["plain,--from-repo"]


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    assert loopctl("init", str(tmp_path))
    assert (tmp_path / "loop.toml").read_text().startswith("#:schema ./loop.schema.json\n")
    assert json.loads((tmp_path / "loop.schema.json").read_text())["$schema"]
    shown = loopctl("config", "show", "--resolved", cwd=tmp_path)
    assert "seed = 1  # loop.toml" in shown and "collect.min_lines = 2  # default" in shown
    assert "default" not in loopctl("config", "show", cwd=tmp_path)
    rows = {row["key"]: row for row in json.loads(loopctl("config", "show", "--resolved", "--json", cwd=tmp_path))}
    assert rows["decide.gates[0].alpha"] == {"key": "decide.gates[0].alpha", "value": 0.05, "from": "loop.toml"}
    assert rows["suites[1].greedy"]["value"] is True
