"""`loopctl replay`: identical to the last bit under the stored policy, and beside it under another one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.cli.decide import need_in_words
from loop.reading.replaying import replay
from loop.system.lock import locked
from policies.evidence import read_evidence
from policies.policy import Policy, build_policy
from store.records import DecisionRow
from tests.support.cli import CONFIG, Loopctl, altered, call, finished
from tests.support.evidence import UP, decide, evidence, sides, split

__all__ = ["call", "finished"]
POLICY = build_policy([{"type": "improvement"}], "select")


def decided(*rounds: dict[str, Any], policy: Policy = POLICY) -> list[DecisionRow]:
    """Recorded decisions on that evidence, the fruitless looks counted as a run counts them."""
    rows, counts = [], {}
    for number, given in enumerate(rounds, 1):
        seen = given | {"round": number, "rounds_so_far": number - 1, "fruitless_looks": counts}
        decision = policy.decide(read_evidence(seen))
        seen = json.loads(read_evidence(seen).model_dump_json())
        counts = policy.fruitless_after(seen, decision.verdict)
        gates = json.loads(json.dumps([gate.model_dump(mode="json") for gate in decision.gates]))
        stored = json.loads(json.dumps(policy.as_json()))
        rows.append(DecisionRow("run", number, decision.verdict, decision.action, gates, stored, seen, "h", "h"))
    return rows


SEVEN_BETTER = evidence(select=split(*[UP] * 7, *[sides([1], [1])] * 20))


def test_identical(finished: Path, call: Loopctl) -> None:
    with locked(finished / ".loop"):  # as beside a daemon
        done = call("replay", "--json")
    assert done.code == 0 and done.err == ""
    answer = done.json
    assert answer.keys() == {"run", "rounds", "summary"}
    assert [row["round"] for row in answer["rounds"]] == [1, 2]
    for row in answer["rounds"]:
        assert row["stored"]["identical"] is True and row["stored"]["difference"] is None
        assert row["replayed"]["changed"] is False and row["replayed"]["change"] == "the same"
        assert row["recorded"].keys() == {"verdict", "action"} and row["stored"]["reasons"]
    assert answer["summary"]["num_identical"] == 2 and answer["summary"]["num_changed"] == 0
    assert "2 rounds, 2 identical, 0 changed under this policy" in call("replay").out


def test_under_another_policy(finished: Path, call: Loopctl) -> None:
    other = CONFIG.replace('suite = "ones"', 'suite = "ones"\ngates = [{ type = "improvement", min_gain = -0.9 }]')
    (finished / "other.toml").write_text(other)
    done = call("replay", "--config", "other.toml")
    assert done.code == 0 and "2 identical, 2 changed under this policy" in done.out and "would be kept" in done.out
    assert "the following rounds would have started from another checkpoint" in done.out
    other = other.replace('suite = "ones"', 'suite = "ones"\nconfirm = "confirm"')
    splits = "pass_at = [1, 2]\nsplits = { select = 0.5, confirm = 0.5 }"
    (finished / "other.toml").write_text(other.replace("pass_at = [1, 2]", splits))
    done = call("replay", "--config", "other.toml")
    assert done.code == 0 and "split that confirms, which was not opened" in done.out
    assert "asks for the split confirm" in " ".join(done.out.split())


def test_a_decision_that_was_altered(finished: Path, call: Loopctl) -> None:
    with altered(finished) as conn:
        gates = json.loads(conn.execute("SELECT gates FROM decisions WHERE round = 2").fetchone()[0])
        gates[0]["figures"]["p_value"] += 1e-15
        conn.execute("UPDATE decisions SET gates = ? WHERE round = 2", (json.dumps(gates),))
    done = call("replay", "--json")
    assert done.code == 1 and "1 round decided differently" in done.err
    first, second = done.json["rounds"]
    assert first["stored"]["identical"] and not second["stored"]["identical"]
    assert second["stored"]["difference"].startswith("improvement: p_value ")


def test_a_decision_of_an_older_version_is_said_so_and_no_error(finished: Path, call: Loopctl) -> None:
    with altered(finished) as conn:
        old = {"split": "select", "gates": [{"type": "improvement", "confidence": 0.95}]}
        conn.execute("UPDATE decisions SET policy = ? WHERE round = 1", (json.dumps(old),))
    done = call("replay", "--json")
    assert done.code == 0, done.err
    first, second = done.json["rounds"]
    assert first["stored"]["identical"] is None and "confidence" in first["stored"]["problem"]
    assert second["stored"]["identical"] is True and first["replayed"]["changed"] is False
    assert done.json["summary"]["num_unreadable"] == 1
    assert "1 not decided again: of another version" in call("replay").out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": {"gates": []}}, "no split"),
        ({"policy": {"split": "select", "gates": [{"type": "loudest"}]}}, "'loudest'"),
        ({"policy": {"split": "select", "gates": [{"type": "improvement"}], "mood": 1}}, "mood"),
        ({"policy": {"split": "select", "gates": 3}}, "cannot build its policy"),
        ({"evidence": {"round": 1}}, "cannot be decided on the evidence"),
    ],
)
def test_what_cannot_be_decided_again(change: Any, words: str) -> None:
    first, second = decided(SEVEN_BETTER, SEVEN_BETTER)
    answer = replay([replace(first, **change), second], POLICY)
    assert answer["rounds"][0]["stored"]["identical"] is None and words in answer["rounds"][0]["stored"]["problem"]
    assert answer["rounds"][1]["stored"]["identical"] is True


def test_fruitless_looks_are_carried_along() -> None:
    """p = 2^-7 = .0078: enough for a first and a second look (.025, .0083), not for a third (.0042)."""
    keeping = build_policy([{"type": "improvement", "min_gain": -0.9}], "select")
    rows = decided(SEVEN_BETTER, SEVEN_BETTER, SEVEN_BETTER, policy=keeping)
    assert [row.verdict for row in rows] == ["keep"] * 3
    strict = build_policy([{"type": "improvement", "min_gain": 0.25, "target_gain": 0.3}], "select")
    answer = replay(rows, strict)
    for row, level in zip(answer["rounds"], (0.05 / 2, 0.05 / 6, 0.05 / 12), strict=True):
        assert row["replayed"]["verdict"] != "keep" and row["stored"]["identical"] is True
        assert f"{100 - level * 100:.4g}%" in row["replayed"]["reasons"][0]
    assert answer["summary"]["num_changed"] == 3


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ({"split": "select", "num_problems": 20}, "asks for 20 more problems of select"),
        ({"split": "select", "num_problems": 1}, "asks for 1 more problem of select"),
        ({"split": "confirm"}, "asks for the split confirm"),
        ({"suites": ["a", "b"]}, "asks for a, b"),
        ({"head": 3}, "the head goes back to round 3"),
        ({"head": 0}, "the head goes back to the base"),
        ({"not_inferior_by": 0.01}, "a loss of more than 0.01 is ruled out"),
        ({"patience": 2}, "patience 2"),
    ],
)
def test_a_need_in_words(need: Any, words: str) -> None:
    assert words in need_in_words(need)


def test_decide_says_what_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    monkeypatch.chdir(tmp_path)
    given = evidence(select=split(UP, sides([1], [1]), num_planned=22, num_looks=2) | {"num_planned": 22})
    assert decide(given).need == {"split": "select", "num_problems": 9}
    Path("e.json").write_text(json.dumps(given))
    assert call("decide", "--evidence", "e.json").out.startswith(
        "inconclusive, then sample_more: asks for 9 more problems of select\n"
    )
