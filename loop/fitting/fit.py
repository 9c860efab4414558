"""A loop.toml against this machine: what `config check`, `doctor` and the opening of a run say of it."""

from __future__ import annotations

from loop.config.loading import LoadedConfig
from loop.errors import ConfigError
from loop.fitting.estimate import Estimate, cannot, estimate, in_words, longest_prompt
from loop.fitting.machine import this_machine
from loop.fitting.shape import model_shape
from store.records import Prompt


def fit_of(loaded: LoadedConfig, prompts: list[Prompt]) -> Estimate | None:
    """The estimate for this machine by the formula; None where the model's sizes are not known, as of one not fetched yet.

    None, too, where a cluster computes: `loopctl estimate --cluster` asks it.
    """
    config = loaded.config
    if config.cluster:
        return None
    try:
        shape = model_shape(config.model, loaded.base_dir)
    except ConfigError:
        return None
    machine = this_machine(loaded.run_dir, config.engine.device)
    if shape is None or (config.engine.device == "cuda" and not machine.gpus):  # it is for another machine
        return None
    return estimate(config, shape, machine, longest_prompt(prompts))


def refuse_what_cannot_fit(loaded: LoadedConfig, prompts: list[Prompt]) -> None:
    """ConfigError with the remedy where a stage of the run cannot fit this machine. On a CPU: where not even its weights do."""
    estimated = fit_of(loaded, prompts)
    if estimated is not None and (need := cannot(estimated)) is not None:
        loaded.file.refuse([(need.key, in_words(need))])


def doubts(estimated: Estimate | None) -> list[str]:
    """A line for each need that cannot be met, or only just."""
    return [in_words(need) for need in estimated.needs if need.verdict != "fits"] if estimated else []
