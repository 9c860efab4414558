"""What the trainer over TRL writes: precision, configuration, tokenizer, adapters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from loop.engines.base import CheckpointRef, Trainer
from loop.errors import EngineError
from tests.support.engines import at, fit, logits, many_rows, sample, training
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("config_says", "method", "bfloat16"),
    [
        pytest.param(
            *case,
            marks=[]
            if case in ((True, "full", True), (False, "full", True), (False, "lora", False))
            else pytest.mark.slow,
        )
        for case in itertools.product((True, False), ("full", "lora"), (True, False))
    ],
)
def test_weights_keep_the_parents_precision_and_its_configuration(
    config_says: bool, method: str, bfloat16: bool, trl: Trainer, tmp_path: Path
) -> None:
    """Also where config.json names no dtype. Several end tokens, use_cache and the rest of the configs stay as they were."""
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    path = make_tiny_model(tmp_path / "model", bfloat16=bfloat16)
    GenerationConfig(eos_token_id=[7, 0], pad_token_id=0).save_pretrained(path)
    before = json.loads((path / "config.json").read_text())
    if not config_says:
        (path / "config.json").write_text(json.dumps({key: before[key] for key in before if key != "dtype"}))
    fit(trl, at(path), training(method), tmp_path / "out")
    old, new = load_file(path / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in old.items()} == {name: tensor.dtype for name, tensor in new.items()}
    assert any(not old[name].equal(new[name]) for name in old)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before
    for file in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_text() == (path / file).read_text()


@pytest.mark.parametrize("has_pad", [True, False])
def test_the_tokenizer_keeps_its_hash(has_pad: bool, trl: Trainer, tmp_path: Path) -> None:
    """Over two rounds, and also where there is no padding token and the trainer has to invent one."""
    from loop.engines.hf_models import load_tokenizer

    path = make_tiny_model(tmp_path / "model")
    if not has_pad:
        table = json.loads((path / "tokenizer_config.json").read_text())
        del table["pad_token"]
        (path / "tokenizer_config.json").write_text(json.dumps(table))
    parent = at(path)
    hashes = {load_tokenizer(parent)[1]}
    for name in ("one", "two"):
        fit(trl, parent, training(num_steps=1), tmp_path / name)
        parent = at(tmp_path / name)
        hashes.add(load_tokenizer(parent)[1])
        sample(parent)
    assert len(hashes) == 1


def test_an_adapter_and_its_merged_weights_are_the_same_model(
    trl: Trainer, tiny: CheckpointRef, tmp_path: Path
) -> None:
    """And a parent adapter is trained further: its next step starts where it stood, and merging it later works."""
    import torch

    fit(trl, tiny, training("lora", merge=False), tmp_path / "adapter")
    fit(trl, tiny, training("lora", merge=True), tmp_path / "merged")
    adapter, merged = at(tmp_path / "adapter", tiny.path), at(tmp_path / "merged")
    modules = json.loads((adapter.path / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) > 1 and modules == sorted(modules), "the same files in every process"
    torch.testing.assert_close(logits(adapter), logits(merged), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(adapter), logits(tiny), atol=1e-2)

    further = fit(trl, adapter, training("lora", merge=False), tmp_path / "second")
    fit(trl, adapter, training("lora", merge=True), tmp_path / "second-merged")
    other = fit(trl, merged, training(num_steps=1), tmp_path / "other")
    assert further.adapter and further.losses[0] == pytest.approx(other.losses[0], abs=1e-4)
    second = at(tmp_path / "second", tiny.path)
    assert not torch.allclose(logits(second), logits(adapter), atol=1e-3)
    again = logits(at(tmp_path / "second-merged"))
    torch.testing.assert_close(logits(second), again, atol=1e-4, rtol=1e-4)


def test_an_adapter_over_bfloat16_is_to_the_bit_what_the_trainer_merges(trl: Trainer, tmp_path: Path) -> None:
    import torch

    from loop.engines.hf_models import load_model

    base = make_tiny_model(tmp_path / "model", bfloat16=True)
    for name in ("adapter", "merged"):
        fit(trl, at(base), training("lora", merge=name == "merged"), tmp_path / name)
    refs = (at(tmp_path / "adapter", base), at(tmp_path / "merged"))
    adapter, merged = (load_model(ref, torch.bfloat16, torch.device("cpu")).state_dict() for ref in refs)
    assert all(torch.equal(adapter[name], merged[name]) for name in merged)


def test_a_pickled_adapter_is_refused(trl: Trainer, tiny: CheckpointRef, tmp_path: Path) -> None:
    fit(trl, tiny, training("lora", merge=False, num_steps=1), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    adapter = at(tmp_path / "adapter", tiny.path)
    for use in (sample, lambda adapter: fit(trl, adapter, training("lora"), tmp_path / "out")):
        with pytest.raises(EngineError, match=r"holds no adapter_model\.safetensors"):
            use(adapter)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError()])
def test_no_figure_is_worth_the_weights(
    trl: Trainer, tiny: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    """What cannot be measured after a fine-tune is not known; the weights are written all the same."""
    from loop.engines.step_trainer import StepTrainer

    def too_large(*arguments: object) -> float:
        raise error

    monkeypatch.setattr(StepTrainer, "mean_loss", too_large)
    result = fit(trl, tiny, training(num_epochs=1, held_out=3), tmp_path / "out", many_rows(65))
    assert (result.num_held_out, result.held_out_loss, result.train_loss) == (3, None, None)
    assert result.num_steps > 0 and (tmp_path / "out" / "model.safetensors").stat().st_size > 0
