"""How long the stages of a round take, by the formulas of docs/recipes.md. Right within a factor of two at best."""

from __future__ import annotations

from dataclasses import dataclass

from loop.config.settings import Config
from loop.fitting.estimate import Resolved, number_bytes
from loop.fitting.formula import VLLM_SHARE, sampling_memory
from loop.fitting.machine import Machine
from loop.fitting.shape import Shape

SHARE_OF_LENGTH = 0.5  # of max_new_tokens: most completions end before
SHARE_OF_PEAK = 1 / 3  # of a GPU's operations that a training step reaches
MOST_AT_ONCE = 1024  # completions that vLLM has under way on an engine


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a round generates and trains on."""

    sampled: int
    answered: int
    trained: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each stage of a round."""

    sampling_s: float
    training_s: float
    evaluating_s: float


def tokens_of(config: Config, num_prompts: int, num_problems: list[int], prompt_tokens: int) -> Tokens:
    """A round's tokens: `num_problems` of each suite. A candidate and the head answer the suite that decides."""
    sampling, training = config.sampling, config.training
    num_sampled = num_prompts * sampling.num_samples
    answered = 0.0
    for suite, num in zip(config.suites, num_problems, strict=True):
        sides = 1 + (suite.name == config.decide.suite)
        answered += sides * num * suite.num_samples * suite.max_new_tokens * SHARE_OF_LENGTH
    rows = training.num_steps * training.batch_size if training.num_steps else num_sampled * (training.num_epochs or 1)
    row = min(training.max_tokens, prompt_tokens + sampling.max_new_tokens * SHARE_OF_LENGTH)
    return Tokens(round(num_sampled * sampling.max_new_tokens * SHARE_OF_LENGTH), round(answered), round(rows * row))


def on_gpus(config: Config, shape: Shape, machine: Machine, plan: Resolved, tokens: Tokens) -> Times | None:
    """None where the GPU is not one whose rates are known.

    Sampling: a step reads all weights, and the cache of every completion under way; training: 8 operations a parameter and
    token with gradient checkpointing, 6 without.
    """
    if machine.rates is None or not machine.gpus:
        return None
    operations, bandwidth = machine.rates
    each = sampling_memory(shape, plan.gpus_per_engine, True, number_bytes(config, True))
    cache = int(VLLM_SHARE * min(machine.gpus)) - each.weights - each.activations

    def generated(num_tokens: int, max_new_tokens: int) -> float:
        row = each.token * max_new_tokens * SHARE_OF_LENGTH
        at_once = max(1, min(MOST_AT_ONCE, int(cache // max(row, 1))))
        a_step = (each.weights + at_once * row / 2) / bandwidth + 2 * shape.num_active * at_once / operations
        return num_tokens / (at_once * plan.num_engines) * a_step

    passes = 8 if config.training.gradient_checkpointing else 6
    training = passes * shape.num_active * tokens.trained / (plan.num_training_processes * SHARE_OF_PEAK * operations)
    longest = max(suite.max_new_tokens for suite in config.suites)
    return Times(
        generated(tokens.sampled, config.sampling.max_new_tokens), training, generated(tokens.answered, longest)
    )
