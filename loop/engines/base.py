"""The three protocols that engines fulfil, and the plain values that cross to a worker process and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from loop.engines.feed import Feed
from store.checkpoints import make_directory

BATCH_SIZE = 32  # the completions that are generated together where nobody has chosen


class Value(BaseModel):
    """A frozen value that crosses the process border as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CheckpointRef(Value):
    """Verified weights on disk: a full model, or an adapter together with the base that it was trained over."""

    sha256: str
    path: Path
    base_path: Path | None = None


class EngineConfig(Value):
    """The keys of [engine] that concern a worker, with the names, units and values that they have there.

    `sampler` is a name that `loop.config.samplers` knows; `lora_rank` the largest rank of adapters that are served unmerged;
    `proofs` a directory in which references of `loop.engines.weights_proof` are kept. Of several `server_urls` a worker asks the
    one that `server_url` is.
    """

    sampler: str
    trainer: str
    device: str
    dtype: str
    batch_size: int | None
    kv_cache_bytes: int | None
    gpus_per_engine: int
    num_engines: int | None
    num_threads: int | None
    num_training_processes: int
    server_url: str | None
    server_urls: tuple[str, ...]
    server_command: tuple[str, ...]
    stall_timeout_s: float
    lora_rank: int | None = None
    proofs: Path | None = None

    @property
    def batch(self) -> int:
        """Completions generated together, by every sampler but vLLM on a GPU, which chooses where `batch_size` is None."""
        return self.batch_size or BATCH_SIZE

    def changed(self, **keys: object) -> EngineConfig:
        """The same but for these keys."""
        return self.model_copy(update=keys)


class SamplingParams(Value):
    """One way of drawing tokens; requests of one `generate` call share it. `temperature` 0 means greedy."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int
    stop: tuple[str, ...] = ()


class Request(Value):
    """One completion to generate.

    `messages` go through the chat template, with `prefill` opening the assistant's turn; without `messages`, `prefill`
    is the bare text that the model continues. The prefill is part of the prompt, not of the completion.
    """

    id: str
    messages: tuple[dict[str, str], ...] = ()
    prefill: str = ""
    seed: int

    @property
    def beginning(self) -> str:
        """The first 60 characters of the prompt, for error messages."""
        return (self.messages[-1]["content"] if self.messages else self.prefill)[:60]


class Generated(Value):
    """One finished completion.

    `token_ids` are exactly what was drawn, an end-of-sequence token included; `text` is their decoding without special
    tokens. `logprob_sum` adds the model's own log-probabilities (natural log, before temperature and truncation) over
    `token_ids`. `finish_reason`: "eos", "stop" (a stop string) or "length".
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "stop", "length"]
    logprob_sum: float | None = None


class Forced(Value):
    """A text to be followed token by token.

    `at`, one list per token of `token_ids`: the tokens whose log-probabilities are wanted there. Without it, the
    model's own likeliest ones.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    at: tuple[tuple[int, ...], ...] | None = None


class Probed(Value):
    """A model's next-token distribution at each token of a `Forced` text, given the prompt and the tokens before it.

    Every field but `id` has an entry per token. Temperature 1, nothing truncated, natural logarithms. `entropy`,
    `top_token_id` and `top_probability` come from the whole distribution. `at`: the tokens that `logprobs` belong to,
    likeliest first where none were given; `rest`: the log of the mass of all other tokens. No logarithm is below
    LEAST_LOGPROB. `num_kept`: how many of the likeliest tokens the truncation keeps, at most as many as `at` has.
    """

    id: str
    entropy: tuple[float, ...]
    top_token_id: tuple[int, ...]
    top_probability: tuple[float, ...]
    at: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    rest: tuple[float, ...]
    num_kept: tuple[int, ...]

    @classmethod
    def of(cls, text: Forced, entries: Sequence[dict[str, Any]]) -> Probed:
        """The record of a text from one entry a token, with the fields as keys."""
        columns = {name: [entry[name] for entry in entries] for name in cls.model_fields if name != "id"}
        return cls.model_validate({"id": text.id, **columns})


LEAST_LOGPROB = -100.0  # stands for minus infinity, too, which JSON cannot say


class TrainingRow(Value):
    """One example: the loss is on `completion_token_ids` alone."""

    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]


def held_out(rows: Iterable[Sequence[int]], settings: dict[str, Any]) -> set[int]:
    """The indices of the rows that a fine-tune leaves out, chosen by a hash of its seed and their tokens.

    settings["held_out"] says how many, at most one in 20; settings of older versions say nothing, so none.
    """
    wanted = settings.get("held_out", 0)
    hashes = [hashlib.sha256(f"{settings['seed']} {list(row)}".encode()).digest() for row in rows] if wanted else []
    num = min(wanted, len(hashes) // 20)
    return set(sorted(range(len(hashes)), key=hashes.__getitem__)[:num])


def candidate_steps(num_steps: int, settings: dict[str, Any]) -> list[int]:
    """The optimizer steps after which a fine-tune of `num_steps` leaves a candidate; the last one is its end.

    settings["candidates"] says how many; settings of older versions say nothing, so one.
    """
    num = settings.get("candidates", 1)
    return sorted({-(-number * num_steps // num) for number in range(1, num + 1)})


def earlier_dir(out_dir: Path, num_steps: int) -> Path:
    """Where `Trainer.fit` writes the candidate of an earlier step than the last: beside `out_dir`."""
    return out_dir.with_name(f"{out_dir.name}-step-{num_steps:06d}")


class Kept(Value):
    """Where a training keeps its state and its candidates until they are committed, so that it outlives its process.

    The directory is about this one training, and is there once something is written. Whoever wants the training to end
    leaves a file in it. At least `free_bytes` of its disk stay free, whatever is to be saved.
    """

    directory: Path
    free_bytes: int = 0

    @property
    def _order(self) -> Path:
        return self.directory / "to-end"

    def is_asked_to_end(self) -> bool:
        """Whether the training is to save its state and to end after its present step."""
        return self._order.exists()

    def ask_to_end(self, wanted: bool = True) -> None:
        """Ask for that, or take it back. Safe to repeat."""
        if wanted:
            make_directory(self.directory)
            self._order.touch()
        else:
            self._order.unlink(missing_ok=True)


class Meeting(Value):
    """How the processes of a training on several machines find each other: the first machine's address, and which this is.

    `own_address`: of this machine, at which the others reach it.
    """

    num_machines: int
    number: int  # of this machine, from 0
    own_address: str
    address: str
    port: int


class TrainingResult(Value):
    """What a fine-tune reports. Losses are mean cross-entropies per completion token, in nats.

    `held_out_loss` and `train_loss` are those of the final weights, on the rows that were held out and on as many of the
    others; None where none was held out. The counts are of rows that were trained on. `earlier`: of each candidate that was
    left along the way the same, in order of steps; its `num_steps` and `losses` end with it.
    """

    num_steps: int
    num_rows: int
    num_completion_tokens: int
    losses: tuple[float, ...]
    num_held_out: int = 0
    held_out_loss: float | None = None
    train_loss: float | None = None
    adapter: bool = False
    extra: dict[str, Any] = {}
    earlier: tuple[TrainingResult, ...] = ()


class TrainingPass(Value):
    """One forward and backward pass of a fine-tune: what its memory depends on, beside the model.

    `num_rows` rows of `row_tokens` tokens each, the padding included; `padded`: whether there is any, so that attention gets a
    mask. `lora_rank` None means that every weight is trained.
    """

    num_processes: int
    num_rows: int
    row_tokens: int
    on_gpu: bool
    padded: bool = False
    gradient_checkpointing: bool = True
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] | str = "all-linear"


class TrainingPeak(Value):
    """What one process holds between two steps, and at most in each part of a step.

    `num_parameters` are those of the model, an adapter's included; `num_trained` those that change.
    """

    num_parameters: int
    num_trained: int
    at_rest_bytes: int
    forward_bytes: int
    backward_bytes: int
    optimizer_bytes: int

    @property
    def num_adapter(self) -> int:
        """The parameters of the adapter; 0 where every weight is trained."""
        return self.num_trained if self.num_trained < self.num_parameters else 0

    @property
    def peak_bytes(self) -> int:
        return max(self.forward_bytes, self.backward_bytes, self.optimizer_bytes)


Progress = Callable[[int, int], None]  # (done, total), called as often as there is something new
Tell = Callable[[str], None]  # told in one line; an empty one takes the one before back


class Sampler(Protocol):
    """Generates from one fixed checkpoint, until it is given another."""

    tokenizer_sha256: str  # of tokenizer and chat template; part of each completion's lineage

    def generate(
        self, requests: Feed[Request] | Sequence[Request], params: SamplingParams
    ) -> Iterator[list[Generated]]:
        """Yield every request's completion exactly once, in lists, as they finish.

        Requests are taken from a feed while others are computed, as many at a time as the engine has room for, so memory
        does not grow with their number. The same list of requests with the same engine settings gives the same completions;
        where a feed makes other requests share a batch, they differ by floating-point noise. A list of completions is the
        unit that is lost when the worker dies; whatever is left is asked for again, and asking again is harmless. Raises
        EngineError for a request that can never fit the model, when it is taken.
        """

    def change(self, checkpoint: CheckpointRef) -> bool:
        """Serve another checkpoint from now on. False where the sampler cannot show that it does: it is of no use then."""

    def close(self) -> None:
        """Free the device memory; the sampler is not used again. Safe to repeat."""


class Prober(Protocol):
    """Gives the next-token distributions of one fixed checkpoint at each position of given texts. Draws nothing."""

    def probe(self, texts: Sequence[Forced], truncation: SamplingParams, top: int) -> Iterator[list[Probed]]:
        """Yield every text's record exactly once, in lists, as they finish.

        Of `truncation` temperature, top_k and top_p count, and only for `num_kept`. `top`: how many of the likeliest
        tokens are recorded where a text names none; fewer where the vocabulary is smaller. Memory does not grow with
        the number or the length of texts beyond what the model itself takes. The same texts with the same engine
        settings give the same records; asking again is harmless. Raises EngineError for a text that cannot fit the
        model or has no token.
        """


class Trainer(Protocol):
    """Fine-tunes one checkpoint into a new directory."""

    def fit(
        self,
        rows_file: Path,
        parent: CheckpointRef,
        settings: dict[str, Any],
        out_dir: Path,
        kept: Kept | None = None,
    ) -> TrainingResult:
        """Train on `rows_file` (one TrainingRow as JSON a line) and write weights, config and tokenizer into `out_dir`.

        `settings` is the [training] table plus `seed`. The rows that `held_out` picks are left out. `out_dir` exists and is
        empty. Each earlier step of `candidate_steps` leaves its weights in `earlier_dir`, and changes nothing of those that
        come after it. Nothing else is written; the caller makes the directories durable.

        With `kept` the state is saved there every settings["save_every_s"] seconds, and a training whose state lies there
        continues from it: with the same result, and bit by bit the same weights where they would be that otherwise. Once it
        is asked to end there, it saves its state and raises LeftTraining. What lies there must be of the same rows, parent and
        settings; the caller removes it.

        On a CPU the same rows, parent, settings and machine give the same weights.
        Raises EngineError when the loss is not finite.
        """

    def close(self) -> None:
        """Free the device memory. Safe to repeat."""
