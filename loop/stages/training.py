"""Training: a fine-tune on the selected completions, into a directory that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, Kept, Trainer, TrainingResult, TrainingRow, earlier_dir
from loop.errors import LeftTraining
from store.canonical import compact_json
from store.checkpoints import commit_directory, remove_directory, temporary_directory
from store.hashing import Hasher
from store.records import Completion, Json


@dataclass(frozen=True, slots=True)
class Trained:
    """What the fine-tune gave: the directory, its manifest and the trainer's report; likewise of each earlier candidate."""

    path: Path
    manifest: Json
    result: TrainingResult
    earlier: tuple[Trained, ...] = ()


def rows_sha256(rows: Iterable[Completion]) -> tuple[int, str]:
    """How many rows, and one hash over all tokens that the fine-tune gets, in order."""
    num_rows, digest = 0, hashlib.sha256()
    for completion in rows:
        num_rows += 1
        digest.update(compact_json([completion.prompt_token_ids, completion.token_ids]).encode() + b"\n")
    return num_rows, digest.hexdigest()


def train(
    rows: Iterable[Completion],
    parent: CheckpointRef,
    settings: dict[str, Any],
    trainer: Trainer,
    final_dir: Path,
    kept: Kept | None = None,
    hasher: Hasher | None = None,
) -> Trained:
    """Fine-tune `parent` on the token ids that were sampled, from where `kept` says that it was left.

    Interrupted, it leaves temporary directories and what is kept. Killed between two commits it leaves whole candidates that
    the next attempt finds again or replaces. LeftTraining once it was asked to end, and has.
    """
    if kept is not None:
        kept.ask_to_end(False)
    scratch = temporary_directory(final_dir.parent)
    rows_file, weights = scratch / "rows.jsonl", scratch / "weights"
    weights.mkdir()
    with rows_file.open("w", encoding="utf-8") as file:
        for completion in rows:
            row = TrainingRow(prompt_token_ids=completion.prompt_token_ids, completion_token_ids=completion.token_ids)
            file.write(row.model_dump_json() + "\n")
    try:
        result = trainer.fit(rows_file, parent, settings, weights, kept)
    except LeftTraining:
        remove_directory(scratch)
        raise
    earlier = tuple(
        _committed(earlier_dir(weights, each.num_steps), earlier_dir(final_dir, each.num_steps), each, hasher)
        for each in result.earlier
    )
    last = _committed(weights, final_dir, result.model_copy(update={"earlier": ()}), hasher)
    rows_file.unlink()
    os.rmdir(scratch)
    return replace(last, earlier=earlier)


def _committed(weights: Path, final_dir: Path, result: TrainingResult, hasher: Hasher | None) -> Trained:
    return Trained(final_dir, commit_directory(weights, final_dir, hasher), result)
