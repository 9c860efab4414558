"""Which precision `engine.dtype = "auto"` stands for. Reads what the kernel says of the CPU; imports no torch.

A CPU without instructions for bfloat16 emulates it, more slowly than it computes in float32, so the name of a precision
can't be a default for every machine. The answer depends on the machine alone, never on how busy it is: a run that continues
after a kill keeps its precision.
"""

from __future__ import annotations

from pathlib import Path

CPU_FACTS = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # x86 with tiles or vectors; ARM


def auto_dtype(on_gpu: bool) -> tuple[str, str]:
    """The precision of weights while sampling, "bfloat16" or "float32", and why."""
    if on_gpu:
        return "bfloat16", "a GPU samples"
    try:
        lines = CPU_FACTS.read_text(errors="replace").splitlines()
    except OSError:
        return "float32", "this system does not say what its CPU can do"
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    if flag := next(filter(flags.__contains__, BFLOAT16_FLAGS), None):
        return "bfloat16", f"this CPU computes in bfloat16 ({flag})"
    return "float32", "this CPU has no instructions for bfloat16 and would emulate it, slower than float32"
