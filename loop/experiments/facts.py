"""What is known of an experiment: for its tables, its report, its page. Reads the runs' stores only."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
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
from store.records import Evaluation, Json, Round
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
        """The one form that leaves the program."""
        return asdict(self) | {"arms": [{"name": arm.name, "overrides": dict(arm.overrides)} for arm in self.arms]}


def experiment_facts(experiment: Experiment) -> ExperimentFacts:
    """The experiment as it is now."""
    runs: list[RunFacts] = []
    heads: dict[str, dict[int, list[Head]]] = {arm.name: {} for arm in experiment.arms}
    shared: dict[tuple[str, str, int], Json] = {}
    for run in experiment.runs:
        facts, heads[run.arm][run.seed] = run_facts(experiment, run)
        runs.append(facts)
        for taken in _taken(run):
            key = (taken.pop("key"), taken["ran_in"]["arm"], taken["ran_in"]["seed"])
            shared.setdefault(key, taken | {"used_by": []})["used_by"].append({"arm": run.arm, "seed": run.seed})
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


def run_facts(experiment: Experiment, run: ExperimentRun) -> tuple[RunFacts, list[Head]]:
    """A run's facts, and its heads on the suite that figures come from.

    A store that cannot be read is that run's failure, and hides no other run.
    """
    facts = RunFacts(
        arm=run.arm, seed=run.seed, rounds=experiment.rounds, run_dir=str(run.run_dir), config=str(run.path)
    )
    heads: list[Head] = []
    pid = holder(run.run_dir)
    try:
        with reader(run.run_dir) as store:
            facts = replace(facts, **_stored(store, experiment.rounds, pid is not None))
            heads = heads_of(store, run, experiment.suite)
    except NoStore:
        pass
    except StoreError as error:
        facts = replace(facts, state="failed", error=str(error))
    if pid is not None and facts.state in ("waiting", "stopped"):
        beat = read_heartbeat(run.run_dir)
        if beat is None or beat.pid != pid:
            return replace(facts, state="running"), heads
        state = "paused" if beat.state == "paused" else "running"
        return replace(facts, state=state, reason=beat.part or beat.reason), heads
    with contextlib.suppress(OSError):
        if facts.state in ("waiting", "stopped"):
            words = (run.directory / FAILURE).read_text(encoding="utf-8").strip()
            facts = replace(facts, state="failed", error=words or "it ended without a word")
    return facts, heads


def _stored(store: Reader, num_rounds: int, is_held: bool) -> dict[str, Any]:
    """What the store alone says of a run, as fields of RunFacts. `is_held`: whether a process works on it."""
    run, rounds, control = store.run, store.ledger.rounds(store.run.id), store.ledger.control(store.run.id)
    num_decided = run.num_kept + run.num_rolled_back
    spent: Counter[str] = Counter()
    for each in rounds:
        spent.update(duration_of(store, each))
    is_open = rounds and rounds[-1].state not in ("kept", "rolled_back") and num_decided < num_rounds
    stored: dict[str, Any] = {
        "state": "stopped" if rounds else "waiting",
        "rounds_done": num_decided,
        "num_kept": run.num_kept,
        "spent_s": {stage: round(seconds, 3) for stage, seconds in spent.items()},
        "round": rounds[-1].number if is_open else None,
        "stage": rounds[-1].stage if is_open else None,
        "shared": len(store.ledger.events.of(run.id, EVENT)),
    }
    if num_decided >= num_rounds:
        return stored | {"state": "done"}
    if control.held_by == "failure" or run.state == "failed":
        return stored | {"state": "failed", "error": control.hold_reason or run.reason}
    if run.state == "idle" and run.reason and not is_held:
        return stored | {"state": "ended", "reason": run.reason}
    if control.held_by and not is_held:
        return stored | {"state": "paused", "reason": control.hold_reason}
    return stored


def heads_of(store: Reader, run: ExperimentRun, suite: str) -> list[Head]:
    """The base and the head after each round that was decided, up to the first that is not measured on the suite yet."""
    evaluations = _evaluations(store, run, suite)
    decided = [one for one in store.ledger.rounds(store.run.id) if one.state in ("kept", "rolled_back")]
    after = [one.parent_checkpoint for one in decided[1:]] + [store.run.head_checkpoint]
    heads: list[Head] = []
    measured: dict[str, tuple[dict[str, Fraction], Json]] = {}
    before: list[tuple[Round | None, str]] = [(None, store.run.base_checkpoint), *zip(decided, after, strict=False)]
    for round_, checkpoint in before:
        one = evaluations.get(checkpoint)
        if one is None:
            break
        if checkpoint not in measured:
            counts = store.corpus.evaluations.counts(one.id)
            rates = {task: Fraction(num_passed, num) for task, (num_passed, num) in counts.items()}
            measured[checkpoint] = (rates, one.metrics or {})
        heads.append(Head(bool(round_ and round_.state == "kept"), *measured[checkpoint]))
    return heads


def _evaluations(store: Reader, run: ExperimentRun, suite: str) -> dict[str, Evaluation]:
    """The newest finished one of each checkpoint: of a suite that decides, that of the head, which its choice has not flattered."""
    split = run.config.decide.split if run.config.decide.suite == suite else "all"
    return {
        one.checkpoint: one
        for one in store.corpus.evaluations.all(store.run.id)
        if one.suite_name == suite and one.split == split and one.metrics is not None
    }


def _taken(run: ExperimentRun) -> list[Json]:
    """What a run took from others, as its events say it."""
    with contextlib.suppress(StoreError), reader(run.run_dir) as store:
        return [
            {"stage": event.stage, "round": event.round, **{key: event.data[key] for key in ("key", "what", "ran_in")}}
            for event in store.ledger.events.of(store.run.id, EVENT)
        ]
    return []


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
