"""What a run says before it begins: counts that are exact, and a time that grows with the work and falls with the speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.inputs import SMOLLM2_PARAMETERS, num_parameters_of, read_inputs
from loop.run import pace
from tests.support.configurations import configuration
from tests.support.tiny import make_tiny_model

CONFIG: dict[str, Any] = {
    "name": "paced",
    "seed": None,
    "sampling": {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "max_new_tokens": 40, "num_samples": 2},
    "training": {"num_epochs": 1, "batch_size": None, "micro_batch_size": None},
    "suites": [
        {"name": "first", "source": "first-steps", "limit": 20, "num_samples": 3, "max_new_tokens": 50},
        {"name": "second", "source": "first-steps", "limit": 5, "greedy": True, "max_new_tokens": 50},
    ],
    "decide": {"suite": "first"},
    "diagnosis": None,
    "engine": None,
}


def work(tmp_path: Path, rounds: int, model: str = "smollm2-135m") -> tuple[pace.LoadedConfig, pace.Work]:
    (tmp_path / "loop.toml").write_text(configuration(**CONFIG, rounds=rounds, model={"source": model}))
    loaded = load_config(tmp_path / "loop.toml")
    return loaded, pace.work_of(loaded, read_inputs(loaded, fetch=False), rounds)


def test_counts_and_time_are_those_of_the_rounds(tmp_path: Path) -> None:
    (loaded, short), (_, long) = work(tmp_path, 1), work(tmp_path, 3)
    assert (short.num_prompts, short.num_sampled, short.num_answers) == (10, 20, 2 * (60 + 5))
    assert long.num_answers == 4 * (60 + 5) + 2 * 60  # the base, three candidates, the head afresh twice
    assert "paced: 3 rounds; each samples 20 completions from smollm2-135m" in pace.in_words(loaded, long)
    assert "1 round, which samples" in pace.in_words(loaded, short)
    fast, slow = pace.Speed(1e11, 1e11), pace.Speed(1e10, 1e11)
    cases = ((short, fast), (long, fast), (long, slow))
    times_s = [pace.seconds(work, SMOLLM2_PARAMETERS, speed) for work, speed in cases]
    assert times_s[0] < times_s[1] < times_s[2], "more work takes longer, and a faster machine less"


def test_a_last_look_is_counted_by_itself(tmp_path: Path) -> None:
    base, carried = CONFIG, CONFIG | {"decide": {"suite": "first", "unclear": "carry", "last_samples": 5}}
    answers = []
    for rounds, tables in ((3, base), (3, carried), (1, carried)):
        (tmp_path / "loop.toml").write_text(configuration(**tables, rounds=rounds, model={"source": "smollm2-135m"}))
        loaded = load_config(tmp_path / "loop.toml")
        work = pace.work_of(loaded, read_inputs(loaded, fetch=False), rounds)
        answers.append(work.last_answers)
        more = "more if the last round follows a carried one" in pace.in_words(loaded, work)
        later_s = pace.seconds_of_last(work, SMOLLM2_PARAMETERS, pace.Speed(1e11, 1e11))
        assert more == (work.last_answers > 0) == (later_s > 0)
    assert answers == [0, 2 * 4 * 60, 0], (
        "four times the samples more, of head and candidate; a first round has no line"
    )


def test_parameters_are_counted_in_the_files(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = make_tiny_model(tmp_path / "model")
    loaded, _ = work(tmp_path, 1, str(model))
    counted = sum(each.numel() for each in load_file(model / "model.safetensors").values())
    assert num_parameters_of(str(model), loaded.base_dir) == counted
    (model / "model.safetensors").write_bytes(b"\xff" * 20)
    assert num_parameters_of(str(model), loaded.base_dir) is None


def test_the_speed_is_measured_in_a_worker(tmp_path: Path) -> None:
    loaded, _ = work(tmp_path, 1)
    speed = pace.measured_speed(loaded)
    assert speed is not None and speed.sampling > 0 and speed.training > 0
    assert not loaded.run_dir.exists(), "a run directory is made by the run alone"


@pytest.mark.parametrize("engine", ['sampler = "fake"', 'trainer = "fake"'])
def test_nothing_is_measured_for_engines_that_only_pretend(tmp_path: Path, engine: str) -> None:
    (tmp_path / "loop.toml").write_text(configuration(**CONFIG, rounds=1) + f"[engine]\n{engine}\n")
    assert pace.measured_speed(load_config(tmp_path / "loop.toml")) is None
