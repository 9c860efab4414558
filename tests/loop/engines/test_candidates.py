"""Candidates along a training: the training does not notice, and each of them is the model as it was at its step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.engines.base import CheckpointRef, Trainer, TrainingResult, candidate_steps, earlier_dir
from loop.errors import EngineError
from tests.support.engines import at, contents, fit, logits, many_rows, sample, training
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [("full", True), ("lora", True), ("lora", False)]


@given(st.integers(1, 3000), st.integers(1, 16))
def test_the_steps_are_even_and_end_with_the_training(num_steps: int, num: int) -> None:
    steps = candidate_steps(num_steps, {"candidates": num})
    assert steps == sorted(set(steps)) and steps[0] >= 1 and steps[-1] == num_steps
    assert len(steps) == min(num, num_steps)
    assert all(abs(step - (number + 1) * num_steps / num) < 1 for number, step in enumerate(steps)) or num > num_steps
    assert candidate_steps(num_steps, {}) == [num_steps], "settings of an older version"


def with_candidates(trainer: Trainer, parent: CheckpointRef, out: Path, num: int, **how: Any) -> TrainingResult:
    settings = training(**{"num_steps": 7, "held_out": 2} | how) | {"candidates": num}
    return fit(trainer, parent, settings, out, many_rows(45))


@pytest.mark.parametrize("bfloat16", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "merge"), [WAYS[0], pytest.param(*WAYS[1], marks=pytest.mark.slow), WAYS[2]])
def test_the_training_does_not_notice(method: str, merge: bool, bfloat16: bool, trl: Trainer, tmp_path: Path) -> None:
    """Bit for bit, with dropout, whose random numbers go on as they would."""
    parent = at(make_tiny_model(tmp_path / "model", bfloat16=bfloat16))
    how = {"method": method, "merge": merge, "dropout": 0.2 if method == "lora" else 0.0}
    alone = with_candidates(trl, parent, tmp_path / "alone", 1, **how)
    result = with_candidates(trl, parent, tmp_path / "out", 4, **how)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert result.model_copy(update={"earlier": ()}) == alone and alone.earlier == ()
    assert [each.num_steps for each in result.earlier] == [2, 4, 6]
    for each in result.earlier:
        assert each.losses == result.losses[: each.num_steps] and each.adapter == result.adapter
        directory = earlier_dir(tmp_path / "out", each.num_steps)
        written, last = contents(directory), contents(tmp_path / "out")
        weights = {name for name in last if name.endswith(".safetensors")}
        assert written.keys() == last.keys() and all(written[name] != last[name] for name in weights)
        assert {name: written[name] for name in written.keys() - weights} == {
            name: last[name] for name in last.keys() - weights
        }
        assert each.held_out_loss is not None and each.held_out_loss != result.held_out_loss
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"model", "alone", "out", *(f"out-step-{step:06d}" for step in (2, 4, 6))}


@pytest.mark.parametrize("bfloat16", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "merge"), WAYS)
def test_each_is_the_model_as_it_was(
    method: str, merge: bool, bfloat16: bool, recorded: Any, trl: Trainer, tmp_path: Path
) -> None:
    """In the parent's precision; an adapter is merged as the last one is."""
    import torch
    from safetensors.torch import load_file

    parent = at(make_tiny_model(tmp_path / "model", bfloat16=bfloat16))
    was: dict[int, dict[str, Any]] = {}
    step_of = recorded.training_step

    def training_step(self: Any, model: Any, *arguments: Any, **more: Any) -> Any:
        was[self.state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return step_of(self, model, *arguments, **more)

    recorded.training_step = training_step
    with_candidates(trl, parent, tmp_path / "out", 3, method=method, merge=merge)
    old = load_file(parent.path / "model.safetensors")
    for step in (3, 5):
        directory = earlier_dir(tmp_path / "out", step)
        if method == "lora" and not merge:
            saved = load_file(directory / "adapter_model.safetensors")
            expected = {name.replace(".default", ""): tensor for name, tensor in was[step].items() if "lora_" in name}
        else:
            saved, expected = load_file(directory / "model.safetensors"), {}
            for name, before in old.items():
                inner = f"base_model.model.{name.removesuffix('.weight')}"
                tensor = was[step][
                    name
                    if method == "full"
                    else f"{inner}.weight"
                    if f"{inner}.weight" in was[step]
                    else f"{inner}.base_layer.weight"
                ]
                if f"{inner}.lora_A.default.weight" in was[step]:
                    a, b = (was[step][f"{inner}.lora_{letter}.default.weight"] for letter in "AB")
                    tensor = tensor + (b @ a) * 2.0  # alpha 8 over rank 4
                expected[name] = tensor.to(before.dtype)
        assert saved.keys() == expected.keys()
        for name, tensor in saved.items():
            assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_an_adapter_parent_leaves_adapters_that_can_be_sampled_from(
    trl: Trainer, tiny: CheckpointRef, tmp_path: Path
) -> None:
    fit(trl, tiny, training("lora", merge=False), tmp_path / "adapter")
    adapter = at(tmp_path / "adapter", tiny.path)
    for merge in (False, True):
        out = tmp_path / f"{merge}"
        result = with_candidates(trl, adapter, out, 2, method="lora", merge=merge)
        (earlier,) = result.earlier
        child = at(earlier_dir(out, earlier.num_steps), None if merge else tiny.path)
        assert earlier.adapter == (not merge)
        sample(child)
    one, two = (
        logits(at(earlier_dir(tmp_path / f"{merge}", 4), None if merge else tiny.path)) for merge in (False, True)
    )
    assert abs(one - two).max() < 1e-4


@pytest.mark.parametrize("name", ["fake", "fake remote", pytest.param("trl remote", marks=pytest.mark.slow)])
def test_every_trainer_leaves_them(
    name: str, trainers: Callable[[str], Trainer], fake: CheckpointRef, tiny: CheckpointRef, tmp_path: Path
) -> None:
    parent = fake if name.startswith("fake") else tiny
    result = with_candidates(trainers(name), parent, tmp_path / "out", 4)
    assert [each.num_steps for each in result.earlier] == [2, 4, 6] and result.num_steps == 7
    alone = with_candidates(trainers(name), parent, tmp_path / "alone", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone") and result.losses == alone.losses
    different = {str(contents(earlier_dir(tmp_path / "out", step))) for step in (2, 4, 6)}
    assert len(different) == 3


def test_fewer_steps_than_candidates_leave_one_each(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    result = with_candidates(trl, tiny, tmp_path / "out", 16, num_steps=2)
    assert [each.num_steps for each in result.earlier] == [1]
    assert with_candidates(trl, tiny, tmp_path / "one", 16, num_steps=1).earlier == ()


def test_weights_that_break_along_the_way_are_not_written(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the weights are not finite after step 1"):
        how = {"learning_rate": 1e38, "min_learning_rate": 0.0, "weight_decay": 10.0, "num_steps": 3}
        with_candidates(trl, tiny, tmp_path / "out", 3, **how)
    assert not earlier_dir(tmp_path / "out", 1).exists()
