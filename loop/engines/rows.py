"""The rows of a fine-tune on disk, where any number of processes map them into memory. Runs only inside a worker process.

A Python integer takes 28 bytes and more, and each process would hold all of them; here a token takes 4 bytes, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from loop.engines.base import TrainingRow, held_out
from loop.engines.batching import Pass
from loop.errors import EngineError

FEATURES = Features({"input_ids": List(Value("int32")), "num_prompt": Value("int32"), "length": Value("int64")})
IGNORED = -100  # the label of a token that is not learned
FILLER = 2  # tokens without a loss, for a process that has no row in a pass


class Rows:
    """Rows of prompt and completion, mapped from `file`. `lengths`: the tokens of each; `num_learned`: of all completions."""

    def __init__(self, file: Path) -> None:
        self.dataset = Dataset.from_file(str(file))
        columns = self.dataset.with_format("numpy")
        self.lengths: list[int] = list(map(int, columns["length"][:]))
        self.num_learned = sum(self.lengths) - int(sum(columns["num_prompt"][:]))
        self.columns = self.dataset.with_format("torch")

    def __len__(self) -> int:
        return len(self.lengths)

    def packed(self, passes: list[Pass], process: int) -> dict[str, Any]:
        """What a process takes in each pass, one pass after the other: three tensors (1, T), and the rows' lengths by pass.

        The first token of a row is not learned: nothing comes before it.
        """
        taken = [[self._row(index) for index in each[process]] or [self._filler()] for each in passes]
        rows = [row for each in taken for row in each]
        columns = zip(*rows, strict=True)
        tensors = {name: torch.cat(column)[None] for name, column in zip(("input_ids", "labels"), columns, strict=True)}
        tensors["position_ids"] = torch.cat([torch.arange(len(ids)) for ids, _ in rows])[None]
        return {**tensors, "row_lengths": [[len(ids) for ids, _ in each] for each in taken]}

    def _row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.columns[index]
        input_ids = row["input_ids"].long()
        labels = input_ids.clone()
        labels[: max(1, int(row["num_prompt"]))] = IGNORED
        return input_ids, labels

    def _filler(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(FILLER, dtype=torch.long), torch.full((FILLER,), IGNORED)


def write_rows(rows_file: Path, settings: dict[str, Any], directory: Path) -> tuple[Path, Path]:
    """Two files for `Rows`, to train on and held out, from TrainingRows as JSON lines. EngineError where no row fits."""

    def rows() -> Iterator[tuple[tuple[int, ...], int]]:
        with rows_file.open(encoding="utf-8") as lines:
            for line in lines:
                row = TrainingRow.model_validate_json(line)
                num_prompt = len(row.prompt_token_ids)
                if num_prompt < settings["max_tokens"] and row.completion_token_ids:
                    yield (row.prompt_token_ids + row.completion_token_ids)[: settings["max_tokens"]], num_prompt

    left_out = held_out((ids for ids, _ in rows()), settings)
    files = directory / "rows.arrow", directory / "held-out.arrow"
    trained, held = (ArrowWriter(features=FEATURES, path=str(file)) for file in files)
    for index, (ids, num_prompt) in enumerate(rows()):
        row = {"input_ids": ids, "num_prompt": num_prompt, "length": len(ids)}
        (held if index in left_out else trained).write(row)
    num_trained, _ = trained.finalize()
    held.finalize()
    if not num_trained:
        raise EngineError(f"no completion fits into training.max_tokens = {settings['max_tokens']}; raise it")
    return files
