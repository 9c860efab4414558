"""The process that brings one experiment tracker up to date with a run: `python -m loop.watching.tracking NAME RUN_DIR PROJECT`.

It reads the store beside whoever writes it, asks the tracker which rounds it has, and logs the others, each at the step of
its number. So it may be killed at any moment, and run as often as one likes. Without other wishes in the environment
(WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID and the like) everything stays below RUN_DIR/trackers and nothing
touches the network. Only this module imports the trackers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loop.config.toml_file import leaves
from loop.errors import LoopError
from loop.reading.as_json import as_json
from loop.reading.checkpoints import decoding_of, public
from loop.reading.reader import Reader, reader
from loop.reading.rounds import whole_round
from store.canonical import sha256_of
from store.durable import written
from store.records import Json

QUIET = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # else it wants a database, hence SQLAlchemy
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "DO_NOT_TRACK": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class About:
    """What a tracker is told once. `id` is another for each beginning of a run, and stays the same over restarts."""

    id: str
    name: str
    project: str
    config: Json
    rounds: tuple[int, ...]  # that were kept or rolled back


class Tracker(Protocol):
    """One run in one tracker."""

    def known(self) -> set[int]:
        """The rounds that it has. Those are not logged again."""
        ...

    def log(self, round: int, figures: Figures) -> None:
        """Everything of one round, at the step of its number; rounds come in order."""
        ...

    def close(self) -> None:
        """What was logged is kept when this returns."""
        ...


# What is told


def about(found: Reader, project: str) -> About:
    """The run, with the decoding settings that its figures belong to."""
    run = found.run
    config = public(run.config) | {
        "run_id": run.id,
        "config_sha256": run.config_sha256,
        "base_checkpoint": run.base_checkpoint,
        "decoding": {"suite": run.config["decide"]["suite"], **decoding_of(run.config)},
    }
    rounds = tuple(one.number for one in found.ledger.rounds(run.id) if one.state in ("kept", "rolled_back"))
    return About(sha256_of([run.id, run.created_at])[:16], run.name, project, config, rounds)


def figures_of(found: Reader, number: int) -> Figures:
    """A round's figures by name: suites, gains, decision, signals, losses, seconds and tokens by stage."""
    answer = as_json(whole_round(found, number))
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
        flat |= {"decision/kept": decision["verdict"] == "keep", "decision/conclusive": decision["conclusive"]}
    for who, signals in (answer["signals"] or {}).items():
        for key, value in (signals or {}).items():
            flat[f"signals/{who}/{key}"] = value["value"] if isinstance(value, dict) and "value" in value else value
    flat |= {f"training/{key}": value for key, value in answer["training"].items()}
    flat |= {f"seconds/{stage['stage']}": stage["duration_s"] for stage in answer["stages"]}
    flat |= {f"tokens/{stage}": value for stage, value in _tokens(found, number, answer).items()}
    return {
        key: float(value)
        for key, value in flat.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }


def _with_ends(name: str, value: Any) -> Json:
    return {f"{name}_low": value[0], f"{name}_high": value[1]} if isinstance(value, list) else {name: value}


def _tokens(found: Reader, number: int, answer: Json) -> Json:
    """Drawn while sampling, learned in training, drawn while evaluating what was not known before."""
    evaluations, started = found.evaluations(), answer["started_at"]
    round = found.ledger.round(found.run.id, number)
    assert round is not None
    measured = [evaluations.by_id[id] for id in set(evaluations.named(round).values()) if id in evaluations.by_id]
    drawn = (
        one.metrics["mean_tokens"] * one.metrics["num_completions"]
        for one in measured
        if one.metrics and one.created_at >= started and one.metrics.get("mean_tokens") is not None
    )
    return {
        "sampling": sum(one.num_tokens for one in found.corpus.texts(found.run.id, number)),
        "training": answer["training"]["num_completion_tokens"],
        "evaluating": sum(drawn),
    }


# The trackers


class Trackio:
    """Trackio's own database on this machine, or the Space or server that its variables name.

    It knows a run by its name, so the id is a part of that; and it warns where others raise, so what it kept is looked at.
    """

    def __init__(self, run: About, directory: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(directory))
        import trackio

        self.logged: set[int] = set()
        self.run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id[:8]}",
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def known(self) -> set[int]:
        """All up to the last step that it has; rounds come in order."""
        return set(range(self.run._next_step))

    def log(self, round: int, figures: Figures) -> None:
        self.run.log(figures, step=round)
        self.logged.add(round)

    def close(self) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self.run.finish()
        if not self.run._is_local or not self.logged:
            return
        kept = {entry["step"] for entry in SQLiteStorage.get_logs(self.run.project, self.run.name, run_id=self.run.id)}
        if lost := sorted(self.logged - kept):
            raise LoopError(f"round {lost[0]} was logged but is not in its database ({os.environ['TRACKIO_DIR']})")


class Wandb:
    """Weights & Biases. Offline it keeps one directory with all rounds, for `wandb sync`; online it goes on with the run."""

    def __init__(self, run: About, directory: Path) -> None:
        import wandb

        self.about, self.directory = run, directory
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.online = mode not in ("offline", "dryrun", "disabled")
        self.before = set(directory.glob("wandb/offline-run-*")) if not self.online else set()
        directory.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            config=run.config,
            dir=str(directory),
            mode=mode,
            resume="allow" if self.online else None,
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, x_disable_meta=True, x_save_requirements=False
            ),
        )

    def known(self) -> set[int]:
        """Online, all up to the step that the server has; offline none: all are written anew."""
        return set(range(self.run.step)) if self.online else set()

    def log(self, round: int, figures: Figures) -> None:
        self.run.log(figures, step=round)

    def close(self) -> None:
        self.run.finish()
        for old in self.before:  # the new one holds all that they hold
            if old.name.endswith(self.about.id):
                shutil.rmtree(old, ignore_errors=True)


class Mlflow:
    """MLflow's file store on this machine, or the server that MLFLOW_TRACKING_URI names."""

    RUN = "ssd_loop_run"

    def __init__(self, run: About, directory: Path) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or directory.absolute().as_uri())
        experiment = self.client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(run.project)
        found = self.client.search_runs([number], f"tags.{self.RUN} = '{run.id}'")
        if found:
            self.id = found[0].info.run_id
            return
        made = self.client.create_run(number, run_name=run.name, tags={self.RUN: run.id})
        self.id = made.info.run_id
        settings = [
            Param(".".join(map(str, key)), _in_a_line(value)) for key, value in leaves(run.config) if value != []
        ]
        for start in range(0, len(settings), 100):
            self.client.log_batch(self.id, params=settings[start : start + 100])

    def known(self) -> set[int]:
        """By the figure that is logged last of a round."""
        return {metric.step for metric in self.client.get_metric_history(self.id, "round")}

    def log(self, round: int, figures: Figures) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [
            Metric(key.replace("@", "_at_"), value, now, round) for key, value in figures.items() if key != "round"
        ]
        for start in range(0, len(metrics), 500):
            self.client.log_batch(self.id, metrics=metrics[start : start + 500])
        self.client.log_metric(self.id, "round", round, timestamp=now, step=round)

    def close(self) -> None:
        self.client.set_terminated(self.id)


def _in_a_line(value: Any) -> str:
    text = str(value)
    return (text if text.isprintable() else json.dumps(text))[:500]


TRACKERS: dict[str, Callable[[About, Path], Tracker]] = {"trackio": Trackio, "wandb": Wandb, "mlflow": Mlflow}


def bring_up_to_date(name: str, run_dir: Path, project: str, *, anew: bool = False) -> int:
    """Log what the tracker lacks; how many rounds that were. `anew`: ask it even if a note says that it has all."""
    directory = run_dir / "trackers" / name
    with reader(run_dir) as found:
        run = about(found, project)
    note, whole = directory / "told.json", {"id": run.id, "project": project, "rounds": list(run.rounds)}
    if not run.rounds or (not anew and _read(note) == whole):
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    tracker = TRACKERS[name](run, directory)
    lacking = [number for number in run.rounds if number not in tracker.known()]
    for number in lacking:
        with reader(run_dir) as found:  # one at a time, so that the store can forget meanwhile what it has replaced
            figures = figures_of(found, number)
        tracker.log(number, figures)
    tracker.close()
    with written(note) as file:
        file.write(json.dumps(whole).encode())
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
        said = " ".join(str(error).split())
        print(said if isinstance(error, LoopError) else f"{type(error).__name__}: {said}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
