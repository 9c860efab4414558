"""How a step's rows are dealt and cut into passes, and that the optimizer sees what plain SFTTrainer would have shown it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.config.settings import Training
from loop.engines.base import CheckpointRef, TrainingRow
from loop.engines.batching import deal
from tests.support.engines import float_model
from tests.support.engines import write_rows as write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- the deal ------------------------------------------------------------------------------------------------------

Lengths = st.lists(st.integers(1, 300), min_size=1, max_size=24)


@given(Lengths, st.integers(1, 5), st.integers(1, 900))
def test_every_row_is_dealt_once_and_only_a_row_by_itself_goes_over_the_budget(
    lengths: list[int], num_processes: int, budget: int
) -> None:
    passes = deal(lengths, num_processes, budget)
    assert all(len(each) == num_processes for each in passes), "each process takes part in each pass"
    taken = [rows for each in passes for rows in each]
    assert sorted(row for rows in taken for row in rows) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in rows) for rows in taken]
    assert all(len(rows) == 1 or size <= budget for rows, size in zip(taken, sizes, strict=True))
    assert max(sizes[:num_processes]) == max(sizes), "what takes most memory comes first"
    assert passes == deal(lengths, num_processes, budget)


@given(Lengths, st.integers(1, 5))
def test_processes_get_nearly_equal_tokens(lengths: list[int], num_processes: int) -> None:
    """Graham's bound: nobody has more than 4/3 - 1/(3 m) of the least that is possible."""
    (one,) = deal(lengths, num_processes, sum(lengths))
    most = max(sum(lengths[row] for row in rows) for rows in one)
    ordered = sorted(lengths, reverse=True)
    least = max(ordered[0], -(-sum(lengths) // num_processes), sum(ordered[num_processes - 1 : num_processes + 1]))
    if len(lengths) <= num_processes:
        least = ordered[0]
    assert most <= (4 / 3 - 1 / (3 * num_processes)) * least + 1e-9


def test_without_a_budget_each_row_has_a_pass_of_its_own() -> None:
    assert deal([10, 100, 10], 1, 0) == [[[1]], [[0]], [[2]]]
    assert deal([10, 100, 10], 2, 0) == [[[1], [0]], [[2], []]]


def test_few_passes_are_taken() -> None:
    assert deal([10, 100, 10, 10], 1, 130) == [[[1, 0, 2, 3]]]
    assert deal([10, 100, 10, 10], 1, 100) == [[[1]], [[0, 2, 3]]]


# ---- the same training ---------------------------------------------------------------------------------------------


def ragged_rows(count: int) -> list[TrainingRow]:
    stream = random.Random(3)
    rows = []
    for number in range(count):
        prompt = [stream.randrange(5, 90) for _ in range(stream.randint(2, 12))]
        completion = [stream.randrange(5, 90) for _ in range(40 if number % 4 == 0 else stream.randint(1, 9))]
        rows.append(TrainingRow(prompt_token_ids=prompt, completion_token_ids=completion))
    return rows


def train(
    plain: bool, tiny: CheckpointRef, settings: dict[str, Any], scratch: Path
) -> tuple[list[float], dict[str, Any]]:
    """The loss of each step and the weights after the last, by plain SFTTrainer or by ours."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTTrainer

    from loop.engines.hf_models import load_tokenizer
    from loop.engines.rows import Rows, write_rows
    from loop.engines.step_trainer import StepTrainer
    from loop.engines.trl_trainer import arguments

    model = float_model(tiny)
    if settings["method"] == "lora":
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    args = arguments(settings, scratch, torch.device("cpu"))
    rows = ragged_rows(14)  # the last step of an epoch has 6
    more = {"model": model, "processing_class": load_tokenizer(tiny)[0]}
    micro = settings["micro_batch_size"]
    if plain:
        args.per_device_train_batch_size = micro
        args.gradient_accumulation_steps = settings["batch_size"] // micro
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        for row in rows:
            columns["input_ids"].append([*row.prompt_token_ids, *row.completion_token_ids])
            columns["labels"].append([-100] * len(row.prompt_token_ids) + [*row.completion_token_ids])
        trainer: Any = SFTTrainer(args=args, train_dataset=Dataset.from_dict(columns), **more)
    else:
        scratch.mkdir()
        file, _ = write_rows(write_jsonl(scratch / "rows.jsonl", rows), settings, scratch)
        ours = Rows(file)
        budget = micro * max(ours.lengths)
        trainer = StepTrainer(args=args, rows=ours, batch_size=settings["batch_size"], budget=budget, **more)
        assert trainer.sums_loss and trainer.budget == budget
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
