"""Samples in the form of lm-evaluation-harness (`samples_*.jsonl`), so that whoever reads its files reads ours.

A line for each problem, as `lm_eval --log_samples` writes it (lm_eval 0.4, loggers/evaluation_tracker.py and evaluator.py): all completions
under "resps" and, as they were graded, under "filtered_resps"; the mean of the verdicts under the name of the metric. "passed" is
ours: the verdicts one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loop.errors import UsageError
from loop.run.session import Session
from loop.stages.evaluating import Yardstick, params_of
from store.durable import written
from store.records import GradedVerdict, Json

METRIC = "pass@1"


def files_of(out: str | None, suites: Sequence[str]) -> list[Path | None]:
    """Where the samples of each suite go: nowhere, into one file, or into a directory with a file for each."""
    if out is None:
        return [None] * len(suites)
    place = Path(out)
    if len(suites) == 1 and not place.is_dir():
        return [place]
    if place.exists() and not place.is_dir():
        raise UsageError(f"--out {out}: is a file, and there are {len(suites)} suites; name a directory")
    place.mkdir(parents=True, exist_ok=True)
    return [place / f"samples_{Path(suite).name.replace('/', '_')}.jsonl" for suite in suites]


def write_samples(file: Path, session: Session, suite: Yardstick, evaluation_id: str) -> None:
    """Write what one model answered, in the suite's order."""
    verdicts = {each.completion_id: each for each in session.corpus.evaluations.verdicts(evaluation_id)}
    texts: dict[str, list[tuple[int, str, GradedVerdict]]] = {}
    for completion in session.corpus.completions(session.run_id, evaluation_id=evaluation_id):
        verdict = verdicts[completion.id]
        texts.setdefault(verdict.task_id, []).append((completion.sample_index, completion.text, verdict))
    with written(file) as out:
        for row in _rows(suite, texts):
            out.write(json.dumps(row).encode() + b"\n")


def _rows(suite: Yardstick, texts: dict[str, list[tuple[int, str, GradedVerdict]]]) -> Iterable[Json]:
    decoding: dict[str, Any] = params_of(suite.config).model_dump(mode="json")
    for number, problem in enumerate(suite.problems):
        if problem.task_id not in texts:
            continue
        samples = sorted(texts[problem.task_id], key=lambda each: each[0])
        passed = [int(verdict.verdict == "passed") for _, _, verdict in samples]
        content = suite.prompts[problem.prompt_id].content
        prompt = "\n".join(message["content"] for message in content["messages"]) + content["prefill"]
        doc = {"task_id": problem.task_id, "difficulty": problem.difficulty, "sha256": problem.sha256}
        answers = [text for _, text, _ in samples]
        yield {
            "doc_id": number,
            "doc": doc,
            "target": "",
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": decoding}},
            "resps": [answers],
            "filtered_resps": [answers],
            "filter": "none",
            "metrics": [METRIC],
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(prompt),
            "target_hash": _sha256(""),
            METRIC: sum(passed) / len(passed),
            "passed": passed,
        }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
