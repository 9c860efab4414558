"""A study of many rounds: data policies with and without gates, on a tiny model that is trained on the spot.

`python bench/study.py [--out DIR] [--quick] [--jobs N]`. Every run is `loopctl run` in a directory of its own: killed, it
goes on where it was; finished, it is not repeated. Figures come from a suite that decides nothing. See
docs/studies/multi-round-tiny.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.study_model import Recipe, make_world  # noqa: E402
from policies.statistics import mean_interval, paired_gain  # noqa: E402
from store.corpus import Corpus  # noqa: E402
from store.db import open_database  # noqa: E402
from store.ledger import Ledger  # noqa: E402

TRUNCATED = "temperature = 1.1\ntop_k = 20\ntop_p = 0.9"
FIXED_POINT = "temperature = 1.0\ntop_p = 0.999999"  # loop.toml refuses 1.0 without truncation: this is as good as none
REPLACE, ACCUMULATE = '{ type = "replace" }', '{ type = "accumulate" }'
MIX = '{ type = "mix", earlier = 0.25, base = 0.25 }'
NUM_SAMPLES = 4  # per held-out problem


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of running rounds. `gates` is a key of GATES."""

    policy: str
    gates: str
    data: str = REPLACE
    sampling: str = TRUNCATED

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.policy}, {self.gates}"


ARMS = (
    Arm("replace", "gated"),
    Arm("accumulate", "gated", ACCUMULATE),
    Arm("mix", "gated", MIX),
    Arm("replace", "improvement alone"),
    Arm("replace", "ungated"),
    Arm("accumulate", "ungated", ACCUMULATE),
    Arm("mix", "ungated", MIX),
    Arm("T 1 untruncated", "ungated", sampling=FIXED_POINT),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large a study is."""

    recipe: Recipe
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    rounds: int = 4
    per_round: int = 512
    num_steps: int = 16


FULL = Size(Recipe(), ARMS)
QUICK = Size(
    Recipe(num_steps=120, num_decide=40, num_held_out=20, num_prompts=128, hidden_size=64, num_layers=2),
    (ARMS[0], ARMS[-1]), (1,), 2, per_round=64, num_steps=4,
)  # fmt: skip

CONFIG = """name = "study"
seed = {seed}
rounds = {rounds}

[model]
source = "{world}/model"
chat_template = false

[prompts]
source = "{world}/prompts.jsonl"
per_round = {per_round}

[sampling]
{sampling}
max_new_tokens = 48
stop = ["\\n```"]

[collect]
data = {data}

[training]
num_steps = {num_steps}  # the same for all arms, however many rows they have
batch_size = 32
micro_batch_size = 32
learning_rate = 5e-4
min_learning_rate = 5e-5
warmup_steps = 2
gradient_checkpointing = false

[decide]
suite = "decide"
{decide}

[diagnosis]
num_prompts = 16
max_new_tokens = 48

[[suites]]
name = "decide"
source = "{world}/decide.jsonl"
temperature = 1.0
max_new_tokens = 48
{suite}

[[suites]]  # decides nothing: all figures of the study come from it
name = "held-out"
source = "{world}/held-out.jsonl"
temperature = 1.0
num_samples = {num_samples}
pass_at = [1, {num_samples}]
max_new_tokens = 48

[grading]
num_workers = 1

[engine]
device = "cpu"
dtype = "float32"
num_threads = 1
batch_size = 256
"""
CONFIRMED = 'confirm = "confirm"'
SPLIT = "num_samples = 2\npass_at = [1, 2]\nsplits = { select = 0.7, confirm = 0.3 }"
GATES = {  # what goes into [decide], and into its suite
    "gated": (CONFIRMED, SPLIT),  # the default gates: improvement and collapse
    "improvement alone": (CONFIRMED + '\ngates = [{ type = "improvement" }]', SPLIT),
    # Every candidate is kept: it would have to lose nearly every problem. A few problems are enough to find that out.
    "collapse alone": ('gates = [{ type = "collapse" }]', "num_samples = 4\npass_at = [1, 4]"),
    "ungated": ('gates = [{ type = "no_regression", margin = 0.99, unclear = "pass" }]', "limit = 12"),
}


# Running


def configuration(where: Path, world: Path, arm: Arm, seed: int, size: Size) -> Path:
    """Write a run's loop.toml into a directory that is named by it; its path. Other settings make another run."""
    decide, suite = GATES[arm.gates]
    text = CONFIG.format(
        seed=seed, rounds=size.rounds, world=world.resolve(), per_round=size.per_round, sampling=arm.sampling,
        data=arm.data, num_steps=size.num_steps, decide=decide, suite=suite, num_samples=NUM_SAMPLES,
    )  # fmt: skip
    name = f"{arm.name.replace(', ', '-').replace(' ', '-')}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    path = where / "runs" / name / "loop.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(config: Path, rounds: int, say: Callable[[str], None]) -> None:
    """`loopctl run`, unless it is finished. SystemExit if it fails."""
    name = config.parent.name
    if num_decided(config) >= rounds:
        return
    started = time.monotonic()
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "loop.cli.main", "run", "--config", str(config)]
    with (config.parent / "output.txt").open("a") as output:
        done = subprocess.run(command, env=os.environ | more, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode or num_decided(config) < rounds:
        raise SystemExit(f"{name}: loopctl ended with {done.returncode}; see {config.parent / 'output.txt'}")
    say(f"{name}: {time.monotonic() - started:.0f} s")


def num_decided(config: Path) -> int:
    """How many rounds of a run are decided; 0 if it has not begun."""
    store = config.parent / ".loop" / "loop.db"
    if not store.exists():
        return 0
    with contextlib.closing(open_database(store, read_only=True)) as db:
        found = Ledger(db).run()
        return found.num_kept + found.num_rolled_back if found else 0


# Reading


@dataclass(frozen=True, slots=True)
class Head:
    """The head after a round (round 0: the base), on the held-out suite."""

    kept: bool
    rates: dict[str, Fraction]  # by problem
    spread: float
    distinct: float
    length: float


def heads(config: Path) -> list[Head]:
    """The heads of a finished run, the base first."""
    with contextlib.closing(open_database(config.parent / ".loop" / "loop.db", read_only=True)) as db:
        ledger, corpus = Ledger(db), Corpus(db)
        run = ledger.run()
        assert run is not None
        measured = {one.checkpoint: one for one in corpus.evaluations(run.id) if one.suite_name == "held-out"}
        current, found = run.base_checkpoint, []
        for state, candidate in [
            ("kept", current),
            *((r.state, r.candidate_checkpoint) for r in ledger.rounds(run.id)),
        ]:
            kept = state == "kept"
            current = candidate if kept and candidate else current
            one = measured[current]
            assert one.metrics is not None
            rates = {
                task: Fraction(round(rate * NUM_SAMPLES), NUM_SAMPLES)
                for task, rate in corpus.pass_rates(one.id).items()
            }
            figures = one.metrics
            spread = figures[f"pass@{NUM_SAMPLES}"] - figures["pass@1"]
            found.append(Head(kept, rates, spread, figures["distinct_rate"], figures["mean_tokens"]))
        return found


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a round's candidate."""

    kept: bool
    refused_by: frozenset[str]  # the gates that did not let it pass
    change: float  # held-out pass@1, candidate less head: no gate saw it


def decisions(config: Path) -> list[Decided]:
    """The rounds of a run."""
    with contextlib.closing(open_database(config.parent / ".loop" / "loop.db", read_only=True)) as db:
        ledger, corpus = Ledger(db), Corpus(db)
        run = ledger.run()
        assert run is not None
        rates = {e.checkpoint: e.metrics["pass@1"] for e in corpus.evaluations(run.id)
                 if e.suite_name == "held-out" and e.metrics}  # fmt: skip
        found = []
        for row, round_ in zip(ledger.decisions(run.id), ledger.rounds(run.id), strict=True):
            refused_by = frozenset(gate["type"] for gate in row.gates if gate["verdict"] != "pass")
            change = rates[str(round_.candidate_checkpoint)] - rates[round_.parent_checkpoint]
            found.append(Decided(row.verdict == "keep", refused_by, change))
        return found


@dataclass(frozen=True, slots=True)
class Line:
    """An arm after a round: the mean over its seeds."""

    arm: str
    round: int
    rate: float
    rate_interval: tuple[float, float]
    change: float
    change_interval: tuple[float, float]
    change_range: tuple[float, float]  # the lowest and the highest seed
    moved: bool  # whether any seed has left the base
    num_kept: int
    num_seeds: int
    spread: float
    distinct: float
    length: float


def over_seeds(per_seed: Sequence[dict[str, Fraction]]) -> dict[str, Fraction]:
    """Each problem's mean over the seeds."""
    return {task: sum((rates[task] for rates in per_seed), Fraction()) / len(per_seed) for task in per_seed[0]}


def differences(ours: Sequence[Head], theirs: Sequence[Head]) -> list[Fraction]:
    """Ours less theirs by problem, the mean over the seeds."""
    mine, others = over_seeds([one.rates for one in ours]), over_seeds([one.rates for one in theirs])
    return [mine[task] - others[task] for task in mine]


def interval(values: Sequence[Fraction]) -> tuple[float, float]:
    """Two-sided, 95%, over problems."""
    found = paired_gain(values, 0.975)
    return found.lower, found.upper


def lines_of(arm: str, runs: Sequence[Sequence[Head]]) -> list[Line]:
    """A line per round of an arm; `runs` holds the heads of each seed."""
    found = []
    for number in range(len(runs[0])):
        now, base = [run[number] for run in runs], [run[0] for run in runs]
        rates = [float(rate) for rate in over_seeds([one.rates for one in now]).values()]
        moved = differences(now, base)
        by_seed = [float(fmean(differences([one], [its]))) for one, its in zip(now, base, strict=True)]
        found.append(
            Line(
                arm=arm, round=number, rate=fmean(rates), rate_interval=mean_interval(rates),
                change=float(fmean(moved)), change_interval=interval(moved),
                change_range=(min(by_seed), max(by_seed)), moved=any(one.kept for run in runs for one in run[1 : number + 1]), num_kept=sum(one.kept for one in now), num_seeds=len(now),
                spread=fmean(one.spread for one in now), distinct=fmean(one.distinct for one in now),
                length=fmean(one.length for one in now),
            )
        )  # fmt: skip
    return found


# Showing

COLUMNS = ("arm", "round", "pass@1 [95%]", "change over base [95%]", "seeds", "kept", f"pass@{NUM_SAMPLES} - pass@1",
           "distinct", "tokens")  # fmt: skip


def cells(line: Line) -> tuple[str, ...]:
    """A line of the table."""
    rate = f"{line.rate:.3f} [{line.rate_interval[0]:.3f} {line.rate_interval[1]:.3f}]"
    change = f"{line.change:+.3f} [{line.change_interval[0]:+.3f} {line.change_interval[1]:+.3f}]"
    seeds = f"{line.change_range[0]:+.3f} to {line.change_range[1]:+.3f}"
    kept = f"{line.num_kept} of {line.num_seeds}"
    if not line.moved:
        change, seeds = ("still the base", "") if line.round else ("", "")
    kept = kept if line.round else ""
    figures = (f"{line.spread:.3f}", f"{line.distinct:.3f}", f"{line.length:.1f}")
    return (line.arm, str(line.round or "base"), rate, change, seeds, kept, *figures)


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


def comparisons(last: dict[str, list[Head]]) -> list[tuple[str, ...]]:
    """Pairs of arms after the last round, where they differ in one thing."""
    pairs = [
        ("accumulate, ungated", "replace, ungated"), ("mix, ungated", "replace, ungated"),
        ("replace, gated", "replace, ungated"), ("replace, improvement alone", "replace, ungated"),
        ("accumulate, gated", "accumulate, ungated"), ("mix, gated", "mix, ungated"),
        ("replace, ungated", "T 1 untruncated, ungated"),
    ]  # fmt: skip
    rows = []
    for ours, theirs in pairs:
        if ours in last and theirs in last:
            moved = differences(last[ours], last[theirs])
            low, high = interval(moved)
            by_seed = [float(fmean(differences([a], [b]))) for a, b in zip(last[ours], last[theirs], strict=True)]
            change, seeds = f"{float(fmean(moved)):+.3f} [{low:+.3f} {high:+.3f}]", (min(by_seed), max(by_seed))
            rows.append((ours, theirs, change, f"{seeds[0]:+.3f} to {seeds[1]:+.3f}"))
    return rows


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


def draw(lines: Sequence[Line], where: Path) -> None:
    """Two figures, as SVG that is the same for the same lines."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "study", "svg.fonttype": "none", "font.size": 9}
    colours = {"replace": "tab:blue", "accumulate": "tab:orange", "mix": "tab:green", "T 1 untruncated": "tab:grey"}
    styles = {"gated": "--", "improvement alone": ":", "ungated": "-"}
    sides = {"gated": 0, "improvement alone": 0, "ungated": 1}
    for name, words in (("pass-at-1", "pass@1 at T 1, 95% over problems"), ("diversity", "")):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=name == "pass-at-1", layout="constrained")
        for number, arm in enumerate(dict.fromkeys(line.arm for line in lines)):
            mine = [line for line in lines if line.arm == arm]
            policy, gates = arm.rsplit(", ", 1)
            look = {"color": colours[policy], "linestyle": styles[gates], "marker": "o", "ms": 3, "label": arm}
            rounds = [line.round + 0.03 * (number % 4) for line in mine]  # beside each other, so that all can be seen
            if name == "pass-at-1":
                spans = [[abs(line.rate - line.rate_interval[n]) for line in mine] for n in (0, 1)]
                axes[sides[gates]].errorbar(rounds, [line.rate for line in mine], yerr=spans, capsize=2, **look)
            else:
                axes[0].plot(rounds, [line.distinct for line in mine], **look)
                axes[1].plot(rounds, [line.spread for line in mine], **look)
        titles = ("gated", "ungated") if name == "pass-at-1" else ("distinct answers", f"pass@{NUM_SAMPLES} - pass@1")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title)
            axis.set_xlabel("round (0: base)")
            axis.set_xticks(sorted({line.round for line in lines}))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(words)
        if name == "pass-at-1":
            for axis in axes:
                axis.legend(fontsize=7)
        else:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
        figure.savefig(where / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def report(where: Path, found: dict[str, list[list[Head]]], decided: dict[str, list[Decided]]) -> str:
    """Write table.txt, table.md and the figures; the plain text."""
    lines = [line for arm, runs in found.items() for line in lines_of(arm, runs)]
    pairs = comparisons({arm: [run[-1] for run in runs] for arm, runs in found.items()})
    refused = [refusals(arm, rounds) for arm, rounds in decided.items() if not arm.endswith("ungated")]
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (COLUMNS, [cells(line) for line in lines]),
        (("after the last round", "less", "difference [95%]", "seeds"), pairs),
        (("arm", "rounds", "kept: held-out change", "no improvement shown", "refused by collapse alone"), refused),
    ]
    tables = [table for table in tables if table[1]]
    text = "\n".join(plain(*table) for table in tables)
    (where / "table.txt").write_text(text)
    (where / "table.md").write_text("\n".join(markdown(*table) for table in tables))
    draw(lines, where)
    return text


def main() -> None:
    """Train the base, run what is not finished, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "study")
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it works; shows nothing")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each")
    options = parser.parse_args()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    size = QUICK if options.quick else FULL
    where = options.out / "quick" if options.quick else options.out
    world = make_world(where, size.recipe, say)
    configs = {
        (arm.name, seed): configuration(where, world, arm, seed, size) for seed in size.seeds for arm in size.arms
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(run, config, size.rounds, say) for config in configs.values()]:
            done.result()
    found = {arm.name: [heads(configs[arm.name, seed]) for seed in size.seeds] for arm in size.arms}
    decided = {
        arm.name: [one for seed in size.seeds for one in decisions(configs[arm.name, seed])] for arm in size.arms
    }
    print("\n" + report(where, found, decided))
    say(f"table.txt, table.md, pass-at-1.svg and diversity.svg are in {where}")


if __name__ == "__main__":
    main()
