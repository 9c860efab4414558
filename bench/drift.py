"""Is a slow collapse found, and a healthy run left alone? The default `drift` gate on simulated runs.

`python bench/drift.py [--runs 1000] [--rounds 30]`, in the worlds of bench/collapse.py. A slow collapse gains a little in every
round while the different right answers in a problem's samples fall by 4%. A healthy run gains less with every kept round and
narrows as it does, or brings nothing. The candidates of a line that are not looked at are measured on half of the problems.

`--study build/study` reads the held-out samples of `bench/study.py`'s runs instead: would the gate stop one, and which power of the
wrong answers that are left would just explain the different right answers that each round has lost?
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.collapse import FADES, GAIN, NARROWS, SIZES, WORLDS, Floats, Kind, Model, World, onto_a_template
from bench.simulation import share, table
from loop.stages.deciding import parts_of, since_base
from policies.evidence import read_evidence
from policies.gates import Drift, Look
from store.corpus import Corpus
from store.db import open_database
from store.ledger import Ledger
from store.records import Json

FALL, SMALL_GAIN = 0.04, 0.08  # of the different right answers, and in log odds, a round
SOON = 5  # rounds
Parts = dict[str, Floats]
Course = Callable[
    [World, Model], tuple[Model, Model]
]  # the model of a round -> its candidate, and the model of the next round


def parts(world: World, model: Model) -> Parts:
    """One evaluation, each problem's part of the signals as `loop.stages.deciding` counts them."""
    ordered = numpy.sort(world.draw(model.chances), axis=1)
    first = numpy.ones_like(ordered, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    right = ordered < world.kind.num_right
    return {
        "distinct_correct_rate": (first & right).mean(axis=1),
        "solved": right.any(axis=1).astype(float),
        "pass@1": right.mean(axis=1),
    }


def refused(gate: Drift, ours: Parts, base: Parts, round: int, num_problems: int) -> list[str]:
    """The signals by which the gate refuses a round's candidate that is measured on the first so many problems."""
    compared = {}
    for name in ours:
        candidate, theirs = ours[name][:num_problems], base[name][:num_problems]
        ((first, both), (_, second)) = numpy.cov(candidate, theirs).tolist()
        compared[name] = {
            "candidate": float(candidate.mean()), "base": float(theirs.mean()), "candidate_variance": first,
            "base_variance": second, "covariance": both, "num_problems": num_problems,
        }  # fmt: skip
    return blamed(gate, compared, round)


def blamed(gate: Drift, compared: Json, round: int) -> list[str]:
    """The signals by which the gate refuses a round's candidate that compares with the base like this."""
    problem = {"task_id": "any", "candidate": [1], "head": [1]}  # the gate looks at `since_base` alone
    splits = {"select": {"suite": "any", "problems": [problem]}}
    seen = read_evidence({"round": round, "rounds_so_far": round - 1, "splits": splits, "since_base": compared})
    result = gate.evaluate(seen, Look("select"))
    return [words.split()[0] for words in result.reason.split("; ")] if result.verdict == "fail" else []


def of_study(where: Path) -> None:
    """The rounds of a study, on the problems that decide nothing."""
    rows: dict[str, tuple[list[float], list[int]]] = {}
    for path in sorted((where / "runs").glob("*/*/.loop/loop.db")):
        powers, stopped = rows.setdefault(path.parents[2].name, ([], []))
        with contextlib.closing(open_database(path, read_only=True)) as db:
            ledger, corpus = Ledger(db), Corpus(db)
            run = ledger.run()
            assert run is not None
            newest = {
                one.checkpoint: one
                for one in corpus.evaluations.all(run.id)
                if one.suite_name == "held-out" and one.metrics
            }

            def measured(checkpoint: str, run_id: str = run.id, corpus: Corpus = corpus, newest: Json = newest) -> Json:
                one = newest[checkpoint]
                verdicts = corpus.evaluations.verdicts(one.id)
                return dict(parts_of(verdicts, corpus.completions(run_id, evaluation_id=one.id), one.num_samples))

            base = measured(run.base_checkpoint)
            for round in ledger.rounds(run.id):
                compared = since_base(measured(round.candidate_checkpoint or ""), base)
                stopped.append(bool(blamed(Drift(), compared, round.number)))
                right, rate = (compared[name] for name in ("distinct_correct_rate", "pass@1"))
                left = (1 - rate["candidate"]) / (1 - rate["base"])
                if left < 0.99 and right["candidate"]:
                    powers.append(math.log(right["candidate"] / right["base"] / 0.98) / math.log(left))
    header = ["arm", "rounds", "stopped", "power that would explain the loss"]
    shown = [
        [arm, str(len(stopped)), str(sum(stopped)), f"{min(powers):+.2f} to {max(powers):+.2f}" if powers else ""]
        for arm, (powers, stopped) in rows.items()
    ]
    table("rounds of the study, on its held-out problems", header, shown)


def different_right(world: World, model: Model) -> float:
    """How many different right answers a problem's samples have, in truth."""
    right = model.chances[:, : world.kind.num_right]
    return float((1 - (1 - right) ** world.num_samples).sum(axis=1).mean())


def collapsing(world: World, model: Model) -> tuple[Model, Model]:
    """A small gain, and right answers turn into the likeliest one until so many different ones are lost."""
    gained, wanted = world.changed(model, SMALL_GAIN), (1 - FALL) * different_right(world, model)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        enough = different_right(world, onto_a_template(gained, middle)) <= wanted
        low, high = (low, middle) if enough else (middle, high)
    after = onto_a_template(gained, high)
    return after, after


def healthy() -> Course:
    """Half of the candidates gain and are kept; the others do nothing. One course a run."""
    num_gains = 0

    def course(world: World, model: Model) -> tuple[Model, Model]:
        nonlocal num_gains
        fade = FADES**num_gains if world.numbers.random() < 0.5 else 0.0
        candidate = world.changed(model, GAIN * fade, NARROWS * fade)
        num_gains += fade > 0
        return candidate, candidate if fade else model

    return course


def barren(world: World, model: Model) -> tuple[Model, Model]:
    """Churn alone."""
    return world.changed(model, 0.0), model


COURSES: dict[str, Callable[[], Course]] = {
    "slow collapse": lambda: collapsing,
    "healthy": healthy,
    "nothing gained": lambda: barren,
}


def runs(
    what: str, kind: Kind, size: tuple[int, int], half: bool, num_runs: int, num_rounds: int, seed: int
) -> list[str]:
    """A line of the table."""
    world, gate = World(kind, *size, seed), Drift()
    num_problems = size[0] // 2 if half else size[0]
    num_soon = num_ever = 0
    blamed = Counter[str]()
    rise = lost = 0.0
    for _ in range(num_runs):
        model, course = world.base(), COURSES[what]()
        base, begun = parts(world, model), different_right(world, model)
        for round in range(1, num_rounds + 1):
            candidate, model = course(world, model)
            ours = parts(world, candidate)
            if names := refused(gate, ours, base, round, num_problems):
                num_soon, num_ever = num_soon + (round <= SOON), num_ever + 1
                blamed.update(names)
                break
        rise += float(ours["pass@1"].mean() - base["pass@1"].mean()) / num_runs
        lost += (different_right(world, candidate) / begun - 1) / num_runs
    why = ", ".join(f"{name} {count / num_runs:.3f}" for name, count in blamed.most_common(2))
    shown = f"{num_problems} x {size[1]}"
    soon, ever = (share(numpy.arange(num_runs) < num) for num in (num_soon, num_ever))
    return [what, kind.name, shown, str(num_rounds), f"{rise:+.3f}", f"{lost:+.0%}", soon, ever, why]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30, help="of a run that does not collapse")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--study", type=Path, help="a directory that bench/study.py has filled: its rounds instead")
    asked = parser.parse_args()
    if asked.study:
        of_study(asked.study)
        return
    started = time.monotonic()
    rows = [
        runs(what, kind, size, half, asked.runs, SOON if what == "slow collapse" else asked.rounds, asked.seed)
        for what in COURSES
        for kind in WORLDS
        for size in SIZES
        for half in (False, True)
    ]
    header = [
        "run",
        "world",
        "problems x samples",
        "rounds",
        "pass@1",
        "different right",
        f"within {SOON}",
        "ever",
        "by, a run",
    ]
    title = f"runs that the gate stops; {asked.runs} runs each; pass@1 and different right answers: when stopped, or at the end"
    table(title, header, rows)
    print(f"\n({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
