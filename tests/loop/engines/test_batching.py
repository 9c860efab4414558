"""How a step's rows are cut into forward passes, and that the optimizer sees what plain SFTTrainer would have shown it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.settings import Training
from loop.engines.base import CheckpointRef
from loop.engines.batching import micro_batches
from tests.support.engines import ON_A_CPU, float_model, no_progress

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- the cut -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=24), st.integers(1, 8), st.integers(0, 400))
def test_every_row_goes_into_one_pass_with_little_padding(lengths: list[int], micro: int, pass_cost: int) -> None:
    """At most `micro` rows of the longest kind a pass, as StepTrainer's budget has it."""
    budget = micro * max(lengths)
    passes = micro_batches(lengths, budget, pass_cost)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    assert all(lengths[rows[0]] == max(lengths[row] for row in rows) for rows in passes)  # StepTrainer's width

    def tokens(cut: list[list[int]]) -> int:
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in cut)

    assert all(tokens([rows]) <= budget for rows in passes)
    equal = [list(range(len(lengths)))[start : start + micro] for start in range(0, len(lengths), micro)]
    assert tokens(passes) + pass_cost * len(passes) <= tokens(equal) + pass_cost * len(equal)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=24), st.integers(1, 900))
def test_only_a_row_by_itself_goes_over_the_budget(lengths: list[int], budget: int) -> None:
    passes = micro_batches(lengths, budget, 64)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget


def test_the_cheapest_cut_is_found() -> None:
    """The long row goes alone where a pass costs little; where it costs more than the padding, all go together."""
    assert micro_batches([10, 100, 10, 10], 400, 5) == [[1], [0, 2, 3]]
    assert micro_batches([10, 100, 10, 10], 400, 500) == [[1, 0, 2, 3]]


# ---- the same training ---------------------------------------------------------------------------------------------


def ragged_rows(count: int) -> dict[str, list[list[int]]]:
    stream = random.Random(3)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for number in range(count):
        prompt = [stream.randrange(5, 90) for _ in range(stream.randint(2, 12))]
        completion = [stream.randrange(5, 90) for _ in range(40 if number % 4 == 0 else stream.randint(1, 9))]
        columns["input_ids"].append(prompt + completion)
        columns["labels"].append([-100] * len(prompt) + completion)
    return columns


def train(
    plain: bool, tiny: CheckpointRef, settings: dict[str, Any], scratch: Path
) -> tuple[list[float], dict[str, Any]]:
    """The loss of each step and the weights after the last, by plain SFTTrainer or by ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTTrainer

    from loop.engines.hf_models import load_tokenizer
    from loop.engines.step_trainer import StepTrainer
    from loop.engines.trl_trainer import TrlTrainer

    model = float_model(tiny)
    if settings["method"] == "lora":
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrlTrainer(ON_A_CPU, no_progress).arguments(settings, scratch)
    rows = ragged_rows(14)  # the last step of an epoch has 6
    more = {"model": model, "train_dataset": Dataset.from_dict(rows), "processing_class": load_tokenizer(tiny)[0]}
    micro = settings["micro_batch_size"]
    if plain:
        arguments.per_device_train_batch_size = micro
        arguments.gradient_accumulation_steps = settings["batch_size"] // micro
        trainer: Any = SFTTrainer(args=arguments, **more)
    else:
        trainer = StepTrainer(args=arguments, budget=micro * max(map(len, rows["input_ids"])), **more)
        assert trainer.sums_loss
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: each.detach() for name, each in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [
        ("full", True),
        ("lora", False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("full", False), ("lora", True))),
    ],
)
def test_losses_and_weights_are_those_of_plain_sft_trainer(
    method: str, checkpointing: bool, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Over two epochs of ragged rows that batch_size does not divide."""
    table = {"method": method, "batch_size": 8, "micro_batch_size": 2, "num_epochs": 2, "learning_rate": 1e-4,
             "min_learning_rate": 1e-5, "gradient_checkpointing": checkpointing}  # fmt: skip
    settings = Training.model_validate(table).model_dump(mode="json") | {"seed": 7}
    expected, weights = train(True, tiny, settings, tmp_path / "plain")
    losses, ours = train(False, tiny, settings, tmp_path / "ours")
    assert len(losses) == 4 and losses == pytest.approx(expected, abs=1e-4)
    assert ours.keys() == weights.keys()
    before = train(False, tiny, settings | {"learning_rate": 1e-30, "min_learning_rate": 0.0}, tmp_path / "none")[1]
    moved, apart = (
        max(float((weights[name] - others[name]).abs().max()) for name in weights) for others in (before, ours)
    )
    assert moved > 1e-4 and apart < 1e-5
