"""Sampling with vLLM, on a GPU or a CPU. Runs only inside a worker process; imports vLLM only when one is built.

The engine takes a few requests more than it computes, so that it never waits for one. Before it serves a checkpoint, `weights_proof` shows that
it does; because of that proof other weights may be loaded into a running engine.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from loop.engines.base import (
    CheckpointRef,
    EngineConfig,
    Forced,
    Generated,
    Probed,
    Progress,
    Request,
    SamplingParams,
)
from loop.engines.feed import Feed, feed_of, room
from loop.engines.hf_models import check_adapter, choose_device, choose_dtype, load_tokenizer
from loop.engines.prompting import check_text, completion, fitting_prompts
from loop.engines.vllm_process import start_engine
from loop.engines.vllm_worker import may_show_a_change, shows_a_change
from loop.engines.weights_proof import Proof, check, reference, serves, tells_apart
from loop.errors import EngineError

NEVER = 1 << 30  # tokens between two reports of a row: only its first one and its end are wanted


class VllmSampler:
    """A Sampler and a Prober over one vLLM engine."""

    def __init__(self, checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        device = choose_device(settings.device)
        self.on_gpu = device.type == "cuda"
        self.dtype = choose_dtype(settings.dtype, device)
        self.num_requests = self.num_adapters = 0
        proof = reference(checkpoint, self.dtype, settings.proofs, progress)  # before the engine takes its memory
        self._take(checkpoint, proof)
        self.engine = start_engine(checkpoint, settings, self.dtype, self.on_gpu)
        self.batch_size: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.max_tokens: int = self.engine.model_config.max_model_len
        check(proof, self._served(proof), f"vLLM with {checkpoint.path}")

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

    def change(self, checkpoint: CheckpointRef) -> bool:
        """See `Sampler.change`. An adapter over the base that is loaded needs no loading of weights."""
        others = (checkpoint.base_path or checkpoint.path) != (self.checkpoint.base_path or self.checkpoint.path)
        if others and self.settings.lora_rank:
            return False  # vLLM does not reload layers that it wrapped for adapters
        proof = reference(checkpoint, self.dtype, self.settings.proofs, self.progress)
        if others and not self._reload(checkpoint, tells_apart(self.proof, proof)):
            return False
        self.engine.reset_prefix_cache()
        self._take(checkpoint, proof)
        return serves(proof, self._served(proof))

    def _reload(self, checkpoint: CheckpointRef, is_told_by_proof: bool) -> bool:
        """Load other weights into the running engine. False where neither its parameters nor the proof can show them.

        `is_told_by_proof`: whether the proof of the new weights fails where the old ones are still served. Weights that are
        nearer must be shown by the parameters themselves.
        """
        path = str(checkpoint.path)
        try:
            before = self.engine.collective_rpc("held_weights", args=(path,))
            if not (is_told_by_proof or may_show_a_change(before)):
                return False
            self.engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
            if not self.on_gpu:
                self.engine.collective_rpc("repack_shared_weights")
            after = self.engine.collective_rpc("held_weights", args=(path,))
        except Exception:  # vLLM cannot reload every model; a new engine can load it
            traceback.print_exc()
            return False
        return not any(rank["other"] for rank in after) and (is_told_by_proof or shows_a_change(before, after))

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        """See `Sampler.generate`. How many rows it computes at once is the engine's to decide, by its batch and its cache."""
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
            flat_logprobs=True,  # no object for each token
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
        output = self._follow(proof.token_ids, prompt_logprobs=0)
        pairs = zip(proof.token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [logprobs[token].logprob for token, logprobs in pairs]

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        """See `Prober.probe`. A text at a time, longest first; a GPU is busy with one, since no token waits for another."""
        for text in texts:
            check_text(text, self.max_tokens)
        longest_first = sorted(texts, key=lambda text: -len(text.prompt_token_ids) - len(text.token_ids))
        for num_done, text in enumerate(longest_first):
            self.progress(num_done, len(texts))
            forced = text.model_dump(mode="json"), truncation.model_dump(mode="json"), top
            self.engine.collective_rpc("begin_probe", args=forced)
            self._follow([*text.prompt_token_ids, *text.token_ids][:-1])
            recorded, *_ = self.engine.collective_rpc("end_probe")
            if recorded["error"]:
                raise EngineError(recorded["error"])
            self.progress(num_done + 1, len(texts))
            yield [Probed.of(text, recorded["entries"])]

    def _follow(self, token_ids: Sequence[int], **more: Any) -> Any:
        """Let a text through as a prompt that nothing else shares; the engine's output for it."""
        from vllm import SamplingParams as VllmParams

        asked = self._ask(token_ids, VllmParams(temperature=0.0, max_tokens=1, skip_reading_prefix_cache=True, **more))
        while True:
            for output in self.engine.step():
                if output.request_id == asked and output.finished:
                    return output

    def close(self) -> None:
        """Does nothing: only the end of the process has been seen to free the memory."""
