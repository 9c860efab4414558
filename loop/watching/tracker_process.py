"""The process that brings one tracker up to date with a run: `python -m loop.watching.tracker_process NAME RUN_DIR PROJECT`.

It reads the store beside whoever writes it, asks the tracker which rounds it has, and logs the others, each at the step of
its number. So it may be killed at any moment, and run any number of times.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from loop.errors import LoopError
from loop.reading.as_json import as_json
from loop.reading.checkpoints import decoding_of, publishable
from loop.reading.reader import Reader, reader
from loop.reading.rounds import whole_round
from loop.watching.trackers import QUIET, TRACKERS, About, Figures
from loop.words import one_line
from store.canonical import sha256_of
from store.durable import written
from store.records import DECIDED, Json


def about(reading: Reader, project: str) -> About:
    """The run, with the decoding settings that its figures belong to."""
    run = reading.run
    config = publishable(run.config) | {
        "run_id": run.id,
        "config_sha256": run.config_sha256,
        "base_checkpoint": run.base_checkpoint,
        "decoding": {"suite": run.config["decide"]["suite"], **decoding_of(run.config)},
    }
    rounds = tuple(row.number for row in reading.ledger.rounds(run.id) if row.state in DECIDED)
    return About(sha256_of([run.id, run.created_at])[:16], run.name, project, config, rounds)


def figures_of(reading: Reader, number: int) -> Figures:
    """A round's figures by name: suites, gains, decision, signals, losses, seconds and tokens by stage."""
    answer = as_json(whole_round(reading, number))
    flat: Json = {"round": number, "head_round": answer["head_round"]}
    for name, suite in answer["suites"].items():
        for who in ("base", "head", "candidate"):
            for key, value in (suite[who] or {}).items():
                if key.startswith("pass@"):
                    flat |= _with_ends(f"{name}/{who}/{key.removesuffix('_interval')}", value)
        for key in ("gain", "gain_over_base"):
            if suite[key]:
                flat |= {f"{name}/{key}": suite[key]["gain"]} | _with_ends(f"{name}/{key}", suite[key]["interval"])
    if decision := answer["decision"]:
        flat |= {
            f"decision/{name}": decision["verdict"] == verdict
            for name, verdict in (("kept", "keep"), ("carried", "carry"))
        }
        flat["decision/conclusive"] = decision["conclusive"]
    for who, signals in (answer["signals"] or {}).items():
        for key, value in (signals or {}).items():
            flat[f"signals/{who}/{key}"] = value["value"] if isinstance(value, dict) and "value" in value else value
    flat |= {f"training/{key}": value for key, value in answer["training"].items()}
    flat |= {f"seconds/{stage['stage']}": stage["duration_s"] for stage in answer["stages"]}
    flat |= {f"tokens/{stage}": value for stage, value in _tokens(reading, number, answer).items()}
    numbers = ((key, value) for key, value in flat.items() if isinstance(value, int | float))
    return {key: float(value) for key, value in numbers if math.isfinite(value)}


def _with_ends(name: str, value: Any) -> Json:
    return {f"{name}_low": value[0], f"{name}_high": value[1]} if isinstance(value, list) else {name: value}


def _tokens(reading: Reader, number: int, answer: Json) -> Json:
    """Tokens by stage: drawn in sampling, learned in training, drawn in evaluating as far as this round evaluated."""
    evaluations = reading.evaluations()
    round = reading.ledger.round(reading.run.id, number)
    assert round is not None
    named = set(evaluations.named(round).values())
    drawn = (
        row.metrics["mean_tokens"] * row.metrics["num_completions"]
        for id, row in evaluations.by_id.items()
        if id in named
        and row.metrics
        and row.created_at >= round.started_at
        and row.metrics.get("mean_tokens") is not None
    )
    return {
        "sampling": sum(text.num_tokens for text in reading.corpus.texts(reading.run.id, number)),
        "training": answer["training"]["num_completion_tokens"],
        "evaluating": sum(drawn),
    }


def bring_up_to_date(name: str, run_dir: Path, project: str, *, anew: bool = False) -> int:
    """Log the rounds that the tracker lacks; how many these were. `anew`: ask it even if a note says that it has all."""
    directory = run_dir / "trackers" / name
    with reader(run_dir) as reading:
        run = about(reading, project)
    note, all_told = directory / "told.json", {"id": run.id, "project": project, "rounds": list(run.rounds)}
    if not run.rounds or (not anew and _read(note) == all_told):
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    for key, value in (QUIET | TRACKERS[name].quiet).items():
        os.environ.setdefault(key, value)
    tracker = TRACKERS[name](run, directory)
    lacking = [number for number in run.rounds if number not in tracker.known()]
    for number in lacking:
        with reader(run_dir) as reading:  # anew for each round: a long read keeps the store's write-ahead log large
            figures = figures_of(reading, number)
        tracker.log(number, figures)
    tracker.close()
    with written(note) as file:
        file.write(json.dumps(all_told).encode())
    return len(lacking)


def _read(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return None


def main() -> None:
    """The program. What went wrong is the last line on standard error."""
    name, run_dir, project, *options = sys.argv[1:]
    os.nice(10)  # the rounds come first
    try:
        bring_up_to_date(name, Path(run_dir), project, anew="--anew" in options)
    except Exception as error:
        if os.environ.get("LOOP_TRACEBACK") == "1":
            raise
        kind = "" if isinstance(error, LoopError) else f"{type(error).__name__}: "
        sys.exit(kind + one_line(error))


if __name__ == "__main__":
    main()
