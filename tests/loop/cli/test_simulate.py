"""`loopctl simulate`: rows and tables; mistakes end it before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loop.config.loading import load_config
from loop.experiments.worlds import World, own_worlds
from tests.support.cli import Loopctl, write_configuration
from tests.support.configurations import configuration

WORLD = {"name": "small [gains]", "gains": [0.05, 0.0], "num_problems": 30, "num_samples": 2, "num_rounds": 2}
KEYS = {
    "world", "rule", "num_runs", "possible_gain", "head_gain_mean", "head_gain_sd", "tip_gain_mean", "num_kept_mean",
    "worthless_keep_share", "damage_mean", "num_completions_mean",
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: no loop.toml, one world."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOOP_CONFIG", raising=False)
    Path("w.json").write_text(json.dumps([WORLD]))
    return tmp_path


def test_a_line_of_json_for_each_world_and_rule(directory: Path, call: Loopctl) -> None:
    said = call("simulate", "--worlds", "w.json", "--runs", "10", "--seed", "3", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 0 and [row["rule"] for row in rows] == ["configured", "keep_if_higher", "rollback", "ungated"]
    assert all(row.keys() >= KEYS and (row["world"], row["num_runs"]) == (WORLD["name"], 10) for row in rows)
    assert rows[0] != {**rows[2], "rule": "configured"}
    assert rows[3]["head_gain_mean"] == pytest.approx(0.05) == rows[3]["possible_gain"]
    assert "not simulated: the gates collapse" in said.err


def test_a_person_sees_a_table(directory: Path, call: Loopctl) -> None:
    said = call("simulate", "--worlds", "w.json", "--runs", "5")
    assert "small [gains]: at most +5.0pp" in said.out and "keep_if_higher" in said.out
    assert said.out.splitlines()[-1].startswith("gains and damage in points of pass@1")


def test_a_configuration_that_rolls_back_is_simulated_once(directory: Path, call: Loopctl) -> None:
    write_configuration(directory, configuration(decide={"suite": "ones", "unclear": "rollback"}))
    said = call("simulate", "--worlds", "w.json", "--runs", "5", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert rows[0] == {**rows[2], "rule": "configured"}


def test_the_configured_policies_are_those_of_loop_toml(directory: Path, call: Loopctl) -> None:
    write_configuration(directory, configuration(decide={"suite": "ones", "gates": [{"type": "collapse"}]}))
    said = call("simulate", "--worlds", "w.json", "--runs", "5")
    assert said.code != 0 and said.err.count("\n") == 1 and "improvement" in said.err


def test_worlds_of_the_configured_sizes_come_first(
    directory: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop.experiments.worlds.SHIPPED", (World.model_validate_json(json.dumps(WORLD)),))
    suite = {"name": "ones", "source": "ones.jsonl", "num_samples": 3, "pass_at": [1]}
    suite |= {"splits": {"select": 0.4, "confirm": 0.4, "final": 0.2}}
    gates = [{"type": "improvement", "target_gain": 0.1}]
    decide = {"confirm": "confirm", "gates": gates, "unclear": "carry"}
    config = write_configuration(directory, configuration(rounds=4, suites=[suite], decide=decide), 40)
    first, *others = own_worlds(load_config(config))
    assert (first.num_samples, first.num_rounds, first.gains) == (3, 4, (0.1,)) and first.num_problems < 40
    assert first.select_share is not None and (first.select_share * first.num_problems).is_integer()
    assert [world.gains for world in others] == [(0.05,), (0.0,)]
    said = call("simulate", "--runs", "2", "--json")
    names = dict.fromkeys(json.loads(line)["world"] for line in said.out.splitlines())
    mine = ("+10pp a round", "+5pp a round", "no gain ever")
    assert list(names) == [*(f"your sizes, {each}" for each in mine), WORLD["name"]]

    (directory / "ones.jsonl").unlink()
    without = call("simulate", "--runs", "2", "--json")
    assert without.code == 0 and "no worlds of the configured sizes: " in without.err
    assert {json.loads(line)["world"] for line in without.out.splitlines()} == {WORLD["name"]}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--runs", "0"), 2, "--runs"),
        (("--worlds", "none.json"), 1, "none.json"),
        (("--worlds", "bad.json"), 1, "bad.json: worlds[0].gains"),
    ],
)
def test_mistakes(directory: Path, call: Loopctl, arguments: tuple[str, ...], code: int, words: str) -> None:
    Path("bad.json").write_text(json.dumps([{**WORLD, "gains": "much"}]))
    said = call("simulate", *arguments)
    assert (said.code, said.out) == (code, "") and words in said.err
