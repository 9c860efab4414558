"""What the trainer over TRL feeds to the model, and how it trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Trainer, TrainingRow
from loop.errors import EngineError
from tests.support.engines import EOS, contents, fit, many_rows, some_rows, training
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_the_model_sees_the_sampled_ids_and_learns_the_completion_with_its_end(
    pad_is_eos: bool, recorded: Any, trainers: Callable[[str], Trainer], tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos)
    fit(trainers("trl"), CheckpointRef(sha256="", path=path), training(), tmp_path / "out")
    rows = {(row.prompt_token_ids, row.completion_token_ids) for row in some_rows()}
    found = []
    for batch in recorded.batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert set(labels[length:].tolist()) <= {-100}
            num_prompt = int((labels[:length] == -100).sum())
            assert labels[:num_prompt].tolist() == [-100] * num_prompt
            assert labels[num_prompt:length].tolist() == ids[num_prompt:length].tolist()
            found.append((tuple(ids[:num_prompt].tolist()), tuple(ids[num_prompt:length].tolist())))
    assert sorted(found) == sorted(rows)
    assert sum(completion[-1] == EOS for _, completion in found) == 9


def test_rows_are_cut_at_max_tokens_and_dropped_where_nothing_is_left(
    recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    rows = [
        TrainingRow(prompt_token_ids=range(10, 14), completion_token_ids=(20, 21, 22, EOS)),
        TrainingRow(prompt_token_ids=range(10, 12), completion_token_ids=(20, 21, EOS)),
        TrainingRow(prompt_token_ids=range(10, 19), completion_token_ids=(20, EOS)),
    ]
    result = fit(trainers("trl"), tiny, training(max_tokens=6), tmp_path / "out", rows)
    assert (result.num_rows, result.num_completion_tokens) == (2, 5)
    (batch,) = recorded.batches
    trained = sorted([label for label in labels if label != -100] for labels in batch["labels"].tolist())
    assert trained == [[20, 21], [20, 21, EOS]]
    with pytest.raises(EngineError, match=r"no completion fits into training\.max_tokens = 2; raise it"):
        fit(trainers("trl"), tiny, training(max_tokens=2), tmp_path / "none", rows)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_first_loss_is_the_cross_entropy_per_completion_token(
    micro: int, recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Over the whole batch, however it is split for memory. Computed again row by row without padding."""
    import torch

    from loop.engines.hf_models import load_model

    result = fit(trainers("trl"), tiny, training(micro_batch_size=micro, num_steps=1), tmp_path / "out")
    model = load_model(tiny, torch.float32, torch.device("cpu")).eval()
    total, count = 0.0, 0
    for batch in recorded.batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            with torch.no_grad():
                logprobs = model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
            for position in range(1, length):
                if labels[position] != -100:
                    total -= float(logprobs[position - 1, ids[position]])
                    count += 1
    assert sum(len(batch["input_ids"]) for batch in recorded.batches) == 4
    assert result.losses[0] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize(("name", "num_left_out"), [("fake", 3), ("trl", 3), ("trl", 2)])
def test_some_rows_are_held_out(
    name: str, num_left_out: int, recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef,
    fake: CheckpointRef, tmp_path: Path,
) -> None:  # fmt: skip
    """By a hash, so that the same ones are, wherever they stand; their loss is that of the final weights."""
    rows, parent = many_rows(num_left_out * 20 + 5), fake if name == "fake" else tiny
    settings = training(num_epochs=1, held_out=num_left_out if num_left_out == 2 else 16)
    result = fit(trainers(name), parent, settings, tmp_path / "one", rows)
    assert (result.num_held_out, result.num_rows) == (num_left_out, len(rows) - num_left_out)
    again = fit(trainers(name), parent, settings, tmp_path / "two", rows[::-1])
    assert result.held_out_loss == pytest.approx(again.held_out_loss, rel=0.2)  # another order trains other weights
    none = fit(trainers(name), parent, training(held_out=0), tmp_path / "three", rows)
    assert (none.num_held_out, none.num_rows, none.held_out_loss, none.train_loss) == (0, len(rows), None, None)
    if name == "fake":
        return
    every = {(*row.prompt_token_ids, *row.completion_token_ids) for row in rows}
    size = result.num_rows
    seen: list[tuple[int, ...]] = []
    for batch in recorded.batches:
        for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
            seen.append(tuple(ids[: sum(mask)]))
    left_out = every - set(seen[:size])
    assert len(left_out) == num_left_out and left_out == every - set(seen[size : 2 * size])

    import torch

    from loop.engines.hf_models import load_model

    model = load_model(CheckpointRef(sha256="", path=tmp_path / "one"), torch.float32, torch.device("cpu")).eval()
    total, count = 0.0, 0
    for row in rows:
        ids = [*row.prompt_token_ids, *row.completion_token_ids]
        if tuple(ids) in left_out:
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for position in range(len(row.prompt_token_ids), len(ids)):
                total -= float(logprobs[position - 1, ids[position]])
                count += 1
    assert result.held_out_loss == pytest.approx(
        total / count, rel=0.02
    )  # weights are written in the parent's precision


def test_learning_by_heart_shows_in_what_was_held_out(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    rows = [
        TrainingRow(
            prompt_token_ids=(9, 10 + index), completion_token_ids=(30 + index * 7 % 50, 30 + index * 11 % 50, EOS)
        )
        for index in range(20)
    ]
    result = fit(trainers("trl"), tiny, training(num_epochs=60, learning_rate=1e-2), tmp_path / "out", rows)
    assert result.held_out_loss is not None and result.train_loss is not None
    assert result.held_out_loss - result.train_loss > 0.5


def test_it_learns_a_repeated_set(trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        settings = training(method, num_steps=30, learning_rate=1e-2)
        losses = fit(trainers("trl"), tiny, settings, tmp_path / method, some_rows()[:4]).losses
        assert losses[-1] < 0.7 * losses[0]


def test_the_recipe_reaches_the_optimizer(
    recorded: Any, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    """AdamW with the given betas and decay; linear warm-up, then a cosine that ends at min_learning_rate."""
    import torch

    rates: list[float] = []
    step = recorded.training_step

    def training_step(self: Any, *arguments: Any, **more: Any) -> Any:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *arguments, **more)

    recorded.training_step = training_step
    settings = training(
        num_steps=20, warmup_steps=5, adam_beta1=0.8, adam_beta2=0.9, weight_decay=0.05, max_grad_norm=0.5,
        batch_size=2, learning_rate=4e-3, min_learning_rate=1e-3,
    )  # fmt: skip
    fit(trainers("trl"), tiny, settings, tmp_path / "out")
    trainer = recorded.last
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    assert trainer.args.max_grad_norm == 0.5
    assert rates[:6] == pytest.approx([4e-3 * done / 5 for done in range(6)])
    for done, rate in enumerate(rates[5:]):
        assert rate == pytest.approx(1e-3 + 3e-3 * (1 + math.cos(math.pi * done / 15)) / 2)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3)


def test_the_seed_decides_the_order(trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path) -> None:
    one = fit(trainers("trl"), tiny, training(num_steps=2), tmp_path / "one")
    two = fit(trainers("trl"), tiny, training(num_steps=2) | {"seed": 6}, tmp_path / "two")
    assert one.losses != two.losses


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_changes_memory_and_nothing_else(
    method: str, trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    found = []
    for on in (True, False):
        settings = training(method, dropout=0.1, gradient_checkpointing=on)
        found.append(fit(trainers("trl"), tiny, settings, tmp_path / f"{on}").losses)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert len(set(found[0])) == len(found[0])


def test_a_loss_that_is_no_number_is_an_error(trainers: Callable[[str], Trainer], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = make_tiny_model(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"the loss is nan at step 1; lower training\.learning_rate"):
        fit(trainers("trl"), CheckpointRef(sha256="", path=path), training(), tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_weights_that_break_in_the_last_step_are_not_written(
    trainers: Callable[[str], Trainer], tiny: CheckpointRef, tmp_path: Path
) -> None:
    settings = training(num_steps=1, learning_rate=1e38, min_learning_rate=0.0, weight_decay=10.0)
    with pytest.raises(EngineError, match="the weights are not finite after the last step"):
        fit(trainers("trl"), tiny, settings, tmp_path / "out")
    assert not contents(tmp_path / "out")
