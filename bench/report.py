"""How long the report of a large run takes to make, how large it is, and how fast it opens in headless Chromium.

`python bench/report.py [--where DIR] [--rounds 200] [--completions 1000000]`. The store takes some minutes and 2.5 GB the first
time, and stays: every round with its selections, losses, figures, locks and forks, two suites, four samples a problem.
Opening is timed from the navigation to the first frame in which the first chart and the browser of completions are drawn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.status import seconds  # noqa: E402
from bench.stores import (  # noqa: E402
    _COMPLETION,
    _VERDICT,
    NUM_PROBLEMS,
    _Filling,
    _hash,
    _task,
    _weights,
    write_configuration,
)
from loop.stages.sampling import Lineage, completion_id  # noqa: E402
from policies.diagnosis import Change, Level, PositionClass, Summary  # noqa: E402
from store.records import Evaluation, Round  # noqa: E402

SAMPLING = {"temperature": 1.2, "top_k": 20, "top_p": 1.0}  # as the stores have it
NUM_SAMPLES = 4
NUM_STEPS = 64
CANARY = '[[suites]]\nname = "canary"\nsource = "suite.jsonl"\ngreedy = true\n'
READY = """() => new Promise((done) => {
  const ready = () => document.querySelector('.panel svg') && document.querySelector('.answer')
    ? requestAnimationFrame(() => done(performance.now())) : requestAnimationFrame(ready);
  ready();
})"""


class _Whole(_Filling):
    """A store in which a report finds all that a real run leaves."""

    def _begin(self) -> None:
        self.chance = random.Random(7)
        self.evaluated: dict[tuple[str, str], str] = {}
        super()._begin()

    def _round(self, number: int) -> None:
        ledger, run_id = self.ledger, self.run.id
        round = ledger.begin_round(run_id)
        head = round.parent_checkpoint
        first = (number - 1) * self.num_completions // self.num_rounds
        last = number * self.num_completions // self.num_rounds
        self._complete(round, first, last)
        inputs = {"prompt_ids": self.prompt_ids, "decoding": SAMPLING, "adapted": None}
        attempt = ledger.begin_attempt(round, "sampling", inputs)
        num = last - first
        self.db.conn.executemany(
            "INSERT INTO selections (run_id, round, completion_id, position, used, reason) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (run_id, number, self._corpus_id(round, n - first), n - first, int(n % 10 > 0), None if n % 10 else f"repeats another ({n})")
                for n in range(first, last)
            ),
        )  # fmt: skip
        output = {"num_completions": num, "num_used": num * 9 // 10}
        round = ledger.finish_stage(round, "sampling", attempt, output, next_state="training", selections=[])
        attempt = ledger.begin_attempt(round, "training", {"checkpoint": head})
        losses = [1.2 - 0.4 * step / NUM_STEPS + self.chance.gauss(0, 0.05) for step in range(NUM_STEPS)]
        trained = {"losses": losses, "num_steps": NUM_STEPS, "num_completion_tokens": num * 64, "train_loss": 0.82, "held_out_loss": 0.9, "num_held_out": num // 20}  # fmt: skip
        candidate = _weights(number, run_id)
        round = ledger.finish_stage(round, "training", attempt, trained, next_state="evaluating", candidate=candidate)
        attempt = ledger.begin_attempt(round, "evaluating", {"head": head, "candidate": candidate.sha256})
        self._evaluate(candidate.sha256, number)
        sides = {"head": head, "candidate": candidate.sha256}
        names = {
            f"{who}/{suite}/select": self.evaluated[sha256, suite]
            for who, sha256 in sides.items()
            for suite in ("suite", "canary")
        }
        measured = {"opened": {"select": NUM_PROBLEMS}, "evaluations": names, "diagnosis": self._diagnosis()}
        measured["gains"] = self._gains(candidate.sha256, head)
        round = ledger.finish_stage(round, "evaluating", attempt, measured, next_state="deciding")
        ledger.begin_attempt(round, "deciding", {})
        ledger.decide(round, self._decision(round))

    def _gains(self, candidate: str, head: str) -> dict[str, Any]:
        """Over the head and over the base, as `loop.reading.gains` looks for them."""
        moved = self.chance.gauss(0, 0.03)
        gain = {"gain": moved, "interval": [moved - 0.05, moved + 0.05], "num_improved": 9, "num_worsened": 7}
        return {
            f"{self.evaluated[candidate, suite]}/{self.evaluated[side, suite]}/{NUM_PROBLEMS}/{NUM_PROBLEMS}": gain
            for suite in ("suite", "canary")
            for side in (head, self.run.base_checkpoint)
        }

    def _diagnosis(self) -> dict[str, Any]:
        def part(num: int) -> PositionClass:
            def level() -> Level:
                return Level(self.chance.uniform(0.2, 1), self.chance.uniform(0.5, 1), self.chance.uniform(0, 0.1))

            change = {
                name: Change(self.chance.gauss(0, 0.01), (-0.01, 0.01))
                for name in ("entropy", "top_probability", "tail_mass")
            }
            return PositionClass(num, level(), level(), level(), change, 0.01, 0.03, 0.02)

        return {"probe": "p" * 64, **asdict(Summary(32, 0.1, 1.0, part(4000), part(2500), part(400)))}

    def _evaluate(self, checkpoint: str, number: int) -> None:
        """Each checkpoint on both suites: answers of some two hundred letters, a third of them new in each round."""
        for name in ("suite", "canary"):
            id = _hash("evaluation", name, number)
            self.evaluated[checkpoint, name] = id
            num_samples = NUM_SAMPLES if name == "suite" else 1
            row = Evaluation(
                id, self.run.id, number, checkpoint, self.suite.sha256, name, self.decoding, num_samples, 7, split="select"
            )  # fmt: skip
            self.corpus.evaluations.begin(row)
            completions, verdicts, num_passed = [], [], 0
            for n in range(NUM_PROBLEMS):
                for sample in range(num_samples):
                    answer = int(_hash(name, n, sample, number // 3), 16)
                    passed = answer % 100 < 10 + 30 * number // self.num_rounds
                    num_passed += passed
                    one = _hash("evaluated", name, number, n, sample)
                    completions.append((*self._row(one, number, id, checkpoint, self.prompt_ids[n], sample, self.decoding)[:-2],
                                        f"    result = {answer % 10**9}\n" * 5 + f"    return {n if passed else answer % 1000}\n", "[1,2,3]"))  # fmt: skip
                    verdicts.append((id, _task(n), sample, one, "passed" if passed else "failed"))
            self.db.conn.executemany(_COMPLETION, completions)
            self.db.conn.executemany(_VERDICT.replace("(?, ?, 0, ?", "(?, ?, ?, ?"), verdicts)
            self.corpus.evaluations.finish(id, self._figures(num_passed / len(verdicts), len(verdicts), number))

    def _figures(self, rate: float, num: int, number: int) -> dict[str, Any]:
        levels = {
            level: {"num_problems": NUM_PROBLEMS // 2, "pass@1": rate + move, "pass@4": min(1.0, rate + move + 0.2)}
            for level, move in (("easy", 0.05), ("hard", -0.05))
        }
        return {
            "pass@1": rate,
            "pass@4": min(1.0, rate + 0.2),
            "pass@1_interval": [max(0.0, rate - 0.06), min(1.0, rate + 0.06)],
            "num_problems": NUM_PROBLEMS,
            "num_completions": num,
            "by_difficulty": levels,
            "verdicts": {"passed": round(rate * num), "failed": num - round(rate * num)},
            "mean_tokens": 64 + self.chance.gauss(0, 3),
            "truncation_rate": 0.02,
            "code_rate": 0.98,
            "distinct_rate": 0.8 - 0.3 * number / self.num_rounds,
            "distinct_correct_rate": rate * 0.7,
            "spread": 0.3,
            "mean_token_logprob": -0.4,
        }

    def _complete(self, round: Round, first: int, last: int) -> None:
        """As in the stores of the other benches, with `sample_index` counted within the round."""

        def rows() -> Iterator[tuple[Any, ...]]:
            for n in range(first, last):
                place = n - first
                prompt_id = self.prompt_ids[place % NUM_PROBLEMS]
                yield self._row(self._corpus_id(round, place), round.number, None, round.parent_checkpoint, prompt_id,
                                place // NUM_PROBLEMS, self.sampling)  # fmt: skip

        self.db.conn.executemany(_COMPLETION, rows())
        self.db.conn.execute(
            "UPDATE runs SET num_completions = num_completions + ?, completion_bytes = completion_bytes + 300 * ? WHERE id = ?",
            (last - first, last - first, self.run.id),
        )

    def _corpus_id(self, round: Round, place: int) -> str:
        lineage = Lineage(self.run.id, round.number, round.parent_checkpoint, None, self.sampling)
        return completion_id(lineage, self.prompt_ids[place % NUM_PROBLEMS], place // NUM_PROBLEMS)


def whole_store(where: Path, num_completions: int, num_rounds: int) -> Path:
    """The loop.toml of such a run."""
    directory = where / f"{num_completions}-completions-{num_rounds}-rounds-whole"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        more = "[storage]\nmin_free_bytes = 0\n" + CANARY
        _Whole(write_configuration(partial, num_rounds, more), num_completions, num_rounds).fill()
        partial.rename(directory)
    return directory / "loop.toml"


def opening_s(page: Path, runs: int) -> list[float]:
    """Seconds until the page is drawn, each in a new tab of one browser that has shown a page before; none without Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        return []
    took = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for turn in range(runs + 1):
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri(), wait_until="commit")
            drawn_ms = tab.evaluate(READY)
            if turn:
                took.append(drawn_ms / 1000)
            tab.close()
        chromium.close()
    return took


def main() -> None:
    """Measure and print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--where", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    config = whole_store(options.where, options.completions, options.rounds)
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
