"""Whether a configuration fits a machine, stage by stage: by the formulas, from the model's config.json alone.

`estimate` gives a `Need` for each thing that memory or disk is needed for, and what would help where it is too little. The
formula leaves out what a GPU needs beside PyTorch's tensors; `room` adds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from loop.config.samplers import sampler_kind
from loop.config.settings import Config, Decoding
from loop.engines.base import BATCH_SIZE, TrainingPass
from loop.engines.precision import auto_dtype
from loop.fitting.formula import MASTER, VLLM_SHARE, SamplingMemory, sampling_memory, training_memory
from loop.fitting.machine import Machine
from loop.fitting.shape import Shape
from loop.words import size
from loop.workers.up import gpus_per_engine, num_training_processes
from store.corpus import ROW_BYTES, TEXT_BYTES_PER_TOKEN
from store.records import Prompt

Verdict = Literal["fits", "tight", "cannot"]
PROMPT_TOKENS = 1024  # of the longest prompt, where prompts are not known yet
CHARACTERS_PER_TOKEN = 2.5  # fewer than code has, so that a prompt is not thought too short
TEMPLATE_TOKENS = 64  # what a chat template puts around a prompt
CONTEXT_BYTES = 2_000_000_000  # CUDA's context, cuBLAS and NCCL on a GPU; a guess that is to be measured on one
FRAGMENTATION = 0.05  # of what is allocated; likewise
LIBRARIES_BYTES = 300_000_000  # Python, torch and transformers in a process, measured on a CPU
FILE_BYTES = 5_000_000_000  # of saved weights that process 0 puts together at a time
VLLM_CPU_CACHE = 2 << 30
LEAST_TOKENS = 1024  # a shorter row is no remedy
MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Need:
    """What one thing needs. `has_bytes`: what the machine has for it; None if that is not known. `remedy`: "" where none is needed."""

    what: str
    key: tuple[str, ...]  # of loop.toml, that decides most of it
    needed_bytes: int
    has_bytes: int | None
    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the configuration leaves to the machine, and the longest row of training."""

    num_training_processes: int
    gpus_per_engine: int
    num_engines: int
    row_tokens: int
    on_gpu: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """All needs of a configuration on a machine."""

    resolved: Resolved
    needs: tuple[Need, ...]

    @property
    def fits(self) -> bool:
        return all(need.verdict != "cannot" for need in self.needs)


def longest_prompt(prompts: list[Prompt]) -> int:
    """About how many tokens the longest prompt has."""
    longest = max((len(str(prompt.content)) for prompt in prompts), default=None)
    return PROMPT_TOKENS if longest is None else round(longest / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


def mean_prompt(prompts: list[Prompt]) -> int:
    """About how many tokens a prompt has."""
    lengths = [len(str(prompt.content)) for prompt in prompts]
    return round(sum(lengths) / len(lengths) / CHARACTERS_PER_TOKEN) if lengths else PROMPT_TOKENS // 4


def resolved(config: Config, shape: Shape, machine: Machine, prompt_tokens: int = PROMPT_TOKENS) -> Resolved:
    """How this machine would run it."""
    engine, on_gpu = config.engine, bool(machine.gpus) and config.engine.device != "cpu"
    num = num_training_processes(engine, config.training, len(machine.gpus))
    share = gpus_per_engine(engine, number_bytes(config, on_gpu) * shape.num_parameters, machine.gpus)
    num_engines = engine.num_engines or max(1, len(machine.gpus) // share)
    row = min(config.training.max_tokens, prompt_tokens + config.sampling.max_new_tokens)
    return Resolved(num, share, num_engines, row, on_gpu)


def number_bytes(config: Config, on_gpu: bool) -> int:
    """The bytes of a weight while sampling."""
    dtype = config.engine.dtype if config.engine.dtype != "auto" else auto_dtype(on_gpu)[0]
    return 2 if dtype == "bfloat16" else 4


def training_pass(config: Config, plan: Resolved) -> TrainingPass:
    """The largest pass of the fine-tune: as many tokens as `micro_batch_size` of the longest rows have. Nothing is padded."""
    training = config.training
    return TrainingPass(
        num_processes=plan.num_training_processes,
        num_rows=min(training.micro_batch_size, training.batch_size),
        row_tokens=plan.row_tokens,
        on_gpu=plan.on_gpu,
        gradient_checkpointing=training.gradient_checkpointing,
        lora_rank=training.lora.rank if training.method == "lora" else None,
        lora_targets=training.lora.target_modules,
    )


def estimate(
    config: Config, shape: Shape, machine: Machine, prompt_tokens: int = PROMPT_TOKENS, peak_bytes: int | None = None
) -> Estimate:
    """Does it fit? `peak_bytes`: the peak of training where it was counted, in the place of the formula's."""
    plan = resolved(config, shape, machine, prompt_tokens)
    needs = [*_sampling(config, shape, machine, plan, prompt_tokens)]
    if config.engine.trainer != "fake":
        needs += [_training(config, shape, machine, plan, peak_bytes)]
    needs += [_main_memory(config, shape, machine, plan), _disk(config, shape, machine, prompt_tokens)]
    return Estimate(plan, tuple(needs))


def room(peak_bytes: int) -> int:
    """What a GPU should have for a peak of so many bytes of tensors."""
    return round(peak_bytes * (1 + FRAGMENTATION)) + CONTEXT_BYTES


def _verdict(needed: int, has: int, on_gpu: bool) -> Verdict:
    if not on_gpu:
        return "tight" if needed > has else "fits"
    return "cannot" if needed > has else "tight" if room(needed) > has else "fits"


def _sampling(config: Config, shape: Shape, machine: Machine, plan: Resolved, prompt: int) -> Iterator[Need]:
    """What an engine needs for one completion of full length, while sampling and while evaluating."""
    if not sampler_kind(config.engine.sampler).computes_here:
        return
    memory = sampling_memory(shape, plan.gpus_per_engine, plan.on_gpu, number_bytes(config, plan.on_gpu))
    suites: Decoding = max(config.suites, key=lambda suite: suite.max_new_tokens)
    for what, table, key in (("sampling", config.sampling, "sampling"), ("evaluating", suites, "suites")):
        yield _sampling_need(what, (key,), memory, prompt + table.max_new_tokens, config, machine, plan)


def _sampling_need(
    what: str,
    key: tuple[str, ...],
    memory: SamplingMemory,
    tokens: int,
    config: Config,
    machine: Machine,
    plan: Resolved,
) -> Need:
    row = memory.token * tokens
    words = f"weights {size(memory.weights)}, {size(row)} of cache for a completion of {tokens:,} tokens"
    if not plan.on_gpu:
        cache = config.engine.kv_cache_bytes or min((config.engine.batch_size or BATCH_SIZE) * row, VLLM_CPU_CACHE)
        needed = plan.num_engines * (memory.weights + max(row, cache))
        verdict: Verdict = "cannot" if memory.weights > machine.memory else _verdict(needed, machine.memory, False)
        remedy = {"fits": "", "tight": "lower engine.batch_size", "cannot": "name a smaller model"}[verdict]
        return Need(what, ("model", "source"), needed, machine.memory, verdict, words, remedy)
    gpu = min(machine.gpus)
    for_cache = int(VLLM_SHARE * gpu) - memory.weights - memory.activations
    needed, num = memory.weights + memory.activations + row, max(0, for_cache // row)
    verdict = "cannot" if num < 1 else "fits" if num >= 8 else "tight"
    words += f"; {num} of them at a time on each engine" + (
        f" of {plan.gpus_per_engine} GPUs" if plan.gpus_per_engine > 1 else ""
    )
    remedy = ""
    if verdict != "fits":
        more = 2 * plan.gpus_per_engine
        shorter = f"lower max_new_tokens of [{key[0]}]"
        remedy = f"set engine.gpus_per_engine = {more}, or {shorter}" if more <= len(machine.gpus) else shorter
    return Need(what, key, needed, gpu, verdict, words, remedy)


def _training(config: Config, shape: Shape, machine: Machine, plan: Resolved, counted: int | None) -> Need:
    work = training_pass(config, plan)
    memory = training_memory(shape, work)
    peak = counted or memory.peak
    how = f"{work.num_processes} process{'es' * (work.num_processes > 1)}, {config.training.method}, rows of {work.row_tokens:,} tokens"
    words = f"{size(memory.at_rest)} at rest, {size(peak)} at most in each; {how}" + (" (counted)" if counted else "")
    if not plan.on_gpu:
        needed, weights = work.num_processes * peak, MASTER * shape.num_parameters
        verdict: Verdict = "cannot" if weights > machine.memory else _verdict(needed, machine.memory, False)
        remedies = {"fits": "", "tight": "lower training.micro_batch_size", "cannot": "name a smaller model"}
        return Need("training", ("training",), needed, machine.memory, verdict, words, remedies[verdict])
    gpu = min(machine.gpus)
    verdict = _verdict(peak, gpu, True)
    if work.num_processes > len(machine.gpus):
        remedy = f"{len(machine.gpus)} GPUs are visible; lower engine.num_training_processes, or leave it out"
        return Need("training", ("engine", "num_training_processes"), peak, gpu, "cannot", words, remedy)
    remedy = "" if verdict == "fits" else training_remedy(config, shape, machine, work)
    return Need("training", ("training",), peak, gpu, verdict, words, remedy)


def training_remedy(config: Config, shape: Shape, machine: Machine, work: TrainingPass) -> str:
    """The smallest change that makes training fit, in words: what this machine can do first."""

    def fits(**changed: object) -> bool:
        return room(training_memory(shape, work.model_copy(update=changed)).peak) <= min(machine.gpus)

    ways: list[tuple[str, Callable[[], bool]]] = []
    micro = config.training.micro_batch_size
    for num in range(work.num_processes + 1, len(machine.gpus) + 1):
        if num <= config.training.batch_size:
            ways.append((f"set engine.num_training_processes = {num}", partial(fits, num_processes=num)))
    if micro > 1:
        ways.append(("set training.micro_batch_size = 1", partial(fits, num_rows=1)))
    tokens = 1 << (work.row_tokens - 1).bit_length() - 1
    while tokens >= LEAST_TOKENS:
        words = f"set training.max_tokens = {tokens}" + (" and micro_batch_size = 1" if micro > 1 else "")
        ways.append((words, partial(fits, row_tokens=tokens, num_rows=1)))
        tokens //= 2
    if config.training.method == "full":
        lora: dict[str, object] = {"lora_rank": config.training.lora.rank, "num_processes": 1}
        lora |= {"num_rows": 1}
        ways.append(('set training.method = "lora"', partial(fits, **lora)))
    for words, way in ways:
        if way():
            return words
    num = 2 * work.num_processes
    while num <= MOST_GPUS:
        if fits(num_processes=num, num_rows=1):
            return f"take a machine with {num} such GPUs"
        num *= 2
    return "take larger GPUs, or name a smaller model"


def _main_memory(config: Config, shape: Shape, machine: Machine, plan: Resolved) -> Need:
    """Weights go to a GPU slice by slice. Process 0 puts each file that is saved together; a sampler's proof reads the weights once."""
    num, weights = plan.num_training_processes, 2 * shape.num_parameters
    saving = num * LIBRARIES_BYTES + min(FILE_BYTES, weights)
    proof = plan.num_engines * LIBRARIES_BYTES + weights
    words = f"training {size(saving)}, sampling {size(proof)} while the weights are proved"
    if not plan.on_gpu:
        words, saving, proof = f"beside what stages need here: libraries {size(LIBRARIES_BYTES)} a process", 0, 0
    needed = max(saving, proof, (num + 1) * LIBRARIES_BYTES)
    verdict = _verdict(needed, machine.memory, False)
    remedy = "give the machine (or its container) more memory" if verdict != "fits" else ""
    return Need("main memory", ("engine",), needed, machine.memory, verdict, words, remedy)


def checkpoint_bytes(config: Config, shape: Shape) -> int:
    """A checkpoint of this run on disk: whole weights in the base's precision, or an adapter that is not merged."""
    lora = config.training.lora
    if config.training.method == "lora" and not lora.merge:
        return MASTER * shape.num_adapted(lora.rank)
    return shape.saved_bytes * shape.num_parameters


def _disk(config: Config, shape: Shape, machine: Machine, prompt_tokens: int) -> Need:
    """At most: kept checkpoints, candidates of the round, what a training saves of itself (twice while it replaces it), and the text.

    Kept are the head, the best, the tip and the newest [storage] keep_last. The run's completions grow with each round: this
    counts those of `rounds`, or of one where there is no end.
    """
    each, storage = checkpoint_bytes(config, shape), config.storage
    kept = (3 + storage.keep_last) * each
    if storage.max_total_bytes is not None:
        kept = max(3 * each, min(kept, storage.max_total_bytes))
    candidates = config.training.candidates * each
    trained = shape.num_parameters if config.training.method == "full" else shape.num_adapted(config.training.lora.rank)
    inside = 2 * 3 * MASTER * trained if config.engine.trainer != "fake" else 0
    rows = (config.prompts.per_round or 0) * config.sampling.num_samples * max(1, config.rounds)
    corpus = rows * (ROW_BYTES + TEXT_BYTES_PER_TOKEN * config.sampling.max_new_tokens)
    needed = kept + candidates + inside + corpus + storage.min_free_bytes
    words = (
        f"{3 + storage.keep_last} checkpoints of {size(each)} and {config.training.candidates} of the round, "
        f"{size(inside)} while training saves itself" + (f", completions {size(corpus)}" if rows else "")
    )
    verdict: Verdict = "fits" if needed <= machine.disk_free else "tight"
    remedy = "" if verdict == "fits" else "make room, set run_dir to a larger disk, or lower storage.keep_last"
    return Need("disk", ("run_dir",), needed, machine.disk_free, verdict, words, remedy)


def cannot(estimated: Estimate) -> Need | None:
    """The first need that cannot be met; None where all can."""
    return next((need for need in estimated.needs if need.verdict == "cannot"), None)


def in_words(need: Need) -> str:
    """training needs 67 GB a GPU and there are 25 GB; set training.method = "lora"."""
    has = "" if need.has_bytes is None else f", and there are {size(need.has_bytes)}"
    return f"{need.what} needs {size(need.needed_bytes)}{has} ({need.detail}); {need.remedy}"


def with_gpus(machine: Machine, num: int, gpu_bytes: int) -> Machine:
    """The same machine with other GPUs, for tables."""
    return replace(machine, gpus=(gpu_bytes,) * num)
