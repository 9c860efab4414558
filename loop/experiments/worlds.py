"""Worlds in which policies are tried: by how much each round improves a model, how hard problems are, how much is measured.

A world's truth is known, which no run's is: so it shows how often a policy keeps what is worth nothing, and how much of what
rounds gain it passes on. `World` is a line of a worlds file; `Population` draws checkpoints of it, many runs at once.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from loop.config.loading import LoadedConfig
from loop.config.section import Section
from loop.errors import LoopError
from loop.grading.suite import load_suite, split_of
from policies.gates import Improvement
from policies.mistakes import dotted, first_mistake, shown

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]
Bools = NDArray[numpy.bool_]

_REFERENCE = 20_000  # problems by which shifts are set: the mean gain is right to about .001
_HALVINGS = 25
ENDLESS = 30  # rounds of a world like a run that has no end
MOST_ROUNDS = 1_000
_LOWEST, _HIGHEST = 0.001, 0.999  # mean success rates at which a gain has no further effect

Gain = Annotated[float, Field(gt=-1.0, lt=1.0)]


class World(Section):
    """One world. Gains are differences of the mean success rate: .03 is three points."""

    name: str = Field(min_length=1, description="What the rows call it.")
    gains: tuple[Gain, ...] = Field(
        min_length=1,
        description="What each further round adds along a line that began at the base; the last one repeats.",
    )
    num_problems: PositiveInt = Field(le=100_000, description="Problems of all splits that decide.")
    num_samples: PositiveInt = Field(le=1_000, description="Samples of each problem.")
    num_rounds: PositiveInt = Field(le=MOST_ROUNDS, description="Rounds of a run.")
    difficulty: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.35, 0.35), description="The Beta distribution of the base's success rates."
    )
    churn: float = Field(
        0.11, ge=0.0, le=0.4, description="By how much a round moves a problem's rate by itself: a standard deviation."
    )
    select_share: float | None = Field(
        None, gt=0.0, lt=1.0, description="With decide.confirm, the share of the problems that only screen; default .2."
    )

    def gain_after(self, num_rounds: int) -> float:
        """The gain over the base after that many rounds in a row, none of them undone. Rates stay between 0 and 1."""
        base = rate = self.difficulty[0] / sum(self.difficulty)
        for gain in itertools.islice(itertools.chain(self.gains, itertools.repeat(self.gains[-1])), num_rounds):
            rate = min(_HIGHEST, max(_LOWEST, rate + gain))
        return rate - base

    @property
    def possible_gain(self) -> float:
        """The largest gain over the base that a run can reach."""
        return max(self.gain_after(number) for number in range(self.num_rounds + 1))


_STUDY = (0.105, 0.063, 0.024, 0.015, 0.015, 0.0)
_RISE_AND_FALL = (0.02, 0.02, 0.02, -0.03)
_SHIPPED = (
    ("study-like, 140 x 2", _STUDY, 140, 2, 6),
    ("study-like, 500 x 4", _STUDY, 500, 4, 6),
    ("+1pp, 10 rounds", (0.01,), 500, 4, 10),
    ("+1pp, 30 rounds", (0.01,), 500, 4, 30),
    ("+1.5pp", (0.015,), 374, 10, 10),
    ("+.5pp", (0.005,), 374, 10, 30),
    ("+2pp three times, then -3pp", _RISE_AND_FALL, 500, 4, 12),
    ("+3 +3 +1pp, then -2pp", (0.03, 0.03, 0.01, -0.02), 374, 10, 10),
    ("no gain ever", (0.0,), 374, 10, 50),
    ("-1pp", (-0.01,), 374, 10, 20),
    ("collapse after two rounds", (0.03, 0.02, -0.3), 374, 10, 10),
)
SHIPPED = tuple(
    World(name=name, gains=gains, num_problems=problems, num_samples=samples, num_rounds=rounds)
    for name, gains, problems, samples, rounds in _SHIPPED
)


def own_worlds(loaded: LoadedConfig) -> tuple[World, ...]:
    """Worlds of the configured sizes: in each round the gain that is asked for, half of it, or none. ConfigError for the suite."""
    config = loaded.config
    decide, suite = config.decide, config.suite(config.decide.suite)
    shares = {str(name): share for name, share in suite.splits.items()}
    splits = [
        split_of(problem.task_id, shares) for problem in load_suite(suite.source, suite.limit, loaded.base_dir).problems
    ]
    screening, confirming = splits.count(decide.split), splits.count(decide.confirm or "")
    target = next((gate.target for gate in decide.gates if isinstance(gate, Improvement)), 0.0)
    return tuple(
        World(
            name=f"your sizes, {f'{gain * 100:+.3g}pp a round' if gain else 'no gain ever'}",
            gains=(gain,),
            num_problems=screening + confirming,
            num_samples=suite.num_samples,
            num_rounds=min(config.rounds or ENDLESS, MOST_ROUNDS),
            select_share=screening / (screening + confirming) if confirming else None,
        )
        for gain in dict.fromkeys((target, target / 2, 0.0))
    )


def read_worlds(file: Path) -> tuple[World, ...]:
    """The worlds of a JSON or TOML file: a list, in TOML under `worlds`. LoopError, in one line, where it is none."""
    import tomllib

    try:
        text = file.read_bytes().decode()
        content = tomllib.loads(text).get("worlds") if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise LoopError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON"
        raise LoopError(f"{file}: this is not {kind}: {error}") from None
    if not isinstance(content, list) or not content:
        raise LoopError(f"{file}: no list of worlds; a world is {{name, gains, num_problems, num_samples, num_rounds}}")
    worlds = []
    for index, table in enumerate(content):
        try:
            worlds.append(World.model_validate_json(json.dumps(table)))
        except ValidationError as error:
            path, problem = first_mistake(error)
            raise LoopError(f"{file}: {dotted(('worlds', index, *path))}: {problem}") from None
        except TypeError as error:  # TOML has dates, JSON has none
            raise LoopError(f"{file}: worlds[{index}]: {error}") from None
        if worlds[-1].name in {world.name for world in worlds[:-1]}:
            raise LoopError(
                f"{file}: worlds[{index}].name: another world is called {shown(worlds[-1].name)}; rename one"
            )
    return tuple(worlds)


def rates(log_odds: Floats) -> Floats:
    """Success rates."""
    return 1 / (1 + numpy.exp(-log_odds))


@dataclass(frozen=True)
class Population:
    """Checkpoints of a world in `num_runs` runs: (runs, problems) log odds of success, and samples of them."""

    world: World
    num_runs: int
    numbers: numpy.random.Generator

    def base(self) -> Floats:
        """The base of each run."""
        return _drawn(self.numbers, self.world.difficulty, (self.num_runs, self.world.num_problems))

    def trained(self, parents: Floats, depths: Ints) -> Floats:
        """A candidate from each parent, which is itself `depths` rounds from the base."""
        shifts, noise = _course(self.world)
        after: Floats = parents + shifts[depths][:, None] + noise * self.numbers.standard_normal(parents.shape)
        return after

    def correct(self, log_odds: Floats, num_samples: int) -> Ints:
        """How many of fresh samples are right, for each run and problem."""
        return self.numbers.binomial(num_samples, rates(log_odds)).astype(numpy.int64)


def _drawn(numbers: numpy.random.Generator, difficulty: tuple[float, float], shape: tuple[int, ...]) -> Floats:
    drawn = numpy.clip(numbers.beta(*difficulty, shape), 1e-9, 1 - 1e-9)
    log_odds: Floats = numpy.log(drawn) - numpy.log1p(-drawn)
    return log_odds


@functools.lru_cache(maxsize=64)
def _course(world: World) -> tuple[Floats, float]:
    """The shift of all log odds in each round of a line, and the churn in log odds; the same for every seed.

    Both are set by halving on a sample of problems that is carried along the line.
    """
    numbers = numpy.random.default_rng(0)
    log_odds = _drawn(numbers, world.difficulty, (_REFERENCE,))
    normal = numbers.standard_normal(_REFERENCE)
    spread = functools.partial(_spread, log_odds, normal)
    noise = _halved(lambda value: spread(value) < world.churn, 0.0, 20.0) if world.churn else 0.0
    shifts: list[float] = []
    for number in range(world.num_rounds):
        before = rates(log_odds).mean()
        moved = log_odds + noise * numbers.standard_normal(_REFERENCE)
        wanted = before + world.gain_after(number + 1) - world.gain_after(number)
        shifts.append(_halved(functools.partial(_is_below, moved, wanted), -30.0, 30.0))
        log_odds = moved + shifts[-1]
    return numpy.array(shifts), noise


def _is_below(log_odds: Floats, wanted: float, shift: float) -> bool:
    return bool(rates(log_odds + shift).mean() < wanted)


def _spread(log_odds: Floats, normal: Floats, noise: float) -> float:
    return float((rates(log_odds + noise * normal) - rates(log_odds)).std())


def _halved(too_low: Callable[[float], bool], low: float, high: float) -> float:
    """Where `too_low` ends."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return low
