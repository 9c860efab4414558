"""How fast the engines are on a machine that has other things to do: `python bench/busy.py [--variants NAME ...]`.

Beside 0, 1, 2 and 4 neighbours, processes that do nothing but spin, each variant's sampler draws the same requests and its
trainer takes the same steps; the variants take turns. A variant is environment variables of the worker and keys of
[engine]: "before" is a thread for each core that waits for the others in a loop, in bfloat16, and "after" is what the
workers do with the shipped loop.toml as it is now. The engines are those of the product: `loop.workers.up.Engines` starts them in
workers of their own, on SmolLM2-135M. Every variant's workers stay up meanwhile, so a variant in which idle threads spin
for ever (OMP_WAIT_POLICY=active) must be measured alone.

The first variant is what the others are compared with: a ratio of 2 is twice as fast. A variant that is not in the table
can be given as it is: `--variants before GOMP_SPINCOUNT=1000,dtype=float32,num_threads=1`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT, in_turns, num_tokens, timed
from bench.sampling import requests_of
from loop.config.loading import load_config
from loop.config.toml_text import toml_text
from loop.engines.base import CheckpointRef, Request, SamplingParams, TrainingRow
from loop.run.base_model import base_model
from loop.workers.up import Engines
from tests.support.tiny import make_tiny_model


class Variant(NamedTuple):
    """Environment variables of the worker, and keys of [engine]; what is left out is what it does by itself, or loop.toml says."""

    environment: Mapping[str, str]
    engine: Mapping[str, Any]


CORES = len(os.sched_getaffinity(0))
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default, which comes before any OMP_WAIT_POLICY
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
BFLOAT16 = {"dtype": "bfloat16", "num_threads": CORES}
FLOAT32 = {"dtype": "float32", "num_threads": CORES}
VARIANTS = {
    "before": Variant(SPINNING, BFLOAT16),
    "after": Variant({}, {}),
    "passive": Variant(PASSIVE, BFLOAT16),
    "float32": Variant(SPINNING, FLOAT32),
    "float32-passive": Variant(PASSIVE, FLOAT32),
    "float32-spin-1000": Variant({"GOMP_SPINCOUNT": "1000"}, FLOAT32),
    "float32-spin-10000": Variant({"GOMP_SPINCOUNT": "10000"}, FLOAT32),
    "float32-one-thread": Variant(SPINNING, FLOAT32 | {"num_threads": 1}),
    "float32-one-thread-less": Variant(SPINNING, FLOAT32 | {"num_threads": max(1, CORES - 1)}),
    "bfloat16-one-thread": Variant(SPINNING, BFLOAT16 | {"num_threads": 1}),
}
# Ends by itself where the bench was killed.
NEIGHBOUR = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1_000_000): pass"
PROMPT_LENGTHS, COMPLETION_LENGTHS = (60, 160), (16, 64)  # tokens of a training row, uniform


class Watch:
    """Notes when the worker reported which step."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, float]] = []

    def progress(self, done: int, total: int) -> None:
        self.reports.append((done, time.perf_counter()))

    def stage(self, round: int, stage: str, what: str) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Measured:
    """The engines of one variant, up and warm."""

    def __init__(self, name: str, variant: Variant, size: argparse.Namespace, place: Path) -> None:
        self.watch = Watch()
        self.place = place / name.replace("/", "_")
        self.place.mkdir()
        tables = tomllib.loads((ROOT / "loop.toml").read_text())
        engine = {"sampler": "transformers", "device": "cpu", "batch_size": size.batch_size}
        tables["engine"] = tables["engine"] | engine | dict(variant.engine)
        tables["training"] |= {"num_epochs": 1, "batch_size": size.rows, "micro_batch_size": min(4, size.rows)}
        if size.small:
            tables["model"]["source"] = str(make_tiny_model(self.place / "tiny-model"))
        (self.place / "loop.toml").write_text(toml_text(tables))
        loaded = load_config(self.place / "loop.toml")
        self.training = loaded.config.training.model_dump(mode="json") | {"seed": 0, "held_out": 0}
        base = base_model(loaded.config, loaded.base_dir, loaded.run_dir)
        self.checkpoint = CheckpointRef(sha256="base", path=base.resolve())
        self.rows_file = self.place / "rows.jsonl"
        rows = rows_of((size.steps + 1) * size.rows, 400 if size.small else 40000)
        self.rows_file.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        self.params = SamplingParams(temperature=1.2, top_k=20, top_p=0.8, max_new_tokens=size.new_tokens)
        self.requests = requests_of(size.requests)
        self.engines = Engines(loaded, self.watch)
        with mock.patch.dict(os.environ, variant.environment):  # which the workers inherit
            self.sampler = self.engines.sampler(self.checkpoint)
            self.trainer = self.engines.trainer(self.checkpoint)
        if not self.engines.serving("base"):
            raise SystemExit("no memory for a sampler beside a trainer; measure fewer variants")
        self.tokens_per_s(self.requests[:2])

    def tokens_per_s(self, requests: Sequence[Request]) -> float:
        count, seconds = timed(lambda: num_tokens(self.sampler.generate(requests, self.params)))
        return count / seconds

    def step_s(self) -> float:
        """Seconds of a step, without the first one. What loads and writes the model is not counted."""
        self.watch.reports.clear()
        with tempfile.TemporaryDirectory(dir=self.place) as out:
            self.trainer.fit(self.rows_file, self.checkpoint, self.training, Path(out))
        (first, started), (last, ended) = self.watch.reports[0], self.watch.reports[-1]
        return (ended - started) / (last - first)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that spin while this lasts."""
    up = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for process in up:
            process.kill()
            process.wait()


def rows_of(count: int, num_tokens: int) -> list[TrainingRow]:
    """Random tokens below `num_tokens`."""
    stream = random.Random(0)

    def some(lengths: tuple[int, int]) -> tuple[int, ...]:
        return tuple(stream.randrange(num_tokens // 10, num_tokens) for _ in range(stream.randint(*lengths)))

    return [
        TrainingRow(prompt_token_ids=some(PROMPT_LENGTHS), completion_token_ids=some(COMPLETION_LENGTHS))
        for _ in range(count)
    ]


def variant_of(text: str) -> tuple[str, Variant]:
    """One of the table, or KEY=VALUE,...: in capitals a variable of the environment, else a key of [engine]; by its name."""
    if text in VARIANTS:
        return text, VARIANTS[text]
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(VARIANTS)}, nor KEY=VALUE,KEY=VALUE")
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    environment = {key: value for key, value in pairs if key.isupper()}
    engine = {key: int(value) if value.isdigit() else value for key, value in pairs if not key.isupper()}
    return text, Variant(environment, engine)


def measure(
    variants: dict[str, Variant], counts: Sequence[int], size: argparse.Namespace, repeats: int
) -> Iterator[tuple[int, dict[str, tuple[float, float]]]]:
    """For each number of neighbours, each variant's tokens/s and seconds of a step, medians of the repeats."""
    with tempfile.TemporaryDirectory(prefix="busy-") as place, contextlib.ExitStack() as stack:
        up = {}
        for name, variant in variants.items():
            up[name] = Measured(name, variant, size, Path(place))
            stack.callback(up[name].engines.close)
            print(f"{name} is up", file=sys.stderr, flush=True)
        for count in counts:
            results: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
            with neighbours(count):
                for _, name in in_turns(up, repeats):
                    rate, step_s = up[name].tokens_per_s(up[name].requests), up[name].step_s()
                    results[name].append((rate, step_s))
                    print(f"{count} neighbours, {name}: {rate:.1f} tokens/s, {step_s:.2f} s a step", file=sys.stderr)
            yield count, {name: tuple(map(median, zip(*each, strict=True))) for name, each in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--variants", nargs="+", type=variant_of, default=[*map(variant_of, ("before", "after"))],
                        help=f"of {', '.join(VARIANTS)}, or KEY=VALUE,...")  # fmt: skip
    parser.add_argument("--threads", type=int, help="of every variant that names no other number than all cores")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="of training, after a first one that is not counted")
    parser.add_argument("--rows", type=int, default=4, help="of a step of training")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it works; figures say nothing")
    asked = parser.parse_args()
    if asked.small:
        asked.requests, asked.batch_size, asked.new_tokens, asked.steps = 4, 2, 8, 1
    variants = dict(asked.variants)
    for name, variant in variants.items():
        if asked.threads and variant.engine.get("num_threads", CORES) == CORES:
            variants[name] = variant._replace(engine={**variant.engine, "num_threads": asked.threads})
    width = max(map(len, variants))
    for count, results in measure(variants, asked.neighbours, asked, asked.repeats):
        print(f"\n{count} busy neighbours on {CORES} cores", flush=True)
        print(f"{'':<{width}}  {'tokens/s':>9} {'ratio':>6}   {'s a step':>9} {'ratio':>6}")
        first_rate, first_s = next(iter(results.values()))
        for name, (rate, step_s) in results.items():
            ratios = rate / first_rate, first_s / step_s
            print(f"{name:<{width}}  {rate:>9.1f} {ratios[0]:>6.2f}   {step_s:>9.2f} {ratios[1]:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
