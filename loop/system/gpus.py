"""How much memory of the GPUs is in use, whether they compute, and waiting until what an ended worker held is free again.

A driver can take seconds to free the memory of a killed process; a model that is loaded too early finds no room. Uses NVML
(nvidia-ml-py); without an NVIDIA driver there are no devices and nothing is imported. No function raises for a fault of the
driver: nothing waits for memory that cannot be measured.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # the second under WSL
FREE_TIMEOUT_S = 60.0
POLL_S = 0.5
TOLERANCE_BYTES = 300_000_000  # other processes may take or free as much; an engine holds more


def used_bytes() -> dict[int, int]:
    """The bytes that all processes use on each device that a worker may use, by NVML's index (that of nvidia-smi).

    CUDA_VISIBLE_DEVICES is respected: indices in the order of the PCI bus, or UUIDs, of MIG slices too; as with CUDA, an
    entry that names no device ends the list. Slices of one device are added up.
    """
    used: dict[int, int] = {}
    for nvml, _, index, device in _devices():
        with contextlib.suppress(nvml.NVMLError):  # not every device can say
            used[index] = used.get(index, 0) + int(nvml.nvmlDeviceGetMemoryInfo(device).used)
    return used


def total_bytes() -> dict[int, int]:
    """The memory of each device that a worker may use, by NVML's index; slices of one device are added up."""
    totals: dict[int, int] = {}
    for nvml, _, index, device in _devices():
        with contextlib.suppress(nvml.NVMLError):
            totals[index] = totals.get(index, 0) + int(nvml.nvmlDeviceGetMemoryInfo(device).total)
    return totals


def device_names() -> list[str]:
    """What each visible device is called: "NVIDIA H100 80GB HBM3"."""
    names = []
    for nvml, _, _, device in _devices():
        with contextlib.suppress(nvml.NVMLError):
            name = nvml.nvmlDeviceGetName(device)
            names.append(name.decode() if isinstance(name, bytes) else str(name))
    return names


def is_any_busy(names: str | None) -> bool:
    """Whether a device has computed within the last second. `names` as in CUDA_VISIBLE_DEVICES; None: all devices."""
    busy = False
    for nvml, _, _, device in _devices(names):
        with contextlib.suppress(nvml.NVMLError):  # slices cannot say
            busy = busy or nvml.nvmlDeviceGetUtilizationRates(device).gpu > 0
    return busy


def visible_devices() -> list[tuple[str, int]]:
    """Each device that a worker may use: its name for CUDA_VISIBLE_DEVICES, and NVML's index of it or of its parent."""
    return [(name, index) for _, name, index, _ in _devices()]


def _devices(names: str | None = None) -> Iterator[tuple[Any, str, int, Any]]:
    """NVML, and each visible device's name, index and NVML handle. The caller reads the iterator to its end.

    `names` is a value of CUDA_VISIBLE_DEVICES; None: this process's own.
    """
    if not any(path.exists() for path in DRIVER_FILES):
        return
    try:
        import pynvml
    except ImportError:
        return
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            names = os.environ.get("CUDA_VISIBLE_DEVICES") if names is None else names
            yield from ((pynvml, *visible) for visible in _visible(pynvml, names))
        finally:
            pynvml.nvmlShutdown()


def _visible(nvml: Any, names: str | None) -> Iterator[tuple[str, int, Any]]:
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if names is None:
        yield from ((str(index), index, device) for index, device in enumerate(devices))
        return
    for name in (part.strip() for part in names.split(",")):
        if name.startswith("MIG-"):
            part = nvml.nvmlDeviceGetHandleByUUID(name)
            yield name, nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)), part
            continue
        if name.startswith("GPU-"):  # may be abbreviated
            matches = [i for i, device in enumerate(devices) if nvml.nvmlDeviceGetUUID(device).startswith(name)]
        else:
            matches = [int(name)] if name.isdecimal() and int(name) < len(devices) else []
        if len(matches) != 1:
            return
        yield name, matches[0], devices[matches[0]]


def wait_until_free(
    before: dict[int, int],
    pulse: Callable[[], None],
    timeout_s: float = FREE_TIMEOUT_S,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, int]:
    """Wait until about as many bytes are in use as `before`. Returns the bytes that are still in use beyond that, by device.

    `pulse` is called meanwhile; what it raises ends the wait.
    """
    deadline = clock() + timeout_s
    while before:
        used = used_bytes()
        held = {device: used[device] - was for device, was in before.items() if device in used}
        held = {device: more for device, more in held.items() if more > TOLERANCE_BYTES}
        if not held or clock() >= deadline:
            return held
        pulse()
        time.sleep(POLL_S)
    return {}
