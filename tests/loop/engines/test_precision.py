"""What `engine.dtype = "auto"` stands for: what the machine can do, said with its reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loop.cli.doctor import _precision
from loop.engines import precision
from loop.engines.precision import auto_dtype

AVX2 = "processor\t: 0\nmodel name\t: A CPU with avx512_bf16 in its name\nflags\t\t: fpu sse2 avx2 fma\n"
VECTORS = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
TILES = "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 sve\n"


@pytest.fixture(autouse=True)
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """What the kernel says of the CPU; None: nothing."""
    monkeypatch.setattr(precision, "CPU_FACTS", tmp_path / "cpuinfo")
    if text is not None:
        precision.CPU_FACTS.write_text(text)


@pytest.mark.parametrize(
    ("text", "dtype", "why"),
    [
        (AVX2, "float32", "no instructions for bfloat16"),
        (VECTORS, "bfloat16", "(avx512_bf16)"),
        (TILES, "bfloat16", "(amx_bf16)"),
        (ARM, "bfloat16", "(bf16)"),
        ("", "float32", "no instructions"),
        (None, "float32", "does not say"),
    ],
)
def test_a_cpu_gets_the_precision_that_it_computes_in(text: str | None, dtype: str, why: str) -> None:
    chosen, reason = auto_dtype(on_gpu=False)
    assert chosen == dtype and why in reason
    assert auto_dtype(on_gpu=True) == ("bfloat16", "a GPU samples")


@pytest.mark.parametrize(
    ("text", "dtype", "verdict", "words"),
    [
        (AVX2, "auto", "ok", "float32: this CPU has no"),
        (VECTORS, "auto", "ok", "bfloat16: this CPU computes"),
        (AVX2, "bfloat16", "warn", "would emulate it"),
        (VECTORS, "bfloat16", "ok", "as engine.dtype says"),
        (VECTORS, "float32", "ok", "float32, as engine.dtype says"),
    ],
)
def test_doctor_says_which_and_why(text: str, dtype: str, verdict: str, words: str) -> None:
    loaded: Any = SimpleNamespace(config=SimpleNamespace(engine=SimpleNamespace(device="cpu", dtype=dtype)))
    line = _precision(loaded)
    assert (line.verdict, words in line.detail) == (verdict, True), line
    assert bool(line.remedy) == (verdict == "warn")
