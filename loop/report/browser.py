"""Which texts go into the page, so that a reader can follow a prompt through the rounds and see how each answer did.

Every checkpoint is asked the problems of a suite; a prompt for training is asked in some rounds. All problems keep their
counts; their texts are a selection of at most MOST_BYTES, the same for the same store: first one sample of those problems
whose outcome changed most, then of the others, then further samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from loop.reading.reader import Evaluations, Reader
from loop.report.page import script_json, visible
from loop.stages.sampling import Lineage, completion_id
from store.canonical import sha256_of
from store.records import Evaluation, Json, Problem, Prompt, Round

MOST_BYTES = 1_500_000  # of texts
SHARE_OF_TRAINING = 0.2
SHARE_OF_OTHER_SUITES = 0.2
MOST_CELLS = 200_000  # counts, over all problems and checkpoints
MOST_LETTERS, LEAST_LETTERS = 6000, 400  # of one text, at most; and at least where there are very many rounds
MOST_LETTERS_OF_DETAIL = 300
MOST_TRAINING_PROMPTS = 200
MOST_TRAINING_SAMPLES = 2  # of a prompt in a round
BYTES_OF_AN_ANSWER = 40  # beside its text

Answer = list[int | str | None]
Measured = list[tuple[int, Evaluation]]  # with the column of each


@dataclass(slots=True)
class _Texts:
    """Texts, each once, and how much room is left."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0

    def place(self, text: str, most: int = MOST_LETTERS) -> int:
        if len(text) > most:
            text = f"{text[:most]}\n[{len(text) - most:,} more characters]"
        if text not in self.places:
            self.places[text] = len(self.texts)
            self.texts.append(text)
            self.num_bytes += len(script_json(visible(text)))  # brackets and control characters take six bytes each
        return self.places[text]


def browser(store: Reader, rounds: Sequence[Round], evaluations: Evaluations) -> Json:
    """The selection: `columns` (the base and each round), `groups` of prompts, and the `texts` that they point into.

    A prompt has `counts`: [column, passed, samples], and `answers`: [column, sample, text, outcome, detail, tokens, ended].
    """
    texts = _Texts()
    groups: list[Json] = []
    others = store.suites[1:]
    shares = dict.fromkeys(others, SHARE_OF_OTHER_SUITES / max(1, len(others)))
    shares[store.decider] = 1 - SHARE_OF_TRAINING - sum(shares.values())
    for name in store.suites:
        groups += _suite(store, name, _measured(store, rounds, evaluations, name), texts, MOST_BYTES * shares[name])
    groups += _training(store, rounds, texts, MOST_BYTES * SHARE_OF_TRAINING)
    columns = ["base", *(f"round {round.number}" for round in rounds)]
    return {"columns": columns, "groups": groups, "texts": texts.texts, "num_bytes": texts.num_bytes}


def _measured(store: Reader, rounds: Sequence[Round], evaluations: Evaluations, name: str) -> dict[str, Measured]:
    """By split of a suite: the column and the evaluation of the base and of each candidate."""
    splits: dict[str, Measured] = {}
    for evaluation in evaluations.by_id.values():
        if (evaluation.checkpoint, evaluation.suite_name) == (store.run.base_checkpoint, name):
            splits.setdefault(evaluation.split, [(0, evaluation)])  # the first time that the base was measured
    for column, round in enumerate(rounds, 1):
        for (who, suite), id in evaluations.named(round).items():
            if who == "candidate" and suite.partition("/")[0] == name and (candidate := evaluations.by_id.get(id)):
                splits.setdefault(candidate.split, []).append((column, candidate))
    if not any(column for measured in splits.values() for column, _ in measured):  # an older store does not name them
        for column, round in enumerate(rounds, 1):
            if newest := evaluations.newest.get((round.candidate_checkpoint or "", name)):
                splits.setdefault(newest.split, []).append((column, newest))
    return splits


def _suite(store: Reader, name: str, splits: dict[str, Measured], texts: _Texts, room: float) -> Iterator[Json]:
    for split, measured in splits.items():
        counts: dict[str, list[list[int]]] = {}
        for column, evaluation in measured:
            for task_id, (passed, num) in store.corpus.evaluations.counts(evaluation.id).items():
                counts.setdefault(task_id, []).append([column, passed, num])
        suite = store.corpus.evaluations.problems(measured[0][1].suite_sha256)
        problems = [problem for problem in suite if problem.task_id in counts]
        shown = problems[: max(1, MOST_CELLS // len(measured))]
        answers = _answers(store, _by_change(shown, counts), measured, texts, texts.num_bytes + room / len(splits))
        prompts = []
        for problem in shown:
            id, written = problem.task_id, answers.get(problem.task_id, [])
            prompt = store.corpus.prompt(problem.prompt_id) if written else None
            prompts.append(_entry(id, prompt, written, texts, difficulty=problem.difficulty, counts=counts[id]))
        num_answers = sum(num for rows in counts.values() for _, _, num in rows)
        yield _group(name, prompts, len(problems), num_answers, split=None if split == "all" else split)


def _by_change(problems: Iterable[Problem], counts: dict[str, list[list[int]]]) -> list[Problem]:
    """First the problems whose pass rate moves most between checkpoints; equal ones in the suite's order."""

    def movement(problem: Problem) -> float:
        rates = [passed / num for _, passed, num in counts[problem.task_id]]
        mean = fmean(rates)
        return fmean((rate - mean) ** 2 for rate in rates)

    return sorted(problems, key=lambda problem: (-movement(problem), problem.position))


def _answers(
    store: Reader, problems: Sequence[Problem], measured: Measured, texts: _Texts, until: float
) -> dict[str, list[Answer]]:
    """Answers by problem until there is no room: the first sample of each, then the second of each, and so on."""
    answers: dict[str, list[Answer]] = {}
    columns: dict[str, list[int]] = {}  # rounds that made the same weights share an evaluation
    for column, evaluation in measured:
        columns.setdefault(evaluation.id, []).append(column)
    # the page shows a problem in all rounds or not at all, so the room for a text depends on their number
    most = max(LEAST_LETTERS, min(MOST_LETTERS, int((until - texts.num_bytes) / len(columns))))
    for sample in range(max(evaluation.num_samples for _, evaluation in measured)):
        for problem in problems:
            if texts.num_bytes > until:
                return answers
            for id, row in store.corpus.evaluations.answers(columns, problem.task_id, sample).items():
                detail = texts.place(row["detail"], MOST_LETTERS_OF_DETAIL) if row["detail"] else None
                text = texts.place(row["text"], most)
                facts = [text, row["verdict"], detail, row["num_tokens"], row["finish_reason"]]
                answers.setdefault(problem.task_id, []).extend([column, sample, *facts] for column in columns[id])
                texts.num_bytes += BYTES_OF_AN_ANSWER * len(columns[id])
    return answers


def _training(store: Reader, rounds: Sequence[Round], texts: _Texts, room: float) -> Iterator[Json]:
    """Prompts of the training corpus, first those that were asked in most rounds."""
    asked: dict[str, list[tuple[int, Lineage]]] = {}
    for column, round in enumerate(rounds, 1):
        stage = store.ledger.stage(store.run.id, round.number, "sampling")
        inputs = stage.input if stage else {}
        if "decoding" in inputs:
            settings = sha256_of(inputs["decoding"])
            lineage = Lineage(store.run.id, round.number, round.parent_checkpoint, None, settings)
            for id in dict.fromkeys(inputs["prompt_ids"]):
                asked.setdefault(id, []).append((column, lineage))
    until, prompts = texts.num_bytes + room, []
    for id in sorted(asked, key=lambda id: (-len(asked[id]), id))[:MOST_TRAINING_PROMPTS]:
        if texts.num_bytes > until:
            break
        ids = {
            completion_id(lineage, id, sample): (column, sample)
            for column, lineage in asked[id]
            for sample in range(MOST_TRAINING_SAMPLES)
        }
        answers: list[Answer] = []
        for id_of_row, row in store.corpus.written(ids).items():
            outcome = {1: "used", 0: f"left out: {row['reason']}", None: "not selected yet"}[row["used"]]
            words = f"{outcome}; {row['verdict']}" if row["verdict"] else outcome
            text = texts.place(row["text"])
            answers.append([*ids[id_of_row], text, words, None, row["num_tokens"], row["finish_reason"]])
        prompt = store.corpus.prompt(id)
        if prompt is None or not answers:
            continue
        texts.num_bytes += BYTES_OF_AN_ANSWER * len(answers)
        prompts.append(_entry(prompt.name, prompt, answers, texts))
    if prompts:
        yield _group("training prompts", prompts, len(asked), store.run.num_completions, training=True)


def _group(
    name: str, prompts: list[Json], num_prompts: int, num_answers: int, split: str | None = None, training: bool = False
) -> Json:
    num_shown = sum(len(prompt["answers"]) for prompt in prompts)
    sizes = {"num_prompts": num_prompts, "num_answers": num_answers, "num_shown": num_shown}
    return {"name": name, "split": split, "training": training, **sizes, "prompts": prompts}


def _entry(name: str, prompt: Prompt | None, answers: list[Answer], texts: _Texts, **more: Any) -> Json:
    return {
        "name": name,
        "statement": texts.place(prompt.statement) if prompt else None,
        "prefill": texts.place(prompt.content.get("prefill") or "") if prompt else None,
        "answers": sorted(answers, key=lambda answer: (answer[0], answer[1])),
        "difficulty": None,
        "counts": [],
        **more,
    }
