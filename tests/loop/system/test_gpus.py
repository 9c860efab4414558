"""Waiting for the memory of GPUs, with a stand-in for NVML: this needs no GPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from loop.config.settings import Engine, Training
from loop.engines.base import CheckpointRef
from loop.engines.fake import write_fake_model
from loop.errors import EngineError
from loop.run.session import Engines
from loop.system import gpus as device_memory
from loop.system.gpus import is_any_busy, used_bytes, wait_until_free
from tests.support.runs import Quiet

GB = 1_000_000_000
Begin = Callable[..., Engines]


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

    def _step(self, name: str) -> None:
        assert self.num_open or name == "init"
        if self.broken == name:
            raise NVMLError(name)

    def nvmlInit(self) -> None:
        self._step("init")
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self._step("shutdown")
        self.num_open -= 1

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


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, {0: 5, 1: 6, 2: 7}),
        ("", {}),
        ("-1", {}),
        ("2", {2: 7}),
        ("1, 0", {1: 6, 0: 5}),
        ("0,9,1", {0: 5}),
        ("0,-1,1", {0: 5}),
        ("3,2", {2: 7}),
        ("GPU-11-abcdef", {1: 6}),
        ("GPU-2,GPU-0", {2: 7, 0: 5}),
        ("GPU-9,0", {}),
        ("GPU-,0", {}),
        ("MIG-a", {1: 1}),
        ("MIG-a,MIG-b", {1: 3}),
        ("MIG-c", {}),
    ],
)
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
    before = {0: 5 * GB, 1: 6 * GB}
    driver.used[1] = 40 * GB
    beats: list[int] = []

    def pulse() -> None:
        beats.append(1)
        if len(beats) == 3:
            driver.used[:2] = [4 * GB, 6 * GB + device_memory.TOLERANCE_BYTES]

    assert wait_until_free(before, pulse) == {}
    assert len(beats) == 3


def test_what_never_comes_back_is_told_by_device(driver: Driver) -> None:
    driver.used = [5 * GB, 40 * GB, 50 * GB, None]
    clock = lambda: float(driver.num_asked)  # noqa: E731
    assert wait_until_free({0: 5 * GB, 1: 6 * GB, 9: GB}, lambda: None, 3.0, clock) == {1: 34 * GB}
    assert driver.num_asked == 3


def test_nothing_is_asked_where_nothing_was_measured(driver: Driver) -> None:
    assert wait_until_free({}, lambda: None) == {}
    assert driver.num_asked == 0


class Enough(Exception):
    pass


class Listener(Quiet):
    num_beats = 0
    raises_at = -1

    def pulse(self) -> None:
        self.num_beats += 1
        if self.num_beats == self.raises_at:
            raise Enough


@pytest.fixture
def watch() -> Listener:
    return Listener()


@pytest.fixture
def begin(tmp_path: Path, watch: Listener) -> Iterator[Begin]:
    with contextlib.ExitStack() as begun:

        def begin(device: str = "cuda", watch: Any = watch) -> Engines:
            settings = Engine(sampler="fake", trainer="fake", device=device, num_engines=1)
            config = SimpleNamespace(engine=settings, training=Training())
            engines = Engines(SimpleNamespace(config=config, run_dir=tmp_path), watch)
            return begun.enter_context(contextlib.closing(engines))

        yield begin


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointRef:
    write_fake_model(tmp_path / "model", 0.5)
    return CheckpointRef(sha256="0" * 64, path=tmp_path / "model")


def test_the_next_worker_starts_when_the_memory_of_the_last_is_free(
    driver: Driver, begin: Begin, watch: Listener, checkpoint: CheckpointRef
) -> None:
    engines = begin()
    engines.sampler(checkpoint)
    driver.used[0], driver.num_asked = 70 * GB, 0

    def ask() -> None:
        assert engines.serving(checkpoint.sha256) is None  # the sampler is gone before anybody waits
        if driver.num_asked == 2:
            driver.used[0] = 5 * GB

    driver.on_ask = ask
    engines.trainer(checkpoint)
    assert driver.num_asked == 4  # held twice, then free; and what is in use before the trainer starts
    assert watch.notes == []


def test_memory_that_is_never_freed_is_noted_once_and_the_run_continues(
    driver: Driver, begin: Begin, watch: Listener, checkpoint: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop.workers.up.wait_until_free", lambda before, pulse: wait_until_free(before, pulse, 0.1))
    engines = begin()
    engines.sampler(checkpoint)
    driver.used[0] = 70 * GB
    engines.trainer(checkpoint)
    assert len(watch.notes) == 1 and watch.notes[0].startswith("GPU 0: 65.0 GB more are in use than before")
    assert "nvidia-smi" in watch.notes[0]
    engines.sampler(checkpoint)
    assert len(watch.notes) == 1  # it is somebody else's by now


def test_a_worker_that_failed_to_start_is_waited_for_too(
    driver: Driver, begin: Begin, tmp_path: Path, checkpoint: CheckpointRef
) -> None:
    engines = begin()
    with pytest.raises(EngineError, match="sampler: FileNotFoundError"):
        engines.sampler(CheckpointRef(sha256="1" * 64, path=tmp_path / "nowhere"))
    driver.used[0], driver.num_asked = 70 * GB, 0
    driver.on_ask = lambda: driver.used.__setitem__(0, (70 if driver.num_asked < 2 else 5) * GB)
    engines.sampler(checkpoint)
    assert driver.num_asked == 4


def test_a_pulse_that_raises_ends_the_waiting(
    driver: Driver, begin: Begin, watch: Listener, checkpoint: CheckpointRef
) -> None:
    engines = begin()
    engines.sampler(checkpoint)
    driver.used[0] = 70 * GB
    watch.raises_at = watch.num_beats + 3
    with pytest.raises(Enough):
        engines.trainer(checkpoint)
    assert engines.serving(checkpoint.sha256) is None


def test_a_run_on_the_cpu_does_not_look_at_gpus(driver: Driver, begin: Begin, checkpoint: CheckpointRef) -> None:
    engines = begin(device="cpu")
    engines.sampler(checkpoint)
    engines.trainer(checkpoint)
    assert driver.num_asked == 0


def test_a_watch_without_pulse_will_do_and_one_with_it_is_told(
    begin: Begin, watch: Listener, checkpoint: CheckpointRef
) -> None:
    begin(watch=SimpleNamespace(note=watch.note, progress=watch.progress)).sampler(checkpoint)
    assert watch.num_beats == 0
    begin().sampler(checkpoint)
    assert watch.num_beats > 0
