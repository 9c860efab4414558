"""All that only a GPU can show, in one command under ten minutes: `make gpu`, or `python bench/gpu.py [--device cpu] [--size 4B]`.

A model with random weights goes through the engines of a run, in workers as in a run: vLLM's start with the proof of its weights,
how full it stays, other weights in place; the sampler over transformers; training beside `loopctl estimate`, left and
continued; saving; a whole round by `loopctl run`; what is left afterwards. It prints a table in Markdown and writes
build/gpu/gpu.json. A step that this machine cannot do is skipped, one that raises has failed, each with its reason in a line,
and the others go on; exit code 1 where one failed. Logs stay in build/gpu, models do not.

`--device cpu` does the same on a tiny model in a minute, or four with vLLM, to see that it works: its figures say nothing. vLLM's steps want it
installed: for a GPU `make gpu` does that, on a CPU `make test-vllm`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT
from bench.on_gpu import sampling, setting, training
from bench.on_gpu.models import SIZES, config_of
from bench.on_gpu.setting import TINY, TREE, WHOLE, Bench, Figure, Figures, Size, Skip
from loop.engines.base import TrainingPass
from loop.fitting.estimate import room
from loop.fitting.formula import training_memory
from loop.fitting.machine import Machine, this_machine
from loop.fitting.shape import shape_of
from loop.system.gpus import used_bytes, visible_devices
from loop.words import size as bytes_in_words

PLACE = ROOT / "build" / "gpu"
MINUTES = 8.0  # so that ten are enough with the step that began before
CHOSEN = ("1.7B", "0.6B")  # the first that fits; with more weights ten minutes are not enough
MODELS_ON_DISK = 8  # whole models that lie beside each other at most, and some room
LATE = "no time is left; --minutes gives more, --only takes some of the steps"
Step = Callable[[Bench], Figures]
STEPS: dict[str, Step] = {
    "machine": setting.machine,
    "model": setting.model,
    "engine": sampling.engine_start,
    "feed": sampling.feed,
    "reload": sampling.reload,
    "training": training.training,
    "resume": training.resume,
    "round": training.whole_round,
    "transformers": sampling.transformers_sampler,
    "four bits": training.four_bits,
    "afterwards": setting.afterwards,
}


@dataclass
class Outcome:
    """How a step went: "done" with figures, or "skipped" or "failed" with a reason."""

    name: str
    status: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""


def run_step(name: str, step: Step, bench: Bench) -> Outcome:
    """Do it. What an engine of it holds is given back where it did not come to its end."""
    began = time.monotonic()
    try:
        return Outcome(name, "done", figures=step(bench), seconds=time.monotonic() - began)
    except Skip as skip:
        return Outcome(name, "skipped", time.monotonic() - began, reason=one_line(str(skip)))
    except Exception as error:
        traceback.print_exc()
        reason = one_line(f"{type(error).__name__}: {error}")
        try:
            bench.close()
        except Exception as another:
            reason += one_line(f"; and its engines do not end: {another}")
        return Outcome(name, "failed", time.monotonic() - began, reason=reason)


def one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def run_all(
    steps: Mapping[str, Step], bench: Bench, until: float, note: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Each step's outcome, in turn; said as it happens, and noted after each. None begins after `until` but the last."""
    outcomes: list[Outcome] = []
    for number, (name, step) in enumerate(steps.items(), 1):
        print(f"{name} ...", file=sys.stderr, flush=True)
        is_late = number < len(steps) and time.monotonic() > until
        outcomes.append(
            outcome := Outcome(name, "skipped", 0.0, reason=LATE) if is_late else run_step(name, step, bench)
        )
        told = f"    {outcome.status} after {outcome.seconds:.1f} s"
        print(f"{told}{': ' + outcome.reason if outcome.reason else ''}", file=sys.stderr, flush=True)
        note(outcomes)
    return outcomes


def in_words(figure: Figure) -> str:
    """A figure as the table has it."""
    value, unit = figure
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    match unit:
        case "bytes":
            return bytes_in_words(value)
        case "share":
            return f"{value:.1%}"
        case "s" | "nats":
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        case "tokens/s":
            return f"{value:,.0f} {unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def markdown(outcomes: list[Outcome], told: str) -> str:
    lines = [told, "", "| step | what | figure |", "|---|---|---|"]
    for outcome in outcomes:
        cells = [(what, in_words(figure)) for what, figure in outcome.figures.items()]
        cells.append(
            ("took", f"{outcome.seconds:.1f} s") if outcome.status == "done" else (outcome.status, outcome.reason)
        )
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in (outcome.name, *row)) + " |" for row in cells]
    return "\n".join(lines)


def as_json(outcomes: list[Outcome], **more: Any) -> str:
    steps = [
        {
            "name": outcome.name,
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": outcome.seconds,
            "figures": {what: figure._asdict() for what, figure in outcome.figures.items()},
        }
        for outcome in outcomes
    ]
    return json.dumps(more | {"steps": steps}, indent=1, ensure_ascii=False)


def size_for(machine: Machine, wanted: str | None) -> Size:
    """How much is done on a GPU: with the model that was asked for, or with the largest that fits GPU and disk."""
    if wanted is None:
        wanted = next((name for name in CHOSEN if _fits(name, machine)), CHOSEN[-1])
    return WHOLE._replace(model=wanted)


def _fits(name: str, machine: Machine) -> bool:
    shape = shape_of(config_of(name))
    rows = {"num_rows": WHOLE.micro_batch_size, "row_tokens": WHOLE.row_tokens}
    work = TrainingPass(num_processes=1, on_gpu=True, **rows)
    on_disk = MODELS_ON_DISK * shape.saved_bytes * shape.num_parameters
    return room(training_memory(shape, work).peak) <= min(machine.gpus) and on_disk <= machine.disk_free


def prepared(asked: argparse.Namespace) -> Bench:
    """The bench on this machine, in an empty place. Exit code 2 where there is none, or no GPU and one was asked for."""
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gpus = visible_devices()
    if asked.device == "cuda" and not gpus:
        print("there is no GPU; --device cpu does it on a CPU", file=sys.stderr)
        raise SystemExit(2)
    device = "cuda" if gpus else "cpu"
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    token = os.environ[TREE] = secrets.token_hex(16)
    if asked.place == PLACE:
        shutil.rmtree(PLACE, ignore_errors=True)
    asked.place.mkdir(parents=True, exist_ok=True)
    if any(asked.place.iterdir()):
        print(f"{asked.place} is not empty; name another --place", file=sys.stderr)
        raise SystemExit(2)
    machine = this_machine(asked.place, device)
    size = size_for(machine, asked.size) if gpus else TINY._replace(model=asked.size or TINY.model)
    return Bench(device, asked.place, size, machine, used_bytes(), token)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no git"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), help="of the model; by default what fits, at most 1.7B")
    parser.add_argument("--minutes", type=float, help=f"no step begins later; {MINUTES:g} on a GPU, no limit on a CPU")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), help="these steps, and those that they need")
    parser.add_argument("--place", type=Path, default=PLACE, help="an empty directory; build/gpu is emptied")
    asked = parser.parse_args()
    asked.place = asked.place.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    bench = prepared(asked)
    needed = {"machine", "model", "afterwards"} | ({"engine"} if {"feed", "reload"} & set(asked.only or ()) else set())
    steps = {name: step for name, step in STEPS.items() if not asked.only or name in needed | set(asked.only)}
    minutes = asked.minutes if asked.minutes is not None else MINUTES if bench.on_gpu else math.inf
    date, version, began = datetime.date.today().isoformat(), commit(), time.monotonic()
    where = "GPU" if bench.on_gpu else "CPU: these figures say only that it works"

    def note(outcomes: list[Outcome]) -> None:
        seconds = time.monotonic() - began
        told = f"{date}, {version}, {where}, random weights ({bench.size.model}), {seconds / 60:.1f} minutes in all"
        (bench.place / "table.md").write_text(markdown(outcomes, told) + "\n")
        more = {
            "date": date,
            "commit": version,
            "device": bench.device,
            "seconds": seconds,
            "size": bench.size._asdict(),
        }
        (bench.place / "gpu.json").write_text(as_json(outcomes, **more))

    try:
        outcomes = run_all(steps, bench, began + 60 * minutes, note)
    finally:
        bench.close()
        shutil.rmtree(bench.place / "models", ignore_errors=True)
    print(f"\n{(bench.place / 'table.md').read_text()}\n{bench.place / 'gpu.json'} has it as JSON", flush=True)
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    main()
