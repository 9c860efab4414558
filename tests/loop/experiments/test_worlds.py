"""Worlds: how they are read, and that candidates gain in them what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from loop.errors import LoopError
from loop.experiments.worlds import SHIPPED, Population, World, rates, read_worlds

TABLE = {"name": "w", "gains": [0.03, 0.02, -0.01], "num_problems": 400, "num_samples": 4, "num_rounds": 5}


def world_of(**changes: object) -> World:
    return World.model_validate_json(json.dumps({**TABLE, **changes}))


def test_gains_go_by_depth_and_the_last_one_repeats() -> None:
    world = world_of()
    assert [round(world.gain_after(depth), 9) for depth in range(6)] == [0.0, 0.03, 0.05, 0.04, 0.03, 0.02]
    assert world.possible_gain == pytest.approx(0.05)
    assert world_of(gains=[-0.01]).possible_gain == 0.0


def test_rates_stay_between_0_and_1() -> None:
    assert world_of(gains=[0.2], num_rounds=9).possible_gain == pytest.approx(0.499)
    assert world_of(gains=[-0.3]).gain_after(5) == pytest.approx(-0.499)


def test_worlds_come_from_json_and_from_toml(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps([TABLE]))
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in TABLE.items())
    (tmp_path / "w.toml").write_text(f"[[worlds]]\n{text}")
    assert read_worlds(tmp_path / "w.json") == read_worlds(tmp_path / "w.toml")
    assert len({world.name for world in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("[", "this is not JSON"),
        ("{}", "no list of worlds"),
        ("[]", "no list of worlds"),
        ('"worlds"', "no list of worlds"),
        (json.dumps([TABLE, 3]), "worlds[1]: "),
        ("[" * 100_000, "this is not JSON"),
        (json.dumps([TABLE, TABLE]), "worlds[1].name: another world is called 'w'"),
        (json.dumps([{**TABLE, "gains": []}]), "worlds[0].gains: "),
        (json.dumps([{**TABLE, "gains": [1.5]}]), "worlds[0].gains[0]: "),
        (json.dumps([{**TABLE, "num_rounds": 0}]), "worlds[0].num_rounds: "),
        (json.dumps([{**TABLE, "num_runs": 3}]), "worlds[0].num_runs: "),
        (json.dumps([{**TABLE, "difficulty": [0, 1]}]), "worlds[0].difficulty[0]: "),
        (json.dumps([TABLE]).replace("0.03", "NaN"), "worlds[0].gains[0]: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, content: str, mistake: str) -> None:
    file = tmp_path / "w.json"
    file.write_text(content)
    with pytest.raises(LoopError) as raised:
        read_worlds(file)
    assert str(raised.value).startswith(f"{file}: {mistake}") and "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    for name in ("none.json", "b.json"):
        with pytest.raises(LoopError, match=name):
            read_worlds(tmp_path / name)


@pytest.mark.parametrize("difficulty", [(0.35, 0.35), (2.0, 5.0)])
def test_candidates_gain_what_the_world_says_and_move_by_its_churn(difficulty: tuple[float, float]) -> None:
    world = world_of(num_problems=20_000, difficulty=difficulty)
    population = Population(world, 5, numpy.random.default_rng(3))
    checkpoint = population.base()
    for depth in range(4):
        candidate = population.trained(checkpoint, numpy.full(5, depth))
        differences = rates(candidate) - rates(checkpoint)
        assert differences.mean() == pytest.approx(world.gain_after(depth + 1) - world.gain_after(depth), abs=0.004)
        if depth == 0:
            assert differences.std() == pytest.approx(world.churn, abs=0.01)
        checkpoint = candidate


def test_without_churn_all_problems_move_alike() -> None:
    world = world_of(churn=0.0)
    population = Population(world, 2, numpy.random.default_rng(1))
    base = population.base()
    shift = population.trained(base, numpy.zeros(2, dtype=int)) - base
    assert shift.min() == pytest.approx(shift.max()) and shift.min() > 0
