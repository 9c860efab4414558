"""What a vLLM worker says of the weights that it holds, with stand-ins for vLLM's model; `test_vllm.py` asks the real one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from loop.engines.vllm_worker import Extension, checksum, may_show_a_change, shows_a_change

STACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LAYER = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": (10, 4),
    f"{LAYER}.self_attn.q_proj.weight": (4, 4),
    f"{LAYER}.self_attn.k_proj.weight": (2, 4),
    f"{LAYER}.self_attn.v_proj.weight": (2, 4),
    f"{LAYER}.self_attn.o_proj.weight": (4, 4),
    f"{LAYER}.mlp.experts.0.down_proj.weight": (4, 6),
    "model.norm.weight": (4,),
}
Tensors = dict[str, torch.Tensor]


def tensors(seed: int, step: float = 0.0) -> Tensors:
    """A checkpoint's, in which every element is a small step of training away from that of the seed."""
    torch.manual_seed(seed)
    return {name: torch.randn(shape) + step for name, shape in SHAPES.items()}


def saved(directory: Path, weights: Tensors) -> str:
    directory.mkdir()
    safetensors.torch.save_file(weights, directory / "model.safetensors")
    return str(directory)


def loaded(weights: Tensors) -> Tensors:
    """Those parameters as vLLM holds them: some stacked, the vocabulary padded, experts in a kernel's own layout."""
    qkv = torch.cat([weights[f"{LAYER}.self_attn.{part}.weight"] for part in STACKED["qkv_proj"]])
    return {
        "model.embed_tokens.weight": torch.cat([weights["model.embed_tokens.weight"], torch.zeros(6, 4)]),
        f"{LAYER}.self_attn.qkv_proj.weight": qkv,
        f"{LAYER}.self_attn.o_proj.weight": weights[f"{LAYER}.self_attn.o_proj.weight"].clone(),
        f"{LAYER}.mlp.experts.w2_weight": weights[f"{LAYER}.mlp.experts.0.down_proj.weight"].t().contiguous(),
        "model.norm.weight": weights["model.norm.weight"].clone(),
    }


class Model:
    packed_modules_mapping = STACKED

    def __init__(self, parameters: Tensors) -> None:
        self.parameters = parameters

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.parameters.items()


def held(parameters: Tensors, path: str) -> list[dict[str, Any]]:
    worker = Extension()
    worker.model_runner = SimpleNamespace(get_model=lambda: Model(parameters))
    return [worker.held_weights(path)]


@pytest.fixture
def old() -> Tensors:
    return tensors(0)


@pytest.fixture
def new() -> Tensors:
    return tensors(0, step=1e-6)  # so near that no log-probability tells them apart


def test_a_change_of_all_weights_is_shown_however_small_it_is(tmp_path: Path, old: Tensors, new: Tensors) -> None:
    path = saved(tmp_path / "new", new)
    before, after = held(loaded(old), path), held(loaded(new), path)
    assert may_show_a_change(before) and shows_a_change(before, after)
    assert after[0]["num_same"] == 4 and list(after[0]["checksums"]) == [f"{LAYER}.mlp.experts.w2_weight"]
    assert not shows_a_change(before, before), "a change that was reported and not made"


@pytest.mark.parametrize("name", loaded(tensors(0)))
def test_a_change_that_leaves_one_parameter_behind_is_not_shown(
    tmp_path: Path, old: Tensors, new: Tensors, name: str
) -> None:
    path = saved(tmp_path / "new", new)
    before, after = held(loaded(old), path), held(loaded(new) | {name: loaded(old)[name]}, path)
    assert not shows_a_change(before, after)


def test_a_change_is_not_shown_where_vllm_keeps_weights_out_of_sight(
    tmp_path: Path, old: Tensors, new: Tensors
) -> None:
    """As on a CPU, where a linear layer has a packed copy in place of its parameter."""
    path, name = saved(tmp_path / "new", new), f"{LAYER}.self_attn.o_proj.weight"
    before, after = (held(loaded(weights) | {name: torch.zeros(0)}, path) for weights in (old, new))
    assert not may_show_a_change(before) and not shows_a_change(before, after)


def test_weights_that_are_compared_nowhere_show_no_change(tmp_path: Path, old: Tensors, new: Tensors) -> None:
    """Checksums alone say that something changed, not that it is the new weights now."""
    path = saved(tmp_path / "new", new)
    strange = [{f"strange.{name}": tensor for name, tensor in loaded(weights).items()} for weights in (old, new)]
    assert not shows_a_change(held(strange[0], path), held(strange[1], path))


def test_files_are_read_whole_and_in_the_precision_that_is_served(tmp_path: Path, new: Tensors) -> None:
    """A checkpoint of several files, in float32; an engine in bfloat16."""
    directory, names = tmp_path / "sharded", sorted(new)
    directory.mkdir()
    for number, shard in enumerate((names[:3], names[3:])):
        safetensors.torch.save_file({name: new[name] for name in shard}, directory / f"{number}.safetensors")
    where = {name: f"{int(name in names[3:])}.safetensors" for name in names}
    (directory / "model.safetensors.index.json").write_text(str({"weight_map": where}).replace("'", '"'))
    served = {name: tensor.bfloat16() for name, tensor in loaded(new).items()}
    (said,) = held(served, str(directory))
    assert said["num_same"] == 4 and said["other"] == [] and said["num_in_files"] == sum(map(torch.numel, new.values()))


def test_a_checksum_sees_every_bit_and_every_place() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    others = [tensor.flip(0), tensor.flip(1), torch.nextafter(tensor, torch.tensor(9.0)), -tensor, tensor.bfloat16()]
    sums = [checksum(each) for each in (tensor, *others)]
    assert all(one != other for one, other in itertools.combinations(sums, 2))
    assert checksum(tensor.t()) == checksum(tensor.t().contiguous())
