"""`loopctl grade`: completions graded against problems, both from files. Needs no store and no model."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from loop.cli.options import Call, shared_options, the_call
from loop.errors import ConfigError, LoopError
from loop.grading.formats import NAMES, problem_of
from loop.words import count, one_line, safe
from store.records import Json

if TYPE_CHECKING:
    from loop.grading.grader import Grader, Job, Verdict
    from loop.grading.problem import Problem

KS = (1, 5, 10, 100)


@click.command("grade")
@click.option(
    "--problems",
    "problems_file",
    required=True,
    metavar="FILE",
    help=f"{NAMES}, or the loop's own.",
)
@click.option(
    "--completions",
    "completions_file",
    required=True,
    metavar="FILE",
    help='{"task_id", "completion"} lines; "-": standard input.',
)
@shared_options
@click.pass_context
def grade_command(context: click.Context, problems_file: str, completions_file: str) -> None:
    """Grade completions: a line for each, in the order of FILE, then pass@k. Exit code 1 if any could not be graded.

    Uses the [grading] table of the configuration, where one exists.

    \b
    Examples:
      loopctl grade --problems problems.jsonl --completions completions.jsonl
    """
    problems = _problems(problems_file)
    rows = _completions(
        completions_file, problems
    )  # all at once, so that a mistake in the last line does not show after an hour
    grader = _grader(the_call())
    outcomes: dict[str, list[int]] = defaultdict(list)
    words: Counter[str] = Counter()
    for task_id, index, verdict in _graded(rows, problems, grader):
        words[verdict.verdict] += 1
        if verdict.verdict != "harness_error":
            outcomes[task_id].append(int(verdict.verdict == "passed"))
        line = {"task_id": task_id, "index": index, **verdict.model_dump(include={"verdict", "detail", "duration_s"})}
        if not isinstance(problem := problems[task_id], str):
            known = {"difficulty": problem.difficulty, "date": problem.date}
            line |= {key: value for key, value in known.items() if value is not None}
        if the_call().json:
            click.echo(json.dumps(line))
        else:
            click.echo(f"{verdict.verdict:13} {one_line(task_id, 40)} {index}  {safe(verdict.detail)}".rstrip())
    summary = _summary(outcomes, words, len(rows), grader.level)
    if the_call().json:
        click.echo(json.dumps({"summary": summary}))
    else:
        figures = ", ".join(f"{key} {summary[key]:.3f}" for key in summary if key.startswith("pass@"))
        passed = f"{summary['num_passed']:,} of {count(summary['num_completions'], 'completion')} passed"
        click.echo(f"{passed} on {count(summary['num_problems'], 'problem')}: {figures or 'nothing was graded'}")
    context.exit(1 if words["harness_error"] else 0)


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


def _graded(
    rows: list[tuple[str, str]], problems: dict[str, Problem | str], grader: Grader
) -> Iterator[tuple[str, int, Verdict]]:
    """A verdict per completion, in order; `index` counts the completions of one task from 0."""
    from loop.grading.extract import extract_code, why_none
    from loop.grading.grader import Job, Verdict

    seen: Counter[str] = Counter()
    places: list[tuple[str, int]] = []
    for task_id, _ in rows:
        places.append((task_id, seen[task_id]))
        seen[task_id] += 1

    def jobs() -> Iterator[Job]:
        for number, (task_id, text) in enumerate(rows):
            problem = problems[task_id]
            if not isinstance(problem, str):
                yield Job(number, problem, extract_code(text, problem, prefilled_fence=False), why_none(text))

    next_number = 0

    def untested(until: int) -> Iterator[tuple[str, int, Verdict]]:
        for number in range(next_number, until):
            reason = problems[places[number][0]]
            verdict = Verdict(verdict="harness_error", detail=str(reason), duration_s=0.0, sandbox=grader.level)
            yield (*places[number], verdict)

    for key, verdict in grader.grade(jobs()):
        assert isinstance(key, int)
        yield from untested(key)
        yield (*places[key], verdict)
        next_number = key + 1
    yield from untested(len(rows))


def _grader(call: Call) -> Grader:
    from loop.config.machine import Grading
    from loop.grading.grader import Grader

    grading = Grading()
    if call.config or os.environ.get("LOOP_CONFIG") or os.path.lexists("loop.toml"):
        grading = call.load().config.grading
    return Grader(grading.sandbox, grading.timeout_s, grading.memory_bytes, grading.num_workers, grading.timeout_factor)


def _problems(file: str) -> dict[str, Problem | str]:
    """The problems by id; for one without tests, the words that say so: nothing can be known of its completions."""
    from loop.grading.json_lines import sound
    from loop.grading.problem import UntestedProblem
    from loop.grading.suite import suite_rows

    try:
        _, place, rows = suite_rows(file, None)
        found: dict[str, Problem | str] = {}
        for line, row in sound(rows):
            where = f"{place}:{line}"
            try:
                problem = problem_of(row, where)
                task_id, entry = problem.task_id, problem
            except UntestedProblem:
                task_id, entry = str(row.get("task_id", row.get("question_id"))), "the problem has no tests"  # type: ignore[assignment]
            if task_id in found:
                raise LoopError(f"{where}: task_id {task_id!r} is there twice; each problem needs its own")
            found[task_id] = entry
    except ConfigError as error:
        raise LoopError(str(error)) from None
    if not found:
        raise LoopError(f"{file}: holds no problems; give one JSON object a line")
    return found


def _completions(file: str, problems: dict[str, Any]) -> list[tuple[str, str]]:
    """(task_id, completion) in the order of the file."""
    from loop.grading.json_lines import read_bytes, sound

    completions = []
    with click.open_file(file, "rb") as opened:
        content = opened.read()
    try:
        for number, row in sound(read_bytes(content, file)):
            where = f"{file}:{number}"
            if "task_id" not in row or not isinstance(row.get("completion"), str):
                raise LoopError(f"{where}: lacks task_id or the text completion; give both")
            task_id = str(row["task_id"])
            if task_id not in problems:
                raise LoopError(
                    f"{where}: no problem has the task_id {task_id[:80]!r}; remove the line, or add the problem"
                )
            completions.append((task_id, row["completion"]))
    except ConfigError as error:
        raise LoopError(str(error)) from None
    if not completions:
        raise LoopError(f"{file}: holds no completions; give one JSON object a line")
    return completions
