"""`loopctl corpus export` writes the corpus as conversations with their lineage, for other tools.

A row is {"messages": [user, assistant], ...lineage}. The assistant's turn is whole: the opening that was written for the
model (`prefill`) and what it wrote. Lone surrogates, which no other tool reads, become U+FFFD.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import click

from loop.cli.options import Group, print_answer, the_call
from loop.errors import LoopError, UsageError
from loop.system.files import opened
from loop.words import count, safe, warn
from store.records import Json

if TYPE_CHECKING:
    from loop.reading.reader import Reader
    from store.records import Completion, Prompt

BATCH = 1000
_TEXTS = [
    "id",
    "run",
    "checkpoint",
    "prompt_id",
    "prompt_name",
    "prompt_source",
    "prefill",
    "finish_reason",
    "left_out",
]
_TEXTS += ["decode_settings_id", "created_at", "sha256"]
_COUNTS = ("round", "sample_index", "seed", "num_tokens", "num_prompt_tokens", "top_k", "max_new_tokens")
_NUMBERS = ("temperature", "top_p", "repetition_penalty", "logprob_sum")


@click.group("corpus", cls=Group, examples=["loopctl corpus export --format jsonl corpus.jsonl"])
def corpus_command() -> None:
    """Export the corpus as JSON lines or Parquet."""


@corpus_command.command(
    "export",
    examples=[
        "loopctl corpus export --format parquet corpus.parquet",
        "loopctl corpus export --format jsonl - > corpus.jsonl",
    ],
)
@click.option("--format", "form", type=click.Choice(["jsonl", "parquet"]), required=True, help="The format of FILE.")
@click.argument("file", metavar="FILE")
def export_command(form: str, file: str) -> None:
    """Write every completion of the training corpus to FILE ("-": standard output), with its messages and lineage."""
    from loop.reading.reader import reader

    if file == "-" and form == "parquet" and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal; name a file")
    with reader(the_call().place().run_dir) as store, opened(file) as out:
        num_rows = (_write_jsonl if form == "jsonl" else _write_parquet)(_conversations(store), out)
    if file == "-":
        return
    answer = {"path": os.path.abspath(file), "format": form, "num_rows": num_rows}
    print_answer(answer, lambda _: warn(f"{count(num_rows, 'completion')} in {safe(file)}"))


def _conversations(store: Reader) -> Iterator[Json]:
    """Yield the rows, round by round, in order of arrival."""
    prompt_of = functools.cache(store.corpus.prompt)
    settings_of = functools.cache(store.corpus.decode_settings)
    for round in store.ledger.rounds(store.run.id):
        selected = {
            s.completion_id: (s.used, s.reason) for s in store.corpus.own_selections(store.run.id, round.number)
        }
        for completion in store.corpus.completions(store.run.id, round.number):
            settings = settings_of(completion.decode_settings_id)
            row = _row(completion, prompt_of(completion.prompt_id), settings or {})
            used, reason = selected.get(completion.id, (None, None))
            yield row | {"run": store.run.name, "used": used, "left_out": reason}


def _row(completion: Completion, prompt: Prompt | None, decoding: Json) -> Json:
    content: Json = prompt.content if prompt else {"messages": [], "prefill": ""}
    prefill = content["prefill"]
    asked, opened = (content["messages"], prefill) if content["messages"] else ([_turn("user", prefill)], "")
    turns = [_turn(turn["role"], turn["content"]) for turn in asked]
    return {
        "messages": [*turns, _turn("assistant", opened + completion.text)],
        "id": completion.id,
        "round": completion.round,
        "checkpoint": completion.checkpoint,
        "prompt_id": completion.prompt_id,
        "prompt_name": _whole(prompt.name) if prompt else None,
        "prompt_source": _whole(prompt.source) if prompt else None,
        "prefill": _whole(opened),
        "sample_index": completion.sample_index,
        "seed": completion.seed,
        "decode_settings_id": completion.decode_settings_id,
        **{key: decoding.get(key) for key in ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")},
        "num_tokens": completion.num_tokens,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "finish_reason": completion.finish_reason,
        "logprob_sum": completion.logprob_sum,
        "created_at": completion.created_at,
        "sha256": completion.sha256,
    }


def _turn(role: str, content: str) -> Json:
    return {"role": role, "content": _whole(content)}


def _whole(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _write_jsonl(rows: Iterator[Json], out: IO[bytes]) -> int:
    num_rows = 0
    for row in rows:
        out.write(json.dumps(row, ensure_ascii=out.isatty(), allow_nan=False).encode() + b"\n")
        num_rows += 1
    return num_rows


def _write_parquet(rows: Iterator[Json], out: IO[bytes]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LoopError("parquet needs pyarrow; `pip install pyarrow`, or use --format jsonl") from None
    schema = _schema(pyarrow)
    num_rows = 0
    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            num_rows += len(batch)
    return num_rows


def _schema(pyarrow: Any) -> Any:
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    return pyarrow.schema(
        [
            ("messages", pyarrow.list_(turn)),
            *((name, pyarrow.string()) for name in _TEXTS),
            *((name, pyarrow.int64()) for name in _COUNTS),
            *((name, pyarrow.float64()) for name in _NUMBERS),
            ("used", pyarrow.bool_()),
        ]
    )
