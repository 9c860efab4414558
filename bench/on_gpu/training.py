"""The steps of `bench/gpu.py` that train: memory, speed, saving, leaving and continuing; and a whole round by `loopctl run`."""

from __future__ import annotations

import filecmp
import importlib.util
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.measuring import LOOPCTL, environment, timed
from bench.on_gpu.models import VOCABULARY, config_of, in_a_process
from bench.on_gpu.setting import LOOK_S, Bench, Figure, Figures, MemoryPeak, Observed, Size, Skip, bytes_in
from loop.config.samplers import AUTO
from loop.engines.base import CheckpointRef, Kept, TrainingResult, TrainingRow
from loop.errors import LeftTraining
from loop.fitting.estimate import resolved, room, training_pass
from loop.fitting.formula import training_memory
from loop.fitting.machine import Machine
from loop.fitting.shape import Shape, shape_of
from loop.reading.reader import reader
from loop.reading.rounds import duration_of
from loop.workers.up import best_sampler
from loop.workers.worker import RemoteTrainer
from store.checkpoints import commit_directory

RESUMED_STEPS = 4  # of a training that is left after the first one


@dataclass
class Fitted:
    """A training, as it was seen: its worker's peak, steps and end."""

    result: TrainingResult
    peak: MemoryPeak
    allocated: int | None
    step_s: float
    last_step_to_end_s: float


def training(bench: Bench) -> Figures:
    return _training(bench, "training", {})


def four_bits(bench: Bench) -> Figures:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Skip("bitsandbytes is not installed (pip install 'ssd-loop[four-bit]')")
    lora = {"rank": 16, "four_bit": True, "merge": False}
    return _training(bench, "four-bits", {"method": "lora", "lora": lora})


def _training(bench: Bench, name: str, table: dict[str, Any]) -> Figures:
    """A few steps, beside what `loopctl estimate` says of them. On a CPU, whose memory is counted from outside, a first training
    loads beforehand what stays."""
    size, parent = bench.size, bench.model()
    engines = bench.engines(name, "transformers", training={"num_steps": size.num_steps} | table)
    config = engines.loaded.config
    rows = write_rows(bench.place / name / "rows.jsonl", size)
    trainer = engines.trainer(parent)
    if not bench.on_gpu:
        fit(bench, engines, trainer, rows, parent, bench.place / name / "first", {"num_steps": 1})
    out = bench.place / name / "out"
    fitted = fit(bench, engines, trainer, rows, parent, out)
    shape = shape_of(config_of(size.model))
    plan = resolved(config, shape, bench.machine, size.row_tokens)
    estimated = training_memory(shape, training_pass(config, plan)).peak
    tokens_per_s = size.batch_size * size.row_tokens / fitted.step_s
    figures = {
        "processes": Figure(plan.num_training_processes),
        "rows and tokens of a step": Figure(f"{size.batch_size}, {size.batch_size * size.row_tokens:,}"),
        "a step": Figure(fitted.step_s, "s"),
        "speed": Figure(tokens_per_s, "tokens/s"),
        **fitted.peak.figures(fitted.allocated),
        "peak by `loopctl estimate`" + (", which counts the base in bfloat16" if table else ""): Figure(
            estimated, "bytes"
        ),
    }
    if not bench.on_gpu:
        figures["measured / estimated"] = Figure(fitted.peak.num_bytes / estimated)
    else:
        if fitted.allocated:
            figures["allocated / estimated"] = Figure(fitted.allocated / estimated)
        in_use = fitted.peak.num_bytes / room(estimated)
        figures["in use / estimated with context and fragmentation"] = Figure(in_use)
    if share := utilisation(shape, tokens_per_s, bench.machine, plan.num_training_processes):
        figures["model FLOPs utilisation (6 a parameter and token)"] = Figure(share, "share")
    figures["save: last step to the result"] = Figure(fitted.last_step_to_end_s, "s")
    figures["save: written"] = Figure(bytes_in(out), "bytes")
    _, seconds = timed(lambda: commit_directory(out, out.with_name("committed")))
    figures["save: hashed and made durable"] = Figure(seconds, "s")
    bench.close()
    shutil.rmtree(out.with_name("committed"))
    return figures


def utilisation(shape: Shape, tokens_per_s: float, machine: Machine, num: int) -> float | None:
    """Of the operations that `num` GPUs could do, those that the model's arithmetic needs; None for a GPU of unknown rates."""
    if machine.rates is None or not machine.gpus:
        return None
    return 6 * shape.num_active * tokens_per_s / (num * machine.rates[0])


def write_rows(file: Path, size: Size) -> Path:
    """Rows of random tokens, all as long as the longest that the estimate counts with."""
    draw, half = random.Random(0), size.row_tokens // 2
    with file.open("w") as lines:
        for _ in range(size.num_steps * size.batch_size):
            ids = draw.choices(range(1000, VOCABULARY), k=size.row_tokens)
            row = TrainingRow(prompt_token_ids=tuple(ids[:half]), completion_token_ids=tuple(ids[half:]))
            lines.write(row.model_dump_json() + "\n")
    return file


def fit(
    bench: Bench,
    engines: Observed,
    trainer: RemoteTrainer,
    rows: Path,
    parent: CheckpointRef,
    out: Path,
    settings: dict[str, Any] | None = None,
    kept: Kept | None = None,
) -> Fitted:
    """Train into `out`, which is made."""
    out.mkdir(parents=True)
    reports = engines.watch.reports  # type: ignore[attr-defined]
    reports.clear()
    trainer.worker.call({"op": "reset_figures"})
    given = engines.loaded.config.training.model_dump(mode="json") | {"seed": 0} | (settings or {})
    with MemoryPeak(bench, trainer.worker) as peak:
        result = trainer.fit(rows, parent, given, out, kept)
    ended = time.monotonic()
    allocated = trainer.worker.call({"op": "figures"})["allocated_bytes"]
    (first, first_at), (last, last_at) = reports[0], reports[-1]
    step_s = (last_at - first_at) / max(1, last - first)
    return Fitted(result, peak, allocated, step_s, ended - last_at)


# Leaving a training and continuing it


def resume(bench: Bench) -> Figures:
    """Two whole trainings, whose difference is the GPU's own, and one that is left after its first step and continued."""
    size, parent = bench.size, bench.model(bench.size.resumed_model)
    place = bench.place / "resume"
    engines = bench.engines("resume", "transformers", training={"num_steps": RESUMED_STEPS})
    rows = write_rows(place / "rows.jsonl", size)
    kept = Kept(directory=place / "kept")
    try:
        for name in ("whole", "again"):
            fit(bench, engines, engines.trainer(parent), rows, parent, place / name)
        kept.ask_to_end()
        with Saves(kept.directory) as saves:
            left = _leave(lambda: fit(bench, engines, engines.trainer(parent), rows, parent, place / "left", kept=kept))
            engines.close()  # the process is gone, as after a kill
            kept.ask_to_end(False)
            every = {"save_every_s": 1e-3}  # hence after each step but the last
            _, seconds = timed(
                lambda: fit(bench, engines, engines.trainer(parent), rows, parent, place / "continued", every, kept)
            )
        bench.close()
        return _equality(bench, place) | {
            "left": Figure(left),
            "started again and continued": Figure(seconds, "s"),
            "saves seen": Figure(len(saves.seconds)),
            "a save, longest": Figure(max(saves.seconds, default=None), "s"),
            "a save": Figure(saves.num_bytes, "bytes"),
        }
    finally:
        for path in (place / name for name in ("whole", "again", "left", "continued", "kept")):
            shutil.rmtree(path, ignore_errors=True)


def _leave(work: Callable[[], object]) -> str:
    try:
        work()
    except LeftTraining as left:
        return str(left)
    raise RuntimeError("the training was asked to end and did not")


def _equality(bench: Bench, place: Path) -> Figures:
    """RuntimeError where two whole trainings give the same weights and the continued one does not."""
    same = _is_same(place / "whole", place / "again")
    continued = _is_same(place / "whole", place / "continued")
    figures = {
        "two whole trainings are bit-identical": Figure(same),
        "the continued one is bit-identical": Figure(continued),
    }
    for name, other, is_same in (("two whole ones", "again", same), ("the continued one", "continued", continued)):
        if not is_same:
            told = in_a_process("compare", place / "whole", place / other)
            words = f"{told['num_other'] / told['num']:.2%} of the weights, by at most {told['largest']:.2g}"
            figures[f"{name} differ in"] = Figure(words)
    if same and not continued:
        raise RuntimeError(f"the continued training differs in {figures['the continued one differ in'].value}")
    return figures


def _is_same(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.glob("*.safetensors"))
    return bool(names) and filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


class Saves:
    """How long each save of a training takes, from outside: from its first file to its final name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seconds: list[float] = []
        self.num_bytes: int | None = None
        self.began: dict[str, float] = {}  # of those that are being written
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        began = self.began
        while not self.done.wait(LOOK_S / 10):
            parts = {each.name[1:].removesuffix(".part") for each in self.directory.glob(".checkpoint-*.part")}
            for name in parts - began.keys():
                began[name] = time.monotonic()
            for name in began.keys() - parts:
                since = began.pop(name)
                if (self.directory / name).exists():
                    self.seconds.append(time.monotonic() - since)
                    self.num_bytes = bytes_in(self.directory / name) or self.num_bytes

    def __enter__(self) -> Saves:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


# A whole round


def whole_round(bench: Bench) -> Figures:
    """By `loopctl run`, with all that the configuration leaves to the machine left to it."""
    bench.close()
    training = {"num_epochs": 1, "batch_size": bench.size.batch_size}
    loaded = bench.loaded("round", AUTO, training=training)
    log = bench.place / "round" / "loopctl.log"
    command = [*LOOPCTL, "run", "--json", "--config", str(bench.place / "round" / "loop.toml")]
    with log.open("w") as output:
        run = partial(subprocess.run, command, stdout=output, stderr=subprocess.STDOUT, env=environment())
        done, seconds = timed(run)
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"loopctl run ended with exit code {done.returncode}: {last}")
    with reader(loaded.run_dir) as store:
        (round,) = store.ledger.rounds(store.run.id)
        stages = duration_of(store, round)
    shutil.rmtree(loaded.run_dir / "checkpoints", ignore_errors=True)
    figures = {"sampler": Figure(best_sampler(bench.device)[0]), "loopctl run": Figure(seconds, "s")}
    figures |= {stage: Figure(value, "s") for stage, value in stages.items()}
    return figures | {"decision": Figure(round.state)}
