"""What is known of an experiment: for its tables, its report, its page. Reads the runs' stores only."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loop.experiments.arithmetic import Head, comparisons, correction_in_words, lines_of
from loop.experiments.arms import Arm
from loop.experiments.file import Experiment, ExperimentRun
from loop.reading.reader import Reader, reader
from loop.reading.rounds import duration_of
from loop.stages.evaluating import decoding_of
from loop.system.heartbeat import read_heartbeat
from loop.system.lock import holder
from store.db import utc_now
from store.errors import NoStore, StoreError
from store.records import DECIDED, Event, Json
from store.shared import EVENT

FAILURE = "failure.txt"  # beside a run's loop.toml: why it was given up, where its store cannot say


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One arm with one seed, as far as its store can be read.

    `state`: waiting, running, paused, stopped, failed, ended or done. `round`, `stage`: where an open round is. `spent_s`:
    seconds of work by stage. `shared`: how many stages and evaluations came from another run.
    """

    arm: str
    seed: int
    state: str = "waiting"
    reason: str | None = None
    error: str | None = None
    rounds_done: int = 0
    rounds: int
    round: int | None = None
    stage: str | None = None
    num_kept: int = 0
    num_carried: int = 0
    run_dir: str
    config: str
    spent_s: dict[str, float] = field(default_factory=dict)
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentFacts:
    """All that `loopctl experiment status --json` says.

    `state`: waiting, running, stopped, failed, ended or done. `suite`, `decides`, `decoding`: what the figures were measured
    on. `lines`: of each arm a line for each round (see `arithmetic.lines_of`); changes are over the base. `comparisons`: see
    `arithmetic.comparisons`; `correction` says in words what their number did to the intervals. `shared`: what runs took from
    each other, {"stage": sampling, training or evaluating, "what": words, "round", "ran_in": {"arm", "seed"},
    "used_by": [{"arm", "seed"}, ...]}.
    """

    name: str
    as_of: str
    directory: str
    file: str
    state: str
    pid: int | None
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    rounds: int
    suite: str
    decides: bool
    decoding: Json
    runs: tuple[RunFacts, ...]
    lines: list[Json]
    comparisons: list[Json]
    num_comparisons: int
    correction: str
    shared: list[Json]

    def as_json(self) -> Json:
        return asdict(self) | {"arms": [{"name": arm.name, "overrides": dict(arm.overrides)} for arm in self.arms]}


def experiment_facts(experiment: Experiment) -> ExperimentFacts:
    runs: list[RunFacts] = []
    heads: dict[str, dict[int, list[Head]]] = {arm.name: {} for arm in experiment.arms}
    shared: dict[tuple[str, str, int], Json] = {}
    for run in experiment.runs:
        facts, heads[run.arm][run.seed], taken = run_facts(experiment, run)
        runs.append(facts)
        for event in taken:
            what, ran_in = event.data["what"], event.data["ran_in"]
            product = {"stage": event.stage, "round": event.round, "what": what, "ran_in": ran_in, "used_by": []}
            key = (event.data["key"], ran_in["arm"], ran_in["seed"])
            shared.setdefault(key, product)["used_by"].append({"arm": run.arm, "seed": run.seed})
    config = experiment.runs[0].config
    suite = config.suite(experiment.suite)
    pid = holder(experiment.directory)
    return ExperimentFacts(
        name=experiment.name,
        as_of=utc_now(),
        directory=str(experiment.directory),
        file=str(experiment.path),
        state=_state([run.state for run in runs], pid is not None),
        pid=pid,
        arms=experiment.arms,
        seeds=experiment.seeds,
        rounds=experiment.rounds,
        suite=suite.name,
        decides=config.decide.suite == suite.name,
        decoding=decoding_of(suite) | {"num_samples": suite.num_samples},
        runs=tuple(runs),
        lines=[line for arm in experiment.arms for line in lines_of(arm.name, heads[arm.name], experiment.seeds)],
        comparisons=comparisons(heads, experiment.pairs, experiment.seeds),
        num_comparisons=len(experiment.pairs),
        correction=correction_in_words(len(experiment.pairs)),
        shared=sorted(shared.values(), key=lambda taken: (taken["round"], taken["stage"], taken["what"])),
    )


def run_facts(experiment: Experiment, run: ExperimentRun) -> tuple[RunFacts, list[Head], list[Event]]:
    """A run's facts, its heads on the suite that figures come from, and the events of what it took from other runs.

    A store that cannot be read is that run's failure, and hides no other run.
    """
    facts = RunFacts(
        arm=run.arm, seed=run.seed, rounds=experiment.rounds, run_dir=str(run.run_dir), config=str(run.path)
    )
    heads: list[Head] = []
    taken: list[Event] = []
    pid = holder(run.run_dir)
    try:
        with reader(run.run_dir) as store:
            taken = store.ledger.events.of(store.run.id, EVENT)
            facts = replace(facts, shared=len(taken), **_stored(store, experiment.rounds, pid is not None))
            heads = heads_of(store, experiment.suite)
    except NoStore:
        pass
    except StoreError as error:
        facts = replace(facts, state="failed", error=str(error))
    if pid is not None and facts.state in ("waiting", "stopped"):
        facts = replace(facts, state="running")
        if (beat := read_heartbeat(run.run_dir)) is not None and beat.pid == pid:
            state = "paused" if beat.state == "paused" else "running"
            facts = replace(facts, state=state, reason=beat.part or beat.reason)
    with contextlib.suppress(OSError):
        if facts.state in ("waiting", "stopped"):
            words = (run.directory / FAILURE).read_text(encoding="utf-8").strip()
            facts = replace(facts, state="failed", error=words or "it ended without a word")
    return facts, heads, taken


def _stored(store: Reader, num_rounds: int, is_held: bool) -> dict[str, Any]:
    """What the store alone says of a run, as fields of RunFacts. `is_held`: whether a process works on it."""
    run, rounds, control = store.run, store.ledger.rounds(store.run.id), store.ledger.control(store.run.id)
    spent: Counter[str] = Counter()
    for each in rounds:
        spent.update(duration_of(store, each))
    is_open = rounds and rounds[-1].state not in DECIDED and run.num_decided < num_rounds
    stored: dict[str, Any] = {
        "state": "stopped" if rounds else "waiting",
        "rounds_done": run.num_decided,
        "num_kept": run.num_kept,
        "num_carried": run.num_carried,
        "spent_s": {stage: round(seconds, 3) for stage, seconds in spent.items()},
        "round": rounds[-1].number if is_open else None,
        "stage": rounds[-1].stage if is_open else None,
    }
    if run.num_decided >= num_rounds:
        return stored | {"state": "done"}
    if control.held_by == "failure" or run.state == "failed":
        return stored | {"state": "failed", "error": control.hold_reason or run.reason}
    if run.state == "idle" and run.reason and not is_held:
        return stored | {"state": "ended", "reason": run.reason}
    if control.held_by and not is_held:
        return stored | {"state": "paused", "reason": control.hold_reason}
    return stored


def heads_of(store: Reader, suite: str) -> list[Head]:
    """The base and the head after each round that was decided, up to the first that is not measured on the suite yet."""
    newest = store.evaluations().newest  # of a head as a head, not the answers that it was chosen for
    decisions = store.ledger.decisions(store.run.id)
    kept = {round.number for round in store.ledger.rounds(store.run.id) if round.state == "kept"}
    checkpoints = [*(decision.head_before for decision in decisions), store.run.head_checkpoint]
    heads: list[Head] = []
    moved = [False] + [
        each.verdict == "keep" or (after != each.head_before and (after == each.head_after or each.round in kept))
        for each, after in zip(decisions, checkpoints[1:], strict=True)
    ]
    for is_kept, checkpoint in zip(moved, checkpoints, strict=True):
        evaluation = newest.get((checkpoint, suite))
        if evaluation is None:
            break
        heads.append(Head(is_kept, store.pass_rates(evaluation), evaluation.metrics or {}))
    return heads


def _state(states: list[str], supervised: bool) -> str:
    if supervised:
        return "running"
    if all(state == "done" for state in states):
        return "done"
    if all(state == "waiting" for state in states):
        return "waiting"
    if "failed" in states:
        return "failed"
    return "ended" if all(state in ("done", "ended") for state in states) else "stopped"
