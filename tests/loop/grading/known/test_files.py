"""The files of published benchmarks: from a path, LOOP_SUITES, the caches or the network, and one line where they are nowhere."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loop.errors import ConfigError
from loop.grading.known import Wanted
from loop.grading.known.benchmark import Benchmark, File, on_hub
from loop.grading.known.files import NotHere, cache_dir, rows_of

CONTENT = b'{"n": 1}\n{"n": 2}\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of the files in tmp_path/served."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign, assignment]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def numbers(file: File, path: str | None = None, fetch: bool = True) -> list[object]:
    wanted = Wanted(Benchmark("numbers", "", files=(file,)), "numbers", None, "", path)
    return [row["n"] for _, row in rows_of(wanted, None, fetch) if isinstance(row, dict)]


def test_a_file_is_fetched_once_and_then_read_from_the_cache(tmp_path: Path, server: str) -> None:
    served = tmp_path / "served" / "numbers.jsonl"
    served.write_bytes(CONTENT)
    file = File("numbers.jsonl", f"{server}/numbers.jsonl", hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(NotHere, match="numbers.jsonl of numbers is not on this machine; fetch it, or give"):
        numbers(file, fetch=False)
    assert numbers(file) == [1, 2]
    served.unlink()
    assert numbers(file, fetch=False) == [1, 2]


def test_a_file_with_another_hash_is_not_kept(tmp_path: Path, server: str) -> None:
    (tmp_path / "served" / "numbers.jsonl").write_bytes(CONTENT)
    file = File("numbers.jsonl", f"{server}/numbers.jsonl", "0" * 64)
    with pytest.raises(
        ConfigError, match=r"has the SHA-256 \w{12} instead of 000000000000, so it is not what was published"
    ):
        numbers(file)
    assert list(cache_dir().iterdir()) == []


def test_no_network_is_one_line_with_what_to_do(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (File("x.jsonl", f"{server}/x.jsonl"), on_hub("a/b", "c" * 40, "x.jsonl")):
        with pytest.raises(ConfigError, match=r"^x.jsonl of numbers cannot be fetched \(.+\); connect") as caught:
            numbers(file)
        assert str(caught.value).endswith('give "numbers=FILE", or put x.jsonl into a folder of LOOP_SUITES')
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="is not here and HF_HUB_OFFLINE is set"):
        numbers(on_hub("a/b", "c" * 40, "x.jsonl"))


def test_the_hub_is_asked_at_the_pinned_commit(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    place = tmp_path / "served" / "datasets/a/b/resolve" / ("c" * 40) / "data"
    place.mkdir(parents=True)
    (place / "x.jsonl").write_bytes(CONTENT)
    assert numbers(on_hub("a/b", "c" * 40, "data/x.jsonl")) == [1, 2]
    with pytest.raises(ConfigError, match="cannot be fetched"):
        numbers(on_hub("a/b", "d" * 40, "data/x.jsonl"))


def test_parquet_is_read_as_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"n": 1, "options": ["a"]}, {"n": 2, "options": []}]), path)
    assert numbers(File("x.parquet", "https://nowhere"), str(path)) == [1, 2]
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        numbers(File("x.parquet", "https://nowhere"), str(path))


def test_a_path_comes_first_then_the_folders(
    tmp_path: Path, written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File("numbers.jsonl", "https://nowhere/numbers.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("LOOP_SUITES", f"{tmp_path / 'none'}:{folder}")
    with pytest.raises(ConfigError, match=r"folder: lacks numbers.jsonl of numbers; add it, or name a file"):
        numbers(file, str(folder))
    (folder / "numbers.jsonl").write_text(json.dumps({"n": 7}) + "\n")
    assert numbers(file) == numbers(file, str(folder)) == [7]
    assert numbers(file, written({"n": 8}, name="mine.jsonl")) == [8]
    with pytest.raises(ConfigError, match=r"mine2.jsonl: no such file; give \"numbers=FILE\""):
        numbers(file, "mine2.jsonl")
