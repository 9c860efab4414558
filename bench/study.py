"""A study of many rounds: data policies with and without gates, and two controls, on a tiny model that is trained on the spot.

`python bench/study.py [--quick] [--out DIR] [--jobs N]` makes the world, runs the experiment of
docs/studies/multi-round-tiny.toml with `loopctl experiment run`, and writes the figures beside that file and the tables into
docs/studies/multi-round-tiny.md (`--quick`: into DIR, in a size that shows nothing). It may be killed; what is finished is not
repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import LOOPCTL, ROOT, environment
from bench.study_model import Recipe, make_world
from loop.config.toml_text import toml_text
from loop.experiments.facts import experiment_facts
from loop.experiments.file import Experiment, ExperimentRun, load_experiment
from loop.reading.reader import reader
from loop.words import interval, rate, signed

STUDIES = ROOT / "docs" / "studies"
NAME = "multi-round-tiny"
WORLD = "../../build/study/world"  # as the study's own base configuration names it
TABLES = ("<!-- tables: written by bench/study.py -->", "<!-- end of tables -->")
QUICK = Recipe(num_steps=120, num_decide=40, num_held_out=20, num_prompts=128, hidden_size=64, num_layers=2)
Tables = dict[str, Any]
Line = Mapping[str, Any]


# Running


def write_experiment(where: Path, world: Path, base: Tables, experiment: Tables) -> Path:
    """The study's experiment in another directory, with these keys changed; its file. `world` lies in that directory."""
    tables = tomllib.loads((STUDIES / f"{NAME}-base.toml").read_text().replace(WORLD, world.name))
    for name, value in base.items():
        tables[name] = {**tables.get(name, {}), **value} if isinstance(value, dict) else value
    (where / "loop.toml").write_text(toml_text(tables))
    tables = tomllib.loads((STUDIES / f"{NAME}.toml").read_text())
    tables |= {"config": "loop.toml", "directory": "runs", **experiment}
    path = where / "experiment.toml"
    path.write_text(toml_text(tables))
    return path


def quick_experiment(where: Path, world: Path) -> Path:
    """Three arms, one seed, two rounds of next to nothing."""
    arms = tomllib.loads((STUDIES / f"{NAME}.toml").read_text())["arms"]
    gated, control = next(arm for arm in arms if arm["name"] == "gated"), arms[2]
    gated["collect"]["data"] = gated["collect"]["data"][:2]
    few = {"rounds": 2, "seeds": [1], "arms": [gated, control], "compare": [["gated-accumulate", "gated-replace"]]}
    base = {"prompts": {"per_round": 64}, "training": {"num_steps": 4}}
    return write_experiment(where, world, base, few)


def loopctl(*arguments: str) -> None:
    """Run it to its end; what it prints goes to stderr. SystemExit if it fails."""
    done = subprocess.run([*LOOPCTL, *arguments], env=environment(NO_COLOR="1"), stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(done.returncode)


def run(path: Path, jobs: int | None = None) -> None:
    """`loopctl experiment run`."""
    loopctl("experiment", "run", str(path), *(["--jobs", str(jobs)] if jobs else []))


# Reading


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a round's candidate."""

    action: str
    change: float  # pass@1 on the suite that no gate saw, candidate less head


def decisions(run: ExperimentRun, suite: str) -> list[Decided]:
    with reader(run.run_dir) as store:
        rates = {
            row.checkpoint: row.metrics["pass@1"]
            for row in store.corpus.evaluations.all(store.run.id)
            if row.suite_name == suite and row.metrics
        }
        rounds = {round.number: round for round in store.ledger.rounds(store.run.id)}
        decided = []
        for row in store.ledger.decisions(store.run.id):
            change = rates[rounds[row.round].candidate_checkpoint] - rates[row.head_before]
            decided.append(Decided(row.action, change))
        return decided


# Showing


def cells(line: Line, k: str) -> tuple[str, ...]:
    """A line of the table."""
    pass_at_1 = f"{rate(line['pass@1'])} {interval(line['pass@1_interval'])}"
    change, seeds = ("still the base", "") if line["round"] else ("", "")
    if line["num_moved"]:
        change = f"{signed(line['change'])} {interval(line['change_interval'], sign=True)}"
        seeds = spread([moved for moved in line["change_by_seed"] if moved is not None])
    kept = f"{line['num_kept']} of {line['num_seeds']}" if line["round"] else ""
    figures = rate(line["pass@k"][k] - line["pass@1"]), rate(line["distinct_rate"]), f"{line['mean_tokens']:.1f}"
    return (line["arm"], str(line["round"] or "base"), pass_at_1, change, seeds, kept, *figures)


def spread(changes: Sequence[float]) -> str:
    return f"{signed(min(changes))} to {signed(max(changes))}"


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in [header, *rows]
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])


def outcomes(arm: str, rounds: Sequence[Decided]) -> tuple[str, ...]:
    """A line of the table of decisions: each group's size, and the mean, lowest and highest of its held-out changes."""

    def shown(changes: Sequence[float]) -> str:
        if not changes:
            return "0"
        return f"{len(changes)}: {signed(fmean(changes))} ({spread(changes)})"

    by_action = [
        shown([round.change for round in rounds if round.action == action]) for action in ("keep", "carry", "rollback")
    ]
    return (arm, str(len(rounds)), *by_action)


def compared(pair: Mapping[str, Any]) -> tuple[str, ...]:
    """A comparison as a line of the table."""
    change = f"{signed(pair['change'])} {interval(pair['interval'], sign=True)}"
    return (pair["ours"], pair["theirs"], str(pair["round"]), change, spread(pair["by_seed"]), pair["words"])


def report(experiment: Experiment, where: Path) -> str:
    """Write the tables, the figures and the page into a directory; the tables in plain text."""
    facts = experiment_facts(experiment)
    k = max(facts.lines[0]["pass@k"], key=int)
    decided = [
        outcomes(arm.name, [row for run in experiment.of_arm(arm.name) for row in decisions(run, experiment.suite)])
        for arm in experiment.arms
        if "gated" in arm.name.split("-")
    ]
    columns = ("arm", "round", "pass@1 [95%]", "change over base [95%]", "seeds", "kept", f"pass@{k} - pass@1",
               "distinct", "tokens")  # fmt: skip
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (columns, [cells(line, k) for line in facts.lines]),
        (("arm", "less", "round", "difference [95% together]", "seeds", ""), [compared(c) for c in facts.comparisons]),
        (("arm", "rounds", "kept: held-out change over the head", "carried", "rolled back"), decided),
    ]
    tables = [table for table in tables if table[1]]
    text = "\n".join(plain(*table) for table in tables) + f"\n{facts.correction}\n"
    marks = "\n".join(markdown(*table) for table in tables) + f"\n{facts.correction}.\n"
    page = where / f"{NAME}.md"
    if where == STUDIES:
        before, begin, rest = page.read_text().partition(TABLES[0])
        marks = f"{before}{begin}\n\n{marks}\n" + "".join(rest.partition(TABLES[1])[1:])
    else:
        (where / f"{NAME}.txt").write_text(text)
    page.write_text(marks)
    for figure, name in (("pass1", "pass-at-1"), ("signals", "diversity")):
        loopctl("plot", "--experiment", str(experiment.path), "--figure", figure, "-o", str(where / f"{name}.svg"))
    loopctl("experiment", "report", str(experiment.path), "-o", str(where / f"{NAME}.html"))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "study", help="where --quick puts everything")
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it works; shows nothing")
    parser.add_argument("--jobs", type=int, help="runs side by side, instead of the file's")
    options = parser.parse_args()
    if options.out != parser.get_default("out") and not options.quick:
        parser.error("--out is for --quick: the study's own place is in docs/studies/multi-round-tiny.toml")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.0f} s  {text}", file=sys.stderr, flush=True)

    where = options.out / "quick" if options.quick else options.out
    world = make_world(where, QUICK if options.quick else Recipe(), say)
    link = where / "world"
    link.unlink(missing_ok=True)
    link.symlink_to(world.name)
    path = quick_experiment(where, world) if options.quick else STUDIES / f"{NAME}.toml"
    run(path, options.jobs)
    shown = where if options.quick else STUDIES
    print(report(load_experiment(path), shown))
    say(f"{NAME}.md and .html, pass-at-1.svg and diversity.svg are in {shown}")


if __name__ == "__main__":
    main()
