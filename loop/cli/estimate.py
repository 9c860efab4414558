"""`loopctl estimate` says what a configuration needs, stage by stage, beside what this machine has."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import command, print_answer, the_call
from loop.words import duration, number, safe, size, warn

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.config.settings import Config
    from loop.engines.base import TrainingPeak
    from loop.fitting.estimate import Estimate
    from loop.fitting.machine import Machine
    from loop.fitting.shape import Shape
    from loop.inputs import Inputs

Json = dict[str, Any]
FORMULA = "formula"
DONE = ("kept", "carried", "rolled_back")


@command("estimate", "loopctl estimate", "loopctl estimate --formula --json")
@click.option("--cluster", is_flag=True, help="Beside what the nodes of [cluster] have, not this machine.")
@click.option("--formula", is_flag=True, help="Leave out the count of training's peak, which takes up to a minute.")
def estimate_command(cluster: bool, formula: bool) -> int:
    """Say what each stage needs of memory, disk and time, beside what this machine has. Exit code 1 if it cannot fit.

    The model's config.json is enough; no weights are read. The peak of training is counted in a worker, on tensors without
    content; everything else is a formula.
    """
    from loop.fitting.estimate import estimate, longest_prompt, resolved, training_pass
    from loop.fitting.machine import this_machine
    from loop.fitting.shape import model_config, model_shape
    from loop.inputs import read_inputs

    loaded = the_call().load()
    config, inputs = loaded.config, read_inputs(loaded, fetch=False)
    fields, machine = (
        model_config(config.model, loaded.base_dir),
        this_machine(loaded.run_dir, config.engine.device),
    )
    if fields is None:
        print_answer(
            {"fits": True, "needs": [], "model": {"source": config.model.source}}, "the fake model needs nothing"
        )
        return 0
    shape, prompt_tokens = model_shape(config.model, loaded.base_dir), longest_prompt(inputs.prompts)
    if shape is None:
        warn(f"model.source: config.json of {safe(config.model.source)} names no sizes that the formula knows")
        return 1
    if cluster:
        config, machine = _of_the_nodes(loaded, machine)
    work = training_pass(config, resolved(config, shape, machine, prompt_tokens))
    peak = None if formula or config.engine.trainer == "fake" else _counted(loaded, fields, work.model_dump())
    estimated = estimate(config, shape, machine, prompt_tokens, peak.peak_bytes if peak else None)
    answer = _answer(loaded, shape, machine, estimated, peak, inputs)
    print_answer(answer, lambda _: _print(answer, machine))
    return 0 if estimated.fits else 1


def _of_the_nodes(loaded: LoadedConfig, here: Machine) -> tuple[Config, Machine]:
    """The nodes of the cluster as one machine, and the configuration with as many processes as train on them."""
    from dataclasses import replace

    from loop.errors import ConfigError
    from loop.workers.cluster import Hub

    config = loaded.config
    if config.cluster is None:
        raise ConfigError(
            f"{loaded.file.place}: has no table [cluster], which --cluster is about; add it, or leave --cluster out"
        )
    hub = Hub(config.cluster, loaded.run_dir / "logs" / "estimate-hub.log")
    try:
        nodes = sorted(hub.nodes(), key=lambda node: (-node.num_gpus, node.name))
    finally:
        hub.close()
    if not nodes:
        raise ConfigError("cluster: no node has cores or GPUs; start some with `ray start --address=HOST:6379`")
    gpus = tuple(node.gpu_bytes for node in nodes for _ in range(node.num_gpus))
    memory, cores = min(node.memory_bytes for node in nodes), int(min(node.num_cpus for node in nodes))
    num_nodes = config.cluster.training_nodes or 1
    own = min(node.num_gpus for node in nodes[:num_nodes]) or config.engine.num_training_processes or 1
    engine = config.engine.model_copy(update={"num_training_processes": own * num_nodes})
    machine = replace(here, gpus=gpus, memory=memory, cores=cores, gpu=nodes[0].gpu)
    return config.model_copy(update={"engine": engine}), machine


def _counted(loaded: LoadedConfig, fields: Json, work: Json) -> TrainingPeak | None:
    """The peak of training by the tracker; None, and a line why, where it cannot be counted."""
    import tempfile

    from loop.engines.base import TrainingPeak
    from loop.errors import LoopError
    from loop.run.base_model import in_worker

    command = {"op": "track_memory", "config": fields, "work": work}
    try:
        with tempfile.TemporaryDirectory(prefix="ssd-loop-") as directory:
            told = in_worker(command, Path(directory) / "estimate.log", loaded.config.engine, "counting the memory")
        return TrainingPeak.model_validate(told)
    except LoopError as error:
        warn(f"the peak of training is not counted, so it is the formula's: {safe(error)}")
        return None


def _answer(
    loaded: LoadedConfig, shape: Shape, machine: Machine, estimated: Estimate, peak: TrainingPeak | None, inputs: Inputs
) -> Json:  # fmt: skip
    from loop.fitting.estimate import training_pass
    from loop.fitting.formula import training_memory

    memory = training_memory(shape, training_pass(loaded.config, estimated.resolved))
    terms = {f"{name}_bytes": value for name, value in asdict(memory).items()} | {"peak_bytes": memory.peak}
    times, basis = _times(loaded, shape, machine, estimated, inputs)
    return {
        "fits": estimated.fits,
        "model": {
            "source": loaded.config.model.source,
            "num_parameters": peak.num_parameters - peak.num_adapter if peak else shape.num_parameters,
            "num_active": shape.num_active,
        },
        "machine": {
            "gpu": machine.gpu or None,
            "gpus_bytes": list(machine.gpus),
            "memory_bytes": machine.memory,
            "disk_free_bytes": machine.disk_free,
            "cores": machine.cores,
        },
        "resolved": asdict(estimated.resolved),
        "needs": [asdict(need) | {"key": ".".join(need.key)} for need in estimated.needs],
        "training": {
            FORMULA: terms,
            "counted": peak.model_dump() | {"peak_bytes": peak.peak_bytes} if peak else None,
        },
        "times": times,
        "times_from": basis,
    }


def _times(
    loaded: LoadedConfig, shape: Shape, machine: Machine, estimated: Estimate, inputs: Inputs
) -> tuple[Json | None, str]:
    """Seconds of each stage of a round, and where they are from: the run's own last round before any formula."""
    from loop.fitting.estimate import mean_prompt
    from loop.fitting.times import on_gpus, tokens_of

    if measured := _of_last_round(loaded.run_dir):
        return measured
    num_prompts = loaded.config.prompts.per_round or len(inputs.prompts)
    if not num_prompts:
        return None, "not known before the prompts are fetched; give prompts.per_round"
    if len(inputs.suites) < len(loaded.config.suites):
        return None, "not known before the suites are fetched"
    num_problems = [len(suite.problems) for suite in inputs.suites]
    tokens = tokens_of(loaded.config, num_prompts, num_problems, mean_prompt(inputs.prompts))
    if machine.gpus:
        times = on_gpus(loaded.config, shape, machine, estimated.resolved, tokens)
        return (asdict(times), FORMULA) if times else (None, f"not known for a {machine.gpu or 'GPU of this kind'}")
    from loop.run import pace

    with contextlib.suppress(Exception):
        if speed := pace.measured_speed(loaded):
            rate = 2 * shape.num_active / (pace.SAMPLING * speed.sampling)
            training_s = 6 * shape.num_active * tokens.trained / (pace.TRAINING * speed.training)
            times_s = {
                "sampling_s": rate * tokens.sampled,
                "training_s": training_s,
                "evaluating_s": rate * tokens.answered,
            }
            return times_s, f"{FORMULA}, from the speed of this CPU, just measured"
    return None, "not known: the speed of this machine could not be measured"


def _of_last_round(run_dir: Path) -> tuple[Json, str] | None:
    from loop.reading.reader import reader
    from loop.reading.rounds import duration_of
    from store.errors import StoreError

    try:
        with reader(run_dir) as store:
            done = [round for round in store.ledger.rounds(store.run.id) if round.state in DONE]
            if not done:
                return None
            durations = duration_of(store, done[-1])
            times = {f"{stage}_s": durations[stage] for stage in ("sampling", "training", "evaluating")}
            return times, f"round {done[-1].number} of this run"
    except (StoreError, LookupError, ValueError):
        return None


def _print(answer: Json, machine: Machine) -> None:
    model, plan, training = answer["model"], answer["resolved"], answer["training"]
    gpus = f"{len(machine.gpus)} x {machine.gpu or 'GPU'} of {size(machine.gpus[0])}" if machine.gpus else "no GPU"
    click.echo(
        f"model     {safe(model['source'])}: {number(model['num_parameters'])} parameters, {number(model['num_active'])} used by a token"
    )
    click.echo(
        f"machine   {safe(gpus)}, {machine.cores} cores, {size(machine.memory)} of memory, {size(machine.disk_free)} of disk free"
    )
    engines = f"{plan['num_engines']} of {plan['gpus_per_engine']} GPUs" if plan["on_gpu"] else plan["num_engines"]
    click.echo(f"spread    training processes {plan['num_training_processes']}, engines {engines}")
    for need in answer["needs"]:
        remedy = f"; {need['remedy']}" if need["remedy"] else ""
        amounts = f"{size(need['needed_bytes']):>7} of {size(need['has_bytes'])}"
        click.echo(f"{need['verdict']:6}  {need['what']:12} {amounts:19} {safe(need['detail'] + remedy)}")
    if counted := training["counted"]:
        click.echo(f"        by the formula training takes {size(training[FORMULA]['peak_bytes'])}, counted ", nl=False)
        click.echo(size(counted["peak_bytes"]))
    if answer["times"]:
        stages = ", ".join(f"{name.removesuffix('_s')} {duration(value)}" for name, value in answer["times"].items())
        click.echo(f"time      a round: {stages} ({safe(answer['times_from'])})")
    else:
        click.echo(f"time      {safe(answer['times_from'])}")
