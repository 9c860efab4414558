"""Lines are folded and coloured for a terminal."""

from pathlib import Path

import pytest

from loop.cli.paper import cells, folded
from tests.support.cli import Loopctl


def test_lines_are_folded_at_spaces_and_within_long_words() -> None:
    assert list(folded("one two three", 7)) == ["one two", "three"]
    assert list(folded("one two three", 8)) == ["one two", "three"]
    assert list(folded("abcdefgh ij", 3)) == ["abc", "def", "gh", "ij"]
    assert list(folded("日本語日本語", 5)) == ["日本", "語日", "本語"]
    assert list(folded("", 5)) == []
    for text in ("a " * 200, "日" * 77 + " x", "word " * 50 + "y" * 300):
        for width in (20, 21, 33):
            lines = list(folded(text, width))
            assert all(cells(line) <= width for line in lines)
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_colours_only_on_a_terminal(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in call("status").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1msmall\x1b[0m" in call("status").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("status").out
    monkeypatch.setenv("COLUMNS", "50")
    lines = call("status").out.splitlines()
    assert len(lines) > 8 and all(len(line) <= 50 for line in lines[1:])
