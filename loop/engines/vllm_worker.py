"""What runs inside vLLM's own worker processes, mixed into its worker class: probes, and a look at the weights that it holds.

A change of weights in place is reported by vLLM as done. What it holds afterwards is compared here with the files, tensor by
tensor and exactly, as far as vLLM keeps a tensor as it is in the files or several of them stacked. The rest, which kernels want
in a layout of their own, has a checksum that a change must change. What vLLM packs away and keeps as no parameter is not seen.

On a CPU `reload_weights` leaves one thing half done: it packs every layer again except the output layer of a model whose
embeddings are tied to it. The old packed copy stays in use beside the new weights, without a warning (seen in 0.32.0 with
SmolLM2 and models like it).
"""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from loop.engines.vllm_probe import Probes

PIECE = 1 << 24  # elements whose checksum is made at once: 128 MB beside the weights
PRIME = 65521  # places of a tensor have other weights in its checksum, so that elements which change places change it


@dataclass
class Held:
    """What a worker's parameters are, beside the files of a checkpoint.

    `num_same` and `other`: parameters that were compared with the files, the names of those that differ. `checksums` of those
    that could not be compared. `num_empty`: parameters whose weights vLLM has packed away. `num_seen` and `num_in_files`:
    elements of all parameters, without padding where that is known, and of all tensors of the files.
    """

    num_same: int = 0
    other: list[str] = field(default_factory=list)
    checksums: dict[str, int] = field(default_factory=dict)
    num_empty: int = 0
    num_seen: int = 0
    num_in_files: int = 0


class Extension(Probes):
    """Mixed into vLLM's worker class, which has the `model_runner`."""

    def repack_shared_weights(self) -> int:
        """Pack the weights of the layers that keep them beside the packed copy. The number of such layers, on a GPU 0."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        shared = [
            module
            for module in self.model_runner.get_model().modules()
            if hasattr(module, "cpu_linear") and module.weight.numel()
        ]
        for module in shared:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        return len(shared)

    def held_weights(self, path: str) -> dict[str, Any]:
        """The `Held` of this worker and the checkpoint at `path`, as a dict."""
        model, held = self.model_runner.get_model(), Held()
        stacked = getattr(model, "packed_modules_mapping", {})
        with ExitStack() as stack, torch.inference_mode():
            files = open_tensors(Path(path), stack)
            held.num_in_files = sum(math.prod(file.get_slice(name).get_shape()) for name, file in files.items())
            for name, parameter in model.named_parameters():
                held.num_empty += not parameter.numel()
                parts = [files[part].get_tensor(part) for part in parts_of(name, stacked, files)]
                wanted = torch.cat(parts) if parts else parameter.new_empty(0)
                if not _is_comparable(wanted, parameter):
                    held.checksums[name] = checksum(parameter)
                    held.num_seen += parameter.numel()
                    continue
                held.num_seen += wanted.numel()
                if torch.equal(parameter[: len(wanted)], wanted.to(parameter.device, parameter.dtype)):
                    held.num_same += 1
                else:
                    held.other.append(name)
        return vars(held)


def open_tensors(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file of safetensors that holds each tensor of a checkpoint. The stack closes them."""
    index = directory / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
    files = [stack.enter_context(safe_open(directory / name, "pt")) for name in sorted(set(names))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118  (it is no dict)


def parts_of(name: str, stacked: dict[str, list[str]], files: dict[str, Any]) -> list[str]:
    """The tensors of the files that a parameter of vLLM's is made of, in its order; none where that is not known."""
    if name in files:
        return [name]
    for whole, pieces in stacked.items():
        if f".{whole}." in name:
            parts = [name.replace(f".{whole}.", f".{piece}.") for piece in pieces]
            return parts if all(part in files for part in parts) else []
    return []


def _is_comparable(wanted: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Whether the parameter is the tensor of the files, or that with rows behind it: vLLM pads vocabularies."""
    return wanted.ndim > 0 and wanted.shape[1:] == parameter.shape[1:] and 0 < len(wanted) <= len(parameter)


def checksum(parameter: torch.Tensor) -> int:
    """Of the bits of a tensor. It is the same on every device."""
    bits = parameter.detach().contiguous().view(-1).view(torch.uint8)
    total = 0
    for start in range(0, len(bits), PIECE):
        piece = bits[start : start + PIECE].to(torch.int64)
        places = torch.arange(start, start + len(piece), device=piece.device) % PRIME + 1
        total += int((piece * places).sum())
    return total


def may_show_a_change(before: list[dict[str, Any]]) -> bool:
    """Whether all weights are among the parameters, and some that could be compared are not the new ones yet.

    `before`: what `held_weights` says of the new checkpoint, rank by rank, before the change.
    """
    held = [Held(**each) for each in before]
    if any(each.num_empty for each in held) or sum(each.num_seen for each in held) < held[0].num_in_files:
        return False
    return any(each.other for each in held)


def shows_a_change(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Whether each parameter of each rank was seen to be the new one: by comparison, or at least as another than before."""
    return may_show_a_change(before) and all(
        not now["other"] and all(then["checksums"].get(name) != sum for name, sum in now["checksums"].items())
        for then, now in zip(before, after, strict=True)
    )
