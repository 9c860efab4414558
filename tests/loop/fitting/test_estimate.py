"""Whether it fits, on machines that are only described: verdicts, remedies, and what chooses itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.estimate import MODELS
from loop.config.loading import LoadedConfig
from loop.errors import ConfigError
from loop.fitting import fit
from loop.fitting.estimate import Estimate, Need, cannot, checkpoint_bytes, estimate, in_words, longest_prompt
from loop.fitting.fit import doubts, fit_of, refuse_what_cannot_fit
from loop.fitting.machine import Machine, main_memory
from loop.fitting.shape import Shape, shape_of
from loop.fitting.times import on_gpus, tokens_of
from tests.support.configurations import configuration, load_text

FOUR = shape_of(MODELS["Qwen3-4B"])
THIRTY = shape_of(MODELS["Qwen3-30B-A3B"])
BASE: dict[str, Any] = {
    "model": {"source": "smollm2-135m"},
    "sampling": {"max_new_tokens": 4096},
    "training": {"batch_size": 32, "micro_batch_size": 1, "max_tokens": 4096},
    "suites": [{"name": "ones", "source": "first-steps", "max_new_tokens": 1024}],
    "engine": {"sampler": "vllm", "trainer": None, "device": "auto"},
}


def loaded(tmp_path: Path, **changes: dict[str, Any]) -> LoadedConfig:
    tables = {name: BASE.get(name, {}) | changes.get(name, {}) for name in BASE | changes if name != "suites"}
    return load_text(tmp_path, configuration(suites=BASE["suites"], **tables))


def on(
    num: int, gigabytes: float, memory: float = 1000, disk: float = 10_000, gpu: str = "NVIDIA H100 80GB"
) -> Machine:
    return Machine((int(gigabytes * 1e9),) * num, int(memory * 1e9), int(disk * 1e9), 16, gpu)


def need(estimated: Estimate, what: str) -> Need:
    return next(need for need in estimated.needs if need.what == what)


@pytest.mark.parametrize(
    ("shape", "machine", "changes", "verdict", "remedy"),
    [
        (FOUR, on(8, 84), {}, "fits", ""),
        (FOUR, on(1, 84), {}, "fits", ""),
        (FOUR, on(1, 25), {}, "cannot", 'set training.method = "lora"'),
        (FOUR, on(1, 25), {"training": {"method": "lora"}}, "fits", ""),
        (FOUR, on(4, 50), {"engine": {"num_training_processes": 1}}, "cannot", "set engine.num_training_processes = 2"),
        (FOUR, on(1, 84), {"training": {"max_tokens": 65536}, "sampling": {"max_new_tokens": 60_000}}, "cannot", "set training.max_tokens = "),
        (FOUR, on(8, 84), {"training": {"micro_batch_size": 4, "max_tokens": 65536}, "sampling": {"max_new_tokens": 64_000}}, "cannot", "set training.micro_batch_size = 1"),
        (THIRTY, on(1, 84), {}, "cannot", 'set training.method = "lora"'),
        (THIRTY, on(1, 40), {}, "cannot", "take a machine with 32 such GPUs"),
        (THIRTY, on(8, 84), {}, "fits", ""),
        (FOUR, on(2, 84), {"engine": {"num_training_processes": 4}}, "cannot", "2 GPUs are visible; lower engine.num_training_processes"),
    ],
)  # fmt: skip
def test_training(
    shape: Shape, machine: Machine, changes: dict[str, Any], verdict: str, remedy: str, tmp_path: Path
) -> None:
    estimated = estimate(loaded(tmp_path, **changes).config, shape, machine)
    told = need(estimated, "training")
    assert (told.verdict, told.remedy[: len(remedy)]) == (verdict, remedy), told
    assert bool(told.remedy) == (verdict != "fits")
    assert estimated.fits == (cannot(estimated) is None)


@pytest.mark.parametrize(
    ("machine", "training", "processes"),
    [
        (on(0, 0), {}, 1),
        (on(1, 84), {}, 1),
        (on(8, 84), {}, 8),
        (on(6, 84), {}, 6),  # 32 rows are no multiple of 6, and need not be
        (on(8, 84), {"batch_size": 4}, 4),
        (on(8, 84), {"method": "lora"}, 8),
    ],
)
def test_processes_choose_themselves(
    machine: Machine, training: dict[str, Any], processes: int, tmp_path: Path
) -> None:
    config = loaded(tmp_path, training=training).config
    assert estimate(config, FOUR, machine).resolved.num_training_processes == processes


@pytest.mark.parametrize(
    ("shape", "gigabytes", "share"), [(FOUR, 25, 1), (THIRTY, 150, 1), (THIRTY, 84, 2), (THIRTY, 25, 4)]
)
def test_the_gpus_of_an_engine_choose_themselves(shape: Shape, gigabytes: float, share: int, tmp_path: Path) -> None:
    plan = estimate(loaded(tmp_path).config, shape, on(8, gigabytes)).resolved
    assert (plan.gpus_per_engine, plan.num_engines) == (share, 8 // share)
    said = loaded(tmp_path, engine={"gpus_per_engine": 8}).config
    assert estimate(said, shape, on(8, gigabytes)).resolved.num_engines == 1


def test_a_model_whose_weights_leave_no_cache_cannot_be_sampled(tmp_path: Path) -> None:
    told = need(estimate(loaded(tmp_path, engine={"gpus_per_engine": 1}).config, THIRTY, on(4, 60)), "sampling")
    assert told.verdict == "cannot" and told.remedy.startswith(
        "set engine.gpus_per_engine = 2, or lower max_new_tokens"
    )


def test_a_cpu_is_refused_only_where_its_weights_exceed_its_memory(tmp_path: Path) -> None:
    config = loaded(tmp_path).config
    small, smaller = (estimate(config, FOUR, on(0, 0, memory=gigabytes)) for gigabytes in (20, 6))
    assert small.fits and need(small, "training").verdict == "tight"
    assert not smaller.fits and need(smaller, "training").verdict == "cannot"


def test_disk_counts_candidates_and_what_training_saves(tmp_path: Path) -> None:
    def disk(**changes: Any) -> int:
        return need(estimate(loaded(tmp_path, **changes).config, FOUR, on(1, 84)), "disk").needed_bytes

    each = checkpoint_bytes(loaded(tmp_path).config, FOUR)
    assert each == 4 * FOUR.num_parameters or each == 2 * FOUR.num_parameters
    assert disk() > 5 * each + 24 * FOUR.num_parameters
    assert disk(storage={"keep_last": 4}) - disk() == 2 * each
    assert disk(training={"method": "lora"}) < disk() - 20 * FOUR.num_parameters
    full = need(estimate(loaded(tmp_path).config, FOUR, on(1, 84, disk=10)), "disk")
    assert full.verdict == "tight" and "storage.keep_last" in full.remedy


def test_a_refusal_is_one_line_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loaded(tmp_path)
    monkeypatch.setattr(fit, "model_shape", lambda model, base: FOUR)
    monkeypatch.setattr(fit, "this_machine", lambda run_dir, device: on(1, 25))
    with pytest.raises(
        ConfigError,
        match=r'loop.toml:\d+: training: training needs \d+ GB, and there are 25 GB .*; set training.method = "lora"$',
    ) as told:
        refuse_what_cannot_fit(config, [])
    assert "\n" not in str(told.value)
    assert any(line.startswith("training needs") for line in doubts(fit_of(config, [])))
    monkeypatch.setattr(fit, "this_machine", lambda run_dir, device: on(8, 84))
    refuse_what_cannot_fit(config, [])


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit_of(loaded(tmp_path, model={"source": "owner/not-here"}), []) is None
    assert doubts(None) == []
    monkeypatch.setattr(fit, "this_machine", lambda run_dir, device: on(0, 0))
    assert fit_of(loaded(tmp_path, engine={"device": "cuda"}), []) is None, "the configuration is for another machine"
    assert longest_prompt([]) > 0 and main_memory() > 1e8


def test_times_fall_with_gpus_and_are_not_known_for_strange_ones(tmp_path: Path) -> None:
    config = loaded(tmp_path).config
    tokens = tokens_of(config, 1000, [225], 200)
    times = []
    for machine in (on(1, 84), on(8, 84)):
        told = on_gpus(config, FOUR, machine, estimate(config, FOUR, machine).resolved, tokens)
        assert told is not None
        times.append(told)
    for stage in ("sampling_s", "training_s", "evaluating_s"):
        assert getattr(times[0], stage) == pytest.approx(8 * getattr(times[1], stage), rel=0.01)
    strange = on(1, 84, gpu="Voodoo 2")
    assert on_gpus(config, FOUR, strange, estimate(config, FOUR, strange).resolved, tokens) is None


def test_words() -> None:
    told = in_words(Need("training", ("training",), 67_000_000_000, 25_000_000_000, "cannot", "1 process", "take more"))
    assert told == "training needs 67 GB, and there are 25 GB (1 process); take more"
