"""Gains and their intervals: stored when a round is evaluated, computed for stores that lack them, and equal either way."""

import json
from pathlib import Path
from typing import Any

import pytest

from loop.reading.as_json import as_json
from loop.reading.gains import STORED_AS, Gain, gain, key_of
from loop.reading.reader import Reader, reader
from loop.reading.rounds import whole_round
from loop.report.facts import run_facts
from policies import statistics
from tests.support.cli import Loopctl, altered, call, finished
from tests.support.report import place_of

__all__ = ["call", "finished"]


def answers(call: Loopctl, directory: Path) -> list[Any]:
    """What status, every round and the page say, but for the moment at which they are asked."""
    rounds = [call("round", str(number), "--json").json for number in (1, 2)]
    return [call("status", "--json").json["head"], rounds, run_facts(place_of(directory))["rounds"]]


def test_what_was_stored_is_what_would_be_computed(
    finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(statistics, "paired_gain")
        stored = answers(call, finished)
    suite = stored[1][0]["suites"]["ones"]
    assert suite["gain"]["interval"][0] <= suite["gain"]["gain"] <= suite["gain"]["interval"][1]
    assert STORED_AS not in json.dumps(stored[1][0]["stages"]), "a stage's output repeats nothing"
    with altered(finished) as conn:  # as an older version would have left the store
        conn.execute(f"UPDATE stages SET output = json_remove(output, '$.{STORED_AS}') WHERE name = 'evaluating'")
    with reader(finished / ".loop") as store:
        assert STORED_AS not in store.output(1, "evaluating")
    assert answers(call, finished) == stored


def test_a_gain_on_other_problems_is_computed_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later round may have asked the head for more problems than both had answered when the gain was stored."""
    with reader(finished / ".loop") as store:
        newest = store.evaluations().newest
        base = newest[store.run.base_checkpoint, "ones"]
        whole = whole_round(store, 1)
        assert whole and whole.candidate
        candidate = newest[whole.candidate, "ones"]
        assert candidate.metrics
        right, wrong = gain(store, candidate, base), Gain(0.9, [0.8, 1.0], 9, 0)
        stored = {STORED_AS: {key_of(candidate, base): as_json(wrong)}}
        monkeypatch.setattr(Reader, "output", lambda *_: stored)
        assert gain(store, candidate, base) == wrong
        candidate.metrics["num_problems"] = 5
        computed = gain(store, candidate, base)
        assert computed and right and computed.gain == right.gain and list(computed.interval) == right.interval
