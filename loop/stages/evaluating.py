"""Evaluating: a checkpoint on a suite. Sampling with the suite's decoding settings, then grading, then figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from loop.config import Config, PromptFormat
from loop.config import Suite as SuiteConfig
from loop.engines.base import SamplingParams
from loop.errors import HarnessError
from loop.grading import problems as grading
from loop.grading.extract import extract_code
from loop.grading.grader import Grader, Job
from loop.prompts.templates import TEMPLATE_VERSION, answer, ask, content, opening
from policies.statistics import mean_interval, mean_pass_at_k
from store.canonical import sha256_of
from store.records import Completion, GradedVerdict, Json, Problem, Prompt, Suite, Verdict

STOPS: dict[PromptFormat, tuple[str, ...]] = {
    "chat-fence": ("\n```",),
    "chat": (),
    "completion": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```"),  # human-eval's, and a fence
}


def params_of(suite: SuiteConfig) -> SamplingParams:
    """A suite's decoding settings. A completion also ends where its prompt format says that the answer is over."""
    return SamplingParams(
        temperature=0.0 if suite.greedy else suite.temperature,
        top_k=suite.top_k,
        top_p=suite.top_p,
        repetition_penalty=suite.repetition_penalty,
        max_new_tokens=suite.max_new_tokens,
        stop=(*suite.stop, *STOPS[suite.prompt_format]),
    )


def decoding_in_words(suite: SuiteConfig) -> str:
    """The decoding settings as they stand beside every figure."""
    if suite.greedy:
        return "greedy"
    parts = [f"T {suite.temperature:g}"]
    parts += [f"top_k {suite.top_k}"] if suite.top_k else []
    parts += [f"top_p {suite.top_p:g}"] if suite.top_p < 1.0 else []
    parts += [f"repetition_penalty {suite.repetition_penalty:g}"] if suite.repetition_penalty != 1.0 else []
    return ", ".join(parts)


def yardstick(loaded: grading.Suite, suite: SuiteConfig, config: Config) -> tuple[Suite, list[Problem], list[Prompt]]:
    """A suite as the store has it: its problems with the prompts that they are asked by, under one content hash.

    Problems, prompt format and wording, extraction and splits are all in the hash: change one, and it is another suite.
    """
    prompts = [_prompt(problem, loaded, suite, config) for problem in loaded.problems]
    identity = sha256_of(
        [loaded.identity, suite.prompt_format, TEMPLATE_VERSION, dict(suite.splits), [prompt.id for prompt in prompts]]
    )
    rows = [
        Problem(
            suite_sha256=identity,
            task_id=problem.task_id,
            position=position,
            split=grading.split_of(problem.task_id, {str(name): share for name, share in suite.splits.items()}),
            difficulty=problem.difficulty,
            prompt_id=prompt.id,
            payload=problem.payload,
            sha256=sha256_of(problem.payload),
        )
        for position, (problem, prompt) in enumerate(zip(loaded.problems, prompts, strict=True))
    ]
    return Suite(identity, suite.name, loaded.source, suite.prompt_format, len(rows)), rows, prompts


def _prompt(problem: grading.Problem, loaded: grading.Suite, suite: SuiteConfig, config: Config) -> Prompt:
    model = config.model
    if suite.prompt_format == "completion":
        asked = content(problem.prompt_code or problem.statement, chat=False)
    else:
        opened = opening(problem.prompt_code) if suite.prompt_format == "chat-fence" else ""
        asked = content(
            ask(problem.statement, problem.prompt_code),
            chat=model.chat_template,
            opening=opened,
            system_prompt=model.system_prompt,
        )
    return Prompt(sha256_of(asked), loaded.source, problem.task_id, problem.statement, asked)


def grade(
    completions: Iterable[Completion],
    problems: dict[str, grading.Problem],
    asked: dict[str, Prompt],
    evaluation_id: str,
    grader: Grader,
) -> Iterator[Verdict]:
    """A verdict per completion, in order. `problems` and `asked` go by prompt id.

    HarnessError when grading itself is broken: nothing is known about the solution then, so nothing is said about it.
    """

    def jobs() -> Iterator[Job]:
        for completion in completions:
            problem = problems[completion.prompt_id]
            opened = asked[completion.prompt_id].content["opening"]
            text = answer(opened, completion.text)
            yield Job(completion, problem, extract_code(text, problem, prefilled_fence=bool(opened)))

    for completion, outcome in grader.grade(jobs()):
        assert isinstance(completion, Completion)
        task_id = problems[completion.prompt_id].task_id
        if outcome.verdict == "harness_error":
            raise HarnessError(
                f"grading {task_id} failed: {outcome.detail}; `loopctl doctor` says what the sandbox lacks"
            )
        yield Verdict(
            evaluation_id,
            task_id,
            completion.sample_index,
            completion.id,
            outcome.verdict,
            outcome.detail,
            outcome.duration_s,
            outcome.sandbox,
        )


def outcomes_of(verdicts: Iterable[GradedVerdict]) -> dict[str, list[int]]:
    """Per problem, 1 for each sample that passed and 0 for each that did not, in order of the samples."""
    outcomes: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        outcomes[verdict.task_id].append(int(verdict.verdict == "passed"))
    return dict(outcomes)


def figures(verdicts: Sequence[GradedVerdict], completions: Iterable[Completion], pass_at: Sequence[int]) -> Json:
    """pass@k with an interval for pass@1, per difficulty, and what the completions look like. Rates lie in [0, 1]."""
    outcomes = outcomes_of(verdicts)
    rates = [sum(results) / len(results) for results in outcomes.values()]
    low, high = mean_interval(rates, 0.95)
    words = Counter(verdict.verdict for verdict in verdicts)
    found: Json = {"num_problems": len(outcomes), "num_completions": len(verdicts)}
    found |= {f"pass@{k}": mean_pass_at_k(list(outcomes.values()), k) for k in sorted({1, *pass_at})}
    found["pass@1_interval"] = [low, high]
    first, most = found["pass@1"], found[f"pass@{max(pass_at)}"]
    # What further samples win of what the first one leaves: it need not shrink as pass@1 rises.
    found["spread"] = (most - first) / (1 - first) if max(pass_at) > 1 and first < 1 else None
    levels = {verdict.task_id: verdict.difficulty for verdict in verdicts}
    found["by_difficulty"] = {
        level: {
            "num_problems": len(group),
            **{f"pass@{k}": mean_pass_at_k(group, k) for k in sorted({1, *pass_at})},
        }
        for level in sorted({level for level in levels.values() if level is not None})
        if (group := [results for task_id, results in outcomes.items() if levels[task_id] == level])
    }
    found["verdicts"] = dict(sorted(words.items()))
    num_tokens = num_truncated = num_distinct = 0
    logprobs: list[float] = []
    texts: dict[str, set[str]] = defaultdict(set)
    for completion in completions:
        num_tokens += completion.num_tokens
        num_truncated += completion.finish_reason == "length"
        texts[completion.prompt_id].add(sha256_of(completion.text))
        logprobs += [completion.logprob_sum] if completion.logprob_sum is not None else []
    num_distinct = sum(map(len, texts.values()))
    count = max(1, len(verdicts))
    found["mean_tokens"] = num_tokens / count
    found["truncation_rate"] = num_truncated / count
    found["code_rate"] = 1 - words["no_code"] / count
    found["distinct_rate"] = num_distinct / count
    found["mean_token_logprob"] = sum(logprobs) / num_tokens if logprobs and num_tokens else None
    return found
