"""The log of a worker: what lands in it, and how large it may grow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loop.workers import process as process_module
from tests.support.workers import Enough, Start, generate


def test_what_libraries_print_lands_in_the_log(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "loud.py"
    script.write_text(
        "import os, sys, subprocess\nfrom loop.workers import child\n"
        "def load(checkpoint, settings, progress):\n"
        "    print('printed'); os.write(1, b'written\\n'); print('warned', file=sys.stderr)\n"
        "    subprocess.run(['echo', 'echoed'])\n"
        "    from loop.engines.fake import FakeSampler\n"
        "    return FakeSampler(checkpoint, settings, progress)\n"
        "child.build_sampler = load\nchild.main()\n"
    )
    worker = start(command=[sys.executable, "-P", str(script)])
    assert len(generate(worker, 3)) == 1
    log = worker.log_file.read_text()
    assert all(word in log for word in ("printed", "written", "warned", "echoed"))


def test_a_log_that_is_large_is_set_aside_when_a_worker_starts(start: Start, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    log, old = logs / "worker.log", logs / "worker.old.log"
    log.write_bytes(b"x" * 1000)
    start()
    assert log.read_bytes().startswith(b"x" * 1000) and not old.exists()
    for letter in (b"y", b"z"):
        log.write_bytes(letter * (process_module.OLD_LOG_BYTES + 1))
        start()
        assert log.stat().st_size < 1000 and old.read_bytes()[:1] == letter
    assert len(list(logs.iterdir())) == 2


def test_a_log_that_grows_too_large_is_cut_and_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning and the end stay."""
    monkeypatch.setattr(process_module, "MAX_LOG_BYTES", 1 << 20)
    worker = start("loud")
    worker.call({"op": "shout"})
    worker.end()
    log = worker.log_file.read_text()
    assert len(log) <= (1 << 20) + process_module.LOG_HEAD_BYTES
    assert log.startswith("the beginning") and log.endswith("the end\n")
    assert "cut here: this log was larger than 1048576 bytes" in log


def test_a_worker_that_floods_its_log_cannot_fill_the_disk(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "MAX_LOG_BYTES", 1 << 20)
    monkeypatch.setattr(process_module, "LOG_HEAD_BYTES", 1 << 10)
    worker = start("shouting", stall_timeout_s=30.0)

    def pulse() -> None:
        if b"cut here" in worker.log_file.read_bytes():
            raise Enough

    worker.pulse = pulse
    with pytest.raises(Enough):
        generate(worker)
    assert worker.log_file.stat().st_size <= 1 << 20
