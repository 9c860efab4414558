"""A model on a suite, sampled and graded as every evaluation of a run is: stored as it comes, continued after a kill.

Each pair of a model and a way of asking is a run without rounds in a directory of its own, with the loop.toml that asks so: any other
command can look into it. Seeds depend on suite and problem alone, so two models are asked the same with the same random numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.config.loading import LoadedConfig, load_config
from loop.config.toml_text import toml_text
from loop.engines.base import CheckpointRef
from loop.grading.problem import Problem as GradingProblem
from loop.judging.models import Model
from loop.run.base_model import in_worker
from loop.run.evaluation import SuitePart, evaluate
from loop.run.opening import open_session
from loop.run.session import Session
from loop.stages.evaluating import Yardstick, decoding_of, outcomes_of
from loop.stages.sampling import seed_of
from loop.workers.up import Watch
from policies.sequential import drawing_order
from store.durable import written
from store.records import Json

SPLIT = "select"
NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """How models are asked. `name`: of the suite, as it was given; `suite`: a `[[suites]]` table without its name; `machine`: [engine],
    [grading] and [cluster].
    """

    name: str
    suite: Json
    model: Json  # keys of [model] beside source and revision
    machine: Json
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a model answered, by task id in the suite's order: 1 for each sample that passed, 0 for one that did not."""

    model: Model
    suite: str
    loaded: LoadedConfig
    outcomes: dict[str, list[int]]
    graded_as: dict[str, GradingProblem]  # by task id
    suite_sha256: str
    decoding: Json
    figures: Json  # of the evaluation
    num_problems: int  # that the suite has, of which `outcomes` may hold a part

    def answer(self) -> Json:
        """What `loopctl eval` says of it."""
        figures = self.figures
        rates = {key: value for key, value in figures.items() if key.startswith("pass@")}
        return {
            "model": self.model.name,
            "suite": self.suite,
            "suite_sha256": self.suite_sha256,
            "decoding": self.decoding,
            "num_problems": figures["num_problems"],
            "num_samples": self.loaded.config.suites[0].num_samples,
            **rates,
            "by_difficulty": figures["by_difficulty"],
            "verdicts": figures["verdicts"],
            "truncation_rate": figures["truncation_rate"],
            "config": str(self.loaded.path),
        }


def sampled(
    model: Model,
    asked: Asked,
    directory: Path,
    watch: Watch,
    share: float = 1.0,
    out: Callable[[Session, Yardstick, str], None] | None = None,
) -> Sampled:
    """Ask a model the first `share` of a suite's problems in drawing order; only what is missing is sampled and graded.

    `out` is called with the open run, the suite and the evaluation's id when all is there.
    """
    loaded = load_config(table_of(model, asked, directory))
    with open_session(loaded, watch, trains=False) as session:
        (suite,) = session.suites
        wanted = problems_of(suite, asked.seed, share)
        seed = seed_of(asked.seed, suite.row.sha256, "judging")
        part = SuitePart(SPLIT, [problem for problem in suite.problems if problem.task_id in wanted], seed)
        done = evaluate(session, 1, session.run.base_checkpoint, suite, part, "base", model.name)
        outcomes = outcomes_of(session.corpus.evaluations.verdicts(done.id))
        if out:
            out(session, suite, done.id)
        session.index_texts()
    graded_as = {problem.task_id: suite.graded_as[problem.prompt_id] for problem in suite.problems}
    outcomes = {task_id: outcomes[task_id] for task_id in graded_as if task_id in wanted}
    decoding = decoding_of(suite.config)
    assert done.metrics is not None
    return Sampled(
        model, asked.name, loaded, outcomes, graded_as, suite.row.sha256, decoding, done.metrics, len(suite.problems)
    )


def problems_of(suite: Yardstick, seed: int, share: float) -> set[str]:
    """The task ids of the first share of the problems, in an order that owes nothing to outcomes."""
    order = drawing_order(seed, [problem.task_id for problem in suite.problems])
    return set(order[: max(1, round(share * len(order)))])


def table_of(model: Model, asked: Asked, directory: Path) -> Path:
    """The loop.toml that asks one model so, in a directory that another way of asking does not share."""
    table = {"source": model.source, "revision": model.revision} | asked.model
    machine = {name: dict(keys) for name, keys in asked.machine.items() if keys is not None}
    engine = machine.setdefault("engine", {})
    if model.server:
        engine |= {"sampler": "server", "server_url": model.server, "server_urls": None, "server_command": None}
    defining = {"model": table, "suite": asked.suite, "seed": asked.seed}
    mark = hashlib.sha256(toml_text({"defining": defining}).encode()).hexdigest()[:8]
    suite = _name(Path(asked.name).name)
    place = directory / f"{_name(model.name)}-{suite}-{mark}"
    if model.base:
        table["source"] = str(_merged(model, place))
    tables = {
        "name": _name(model.name),
        "seed": asked.seed,
        "rounds": 1,
        "model": table,
        "sampling": {"control": True},
        "suites": [{"name": suite} | asked.suite],
        "decide": {"suite": suite},
        **machine,
    }
    place.mkdir(parents=True, exist_ok=True)
    file = place / "loop.toml"
    with written(file) as out:
        out.write(toml_text(tables).encode())
    return file


def _merged(model: Model, place: Path) -> Path:
    """The whole weights of an adapter and its base."""
    from loop.config.machine import Engine

    target = place / "merged"
    if not (target / "config.json").exists():
        assert model.base is not None
        ref = CheckpointRef(sha256="", path=Path(model.source), base_path=Path(model.base))
        place.mkdir(parents=True, exist_ok=True)
        command: dict[str, Any] = {"op": "merge_adapter", "checkpoint": ref, "target": str(target)}
        in_worker(command, place / "merging.log", Engine(), "merging the adapter")
    return target


def _name(text: str) -> str:
    """A text as a part of a file's name: its end, which says most."""
    return NOT_A_NAME.sub("-", text).strip("-._")[-40:].strip("-._") or "model"


def shares(num_looks: int) -> Sequence[float]:
    """The parts of a suite after which a sequential comparison looks."""
    return [(look + 1) / num_looks for look in range(num_looks)]
