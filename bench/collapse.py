"""Is a collapse caught, and a healthy run left alone? The default `collapse` gate on simulated runs, and on a study's real ones.

`python bench/collapse.py [--runs 2000] [--quick] [--study build/study]`. A problem has a distribution over different right
and wrong answers, in two worlds: *one-liners* have hardly more than one right answer (as in the study on a tiny model),
*programs* have dozens. A healthy candidate makes right answers likelier as strongly as the study's rounds did, and narrows
both kinds a little; or it does nothing. Each moves problems by themselves, too (churn). A collapsing one gains as well.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import study
from bench.simulation import CHURN, share, table
from bench.study_model import Recipe, make_world
from loop.experiments.file import load_experiment
from loop.stages.deciding import signals_of
from loop.stages.evaluating import figures
from policies.evidence import read_evidence
from policies.policy import Policy, build_policy
from store.corpus import Corpus
from store.db import open_database
from store.ledger import Ledger

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]
Signals = dict[str, float]

GATE = [{"type": "collapse"}]
NUM_PROBED = 32  # problems on which entropy is measured, without the noise of samples, as the loop's probe does
FADES = 0.72  # how much smaller each healthy gain is than the one before: in the study .10, .06, .02, .02
GAIN, NARROWS = 0.75, 0.25  # the first one: in log odds, and beyond 1 as the power that narrows right and wrong answers


@dataclass(frozen=True)
class Kind:
    """A kind of problem: Beta(*rates) for the chance to be right, and how many different answers it has."""

    name: str
    rates: tuple[float, float]
    num_right: int
    num_wrong: int
    unevenness: float


WORLDS = (Kind("one-liners", (3.5, 1.4), 2, 30, 2.0), Kind("programs", (0.35, 0.35), 40, 40, 1.0))


@dataclass(frozen=True)
class Model:
    """Log odds of being right, and how right and wrong answers are distributed; one row per problem."""

    log_odds: Floats
    churn: Floats
    right: Floats
    wrong: Floats
    length: float = 1.0

    @property
    def chances(self) -> Floats:
        """(problems, answers): right ones first."""
        solved = 1 / (1 + numpy.exp(-(self.log_odds + self.churn)))[:, None]
        return numpy.concatenate([solved * self.right, (1 - solved) * self.wrong], axis=1)


class World:
    """Problems, candidates and samples; all from one seed."""

    def __init__(self, kind: Kind, num_problems: int, num_samples: int, seed: int) -> None:
        self.kind, self.num_problems, self.num_samples = kind, num_problems, num_samples
        self.numbers = numpy.random.default_rng(seed)

    def base(self) -> Model:
        rates = numpy.clip(self.numbers.beta(*self.kind.rates, self.num_problems), 1e-6, 1 - 1e-6)
        answers = [
            numpy.exp(self.kind.unevenness * self.numbers.standard_normal((self.num_problems, num)))
            for num in (self.kind.num_right, self.kind.num_wrong)
        ]
        right, wrong = (each / each.sum(axis=1, keepdims=True) for each in answers)
        return Model(numpy.log(rates) - numpy.log1p(-rates), numpy.zeros(self.num_problems), right, wrong)

    def changed(self, model: Model, gain: float, narrows: float = 0.0) -> Model:
        """Right answers likelier by `gain` (log odds), both kinds narrower, and each problem moved by itself.

        Churn forgets half of what it was, so that it stays as large: heads do not drift from the base without end.
        """
        fresh = CHURN * math.sqrt(0.75) * self.numbers.standard_normal(self.num_problems)
        right, wrong = _power(model.right, 1 + narrows), _power(model.wrong, 1 + narrows)
        return replace(model, log_odds=model.log_odds + gain, churn=model.churn / 2 + fresh, right=right, wrong=wrong)

    def measured(self, model: Model) -> Signals:
        """One evaluation: the signals as `loop.stages.evaluating` counts them, with their errors."""
        chances = model.chances
        return self.signals(self.draw(chances), model.length) | {"entropy": _entropy(chances[:NUM_PROBED])}

    def draw(self, chances: Floats) -> Ints:
        """(problems, samples): which answer each sample is."""
        below = numpy.cumsum(chances, axis=1)[:, None, :-1]
        found: Ints = (self.numbers.random((*chances.shape[:1], self.num_samples, 1)) > below).sum(axis=2)
        return found

    def signals(self, drawn: Ints, length: float) -> Signals:
        """The signals of these samples. A sample's length varies by a third, a problem's by a half."""
        num = self.num_samples
        ordered = numpy.sort(drawn, axis=1)
        first = numpy.ones_like(ordered, dtype=bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        right = ordered < self.kind.num_right
        rates = right.mean(axis=1)
        left = 1 - rates.mean()
        lengths = 100 * length * numpy.exp(
            0.5 * self.numbers.standard_normal(len(drawn)) + 0.33 / math.sqrt(num) * self.numbers.standard_normal(len(drawn))
        )  # fmt: skip
        parts = {
            "mean_length": lengths,
            "distinct_solution_rate": first.mean(axis=1),
            "distinct_correct_rate": (first & right).mean(axis=1),
        }
        if left:
            parts["spread"] = (right.any(axis=1) - rates) / left
        errors = {f"{name}_error": float(each.std(ddof=1)) / math.sqrt(len(each)) for name, each in parts.items()}
        return (
            {name: float(each.mean()) for name, each in parts.items()}
            | errors
            | {"pass@1": float(rates.mean()), "num_samples": drawn.size}
        )


def _power(answers: Floats, power: float) -> Floats:
    raised = answers**power
    return raised / raised.sum(axis=1, keepdims=True)


def _entropy(chances: Floats) -> float:
    return float(-(chances * numpy.log(numpy.maximum(chances, 1e-12))).sum(axis=1).mean())


# What collapses do in one round, beside a small gain


def onto_modes(world: World, model: Model, power: float) -> Model:
    """Every answer by itself is raised to a power: the likeliest one of each problem wins, right or wrong."""
    chances = _power(model.chances, power)
    right, wrong = chances[:, : world.kind.num_right], chances[:, world.kind.num_right :]
    solved, failed = numpy.maximum(right.sum(axis=1), 1e-12), numpy.maximum(wrong.sum(axis=1), 1e-12)
    log_odds = numpy.log(solved) - numpy.log(failed)
    return Model(log_odds, 0 * log_odds, right / solved[:, None], wrong / failed[:, None], model.length)


def onto_a_template(model: Model, part: float) -> Model:
    """This part of all right answers becomes the likeliest right one."""
    likeliest = model.right == model.right.max(axis=1, keepdims=True)
    return replace(model, right=(1 - part) * model.right + part * likeliest)


SIZES = ((100, 2), (200, 4), (500, 10))  # problems, samples of each
COLLAPSES = {"onto modes": (1.5, 2.0, 3.0), "onto a template": (0.3, 0.5, 0.7), "shorter": (0.3, 0.4, 0.5)}


def collapsed(world: World, model: Model, how: str, speed: float) -> Model:
    """A round that gains and narrows."""
    gaining = world.changed(model, 0.4)
    match how:
        case "onto modes":
            return onto_modes(world, gaining, speed)
        case "onto a template":
            return onto_a_template(gaining, speed)
        case _:
            return replace(gaining, length=model.length * (1 - speed))


# Runs


def refused(policy: Policy, candidate: Signals, head: Signals, base: Signals) -> list[str]:
    """The signals by which the gate refuses a candidate; [] if it lets it pass."""
    problem = {"task_id": "any", "candidate": [1], "head": [1]}  # the gate looks at signals alone
    evidence = read_evidence({
        "round": 1, "rounds_so_far": 0, "splits": {"select": {"suite": "any", "problems": [problem]}},
        "signals": {"candidate": candidate, "head": head, "base": base},
    })  # fmt: skip
    (gate,) = policy.decide(evidence).gates
    return [words.split()[0] for words in gate.reason.split("; ")] if gate.verdict == "fail" else []


def false_alarms(kind: Kind, size: tuple[int, int], num_runs: int, num_rounds: int, seed: int) -> list[str]:
    """Half of the candidates gain, and become the head; the others do nothing, and do not."""
    world, policy = World(kind, *size, seed), build_policy(GATE, "select")
    stopped = numpy.zeros(num_runs, dtype=bool)
    blamed = Counter[str]()
    rise = 0.0
    for run in range(num_runs):
        model = world.base()
        base = head = world.measured(model)
        num_gains = 0
        for _ in range(num_rounds):
            fade = FADES**num_gains if world.numbers.random() < 0.5 else 0.0
            candidate = world.changed(model, GAIN * fade, NARROWS * fade)
            names = refused(policy, world.measured(candidate), head, base)
            blamed.update(names)
            stopped[run] |= bool(names)
            if fade:
                num_gains += 1
                model, head = candidate, world.measured(candidate)  # a head is measured afresh
        rise += (head["pass@1"] - base["pass@1"]) / num_runs
    return [kind.name, _shown(size), f"{rise:+.3f}", share(stopped), _blamed(blamed, num_runs)]


def caught(
    kind: Kind, size: tuple[int, int], how: str, speed: float, before: int, num_runs: int, seed: int
) -> list[str]:
    """Collapse begins at the base, or after `before` healthy rounds that gained."""
    world, policy = World(kind, *size, seed), build_policy(GATE, "select")
    seen = numpy.full(num_runs, 3)
    blamed = Counter[str]()
    rise = left = 0.0
    for run in range(num_runs):
        model = world.base()
        base = head = world.measured(model)
        for number in range(before):
            model = world.changed(model, GAIN * FADES**number, NARROWS * FADES**number)
            head = world.measured(model)
        rate, num_right = head["pass@1"], different_right(world, model)
        for number in (1, 2):
            model = collapsed(world, model, how, speed)
            if names := refused(policy, world.measured(model), head, base):
                blamed.update(names if seen[run] == 3 else [])
                seen[run] = min(seen[run], number)
            head = world.measured(model)
        rise += (head["pass@1"] - rate) / num_runs
        left += different_right(world, model) / num_right / num_runs
    begins = "base" if not before else f"round {before + 1}"
    row = [f"{how} {speed:g}", kind.name, _shown(size), begins, f"{rise:+.3f}", f"{left:.2f}"]
    return [*row, share(seen <= 1), share(seen <= 2), _blamed(blamed, num_runs)]


def different_right(world: World, model: Model) -> float:
    """How many different right answers 10 samples of a problem have, in truth."""
    return float((1 - (1 - model.chances[:, : world.kind.num_right]) ** 10).sum(axis=1).mean())


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _blamed(blamed: Counter[str], num_runs: int) -> str:
    return ", ".join(f"{name} {count / num_runs:.3f}" for name, count in blamed.most_common(3))


# A study's real runs


def of_study(where: Path) -> None:
    """The rounds of `bench/study.py`, all of which gained: which would the default gate refuse on the stored samples?"""
    policy = build_policy(GATE, "select")
    rows: dict[str, list[str]] = {}
    totals: dict[str, Counter[str]] = {}
    for config in sorted((where / "runs").glob("*/*/loop.toml")):
        arm = config.parent.parent.name
        counts = totals.setdefault(arm, Counter())
        with contextlib.closing(open_database(config.parent / ".loop" / "loop.db", read_only=True)) as db:
            ledger, corpus = Ledger(db), Corpus(db)
            run = ledger.run()
            assert run is not None
            sides: dict[tuple[str, str], Signals] = {}
            sizes = {suite["name"]: suite["num_samples"] for suite in run.config["suites"]}
            for one in corpus.evaluations.all(run.id):
                if (
                    one.metrics
                    and one.num_samples == sizes[one.suite_name]
                    and one.metrics["num_problems"] > 100
                    and one.split in ("select", "all")
                ):
                    pass_at = [int(key[5:]) for key in one.metrics if key.startswith("pass@") and key[5:].isdigit()]
                    found = figures(
                        corpus.evaluations.verdicts(one.id), corpus.completions(run.id, evaluation_id=one.id), pass_at
                    )
                    sides[one.suite_name, one.checkpoint] = signals_of(found)
            for round, decision in zip(ledger.rounds(run.id), ledger.decisions(run.id), strict=True):
                known = decision.evidence["signals"]
                checkpoints = [str(round.candidate_checkpoint), round.parent_checkpoint, run.base_checkpoint]
                others = ("candidate", "tip" if known.get("tip") else "head", "base")
                if not all("entropy" in known.get(who, {}) for who in others):
                    continue  # a line's last look, with more samples than the base had
                for suite in ("decide", "held-out"):
                    if all((suite, one) in sides for one in checkpoints):
                        ours, head, base = (
                            sides[suite, one] | {"entropy": known[who]["entropy"]}
                            for one, who in zip(checkpoints, others, strict=True)
                        )
                        names = refused(policy, ours, head, base)
                        counts[f"{suite} rounds"] += 1
                        counts[f"{suite} refused"] += bool(names)
                        counts.update(f"{suite}: {name}" for name in names)
    for arm, counts in totals.items():
        rows[arm] = [arm]
        for suite in ("decide", "held-out"):
            why = ", ".join(
                f"{key.split(': ')[1]} {num}" for key, num in counts.items() if key.startswith(f"{suite}: ")
            )
            num = counts[f"{suite} rounds"]
            rows[arm] += [f"{counts[f'{suite} refused']} of {num}" if num else "", why]
    header = ["arm", "decide: refused", "by", "held-out: refused", "by"]
    table("rounds of the study that the default gate refuses on their samples", header, list(rows.values()))


def of_planted(where: Path) -> None:
    """A tiny real model, trained for long on nothing but its likeliest answers: what the gate says in each round."""
    num_steps, world = 96, make_world(where, Recipe(), print)
    base = {"decide": {"suite": "decide", "gates": GATE}, "training": {"num_steps": num_steps}}
    suites = {"decide": {"limit": 300, "num_samples": 4, "pass_at": [1, 4]}}
    likeliest = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    arms = {"as in the study": {"name": "study"}, "its likeliest answer": {"name": "likeliest", "sampling": likeliest}}
    few = {"rounds": 2, "seeds": [1], "compare": [], "arms": [arm | {"suites": suites} for arm in arms.values()]}
    path = study.write_experiment(where, world, base, few)
    study.run(path)
    rows = []
    for name, arm in arms.items():
        for run in load_experiment(path).of_arm(str(arm["name"])):
            seed, config = run.seed, run.path
            with contextlib.closing(open_database(config.parent / ".loop" / "loop.db", read_only=True)) as db:
                ledger = Ledger(db)
                stored = ledger.run()
                assert stored is not None
                for row in ledger.decisions(stored.id):
                    ours, head = (row.evidence["signals"][who] for who in ("candidate", "head"))
                    pairs = [
                        f"{head[key]:.3f} -> {ours[key]:.3f}" for key in ("pass@1", "spread", "distinct_correct_rate")
                    ]
                    why = row.gates[0]["reason"] if row.verdict != "keep" else ""
                    rows.append([name, str(seed), str(row.round), *pairs, row.verdict, why])
    header = ["trained on", "seed", "round", "pass@1", "spread", "distinct right", "verdict", "because"]
    table(f"a tiny model after {num_steps} steps a round, under the default gate", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs: figures are rough")
    parser.add_argument("--study", type=Path, help="a directory that bench/study.py has filled: its rounds instead")
    parser.add_argument(
        "--plant", type=Path, help="a directory for runs of a tiny real model, some made to collapse, instead"
    )
    asked = parser.parse_args()
    if asked.plant:
        of_planted(asked.plant)
        return
    if asked.study:
        of_study(asked.study)
        return
    num_runs = asked.runs // 10 if asked.quick else asked.runs
    started = time.monotonic()
    rows = [false_alarms(kind, size, num_runs, asked.rounds, asked.seed) for kind in WORLDS for size in SIZES]
    title = f"healthy runs of {asked.rounds} rounds that are stopped at least once; {num_runs} runs; ± is one standard error"
    table(title, ["world", "problems x samples", "pass@1", "stopped", "by, a run"], rows)
    print(f"\n({time.monotonic() - started:.0f} s)", flush=True)
    rows = [
        caught(kind, size, how, speed, before, num_runs, asked.seed)
        for how, speeds in COLLAPSES.items()
        for kind in WORLDS
        if how != "onto a template" or kind.num_right > 2
        for speed in speeds
        for size in SIZES[1:]
        for before in (0, 3)
    ]
    title = (
        f"planted collapses that are caught; {num_runs} runs each; pass@1 and the different right answers in 10 samples "
        "that are left: after two rounds, if nothing stops it"
    )
    header = ["collapse", "world", "problems x samples", "begins", "pass@1", "left", "caught in round 1", "in 1 or 2"]
    table(title, [*header, "by, a run"], rows)
    print(f"\n({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
