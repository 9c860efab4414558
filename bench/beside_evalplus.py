"""Verdicts and speed beside EvalPlus' own `evaluate`, on its problems: `python bench/beside_evalplus.py FILE [--python P] [--mutants N]`.

FILE is HumanEvalPlus.jsonl or MbppPlus.jsonl (.gz too) as EvalPlus publishes it; P, a Python that has evalplus (`make .venv-harnesses/.installed`
makes one). Graded are the reference solution of each problem and N mutants of them: one operator, constant or comparison is another.
Both use the same number of workers on the same cores, one after the other, and both have computed the expected outputs before they are
timed, as they keep them from one grading to the next. Every program on which the two do not agree is printed.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.grading.extract import extract_code
from loop.grading.grader import Grader, Job
from loop.grading.suite import load_suite

ROOT = Path(__file__).resolve().parents[1]
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn,
}  # fmt: skip
Row = dict[str, Any]


class Mutation(ast.NodeTransformer):
    """Changes the place with this number; counts all places where something could be changed."""

    def __init__(self, place: int) -> None:
        self.place, self.count = place, 0

    def is_it(self) -> bool:
        self.count += 1
        return self.count == self.place

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if type(node) in SWAPPED and self.is_it():
            return SWAPPED[type(node)]()
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | str) and self.is_it():
            return ast.Constant(not node.value if isinstance(node.value, bool) else node.value + type(node.value)(1))
        return node


def mutants(row: Row, draw: random.Random) -> Iterator[str]:
    """Wrong solutions of a problem, in random order, without end where it has a place that can be changed."""
    program = row["prompt"] + row["canonical_solution"]
    counting = Mutation(0)
    counting.visit(ast.parse(program))
    places = list(range(1, counting.count + 1))
    draw.shuffle(places)
    for place in places:
        yield ast.unparse(ast.fix_missing_locations(Mutation(place).visit(ast.parse(program)))) + "\n"


def programs(rows: list[Row], num: int) -> list[tuple[str, str]]:
    """(task id, program): the reference of each problem and so many mutants in all, as equally many of each as there are."""
    draw = random.Random(1)
    left = {row["task_id"]: mutants(row, draw) for row in rows}
    wrong: list[tuple[str, str]] = []
    while left and len(wrong) < num:
        for task_id in list(left):
            try:
                wrong.append((task_id, next(left[task_id])))
            except StopIteration:
                del left[task_id]
    right = [(row["task_id"], row["prompt"] + row["canonical_solution"]) for row in rows]
    number = {row["task_id"]: place for place, row in enumerate(rows)}
    return sorted(
        right + wrong[:num], key=lambda each: number[each[0]]
    )  # as sample files have them, the reference first


def ours(file: Path, asked: list[tuple[str, str]], num_workers: int) -> tuple[list[str], float]:
    problems = {problem.task_id: problem for problem in load_suite(str(file)).problems}
    jobs = [
        Job(n, problems[task_id], extract_code(code, problems[task_id], False))
        for n, (task_id, code) in enumerate(asked)
    ]
    grader = Grader(num_workers=num_workers)
    for _ in grader.grade({job.problem.task_id: job for job in reversed(jobs)}.values()):  # expected outputs are kept
        pass
    began = time.perf_counter()
    verdicts = [verdict.verdict for _, verdict in grader.grade(jobs)]
    return verdicts, time.perf_counter() - began


def theirs(
    python: str, rows: list[Row], asked: list[tuple[str, str]], num_workers: int, place: Path
) -> tuple[list[str], float]:
    """Statuses by EvalPlus, in the order of `asked`, with the seconds of its own command line."""
    name = "mbpp" if asked[0][0].startswith("Mbpp") else "humaneval"
    problems = place / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    variables = {
        "HUMANEVAL_OVERRIDE_PATH": str(problems),
        "MBPP_OVERRIDE_PATH": str(problems),
        "XDG_CACHE_HOME": str(place),
    }
    words = ["-m", "evalplus.evaluate", name, "--parallel", str(num_workers), "--samples"]

    def evaluate(part: list[tuple[str, str]], samples: Path) -> tuple[dict[str, Any], float]:
        samples.write_text("".join(json.dumps({"task_id": id, "solution": code}) + "\n" for id, code in part))
        began = time.perf_counter()
        subprocess.run([python, *words, str(samples)], env=os.environ | variables, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        return json.loads(samples.with_name(f"{samples.stem}_eval_results.json").read_text())["eval"], seconds

    each = {id: (id, code) for id, code in reversed(asked)}
    evaluate(list(each.values()), place / "first.jsonl")  # expected outputs are kept
    graded, seconds = evaluate(asked, place / "samples.jsonl")
    seen: Counter[str] = Counter()
    statuses = []
    for id, _ in asked:
        sample = graded[id][seen[id]]
        statuses.append("pass" if sample["base_status"] == sample["plus_status"] == "pass" else "fail")
        seen[id] += 1
    return statuses, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--python", default=str(ROOT / ".venv-harnesses" / "bin" / "python"))
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    opened = gzip.open if asked.file.suffix == ".gz" else open
    with opened(asked.file, "rt") as lines:
        rows = [json.loads(line) for line in lines][: asked.problems]
    graded = programs(rows, asked.mutants)
    with tempfile.TemporaryDirectory() as directory:
        their, their_s = theirs(asked.python, rows, graded, asked.workers, Path(directory))
    our, our_s = ours(asked.file, graded, asked.workers)
    num = len(graded)
    print(f"{len(rows)} references and {num - len(rows)} mutants, {asked.workers} workers")
    print(f"evalplus {num / their_s:.1f} programs/s, ours {num / our_s:.1f}: {their_s / our_s:.2f} times as many")
    apart = [(n, a, b) for n, (a, b) in enumerate(zip(our, their, strict=True)) if (a == "passed") != (b == "pass")]
    print(f"here: {', '.join(f'{num:,} {word}' for word, num in Counter(our).most_common())}")
    print(f"the two differ on {len(apart)} programs")
    for n, a, b in apart:
        what = "reference" if n == 0 or graded[n - 1][0] != graded[n][0] else "mutant"
        print(f"--- {graded[n][0]} ({what}): here {a}, evalplus {b}\n{graded[n][1] if what == 'mutant' else ''}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
