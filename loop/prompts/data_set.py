"""Reads a data set with the `datasets` library and writes its prompts as JSON lines. Runs only as a child process:

    python -m loop.prompts.data_set REQUEST_JSON OUT_FILE

Rows have the two columns under their own names, an `id` if the data set has one, and `row`, their number in the data set
from 1. Rows with a blank statement and repetitions of an earlier task are left out. OUT_FILE appears whole or not at all. A
user's mistake is one line on stdout and exit code 78.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loop.errors import ConfigError
from store.durable import written

FORMATS = {".parquet": "parquet", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
NAME_COLUMNS = ("id", "task_id", "question_id", "name")


def main() -> None:
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    try:
        with written(out) as file:
            for row in rows(request):
                file.write(json.dumps(row).encode() + b"\n")
    except ConfigError as error:
        print(error)
        sys.exit(error.exit_code)


def rows(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The distinct rows, at most `limit`. Raises ConfigError if the request is wrong or the data set cannot be read."""
    statement_column, starter_code_column = request["columns"]
    seen: set[bytes] = set()
    for number, row in enumerate(_all_rows(request), start=1):
        if statement_column not in row:
            columns = ", ".join(map(str, row))
            raise ConfigError(f"has no column {statement_column!r}; set statement_column to one of {columns}")
        statement = row[statement_column]
        starter_code = row.get(starter_code_column)
        if statement is None or not str(statement).strip():
            continue
        task = json.dumps([str(statement).strip(), str(starter_code or "").rstrip()])
        digest = hashlib.sha256(task.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        names = (*NAME_COLUMNS, statement_column, starter_code_column, *request.get("also", ()))
        yield {"row": number, **{name: _plain(row[name]) for name in names if name in row}}
        if len(seen) == request["limit"]:
            return


def _all_rows(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    import datasets

    source, options = request["source"], {"split": request["split"], "revision": request["revision"], "streaming": True}
    path = Path(source)
    if os.path.isfile(source) and path.suffix not in FORMATS:
        raise ConfigError(f"is a {path.suffix or 'nameless'} file; known are .jsonl, {', '.join(FORMATS)}")
    try:
        if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(source)
            yield from saved[request["split"]] if isinstance(saved, datasets.DatasetDict) else saved
        elif path.is_file():
            yield from datasets.load_dataset(FORMATS[path.suffix], data_files=source, **options)
        else:
            yield from datasets.load_dataset(source, request["config"], **options)
    except Exception as error:  # the library raises its own, fsspec's, the network's and pyarrow's
        raise ConfigError(_reason(error, request)) from error


def _reason(error: Exception, request: Mapping[str, Any]) -> str:
    text = (str(error).strip().splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):
        return f"has no split {request['split']!r}; correct prompts.split"
    if isinstance(error, ConnectionError | TimeoutError) or "offline" in text.lower() or "connect" in text.lower():
        return f"cannot be fetched ({text}); connect to the hub, or name a copy of the data set on disk"
    return f"cannot be read ({text}); check prompts.source, config, split and revision"


def _plain(value: Any) -> Any:
    """The value if JSON can hold it; else the name of its type in a list, which the caller refuses."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return [type(value).__name__]
    return value


if __name__ == "__main__":
    main()
