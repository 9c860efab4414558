"""The peak memory of a training step, counted: the real model as its config describes it, without weights.

The model, sharded over a group of processes that is only pretended, takes whole optimizer steps on fake tensors, which have
a size and no content, and `Live` adds up the storages that are alive. That is what PyTorch allocates, with the CPU's kernels
in the place of a GPU's. Runs only inside a worker, and takes it some 15 to 45 seconds for billions of parameters.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, initialization
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.fsdp import apply_fully_sharded_data_parallelism
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

from loop.engines.base import TrainingPass, TrainingPeak
from loop.engines.step_trainer import SummedCrossEntropy
from loop.errors import EngineError


class Live(TorchDispatchMode):  # type: ignore[misc]
    """Bytes in the storages that are alive, and the most that there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # of each storage, by its address
        self.now = self.peak = 0
        self._resize = torch.UntypedStorage.resize_

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, once, until it is gone."""
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = 0
            weakref.finalize(storage, self._gone, key)
        self._set(key, storage.nbytes())

    def _set(self, key: int, num_bytes: int) -> None:
        self.now += num_bytes - self.sizes[key]
        self.sizes[key] = num_bytes
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_iter(out):
            if isinstance(each, torch.Tensor):
                self.add(each)
        return out

    def __enter__(self) -> Any:
        live, resize = self, self._resize

        def resized(storage: Any, num_bytes: int) -> Any:  # FSDP frees gathered weights so, without an operation
            result = resize(storage, num_bytes)
            if storage._cdata in live.sizes:
                live._set(storage._cdata, num_bytes)
            return result

        torch.UntypedStorage.resize_ = resized
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)


def num_parameters(config: dict[str, Any]) -> int:
    """The parameters of the model that a config.json describes, tied ones once. It is built on the meta device."""
    with torch.device("meta"):
        return sum(each.numel() for each in _model(config).parameters())


def peak_of_training(config: dict[str, Any], work: TrainingPass, real: bool = False) -> TrainingPeak:
    """What one process of a fine-tune holds at most. `real`: with memory behind every tensor, to test the count by."""
    mesh = _pretended_mesh(work.num_processes) if work.num_processes > 1 else None  # it cannot be made of fake tensors
    kernels = _as_triton() if work.on_gpu else contextlib.nullcontext()
    masks = contextlib.nullcontext() if work.padded else _without_masks()
    with contextlib.nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True), kernels, masks:
        model = _prepared(config, work, mesh)
        num = sum(each.numel() for each in model.parameters())
        trained = [each for each in model.parameters() if each.requires_grad]
        num_trained = sum(each.numel() for each in trained)
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)  # as transformers has it by default
        tokens = torch.zeros(work.num_rows, work.row_tokens, dtype=torch.int64)
        live = Live()
        for each in model.parameters():
            live.add(each)
        peaks = {}
        with live:
            for _ in range(2):  # the second step has AdamW's moments from its beginning
                live.peak = live.now
                loss = _loss(model, tokens, work)
                peaks["forward_bytes"] = live.peak
                loss.backward()
                del loss
                peaks["backward_bytes"], live.peak = live.peak, live.now
                optimizer.step()
                peaks["optimizer_bytes"] = live.peak
                optimizer.zero_grad()
    return TrainingPeak(num_parameters=num, num_trained=num_trained, at_rest_bytes=live.now, **peaks)


def _model(config: dict[str, Any], **more: Any) -> Any:
    fields = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config", "dtype")}
    try:
        parsed = AutoConfig.for_model(config["model_type"], **fields)
        if getattr(parsed, "num_experts", None) or getattr(parsed, "num_local_experts", None):
            parsed._experts_implementation = "grouped_mm"
        return AutoModelForCausalLM.from_config(parsed, **more)
    except (KeyError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["unknown"])[0]
        raise EngineError(f"config.json: transformers cannot build this model: {reason}") from None


def _prepared(config: dict[str, Any], work: TrainingPass, mesh: Any) -> Any:
    """The model as the trainer has it: sharded by transformers' own plan, its head replaced, an adapter where asked for."""
    lora, is_bfloat16 = work.lora_rank is not None, work.lora_rank is not None and work.on_gpu
    with initialization.no_tie_weights():  # as `from_pretrained` does: tied weights are sharded first and tied then
        model = _model(config, dtype=torch.bfloat16 if is_bfloat16 else torch.float32)
    if work.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    if work.on_gpu:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    else:
        model.forward = functools.partial(_summed_loss, model)
    if mesh is not None:
        model.config.distributed_config = DistributedConfig(
            tp_size=1, pp_size=1, ep_size=1, fsdp_size=work.num_processes, fsdp_mixed_precision=work.on_gpu
        )
        model = apply_fully_sharded_data_parallelism(model, SimpleNamespace(get_mesh=lambda dims: mesh))
    model.tie_weights(recompute_mapping=False)
    if lora:
        from peft import LoraConfig, get_peft_model

        targets = work.lora_targets if isinstance(work.lora_targets, str) else list(work.lora_targets)
        adapter = LoraConfig(r=work.lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        # The adapter is made in float32, as it is trained, and where it belongs. Fake tensors cannot be moved in place.
        with patch.object(torch.nn.Module, "to", lambda module, *arguments, **more: module):
            model = get_peft_model(model, adapter)
        if work.gradient_checkpointing:
            model.enable_input_require_grads()
    return model


def _summed_loss(model: Any, input_ids: torch.Tensor, **unused: Any) -> torch.Tensor:
    """What `step_trainer.add_summed_loss` adds, without its choice of labels: that asks for the tensors' content."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    weight = model.get_output_embeddings().weight
    weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return SummedCrossEntropy.apply(hidden.reshape(-1, hidden.size(-1)), weight, input_ids[:, 1:].reshape(-1))


def _loss(model: Any, tokens: torch.Tensor, work: TrainingPass) -> torch.Tensor:
    if not work.on_gpu:
        return model(input_ids=tokens) / tokens.numel()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=tokens, labels=tokens, fused_lm_head=True)
    return -out.log_probs.sum() / tokens.numel()


def _pretended_mesh(num_processes: int) -> Any:
    """A group of so many processes, whose collectives send nothing. One for the life of the worker."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("fake", rank=0, world_size=num_processes, store=FakeStore())
    return init_device_mesh("cpu", (num_processes,))


@contextlib.contextmanager
def _as_triton() -> Iterator[None]:
    """A GPU's kernel folds each tile of logits in place; without these the CPU's stand-in would count its copies."""
    with contextlib.ExitStack() as stack:
        for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
            stack.enter_context(patch.object(chunked_logprob, name, lambda *arguments, **more: None))
        yield


def _without_masks() -> Any:
    """Rows of one length need no mask. transformers sees so by the tensors' content, and makes one (T x T) for fake ones."""
    return patch.dict(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, {"sdpa": lambda *arguments, **more: None})
