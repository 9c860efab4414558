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
from os import environ
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.study_model import Recipe, make_world  # noqa: E402
from loop.config.toml_text import toml_text  # noqa: E402
from loop.experiments.facts import experiment_facts  # noqa: E402
from loop.experiments.file import Experiment, ExperimentRun, load_experiment  # noqa: E402
from loop.reading.reader import reader  # noqa: E402

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
    command = [sys.executable, "-m", "loop.cli.main", *arguments]
    environment = environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def run(path: Path, jobs: int | None = None) -> None:
    """`loopctl experiment run`."""
    loopctl("experiment", "run", str(path), *(["--jobs", str(jobs)] if jobs else []))


# Reading


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a round's candidate."""

    kept: bool
    refused_by: frozenset[str]  # the gates that did not let it pass
    change: float  # pass@1 on the suite that no gate saw, candidate less head


def decisions(run: ExperimentRun, suite: str) -> list[Decided]:
    """The rounds of a run."""
    with reader(run.run_dir) as found:
        rates = {
            one.checkpoint: one.metrics["pass@1"]
            for one in found.corpus.evaluations.all(found.run.id)
            if one.suite_name == suite and one.metrics
        }
        rounds = {one.number: one for one in found.ledger.rounds(found.run.id)}
        decided = []
        for row in found.ledger.decisions(found.run.id):
            refused_by = frozenset(gate["type"] for gate in row.gates if gate["verdict"] != "pass")
            of = rounds[row.round]
            change = rates[str(of.candidate_checkpoint)] - rates[of.parent_checkpoint]
            decided.append(Decided(row.verdict == "keep", refused_by, change))
        return decided


# Showing


def cells(line: Line, k: str) -> tuple[str, ...]:
    """A line of the table."""
    low, high = line["pass@1_interval"]
    rate = f"{line['pass@1']:.3f} [{low:.3f} {high:.3f}]"
    change, seeds = ("still the base", "") if line["round"] else ("", "")
    if line["num_moved"]:
        ends = line["change_interval"]
        changes = [one for one in line["change_by_seed"] if one is not None]
        change = f"{line['change']:+.3f} [{ends[0]:+.3f} {ends[1]:+.3f}]"
        seeds = f"{min(changes):+.3f} to {max(changes):+.3f}"
    kept = f"{line['num_kept']} of {line['num_seeds']}" if line["round"] else ""
    spread = line["pass@k"][k] - line["pass@1"]
    figures = (f"{spread:.3f}", f"{line['distinct_rate']:.3f}", f"{line['mean_tokens']:.1f}")
    return (line["arm"], str(line["round"] or "base"), rate, change, seeds, kept, *figures)


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


def refusals(arm: str, found: Sequence[Decided]) -> tuple[str, ...]:
    """A line of the table of decisions: each group's size, and the mean, lowest and highest of its held-out changes."""
    groups = ([one for one in found if one.kept],
              [one for one in found if not one.kept and "improvement" in one.refused_by],
              [one for one in found if not one.kept and one.refused_by == {"collapse"}])  # fmt: skip

    def shown(group: Sequence[Decided]) -> str:
        changes = [one.change for one in group]
        if not changes:
            return "0"
        return f"{len(group)}: {fmean(changes):+.3f} ({min(changes):+.3f} to {max(changes):+.3f})"

    return (arm, str(len(found)), *map(shown, groups))


def compared(one: Mapping[str, Any]) -> tuple[str, ...]:
    """A comparison as a line of the table."""
    low, high = one["interval"]
    change = f"{one['change']:+.3f} [{low:+.3f} {high:+.3f}]"
    seeds = f"{min(one['by_seed']):+.3f} to {max(one['by_seed']):+.3f}"
    return (one["ours"], one["theirs"], str(one["round"]), change, seeds, one["words"])


def draw(path: Path, where: Path) -> None:
    """The figures and the page, by the product itself."""
    for figure, name in (("pass1", "pass-at-1"), ("signals", "diversity")):
        loopctl("plot", "--experiment", str(path), "--figure", figure, "-o", str(where / f"{name}.svg"))
    loopctl("experiment", "report", str(path), "-o", str(where / f"{NAME}.html"))


def report(experiment: Experiment, where: Path) -> str:
    """Write the tables and the figures into a directory; the tables in plain text."""
    facts = experiment_facts(experiment)
    k = max(facts.lines[0]["pass@k"], key=int)
    refused = [
        refusals(arm.name, [one for run in experiment.of_arm(arm.name) for one in decisions(run, experiment.suite)])
        for arm in experiment.arms
        if arm.name.startswith("gated")
    ]
    columns = ("arm", "round", "pass@1 [95%]", "change over base [95%]", "seeds", "kept", f"pass@{k} - pass@1",
               "distinct", "tokens")  # fmt: skip
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (columns, [cells(line, k) for line in facts.lines]),
        (("arm", "less", "round", "difference [95% together]", "seeds", ""), [compared(c) for c in facts.comparisons]),
        (("arm", "rounds", "kept: held-out change", "no improvement shown", "refused by collapse alone"), refused),
    ]
    tables = [table for table in tables if table[1]]
    text = "\n".join(plain(*table) for table in tables) + f"\n{facts.correction}\n"
    marks = "\n".join(markdown(*table) for table in tables) + f"\n{facts.correction}.\n"
    page = where / f"{NAME}.md"
    before, after = ("", "")
    if where == STUDIES:
        before, _, rest = page.read_text().partition(TABLES[0])
        before, after = before + TABLES[0] + "\n\n", "\n" + TABLES[1] + rest.partition(TABLES[1])[2]
    page.write_text(before + marks + after)
    if where != STUDIES:
        (where / f"{NAME}.txt").write_text(text)
    draw(experiment.path, where)
    return text


def main() -> None:
    """Make the world, run what is not finished, report."""
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
