"""An adapter over a base in four bits. Runs where bitsandbytes is installed (`make test-vllm`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; `make test-vllm` installs it")

from loop.engines.base import Trainer
from tests.support.engines import at, fit, sample, some_rows, training
from tests.support.tiny import make_random_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("merge", [True, False])
def test_it_learns_over_a_base_in_four_bits_and_is_merged_into_the_whole_one(
    merge: bool, recorded: Any, trl: Trainer, tmp_path: Path
) -> None:
    """What is merged into are the weights on the disk, not those of four bits."""
    import torch
    from safetensors.torch import load_file

    parent = at(make_random_model(tmp_path / "model", "qwen3"))
    recipe = training("lora", merge=merge, num_steps=30, learning_rate=1e-2)
    recipe["lora"]["four_bit"] = True
    result = fit(trl, parent, recipe, tmp_path / "out", some_rows()[:4])
    held = {each.dtype for name, each in recorded.last.model.named_parameters() if name.endswith("base_layer.weight")}
    assert held == {torch.uint8}, "matrices are packed"
    assert result.losses[-1] < 0.9 * result.losses[0] and result.adapter == (not merge)
    sample(at(tmp_path / "out", None if merge else parent.path))
    if merge:
        before, after = (load_file(path / "model.safetensors") for path in (parent.path, tmp_path / "out"))
        assert before.keys() == after.keys()
        untouched = [name for name in before if "norm" in name or "embed" in name]
        assert untouched and all(torch.equal(before[name], after[name]) for name in untouched)
        for name, each in before.items():
            if (
                "proj" in name
            ):  # what was added to them has the adapter's rank; the error of four bits would have every rank
                values = torch.linalg.svdvals((after[name] - each).double())
                assert values[0] > 1e-3 and values[4] < 1e-5 * values[0], name
