"""What the trainer over TRL feeds to the model, and how it trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef, Trainer, TrainingRow
from loop.errors import EngineError
from tests.support.engines import EOS, at, contents, fit, float_model, logprob_sum, many_rows, some_rows, training
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_seen(batches: list[dict[str, Any]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The prompt and the completion of every row that the model was shown, by its positions and labels."""
    rows = []
    for batch in batches:
        ids, positions, labels = (batch[key][0].tolist() for key in ("input_ids", "position_ids", "labels"))
        starts = [index for index, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end] == list(range(end - start))
            own, learned = ids[start:end], labels[start:end]
            num_prompt = learned.index(next(label for label in learned if label != -100))
            assert learned == [-100] * num_prompt + own[num_prompt:]
            rows.append((tuple(own[:num_prompt]), tuple(own[num_prompt:])))
    return rows


def mean_loss(parent: CheckpointRef, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """The cross-entropy per completion token, row by row without padding."""
    model = float_model(parent)
    return -sum(logprob_sum(model, *row) for row in rows) / sum(len(completion) for _, completion in rows)


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_the_model_sees_the_sampled_ids_and_learns_the_completion_with_its_end(
    pad_is_eos: bool, recorded: Any, trl: Trainer, tmp_path: Path
) -> None:
    path = make_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos)
    fit(trl, at(path), training(), tmp_path / "out")
    seen = rows_seen(recorded.batches)
    assert sorted(seen) == sorted({(row.prompt_token_ids, row.completion_token_ids) for row in some_rows()})
    assert sum(completion[-1] == EOS for _, completion in seen) == 9


def test_rows_are_cut_at_max_tokens_and_dropped_where_nothing_is_left(
    recorded: Any, trl: Trainer, tiny: CheckpointRef, tmp_path: Path
) -> None:
    rows = [
        TrainingRow(prompt_token_ids=range(10, 14), completion_token_ids=(20, 21, 22, EOS)),
        TrainingRow(prompt_token_ids=range(10, 12), completion_token_ids=(20, 21, EOS)),
        TrainingRow(prompt_token_ids=range(10, 19), completion_token_ids=(20, EOS)),
    ]
    result = fit(trl, tiny, training(max_tokens=6), tmp_path / "out", rows)
    assert (result.num_rows, result.num_completion_tokens) == (2, 5)
    assert len(recorded.batches) == 1
    assert sorted(completion for _, completion in rows_seen(recorded.batches)) == [(20, 21), (20, 21, EOS)]
    with pytest.raises(EngineError, match=r"no completion fits into training\.max_tokens = 2; raise it"):
        fit(trl, tiny, training(max_tokens=2), tmp_path / "none", rows)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_first_loss_is_the_cross_entropy_per_completion_token(
    micro: int, recorded: Any, trl: Trainer, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """Over the whole batch, however it is split for memory."""
    result = fit(trl, tiny, training(micro_batch_size=micro, num_steps=1), tmp_path / "out")
    rows = rows_seen(recorded.batches)
    assert len(rows) == 4
    assert result.losses[0] == pytest.approx(mean_loss(tiny, rows), abs=1e-4)


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
    every = {(row.prompt_token_ids, row.completion_token_ids) for row in rows}
    seen, size = rows_seen(recorded.batches), result.num_rows
    left_out = every - set(seen[:size])
    assert len(left_out) == num_left_out and left_out == every - set(seen[size : 2 * size])
    written = at(tmp_path / "one")  # in the parent's precision
    assert result.held_out_loss == pytest.approx(mean_loss(written, [*left_out]), rel=0.02)


def test_learning_by_heart_shows_in_what_was_held_out(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    pairs = [((9, 10 + index), (30 + index * 7 % 50, 30 + index * 11 % 50, EOS)) for index in range(20)]
    rows = [TrainingRow(prompt_token_ids=prompt, completion_token_ids=completion) for prompt, completion in pairs]
    result = fit(trl, tiny, training(num_epochs=60, learning_rate=1e-2), tmp_path / "out", rows)
    assert result.held_out_loss is not None and result.train_loss is not None
    assert result.held_out_loss - result.train_loss > 0.5


def test_it_learns_a_repeated_set(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        settings = training(method, num_steps=30, learning_rate=1e-2)
        losses = fit(trl, tiny, settings, tmp_path / method, some_rows()[:4]).losses
        assert losses[-1] < 0.7 * losses[0]


def test_the_recipe_reaches_the_optimizer(recorded: Any, trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
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
    fit(trl, tiny, settings, tmp_path / "out")
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


def test_the_seed_decides_the_order(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    one = fit(trl, tiny, training(num_steps=2), tmp_path / "one")
    two = fit(trl, tiny, training(num_steps=2) | {"seed": 6}, tmp_path / "two")
    assert one.losses != two.losses


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_changes_memory_and_nothing_else(
    method: str, trl: Trainer, tiny: CheckpointRef, tmp_path: Path
) -> None:
    losses, without = (
        fit(trl, tiny, training(method, dropout=0.1, gradient_checkpointing=on), tmp_path / f"{on}").losses
        for on in (True, False)
    )
    assert losses == pytest.approx(without, abs=1e-5)
    assert len(set(losses)) == len(losses)


def test_a_loss_that_is_no_number_is_an_error(trl: Trainer, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = make_tiny_model(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"the loss is nan at step 1; lower training\.learning_rate"):
        fit(trl, at(path), training(), tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_weights_that_break_in_the_last_step_are_not_written(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    settings = training(num_steps=1, learning_rate=1e38, min_learning_rate=0.0, weight_decay=10.0)
    with pytest.raises(EngineError, match="the weights are not finite after the last step"):
        fit(trl, tiny, settings, tmp_path / "out")
    assert not contents(tmp_path / "out")
