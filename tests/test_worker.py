"""Worker processes: what they may do wrong, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loop import worker as worker_module
from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.engines.fake import write_fake_model
from loop.errors import ConfigError, EngineError
from loop.worker import RemoteSampler, RemoteTrainer, Worker

TESTS = Path(__file__).parent
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)
SETTINGS = {"sampler": "fake", "trainer": "fake", "batch_size": 4}


def bad(*arguments: str) -> list[str]:
    return [sys.executable, "-P", str(TESTS / "bad_worker.py"), *arguments]


def requests(count: int) -> list[Request]:
    return [Request(id=f"r{i}", prefill=f"def f{i}():", seed=i) for i in range(count)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def tree(worker: Worker) -> list[int]:
    guard = psutil.Process(worker.process.pid)
    return [guard.pid, *(process.pid for process in guard.children(recursive=True))]


def engine_of(worker: Worker) -> int:
    return psutil.Process(worker.process.pid).children()[0].pid


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker; by default a good one with the fake sampler. All are ended after the test."""
    write_fake_model(tmp_path / "model", 0.5)
    checkpoint = CheckpointRef(sha256="0" * 64, path=tmp_path / "model").model_dump(mode="json")
    started: list[Worker] = []

    def begin(*bad_way: str, **more: Any) -> Worker:
        init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS}
        keywords = {
            "log_file": tmp_path / "logs" / "worker.log",
            "stall_timeout_s": 60.0,
            "progress": lambda done, total: None,
            "tag": "sampler",
        } | more
        if bad_way:
            keywords["command"] = bad(*bad_way)
        started.append(Worker(keywords.pop("init", init), **keywords))
        return started[-1]

    yield begin
    for worker in started:
        pids = tree(worker) if worker.process.poll() is None else []
        worker.end()
        assert not [pid for pid in pids if alive(pid)]


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
        ("garbage", "announced a frame of 1416782179 bytes"),
        ("huge", "announced a frame of 4294967295 bytes"),
        ("no-json", "not JSON"),
        ("nested", "not JSON"),
        ("no-object", "not an object"),
        ("flood-zeros", "not JSON"),
        ("flood-heartbeats", "no progress for 0.5 s"),
        ("silent", "no progress for 0.5 s"),
        ("close", "closed its pipe"),
        ("exit", "ended with exit code 3"),
        ("segv", "ended by signal 11"),
        ("stale", "answered a call that was not made"),
    ],
)
def test_nonsense_is_named_and_the_worker_ended(
    start: Callable[..., Worker], way: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "END_TIMEOUT_S", 1.0)
    began = time.monotonic()
    with pytest.raises(EngineError, match=f"sampler: .*{message}.*worker.log"):
        start(way, stall_timeout_s=0.5 if way in ("silent", "flood-heartbeats") else 30.0)
    assert time.monotonic() - began < 10
    assert not [process for process in psutil.Process().children(recursive=True) if alive(process.pid)]


def test_a_silent_worker_is_found_by_its_missing_heartbeat(start: Callable[..., Worker]) -> None:
    with pytest.raises(EngineError, match="nothing was heard from it for 1 s"):
        start("silent", heartbeat_timeout_s=1.0)


def test_a_beating_heart_is_not_progress(start: Callable[..., Worker]) -> None:
    sampler = RemoteSampler(start("hang", stall_timeout_s=1.5, heartbeat_timeout_s=1.4))
    with pytest.raises(EngineError, match=r"no progress for 1\.5 s"):
        list(sampler.generate(requests(1), PARAMS))


@pytest.mark.parametrize("kind", ["twice", "stranger", "too-few", "malformed"])
def test_every_request_is_answered_once_or_the_worker_is_ended(start: Callable[..., Worker], kind: str) -> None:
    worker = start(f"completions-{kind}")
    with pytest.raises(EngineError, match="sampler: .* was ended"):
        list(RemoteSampler(worker).generate(requests(2), PARAMS))
    assert worker.process.poll() is not None


@pytest.mark.parametrize("who", ["engine", "guard"])
def test_sigkill_is_named_within_seconds(start: Callable[..., Worker], who: str) -> None:
    worker = start("hang")
    pids = tree(worker)
    calls = RemoteSampler(worker).generate(requests(1), PARAMS)
    victim = engine_of(worker) if who == "engine" else worker.process.pid
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {victim}"])
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"sampler: it was killed \(out of memory\?\).*batch_size"):
        list(calls)
    killer.wait()
    assert time.monotonic() - began < 5
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("count", [1, 3000])
def test_a_stopped_engine_is_found_and_ended(start: Callable[..., Worker], count: int) -> None:
    """A small command fits into the pipe, so that the answer is missed; a large one cannot even be sent."""
    worker = start("hang", heartbeat_timeout_s=2.0)
    pids = tree(worker)
    os.kill(engine_of(worker), signal.SIGSTOP)
    with pytest.raises(EngineError, match="nothing was heard" if count == 1 else "read no command for 2 s"):
        list(RemoteSampler(worker).generate(requests(count), PARAMS))
    assert not [pid for pid in pids if alive(pid)]


def test_a_stopped_guard_is_ended_too(start: Callable[..., Worker]) -> None:
    worker = start()
    pids = tree(worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    worker.end()
    assert time.monotonic() - began < 5
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("way", ["daemon", "daemon-clean"])
@pytest.mark.parametrize("how", ["end", "kill the engine"])
def test_a_daemonised_grandchild_is_gone(start: Callable[..., Worker], tmp_path: Path, way: str, how: str) -> None:
    """Also one that holds the pipe, ignores SIGTERM, has its own session and, the clean one, another environment."""
    worker = start(way, str(tmp_path / "pid"))
    wait_until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    if how == "end":
        worker.end()
    else:
        os.kill(engine_of(worker), signal.SIGKILL)
        with pytest.raises(EngineError, match="killed"):
            list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert not alive(pid)


def test_a_killed_guard_leaves_nothing_either(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start("daemon", str(tmp_path / "pid"))
    wait_until((tmp_path / "pid").exists)
    pids = [*tree(worker), int((tmp_path / "pid").read_text())]
    os.kill(worker.process.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EngineError, match="killed"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert time.monotonic() - began < 5
    assert not [pid for pid in pids if alive(pid)]


def test_a_worker_without_guard_that_ignores_sigterm(
    start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "END_TIMEOUT_S", 0.5)
    with pytest.raises(EngineError, match="no progress"):
        start("unguarded", str(tmp_path / "pid"), stall_timeout_s=2.0)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_ending_one_worker_leaves_the_other(start: Callable[..., Worker], tmp_path: Path) -> None:
    first, second = start("daemon", str(tmp_path / "one")), start("daemon", str(tmp_path / "two"))
    wait_until((tmp_path / "one").exists)
    wait_until((tmp_path / "two").exists)
    first.end()
    assert not alive(int((tmp_path / "one").read_text()))
    others = [*tree(second), int((tmp_path / "two").read_text())]
    assert all(alive(pid) for pid in others)
    second.end()
    assert not any(alive(pid) for pid in others)


def test_when_the_parent_is_killed_the_whole_tree_goes(tmp_path: Path) -> None:
    script = (
        "import sys, time, psutil\n"
        "from pathlib import Path\n"
        "from loop.worker import Worker\n"
        "w = Worker({'op': 'load'}, log_file=Path(sys.argv[1]), stall_timeout_s=60, progress=lambda d, t: None,\n"
        "           command=sys.argv[2:])\n"
        "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
        "time.sleep(1000)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "log"), *bad("daemon-clean", str(tmp_path / "pid"))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=worker_module.ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        wait_until((tmp_path / "pid").exists)
        pids.append(int((tmp_path / "pid").read_text()))
        assert len(pids) >= 3 and all(alive(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))


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
    with pytest.raises(EngineError, match="FileNotFoundError: .*nowhere"):
        checkpoint = {"sha256": "", "path": str(tmp_path / "nowhere"), "base_path": None}
        worker.call({"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS})
    assert "Traceback" in worker.log_file.read_text()


def test_a_config_error_stays_one(start: Callable[..., Worker]) -> None:
    settings = {"sampler": "transformers", "device": "cuda", "dtype": "auto", "batch_size": 1, "num_threads": 1}
    checkpoint = {"sha256": "", "path": "/", "base_path": None}
    with pytest.raises(ConfigError, match=r'engine\.device: "cuda" is asked for'):
        start(init={"op": "load_sampler", "checkpoint": checkpoint, "settings": settings})


def test_what_libraries_print_lands_in_the_log(start: Callable[..., Worker], tmp_path: Path) -> None:
    script = tmp_path / "loud.py"
    script.write_text(
        "import os, sys, subprocess\nfrom loop import worker\n"
        "def load(checkpoint, settings, progress):\n"
        "    print('printed'); os.write(1, b'written\\n'); print('warned', file=sys.stderr)\n"
        "    subprocess.run(['echo', 'echoed'])\n"
        "    from loop.engines.fake import FakeSampler\n"
        "    return FakeSampler(checkpoint, settings, progress)\n"
        "worker.build_sampler = load\nworker.main()\n"
    )
    worker = start(command=[sys.executable, "-P", str(script)])
    assert len(list(RemoteSampler(worker).generate(requests(3), PARAMS))) == 1
    log = worker.log_file.read_text()
    assert all(word in log for word in ("printed", "written", "warned", "echoed"))


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
    with pytest.raises(EngineError, match="sampler: cannot be started: .*no-such-program"):
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
    settings = {"num_steps": 2, "num_epochs": None, "batch_size": 4}
    parent = CheckpointRef(sha256="", path=tmp_path / "model")
    result = RemoteTrainer(worker).fit(rows, parent, settings, tmp_path / "out")
    assert (result.num_steps, result.num_completion_tokens) == (2, 2)


def test_the_parent_imports_no_torch_and_stays_small(tmp_path: Path) -> None:
    script = (
        "import sys, psutil, loop.worker, loop.models\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(psutil.Process().memory_info().rss)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=worker_module.ROOT, stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) < 100e6


def test_one_worker_after_another_leaves_no_open_files(start: Callable[..., Worker]) -> None:
    start().end()
    before = psutil.Process().num_fds()
    for _ in range(3):
        start().end()
    assert psutil.Process().num_fds() == before
