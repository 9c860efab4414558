"""Finds the published files of a benchmark: where the source says, in the folders of LOOP_SUITES, in the caches, and then where they lie.

Nothing of them is executed. A fetched file has the SHA-256 that is known of it, or is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from loop.errors import ConfigError, PermissionDenied
from loop.grading.json_lines import Row, read_bytes, read_file
from loop.grading.known import Wanted
from loop.grading.known.benchmark import File
from loop.words import safe
from store.durable import written

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
_HUB = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)")


class NotHere(ConfigError):
    """A file that would have to be fetched, where nothing is to be fetched."""


def cache_dir() -> Path:
    """Where fetched files stay: XDG_CACHE_HOME or ~/.cache, under ssd-loop/suites."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd-loop" / "suites"


def rows_of(wanted: Wanted, base_dir: Path | None, fetch: bool) -> Iterator[tuple[int, Row | ConfigError]]:
    """The rows of all files, in order. Raises ConfigError (NotHere if it may not `fetch`) and PermissionDenied."""
    for path in _paths(wanted, base_dir, fetch):
        if path.suffix == ".parquet":
            yield from read_bytes(_from_parquet(path), safe(path))
        else:
            yield from read_file(path, "problems", f"give {_spelled(wanted)}", lists=True)


def _paths(wanted: Wanted, base_dir: Path | None, fetch: bool) -> list[Path]:
    files = wanted.benchmark.files
    if wanted.path is None:
        return [_path(file, wanted, fetch) for file in files]
    given = (base_dir or Path()) / Path(wanted.path).expanduser()
    if not given.is_dir():
        return [given]
    missing = [file.name for file in files if not (given / file.name).exists()]
    if missing:
        raise ConfigError(
            f"{safe(given)}: lacks {', '.join(missing)} of {wanted.benchmark.name}; add it, or name a file"
        )
    return [given / file.name for file in files]


def _path(file: File, wanted: Wanted, fetch: bool) -> Path:
    """A published file on this machine."""
    own = cache_dir() / f"{hashlib.sha256(file.url.encode()).hexdigest()[:16]}-{file.name}"
    folders = [Path(folder) for folder in os.environ.get("LOOP_SUITES", "").split(os.pathsep) if folder]
    for path in (*(folder / file.name for folder in folders), own):
        if path.exists():
            return path
    if cached := _in_hub_cache(file):
        return cached
    if not fetch:
        raise NotHere(
            f"{file.name} of {wanted.benchmark.name} is not on this machine; fetch it, or give {_spelled(wanted)}"
        )
    _fetch(file, own, wanted)
    return own


def _in_hub_cache(file: File) -> Path | None:
    """The file where Hugging Face's own library has put it already."""
    if not (match := _HUB.fullmatch(file.url)):
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(match[1], match[3], revision=match[2], repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def _fetch(file: File, to: Path, wanted: Wanted) -> None:
    """Fetch a file, whole and with the right hash or not at all."""
    remedy = f"connect and try again, or give {_spelled(wanted)}"
    url, headers = file.url, {}
    if _HUB.fullmatch(url):
        if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE", "ON", "YES"):
            raise ConfigError(f"{file.name} of {wanted.benchmark.name} is not here and HF_HUB_OFFLINE is set; {remedy}")
        if endpoint := os.environ.get("HF_ENDPOINT"):
            url = endpoint.rstrip("/") + url.removeprefix("https://huggingface.co")
        if token := os.environ.get("HF_TOKEN"):
            headers = {"Authorization": f"Bearer {token}"}
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror}); set XDG_CACHE_HOME to a directory that can be written"
        raise PermissionDenied(f"{safe(to.parent)}: {problem}") from None
    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, written(to) as out:
            while chunk := answer.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
            if file.sha256 and digest.hexdigest() != file.sha256:
                actual = f"has the SHA-256 {digest.hexdigest()[:12]} instead of {file.sha256[:12]}"
                raise ConfigError(f"{safe(url)}: {actual}, so it is not what was published; give {_spelled(wanted)}")
    except (OSError, ValueError) as error:  # of the network, of urllib, of the disk
        reason = safe(str(getattr(error, "reason", error))) or type(error).__name__
        raise ConfigError(f"{file.name} of {wanted.benchmark.name} cannot be fetched ({reason}); {remedy}") from None


def _from_parquet(path: Path) -> bytes:
    """A Parquet file as JSON lines."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.suppress(OSError, pyarrow.ArrowInvalid):
        table = pyarrow.parquet.read_table(path)
        return b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())
    raise ConfigError(f"{safe(path)}: cannot be read as Parquet; fetch it again")


def _spelled(wanted: Wanted) -> str:
    """How a file that is there already is named."""
    return f'"{wanted.name}=FILE", or put {", ".join(file.name for file in wanted.benchmark.files)} into a folder of LOOP_SUITES'
