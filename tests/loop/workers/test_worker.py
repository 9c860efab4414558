"""Worker processes: what they answer, and what they may do wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loop.engines.base import CheckpointRef, Request
from loop.errors import ConfigError, EngineError
from loop.system import trees as guard
from loop.workers.worker import RemoteSampler, RemoteTrainer, Worker
from tests.support import ROOT, SUPPORT
from tests.support.engines import settings
from tests.support.workers import PARAMS, SETTINGS, alive, requests, tree


def test_a_good_worker_answers_reports_progress_and_leaves_nothing(start: Callable[..., Worker]) -> None:
    seen: list[tuple[int, int]] = []
    worker = start(progress=lambda done, total: seen.append((done, total)))
    sampler = RemoteSampler(worker)
    lists = list(sampler.generate(requests(10), PARAMS))
    assert [len(batch) for batch in lists] == [4, 4, 2]
    assert seen[-1] == (10, 10)
    pids = tree(worker)
    assert len(pids) == 2
    sampler.close()
    assert not [pid for pid in pids if alive(pid)]
    sampler.close()
    with pytest.raises(EngineError, match="sampler: it was ended"):
        list(sampler.generate(requests(1), PARAMS))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("garbage", "announced a message of 1416782179 bytes"),
        ("huge", "announced a message of 4294967295 bytes"),
        ("no-json", "not JSON"),
        ("nested", "not JSON"),
        ("no-object", "not an object"),
        ("flood-zeros", "not JSON"),
        ("flood-garbage", "not JSON"),
        ("flood-heartbeats", "more than 5000 messages within a second"),
        ("flood-padding", "more than 5000 messages within a second"),
        ("flood-progress", "more than 5000 messages within a second"),
        ("flood-counting", "more than 5000 messages within a second"),
        ("flood-items", "completions that were not asked for"),
        ("flood-arrays", r"has \d+ values; the limit is 300000"),
        ("silent", "no progress for 0.5 s.*raise engine.stall_timeout_s"),
        ("half-a-frame", "no progress for 0.5 s"),
        ("hang-init", "no progress for 0.5 s"),
        ("close", "closed its pipe"),
        ("exit", "ended with exit code 3"),
        ("segv", "ended by signal 11"),
        ("stale", "answered a call that was not made"),
        ("no-call", "answered a call that was not made"),
        ("no-progress", "unknown type 'progress'"),
    ],
)
def test_nonsense_is_named_and_the_worker_ended(
    start: Callable[..., Worker], way: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 1.0)
    with pytest.raises(EngineError, match=f"^sampler: .*{message}.*; .*see .*worker.log$"):
        start(way, stall_timeout_s=0.5 if "0.5 s" in message else 600.0)
    assert not [process for process in psutil.Process().children(recursive=True) if alive(process.pid)]


@pytest.mark.parametrize("kind", ["twice", "stranger", "too-few", "malformed", "none"])
def test_every_request_is_answered_once_or_the_worker_is_ended(start: Callable[..., Worker], kind: str) -> None:
    worker = start(f"completions-{kind}")
    message = "of unknown type 'items'" if kind == "none" else "completion"
    with pytest.raises(EngineError, match=f"sampler: .*{message}.* was ended"):
        list(RemoteSampler(worker).generate(requests(2), PARAMS))
    assert worker.process.poll() is not None


def test_a_call_given_up_half_way_ends_the_worker(start: Callable[..., Worker]) -> None:
    worker = start()
    calls = RemoteSampler(worker).generate(requests(100), PARAMS)
    assert len(next(calls)) == 4
    del calls
    assert worker.process.poll() is not None

    worker = start()
    calls = RemoteSampler(worker).generate(requests(100), PARAMS)
    next(calls)
    with pytest.raises(EngineError, match="given up half-way"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    with pytest.raises(EngineError, match="it was ended"):
        list(calls)


def test_an_exception_in_progress_ends_the_worker(start: Callable[..., Worker]) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    worker = start(progress=stop)
    with pytest.raises(KeyboardInterrupt):
        list(RemoteSampler(worker).generate(requests(5), PARAMS))
    assert worker.process.poll() is not None


def test_a_reported_error_crosses_by_kind_and_the_worker_goes_on(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start()
    sampler = RemoteSampler(worker)
    with pytest.raises(EngineError, match="request r0: the prompt is empty"):
        list(sampler.generate([Request(id="r0", seed=1)], PARAMS))
    assert len(list(sampler.generate(requests(4), PARAMS))) == 1
    with pytest.raises(EngineError, match="unknown command 'dance'"):
        worker.call({"op": "dance"})
    with pytest.raises(EngineError, match="^sampler: FileNotFoundError: .*nowhere.*; see .*worker.log$"):
        checkpoint = {"sha256": "", "path": str(tmp_path / "nowhere"), "base_path": None}
        worker.call({"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS})
    assert "Traceback" in worker.log_file.read_text()


def test_a_config_error_stays_one(start: Callable[..., Worker]) -> None:
    checkpoint = {"sha256": "", "path": "/", "base_path": None}
    with pytest.raises(ConfigError, match=r'engine\.device: "cuda" is asked for'):
        start(init={"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(device="cuda")})


def test_the_package_is_found_from_anywhere(
    start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what lies in the working directory is never imported in its place."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "loop").mkdir(parents=True)
    (elsewhere / "loop" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (elsewhere / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert len(list(RemoteSampler(start()).generate(requests(1), PARAMS))) == 1


def test_a_worker_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="sampler: cannot be started: .*no-such-program.*this user.*log"):
        Worker(
            {},
            log_file=tmp_path / "log",
            stall_timeout_s=1,
            progress=lambda done, total: None,
            tag="sampler",
            command=[str(tmp_path / "no-such-program")],
        )


def test_the_fake_trainer_works_remotely(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start(init={"op": "load_trainer", "settings": SETTINGS})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt_token_ids": [1], "completion_token_ids": [2, 3]}) + "\n")
    (tmp_path / "out").mkdir()
    recipe = {"num_steps": 2, "num_epochs": None, "batch_size": 4}
    parent = CheckpointRef(sha256="", path=tmp_path / "model")
    result = RemoteTrainer(worker).fit(rows, parent, recipe, tmp_path / "out")
    assert (result.num_steps, result.num_completion_tokens) == (2, 2)


FLOODS = (
    "huge", "garbage", "flood-garbage", "flood-heartbeats", "flood-counting", "flood-arrays", "flood-strings",
    "flood-wide", "large-batch",
)  # fmt: skip


def test_the_parent_imports_no_torch_and_stays_small_whatever_comes(tmp_path: Path) -> None:
    """Hostile floods, and the largest batch that a real engine could answer with."""
    script = (
        "import sys, loop.daemon.loopd, loop.run.session\n"
        "from pathlib import Path\n"
        "from loop.engines.base import Request, SamplingParams\n"
        "from loop.errors import EngineError\n"
        "from loop.workers.worker import RemoteSampler, Worker\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))\n"
        "requests = [Request(id=str(i), prefill='x', seed=0) for i in range(32)]\n"
        "print('at-rest', '-', peak(), flush=True)\n"
        "for way in sys.argv[3:]:\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    said, num = 'nothing', 0\n"
        "    try:\n"
        "        worker = Worker({'op': 'load'}, log_file=Path(sys.argv[1]), stall_timeout_s=30, progress=lambda d, t: None,\n"
        "                        command=[sys.executable, '-P', sys.argv[2], way])\n"
        "        for batch in RemoteSampler(worker).generate(requests, SamplingParams(temperature=1, max_new_tokens=9)):\n"
        "            num += len(batch)\n"
        "        worker.end()\n"
        "    except EngineError as error:\n"
        "        said = 'error'\n"
        "    print(way, num or said, peak(), flush=True)\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'pynvml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "log"), str(SUPPORT / "bad_worker.py"), *FLOODS]
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, timeout=120)
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["at-rest", *FLOODS]
    assert rows[-1][1] == "32" and {row[1] for row in rows[1:-1]} == {"error"}
    assert max(int(row[2]) for row in rows) < 100e6


def test_a_completion_that_fits_no_message_is_named_and_the_worker_goes_on(start: Callable[..., Worker]) -> None:
    worker = start("too-large")
    with pytest.raises(EngineError, match="5242880 characters cannot be sent.*the limit is 4194304; lower max_new_tok"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert not worker.ended


def test_a_worker_that_does_not_name_its_tokenizer_is_ended(start: Callable[..., Worker]) -> None:
    worker = start("no-tokenizer")
    with pytest.raises(EngineError, match="sampler: it did not name its tokenizer"):
        RemoteSampler(worker)
    assert worker.ended


def test_a_training_result_that_is_none_ends_the_worker(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start("no-tokenizer", tag="trainer")
    with pytest.raises(EngineError, match="trainer: it sent a malformed training result"):
        RemoteTrainer(worker).fit(tmp_path, CheckpointRef(sha256="", path=tmp_path), {}, tmp_path)
    assert worker.ended


def test_memory_that_runs_out_inside_is_named_with_the_remedy(start: Callable[..., Worker]) -> None:
    with pytest.raises(
        EngineError, match="trainer: MemoryError: CUDA out of memory.*; lower training.micro_batch_size;"
    ):
        start("out-of-memory", tag="trainer")
