"""A model over the processes of a group: loaded in slices, and saved piece by piece as one Hugging Face directory.

transformers shards while it loads (FSDP 2; its `DistributedConfig`): each process reads its own slices of the safetensors and
holds 1/N of every parameter, on GPUs (nccl) as on CPUs (gloo). With one process all of this is an ordinary model.
Runs only inside a worker process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.distributed.configuration_utils import DistributedConfig

from loop.engines.base import CheckpointRef
from loop.engines.hf_models import first_file, load_model
from loop.errors import EngineError

FILE_BYTES = 400 * 10**6  # of a file of weights, which process 0 holds in main memory while it is written
# A process that dies ends the group, and the daemon ends one that makes no progress; so this limit only has to be long.
WAIT = timedelta(days=7)


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_number() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def start_group(device: torch.device) -> None:
    """Join the group that torchrun's environment describes, before any model is loaded."""
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=WAIT, device_id=device if on_gpu else None
    )


def num_collectives() -> int:
    """How many collective operations this process has begun with the others."""
    if not dist.is_initialized():
        return 0
    group = dist.group.WORLD
    own = (kind for kind in map(torch.device, ("cpu", "cuda")) if kind in group._device_types)
    return 1 + sum(int(group._get_backend(kind)._get_sequence_number_for_group()) for kind in own)


def wait_for_all() -> None:
    """Return once every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def load(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with its weights in `dtype`; of several processes each holds its share. EngineError for a kind that cannot be shared."""
    spread: dict[str, Any] = {}
    if num_processes() > 1:
        on_gpu = device.type == "cuda"
        spread["distributed_config"] = DistributedConfig(fsdp_size=num_processes(), fsdp_mixed_precision=on_gpu)
    try:
        return load_model(CheckpointRef(sha256="", path=directory), dtype, device, **spread)
    except ValueError as error:
        if "FSDP2 plan" not in str(error):
            raise
        kind = AutoConfig.from_pretrained(directory, local_files_only=True).model_type
        raise EngineError(
            f"{directory}: transformers cannot share a model of type {kind!r} among {num_processes()} processes; set "
            "engine.num_training_processes = 1"
        ) from None


def dtype_on_disk(directory: Path) -> torch.dtype:
    """The precision of the weights of a model directory, by its config or else by its first file."""
    dtype = AutoConfig.from_pretrained(directory, local_files_only=True).dtype
    if dtype is None:
        with safe_open(first_file(directory), framework="pt") as file:
            dtype = file.get_tensor(next(iter(file.keys()))).dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_finite(model: Any) -> bool:
    """Whether all weights are numbers, on every process. All of them call this."""
    local = (parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in model.parameters())
    finite = torch.tensor(all(bool(each.isfinite().all()) for each in local), dtype=torch.int32)
    if dist.is_initialized():
        dist.all_reduce(finite, dist.ReduceOp.MIN)  # on the CPU, by gloo
    return bool(finite)


def save(model: Any, dtype: torch.dtype, config: Any, generation_config: Any, out_dir: Path) -> None:
    """Write the model in `dtype` under the names of the directory that it was loaded from. All processes call this.

    Tensors are cast and gathered one at a time, in main memory; process 0 holds and writes FILE_BYTES at most, or a larger tensor.
    The model stays as it is. `config` and `generation_config` are those of the directory that the model was loaded from.
    """
    state, writes = model.state_dict(), process_number() == 0
    pieces = list(_pieces(model, state, dtype))
    weight_map: dict[str, str] = {}
    total = 0
    for number, names in enumerate(pieces, start=1):
        whole: dict[str, torch.Tensor] = {}
        for name in names:
            tensor = _gathered(state[name].detach(), dtype)
            if tensor is not None:
                whole[name] = tensor
            del tensor
        if writes:
            # transformers fuses some weights while it loads, such as those of experts.
            whole = {name: each.contiguous() for name, each in revert_weight_conversion(model, whole).items()}
            file = "model.safetensors" if len(pieces) == 1 else f"model-{number:05}-of-{len(pieces):05}.safetensors"
            save_file(whole, out_dir / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(whole, file)
            total += sum(each.nbytes for each in whole.values())
        del whole
    if writes:
        if len(pieces) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (out_dir / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        config = copy.deepcopy(config)
        config.dtype = dtype
        config.save_pretrained(out_dir)
        if generation_config is not None:
            generation_config.save_pretrained(out_dir)
    wait_for_all()


def _gathered(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The whole tensor in main memory, on process 0; None elsewhere. Integers keep their type."""
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    if not isinstance(tensor, DTensor):
        return tensor.to("cpu", dtype) if process_number() == 0 else None
    assert tensor.placements == (Shard(0),), tensor.placements
    own = tensor.to_local().to(dtype).cpu()
    length, rest = -(-len(tensor) // num_processes()), tensor.shape[1:]  # the last ones may have less
    if len(own) < length:
        own = torch.cat([own, own.new_zeros(length - len(own), *rest)])
    if process_number() != 0:
        dist.gather(own)
        return None
    whole = own.new_empty(length * num_processes(), *rest)
    dist.gather(own, list(whole.chunk(num_processes())))
    return whole[: len(tensor)]


def _pieces(model: Any, state: dict[str, Any], dtype: torch.dtype) -> Iterator[list[str]]:
    """The names of the state in order, as many at a time as a file holds; without those that are others' twins."""
    twins = set(getattr(model, "all_tied_weights_keys", None) or {})
    piece: list[str] = []
    size = 0
    for name, tensor in state.items():
        if name in twins:
            continue
        num_bytes = tensor.numel() * dtype.itemsize
        if piece and size + num_bytes > FILE_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += num_bytes
    if piece:
        yield piece
