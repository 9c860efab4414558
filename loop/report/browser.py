"""Which texts go into the page: prompts that can be followed through the rounds, with what became of each answer.

Problems of a suite are asked of every checkpoint; prompts for training are asked in some rounds. All problems keep their
counts; their texts are a selection of at most MOST_BYTES, the same for the same store: first one sample of those problems
whose outcome changed most, then of the others, then further samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

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
            self.num_bytes += len(
                script_json(visible(text))
            )  # a text of brackets or control characters takes six times its length
        return self.places[text]


def browser(found: Reader, rounds: Sequence[Round], evaluations: Evaluations) -> Json:
    """The selection: `columns` (the base and each round), `groups` of prompts, and the `texts` that they point into.

    A prompt has `counts`: [column, passed, samples], and `answers`: [column, sample, text, outcome, detail, tokens, ended].
    """
    texts = _Texts()
    groups: list[Json] = []
    for name in found.suites:
        share = SHARE_OF_OTHER_SUITES / max(1, len(found.suites) - 1)
        room = 1 - SHARE_OF_TRAINING - (SHARE_OF_OTHER_SUITES if len(found.suites) > 1 else 0)
        measured = _measured(found, rounds, evaluations, name)
        groups += _suite(found, name, measured, texts, MOST_BYTES * (room if name == found.decider else share))
    trained = _training(found, rounds, texts, MOST_BYTES * SHARE_OF_TRAINING)
    return {
        "columns": ["base", *(f"round {round.number}" for round in rounds)],
        "groups": [*groups, *([trained] if trained else [])],
        "texts": texts.texts,
        "num_bytes": texts.num_bytes,
    }


def _measured(
    found: Reader, rounds: Sequence[Round], evaluations: Evaluations, name: str
) -> dict[str, list[tuple[int, Evaluation]]]:
    """By split of a suite: the column and the evaluation of the base and of each candidate."""
    splits: dict[str, list[tuple[int, Evaluation]]] = {}
    base = [
        one
        for one in evaluations.by_id.values()
        if (one.checkpoint, one.suite_name) == (found.run.base_checkpoint, name)
    ]
    for one in base:
        if one.split not in splits:  # the first time that it was measured
            splits[one.split] = [(0, one)]
    for column, round in enumerate(rounds, 1):
        ids = [id for (who, suite), id in evaluations.named(round).items()
               if who == "candidate" and (suite == name or suite.startswith(f"{name}/"))]  # fmt: skip
        for id in ids:
            if found_one := evaluations.by_id.get(id):
                splits.setdefault(found_one.split, []).append((column, found_one))
    if not any(column for kept in splits.values() for column, _ in kept):  # a store that does not name them
        for column, round in enumerate(rounds, 1):
            if newest := evaluations.newest.get((round.candidate_checkpoint or "", name)):
                splits.setdefault(newest.split, []).append((column, newest))
    return splits


def _suite(
    found: Reader, name: str, splits: dict[str, list[tuple[int, Evaluation]]], texts: _Texts, room: float
) -> Iterator[Json]:
    for split, measured in splits.items():
        counts: dict[str, list[list[int]]] = {}
        for column, one in measured:
            for task_id, (passed, num) in found.corpus.counts(one.id).items():
                counts.setdefault(task_id, []).append([column, passed, num])
        problems = [one for one in found.corpus.problems(measured[0][1].suite_sha256) if one.task_id in counts]
        shown = problems[: max(1, MOST_CELLS // len(measured))]
        answers = _answers(found, _by_change(shown, counts), measured, texts, texts.num_bytes + room / len(splits))
        yield {
            "name": name,
            "split": None if split == "all" else split,
            "training": False,
            "num_prompts": len(problems),
            "num_answers": sum(num for rows in counts.values() for _, _, num in rows),
            "num_shown": sum(map(len, answers.values())),
            "prompts": [
                _entry(
                    one.task_id,
                    one.difficulty,
                    found.corpus.prompt(one.prompt_id) if one.task_id in answers else None,
                    counts[one.task_id],
                    answers.get(one.task_id, []),
                    texts,
                )
                for one in shown
            ],
        }


def _by_change(problems: Iterable[Problem], counts: dict[str, list[list[int]]]) -> list[Problem]:
    """Those whose share of right answers moves most between checkpoints first; equals in the suite's order."""

    def movement(problem: Problem) -> float:
        rates = [passed / num for _, passed, num in counts[problem.task_id]]
        mean = fmean(rates)
        return -fmean((rate - mean) ** 2 for rate in rates)

    return sorted(problems, key=lambda problem: (movement(problem), problem.position))


def _answers(
    found: Reader, problems: Sequence[Problem], measured: list[tuple[int, Evaluation]], texts: _Texts, until: float
) -> dict[str, list[Answer]]:
    """Answers by problem until there is no room: the first sample of each, then the second of each, and so on."""
    answers: dict[str, list[Answer]] = {}
    columns: dict[str, list[int]] = {}  # rounds that made the same weights have one evaluation
    for column, one in measured:
        columns.setdefault(one.id, []).append(column)
    # a problem is followed through all rounds or not at all, so what it may take depends on how many there are
    most = max(LEAST_LETTERS, min(MOST_LETTERS, int((until - texts.num_bytes) / len(columns))))
    for sample in range(max(one.num_samples for _, one in measured)):
        for problem in problems:
            if texts.num_bytes > until:
                return answers
            for id, row in found.corpus.answers(columns, problem.task_id, sample).items():
                detail = texts.place(row["detail"], MOST_LETTERS_OF_DETAIL) if row["detail"] else None
                known = [
                    texts.place(row["text"], most),
                    row["verdict"],
                    detail,
                    row["num_tokens"],
                    row["finish_reason"],
                ]
                answers.setdefault(problem.task_id, []).extend([column, sample, *known] for column in columns[id])
                texts.num_bytes += BYTES_OF_AN_ANSWER * len(columns[id])
    return answers


def _training(found: Reader, rounds: Sequence[Round], texts: _Texts, room: float) -> Json | None:
    """Prompts of the training corpus, those first that were asked in most rounds."""
    asked: dict[str, list[tuple[int, Lineage]]] = {}
    for column, round in enumerate(rounds, 1):
        stage = found.ledger.stage(found.run.id, round.number, "sampling")
        inputs = stage.input if stage else {}
        if "decoding" in inputs:
            settings = sha256_of(inputs["decoding"])
            lineage = Lineage(found.run.id, round.number, round.parent_checkpoint, None, settings)
            for id in dict.fromkeys(inputs["prompt_ids"]):
                asked.setdefault(id, []).append((column, lineage))
    until, prompts, num_shown = texts.num_bytes + room, [], 0
    for id in sorted(asked, key=lambda id: (-len(asked[id]), id))[:MOST_TRAINING_PROMPTS]:
        if texts.num_bytes > until:
            break
        ids = {
            completion_id(lineage, id, sample): (column, sample)
            for column, lineage in asked[id]
            for sample in range(MOST_TRAINING_SAMPLES)
        }
        answers: list[Answer] = []
        for one, row in found.corpus.written(ids).items():
            outcome = {1: "used", 0: f"left out: {row['reason']}", None: "not selected yet"}[row["used"]]
            words = f"{outcome}; {row['verdict']}" if row["verdict"] else outcome
            answers.append([*ids[one], texts.place(row["text"]), words, None, row["num_tokens"], row["finish_reason"]])
        prompt = found.corpus.prompt(id)
        if prompt is None or not answers:
            continue
        texts.num_bytes += BYTES_OF_AN_ANSWER * len(answers)
        num_shown += len(answers)
        prompts.append(_entry(prompt.name, None, prompt, [], answers, texts))
    if not prompts:
        return None
    return {
        "name": "training prompts",
        "split": None,
        "training": True,
        "num_prompts": len(asked),
        "num_answers": found.run.num_completions,
        "num_shown": num_shown,
        "prompts": prompts,
    }


def _entry(
    name: str,
    difficulty: str | None,
    asked: Prompt | None,
    counts: list[list[int]],
    answers: list[Answer],
    texts: _Texts,
) -> Json:
    return {
        "name": name,
        "difficulty": difficulty,
        "statement": texts.place(asked.statement) if asked else None,
        "prefill": texts.place(asked.content.get("prefill") or "") if asked else None,
        "counts": counts,
        "answers": sorted(answers, key=lambda answer: (answer[0], answer[1])),
    }
