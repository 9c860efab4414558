"""Trainings in processes of their own, which a test kills at named places or at random moments."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loop.engines.base import CheckpointRef, Kept, TrainingResult
from tests.support.engines import settings


class Job(NamedTuple):
    """What `Trainer.fit` gets; and where it is said how far it came and what it gave."""

    rows_file: Path
    parent: CheckpointRef
    training: dict[str, Any]
    out_dir: Path
    kept: Kept
    num_processes: int = 1

    @property
    def steps_file(self) -> Path:
        return self.kept.directory.with_name("steps")

    @property
    def result_file(self) -> Path:
        return self.out_dir.with_name(f"{self.out_dir.name}.json")

    def num_steps(self) -> int:
        """How many steps were reported since `steps` was last asked."""
        return self.steps_file.read_text().count("\n") if self.steps_file.exists() else 0

    def steps(self) -> list[int]:
        """The steps that were reported since this was last asked."""
        told = [int(line) for line in self.steps_file.read_text().split()] if self.steps_file.exists() else []
        self.steps_file.unlink(missing_ok=True)
        return told

    def result(self) -> TrainingResult | None:
        """What came of it; None where it never came to its end."""
        return TrainingResult.model_validate_json(self.result_file.read_text()) if self.result_file.exists() else None


def carry_out(job: Job, armed: dict[str, tuple[str, int, bool]]) -> None:
    """The training, with these failpoints."""
    import torch

    from loop.workers.child import build_trainer
    from store import failpoints

    torch.set_num_threads(1)
    failpoints.ARMED.update(armed)
    # Processes of a group read it from their environment.
    points = (f"{name}={action}@{count}{'+' * onwards}" for name, (action, count, onwards) in armed.items())
    os.environ[failpoints.VARIABLE] = ",".join(points)

    def progress(done: int, total: int) -> None:
        with job.steps_file.open("a") as file:
            file.write(f"{done}\n")

    trainer = build_trainer(settings(trainer="trl", num_training_processes=job.num_processes), progress)
    job.out_dir.mkdir(parents=True)
    result = trainer.fit(job.rows_file, job.parent, job.training, job.out_dir, job.kept)
    job.result_file.write_text(result.model_dump_json())


class Nursery:
    """Starts trainings by forking a process that has imported everything, which takes no time."""

    def __init__(self) -> None:
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["loop.engines.trl_trainer", "tests.support.trainings"])

    def start(self, job: Job, **armed: tuple[str, int, bool]) -> ForkServerProcess:
        points = {name.replace("training_", "training."): how for name, how in armed.items()}
        process = self.context.Process(target=carry_out, args=(job, points))
        process.start()
        return process


def kill_all(process: ForkServerProcess) -> None:
    """SIGKILL for it and all of its group, at once."""
    assert process.pid is not None
    try:
        group = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        group = []
    process.kill()
    for each in group:
        each.kill()
    process.join()


def kill_one_of_the_group(process: ForkServerProcess, rank: int) -> None:
    """SIGKILL for one process of the group alone; the others end for that, and the training with an error."""
    assert process.pid is not None
    try:
        group = psutil.Process(process.pid).children(recursive=True)
        found = [each for each in group if each.environ().get("RANK") == str(rank)]
    except psutil.Error:
        found = []
    for each in found:
        each.kill()
    if found:
        process.join()
