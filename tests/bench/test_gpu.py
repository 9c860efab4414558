"""What bench/gpu.py does with its steps, and the arithmetic of their figures. The steps themselves run in test_benches.py."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.waiting import wait_until

sys.path.insert(0, str(ROOT))

from bench import gpu
from bench.on_gpu import setting, training
from bench.on_gpu.models import config_of
from bench.on_gpu.sampling import Noting, fullness
from bench.on_gpu.setting import TINY, Bench, Figure, Figures, Skip
from loop.fitting.machine import Machine
from loop.fitting.shape import shape_of

CPU = Machine((), 8 << 30, 1 << 40)


class Up:
    """Engines that are up."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("cpu", tmp_path, TINY, CPU, {}, "token")


def well(bench: Bench) -> Figures:
    return {"speed": Figure(1234.5, "tokens/s"), "size": Figure(2_100_000_000, "bytes"), "same": Figure(True)}


def left_out(bench: Bench) -> Figures:
    raise Skip("a library is\nnot installed")


def broken(bench: Bench) -> Figures:
    raise RuntimeError("a | pipe,\nand a second line")


def test_after_a_failure_the_rest_goes_on_and_its_engines_end(bench: Bench) -> None:
    up: Any = Up()
    bench.up = up
    noted: list[int] = []
    steps = {"a": broken, "b": left_out, "c": well}
    outcomes = gpu.run_all(steps, bench, math.inf, lambda each: noted.append(len(each)))
    assert [(each.status, each.reason) for each in outcomes] == [
        ("failed", "RuntimeError: a | pipe, and a second line"),
        ("skipped", "a library is not installed"),
        ("done", ""),
    ]
    assert up.closed and bench.up is None and noted == [1, 2, 3]


def test_when_the_time_is_over_only_the_last_step_is_done(bench: Bench) -> None:
    outcomes = gpu.run_all({"a": well, "b": broken, "last": well}, bench, time.monotonic() - 1, lambda each: None)
    assert [each.status for each in outcomes] == ["skipped", "skipped", "done"]
    assert "--minutes" in outcomes[0].reason


def test_the_table_has_a_line_for_each_figure_and_each_reason(bench: Bench) -> None:
    outcomes = gpu.run_all({"a": well, "b": left_out, "c": broken}, bench, math.inf, lambda each: None)
    told, empty, header, _, *lines = gpu.markdown(outcomes, "a machine").splitlines()
    assert (told, empty, header) == ("a machine", "", "| step | what | figure |")
    assert lines[:3] == ["| a | speed | 1,234 tokens/s |", "| a | size | 2.1 GB |", "| a | same | yes |"]
    assert lines[3].startswith("| a | took | ") and lines[4] == "| b | skipped | a library is not installed |"
    assert lines[5:] == ["| c | failed | RuntimeError: a / pipe, and a second line |"]


def test_the_json_has_figures_as_they_were_measured(bench: Bench) -> None:
    outcomes = gpu.run_all({"a": well, "b": left_out}, bench, math.inf, lambda each: None)
    read = json.loads(gpu.as_json(outcomes, device="cpu"))
    first, second = read["steps"]
    assert read["device"] == "cpu" and first["figures"]["speed"] == {"value": 1234.5, "unit": "tokens/s"}
    assert (second["status"], second["reason"], second["figures"]) == ("skipped", "a library is not installed", {})


@pytest.mark.parametrize(("steps", "code"), [({"a": well, "b": left_out}, 0), ({"a": broken, "b": well}, 1)])
def test_the_exit_code_says_whether_a_step_failed(
    steps: dict[str, gpu.Step], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu.signal, "signal", lambda *given: None)
    monkeypatch.setenv(setting.TREE, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--place", str(tmp_path / "place")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == code
    written = json.loads((tmp_path / "place" / "gpu.json").read_text())
    assert [step["name"] for step in written["steps"]] == ["a", "b"] and written["device"] == "cpu"


def test_a_place_with_something_in_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (setting.TREE, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit):
        gpu.prepared(argparse.Namespace(device="cpu", place=tmp_path, size=None))
    assert (tmp_path / "mine").exists() and "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("gb", "disk", "size"), [(25.2, 1e12, "0.6B"), (84, 1e12, "1.7B"), (84, 2e10, "0.6B")])
def test_the_model_is_the_largest_that_fits_memory_and_disk(gb: float, disk: float, size: str) -> None:
    machine = Machine((int(gb * 1e9),), 1 << 37, int(disk), gpu="NVIDIA H100")
    assert gpu.size_for(machine, None).model == size
    assert gpu.size_for(machine, "4B").model == "4B"


def test_an_engine_is_full_when_its_places_are_taken_or_rows_wait() -> None:
    moments = [(0.0, 0, 0), (1.0, 4, 4), (2.0, 8, 10), (4.0, 8, 8), (5.0, 5, 7), (6.0, 2, 2), (9.0, 1, 1)]
    mean, full = fullness(moments, 8, until=6.0)
    assert mean == pytest.approx((4 + 8 + 2 * 8 + 5 + 2) / 6) and full == pytest.approx(4 / 6)
    assert fullness(moments, 8, until=5.5)[1] == pytest.approx(4 / 5.5)
    assert fullness([], 8, 1.0) == (0.0, 0.0)


def test_a_feed_notes_when_it_has_no_more() -> None:
    feed = Noting([], 0)
    assert feed.take(0) == [] and feed.over_at is None
    assert feed.take(1) == [] and feed.over_at is not None


def test_the_utilisation_is_of_all_gpus() -> None:
    shape = shape_of(config_of("1.7B"))
    machine = Machine((150 * 10**9,) * 2, 1 << 40, 1 << 40, gpu="NVIDIA H200")
    speed = 9.9e14 / (6 * shape.num_active)  # of one GPU at its peak
    assert training.utilisation(shape, speed, machine, 2) == pytest.approx(0.5)
    assert training.utilisation(shape, speed, Machine((), 1, 1), 1) is None


def test_saves_are_timed_from_their_first_file_to_their_name(tmp_path: Path) -> None:
    with training.Saves(tmp_path) as saves:
        for number in (1, 2):
            part = tmp_path / f".checkpoint-{number}.part"
            part.mkdir()
            (part / "weights").write_bytes(bytes(100))
            wait_until(lambda number=number: f"checkpoint-{number}" in saves.began)
            seen_at = time.monotonic()
            time.sleep(0.05)
            renamed_at = time.monotonic()
            part.rename(tmp_path / f"checkpoint-{number}")
            wait_until(lambda number=number: len(saves.seconds) == number)
            assert saves.seconds[-1] >= renamed_at - seen_at
    assert saves.num_bytes == 100


@pytest.mark.parametrize("again", [b"one", b"another"])
def test_a_continued_training_fails_only_where_two_whole_ones_agree(
    again: bytes, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "in_a_process", lambda *words: {"num": 100, "num_other": 3, "largest": 0.25})
    for name, content in (("whole", b"one"), ("again", again), ("continued", b"other")):
        (bench.place / name).mkdir()
        (bench.place / name / "model.safetensors").write_bytes(content)
    if again == b"one":
        with pytest.raises(RuntimeError, match="differs in 3.00% of the weights, by at most 0.25"):
            training._equality(bench, bench.place)
    else:
        figures = training._equality(bench, bench.place)
        assert [figure.value for figure in figures.values()][:2] == [False, False] and len(figures) == 4


def test_a_process_that_stays_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "END_S", 0.0)
    command = [sys.executable, "-c", "input()"]
    stays = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {setting.TREE: "token"})
    try:
        wait_until(lambda: list(setting.ours("token")))
        with pytest.raises(RuntimeError, match=f"pid {stays.pid}"):
            setting.afterwards(bench)
    finally:
        stays.communicate(b"\n")
    assert setting.afterwards(bench)["processes left"].value == 0
