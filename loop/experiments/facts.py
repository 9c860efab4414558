"""What is known of an experiment, as one JSON value: for its tables, its report, its page. Reads the runs' stores only.

    {"name", "as_of", "directory", "file", "state": "waiting|running|stopped|failed|ended|done", "pid",
     "arms": [{"name", "overrides": {...}}], "seeds": [...], "rounds": N, "suite", "decides", "decoding": {...},
     "runs": [{"arm", "seed", "state": "waiting|running|paused|stopped|failed|ended|done", "reason", "error",
               "rounds_done", "rounds", "round", "stage", "num_kept", "run_dir", "config", "spent_s": {stage: s},
               "shared": how many stages and evaluations came from another run}],
     "lines": [{"arm", "round" (0: the base), "num_seeds", "pass@1", "pass@1_interval", "pass@k": {"1": ...}, "change",
                "change_interval", "change_by_seed" (in the order of seeds; null where one is missing), "num_kept",
                "num_moved", "distinct_rate", "mean_tokens", "spread"}],
     "comparisons": [{"ours", "theirs", "round", "change", "interval", "level", "num_problems", "by_seed", "words"}],
     "num_comparisons", "correction": words,
     "shared": [{"stage", "what", "round", "ran_in": {"arm", "seed"}, "used_by": [{"arm", "seed"}, ...]}]}

`stage` of what was shared is sampling, training or evaluating; `what` says it in words. Changes are over the base.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from loop.config.settings import Suite
from loop.experiments.arithmetic import Head, comparisons, correction_in_words, lines_of
from loop.experiments.file import Experiment, ExperimentRun
from loop.reading.reader import Reader, reader
from loop.reading.rounds import duration_of
from loop.stages.evaluating import params_of
from loop.system.heartbeat import read_heartbeat
from loop.system.lock import holder
from store.db import utc_now
from store.errors import NoStore, StoreError
from store.records import Evaluation, Json, Round
from store.shared import EVENT

FAILURE = "failure.txt"  # beside a run's loop.toml: why it was given up, where its store cannot say


def experiment_facts(experiment: Experiment) -> Json:
    """See the module."""
    runs, heads, shared = [], {}, {}  # type: ignore[var-annotated]
    for run in experiment.runs:
        found, its_heads = run_facts(experiment, run)
        runs.append(found)
        heads.setdefault(run.arm, {})[run.seed] = its_heads
        for one in _taken(run):
            key = (one["key"], one["ran_in"]["arm"], one["ran_in"]["seed"])
            entry = shared.setdefault(key, {name: one[name] for name in ("stage", "what", "round", "ran_in")})
            entry.setdefault("used_by", []).append({"arm": run.arm, "seed": run.seed})
    suite = experiment.runs[0].config.suite(experiment.suite)
    pid = holder(experiment.directory)
    return {
        "name": experiment.name,
        "as_of": utc_now(),
        "directory": str(experiment.directory),
        "file": str(experiment.path),
        "state": _state([run["state"] for run in runs], pid is not None),
        "pid": pid,
        "arms": [{"name": arm.name, "overrides": dict(arm.overrides)} for arm in experiment.arms],
        "seeds": list(experiment.seeds),
        "rounds": experiment.rounds,
        "suite": suite.name,
        "decides": experiment.runs[0].config.decide.suite == suite.name,
        "decoding": decoding_of(suite),
        "runs": runs,
        "lines": [line for arm in experiment.arms for line in lines_of(arm.name, heads[arm.name], experiment.seeds)],
        "comparisons": comparisons(heads, experiment.pairs, experiment.seeds),
        "num_comparisons": len(experiment.pairs),
        "correction": correction_in_words(len(experiment.pairs)),
        "shared": sorted(shared.values(), key=lambda one: (one["round"], one["stage"], one["what"])),
    }


def decoding_of(suite: Suite) -> Json:
    """The decoding settings that stand beside every figure."""
    settings = {key: value for key, value in params_of(suite).model_dump(mode="json").items() if key != "stop"}
    return settings | {"num_samples": suite.num_samples}


def run_facts(experiment: Experiment, run: ExperimentRun) -> tuple[Json, list[Head]]:
    """A run's row, and its heads on the suite that figures come from."""
    found: Json = {
        "arm": run.arm,
        "seed": run.seed,
        "state": "waiting",
        "reason": None,
        "error": None,
        "rounds_done": 0,
        "rounds": experiment.rounds,
        "round": None,
        "stage": None,
        "num_kept": 0,
        "run_dir": str(run.run_dir),
        "config": str(run.path),
        "spent_s": {},
        "shared": 0,
    }
    heads: list[Head] = []
    pid = holder(run.run_dir)
    with _as_far_as_readable(found), reader(run.run_dir) as store:
        rounds, now, control = store.ledger.rounds(store.run.id), store.run, store.ledger.control(store.run.id)
        done = now.num_kept + now.num_rolled_back
        spent: Counter[str] = Counter()
        for one in rounds:
            spent.update(duration_of(store, one))
        last = rounds[-1] if rounds else None
        open_round = last if last and last.state not in ("kept", "rolled_back") and done < experiment.rounds else None
        found |= {
            "state": "stopped" if rounds else "waiting",
            "rounds_done": done,
            "num_kept": now.num_kept,
            "spent_s": {stage: round(seconds, 3) for stage, seconds in spent.items()},
            "round": open_round.number if open_round else None,
            "stage": open_round.stage if open_round else None,
            "shared": len(store.ledger.events.of(now.id, EVENT)),
        }
        if done >= experiment.rounds:
            found["state"] = "done"
        elif control.held_by == "failure" or now.state == "failed":
            found |= {"state": "failed", "error": control.hold_reason or now.reason}
        elif now.state == "idle" and now.reason and pid is None:
            found |= {"state": "ended", "reason": now.reason}
        elif pid is None and control.held_by:
            found |= {"state": "paused", "reason": control.hold_reason}
        heads = heads_of(store, run, experiment.suite)
    if pid is not None and found["state"] in ("waiting", "stopped"):
        beat = read_heartbeat(run.run_dir)
        mine = beat if beat and beat.pid == pid else None
        found["state"] = mine.state if mine and mine.state in ("paused",) else "running"
        found["reason"] = mine.reason if mine else None
        if mine and mine.part:
            found |= {"reason": mine.part}
    with contextlib.suppress(OSError):
        if found["state"] in ("waiting", "stopped"):
            words = (run.directory / FAILURE).read_text(encoding="utf-8").strip()
            found |= {"state": "failed", "error": words or "it ended without a word"}
    return found, heads


@contextlib.contextmanager
def _as_far_as_readable(found: Json) -> Iterator[None]:
    """A store that cannot be read is that run's failure, and hides no other run."""
    try:
        yield
    except NoStore:
        pass
    except StoreError as error:
        found |= {"state": "failed", "error": str(error)}


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
