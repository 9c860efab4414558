"""Three whole rounds beside the hand-written script (`bench/script.py`): same engine, same settings, same machine.

`python bench/rounds.py [--engine vllm|transformers] [--pairs K] [--rounds N] [--small]`. SmolLM2-135M, two CPU cores or a GPU: 64
completions and a fine-tune on them, then head and candidate on 30 HumanEval problems. The diagnosis, for which the script
has nothing, is off. Also: what the loop adds to a round beside its stages, and beside what its engines and grading take.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT, environment, timed
from loop.config.loading import load_config
from loop.config.toml_text import toml_text
from loop.grading.suite import load_suite
from loop.prompts.sources import load_prompts, prompts_of_round
from loop.reading.reader import reader
from loop.reading.rounds import duration_of
from loop.run.base_model import base_model
from loop.stages.evaluating import yardstick
from loop.words import seconds_between


class Size(NamedTuple):
    """Completions of a round, problems of an evaluation, and how many the engine takes at once."""

    per_round: int = 64
    num_problems: int = 30
    batch: int = 64


WHOLE, SMALL = Size(), Size(8, 2, 8)  # the small one in a minute, to see that it works
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
        items, started = real(*given, **named), time.perf_counter()
        for item in items:
            spent[key] += time.perf_counter() - started
            yield item
            started = time.perf_counter()
        spent[key] += time.perf_counter() - started
    setattr(owner, name, wrapped)
def whole(owner, name, key):
    real = getattr(owner, name)
    def wrapped(*given, **named):
        started, before = time.perf_counter(), spent[key]
        real(*given, **named)
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


def write_configuration(directory: Path, engine: str, rounds: int, size: Size) -> Path:
    tables = {
        "name": "bench",
        "rounds": rounds,
        "model": {"source": "smollm2-135m"},
        "prompts": {"per_round": size.per_round},
        "sampling": {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "max_new_tokens": 96, "stop": ["\n```"]},
        "training": {"num_epochs": 1, "batch_size": 16, "micro_batch_size": 8, "learning_rate": 2e-5, "held_out": 0},
        "suites": [{"name": "humaneval", "source": "humaneval", "limit": size.num_problems, "max_new_tokens": 96}],
        "decide": {"suite": "humaneval", "unclear": "rollback"},  # so that every round measures as much
        "diagnosis": {"num_prompts": 0},
        "engine": {"sampler": engine, "batch_size": size.batch},
    }
    (directory / "loop.toml").write_text(toml_text(tables))
    return directory / "loop.toml"


def ours(engine: str, rounds: int, directory: Path, size: Size) -> dict[str, float]:
    """One run of the loop; seconds of wall time, inside engines, inside grading, and inside stages."""
    toml = write_configuration(directory, engine, rounds, size)
    done, wall_s = timed(lambda: program("-c", TIMED, "run", "--json", "--config", str(toml)))
    spent = json.loads(re.findall(r"^SPENT (.*)$", done.stderr, re.M)[-1])
    return {"wall_s": wall_s, **spent, **stages(toml)}


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python to its end."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def stages(toml: Path) -> dict[str, float]:
    """Seconds of all rounds from begin to end, and of their stages' attempts."""
    with reader(toml.parent / ".loop") as store:
        rounds = store.ledger.rounds(store.run.id)
        return {
            "rounds": sum(seconds_between(round.started_at, round.finished_at) for round in rounds),
            "stages": sum(sum(duration_of(store, round).values()) for round in rounds),
        }


def script(engine: str, directory: Path, model: Path, prompts: list[Path], problems: Path, size: Size) -> None:
    """The same rounds by hand, one for each file of prompts."""
    settings = directory / "training.json"
    settings.write_text(json.dumps(TRAINING))
    head = model
    for number, file in enumerate(prompts, 1):
        asked = directory / f"ask-{number}.jsonl"
        asked.write_text(file.read_text() + problems.read_text())
        step("generate", engine, head, asked, directory / f"out-{number}.jsonl")
        lines = (directory / f"out-{number}.jsonl").read_text().splitlines(keepends=True)
        (directory / f"samples-{number}.jsonl").write_text("".join(lines[: size.per_round]))
        (directory / f"head-{number}.jsonl").write_text("".join(lines[size.per_round :]))
        candidate = directory / f"model-{number}"
        step("train", head, directory / f"samples-{number}.jsonl", candidate, settings)
        step("generate", engine, candidate, problems, directory / f"candidate-{number}.jsonl")
        rates = [float(step("grade", directory / f"{who}-{number}.jsonl").split()[1]) for who in ("head", "candidate")]
        head = candidate if rates[1] > rates[0] else head


def step(*arguments: str | Path) -> str:
    done = program(str(ROOT / "bench/script.py"), *map(str, arguments), HF_HUB_OFFLINE="1")
    return done.stdout.strip().rpartition("\n")[2]


def prepare(rounds: int, directory: Path, size: Size) -> tuple[Path, list[Path], Path]:
    """The model, and what the script asks: the very prompts that ours asks, as text. Not timed."""
    from transformers import AutoTokenizer

    loaded = load_config(write_configuration(directory, "transformers", 1, size))
    config = loaded.config
    model = base_model(config, loaded.base_dir, loaded.run_dir)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def row(content: dict[str, Any], decoding: Any, **more: Any) -> str:
        text = tokenizer.apply_chat_template(content["messages"], tokenize=False, add_generation_prompt=True)
        given = {name: getattr(decoding, name) for name in ("temperature", "top_k", "top_p")}
        asked = {
            "prompt": text + content["prefill"],
            "decoding": given | {"max_tokens": decoding.max_new_tokens},
            "stop": ["\n```"],
            "dtype": "float32",
            "batch_size": size.batch,
        }
        return json.dumps(asked | more) + "\n"

    prompts = load_prompts(config.prompts, config.model, loaded.base_dir)
    files = []
    for number in range(1, rounds + 1):
        chosen = prompts_of_round(prompts, size.per_round, config.seed, number)
        files.append(directory / f"prompts-{number}.jsonl")
        files[-1].write_text("".join(row(prompt.content, config.sampling) for prompt in chosen))
    suite = config.suites[0]
    measured = yardstick(load_suite(suite.source, suite.limit, loaded.base_dir), suite, config)
    problems = directory / "problems.jsonl"
    lines = []
    for id, prompt in measured.prompts.items():
        problem = measured.graded_as[id]
        opened = prompt.content["opening"].removeprefix("```python\n")
        asked = problem.payload | {"task_id": problem.task_id, "entry_point": problem.entry_point}
        lines.append(row(prompt.content, suite, problem=asked, opening=opened))
    problems.write_text("".join(lines))
    return model, files, problems


def measure(engine: str, rounds: int, pairs: int, size: Size = WHOLE) -> dict[str, Any]:
    """Medians of pairs in turns: seconds of each, the ratio, and the loop's own share."""
    with tempfile.TemporaryDirectory(prefix="rounds-") as place:
        model, prompts, problems = prepare(rounds, Path(place), size)
        rows = []
        for _ in range(pairs):
            with tempfile.TemporaryDirectory(dir=place) as directory:
                row = ours(engine, rounds, Path(directory), size)
            print(f"ours: {row['wall_s']:.0f} s", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=place) as directory:
                by_hand = engine, Path(directory), model, prompts, problems, size
                _, row["script_s"] = timed(lambda by_hand=by_hand: script(*by_hand))
            row["ratio"] = row["wall_s"] / row["script_s"]
            row["added"] = 1 - row["stages"] / row["rounds"]
            row["beside_engines_and_grading"] = 1 - (row["engines"] + row["grading"]) / row["rounds"]
            rows.append(row)
            print(json.dumps({key: round(value, 3) for key, value in row.items()}), file=sys.stderr, flush=True)
        return {key: median(row[key] for row in rows) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a minute, to see that it works; figures say nothing")
    asked = parser.parse_args()
    row = measure(asked.engine, asked.rounds, asked.pairs, SMALL if asked.small else WHOLE)
    print(f"{asked.rounds} rounds, {asked.engine}, {asked.pairs} pairs, medians")
    print(f"ours {row['wall_s']:.0f} s, the script {row['script_s']:.0f} s, ratio {row['ratio']:.2f} (at most 0.80)")
    print(f"beside its stages the loop adds {row['added']:.1%} to a round (at most 2%)")
    print(f"beside engines and grading {row['beside_engines_and_grading']:.1%}")


if __name__ == "__main__":
    main()
