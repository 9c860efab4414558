"""What an experiment will take, before it runs: stages and how many of them are shared at least, time, disk. Loads no model.

Known beforehand is what begins alike: the base's evaluations and the first round. What later rounds have in common depends
on what is decided and comes on top. Time comes from the rounds that are finished; without any it is a guess by a formula.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from loop.config.machine import Engine, Grading
from loop.config.section import keys_of
from loop.config.settings import Config
from loop.experiments.facts import run_facts
from loop.experiments.file import Experiment, ExperimentRun
from loop.experiments.running import Machine, rounds_kept
from loop.grading.suite import load_suite
from loop.inputs import BUILT_IN_MODEL, model_directory
from loop.prompts.sources import load_prompts
from policies.data import DataPolicy, Usable
from store.canonical import sha256_of
from store.corpus import ROW_BYTES, TEXT_BYTES_PER_TOKEN
from store.records import Json

SMOLLM2_PARAMETERS = 134_515_008
PROMPT_TOKENS = 150
CORE_FLOPS, GPU_FLOPS = 2e10, 1e14  # per second, of a core and of a GPU
STEP_S = 0.005  # the least that a token of a batch, or a step of training, takes
GRADING_S = 0.01  # a solution, on one worker
START_S = 20.0  # of a run, for its engines to start
ASSUMED = (
    f"no round is finished yet, so time is a guess: {CORE_FLOPS / 1e9:g} GFLOP/s per core or {GPU_FLOPS / 1e12:g} TFLOP/s per "
    f"GPU, 2 FLOP per parameter and sampled token, 6 per trained one, {PROMPT_TOKENS} tokens per prompt, completions as long "
    f"as they may be, {GRADING_S:g} s per solution graded and {START_S:g} s per run for engines that start; what is shared is not taken off"
)


def plan_of(experiment: Experiment, machine: Machine) -> Json:
    """Everything of `loopctl experiment run --dry-run`."""
    known: Counter[str] = Counter()
    num: Counter[str] = Counter()
    for run in experiment.runs:
        known.update(_known(run))
        suites, rounds = len(run.config.suites), experiment.rounds
        num.update({"sampling": rounds, "training": rounds, "evaluations": suites * (rounds + 1)})
        if run.config.diagnosis.num_prompts:
            num["diagnoses"] += rounds + 1
    shared = sum(count - 1 for count in known.values())
    found = [run_facts(experiment, run)[0] for run in experiment.runs]
    left = {
        (one["arm"], one["seed"]): experiment.rounds - one["rounds_done"] for one in found if one["state"] != "done"
    }
    sizes = {arm.name: _Size(experiment, experiment.of_arm(arm.name)[0]) for arm in experiment.arms}
    time_s, why = _time(experiment, machine, found, left, sizes)
    disk, disk_words = _disk(experiment, sizes)
    there = next(place for place in (experiment.directory, *experiment.directory.parents) if place.exists())
    return {
        "name": experiment.name,
        "directory": str(experiment.directory),
        "arms": [arm.name for arm in experiment.arms],
        "seeds": list(experiment.seeds),
        "num_runs": len(experiment.runs),
        "num_rounds": len(experiment.runs) * experiment.rounds,
        "num_rounds_left": sum(left.values()),
        "stages": dict(num),
        "num_stages": num.total(),
        "num_shared_at_least": shared,
        "jobs": machine.jobs,
        "devices": list(machine.devices),
        "num_threads": machine.num_threads,
        "time_s": time_s,
        "time_from": why,
        "disk_bytes": disk,
        "disk_from": disk_words,
        "free_bytes": shutil.disk_usage(there).free,
        "num_comparisons": len(experiment.pairs),
    }


def _known(run: ExperimentRun) -> list[str]:
    """What a run does that only depends on its configuration, as hashes of just that."""
    config = run.config
    parts = config.model_dump(mode="json")
    engine = {key: parts["engine"][key] for key in keys_of(Engine, "sampling", "training")}
    start: list[Any] = [run.seed, parts["model"], engine]
    grading = {key: value for key, value in parts["grading"].items() if key not in keys_of(Grading, "cost")}
    sampled = sha256_of([*start, "sampling", parts["prompts"], parts["sampling"]])
    trained = sha256_of([sampled, _first_collect(config), parts["training"]])
    found = [sampled, trained]
    for suite in parts["suites"]:
        split = config.decide.split if suite["name"] == config.decide.suite else "all"
        found += [sha256_of([*place, suite, split, grading]) for place in (start, [trained])]
    if config.diagnosis.num_prompts:
        decider = config.suite(config.decide.suite).model_dump(mode="json")
        probe = [decider, config.decide.split, parts["sampling"], parts["diagnosis"]]
        found += [sha256_of([*place, "probe", probe]) for place in (start, [trained])]
    return found


def _first_collect(config: Config) -> Json:
    """What [collect] is for a first round: all data policies are the same that use whatever a round without earlier ones has."""
    parts, policy, ids = config.collect.model_dump(mode="json"), config.collect.data, ["any"]
    if policy.draw([Usable(1, True, ids)], 1, 0)[0] is ids:
        parts["data"] = {key: parts["data"][key] for key in DataPolicy.model_fields if key != "type"}
    return parts


class _Size:
    """How much an arm samples, trains and grades in a round, and how large its model is."""

    def __init__(self, experiment: Experiment, run: ExperimentRun) -> None:
        self.config = config = run.config
        per_round = config.prompts.per_round
        if per_round is None:
            per_round = len(load_prompts(config.prompts, config.model, experiment.base_dir))
        self.num_sampled = per_round * config.sampling.num_samples
        self.suites = [
            (suite, len(load_suite(suite.source, suite.limit, experiment.base_dir).problems) * suite.num_samples)
            for suite in config.suites
        ]
        self.parameters = _parameters(config, experiment.base_dir)

    def seconds(self, machine: Machine) -> float | None:
        """A round, by the formula."""
        config, parameters = self.config, self.parameters
        if parameters is None:
            return None
        threads = config.engine.num_threads or machine.num_threads or 1
        flops = GPU_FLOPS if machine.devices else CORE_FLOPS * threads

        def sampled(number: int, length: int) -> float:
            batches = math.ceil(number / config.engine.batch_size)
            return batches * length * max(STEP_S, 2 * parameters * min(number, config.engine.batch_size) / flops)

        training = config.training
        steps = training.num_steps or math.ceil(self.num_sampled / training.batch_size) * (training.num_epochs or 1)
        row = PROMPT_TOKENS + config.sampling.max_new_tokens
        total = sampled(self.num_sampled, config.sampling.max_new_tokens)
        total += steps * max(STEP_S, 6 * parameters * training.batch_size * row / flops)
        for suite, number in self.suites:
            total += sampled(number, suite.max_new_tokens)
            total += number * GRADING_S / (config.grading.num_workers or machine.num_threads or 1)
        return total

    @property
    def text_bytes(self) -> int:
        """What a round adds to the store at most."""
        lengths = [(self.num_sampled, self.config.sampling.max_new_tokens)]
        lengths += [(number, suite.max_new_tokens) for suite, number in self.suites]
        return sum(number * (ROW_BYTES + TEXT_BYTES_PER_TOKEN * length) for number, length in lengths)


def _time(
    experiment: Experiment,
    machine: Machine,
    found: list[Json],
    left: dict[tuple[str, int], int],
    sizes: dict[str, _Size],
) -> tuple[float | None, str]:
    per_round: dict[str, list[float]] = {}
    for one in found:
        if one["rounds_done"]:
            per_round.setdefault(one["arm"], []).append(sum(one["spent_s"].values()) / one["rounds_done"])
    every = [seconds for arm in per_round.values() for seconds in arm]
    total = 0.0
    for (arm, _), rounds in left.items():
        if every:
            known = per_round.get(arm, every)
            seconds: float | None = sum(known) / len(known)
        else:
            seconds = sizes[arm].seconds(machine)
        if seconds is None:
            return None, f"the model {sizes[arm].config.model.source} is not on this disk, so its size is not known"
        total += seconds * rounds + (0.0 if every else START_S)
    num = sum(one["rounds_done"] for one in found)
    return total / machine.jobs, f"the {num} rounds that are finished" if every else ASSUMED


def _disk(experiment: Experiment, sizes: dict[str, _Size]) -> tuple[int | None, str]:
    total, shared = 0, rounds_kept(experiment)
    for run in experiment.runs:
        size = sizes[run.arm]
        if size.parameters is None:
            return None, "the model is not on this disk, so its size is not known"
        kept = min(experiment.rounds, run.config.storage.keep_last + 2)
        total += size.text_bytes * experiment.rounds + 4 * size.parameters * max(kept, shared[run.name])
    return total, (
        "at most: completions as long as they may be, weights in float32, of each run the newest (storage.keep_last), the head "
        "and the best, and where another arm may want them those of all rounds until it is past them"
    )


def _parameters(config: Config, base_dir: Path) -> int | None:
    """How many numbers the model has, from the headers of its files."""
    if config.model.source == BUILT_IN_MODEL:
        return SMOLLM2_PARAMETERS
    directory = model_directory(config.model.source, base_dir)
    if directory is None:
        return 0 if config.engine.sampler == "fake" else None
    total = 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        total += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    return total
