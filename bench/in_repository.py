"""Candidates a second beside pytest run anew for each: `python bench/in_repository.py [SUITE] [--programs 1000]`.

SUITE is what `loopctl suite from-repo` wrote; without it, that of a small repository of the tests is made. The programs are own bodies and wrong ones of its problems, each with a comment of its own. The
other side does what a person would: a copy of the tree whose function is replaced, and `python -m pytest -x` with the tests that reach it,
as many at a time as there are workers. A sample of PYTEST programs is run so, since it takes long; verdicts that differ are printed.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.grading.grader import Grader, Job
from loop.grading.repositories import Environment, read_source, repository_at, with_lines
from loop.grading.suite import load_suite
from loop.mining.bodies import wrong_programs
from loop.mining.functions import Function, modules_of, roots_of
from loop.mining.suite import Wishes, make_suite


def programs(place: Path, num: int) -> list[tuple[Job, Function]]:
    """Own and wrong bodies of the problems in turn, samples of a problem together."""
    functions = {
        each.id: each
        for module in modules_of(place / "tree", roots_of(place / "tree"), 1)[0]
        for each in module.functions
    }
    problems = load_suite(str(place / "problems.jsonl")).problems
    each_has = -(-num // len(problems))
    jobs: list[tuple[Job, Function]] = []
    for problem in problems:
        texts = [problem.reference or "", *(text for _, text in wrong_programs(functions[problem.task_id]))]
        for number in range(each_has):
            text = f"{texts[number % len(texts)]}# {number}\n"
            jobs.append((Job(len(jobs), problem, text), functions[problem.task_id]))
    return jobs[:num]


def with_pytest(job: Job, function: Function, place: Path, environment: Environment) -> bool:
    """Whether pytest passes on a copy of the tree with this program's body in place of the function's."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        shutil.copytree(place / "tree", tree)
        file = tree / function.file
        file.write_text(
            with_lines(read_source(file), function.body_first, function.last, _body(job.code or "")), "utf-8"
        )
        options = [word.replace("/repo", str(tree)) for word in environment.options]
        path = os.pathsep.join(name.replace("/repo", str(tree)) for name in environment.path)
        command = [
            environment.python,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            *options,
            *job.problem.payload["tests"],
        ]
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=tree, env=variables, capture_output=True, check=False).returncode == 0


def _body(program: str) -> str:
    (node,) = (each for each in ast.parse(program).body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return ast.unparse(ast.Module(node.body, []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, nargs="?")
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument(
        "--pytest", type=int, default=60, help="so many of them are run with pytest, too, evenly chosen"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(asked, asked.suite or _small(Path(directory)))
    return 0


def _small(directory: Path) -> Path:
    from tests.support.awkward_repository import write_awkward

    wishes = Wishes(python=Path(sys.executable), train=0.0)
    make_suite(write_awkward(directory), directory / "suite", wishes, lambda _: None)
    return directory / "suite"


def measure(asked: argparse.Namespace, place: Path) -> None:
    """Run the programs both ways, and print both rates."""
    jobs = programs(place, asked.programs)
    environment = repository_at(str(place)).environment
    began = time.perf_counter()
    ours = dict(Grader(num_workers=asked.workers).grade(job for job, _ in jobs))
    our_s = time.perf_counter() - began
    sample = jobs[:: max(1, len(jobs) // asked.pytest)][: asked.pytest]
    began = time.perf_counter()
    with ThreadPoolExecutor(asked.workers) as threads:
        theirs = list(threads.map(lambda pair: with_pytest(*pair, place, environment), sample))
    their_s = time.perf_counter() - began
    rates = len(jobs) / our_s, len(sample) / their_s
    print(
        f"{len(jobs):,} programs of {len({job.problem.task_id for job, _ in jobs}):,} problems, {asked.workers} workers"
    )
    print(
        f"here {rates[0]:.1f} programs/s, pytest anew for each {rates[1]:.2f} ({len(sample)} of them): {rates[0] / rates[1]:.1f} times as many"
    )
    passed = sum(verdict.verdict == "passed" for verdict in ours.values())
    apart = [
        (job.problem.task_id, ours[job.key].verdict, word)
        for (job, _), word in zip(sample, theirs, strict=True)
        if (ours[job.key].verdict == "passed") != word
    ]
    print(f"{passed:,} passed; verdicts that differ from pytest's: {len(apart)} of {len(sample)}")
    for line in apart:
        print(f"--- {line}")


if __name__ == "__main__":
    raise SystemExit(main())
