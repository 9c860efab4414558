"""What a run is about to do, and how long that may take on this machine: said before anything is loaded.

The speed is measured, for a moment, in a worker; the rest is a formula, and right within a factor of two on a CPU. Once a
round is finished, its own time is the better answer. Nothing is said of GPUs, on which nothing of this was tried.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from loop.config.loading import LoadedConfig
from loop.config.samplers import sampler_kind
from loop.engines.precision import auto_dtype
from loop.grading.suite import split_of
from loop.inputs import Inputs
from loop.run.base_model import in_worker
from loop.system.gpus import used_bytes
from policies.halving import num_asked as asked_of_all

PROMPT_TOKENS = 40  # of a prompt beyond what all prompts begin with
SHARE_OF_LENGTH = 0.5  # of max_new_tokens: most completions end before
SAMPLING, TRAINING = 0.5, 0.7  # shares of a plain multiplication's speed that a forward pass and a training step reach
TRAINED_IN = "float32"  # on a CPU
LAST = "if the last round follows a carried one"
START_S = 20.0  # for workers to start and to load a model, in a run


@dataclass(frozen=True, slots=True)
class Work:
    """What a run will generate and train on, by its configuration."""

    num_rounds: int
    num_prompts: int
    num_sampled: int  # completions a round
    num_answers: int  # to the suites' problems, all rounds together
    sampled_tokens: int  # all rounds together, answers included
    prompt_tokens: int
    trained_tokens: int
    last_answers: int = 0  # that the last round asks for beside these if it follows a carried one, and their tokens
    last_tokens: int = 0


def work_of(loaded: LoadedConfig, inputs: Inputs, num_rounds: int) -> Work:
    """The base and every candidate answer all suites; from the second round on the head answers the deciding one again.

    This is rough: a head is asked again only if it is new, and looks, lines, confirming splits and other gates change what is asked.
    The last look of a line, for which head and candidate answer with more samples, comes only if the last round follows a
    carried one: it is counted by itself.
    """
    config, last_answers, last_tokens = loaded.config, 0, 0
    num_prompts = config.prompts.per_round or len(inputs.prompts)
    num_sampled = num_prompts * config.sampling.num_samples
    prompts, num_answers = num_rounds * num_sampled, 0
    tokens = prompts * config.sampling.max_new_tokens * SHARE_OF_LENGTH
    for suite, read in zip(config.suites, inputs.suites, strict=True):
        num_asked = (num_rounds + 1) * len(read.problems)
        if suite.name == config.decide.suite:
            shares = {str(name): share for name, share in suite.splits.items()}
            splits = [split_of(problem.task_id, shares) for problem in read.problems]
            num_problems = splits.count(config.decide.split)
            num_asked = num_rounds * (num_problems + asked_of_all(config.training.candidates, num_problems))
            if config.decide.unclear == "carry" and num_rounds > 1 and not suite.greedy:
                more = 2 * (config.decide.last_samples - 1) * suite.num_samples
                last_answers = more * num_problems
                last_tokens = round(last_answers * suite.max_new_tokens * SHARE_OF_LENGTH)
        prompts += num_asked
        num_answers += num_asked * suite.num_samples
        tokens += num_asked * suite.num_samples * suite.max_new_tokens * SHARE_OF_LENGTH
    training = config.training
    rows = training.num_steps * training.batch_size if training.num_steps else num_sampled * (training.num_epochs or 1)
    row = PROMPT_TOKENS + config.sampling.max_new_tokens * SHARE_OF_LENGTH
    trained = round(num_rounds * rows * row)
    prompt_tokens = prompts * PROMPT_TOKENS
    return Work(
        num_rounds,
        num_prompts,
        num_sampled,
        num_answers,
        round(tokens),
        prompt_tokens,
        trained,
        last_answers,
        last_tokens,
    )


def in_words(loaded: LoadedConfig, work: Work) -> str:
    """smollm2-demo: 2 rounds; each samples 64 completions from smollm2-135m, trains on them, ..."""
    rounds = "1 round, which" if work.num_rounds == 1 else f"{work.num_rounds} rounds; each"
    last = f", and {work.last_answers:,} more {LAST}" if work.last_answers else ""
    return (
        f"{loaded.config.name}: {rounds} samples {work.num_sampled:,} completions from {loaded.config.model.source}, trains on "
        f"them, evaluates and decides; about {work.num_answers:,} answers are graded in all{last}"
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """Floating-point operations per second of a plain multiplication, in the precision of each stage."""

    sampling: float
    training: float


def seconds(work: Work, num_parameters: int, speed: Speed) -> float:
    """How long the work takes: 2 floating-point operations a parameter and token, 6 in training."""
    sampling = 2 * num_parameters * (work.sampled_tokens + work.prompt_tokens) / (SAMPLING * speed.sampling)
    return START_S + sampling + 6 * num_parameters * work.trained_tokens / (TRAINING * speed.training)


def seconds_of_last(work: Work, num_parameters: int, speed: Speed) -> float:
    """How long the further answers of a last look take."""
    return 2 * num_parameters * work.last_tokens / (SAMPLING * speed.sampling)


def measured_speed(loaded: LoadedConfig) -> Speed | None:
    """What this machine's CPU does, as busy as it is now; None where a GPU will do the work."""
    engine = loaded.config.engine
    if engine.trainer == "fake" or not sampler_kind(engine.sampler).computes_here:
        return None
    if engine.device != "cpu" and used_bytes():
        return None
    sampling = auto_dtype(on_gpu=False)[0] if engine.dtype == "auto" else engine.dtype
    command = {"op": "measure_speed", "num_threads": engine.num_threads, "precisions": [sampling, TRAINED_IN]}
    with tempfile.TemporaryDirectory(prefix="ssd-loop-") as directory:  # the run has none yet
        flops = in_worker(command, Path(directory) / "speed.log", engine, "measuring this machine")["flops"]
    return Speed(flops[sampling], flops[TRAINED_IN])
