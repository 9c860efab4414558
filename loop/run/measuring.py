"""Measurements beside the rounds: one checkpoint twice (aa), at several temperatures (sweep), and the final split once.

They are evaluations like any other, stored as they come and continued after a kill, but under names of their own
("first-steps@aa1"), so that none of them ever counts as a figure of the run. None of them moves the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import stdev
from typing import Any, Literal

from loop.config.settings import Suite as SuiteConfig
from loop.errors import ConfigError, LoopError, UsageError
from loop.reading.as_json import as_json
from loop.reading.checkpoints import FINAL_BEGUN, FINAL_OPENED, checkpoint_named, final_result
from loop.reading.gains import gain_of
from loop.run.evaluation import SuitePart, evaluate
from loop.run.power import AA_MEASURED, PlannedLook, planned_looks, remedy, what_follows
from loop.run.session import Session
from loop.stages.evaluating import Yardstick, decoding_of, outcomes_of, signals_by_problem
from loop.stages.sampling import seed_of
from loop.words import round_name
from policies.gates import Collapse
from policies.noise import ROOM, SignalNoise, roomy_limits, signal_noise, variance_between, variance_within
from policies.statistics import paired_gain, pass_at_k
from store.ledger import Ledger
from store.records import Checkpoint, Evaluation, Event, Json, Problem, Run

FINAL = "final"
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
FLATTERED = (
    "the best of several temperatures is flattered: chance picked it, too; and the run's T_eval is frozen, so nothing in the "
    "run changes: a better one is for the next run to begin with"
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One finished evaluation with each problem's outcomes, by task."""

    evaluation: Evaluation
    outcomes: dict[str, list[int]]

    @property
    def figures(self) -> Json:
        metrics = self.evaluation.metrics or {}
        return {"pass@1": metrics["pass@1"], "pass@1_interval": metrics["pass@1_interval"]}

    def rates(self, k: int = 1) -> dict[str, Fraction]:
        """Each problem's success rate or pass@k."""
        counts = {task_id: (sum(results), len(results)) for task_id, results in self.outcomes.items()}
        if k == 1:
            return {task_id: Fraction(num_passed, num) for task_id, (num_passed, num) in counts.items()}
        return {task_id: Fraction(pass_at_k(num, num_passed, k)) for task_id, (num_passed, num) in counts.items()}


def _measure(session: Session, suite: Yardstick, row: Checkpoint, split: str, draw: str, **changed: Any) -> Measurement:
    """One checkpoint on all problems of a split. `changed`: settings of the suite; `draw` fixes the random numbers."""
    problems = _problems(suite, split)
    seed = seed_of(session.loaded.config.seed, suite.config.name, split, draw)
    variant = replace(suite, config=suite.config.model_copy(update=changed))
    last, open_round = session.ledger.last_round(session.run_id), session.ledger.open_round(session.run_id)
    number = open_round.number if open_round else (last.number if last else 0) + 1
    done = evaluate(session, number, row.sha256, variant, SuitePart(split, problems, seed), round_name(row.round))
    return Measurement(done, outcomes_of(session.corpus.evaluations.verdicts(done.id)))


def _problems(suite: Yardstick, split: str, at_least: int = 1) -> list[Problem]:
    """A split's problems. LoopError where they are too few to say anything."""
    problems = suite.of_split(split)
    if len(problems) < at_least:
        raise LoopError(
            f"split {split} of suite {suite.config.name!r} has {len(problems)} problems; it takes {at_least}"
        )
    return problems


def _paired(measured: Measurement, reference: Measurement) -> Json:
    """The gain in pass@1 over the reference on the same problems, with a two-sided 95% interval."""
    gain: Json = as_json(gain_of(measured.rates(), reference.rates()))
    return gain


def _where(session: Session, suite: Yardstick, split: str) -> Json:
    return {
        "run": session.run.name,
        "suite": suite.config.name,
        "split": split,
        "decoding": decoding_of(suite.config),
        "num_problems": len(suite.of_split(split)),
        "num_samples": suite.config.num_samples,
    }


# Twice the same


def may_aa(suite: SuiteConfig) -> None:
    """LoopError for a suite on which the second measurement would be the first again."""
    if suite.greedy:
        raise LoopError(
            f"suite {suite.name!r} decodes greedily: a second evaluation would be the first again, so there is no noise to measure"
        )


def aa(session: Session, row: Checkpoint) -> Json:
    """One checkpoint twice on the split that decides, with different random numbers; what follows for decisions.

    Recorded as an event, once for each result.
    """
    suite, split = session.decider, session.policy.split
    looks = planned_looks(session)
    metric = looks[0].gate.metric if looks else "pass@1"
    k = int(metric.removeprefix("pass@"))
    _problems(suite, split, at_least=2)
    names = [f"{suite.config.name}@aa{number}" for number in (1, 2)]
    first, second = (_measure(session, suite, row, split, name, name=name) for name in names)
    ids = [first.evaluation.id, second.evaluation.id]
    rates, again = first.rates(k), second.rates(k)
    tasks = sorted(rates)
    differences = [rates[task_id] - again[task_id] for task_id in tasks]
    difference = paired_gain(differences, 0.975)
    if k > 1:
        variance = variance_between(differences, suite.config.num_samples)
    else:
        variance = variance_within([first.outcomes[task_id] + second.outcomes[task_id] for task_id in tasks])
    signals = _signals(session, suite, tasks, ids)
    answer = _where(session, suite, split) | {
        "checkpoint": row.sha256,
        "metric": metric,
        "noise": {
            "rates": [float(sum(each.values()) / len(each)) for each in (rates, again)],
            "difference": difference.gain,
            "interval": [difference.lower, difference.upper],
            "sd": stdev(map(float, differences)),
        },
        "variance_within": variance,
        "looks": [_detectable(session, look, variance) for look in looks],
        "sizes": _sizes(looks[-1], variance) if looks else [],
        "signals": {name: {"value": noise.value, "sd": noise.sd} for name, noise in signals.items()},
        "collapse": _collapse(session, signals),
        "evaluations": ids,
    }
    session.ledger.events.append_news(session.run_id, AA_MEASURED, row.round, **answer)
    return answer | {"round": row.round}


def _detectable(session: Session, look: PlannedLook, variance: float) -> Json:
    """What one look of the improvement gate can see."""
    detects = look.detects(variance)
    return {
        "split": look.split,
        "level": look.level,
        "power": look.gate.power,
        "min_gain": look.gate.min_gain,
        "target_gain": look.gate.target,
        "num_problems": look.num_problems,
        "num_samples": look.num_samples,
        "smallest_detectable_gain": detects,
        "sees_target": detects <= look.wanted,
        "problems_needed": look.problems_needed(variance),
        "samples_needed": look.samples_needed(variance),
        "follows": None if detects <= look.wanted else what_follows(session, variance),
        "remedy": None if detects <= look.wanted else remedy(session, look, variance),
    }


def _sizes(look: PlannedLook, variance: float) -> list[Json]:
    """The smallest detectable gain by problems and samples: as configured, and two and four times as many."""
    return [
        {
            "num_problems": look.num_problems * problems,
            "num_samples": look.num_samples * samples,
            "smallest_detectable_gain": replace(
                look, num_problems=look.num_problems * problems, num_samples=look.num_samples * samples
            ).detects(variance),
        }
        for problems in (1, 2, 4)
        for samples in (1, 2, 4)
    ]  # fmt: skip


def _signals(session: Session, suite: Yardstick, tasks: Sequence[str], ids: Sequence[str]) -> dict[str, SignalNoise]:
    """The noise of the signals that an evaluation gives, by the names that gates know them by; from two evaluations."""
    corpus, most = session.corpus, max(suite.config.pass_at)
    signals, again = (
        signals_by_problem(corpus.evaluations.verdicts(id), corpus.completions(session.run_id, evaluation_id=id), most)
        for id in ids
    )
    return {
        name: signal_noise([signals[task][name] for task in tasks], [again[task][name] for task in tasks])
        for name in signals[tasks[0]]
    }


def _collapse(session: Session, signals: Mapping[str, SignalNoise]) -> Json:
    """A collapse gate whose limits noise does not reach, as a table of loop.toml."""
    gate = next((gate for gate in session.policy.gates if isinstance(gate, Collapse)), Collapse())
    limits = gate.limits | roomy_limits(gate.in_force, signals, ROOM)
    table: Json = {
        "type": gate.type,
        "limits": {name: limit.model_dump(exclude_none=True, exclude_defaults=True) for name, limit in limits.items()},
    }
    return table | ({"ignore": list(gate.ignore)} if gate.ignore else {})  # fmt: skip


# Temperatures


def may_sweep(suite: SuiteConfig, split: str) -> None:
    """UsageError for a split that cannot be swept."""
    if split == FINAL:
        raise UsageError("--split final: it can be opened once, by `loopctl final`; sweep another split")
    if not suite.splits.get(split):  # type: ignore[call-overload]
        splits = ", ".join(name for name, share in suite.splits.items() if share)
        raise UsageError(f"--split {split}: suite {suite.name!r} has no such split; its splits are {splits}")


def sweep(session: Session, rows: Sequence[Checkpoint], temperatures: Sequence[float], split: str) -> Json:
    """The base and other checkpoints at each temperature and at the run's own, with equal effort.

    Which part of a gain is decoding, and which is training: base at its best against base at T_eval, and each round at
    its best against the base at its best.
    """
    suite = session.decider
    base = checkpoint_named(session.ledger, session.run, "base")
    own = 0.0 if suite.config.greedy else suite.config.temperature
    wanted = sorted({*temperatures, own})

    def swept(row: Checkpoint) -> tuple[Checkpoint, dict[float, Measurement], float]:
        measured = {}
        for t in wanted:
            drawn: Json = {"greedy": False, "temperature": t} if t else {"greedy": True}
            measured[t] = _measure(session, suite, row, split, "sweep", name=f"{suite.config.name}@T{t:g}", **drawn)
        return row, measured, max(wanted, key=lambda t: (measured[t].figures["pass@1"], t == own))

    (_, bases, base_best), *others = map(swept, {row.sha256: row for row in (base, *rows)}.values())
    return _where(session, suite, split) | {
        "T_eval": own,
        "temperatures": wanted,
        "checkpoints": [
            {
                "checkpoint": row.sha256,
                "round": row.round,
                "best_temperature": best,
                "figures": [{"temperature": t, **measured[t].figures} for t in wanted],
            }
            for row, measured, best in ((base, bases, base_best), *others)
        ],
        "decoding_gain": {"temperature": base_best, **_paired(bases[base_best], bases[own])},
        "training_gains": [
            {"round": row.round, "temperature": best, "base_temperature": base_best, **_paired(measured[best], bases[base_best])}
            for row, measured, best in others
        ],
        "note": FLATTERED,
    }  # fmt: skip


# The final split


def may_open_final(suite: SuiteConfig, split: str, confirm: str | None) -> None:
    """ConfigError where there is no split that nobody has looked at."""
    if not suite.splits.get("final"):
        raise ConfigError(
            f"suite {suite.name!r} has no final split; a run begins with one: splits = {{ select = 0.6, final = 0.4 }}"
        )
    for key, used in (("split", split), ("confirm", confirm)):
        if used == FINAL:
            raise ConfigError(f"decide.{key} is final: rounds look at it, so there is nothing left to open once")


def may_be_final(ledger: Ledger, run: Run) -> Literal["new", "begun"]:
    """Whether opening the final split would begin now or continue. LoopError where the head is the base."""
    if ledger.events.last_of(run.id, FINAL_BEGUN) is not None:
        return "begun"
    if run.head_checkpoint == run.base_checkpoint:
        raise LoopError("the head is the base: there is no gain to measure, and the final split can be opened once")
    checkpoint_named(ledger, run, "head")
    checkpoint_named(ledger, run, "base")
    return "new"


def final(session: Session) -> Event:
    """Base and head on all of the final split, once in a run: the event that holds the result.

    What was begun is finished with the head that it was begun with, whatever the head is by now.
    """
    ledger, run, suite = session.ledger, session.run, session.decider
    if (result_event := final_result(ledger, run.id)) is not None:
        return result_event
    _problems(suite, FINAL)
    begun = ledger.events.last_of(run.id, FINAL_BEGUN)
    if begun is None:
        may_be_final(ledger, run)
        sides = {"head": run.head_checkpoint, "base": run.base_checkpoint}
        begun = ledger.events.append(run.id, FINAL_BEGUN, run.head_round, **sides)
    rows = {who: ledger.checkpoints.known(begun.data[who]) for who in ("base", "head")}
    name = f"{suite.config.name}@final"
    measured = {who: _measure(session, suite, row, FINAL, FINAL, name=name) for who, row in rows.items()}
    result = _where(session, suite, FINAL) | _paired(measured["head"], measured["base"])
    for who, row in rows.items():
        result[who] = {"checkpoint": row.sha256, "round": row.round, **measured[who].figures}
    result["evaluations"] = {who: measurement.evaluation.id for who, measurement in measured.items()}
    return ledger.events.append(run.id, FINAL_OPENED, begun.round, **result)
