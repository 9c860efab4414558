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

from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.engines.fake import write_fake_model
from loop.errors import ConfigError, EngineError, StalledError
from loop.system import trees as guard
from loop.workers import frames
from loop.workers import worker as worker_module
from loop.workers.worker import RemoteSampler, RemoteTrainer, Worker
from tests.support import ROOT, SUPPORT
from tests.support.engines import settings

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)
SETTINGS = settings(sampler="fake", trainer="fake")


def bad(*arguments: str) -> list[str]:
    return [sys.executable, "-P", str(SUPPORT / "bad_worker.py"), *arguments]


def requests(count: int) -> list[Request]:
    return [Request(id=f"r{i}", prefill=f"def f{i}():", seed=i) for i in range(count)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 600.0) -> None:
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
    checkpoint = CheckpointRef(sha256="0" * 64, path=tmp_path / "model")
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


def test_a_silent_worker_is_found_by_its_missing_heartbeat(start: Callable[..., Worker]) -> None:
    with pytest.raises(EngineError, match="nothing was heard from it for 1 s"):
        start("silent", heartbeat_timeout_s=1.0)


def test_a_beating_heart_is_not_progress(start: Callable[..., Worker]) -> None:
    sampler = RemoteSampler(start("hang", stall_timeout_s=1.5, heartbeat_timeout_s=1.4))
    with pytest.raises(EngineError, match=r"no progress for 1\.5 s"):
        list(sampler.generate(requests(1), PARAMS))


def test_computing_without_a_report_is_borne_longer_but_not_for_ever(start: Callable[..., Worker]) -> None:
    ended: list[str] = []
    sampler = RemoteSampler(start("spin", stall_timeout_s=0.5, stalled=lambda: ended.append("stalled")))
    with pytest.raises(StalledError, match=r"no progress in 2 s of computing and was ended; .*engine\.stall_timeout_s"):
        list(sampler.generate(requests(1), PARAMS))
    assert ended == ["stalled"]


@pytest.mark.parametrize("kind", ["twice", "stranger", "too-few", "malformed", "none"])
def test_every_request_is_answered_once_or_the_worker_is_ended(start: Callable[..., Worker], kind: str) -> None:
    worker = start(f"completions-{kind}")
    message = "of unknown type 'items'" if kind == "none" else "completion"
    with pytest.raises(EngineError, match=f"sampler: .*{message}.* was ended"):
        list(RemoteSampler(worker).generate(requests(2), PARAMS))
    assert worker.process.poll() is not None


@pytest.mark.parametrize("who", ["engine", "guard", "both"])
def test_sigkill_is_named_within_seconds(start: Callable[..., Worker], who: str) -> None:
    worker = start("hang")
    pids = tree(worker)
    calls = RemoteSampler(worker).generate(requests(1), PARAMS)
    victims = {"engine": [engine_of(worker)], "guard": [worker.process.pid], "both": pids}[who]
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {' '.join(map(str, victims))}"])
    with pytest.raises(
        EngineError, match=r"^sampler: it was killed \(out of memory\?\); lower engine.batch_size.*worker.log$"
    ):
        list(calls)
    killer.wait()
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
    """While only the guard is stopped the engine goes on answering."""
    worker = start()
    pids = tree(worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert len(list(RemoteSampler(worker).generate(requests(1), PARAMS))) == 1
    worker.end()
    assert not [pid for pid in pids if alive(pid)]


def test_a_whole_tree_that_is_stopped_is_found_and_ended(start: Callable[..., Worker], tmp_path: Path) -> None:
    worker = start("daemon-clean", str(tmp_path / "pid"), heartbeat_timeout_s=2.0)
    wait_until((tmp_path / "pid").exists)
    pids = tree(worker)
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="nothing was heard from it for 2 s and was ended; something stopped it"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert not [pid for pid in pids if alive(pid)]


def test_a_guard_that_is_stopped_when_the_engine_is_killed(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 1.0)
    worker = start("hang")
    pids = tree(worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    os.kill(engine_of(worker), signal.SIGKILL)
    with pytest.raises(EngineError, match="closed its pipe"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
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
    with pytest.raises(EngineError, match="killed"):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert not [pid for pid in pids if alive(pid)]


def test_a_worker_without_guard_that_ignores_sigterm(
    start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 0.5)
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


@pytest.mark.parametrize("stopped", ["nobody", "the engine", "the guard"])
def test_when_the_parent_is_killed_the_whole_tree_goes(tmp_path: Path, stopped: str) -> None:
    """With a stopped guard the engine alone goes, and the rest when the guard is continued. See loop/system/trees.py."""
    script = (
        "import sys, psutil\n"
        "from pathlib import Path\n"
        "from loop.workers.worker import Worker\n"
        "w = Worker({'op': 'load'}, log_file=Path(sys.argv[1]), stall_timeout_s=60, progress=lambda d, t: None,\n"
        "           command=sys.argv[2:])\n"
        "pids = [p.pid for p in psutil.Process().children(recursive=True)]\n"
        "w.pulse = lambda: print(*pids, flush=True)\n"
        "w.call({'op': 'hang'})\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "log"), *bad("daemon-clean", str(tmp_path / "pid"))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        wait_until((tmp_path / "pid").exists)
        pids.append(int((tmp_path / "pid").read_text()))
        assert len(pids) >= 3 and all(alive(pid) for pid in pids)
        if stopped != "nobody":
            os.kill(pids[0 if stopped == "the guard" else 1], signal.SIGSTOP)
        parent.kill()
    if stopped == "the guard":
        try:
            wait_until(lambda: not alive(pids[1]))
        finally:
            os.kill(pids[0], signal.SIGCONT)
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
    with pytest.raises(EngineError, match="^sampler: FileNotFoundError: .*nowhere.*; see .*worker.log$"):
        checkpoint = {"sha256": "", "path": str(tmp_path / "nowhere"), "base_path": None}
        worker.call({"op": "load_sampler", "checkpoint": checkpoint, "settings": SETTINGS})
    assert "Traceback" in worker.log_file.read_text()


def test_a_config_error_stays_one(start: Callable[..., Worker]) -> None:
    checkpoint = {"sha256": "", "path": "/", "base_path": None}
    with pytest.raises(ConfigError, match=r'engine\.device: "cuda" is asked for'):
        start(init={"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(device="cuda")})


def test_what_libraries_print_lands_in_the_log(start: Callable[..., Worker], tmp_path: Path) -> None:
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


def test_one_worker_after_another_leaves_no_open_files(start: Callable[..., Worker]) -> None:
    start().end()
    before = psutil.Process().num_fds()
    for _ in range(3):
        start().end()
    assert psutil.Process().num_fds() == before


class Enough(Exception):
    pass


def counting(limit: int) -> tuple[list[int], Callable[[], None]]:
    """A pulse that raises at its `limit`th beat."""
    beats: list[int] = []

    def pulse() -> None:
        beats.append(len(beats))
        if len(beats) == limit:
            raise Enough

    return beats, pulse


@pytest.mark.parametrize("way", ["silent", "hang-init", "half-a-frame"])
def test_the_pulse_goes_on_while_nothing_comes_and_may_end_it(start: Callable[..., Worker], way: str) -> None:
    _, pulse = counting(4)
    with pytest.raises(Enough):
        start(way, pulse=pulse, stall_timeout_s=30.0)
    assert not [process for process in psutil.Process().children(recursive=True) if alive(process.pid)]


def test_what_the_pulse_raises_ends_a_call_cleanly(start: Callable[..., Worker]) -> None:
    worker = start("hang")
    pids = tree(worker)
    _, worker.pulse = counting(3)
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert worker.ended and not [pid for pid in pids if alive(pid)]


def test_the_pulse_goes_on_while_a_command_is_not_read(start: Callable[..., Worker]) -> None:
    worker = start("hang")
    os.kill(engine_of(worker), signal.SIGSTOP)
    _, worker.pulse = counting(3)
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(3000), PARAMS))
    assert worker.ended


def test_every_message_is_a_pulse(start: Callable[..., Worker]) -> None:
    beats, pulse = counting(-1)
    start("hundred-heartbeats", pulse=pulse)
    assert len(beats) >= 100


def test_progress_without_advance_does_not_count_for_ever(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it goes back and forth. But a long completion may be in the making for so many reports."""
    monkeypatch.setattr(worker_module, "IDLE_REPORTS", 10)
    reports: list[int] = []
    sampler = RemoteSampler(start("repeats", stall_timeout_s=0.5, progress=lambda done, total: reports.append(done)))
    with pytest.raises(EngineError, match=r"no progress for 0\.5 s"):
        list(sampler.generate(requests(1), PARAMS))
    assert len(reports) > PARAMS.max_new_tokens


@pytest.mark.parametrize("way", ["repeats", "advances"])
def test_slow_progress_is_progress(start: Callable[..., Worker], way: str) -> None:
    began: list[float] = []

    def progress(done: int, total: int) -> None:
        began.append(time.monotonic())
        if began[-1] - began[0] > 2.5:
            raise Enough

    sampler = RemoteSampler(start(way, stall_timeout_s=1.0, progress=progress))
    with pytest.raises(Enough):
        list(sampler.generate(requests(1), SamplingParams(temperature=1.0, max_new_tokens=100_000)))


def test_time_in_which_the_daemon_itself_was_stopped_does_not_count(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start("hang", stall_timeout_s=30.0, heartbeat_timeout_s=20.0)
    beats, pulse = counting(8)
    monotonic, away = time.monotonic, 0.0
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: monotonic() + away)

    def long_pulse() -> None:
        nonlocal away
        pulse()
        if len(beats) == 3:
            away += 1000.0

    worker.pulse = long_pulse
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))


def test_a_large_batch_comes_in_pieces_and_a_small_one_whole() -> None:
    values = [{"text": "x" * 1000} for _ in range(10)]
    assert list(frames.pieces(values)) == [values]
    assert [len(piece) for piece in frames.pieces(values, max_bytes=3100)] == [3, 3, 3, 1]
    assert [len(piece) for piece in frames.pieces(values, max_bytes=10)] == [1] * 10
    assert list(frames.pieces([])) == []


def test_values_are_counted_outside_of_strings_only() -> None:
    text = json.dumps({"text": ',:[{\\"' * 200_000}).encode()
    assert frames.count_values(text) == 2
    assert frames.decode_body(text)["text"].startswith(",:[{")
    with pytest.raises(frames.BadFrame, match=r"has 300\d+ values"):
        frames.decode_body(b'{"a":["' + b'\\"' * 1000 + b'",' + b"1," * 300_000 + b"1]}")
    with pytest.raises(frames.BadFrame, match="has 5000000 bytes"):
        frames.decode_body(b" " * 5_000_000)


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


def test_the_oom_killer_takes_the_engine_before_the_daemon_and_the_guard(start: Callable[..., Worker]) -> None:
    mine = int(Path("/proc/self/oom_score_adj").read_text())
    worker = start("oom-score")
    assert worker.info == max(mine, 500)
    assert int(Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text()) == mine


def test_processes_that_the_kernel_does_not_let_go_of_are_named(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(guard, "sweep", lambda token, session: [17, 18])
        with pytest.raises(EngineError, match="sampler: even SIGKILL does not end its processes 17, 18; .*restart"):
            worker.end()
    assert not worker.ended
    worker.end()


def test_a_log_that_is_large_is_set_aside_when_a_worker_starts(start: Callable[..., Worker], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    log, old = logs / "worker.log", logs / "worker.old.log"
    log.write_bytes(b"x" * 1000)
    start()
    assert log.read_bytes().startswith(b"x" * 1000) and not old.exists()
    for letter in (b"y", b"z"):
        log.write_bytes(letter * (worker_module.OLD_LOG_BYTES + 1))
        start()
        assert log.stat().st_size < 1000 and old.read_bytes()[:1] == letter
    assert len(list(logs.iterdir())) == 2


def test_a_log_that_grows_too_large_is_cut_and_says_so(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning and the end stay."""
    monkeypatch.setattr(worker_module, "MAX_LOG_BYTES", 1 << 20)
    worker = start("loud")
    worker.call({"op": "shout"})
    worker.end()
    log = worker.log_file.read_text()
    assert len(log) <= (1 << 20) + worker_module.LOG_HEAD_BYTES
    assert log.startswith("the beginning") and log.endswith("the end\n")
    assert "cut here: this log was larger than 1048576 bytes" in log


def test_a_worker_that_floods_its_log_cannot_fill_the_disk(
    start: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_LOG_BYTES", 1 << 20)
    monkeypatch.setattr(worker_module, "LOG_HEAD_BYTES", 1 << 10)
    worker = start("shouting", stall_timeout_s=30.0)

    def pulse() -> None:
        if b"cut here" in worker.log_file.read_bytes():
            raise Enough

    worker.pulse = pulse
    with pytest.raises(Enough):
        list(RemoteSampler(worker).generate(requests(1), PARAMS))
    assert worker.log_file.stat().st_size <= 1 << 20


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_temporary_files_go_with_the_worker(tmp_path: Path, end: str) -> None:
    program = f"""
import os, tempfile
from loop.system.trees import guard

def work():
    made = tempfile.mkdtemp()
    assert made.startswith({str(tmp_path)!r} + "/ssd-loop-")
    open({str(tmp_path / "made")!r}, "w").write(made)
    {end}

guard(work, own_tmp=True)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), guard.PARENT: str(os.getpid())}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, timeout=60, check=False)
    made = Path((tmp_path / "made").read_text())
    assert not made.exists() and [path.name for path in tmp_path.iterdir()] == ["made"]
