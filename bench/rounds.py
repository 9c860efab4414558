"""Three whole rounds beside the hand-written script (`bench/script.py`): same engine, same settings, same machine.

`python bench/rounds.py [--engine vllm|transformers] [--pairs K] [--rounds N] [--small]`. SmolLM2-135M, two CPU cores or a GPU: 64
completions and a fine-tune on them, then head and candidate on 30 HumanEval problems. The diagnosis, for which the script
has nothing, is off. Also: what the loop adds to a round beside its stages, and beside what its engines and grading take.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from loop.config.loading import load_config  # noqa: E402
from loop.grading.suite import load_suite  # noqa: E402
from loop.prompts.sources import load_prompts, prompts_of_round  # noqa: E402
from loop.run.base_model import base_model  # noqa: E402
from loop.stages.evaluating import yardstick  # noqa: E402


class Size(NamedTuple):
    """Completions of a round, problems of an evaluation, and how many the engine takes at once."""

    per_round: int = 64
    num_problems: int = 30
    batch: int = 64


WHOLE, SMALL = Size(), Size(8, 2, 8)  # the small one in a minute, to see that it works
CONFIG = """
name = "bench"
rounds = {rounds}
[model]
source = "smollm2-135m"
[prompts]
per_round = {per_round}
[sampling]
temperature = 1.2
top_k = 20
top_p = 0.8
max_new_tokens = 96
stop = ["\\n```"]
[training]
num_epochs = 1
batch_size = 16
micro_batch_size = 8
learning_rate = 2e-5
held_out = 0
[decide]
suite = "humaneval"
[diagnosis]
num_prompts = 0
[[suites]]
name = "humaneval"
source = "humaneval"
limit = {num_problems}
max_new_tokens = 96
[engine]
sampler = "{engine}"
batch_size = {batch}
"""
TRAINING = {
    "num_train_epochs": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "weight_decay": 0.1,
    "adam_beta2": 0.95, "logging_steps": 1,
}  # fmt: skip
# Where our time goes, printed at the end of a run in a process of its own.
TIMED = """
import json, sys, time
from loop.workers import worker
from loop.grading import grader
spent = {"engines": 0.0, "grading": 0.0}
def timed(owner, name, key):
    real = getattr(owner, name)
    def wrapped(*given, **named):
        found = real(*given, **named)
        while True:
            started = time.perf_counter()
            try:
                item = next(found)
            except StopIteration:
                return
            finally:
                spent[key] += time.perf_counter() - started
            yield item
    setattr(owner, name, wrapped)
def whole(owner, name, key):
    real = getattr(owner, name)
    def wrapped(*given, **named):
        started, before = time.perf_counter(), spent[key]
        try:
            return real(*given, **named)
        finally:
            spent[key] = before + time.perf_counter() - started
    setattr(owner, name, wrapped)
timed(worker.Worker, "stream", "engines")
whole(worker.Worker, "__init__", "engines")
timed(grader.Grader, "grade", "grading")
sys.argv[0] = "loopctl"
from loop.cli.main import main
try:
    main()
finally:
    print("SPENT", json.dumps(spent), file=sys.stderr)
"""


def ours(engine: str, rounds: int, directory: Path, size: Size) -> dict[str, float]:
    """One run of the loop; seconds of wall time, inside engines, inside grading, and inside stages."""
    toml = directory / "loop.toml"
    toml.write_text(CONFIG.format(rounds=rounds, engine=engine, **size._asdict()))
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", TIMED, "run", "--json", "--config", str(toml)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - started
    assert done.returncode == 0, done.stderr[-2000:]
    spent = json.loads(re.findall(r"^SPENT (.*)$", done.stderr, re.M)[-1])
    return {"wall_s": wall_s, **spent, **stages(toml)}


def stages(toml: Path) -> dict[str, float]:
    """Seconds of all rounds from begin to end, and of their stages' attempts."""
    from store.db import open_database
    from store.ledger import Ledger

    database = open_database(load_config(toml).run_dir / "loop.db")
    ledger = Ledger(database)
    run = ledger.run()
    assert run is not None
    found = {"rounds": 0.0, "stages": 0.0}
    for round in ledger.rounds(run.id):
        ends = []
        for stage in ("sampling", "training", "evaluating", "deciding"):
            for attempt in ledger.attempts(run.id, round.number, stage):
                assert attempt.finished_at
                found["stages"] += seconds(attempt.finished_at) - seconds(attempt.started_at)
                ends.append(seconds(attempt.finished_at))
        found["rounds"] += max(ends) - seconds(round.started_at)
    database.close()
    return found


def seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


def script(
    engine: str, rounds: int, directory: Path, model: Path, prompts: list[Path], problems: Path, size: Size
) -> float:
    """Seconds of the same rounds by hand."""
    settings = directory / "training.json"
    settings.write_text(json.dumps(TRAINING))
    started = time.perf_counter()
    head = model
    for number in range(1, rounds + 1):
        asked = directory / f"ask-{number}.jsonl"
        asked.write_text(prompts[number - 1].read_text() + problems.read_text())
        step("generate", engine, head, asked, directory / f"out-{number}.jsonl")
        lines = (directory / f"out-{number}.jsonl").read_text().splitlines(keepends=True)
        (directory / f"samples-{number}.jsonl").write_text("".join(lines[: size.per_round]))
        (directory / f"head-{number}.jsonl").write_text("".join(lines[size.per_round :]))
        candidate = directory / f"model-{number}"
        step("train", head, directory / f"samples-{number}.jsonl", candidate, settings)
        step("generate", engine, candidate, problems, directory / f"candidate-{number}.jsonl")
        rates = [float(step("grade", directory / f"{who}-{number}.jsonl").split()[1]) for who in ("head", "candidate")]
        head = candidate if rates[1] > rates[0] else head
    return time.perf_counter() - started


def step(*arguments: str | Path) -> str:
    command = [sys.executable, str(ROOT / "bench/script.py"), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def prepare(rounds: int, directory: Path, size: Size) -> tuple[Path, list[Path], Path]:
    """The model, and what the script asks: the very prompts that ours asks, as text. Not timed."""
    from transformers import AutoTokenizer

    toml = directory / "loop.toml"
    toml.write_text(CONFIG.format(rounds=1, engine="transformers", **size._asdict()))
    loaded = load_config(toml)
    config = loaded.config
    model = base_model(config, loaded.base_dir, loaded.run_dir)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def row(content: dict[str, Any], decoding: Any, stop: list[str], **more: Any) -> str:
        text = tokenizer.apply_chat_template(content["messages"], tokenize=False, add_generation_prompt=True)
        given = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p,
                 "max_tokens": decoding.max_new_tokens}  # fmt: skip
        return (
            json.dumps(
                {
                    "prompt": text + content["prefill"],
                    "decoding": given,
                    "stop": stop,
                    "dtype": "float32",
                    "batch_size": size.batch,
                }
                | more
            )
            + "\n"
        )

    found = load_prompts(config.prompts, config.model, loaded.base_dir)
    files = []
    for number in range(1, rounds + 1):
        chosen = prompts_of_round(found, size.per_round, config.seed, number)
        files.append(directory / f"prompts-{number}.jsonl")
        files[-1].write_text("".join(row(one.content, config.sampling, list(config.sampling.stop)) for one in chosen))
    suite = config.suites[0]
    measured = yardstick(load_suite(suite.source, suite.limit, loaded.base_dir), suite, config)
    problems = directory / "problems.jsonl"
    lines = []
    for id, prompt in measured.prompts.items():
        problem = measured.graded_as[id]
        opened = prompt.content["opening"].removeprefix("```python\n")
        asked = problem.payload | {"task_id": problem.task_id, "entry_point": problem.entry_point}
        lines.append(row(prompt.content, suite, ["\n```"], problem=asked, opening=opened))
    problems.write_text("".join(lines))
    return model, files, problems


def measure(engine: str, rounds: int, pairs: int, size: Size = WHOLE) -> dict[str, Any]:
    """Medians of pairs in turns: seconds of each, the ratio, and the loop's own share."""
    place = Path(tempfile.mkdtemp(prefix="rounds-"))
    try:
        model, prompts, problems = prepare(rounds, place, size)
        rows = []
        for pair in range(pairs):
            here = [place / f"{who}-{pair}" for who in ("ours", "script")]
            for directory in here:
                directory.mkdir()
            found = ours(engine, rounds, here[0], size)
            print(f"ours: {found['wall_s']:.0f} s", file=sys.stderr, flush=True)
            found["script_s"] = script(engine, rounds, here[1], model, prompts, problems, size)
            found["ratio"] = found["wall_s"] / found["script_s"]
            found["added"] = 1 - found["stages"] / found["rounds"]
            found["beside_engines_and_grading"] = 1 - (found["engines"] + found["grading"]) / found["rounds"]
            rows.append(found)
            print(json.dumps({key: round(value, 3) for key, value in found.items()}), file=sys.stderr, flush=True)
            for directory in here:
                shutil.rmtree(directory)
        return {key: median(row[key] for row in rows) for key in rows[0]}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a minute, to see that it works; figures say nothing")
    asked = parser.parse_args()
    found = measure(asked.engine, asked.rounds, asked.pairs, SMALL if asked.small else WHOLE)
    print(f"{asked.rounds} rounds, {asked.engine}, {asked.pairs} pairs, medians")
    print(
        f"ours {found['wall_s']:.0f} s, the script {found['script_s']:.0f} s, ratio {found['ratio']:.2f} (at most 0.80)"
    )
    print(f"beside its stages the loop adds {found['added']:.1%} to a round (at most 2%)")
    print(f"beside engines and grading {found['beside_engines_and_grading']:.1%}")


if __name__ == "__main__":
    main()
