"""How long the report of a large run takes to make, how large it is, and how fast it opens in headless Chromium.

`python bench/report.py [--where DIR] [--rounds 200] [--completions 1000000]`. The store takes some minutes and 2.5 GB the first
time, and stays: every round with its selections, losses, figures, locks and forks, two suites, four samples a problem.
Opening is timed from the navigation to the first frame in which the first chart and the browser of completions are drawn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import ROOT
from bench.status import seconds
from bench.stores import NUM_PROBLEMS, SAMPLING, Filling, evaluation, store
from policies.diagnosis import Change, Level, PositionClass, Summary
from store.records import Round
from tests.support.browser import PROGRAM, browser

NUM_STEPS = 64
READY = """() => new Promise((done) => {
  const ready = () => document.querySelector('.panel svg') && document.querySelector('.answer')
    ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(ready);
  ready();
})"""


class Whole(Filling):
    """A store in which a report finds all that a real run leaves."""

    suffix = "-whole"
    more = '[storage]\nmin_free_bytes = 0\n[[suites]]\nname = "canary"\nsource = "suite.jsonl"\ngreedy = true\n'
    suites: ClassVar[dict[str, int]] = {"suite": 4, "canary": 1}
    chance = random.Random(7)

    def _complete(self, round: Round, num: int) -> None:
        """Stores the selections, too: training saw all but each tenth."""
        super()._complete(round, num)
        self.db.conn.execute(
            "INSERT INTO selections (run_id, round, completion_id, position, used, reason) "
            "SELECT run_id, round, id, position, position % 10 > 0, "
            "CASE WHEN position % 10 = 0 THEN 'repeats another (' || position || ')' END FROM "
            "(SELECT *, ROW_NUMBER() OVER (ORDER BY arrival) - 1 AS position FROM completions "
            "WHERE run_id = ? AND round = ? AND evaluation_id IS NULL)",
            (self.run.id, round.number),
        )

    def _input(self, round: Round, stage: str) -> dict[str, Any]:
        return {
            "sampling": {"prompt_ids": self.prompt_ids, "decoding": SAMPLING, "adapted": None},
            "training": {"checkpoint": round.parent_checkpoint},
            "evaluating": {"head": round.parent_checkpoint, "candidate": round.candidate_checkpoint},
        }[stage]

    def _output(self, round: Round, stage: str, num_completions: int) -> dict[str, Any]:
        match stage:
            case "sampling":
                return {"num_completions": num_completions, "num_used": num_completions * 9 // 10}
            case "training":
                losses = [1.2 - 0.4 * step / NUM_STEPS + self.chance.gauss(0, 0.05) for step in range(NUM_STEPS)]
                return {"losses": losses, "num_steps": NUM_STEPS, "num_completion_tokens": num_completions * 64,
                        "train_loss": 0.82, "held_out_loss": 0.9, "num_held_out": num_completions // 20}  # fmt: skip
            case _:
                sides = {"head": round.parent_checkpoint, "candidate": round.candidate_checkpoint}
                names = {
                    f"{who}/{suite}/select": evaluation(suite, sha256)
                    for who, sha256 in sides.items()
                    for suite in self.suites
                }
                diagnosis, gains = self._diagnosis(), self._gains(sides["candidate"], sides["head"])
                opened = {"select": NUM_PROBLEMS}
                return {"opened": opened, "evaluations": names, "diagnosis": diagnosis, "gains": gains}

    def _gains(self, candidate: str, head: str) -> dict[str, Any]:
        """Over the head and over the base, as `loop.reading.gains` looks for them."""
        moved = self.chance.gauss(0, 0.03)
        gain = {"gain": moved, "interval": [moved - 0.05, moved + 0.05], "num_improved": 9, "num_worsened": 7}
        return {
            f"{evaluation(suite, candidate)}/{evaluation(suite, side)}/{NUM_PROBLEMS}/{NUM_PROBLEMS}": gain
            for suite in self.suites
            for side in (head, self.run.base_checkpoint)
        }

    def _diagnosis(self) -> dict[str, Any]:
        draw = self.chance.uniform

        def part(num: int) -> PositionClass:
            levels = [Level(draw(0.2, 1), draw(0.5, 1), draw(0, 0.1)) for _ in range(3)]
            measures = ("entropy", "top_probability", "tail_mass")
            change = {name: Change(self.chance.gauss(0, 0.01), (-0.01, 0.01)) for name in measures}
            return PositionClass(num, *levels, change, 0.01, 0.03, 0.02)

        return {"probe": "p" * 64, **asdict(Summary(32, 0.1, 1.0, part(4000), part(2500), part(400)))}

    def _figures(self, number: int, num_passed: int, num: int) -> dict[str, Any]:
        rate = num_passed / num
        levels = {
            level: {"num_problems": NUM_PROBLEMS // 2, "pass@1": rate + move, "pass@4": min(1.0, rate + move + 0.2)}
            for level, move in (("easy", 0.05), ("hard", -0.05))
        }
        return super()._figures(number, num_passed, num) | {
            "pass@4": min(1.0, rate + 0.2),
            "by_difficulty": levels,
            "mean_tokens": 64 + self.chance.gauss(0, 3),
            "truncation_rate": 0.02,
            "code_rate": 0.98,
            "distinct_rate": 0.8 - 0.3 * number / self.num_rounds,
            "distinct_correct_rate": rate * 0.7,
            "spread": 0.3,
            "mean_token_logprob": -0.4,
        }


def opening_s(page: Path, runs: int) -> list[float]:
    """Seconds until the page is drawn, each in a new tab of one browser that has shown a page before; none without Chromium."""
    if PROGRAM is None:
        return []
    took = []
    with browser() as chromium:
        for _ in range(runs + 1):
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri(), wait_until="commit")
            took.append(tab.evaluate(READY) / 1000)
            tab.close()
    return took[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    config = store(options.where, options.completions, options.rounds, Whole)
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "report.html"
        command = ("-m", "loop.cli.main", "report", "--config", str(config), "-o", str(page))
        made = [seconds(options.where, *command) for _ in range(2)]
        opened = opening_s(page, options.runs)
        print(f"{options.completions:,} completions, {options.rounds:,} rounds")
        print(f"  made in       {' and '.join(f'{wall:.1f} s ({cpu:.1f} s of CPU)' for wall, cpu in made)}")
        print(f"  size          {page.stat().st_size / 1e6:.2f} MB")
        if opened:
            print(f"  opens in      {statistics.median(opened):.2f} s (slowest of {options.runs}: {max(opened):.2f} s)")
        else:
            print("  opens in      not measured: no chromium here; `make browser` installs it")


if __name__ == "__main__":
    main()
