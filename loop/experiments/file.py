"""The experiment's file: a base configuration, arms that change keys of it, seeds. From it come whole configurations,
one per arm and seed, all of them checked before anything runs.

A mistake is one line, `FILE:LINE: key: what is wrong; what would be right`, in the file that holds the key. Loads no model.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, field_validator

from loop.config.loading import config_mistakes
from loop.config.mistakes import model_mistakes
from loop.config.same_run import differences, resolved
from loop.config.section import Mistake, Name, Section
from loop.config.settings import Config
from loop.config.toml_file import Placed, TomlFile, in_lines, read_toml
from loop.config.toml_text import toml_text
from loop.errors import ConfigError, LoopError
from loop.experiments.arms import Arm, arms_of, merged, placed
from loop.grading.known import wanted
from loop.inputs import inputs_and_mistakes, model_directory
from loop.prompts.sources import source_kind
from loop.reading.reader import reader
from store.errors import StoreError

SHARED = "shared"  # beside the arms, in the experiment's directory
LOGS = "logs"
CONFIG = "loop.toml"
_RESERVED = (SHARED, LOGS, "lock")  # names in the experiment's directory that no arm can have


class Description(Section):
    name: Name = Field(description="What reports call the experiment.")
    config: str = Field("loop.toml", description="The base configuration, relative to this file.")
    rounds: PositiveInt = Field(description="How many rounds each run has.")
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="A run of every arm for each.")
    jobs: PositiveInt | None = Field(None, description="Runs at a time; default: one per GPU, or one.")
    directory: str | None = Field(None, description="Where all runs are kept; default: `name` beside this file.")
    suite: str | None = Field(None, description="The suite that figures come from; default: the one that decides.")
    compare: tuple[tuple[str, str], ...] | None = Field(
        None, description="The pairs of arms to compare, named before any result is known; default: all pairs."
    )
    arms: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="Each has a name, and keys of loop.toml that it changes."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"{seed} is not a seed; give whole numbers from 0 on")
            if seeds.count(seed) > 1:
                raise ValueError(f"{seed} is given twice; each seed makes a run of its own")
        return seeds


@dataclass(frozen=True, slots=True)
class ExperimentRun:
    """One arm with one seed: an ordinary run in a directory of its own."""

    arm: str
    seed: int
    directory: Path
    config: Config
    tables: Mapping[str, Any]  # its loop.toml; paths are relative to the base configuration's directory

    @property
    def path(self) -> Path:
        return self.directory / CONFIG

    @property
    def run_dir(self) -> Path:
        return self.directory / ".loop"

    @property
    def name(self) -> str:
        return f"{self.arm}/seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A valid file. Runs come arm by arm, each with every seed."""

    name: str
    path: Path
    directory: Path
    base_dir: Path  # of the base configuration
    rounds: int
    seeds: tuple[int, ...]
    jobs: int | None
    suite: str
    arms: tuple[Arm, ...]
    runs: tuple[ExperimentRun, ...]
    pairs: tuple[tuple[str, str], ...]
    file: TomlFile
    base: TomlFile

    def of_arm(self, arm: str) -> list[ExperimentRun]:
        return [run for run in self.runs if run.arm == arm]


def load_experiment(path: Path) -> Experiment:
    """Read and validate an experiment with the configuration of every arm. ConfigError with a line per mistake.

    The prompts, suites and models that the configurations name are left to `check_experiment`.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file; name the file of an experiment (docs/your-first-experiment.md)")
    file = read_toml(path)
    hint = "unknown key; put what all runs have in common into the base configuration, and what differs into an arm"
    file.refuse(
        (key, hint if problem.startswith("unknown key") and key[0] in Config.model_fields else problem)
        for key, problem in model_mistakes(Description, file.tables, file.json).items()
    )
    described = Description.model_validate_json(file.json)
    path = Path(os.path.abspath(path))
    base_path = path.parent / Path(described.config).expanduser()
    if not os.path.lexists(base_path):
        file.refuse([(("config",), f"{described.config}: no such file; name a loop.toml (`loopctl init` writes one)")])
    base = read_toml(base_path)
    arms = list(arms_of(described.arms, file, base))
    file.refuse(_name_mistakes(arms))
    directory = Path(os.path.abspath(path.parent / Path(described.directory or described.name).expanduser()))
    runs: list[ExperimentRun] = []
    mistakes_in_arms: dict[Placed, None] = {}
    for arm in arms:
        for seed in described.seeds:
            tables = merged(base.tables, arm.overrides) | {
                "name": f"{described.name}-{arm.name}-{seed}", "seed": seed, "rounds": described.rounds
            }  # fmt: skip
            tables.pop("run_dir", None)
            for key, problem in config_mistakes(tables, json.dumps(tables, default=str)).items():
                if key != ("name",):
                    mistakes_in_arms[placed(arm, key, problem, file, base)] = None
            if mistakes_in_arms:
                break
            config = Config.model_validate_json(json.dumps(tables))
            runs.append(ExperimentRun(arm.name, seed, directory / arm.name / f"seed-{seed}", config, tables))
    if mistakes_in_arms:
        raise ConfigError(in_lines(mistakes_in_arms))
    suite = described.suite or runs[0].config.decide.suite
    file.refuse(_yardstick_mistakes(suite, described.suite is not None, arms, runs))
    names = [arm.name for arm in arms]
    pairs = described.compare if described.compare is not None else tuple(itertools.combinations(reversed(names), 2))
    file.refuse(
        (("compare", number), f"{name!r} is not an arm; the arms are: {', '.join(names)}")
        for number, pair in enumerate(pairs)
        for name in pair
        if name not in names
    )
    with_itself = [number for number, (ours, theirs) in enumerate(pairs) if ours == theirs]
    file.refuse((("compare", number), "compares an arm with itself; name two") for number in with_itself)
    return Experiment(
        described.name, path, directory, base_path.parent, described.rounds, described.seeds, described.jobs,
        suite, tuple(arms), tuple(runs), tuple(pairs), file, base,
    )  # fmt: skip


def check_experiment(experiment: Experiment) -> None:
    """Check what the arms' configurations name, and the runs that exist. ConfigError with a line per mistake."""
    seen = set[str]()
    mistakes: dict[Placed, None] = {}
    for arm in experiment.arms:
        runs = experiment.of_arm(arm.name)
        config = runs[0].config
        tables = config.model_dump(mode="json", include={"model", "prompts", "suites", "decide", "engine"})
        inputs = json.dumps([tables, config.wants_tests])
        if inputs not in seen:  # reading suites and prompts may cost seconds
            seen.add(inputs)
            for key, problem in inputs_and_mistakes(config, experiment.base_dir, runs[0].run_dir, fetch=False)[1]:
                mistakes[placed(arm, key, problem, experiment.file, experiment.base)] = None
        for run in runs:
            if changed := _changed(run, experiment.base_dir):
                problem = (
                    f"{run.directory} belongs to another configuration: {'; '.join(changed)}; change it back, give the "
                    "arm another name, or set another directory"
                )
                mistakes[experiment.file.at(("arms", arm.index), problem)] = None
    if mistakes:
        raise ConfigError(in_lines(mistakes))


def configuration_of(run: ExperimentRun, base_dir: Path) -> dict[str, Any]:
    """A run's loop.toml as tables, with the base configuration's relative paths made relative to the run's directory."""
    tables: dict[str, Any] = json.loads(json.dumps(run.tables))

    def moved(path: str) -> str:
        if Path(path).expanduser().is_absolute() or path.startswith("~"):
            return path
        target = os.path.relpath(base_dir / path, run.directory)
        return target if target.startswith("..") else f"./{target}"

    model, prompts = run.config.model, run.config.prompts
    if model_directory(model.source, base_dir) is not None:
        tables["model"]["source"] = moved(model.source)
    if source_kind(prompts.source, base_dir) in ("file", "local"):
        tables["prompts"]["source"] = moved(prompts.source)
    for suite in tables["suites"]:
        named = wanted(suite["source"])
        if named and named.path:
            suite["source"] = f"{named.name}={moved(named.path)}"
        elif not named and suite["source"] != "first-steps":
            suite["source"] = moved(suite["source"])
    for section, key in (("engine", "server_command"), ("watching", "command")):
        command = tables.get(section, {}).get(key)
        if command and "/" in command[0] and (base_dir / command[0]).exists():
            command[0] = moved(command[0])
    tables.get("watching", {}).pop("prometheus_port", None)  # several runs cannot share a port
    return tables


def run_text(run: ExperimentRun, base_dir: Path, num_threads: int | None = None) -> str:
    """The text of a run's loop.toml. `num_threads`: for the model and for grading, where the file does not set them."""
    tables = configuration_of(run, base_dir)
    if num_threads is not None:
        tables["engine"] = {"num_threads": num_threads} | tables.get("engine", {})
        tables["grading"] = {"num_workers": num_threads} | tables.get("grading", {})
    return (
        f"# Written by `loopctl experiment` at each start: arm {run.arm}, seed {run.seed}. Changes here are lost.\n\n"
        + toml_text(tables)
    )


# Mistakes


def _name_mistakes(arms: Sequence[Arm]) -> Iterator[Mistake]:
    taken: set[str] = set()
    for arm in arms:
        key = ("arms", arm.index, "name")
        if arm.name.lower() in _RESERVED:
            yield key, f"{arm.name!r} is the name of something else in the experiment's directory; choose another"
        if arm.name.lower() in taken:
            yield key, f"two arms are called {arm.name!r}; give each its own name"
        taken.add(arm.name.lower())


def _yardstick_mistakes(name: str, given: bool, arms: list[Arm], runs: list[ExperimentRun]) -> Iterator[Mistake]:
    """Arms can only be compared where the suite that figures come from is the same in all of them."""
    first: tuple[str, dict[str, Any]] | None = None
    configs = {run.arm: run.config for run in runs}
    for arm in arms:
        config, key = configs[arm.name], (("suite",) if given else ("arms", arm.index))
        names = [suite.name for suite in config.suites]
        if name not in names:
            yield key, f"arm {arm.name} has no suite {name!r}; name one that all arms have ({', '.join(names)})"
            continue
        decides = config.decide.split if config.decide.suite == name else None
        suite = config.suite(name).model_dump(mode="json") | {"decide": decides}
        if not decides:
            del suite["splits"]
        first = first or (arm.name, suite)
        if other := [key for key in suite if suite[key] != first[1].get(key)]:
            problem = (
                f"suite {name!r}, which figures come from, differs between the arms {arm.name} and {first[0]} "
                f"({', '.join(other)}); set `suite` to one that is the same in all arms"
            )
            yield key, problem


def _changed(run: ExperimentRun, base_dir: Path) -> list[str]:
    """How the run that exists in the directory differs from the file's. A store that cannot be read is left to the run itself."""
    try:
        with reader(run.run_dir) as store:
            before = {key: value for key, value in store.run.config.items() if key != "inputs"}
    except (StoreError, LoopError):
        return []
    now = Config.model_validate_json(json.dumps(configuration_of(run, base_dir)))
    return differences(before, resolved(now))
