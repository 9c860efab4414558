"""What an experiment will take: its stages, how many of them are shared at least, time, disk. Loads no model.

The base's evaluations and the first round are known to be shared beforehand. What later rounds share depends on decisions,
and comes on top. The time is estimated from the rounds that are finished.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from loop.config.machine import Engine, Grading
from loop.config.section import keys_of
from loop.config.settings import Config
from loop.experiments.facts import RunFacts, run_facts
from loop.experiments.file import Experiment, ExperimentRun
from loop.experiments.running import Machine, rounds_kept
from loop.grading.suite import load_suite
from loop.inputs import num_parameters_of
from loop.prompts.sources import load_prompts
from policies.data import DATA_POLICIES, DataPolicy, Usable
from store.canonical import sha256_of
from store.corpus import ROW_BYTES, TEXT_BYTES_PER_TOKEN
from store.records import Json


def plan_of(experiment: Experiment, machine: Machine) -> Json:
    """Everything of `loopctl experiment run --dry-run`."""
    num, done = Counter[str](), Counter[str]()
    for run in experiment.runs:
        done.update(_known_beforehand(run))
        suites, rounds = len(run.config.suites), experiment.rounds
        num.update({"sampling": rounds, "training": rounds, "evaluations": suites * (rounds + 1)})
        if run.config.diagnosis.num_prompts:
            num["diagnoses"] += rounds + 1
    runs = [run_facts(experiment, run)[0] for run in experiment.runs]
    time_s, time_from = _time(runs, machine)
    disk_bytes, disk_from = _disk(experiment)
    existing = next(place for place in (experiment.directory, *experiment.directory.parents) if place.exists())
    return {
        "name": experiment.name,
        "directory": str(experiment.directory),
        "arms": [arm.name for arm in experiment.arms],
        "seeds": list(experiment.seeds),
        "num_runs": len(experiment.runs),
        "num_rounds": len(experiment.runs) * experiment.rounds,
        "num_rounds_left": sum(max(0, run.rounds - run.rounds_done) for run in runs),
        "stages": dict(num),
        "num_stages": num.total(),
        "num_shared_at_least": done.total() - len(done),
        **asdict(machine),
        "time_s": time_s,
        "time_from": time_from,
        "disk_bytes": disk_bytes,
        "disk_from": disk_from,
        "free_bytes": shutil.disk_usage(existing).free,
        "num_comparisons": len(experiment.pairs),
    }


def _known_beforehand(run: ExperimentRun) -> list[str]:
    """What a run does that only depends on its configuration, as hashes of just that."""
    config = run.config
    parts = config.model_dump(mode="json")
    engine = {key: parts["engine"][key] for key in keys_of(Engine, "sampling", "training")}
    start: list[Any] = [run.seed, parts["model"], engine]
    grading = {key: value for key, value in parts["grading"].items() if key not in keys_of(Grading, "cost")}
    sampled = sha256_of([*start, "sampling", parts["prompts"], parts["sampling"]])
    trained = sha256_of([sampled, _first_collect(config), parts["training"]])
    measured = []
    for suite in parts["suites"]:
        decides = suite["name"] == config.decide.suite
        measured.append([suite, config.decide.split if decides else "all", grading])
        if decides and config.diagnosis.num_prompts:
            measured.append(["probe", suite, config.decide.split, parts["sampling"], parts["diagnosis"]])
    return [sampled, trained, *(sha256_of([*by, *what]) for what in measured for by in (start, [trained]))]


def _first_collect(config: Config) -> Json:
    """What [collect] is for a first round: all data policies are the same that use whatever a round without earlier ones has."""
    parts, policy, ids = config.collect.model_dump(mode="json"), config.collect.data, ["any"]
    is_built_in = type(policy) in DATA_POLICIES.built_in.values()  # what another package's policy draws is not known
    if is_built_in and policy.draw([Usable(1, True, ids)], 1, 0)[0] is ids:
        parts["data"] = {key: parts["data"][key] for key in DataPolicy.model_fields if key != "type"}
    return parts


def _time(runs: Sequence[RunFacts], machine: Machine) -> tuple[float | None, str]:
    """Seconds for what is left, from what a round of the same arm took, or of any arm where none of its own is finished."""
    by_arm: dict[str, list[float]] = {}
    for run in runs:
        if run.rounds_done:
            by_arm.setdefault(run.arm, []).append(sum(run.spent_s.values()) / run.rounds_done)
    if not by_arm:
        return None, "no round is finished yet"
    all_arms = [seconds for arm in by_arm.values() for seconds in arm]
    total_s = sum(max(0, run.rounds - run.rounds_done) * fmean(by_arm.get(run.arm, all_arms)) for run in runs)
    return total_s / machine.jobs, f"the {sum(run.rounds_done for run in runs)} rounds that are finished"


def _disk(experiment: Experiment) -> tuple[int | None, str]:
    total, shared = 0, rounds_kept(experiment)
    for arm in experiment.arms:
        runs = experiment.of_arm(arm.name)
        config = runs[0].config
        num_parameters = num_parameters_of(config.model.source, experiment.base_dir)
        if num_parameters is None and config.engine.sampler != "fake":
            return None, "the model is not on this disk, so its size is not known"
        bytes_per_round = _bytes_per_round(config, experiment.base_dir)
        for run in runs:
            num_kept = max(min(experiment.rounds, config.storage.keep_last + 2), shared[run.name])
            total += bytes_per_round * experiment.rounds + 4 * (num_parameters or 0) * num_kept
    return total, (
        "at most: completions as long as they may be, weights in float32, of each run the newest (storage.keep_last), the head "
        "and the best, and where another arm may want them those of all rounds until it is past them"
    )


def _bytes_per_round(config: Config, base_dir: Path) -> int:
    """What a round adds to the store at most."""
    num_prompts = config.prompts.per_round or len(load_prompts(config.prompts, config.model, base_dir))
    texts = [(num_prompts * config.sampling.num_samples, config.sampling.max_new_tokens)]
    for suite in config.suites:
        num_problems = len(load_suite(suite.source, suite.limit, base_dir).problems)
        texts.append((num_problems * suite.num_samples, suite.max_new_tokens))
    return sum(number * (ROW_BYTES + TEXT_BYTES_PER_TOKEN * length) for number, length in texts)
