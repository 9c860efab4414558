"""Locks and forks in whole rounds: what is measured, once, and what is said of it. Arithmetic and engines have their own."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loop.config.loading import load_config
from loop.config.same_run import config_sha256, differences, resolved
from loop.errors import ConfigError
from loop.round import run_round
from loop.run.diagnosing import diagnose
from loop.run.opening import open_session
from loop.run.session import Session
from policies.diagnosis import in_words, signals, summary_of
from store.records import DECIDED
from tests.support.cli import Loopctl, call
from tests.support.runs import CONFIG, KEEPING, Quiet, assert_same, drive, dump, write_run

__all__ = ["call"]


def probing(lines: str, config: str = CONFIG) -> str:
    """The configuration with these lines, and nothing else, under [diagnosis]."""
    return config.replace("[diagnosis]\nnum_prompts = 0\n", f"[diagnosis]\n{lines}\n")


# The fake model has no more than two ways to go.
FORKS = probing("fork_above_nats = 0.6", KEEPING)


def summaries(session: Session) -> list[dict[str, Any]]:
    stages = [session.ledger.stage(session.run_id, number, "evaluating") for number in (1, 2)]
    return [stage.output["diagnosis"] for stage in stages if stage and stage.output]


class Whole(NamedTuple):
    """A run of two kept rounds, and what its watch was told."""

    config: Path
    summaries: list[dict[str, Any]]
    parts: list[str]
    dump: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    config = write_run(tmp_path_factory.mktemp("whole"), FORKS)
    with open_session(load_config(config), watch := Quiet()) as session:
        assert [run_round(session).state for _ in range(2)] == ["kept", "kept"]
        return Whole(config, summaries(session), watch.parts, dump(session.loaded.run_dir))


def test_each_checkpoint_is_measured_once(whole: Whole) -> None:
    assert [part for part in whole.parts if "locks" in part] == [
        "1 evaluating: locks and forks: the base writes 10 texts",
        "1 evaluating: locks and forks of the base (10 texts)",
        "1 evaluating: locks and forks of round 1 (10 texts)",
        "2 evaluating: locks and forks of round 2 (10 texts)",
    ]
    assert len(whole.dump["probes"]) == 1
    assert sorted(row["round"] for row in whole.dump["probe_results"]) == [0, 1, 2]


def test_the_summary_says_what_the_fine_tune_did(whole: Whole) -> None:
    """The fake model's skill grows by .2 a round; its doubt about every byte is .02 of what it lacks."""
    first, second = map(summary_of, whole.summaries)
    assert first.num_sequences == 10
    for summary, skill in ((first, 0.6), (second, 0.8)):
        assert summary.locks and summary.forks and summary.forks.num_positions == 10, "one digit a text"
        doubt = 0.02 * (1 - skill)
        assert summary.locks.candidate.tail_mass == pytest.approx(doubt * 237 / 257, rel=1e-6), "20 of 257 are kept"
        assert summary.locks.candidate.top_probability == pytest.approx(1 - doubt * 256 / 257)
        assert summary.forks.candidate.entropy < summary.forks.head.entropy
        assert summary.everywhere.kl_to_head > 0 and summary.everywhere.kl_to_base > 0
    assert first.locks and second.locks and second.forks and first.forks
    assert first.locks.head == first.locks.base and first.forks.top_changed == 1, "0 was likelier, 1 is"
    assert second.locks.head == first.locks.candidate and second.locks.base == first.locks.base
    assert second.everywhere.kl_to_base > second.everywhere.kl_to_head
    assert in_words(first).startswith("at locks the tail shrank by 33% (0.0111 -> 0.0074); at forks 95% of the entropy")


def test_the_decision_sees_the_signals_of_the_summary(whole: Whole) -> None:
    decisions = sorted(whole.dump["decisions"], key=lambda row: row["round"])
    for row, summary in zip(decisions, whole.summaries, strict=True):
        seen, given = json.loads(row["evidence"])["signals"], signals(summary_of(summary))
        assert set(given) == {"base", "head", "candidate"}
        for who, named in given.items():
            assert named.items() <= seen[who].items() and all(isinstance(value, float) for value in named.values())
        assert {"mean_length", "train_loss"} <= seen["candidate"].keys(), "beside the others"
    tails = [given[who]["lock_tail_mass"] for who in ("candidate", "head", "base")]
    assert tails[0] < tails[1] < tails[2]


def test_a_gate_can_look_at_them(tmp_path: Path) -> None:
    """The collapse gate sees the spread at forks before the round is decided, and takes back what lost a little of it."""
    gates = '{ type = "improvement", min_gain = -0.9 }, { type = "collapse", limits = { fork_entropy = { min_of_head = 0.99 } } }'
    config = FORKS.replace('{ type = "improvement", min_gain = -0.9 }', gates)
    assert gates in config
    with open_session(load_config(write_run(tmp_path, config)), Quiet()) as session:
        assert run_round(session).state == "rolled_back"
        decision = session.ledger.last_decision(session.run_id)
        assert decision is not None
        (collapse,) = [gate for gate in decision.gates if gate["type"] == "collapse"]
        assert "fork_entropy 0.758 is under 0.99 of the head's 0.796" in collapse["reason"]
        assert collapse["figures"].keys() >= {"entropy", "entropy_head", "entropy_base"}


def test_asking_again_measures_nothing_and_says_the_same(whole: Whole) -> None:
    with open_session(load_config(whole.config), watch := Quiet()) as session:
        round = session.ledger.round(session.run_id, 2)
        assert round is not None
        assert json.loads(json.dumps(diagnose(session, round, round.parent_checkpoint))) == whole.summaries[1]
        assert not watch.parts and session.engines._sampler is None


def test_what_is_stored_are_the_bases_own_words(whole: Whole) -> None:
    sequences = json.loads(whole.dump["probes"][0]["sequences"])
    asked = {row["id"] for row in whole.dump["prompts"]}
    assert len(sequences) == 10 and all(text["prompt_id"] in asked and "return" in text["text"] for text in sequences)
    for row in whole.dump["probe_results"]:
        records = json.loads(zlib.decompress(row["records"]))
        assert [len(record["entropy"]) for record in records] == [len(text["token_ids"]) for text in sequences]
        assert ("at" in records[0]) == (row["round"] == 0), "which tokens are followed is said once"


def test_switched_off_nothing_is_done(tmp_path: Path) -> None:
    config = write_run(tmp_path, probing("num_prompts = 0"))
    with open_session(load_config(config), watch := Quiet()) as session:
        assert run_round(session).state in DECIDED
        assert not [part for part in watch.parts if "locks" in part]
        assert summaries(session) == [{}] and session.corpus.probes.all(session.run_id) == []


def test_no_forks_are_no_mistake(tmp_path: Path) -> None:
    with open_session(load_config(write_run(tmp_path, probing("num_prompts = 2", KEEPING))), Quiet()) as session:
        assert run_round(session).state == "kept"
        (summary,) = summaries(session)
        assert summary["forks"] is None and summary["locks"]["num_positions"] > 0
        assert "fork_entropy" not in signals(summary_of(summary))["candidate"]


def test_a_kill_in_the_middle_measures_nothing_twice(tmp_path: Path, whole: Whole) -> None:
    """After each of the four writes, one after the other in the same run: the driver notes each row when it is stored."""
    config = write_run(tmp_path, FORKS)
    for place in ("after add_probe", "after add_probe_result", "before add_probe_result", "after add_probe_result"):
        assert drive(config, place) == -9, (tmp_path / "stderr").read_text()
    assert drive(config) == 0, (tmp_path / "stderr").read_text()
    assert_same(tmp_path / ".loop", whole.dump, "probes", "probe_results", "stages", "decisions")
    lines = [line for line in (tmp_path / "acknowledged").read_text().splitlines() if line.startswith("probe")]
    assert len(lines) == len(set(lines)) == 4


def test_a_run_that_is_older_than_the_diagnosis_goes_on(tmp_path: Path) -> None:
    loaded = load_config(write_run(tmp_path, probing("num_prompts = 32")))
    old = resolved(loaded.config)
    del old["diagnosis"]
    assert differences(old, resolved(loaded.config)) == []
    off = load_config(write_run(tmp_path / "off", probing("num_prompts = 0")))
    assert differences(old, resolved(off.config)) == ["diagnosis.num_prompts is 0 here and 32 in the run directory"]
    assert config_sha256(off.config) != config_sha256(loaded.config)


def test_a_round_shows_its_table(whole: Whole, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people see, and the same for programs."""
    config = ["--config", str(whole.config)]
    shown = call("round", "2", *config)
    assert shown.code == 0
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    for line in (
        "locks and forks (on 10 texts by the base)",
        "base head (round 1) candidate candidate - head",
        "locks (160) tail mass 0.0111 0.0074 0.0037 -0.0037 [-0.0037 -0.0037]",
        "top-1 probability 0.9880 0.9920 0.9960 +0.0040 [+0.0040 +0.0040]",
        "forks (10) entropy (nats) 0.7956 0.7580 0.5463 -0.2116 [-0.2116 -0.2116]",
        "all (170) entropy (nats) 0.1702 0.1299 0.0774 -0.0525 [-0.0525 -0.0525]",
        "candidate from head: KL at least 0.0066 nats a token, from base 0.0232; at 0.0% of the locks another token leads",
        "at locks the tail shrank by 50% (0.0074 -> 0.0037); at forks 72% of the entropy was kept (0.76 -> 0.55 nats)",
    ):
        assert line in lines, (line, shown.out)
    answer = call("round", "2", "--json", *config).json
    assert answer["diagnosis"] == whole.summaries[1]
    assert all("diagnosis" not in (stage["output"] or {}) for stage in answer["stages"])
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, call("round", "2", *config).out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "lock_below_nats = 2.0",
            "fork_above_nats: is below lock_below_nats (2), so a position could be both; raise it",
        ),
        ("num_prompts = 1000", "num_prompts: num_prompts * max_new_tokens * top is 8192000, and all of it is held"),
        ("top = 1", "top: 1 is not between 2 and 128; give a whole number"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_run(tmp_path, probing(lines)))
    assert f"diagnosis.{message}" in str(caught.value) and "\n" not in str(caught.value)
