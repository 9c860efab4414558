"""The terminal shows the text of models and strangers, and never obeys it."""

from dataclasses import replace
from pathlib import Path

import pytest

from loop.words import count, duration, one_line, safe, signed, size
from store.corpus import Corpus
from tests.support.cli import Loopctl, ledger_of

HOSTILE = "\x1b[31mred\x07\x9b1m\u202eevil\u2066\u200b\ufeff\U000e0041\ud800\r\x7f[bold]text[/bold]\ttab\x00end"
SHOWN = r"\x1b[31mred\x07\x9b1m\u202eevil\u2066\u200b\ufeff\U000e0041\ud800\r\x7f[bold]text[/bold]\ttab\x00end"
DANGEROUS = set(HOSTILE) - set(SHOWN)


def test_safe() -> None:
    assert safe(HOSTILE) == SHOWN
    assert safe("two\nlines") == r"two\nlines"
    assert safe("two\nlines", lines=True) == "two\nlines"
    assert safe("Grüße, 世界 ✓ é") == "Grüße, 世界 ✓ é"
    assert safe("\u061c\u200f\u2028\u2029") == r"\u061c\u200f\u2028\u2029"


def test_a_hostile_completion_in_samples(finished: Path, call: Loopctl) -> None:
    with ledger_of(finished) as ledger:
        corpus = Corpus(ledger.db)
        sample = next(corpus.completions(ledger.run().id, 2))
        corpus.add_completions([replace(sample, id="f" * 64, sample_index=7, text=HOSTILE, created_at="", sha256="")])
    result = call("samples", "--limit", "1")
    assert SHOWN in "".join(line.strip() for line in result.out.splitlines()) and not DANGEROUS & set(result.out)
    result = call("samples", "--limit", "1", "--show-code")
    assert "the program in it" in result.out and not DANGEROUS & set(result.out)
    result = call("samples", "--limit", "1", "--show-code", "--json")
    assert result.json[0]["code"].endswith(HOSTILE.replace("\r", "\n")) and result.out.isascii()
    result = call("samples", "--limit", "1", "--json")
    assert result.json[0]["text"] == HOSTILE and result.out.isascii()
    assert call("corpus", "export", "--format", "jsonl", "out.jsonl").code == 0
    assert "\ufffd" in Path("out.jsonl").read_text(encoding="utf-8")
    assert call("samples", "--search", "[bold]", "--json").json[0]["id"] == "f" * 64


def test_a_hostile_error_in_round_and_status(finished: Path, call: Loopctl) -> None:
    with ledger_of(finished) as ledger:
        round = ledger.begin_round(ledger.run().id)
        attempt = ledger.begin_attempt(round, "sampling", {"decoding": {}})
        ledger.fail_attempt(round, "sampling", attempt, HOSTILE, "next")
        ledger.fail_round(round, HOSTILE)
        ledger.set_run_state(round.run_id, "failed", HOSTILE)
    for arguments in (("round", "3"), ("status",), ("rounds",)):
        result = call(*arguments)
        assert not DANGEROUS & set(result.out + result.err), arguments
    assert r"\x1b[31mred" in call("round", "3").out
    assert r"[bold]text[/bold]" in call("status").out
    result = call("status", "--check")
    assert result.code == 1 and not DANGEROUS & set(result.err)


def test_hostile_arguments(finished: Path, call: Loopctl) -> None:
    for arguments in (("status", "--config", "\x1b[31m.toml"), ("\x1b]0;title\x07",), ("round", "\x1b[1m")):
        result = call(*arguments)
        assert result.code in (2, 78) and "\x1b" not in result.err and result.out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.04, "0.0 s"), (3.21, "3.2 s"), (41.2, "41 s"), (725, "12 min 5 s"), (7440, "2 h 4 min"),
     (284400, "3 d 7 h")],
)  # fmt: skip
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_numbers() -> None:
    assert [size(n) for n in (0, 999, 2_100_000_000, 81_000_000_000, None)] == ["0 B", "999 B", "2.1 GB", "81 GB", "-"]
    assert signed(-0.0001) == "+0.000" and signed(0.0312) == "+0.031"
    assert count(3584, "completion") == "3,584 completions" and count(1, "round") == "1 round"
    assert one_line("x" * 50, 10) == "xxxxxxx..." and one_line(" two\n \x1b[1mlines\ud800") == "two [1mlines"
