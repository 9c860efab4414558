"""Sampling with a server elsewhere, as `vllm serve DIR` starts one. Runs only inside a worker process.

The server holds the weights; only tokenizer and prompts are here. A few requests more than `batch_size` are under way.
Before the first sample from a checkpoint, `weights_proof` shows that the server serves it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from transformers import AutoConfig

from loop.engines.base import CheckpointRef, EngineConfig, Generated, Progress, Request, SamplingParams
from loop.engines.feed import Feed, feed_of, room
from loop.engines.hf_models import load_tokenizer
from loop.engines.hf_prober import ProbesHere
from loop.engines.prompting import completion, fitting_prompts
from loop.engines.server_http import Choice, ModelCard, Server, Unavailable
from loop.engines.weights_proof import Proof, check, reference, tells_apart
from loop.errors import EngineError, LostEngine

LOOK_S = 0.5  # between two looks at the command, or for the server after it
OUTPUT_BYTES = 4096  # of the end of the command's output, in which its last line is looked for
PATIENCE = 0.9  # of stall_timeout_s, after which the daemon would end this worker with a worse message

Result = TypeVar("Result")


class ServerSampler(ProbesHere):
    """A Sampler over a server, and a Prober with the same weights under transformers."""

    def __init__(self, checkpoint: CheckpointRef, settings: EngineConfig, progress: Progress) -> None:
        self.settings, self.batch_size, self.progress = settings, settings.batch, progress
        self.dtype = settings.dtype if settings.dtype != "auto" else "bfloat16"  # the servers' own default
        self.limit_s = settings.stall_timeout_s
        self.patience_s = PATIENCE * self.limit_s
        self.proof: Proof | None = None
        self.logprobs: list[float] = []  # the server's, of the probe text
        assert settings.server_url is not None, "the configuration asks for it"
        self.server = Server(settings.server_url)
        self.loop = asyncio.new_event_loop()
        try:
            self.change(checkpoint)
        except BaseException:
            self.close()
            raise

    def change(self, checkpoint: CheckpointRef) -> bool:
        """See `Sampler.change`. True, or an EngineError: another start of this sampler would not change the server."""
        self.end_prober()
        before, self.proof = self.proof, None
        proof = reference(checkpoint, self.dtype, self.settings.proofs, self.progress)
        self.model = self._ready(checkpoint)
        logprobs = self._served(proof)
        where, remedy = f"{self.server.url} with {checkpoint.path}", f"`vllm serve {checkpoint.path}`"
        try:
            check(proof, logprobs, where)
        except EngineError as wrong:
            raise EngineError(f"{wrong} in {self.dtype}; serve that directory: {remedy}") from None
        # The new weights are so near to the old ones that the proof would pass for those, too.
        near = before and before.logprobs != proof.logprobs and not tells_apart(before, proof)
        if near and (logprobs == self.logprobs or not self.settings.server_command):
            raise EngineError(f"{where}: may still serve the weights before, which are as near; {remedy} there anew")
        self.checkpoint, self.proof, self.logprobs = checkpoint, proof, logprobs
        self.tokenizer, self.tokenizer_sha256 = load_tokenizer(checkpoint)
        full = checkpoint.base_path or checkpoint.path
        config = AutoConfig.from_pretrained(full, local_files_only=True).get_text_config()
        self.num_tokens = config.vocab_size
        self.max_tokens = self.model.max_model_len or getattr(config, "max_position_embeddings", None)
        return True

    # ---- the server gets the weights -------------------------------------------------------------------------------

    def _ready(self, checkpoint: CheckpointRef) -> ModelCard:
        """The model that is served, after the user's command where there is one."""
        command, began = self.settings.server_command, time.monotonic()

        def time_left(since: float) -> bool:
            """Whether time is left. Also reports progress, so that this worker is not ended as stalled."""
            now, total = time.monotonic(), int(2 * self.limit_s) + 1  # for the command, and for the server
            self.progress(min(int(now - began), total), total)
            return now - since < self.limit_s

        if command:
            words = [word.replace("{url}", self.server.url) for word in command]
            self._run([word.replace("{path}", str(checkpoint.path)) for word in words], lambda: time_left(began))
        ended = time.monotonic()
        while True:
            try:
                return self._answer(self.server.models()).data[0]
            except Unavailable as error:
                if not command or not time_left(ended):
                    raise LostEngine(f"{error}; start it there: `vllm serve {checkpoint.path}`") from None
                time.sleep(LOOK_S)

    def _run(self, words: Sequence[str], time_left: Callable[[], bool]) -> None:
        """Run the user's command without a shell. LostEngine with its last line where it fails or takes too long.

        Processes that it leaves running end with this worker.
        """
        shown = self.server.shown
        with tempfile.TemporaryFile() as output:  # no pipe: a process that it leaves running would hold that open
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except (OSError, ValueError) as error:
                raise EngineError(f"engine.server_command: cannot be run: {shown(str(error))}") from None
            how = ""
            while not how:
                try:
                    how = f"ended with exit code {process.wait(LOOK_S)}"
                except subprocess.TimeoutExpired:
                    if not time_left():
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                        how = "took longer than engine.stall_timeout_s and was ended"
            if process.returncode:
                output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
                lines = output.read().decode(errors="replace").strip().splitlines()
                last = shown(lines[-1]) if lines else "none"
                what = f"engine.server_command: {shown(words[0])} for {self.server.url}"
                raise LostEngine(f"{what} {how}; its last line: {last}")

    def _served(self, proof: Proof) -> list[float]:
        """The server's own log-probabilities of the probe text."""
        body = self._body(proof.token_ids, SamplingParams(temperature=0.0, max_new_tokens=1), 0)
        choice = self._answer(self.server.complete(body | {"prompt_logprobs": 0}))
        try:
            pairs = zip(proof.token_ids, choice.prompt_logprobs or (), strict=True)
            return [(at or {})[str(token)].logprob for token, at in list(pairs)[1:]]
        except (KeyError, ValueError):
            raise self.server.refusal("/completions", "prompt_logprobs are not those of the prompt") from None

    def _answer(self, asked: Awaitable[Result]) -> Result:
        try:
            return self.loop.run_until_complete(asyncio.wait_for(asked, self.patience_s))
        except TimeoutError:
            raise Unavailable(f"{self.server.url}: no answer within {self.patience_s:g} s") from None

    # ---- completions -----------------------------------------------------------------------------------------------

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        self.end_prober()
        feed, num_done = feed_of(requests), 0
        inside: set[asyncio.Task[Generated]] = set()
        try:
            while True:
                taken = feed.take(room(self.batch_size, len(inside)), wait=not inside)
                prompts = fitting_prompts(self.tokenizer, taken, params, self.max_tokens)
                for request in taken:
                    inside.add(self.loop.create_task(self._completion(request, prompts[request.id], params)))
                if not inside:
                    return
                done, inside = self.loop.run_until_complete(
                    asyncio.wait(inside, timeout=self.patience_s, return_when=asyncio.FIRST_COMPLETED)
                )
                if not done:
                    what = f"no completion came for {self.patience_s:g} s; if it is only slow, raise "
                    raise self.server.refusal("/completions", what + "engine.stall_timeout_s")
                failed = [task for task in done if task.exception()]
                finished = [task.result() for task in done if not task.exception()]
                num_done += len(finished)
                self.progress(num_done, feed.total)
                if finished:
                    yield finished
                for task in failed:
                    task.result()
        finally:  # the server drops what nobody waits for
            for task in inside:
                task.cancel()
            if inside:
                self.loop.run_until_complete(asyncio.gather(*inside, return_exceptions=True))

    def _body(self, prompt: Sequence[int], params: SamplingParams, seed: int) -> dict[str, Any]:
        """The request, with every setting of the draw: servers replace one that is missing by the model's own default."""
        return {
            "model": self.model.id,
            "prompt": list(prompt),
            "max_tokens": params.max_new_tokens,
            **params.model_dump(exclude={"max_new_tokens", "stop"}),  # temperature, top_k, top_p, repetition_penalty
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed % 2**63,
            "stop": list(params.stop),
            "include_stop_str_in_output": True,
            "stop_token_ids": sorted(self.proof.eos) if self.proof else [],
            "skip_special_tokens": True,
            "logprobs": 0,  # of the token that was drawn
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # a short name of each, whatever its text
        }

    async def _completion(self, request: Request, prompt: list[int], params: SamplingParams) -> Generated:
        choice = await self.server.complete(self._body(prompt, params, request.seed))
        if wrong := self._wrong(choice, prompt, params):
            raise self.server.refusal("/completions", f"request {self.server.shown(request.id)}: {wrong}")
        stopped = "stop" if isinstance(choice.stop_reason, str) else "eos"
        reason = "length" if choice.finish_reason == "length" else stopped
        return completion(
            self.tokenizer, request.id, prompt, choice.token_ids, reason, sum(choice.logprobs.token_logprobs)
        )

    def _wrong(self, choice: Choice, prompt: list[int], params: SamplingParams) -> str:
        """Why this cannot be a completion of the prompt; "" where it can."""
        assert self.proof
        drawn, logprobs = choice.token_ids, choice.logprobs.token_logprobs
        if choice.prompt_token_ids != prompt:
            return "prompt_token_ids are not those that were sent"
        if not 0 < len(drawn) <= params.max_new_tokens:
            return f"it has {len(drawn)} tokens, and at most {params.max_new_tokens} were asked for"
        if not all(0 <= token < self.num_tokens for token in drawn):
            return f"token_ids are outside the vocabulary of {self.num_tokens}"
        if len(logprobs) != len(drawn) or not all(-1e5 < logprob < 0.01 for logprob in logprobs):
            return "token_logprobs are not a log-probability by token"
        if choice.finish_reason == "length":
            if len(drawn) == params.max_new_tokens:
                return ""
            return f"it ended after {len(drawn)} of {params.max_new_tokens} tokens; `--generation-config vllm` may help"
        at_a_word = isinstance(choice.stop_reason, str)
        is_an_end = choice.stop_reason in params.stop if at_a_word else drawn[-1] in self.proof.eos
        return "" if is_an_end else "it was stopped by nothing that ends a completion of this checkpoint"

    def close(self) -> None:
        """Let go of prober and connections. Safe to repeat."""
        self.end_prober()
        if not self.loop.is_closed():
            self.loop.run_until_complete(self.server.close())
            self.loop.close()
