"""The experiment trackers: a class for each, which says what it needs and how it is told.

A new tracker is a class here, a line in `TRACKERS`, and its name in `loop.config.machine.Watching`. The libraries are
imported only by the process that tells one (`loop.watching.tracker_process`). Without other wishes in the environment
(WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID and the like) everything stays in the run directory's `trackers/`, and
nothing touches the network.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar, Protocol

from loop.config.toml_file import leaves
from loop.errors import LoopError
from loop.words import one_line
from store.records import Json

EXTRA = "pip install 'ssd-loop[trackers]'"
QUIET = {"DO_NOT_TRACK": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "GIT_PYTHON_REFRESH": "quiet"}  # for any of them
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class About:
    """What a tracker is told once. `id` differs for each beginning of a run, and stays the same over restarts."""

    id: str
    name: str
    project: str
    config: Json
    rounds: tuple[int, ...]  # that were decided


class Tracker(Protocol):
    """One run in one tracker, which may keep files in `directory`."""

    packages: ClassVar[tuple[str, ...]]  # any of them will do; the extra `trackers` installs the first
    quiet: ClassVar[dict[str, str]]  # environment variables that switch off telemetry and chatter, unless they are set

    def __init__(self, run: About, directory: Path) -> None: ...

    def known(self) -> set[int]:
        """The rounds that it has. Those are not logged again."""

    def log(self, round: int, figures: Figures) -> None:
        """Everything of one round, at the step of its number; rounds come in order."""

    def close(self) -> None:
        """What was logged is kept when this returns."""


class Trackio(Tracker):
    """Trackio's own database on this machine, or the Space or server that its variables name.

    It knows a run by its name, so the id is a part of the name; and it warns where others raise, so `close` looks at what
    it has kept.
    """

    packages = ("trackio",)
    quiet: ClassVar = {"GRADIO_ANALYTICS_ENABLED": "False"}

    def __init__(self, run: About, directory: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(directory))
        import trackio

        self.logged: set[int] = set()
        name, unwanted = f"{run.name}-{run.id[:8]}", dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False)
        self.run = trackio.init(project=run.project, name=name, config=run.config, resume="allow", **unwanted)

    def known(self) -> set[int]:
        """All up to the last step that it has: rounds come in order."""
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


class Wandb(Tracker):
    """Weights & Biases. Offline it keeps one directory with all rounds, for `wandb sync`; online it continues the run."""

    packages = ("wandb",)
    quiet: ClassVar = {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_DISABLE_CODE": "true",
    }

    def __init__(self, run: About, directory: Path) -> None:
        import wandb

        self.about, self.directory = run, directory
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.online = mode not in ("offline", "dryrun", "disabled")
        self.before = set(directory.glob("wandb/offline-run-*")) if not self.online else set()
        directory.mkdir(parents=True, exist_ok=True)
        unwanted = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
        settings = wandb.Settings(console="off", silent=True, **unwanted)
        told: Any = {"project": run.project, "id": run.id, "name": run.name, "config": run.config}
        resume: Any = "allow" if self.online else None
        self.run = wandb.init(**told, dir=str(directory), mode=mode, resume=resume, settings=settings)

    def known(self) -> set[int]:
        """Online, all up to the step that the server has; offline none, so that all are written anew."""
        return set(range(self.run.step)) if self.online else set()

    def log(self, round: int, figures: Figures) -> None:
        self.run.log(figures, step=round)

    def close(self) -> None:
        self.run.finish()
        for old in self.before:  # the new one holds all that they hold
            if old.name.endswith(self.about.id):
                shutil.rmtree(old, ignore_errors=True)


class Mlflow(Tracker):
    """MLflow's file store on this machine, or the server that MLFLOW_TRACKING_URI names."""

    packages = ("mlflow-skinny", "mlflow")
    quiet: ClassVar = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # else it wants a database, hence SQLAlchemy
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    }
    tag = "ssd_loop_run"

    def __init__(self, run: About, directory: Path) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or directory.absolute().as_uri())
        experiment = self.client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(run.project)
        if begun := self.client.search_runs([number], f"tags.{self.tag} = '{run.id}'"):
            self.id = begun[0].info.run_id
            return
        self.id = self.client.create_run(number, run_name=run.name, tags={self.tag: run.id}).info.run_id
        settings = [
            Param(".".join(map(str, key)), one_line(value, 500)) for key, value in leaves(run.config) if value != []
        ]
        for start in range(0, len(settings), 100):
            self.client.log_batch(self.id, params=settings[start : start + 100])

    def known(self) -> set[int]:
        """Those with the figure that is logged last of a round."""
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


TRACKERS: dict[str, type[Tracker]] = {"trackio": Trackio, "wandb": Wandb, "mlflow": Mlflow}


def missing(names: Sequence[str]) -> list[str]:
    """Those whose library is not installed. By package, since wandb leaves importable directories of its own name about."""
    named = {name: TRACKERS[name].packages for name in names}
    return [name for name, packages in named.items() if not any(any(distributions(name=each)) for each in packages)]


def missing_in_words(names: Sequence[str]) -> str | None:
    """What is missing and how to get it; None if nothing is."""
    lacking = missing(names)
    if not lacking:
        return None
    are = "is" if len(lacking) == 1 else "are"
    return f"watching.trackers: {', '.join(lacking)} {are} not installed, so nothing is sent there; {EXTRA}"
