"""`loopctl aa`, `sweep` and `final`, on the fake engine, say what they should, continue, and leave the run as it is."""

import os
import re
import shutil
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from loop.system.lock import locked
from policies.policy import build_policy
from store.db import query
from store.records import Event
from tests.support.cli import (
    CONFIG,
    Loopctl,
    change,
    finish,
    finished_run,
    ledger_of,
    one_line,
    process,
    standing_in,
    write_configuration,
)  # fmt: skip

KEPT = (
    CONFIG.replace("rounds = 2", "rounds = 1")
    .replace("per_round = 16", "per_round = 4")
    .replace("[training]", "[training]\nnum_steps = 20")
    .replace("pass_at = [1, 2]", "pass_at = [1, 2]\nsplits = { select = 0.5, final = 0.5 }")
    .replace('suite = "ones"', 'suite = "ones"\ngates = [{ type = "improvement", min_gain = -0.9 }]')
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a copy of a run with one kept round and a final split the current directory."""
    return standing_in(shutil.copytree(finished_run(KEPT)[0], tmp_path / "kept"), monkeypatch)


def events(directory: Path, kind: str) -> list[Event]:
    with ledger_of(directory) as ledger:
        return [event for event in ledger.events.every() if event.kind == kind]


def evaluations(directory: Path) -> dict[str, int]:
    """Count the completions that each suite's evaluations have, by name."""
    sql = (
        "SELECT e.suite_name AS name, count(*) AS num FROM evaluations AS e JOIN completions AS c "
        "ON c.evaluation_id = e.id WHERE e.metrics IS NOT NULL GROUP BY e.suite_name"
    )
    with ledger_of(directory) as ledger:
        return {row["name"]: row["num"] for row in query(ledger.db, sql)}


# aa


def test_aa(finished: Path, call: Loopctl) -> None:
    before = {name: call(name, "--json").json for name in ("rounds", "status")}
    result = call("aa", "--of", "base", "--json")
    assert result.code == 0, result.err
    answer = result.json
    assert answer.keys() >= {
        "run", "suite", "split", "decoding", "num_problems", "num_samples", "checkpoint", "round", "metric", "noise",
        "variance_within", "looks", "sizes", "signals", "collapse", "evaluations",
    }  # fmt: skip
    measured = (answer["suite"], answer["split"], answer["num_problems"], answer["num_samples"])
    assert measured == ("ones", "select", 12, 2)
    noise = answer["noise"]
    assert noise["difference"] == pytest.approx(noise["rates"][0] - noise["rates"][1])
    assert noise["interval"][0] <= noise["difference"] <= noise["interval"][1] and noise["sd"] > 0
    (look,) = answer["looks"]
    assert look["target_gain"] == 0.03 and not look["sees_target"] and look["smallest_detectable_gain"] > 0.03
    assert look["problems_needed"] > 12 and look["samples_needed"] is None, "12 problems move by themselves"
    sizes = {(row["num_problems"], row["num_samples"]): row["smallest_detectable_gain"] for row in answer["sizes"]}
    assert sizes.keys() == {(m, n) for m in (12, 24, 48) for n in (2, 4, 8)}
    assert sizes[12, 2] == look["smallest_detectable_gain"] >= sizes[12, 4] >= sizes[48, 8]
    assert answer["signals"].keys() == {
        "mean_length", "truncation_rate", "code_rate", "distinct_solution_rate", "distinct_correct_rate", "spread",
    }  # fmt: skip
    build_policy([{"type": "improvement"}, answer["collapse"]], "select")
    (event,) = events(finished, "aa_measured")
    assert event.round == 0 and event.data == {key: value for key, value in answer.items() if key != "round"}

    again = call("aa", "--of", "base", "--json")
    assert again.json == answer and "evaluating" not in again.err, "what was measured is not measured again"
    assert len(events(finished, "aa_measured")) == 1
    assert evaluations(finished)["ones@aa1"] == evaluations(finished)["ones@aa2"] == 24
    assert call("rounds", "--json").json == before["rounds"]
    after = call("status", "--json").json
    for key in ("head", "base", "trend", "corpus", "rounds", "last_decision"):
        assert after[key] == before["status"][key], key
    assert call("verify").code == 0

    text = call("aa", "--of", "base").out
    for words in ("the base twice on ones (select, T 0.9, top_p 0.95)", "target_gain 0.03 is not: a gain of that size would",
                  "a new run would see the gains of several rounds together"):  # fmt: skip
        assert words in text, words
    (pasted,) = re.findall("^limits *(.*),$", text, re.M)
    table = tomllib.loads(f"gate = {pasted}")["gate"]
    assert build_policy([table], "select").gates == build_policy([answer["collapse"]], "select").gates
    warned = call("run").err
    assert "the evaluation (12 problems x 2 samples) detects a gain of" in warned and "guess" not in warned
    assert f"{look['smallest_detectable_gain']:.3f}" in warned and look["remedy"] in warned


def test_aa_before_the_first_round(here: Path, call: Loopctl) -> None:
    write_configuration(here, num_problems=5)
    assert call("aa", "--of", "1").code == 1 and not (here / ".loop").exists()
    assert call("aa", "--json").json["round"] == 0


KILLED = r"""
import os, signal, sys
from loop.cli.main import loopctl, run
from store import corpus, evaluations, events

owner, name, moment, count = sys.argv[1:5]
cls = {"corpus": corpus.Corpus, "evaluations": evaluations.Evaluations, "events": events.Events}[owner]
real, calls = getattr(cls, name), 0

def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if (moment, calls) == ("before", int(count)):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if (moment, calls) == ("after", int(count)):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(cls, name, wrapped)
sys.exit(run(sys.argv[5:], loopctl, "loopctl"))
"""


def killed(directory: Path, *arguments: str) -> int:
    return finish([sys.executable, "-P", "-c", KILLED, *arguments], directory).code


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ask `aa` on the finished run, without a kill."""
    directory = shutil.copytree(finished_run()[0], tmp_path_factory.mktemp("uninterrupted") / "run")
    return process(directory, "aa", "--json").json


@pytest.mark.parametrize(
    "where",
    [
        ("corpus", "add_completions", "after", "1"),
        pytest.param(("evaluations", "add_verdicts", "before", "1"), marks=pytest.mark.slow),
        pytest.param(("evaluations", "finish", "after", "1"), marks=pytest.mark.slow),
        ("evaluations", "add_verdicts", "after", "2"),
        pytest.param(("events", "append_news", "before", "1"), marks=pytest.mark.slow),
        ("events", "append_news", "after", "1"),
    ],
)
def test_aa_continues_after_a_kill(where: tuple[str, ...], finished: Path, call: Loopctl, uninterrupted: Any) -> None:
    assert killed(finished, *where, "aa") == -signal.SIGKILL
    assert call("aa", "--json").json == uninterrupted
    assert len(events(finished, "aa_measured")) == 1
    assert evaluations(finished)["ones@aa1"] == evaluations(finished)["ones@aa2"] == 24
    assert call("verify").code == 0


@pytest.mark.parametrize("command", ["run --rounds 1", "aa", "sweep", "final --yes"])
def test_another_process_holds_the_run(command: str, kept: Path) -> None:
    with locked(kept / ".loop"):
        one_line(process(kept, *command.split()), 75, f"process {os.getpid()} holds this run")


def test_mistakes(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.run.session.Engines.sampler", None)  # nothing is loaded
    for arguments, code, words in (
        (["aa", "--of", "last"], 2, "'last' is neither head nor tip nor base"),
        (["aa", "--of", "0"], 2, "'0' is neither"),
        (["aa", "--of", "7"], 1, "there is no round 7"),
        (["sweep", "--of", "7"], 1, "there is no round 7"),
        (["sweep", "--temperatures", "0.2,hot"], 2, "not a list of numbers"),
        (["sweep", "--temperatures", "0"], 2, "0 is not above 0"),
        (["sweep", "--split", "final"], 2, "loopctl final"),
        (["sweep", "--split", "confirm"], 2, "its splits are select"),
        (["final"], 78, "has no final split"),
    ):
        one_line(call(*arguments), code, words)
    change(finished, ("seed = 3", "seed = 4"))
    for command in ("run", "aa", "sweep"):
        one_line(call(command), 78, "seed is 4 here and 3 in the run directory")


def test_a_greedy_suite_has_no_noise(here: Path, call: Loopctl) -> None:
    change(here, ('suite = "ones"', 'suite = "greedy"'))
    one_line(call("aa"), 1, "no noise to measure")
    assert not (here / ".loop").exists()


# the warning at a start


def test_a_start_warns_of_an_evaluation_that_is_too_coarse(here: Path, call: Loopctl) -> None:
    change(here, ("rounds = 2", "rounds = 1"))
    warning = "the evaluation (12 problems x 2 samples) detects a gain of "
    guessed = call("run").err
    assert guessed.count(warning) == 1 and "by a guess" in guessed and "target_gain is 0.03" in guessed
    assert guessed.count("`loopctl simulate` plays whole runs under these settings\n") == 1
    decided = call("run").err
    assert decided.count(warning) == 1 and "by the last decision's figures" in decided


def test_no_warning_where_the_evaluation_can_see_it(kept: Path, call: Loopctl) -> None:
    assert "detects a gain of" not in call("run").err


# sweep


def test_sweep(kept: Path, call: Loopctl) -> None:
    before = call("rounds", "--json").json
    result = call("sweep", "--temperatures", "0.3,0.9", "--json")
    assert result.code == 0, result.err
    answer = result.json
    assert answer["T_eval"] == 0.9 and answer["temperatures"] == [0.3, 0.9] and answer["split"] == "select"
    assert [checkpoint["round"] for checkpoint in answer["checkpoints"]] == [0, 1]
    best = []
    for checkpoint in answer["checkpoints"]:
        rates = {row["temperature"]: row["pass@1"] for row in checkpoint["figures"]}
        assert list(rates) == [0.3, 0.9] and rates[checkpoint["best_temperature"]] == max(rates.values())
        best.append(max(rates.values()))
        for row in checkpoint["figures"]:
            assert row["pass@1_interval"][0] <= row["pass@1"] <= row["pass@1_interval"][1]
    (gain,) = answer["training_gains"]
    assert gain["round"] == 1 and gain["gain"] == pytest.approx(best[1] - best[0])
    assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
    assert answer["decoding_gain"]["gain"] >= 0
    nums = {name: num for name, num in evaluations(kept).items() if "@T" in name}
    assert nums == dict.fromkeys(("ones@T0.3", "ones@T0.9"), 4 * answer["num_problems"]), "equal effort for both"
    again = call("sweep", "--temperatures", "0.9,0.3")
    assert again.code == 0 and "evaluating" not in again.err, "what was measured is not measured again"
    for words in ("T_eval T 0.9", "decoding: the base at", "training: round 1 at", "flattered", "frozen"):
        assert words in again.out, words
    assert call("rounds", "--json").json == before and call("verify").code == 0


def test_sweep_of_the_base_alone(finished: Path, call: Loopctl) -> None:
    answer = call("sweep", "--of", "base", "--temperatures", "0.5", "--json").json
    assert [checkpoint["round"] for checkpoint in answer["checkpoints"]] == [0] and answer["training_gains"] == []


# final


def test_final(kept: Path, call: Loopctl) -> None:
    result = call("final", "--yes", "--json")
    assert result.code == 0, result.err
    answer = result.json
    assert answer.keys() >= {
        "opened_at", "suite", "split", "base", "head", "gain", "interval", "evaluations", "decoding",
    }  # fmt: skip
    assert answer["split"] == "final" and answer["head"]["round"] == 1 and answer["base"]["round"] == 0
    assert answer["gain"] == pytest.approx(answer["head"]["pass@1"] - answer["base"]["pass@1"])
    assert answer["interval"][0] <= answer["gain"] <= answer["interval"][1]
    (event,) = events(kept, "final_opened")
    assert event.at == answer["opened_at"]
    with locked(kept / ".loop"):  # what is recorded can be read beside a daemon, and asks nothing
        again = call("final", "--json")
    assert again.code == 0 and again.json == answer and again.err == ""
    assert call("rollback", "--to", "base").code == 0
    other = call("final", "--yes")
    assert other.code == 1 and "was opened at" in other.err and "the head is the base now" in other.err
    assert "opened at" in other.out and "on round 1" in other.out
    assert len(events(kept, "final_opened")) == 1 and call("verify").code == 0


def test_final_asks_first(kept: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(process(kept, "final"), 2, "can be opened once; give --yes")
    monkeypatch.setattr("click.confirm", lambda *_args, **_kwargs: False)
    assert call("final").code == 1
    assert events(kept, "final_begun") == []
    assert call("rollback", "--to", "base").code == 0
    one_line(call("final", "--yes"), 1, "the head is the base")


def test_final_is_finished_on_the_head_that_it_was_begun_with(kept: Path, call: Loopctl) -> None:
    assert killed(kept, "evaluations", "finish", "after", "1", "final", "--yes") == -signal.SIGKILL
    assert call("rollback", "--to", "base").code == 0
    result = call("final")
    assert result.code == 1 and "the head is the base now" in result.err
    (event,) = events(kept, "final_opened")
    assert event.data["head"]["round"] == 1 and len(events(kept, "final_begun")) == 1


def test_a_final_split_that_rounds_look_at(here: Path, call: Loopctl) -> None:
    write_configuration(here, KEPT.replace('suite = "ones"\ngates', 'suite = "ones"\nconfirm = "final"\ngates'))
    one_line(call("final", "--yes"), 78, "decide.confirm is final")
