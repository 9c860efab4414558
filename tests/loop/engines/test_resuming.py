"""A training that was killed, or left on request, ends as the one that nobody disturbed: the same weights, bit by bit."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.engines.base import CheckpointRef, Kept, Trainer, TrainingResult, earlier_dir
from loop.errors import LeftTraining
from store import failpoints
from store.checkpoints import TEMPORARY, sweep_temporaries
from tests.support.engines import at, contents, fit, many_rows, training, write_rows
from tests.support.tiny import make_tiny_model
from tests.support.trainings import Job, Nursery, kill_all, kill_one_of_the_group

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS = 8
EACH_STEP = {"save_every_s": 1e-9}
WAYS = [("full", False), ("lora", True), ("lora", False)]


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    """A model that forgets a tenth of its attention by chance, so that the random numbers count."""
    path = make_tiny_model(tmp_path_factory.mktemp("dropping") / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return at(path)


def recipe(method: str = "full", merge: bool = False, **changed: Any) -> dict[str, Any]:
    """Eight steps in two epochs and a bit, with a candidate after each second one."""
    dropout = 0.2 if method == "lora" else 0.0
    how = {"num_steps": NUM_STEPS, "batch_size": 8, "held_out": 1, "candidates": 4} | changed
    return training(method, merge=merge, dropout=dropout, **how)


def candidates(out: Path) -> dict[str, dict[str, bytes]]:
    """The files of the last candidate and of those before."""
    return {path.name: contents(path) for path in [out, *(earlier_dir(out, step) for step in (2, 4, 6))]}


def weights_in(checkpoint: Path) -> list[str]:
    """The names of the weights that a state holds."""
    from torch.distributed.checkpoint import FileSystemReader

    names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = [name for name in names if name.startswith("model.")]
    assert weights
    return weights


def at_step(trainer: Any, step: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do something as soon as this step is reported; the steps that are reported."""
    steps: list[int] = []

    def progress(done: int, total: int) -> None:
        steps.append(done)
        if done == step and steps.count(step) == 1:
            do()

    monkeypatch.setattr(trainer, "progress", progress)
    return steps


@pytest.mark.parametrize(("method", "merge"), [WAYS[0], pytest.param(*WAYS[1], marks=pytest.mark.slow), WAYS[2]])
def test_left_on_request_and_continued(
    method: str, merge: bool, trl: Any, dropping: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, kept = recipe(method, merge), Kept(directory=tmp_path / "kept")
    whole = fit(trl, dropping, settings, tmp_path / "whole" / "weights", many_rows(30))
    steps = at_step(trl, 5, kept.ask_to_end, monkeypatch)
    rows, out = tmp_path / "whole" / "weights.jsonl", tmp_path / "out" / "weights"
    for part in ("left", "out"):
        (tmp_path / part / "weights").mkdir(parents=True)
    with pytest.raises(LeftTraining, match=r"the training was left after step 5 of 8$"):
        trl.fit(rows, dropping, settings, tmp_path / "left" / "weights", kept)
    assert sorted(os.listdir(kept.directory)) == [
        "checkpoint-5",
        "to-end",
        "weights-step-000002",
        "weights-step-000004",
    ]
    kept.ask_to_end(False)
    result = trl.fit(rows, dropping, settings, out, kept)
    assert steps[:6] == [1, 2, 3, 4, 5, 6] and result == whole and len(result.losses) == NUM_STEPS
    assert candidates(out) == candidates(tmp_path / "whole" / "weights")
    if method == "lora":
        assert all("lora_" in name for name in weights_in(kept.directory / "checkpoint-5")), "the base is not written"
    else:
        assert not any("lm_head" in name for name in weights_in(kept.directory / "checkpoint-5")), "it is tied"


@pytest.mark.parametrize("name", ["fake", "fake remote", pytest.param("trl remote", marks=pytest.mark.slow)])
def test_every_trainer_can_be_left(
    name: str, trainers: Any, fake: CheckpointRef, tiny: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, parent = trainers(name), fake if name.startswith("fake") else tiny
    settings, kept = recipe(**EACH_STEP), Kept(directory=tmp_path / "kept")
    whole = fit(trainer, parent, settings, tmp_path / "whole", many_rows(30))
    kept.ask_to_end()
    with pytest.raises(LeftTraining, match=r"after step 1 of 8$"):
        fit_kept(trainer, parent, settings, tmp_path / "left", kept)
    kept.ask_to_end(False)
    assert fit_kept(trainer, parent, settings, tmp_path / "out", kept) == whole
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def fit_kept(
    trainer: Trainer, parent: CheckpointRef, settings: dict[str, Any], out: Path, kept: Kept
) -> TrainingResult:
    out.mkdir(parents=True)
    return trainer.fit(write_rows(out.with_suffix(".jsonl"), many_rows(30)), parent, settings, out, kept)


@pytest.fixture
def saved(trl: Any, dropping: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What is kept of a training that was left after step 3."""
    kept = Kept(directory=tmp_path / "kept")
    at_step(trl, 3, kept.ask_to_end, monkeypatch)
    with pytest.raises(LeftTraining):
        fit_kept(trl, dropping, recipe(candidates=1), tmp_path / "left", kept)
    kept.ask_to_end(False)
    return kept


def test_only_whole_and_undamaged_states_are_continued_from(
    saved: Kept, trl: Any, dropping: CheckpointRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    import torch

    from loop.engines.resuming import newest

    cpu, three = torch.device("cpu"), saved.directory / "checkpoint-3"
    shutil.copytree(three, saved.directory / ".checkpoint-4.part")
    assert newest(saved.directory, cpu) == three
    for name in sorted(os.listdir(three)):
        four = saved.directory / "checkpoint-4"
        shutil.copytree(three, four)
        (four / name).unlink()
        assert newest(saved.directory, cpu) == three and not four.exists(), name
        shutil.copytree(three, four)
        content = bytearray((four / name).read_bytes())
        content[len(content) // 2] ^= 1
        (four / name).write_bytes(content)
        assert newest(saved.directory, cpu) == three and not four.exists(), name
    assert f"{saved.directory / 'checkpoint-4'}: is damaged, so the training continues from an earlier state\n" in (
        capsys.readouterr().err
    )
    (three / "trainer_state.json").unlink()
    trl.progress = Mock()
    result = fit_kept(trl, dropping, recipe(candidates=1), tmp_path / "out", saved)
    assert trl.progress.call_args_list[0].args == (1, NUM_STEPS) and len(result.losses) == NUM_STEPS


@pytest.mark.parametrize("place", ["training.shards_written", "training.written", "training.renamed", "too little"])
def test_a_full_disk_costs_a_state_and_not_the_training(
    place: str, trl: Any, dropping: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The state before stays, and one line says why."""
    if place == "too little":
        kept = Kept(directory=tmp_path / "kept", free_bytes=2**60)
        first = []
    else:
        kept, first = Kept(directory=tmp_path / "kept"), ["checkpoint-1"]
        monkeypatch.setattr(failpoints, "ARMED", {place: ("full", 2, True)})
        failpoints._reached.clear()
    monkeypatch.setattr(trl, "progress", lambda done, total: None)
    result = fit_kept(trl, dropping, recipe(num_steps=3, candidates=1, **EACH_STEP), tmp_path / "out", kept)
    assert result.num_steps == 3
    if place != "training.renamed":  # it is whole, but its name may be lost
        assert sorted(os.listdir(kept.directory)) == first
    lines = [line for line in capsys.readouterr().err.splitlines() if "the training's state" in line]
    assert len(lines) == (1 if first else 2)
    assert lines[0].startswith(f"the training's state is not saved at {kept.directory / 'checkpoint-'}")
    assert lines[0].endswith("; it continues") and " bytes were free)" in lines[0]
    assert ("No space left" if first else " bytes are wanted") in lines[0]


def test_the_clock_of_the_first_process_says_when() -> None:
    from loop.engines.resuming import ByTheClock

    now, kept = [100.0], Mock(**{"is_asked_to_end.return_value": False})
    clock = ByTheClock(60.0, kept, lambda: now[0])
    state, control = Mock(global_step=1, max_steps=9), Mock(should_save=False)

    def ends_step(at_s: float) -> bool:
        now[0], control.should_save = at_s, False
        clock.on_step_end(Mock(), state, control)
        return bool(control.should_save)

    clock.on_train_begin(Mock(), state, control)
    assert [ends_step(at_s) for at_s in (159.0, 160.0)] == [False, True]
    now[0] = 190.0  # the interval begins when the state is on disk
    clock.on_save(Mock(), state, control)
    assert [ends_step(at_s) for at_s in (240.0, 250.0)] == [False, True]
    kept.is_asked_to_end.return_value = True
    assert ends_step(251.0)
    with pytest.raises(LeftTraining, match=r"after step 1 of 9"):
        clock.on_save(Mock(), state, control)
    state.global_step = 9
    assert not ends_step(999.0), "what ends anyway is not left"


# Kills

POINTS = [point for point in failpoints.POINTS if point.startswith("training.")]


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return Nursery()


def job_of(root: Path, parent: CheckpointRef, settings: dict[str, Any], name: str, num_processes: int = 1) -> Job:
    """One attempt of a training in `root`. Attempts of the same root continue each other."""
    scratch = root / f"{TEMPORARY}{name}"  # as `loop.stages.training` has it
    scratch.mkdir(parents=True, exist_ok=True)
    rows = write_rows(scratch / "rows.jsonl", many_rows(30))
    return Job(rows, parent, settings, scratch / "weights", Kept(directory=root / "kept"), num_processes)


def ends_as(job: Job, whole: Job) -> None:
    """The same report and the same files, and nothing on the disk that a run would not remove with its next attempt."""
    assert job.result() is not None and job.result() == whole.result()
    assert candidates(job.out_dir) == candidates(whole.out_dir)
    left = [name for name in os.listdir(job.kept.directory) if not name.startswith("weights-step-")]
    assert len(left) == 1 and left[0].startswith("checkpoint-"), left
    root = job.kept.directory.parent
    sweep_temporaries(root)
    assert os.listdir(root) == ["kept"]


PROCESSES = [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", PROCESSES)
@pytest.mark.parametrize("place", POINTS)
def test_killed_at_each_place(
    place: str, num_processes: int, nursery: Nursery, dropping: CheckpointRef, tmp_path: Path
) -> None:
    settings = recipe(**EACH_STEP)
    whole, killed, again = (
        job_of(tmp_path / root, dropping, settings, name, num_processes)
        for root, name in (("whole", "out"), ("killed", "first"), ("killed", "second"))
    )
    nursery.start(whole).join()
    process = nursery.start(killed, **{place.replace(".", "_"): ("kill", 3, False)})
    process.join()
    assert process.exitcode not in (0, None) and killed.result() is None
    # What is there after the third time: of states of each step, and of candidates of each second one.
    checkpoints = {"training.renamed": {3, 2}, "training.weights_written": {5}}.get(place, {2})
    found = {name for name in os.listdir(killed.kept.directory) if name[0] == "c"}
    assert found == {f"checkpoint-{step}" for step in checkpoints}
    killed.steps()
    nursery.start(again).join()
    # Of a group not every step is told.
    assert again.steps()[0] > max(checkpoints), "no more than one interval is lost"
    ends_as(again, whole)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", PROCESSES)
def test_killed_at_random_moments(
    num_processes: int, nursery: Nursery, dropping: CheckpointRef, tmp_path: Path
) -> None:
    """Twenty kills, in trainings that are killed until one comes to its end; of a group sometimes one process alone.

    A group takes its time to start, so of groups there are fewer; `LOOP_TEST_KILLS` gives another number.
    """
    draw, num_kills, num_inside = random.Random(num_processes), 0, 0
    wanted = int(os.environ.get("LOOP_TEST_KILLS", 20 if num_processes == 1 else 5))
    for number in itertools.count():
        if num_kills >= wanted:
            break
        settings = recipe(*WAYS[number % len(WAYS)], **EACH_STEP)
        whole = job_of(tmp_path / f"whole-{number}", dropping, settings, "out", num_processes)
        nursery.start(whole).join()
        last = 0
        for attempt in itertools.count():
            job = job_of(tmp_path / f"{number}", dropping, settings, f"out-{attempt}", num_processes)
            process, num_steps = nursery.start(job), draw.randint(1, 3)
            while process.is_alive() and job.num_steps() < num_steps:
                process.join(0.001)
            if draw.random() < 0.5:  # inside the next save
                while process.is_alive() and not is_saving(job):
                    process.join(0.001)
                num_inside += process.is_alive()
            else:  # within the next step or its save; sometimes in what comes after the last one, or not at all
                process.join(draw.choice((0.0, 0.01, 0.03, 0.1, 0.3, None if last >= NUM_STEPS - 2 else 0.0)))
            has_ended = not process.is_alive()
            if num_processes > 1 and draw.random() < 0.5:
                kill_one_of_the_group(process, draw.randrange(num_processes))
            kill_all(process)
            steps = job.steps()
            assert not steps or steps[0] >= last, "more than one step was taken again"
            last = steps[-1] if steps else last
            if has_ended:
                break
            num_kills += 1
        assert process.exitcode == 0
        ends_as(job, whole)
    assert num_inside, "none was inside a save"
    print(f"{num_kills} kills, {num_inside} of them inside a save, in {number} trainings")


def is_saving(job: Job) -> bool:
    return any(job.kept.directory.glob(".checkpoint-*.part"))
