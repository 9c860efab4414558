"""Whatever ends a worker, or stops a part of it, nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loop.errors import EngineError
from loop.system import trees as guard
from tests.support import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Start, alive, bad, engine_of, generate, tree


@pytest.mark.parametrize("who", ["engine", "guard", "both"])
def test_sigkill_is_named_within_seconds(start: Start, who: str) -> None:
    worker = start("hang")
    victims = {"engine": [engine_of(worker)], "guard": [worker.process.pid], "both": tree(worker)}[who]
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {' '.join(map(str, victims))}"])
    with pytest.raises(
        EngineError, match=r"^sampler: it was killed \(out of memory\?\); lower engine.batch_size.*worker.log$"
    ):
        generate(worker)
    killer.wait()
    assert worker.ended


@pytest.mark.parametrize("num_bytes", [1, 200_000])
def test_a_stopped_engine_is_found_and_ended(start: Start, num_bytes: int) -> None:
    """A small command fits into the pipe, so that the answer is missed; a large one cannot even be sent."""
    worker = start("hang", heartbeat_timeout_s=2.0)
    os.kill(pid := engine_of(worker), signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)  # not at once where cores are busy
    with pytest.raises(EngineError, match="nothing was heard" if num_bytes == 1 else "read no command for 2 s"):
        worker.call({"op": "hang", "with": "x" * num_bytes})
    assert worker.ended


def test_a_stopped_guard_is_ended_too(start: Start) -> None:
    """While only the guard is stopped the engine still answers."""
    worker = start()
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert len(generate(worker)) == 1


def test_a_whole_tree_that_is_stopped_is_found_and_ended(start: Start, tmp_path: Path) -> None:
    worker = start("daemon-clean", str(tmp_path / "pid"), heartbeat_timeout_s=2.0)
    wait_until((tmp_path / "pid").exists)
    pids = tree(worker)
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="nothing was heard from it for 2 s and was ended; something stopped it"):
        generate(worker)
    assert not [pid for pid in pids if alive(pid)]


def test_a_guard_that_is_stopped_when_the_engine_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 1.0)
    worker = start("hang")
    os.kill(worker.process.pid, signal.SIGSTOP)
    os.kill(engine_of(worker), signal.SIGKILL)
    with pytest.raises(EngineError, match="closed its pipe"):
        generate(worker)
    assert worker.ended


def pid_in(file: Path) -> int:
    """The process of the daemon that writes its number there."""
    wait_until(file.exists)
    pid = int(file.read_text())
    assert alive(pid)
    return pid


@pytest.mark.parametrize(
    ("way", "how"),
    [(way, how) for way in ("daemon", "daemon-clean") for how in ("end", "kill the engine")]
    + [("daemon", "kill the guard")],
)
def test_a_daemonised_grandchild_is_gone(start: Start, tmp_path: Path, way: str, how: str) -> None:
    """Also one that holds the pipe, ignores SIGTERM, has its own session and, the clean one, another environment."""
    worker = start(way, str(tmp_path / "pid"))
    pid = pid_in(tmp_path / "pid")
    if how == "end":
        worker.end()
    else:
        os.kill(engine_of(worker) if how == "kill the engine" else worker.process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="killed"):
            generate(worker)
    assert worker.ended and not alive(pid)


def test_a_worker_without_guard_that_ignores_sigterm(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "END_TIMEOUT_S", 0.5)
    with pytest.raises(EngineError, match="no progress"):
        start("unguarded", str(tmp_path / "pid"), stall_timeout_s=2.0)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_ending_one_worker_leaves_the_other(start: Start, tmp_path: Path) -> None:
    first, second = start("daemon", str(tmp_path / "one")), start("daemon", str(tmp_path / "two"))
    pid, others = pid_in(tmp_path / "one"), [*tree(second), pid_in(tmp_path / "two")]
    first.end()
    assert not alive(pid)
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
        pids.append(pid_in(tmp_path / "pid"))
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


def test_one_worker_after_another_leaves_no_open_files(start: Start) -> None:
    start().end()
    before = psutil.Process().num_fds()
    for _ in range(3):
        start().end()
    assert psutil.Process().num_fds() == before


def test_the_oom_killer_takes_the_engine_before_the_daemon_and_the_guard(start: Start) -> None:
    mine = int(Path("/proc/self/oom_score_adj").read_text())
    worker = start("oom-score")
    assert worker.info == max(mine, 500)
    assert int(Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text()) == mine


def test_processes_that_the_kernel_does_not_let_go_of_are_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start()
    with monkeypatch.context() as patch:
        patch.setattr(guard, "sweep", lambda token, session: [17, 18])
        with pytest.raises(EngineError, match="sampler: even SIGKILL does not end its processes 17, 18; .*restart"):
            worker.end()
    assert not worker.ended
    worker.end()


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


@pytest.mark.parametrize("end", ["time.sleep(600)", "os.kill(os.getpid(), 9)"])
def test_shared_memory_goes_with_the_worker(tmp_path: Path, end: str) -> None:
    """Of an engine that is told to end, and of one that was killed."""
    program = f"""
import os, time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from loop.system.trees import guard

def work():
    made = SharedMemory(create=True, size=4096)
    Path({str(tmp_path / "part")!r}).write_text(made.name)
    os.rename({str(tmp_path / "part")!r}, {str(tmp_path / "made")!r})
    {end}

guard(work)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {guard.PARENT: str(os.getpid())}, cwd=ROOT
    )
    wait_until((tmp_path / "made").exists)
    guard.end_guard(process)
    assert not (Path("/dev/shm") / (tmp_path / "made").read_text()).exists()
