"""Sampling with vLLM, on a GPU or a CPU. Runs only inside a worker process; imports vLLM only when one is built.

The engine takes a few requests more than it computes, so that it never waits for one. Before it serves a checkpoint, `weights_proof` shows that
it does; because of that proof other weights may be loaded into a running engine.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from loop.engines.base import CheckpointRef, EngineConfig, Generated, Progress, Request, SamplingParams
from loop.engines.feed import Feed, feed_of, room
from loop.engines.hf_models import check_adapter, choose_device, choose_dtype, load_tokenizer
from loop.engines.hf_prober import ProbesHere
from loop.engines.prompting import completion, fitting_prompts
from loop.engines.weights_proof import Proof, check, reference, serves, tells_apart
from loop.errors import EngineError

CPU_CACHE_BYTES = 2 << 30
NEVER = 1 << 30  # tokens between two reports of a row: only its first one and its end are wanted


class VllmSampler(ProbesHere):
    """A Sampler over one vLLM engine, and a Prober with the same weights under transformers."""

    def __init__(self, checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.batch_size, self.progress = settings, settings.batch_size, progress
        device = choose_device(settings.device)
        self.on_gpu = device.type == "cuda"
        self.dtype = choose_dtype(settings.dtype, device)
        self.num_requests = self.num_adapters = 0
        proof = reference(checkpoint, self.dtype)  # before the engine takes its memory
        self._take(checkpoint, proof)
        self.engine = self._start(checkpoint)
        self.max_tokens: int = self.engine.model_config.max_model_len
        check(proof, self._served(proof), f"vLLM with {checkpoint.path}", self.dtype)

    def _take(self, checkpoint: CheckpointRef, proof: Proof) -> None:
        """Take over a checkpoint, apart from the engine's weights: tokenizer, adapter and proof."""
        self.checkpoint, self.proof = checkpoint, proof
        self.tokenizer, self.tokenizer_sha256 = load_tokenizer(checkpoint)
        self.adapter: Any = None
        if checkpoint.base_path is not None:
            check_adapter(checkpoint.path)
            from vllm.lora.request import LoRARequest

            self.num_adapters += 1
            self.adapter = LoRARequest(checkpoint.sha256, self.num_adapters, str(checkpoint.path))

    def _start(self, checkpoint: CheckpointRef) -> Any:
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        more: dict[str, Any] = {}
        if not self.on_gpu:
            # One process: there is no core for a second one. Per-request seeds end the engine where a prompt is
            # prefilled in chunks. Without compilation it starts in a tenth of the time and runs a tenth slower.
            os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores(self.settings.num_threads))
            more = {"enable_chunked_prefill": False, "enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
        if self.settings.kv_cache_bytes:
            more["kv_cache_memory_bytes"] = self.settings.kv_cache_bytes
        if rank := self.settings.lora_rank:
            more |= {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length()), "max_loras": 1}
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = EngineArgs(
            model=str(checkpoint.base_path or checkpoint.path),
            tokenizer=str(checkpoint.path),
            dtype=self.dtype,
            max_model_len=-1,  # the model's, or as much as the cache holds
            max_num_seqs=self.batch_size,
            tensor_parallel_size=self.settings.gpus_per_engine,
            worker_extension_cls="loop.engines.vllm_weights.Repack",
            disable_log_stats=True,
            **more,
        )
        try:
            return LLMEngine.from_engine_args(arguments)
        except Exception as error:  # whatever vLLM and torch raise
            traceback.print_exc()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"vLLM cannot start with {checkpoint.path}: {reason[:400]}; if it is memory, lower "
                'engine.kv_cache_bytes or engine.batch_size; engine.sampler = "transformers" does without vLLM; '
                "sampler.log says more"
            ) from None

    def change(self, checkpoint: CheckpointRef) -> bool:
        """See `Sampler.change`. An adapter over the base that is loaded needs no loading of weights."""
        self.end_prober()
        others = (checkpoint.base_path or checkpoint.path) != (self.checkpoint.base_path or self.checkpoint.path)
        if others and self.settings.lora_rank:
            return False  # vLLM does not reload layers that it wrapped for adapters
        proof = reference(checkpoint, self.dtype)
        if others:
            if not tells_apart(self.proof, proof, self.dtype):
                return False
            try:
                self.engine.collective_rpc("reload_weights", kwargs={"weights_path": str(checkpoint.path)})
                if not self.on_gpu:
                    self.engine.collective_rpc("repack_shared_weights")
            except Exception:  # vLLM cannot reload every model; a new engine can load it
                traceback.print_exc()
                return False
        self.engine.reset_prefix_cache()
        self._take(checkpoint, proof)
        return serves(proof, self._served(proof), self.dtype)

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        """See `Sampler.generate`. How many rows it computes at once is the engine's to decide, by its batch and its cache."""
        self.end_prober()
        feed, num_done = feed_of(requests), 0
        inside: dict[str, tuple[Request, list[int]]] = {}  # with its prompt
        begun: dict[str, list[int]] = {}  # of those, the ones that are computed, with their first tokens
        try:
            while True:
                taken = feed.take(room(len(begun), len(inside)), wait=not inside)
                prompts = fitting_prompts(self.tokenizer, taken, params, self.max_tokens)
                for request in taken:
                    prompt = prompts[request.id]
                    inside[self._ask(prompt, self._params(request, params))] = request, prompt
                if not inside:
                    return
                finished = []
                for output in self.engine.step():
                    id, drawn = output.request_id, output.outputs[0]
                    token_ids = [*begun.pop(id, ()), *drawn.token_ids]
                    if output.finished:
                        finished.append(self._finished(*inside.pop(id), token_ids, drawn))
                    else:
                        begun[id] = token_ids
                num_done += len(finished)
                self.progress(num_done, feed.total)
                if finished:
                    yield finished
        finally:  # after an error the engine still has rows, which nobody waits for
            self.engine.abort_request(list(inside))

    def _ask(self, prompt: Sequence[int], params: Any) -> str:
        self.num_requests += 1
        id = str(self.num_requests)
        self.engine.add_request(id, {"prompt_token_ids": list(prompt)}, params, lora_request=self.adapter)
        return id

    def _params(self, request: Request, params: SamplingParams) -> Any:
        from vllm import SamplingParams as VllmParams
        from vllm.sampling_params import RequestOutputKind

        return VllmParams(
            **params.model_dump(exclude={"max_new_tokens", "stop"}),  # temperature, top_k, top_p, repetition_penalty
            max_tokens=params.max_new_tokens,
            seed=request.seed % 2**63,
            stop=list(params.stop),
            include_stop_str_in_output=True,
            stop_token_ids=sorted(self.proof.eos),
            detokenize=bool(params.stop),
            logprobs=0,  # of the token that was drawn
            output_kind=RequestOutputKind.DELTA,
            stream_interval=NEVER,
        )

    def _finished(self, request: Request, prompt: Sequence[int], token_ids: Sequence[int], output: Any) -> Generated:
        reason = output.finish_reason
        if reason == "stop":
            reason = "stop" if isinstance(output.stop_reason, str) else "eos"
        if reason not in ("eos", "stop", "length"):
            raise EngineError(f"request {request.id}: vLLM ended it with {reason!r}")
        return completion(self.tokenizer, request.id, prompt, token_ids, reason, output.cumulative_logprob)

    def _served(self, proof: Proof) -> list[float]:
        """The engine's own log-probabilities of the probe text."""
        from vllm import SamplingParams as VllmParams

        asked = self._ask(proof.token_ids, VllmParams(temperature=0.0, max_tokens=1, prompt_logprobs=0))
        while True:
            for output in self.engine.step():
                if output.request_id == asked and output.finished:
                    pairs = zip(proof.token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    return [logprobs[token].logprob for token, logprobs in pairs]

    def probing_device(self) -> str:
        """See `ProbesHere`. The GPU where it has room beside the engine."""
        import torch

        size = sum(path.stat().st_size for path in self.checkpoint.path.glob("*.safetensors"))
        return "cuda" if self.on_gpu and torch.cuda.mem_get_info()[0] > 3 * size else "cpu"

    def close(self) -> None:
        """Does nothing: only the end of the process has been seen to free the memory."""


def cores(num_threads: int | None) -> str:
    """The cores that vLLM's threads are bound to, in vLLM's notation: "0,1"."""
    allowed = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, allowed[: num_threads or len(allowed)]))
