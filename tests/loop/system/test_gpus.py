"""Waiting for the memory of GPUs, with a stand-in for NVML: this needs no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from loop.config.settings import Engine, Training
from loop.engines.base import CheckpointRef
from loop.errors import EngineError
from loop.run.session import Engines
from loop.system import gpus as device_memory
from loop.system.gpus import is_any_busy, used_bytes, wait_until_free
from tests.support.runs import Quiet
from tests.support.workers import fake_model

GB = 1_000_000_000


class NVMLError(Exception):
    pass


class Driver(ModuleType):
    """A stand-in for pynvml: `used` by index; GPU 3 cannot say. GPU 1 has the MIG slices a and b, 1 and 2 GB in use."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.used = [5 * GB, 6 * GB, 7 * GB, None]
        self.num_open = self.num_asked = 0
        self.busy = {1: 40}  # percent, by index
        self.broken = ""
        self.on_ask: Callable[[], None] = lambda: None

    def _step(self, name: str, opens: int = 0) -> None:
        assert self.num_open or name == "init"
        if self.broken == name:
            raise NVMLError(name)
        self.num_open += opens

    def nvmlInit(self) -> None:
        self._step("init", 1)

    def nvmlShutdown(self) -> None:
        self._step("shutdown", -1)

    def nvmlDeviceGetCount(self) -> int:
        self._step("count")
        self.on_ask()
        self.num_asked += 1
        return len(self.used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._step("handle")
        return SimpleNamespace(index=index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        if uuid not in ("MIG-a", "MIG-b"):
            raise NVMLError("not found")
        return SimpleNamespace(used={"MIG-a": 1, "MIG-b": 2}[uuid] * GB, parent=1)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: Any) -> Any:
        return SimpleNamespace(index=device.parent)

    def nvmlDeviceGetIndex(self, device: Any) -> int:
        return int(device.index)

    def nvmlDeviceGetUUID(self, device: Any) -> str:
        return f"GPU-{device.index}{device.index}-abcdef"

    def nvmlDeviceGetUtilizationRates(self, device: Any) -> Any:
        if not hasattr(device, "index"):
            raise NVMLError("not supported")  # as for slices
        return SimpleNamespace(gpu=self.busy.get(device.index, 0))

    def nvmlDeviceGetMemoryInfo(self, device: Any) -> Any:
        used = getattr(device, "used", None) or self.used[device.index]
        if used is None:
            raise NVMLError("not supported")
        return SimpleNamespace(used=used)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    stand_in = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    monkeypatch.setattr(device_memory, "DRIVER_FILES", (tmp_path / "none", tmp_path))
    monkeypatch.setattr(device_memory, "POLL_S", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield stand_in
    if not stand_in.broken:
        assert stand_in.num_open == 0


VISIBLE: list[tuple[str | None, dict[int, int]]] = [
    (None, {0: 5, 1: 6, 2: 7}), ("", {}), ("-1", {}), ("2", {2: 7}), ("1, 0", {1: 6, 0: 5}), ("0,9,1", {0: 5}),
    ("0,-1,1", {0: 5}), ("3,2", {2: 7}), ("GPU-11-abcdef", {1: 6}), ("GPU-2,GPU-0", {2: 7, 0: 5}), ("GPU-9,0", {}),
    ("GPU-,0", {}), ("MIG-a", {1: 1}), ("MIG-a,MIG-b", {1: 3}), ("MIG-c", {}),
]  # fmt: skip


@pytest.mark.parametrize(("visible", "expected"), VISIBLE)
def test_only_the_visible_devices_are_measured(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: dict[int, int]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert used_bytes() == {device: gigabytes * GB for device, gigabytes in expected.items()}


@pytest.mark.parametrize(
    ("names", "busy"), [(None, True), ("0,2", False), ("2,1", True), ("MIG-a", False), ("", False)]
)
def test_a_device_that_computes_is_seen(driver: Driver, names: str | None, busy: bool) -> None:
    assert is_any_busy(names) == busy


@pytest.mark.parametrize("step", ["init", "count", "handle", "shutdown"])
def test_a_driver_that_fails_is_never_raised(driver: Driver, step: str) -> None:
    driver.broken = step
    assert is_any_busy(None) == (step == "shutdown")
    assert used_bytes() == ({0: 5 * GB, 1: 6 * GB, 2: 7 * GB} if step == "shutdown" else {})


def test_without_a_driver_nothing_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_memory, "DRIVER_FILES", (tmp_path / "none",))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert used_bytes() == {}
    monkeypatch.setattr(device_memory, "DRIVER_FILES", (tmp_path,))
    assert used_bytes() == {}  # a driver, but the package is missing


def test_the_real_package_has_what_is_used() -> None:
    """The stand-in has no name that the package lacks."""
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(Driver) if name.startswith(("nvml", "NVML"))]
    assert len(names) >= 9 and all(hasattr(pynvml, name) for name in names)


def test_it_waits_until_the_memory_is_back(driver: Driver) -> None:
    before, full, free = {0: 5 * GB, 1: 6 * GB}, [5 * GB, 40 * GB], [4 * GB, 6 * GB + device_memory.TOLERANCE_BYTES]
    driver.used, after_each_beat = full, [full, full, free]
    assert wait_until_free(before, lambda: setattr(driver, "used", after_each_beat.pop(0))) == {}
    assert after_each_beat == []


def test_what_never_comes_back_is_told_by_device(driver: Driver) -> None:
    driver.used = [5 * GB, 40 * GB, 50 * GB, None]
    assert wait_until_free({}, lambda: None) == {}
    assert driver.num_asked == 0, "nothing is asked where nothing was measured"
    before = {0: 5 * GB, 1: 6 * GB, 9: GB}
    assert wait_until_free(before, lambda: None, 3.0, lambda: float(driver.num_asked)) == {1: 34 * GB}
    assert driver.num_asked == 3


class Workers:
    """The workers of a run on GPUs, and what their watch was told."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.watch = directory, Quiet()
        self.watch.pulse = self.pulse = Mock()  # type: ignore[method-assign]
        self.checkpoint = fake_model(directory / "model")
        self.begin()

    def begin(self, device: str = "cuda", **watch: Any) -> None:
        settings = Engine(sampler="fake", trainer="fake", device=device, num_engines=1)
        config = SimpleNamespace(engine=settings, training=Training(), cluster=None)
        loaded = SimpleNamespace(config=config, run_dir=self.directory)
        self.engines = Engines(loaded, SimpleNamespace(**watch) if watch else self.watch)
        self.sample = partial(self.engines.sampler, self.checkpoint)
        self.train = partial(self.engines.trainer, self.checkpoint)

    def is_sampling(self) -> bool:
        return self.engines.serving(self.checkpoint.sha256) is not None


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    workers.engines.close()


def test_the_next_worker_starts_when_the_memory_of_the_last_is_free(driver: Driver, workers: Workers) -> None:
    workers.sample()
    driver.used[0], driver.num_asked = 70 * GB, 0

    def ask() -> None:
        assert not workers.is_sampling()  # the sampler is gone before anybody waits
        if driver.num_asked == 2:
            driver.used[0] = 5 * GB

    driver.on_ask = ask
    workers.train()
    assert driver.num_asked == 4  # held twice, then free; and what is in use before the trainer starts
    assert workers.watch.notes == []


def test_memory_that_is_never_freed_is_noted_once_and_the_run_continues(
    driver: Driver, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop.workers.up.wait_until_free", lambda before, pulse: wait_until_free(before, pulse, 0.1))
    workers.sample()
    driver.used[0] = 70 * GB
    workers.train()
    (note,) = workers.watch.notes
    assert note.startswith("GPU 0: 65.0 GB more are in use than before") and "nvidia-smi" in note
    workers.sample()
    assert workers.watch.notes == [note]  # it is somebody else's by now


def test_a_worker_that_failed_to_start_is_waited_for_too(driver: Driver, workers: Workers) -> None:
    with pytest.raises(EngineError, match="sampler: FileNotFoundError"):
        workers.engines.sampler(CheckpointRef(sha256="1" * 64, path=workers.directory / "nowhere"))
    driver.used[0], driver.num_asked = 70 * GB, 0
    driver.on_ask = lambda: driver.used.__setitem__(0, (70 if driver.num_asked < 2 else 5) * GB)
    workers.sample()
    assert driver.num_asked == 4


def test_a_pulse_that_raises_ends_the_waiting(driver: Driver, workers: Workers) -> None:
    workers.sample()
    driver.used[0] = 70 * GB
    workers.pulse.side_effect = [None, None, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        workers.train()
    assert not workers.is_sampling()


def test_a_run_on_the_cpu_does_not_look_at_gpus(driver: Driver, workers: Workers) -> None:
    before = driver.num_asked  # by the engines of the fixture, which may use GPUs
    workers.begin(device="cpu")
    workers.sample()
    workers.train()
    assert driver.num_asked == before


def test_a_watch_without_pulse_will_do_and_one_with_it_is_told(workers: Workers) -> None:
    workers.sample()
    assert workers.pulse.called
    workers.engines.close()
    workers.pulse.reset_mock()
    workers.begin(note=workers.watch.note, progress=workers.watch.progress)
    workers.sample()
    assert not workers.pulse.called
