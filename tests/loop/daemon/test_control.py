"""The control socket: who may use it, what clients may do wrong, and how loopctl hears of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.daemon import control
from loop.daemon.control import SOCKET, Control, NotRunning, Wake, ask
from loop.errors import LoopError, PermissionDenied, UsageError
from store.errors import StaleState
from tests.support.runs import environment, imported_by
from tests.support.waiting import HANG_S, descriptors_below, num_descriptors, wait_until


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is given up because the machine is busy."""
    monkeypatch.setattr(control, "END_TIMEOUT_S", HANG_S)
    monkeypatch.setattr(control, "CLIENT_TIMEOUT_S", HANG_S)
    monkeypatch.setattr(ask, "__defaults__", (HANG_S,))


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"echo": request}


not_asked = Mock(side_effect=AssertionError("not asked"))


@contextlib.contextmanager
def raw(run_dir: Path, text: bytes = b"") -> Iterator[socket.socket]:
    """A connection of a client that is not ours."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HANG_S)
        connection.connect(str(run_dir / SOCKET))
        if text:
            connection.sendall(text)
        yield connection


def all_of(connection: socket.socket) -> bytes:
    text = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            text += chunk
    return text


# Asking and answering


def test_requests_are_answered_whatever_is_in_them_and_in_pieces(tmp_path: Path) -> None:
    with Control(tmp_path, echo), raw(tmp_path) as client:
        for letter in b'{"command": "ping"}\n':
            client.sendall(bytes([letter]))
        assert json.loads(all_of(client)) == {"ok": True, "echo": {"command": "ping"}}
        for value in (1, "näh\n\u2028 \ud800 \x00 \x1b[31m"):
            assert ask(tmp_path, "pin", round=value) == {"echo": {"command": "pin", "round": value}}
    run_dir = tmp_path.joinpath(*["d" * 100] * 3)  # a name that is too long for a socket's address
    run_dir.mkdir(parents=True)
    with Control(run_dir, lambda request: {"text": "x" * 3_000_000}):  # more than a socket holds
        assert len(ask(run_dir, "gc")["text"]) == 3_000_000
    assert not (run_dir / SOCKET).exists()


RAISED: list[tuple[BaseException, str, int]] = [
    (PermissionDenied("no"), "no", 77),
    (StaleState("it moved"), "it moved", 1),
    (LoopError(), "LoopError", 1),
    (ValueError("seven\nlines"), "ValueError: seven lines", 1),
    (KeyError(), "KeyError", 1),
    (SystemExit(3), "SystemExit: 3", 1),
    (KeyboardInterrupt(), "KeyboardInterrupt", 1),
    (UsageError("no such round; there are 3"), "no such round; there are 3", 2),
]


def test_what_it_raises_is_an_answer(tmp_path: Path) -> None:
    with Control(tmp_path, Mock(side_effect=[error for error, _, _ in RAISED])):
        for _, text, code in RAISED:  # the service outlives each
            with pytest.raises(LoopError) as caught:
                ask(tmp_path, "x")
            assert (str(caught.value), caught.value.exit_code) == (text, code)


def test_an_answer_that_cannot_be_sent(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    answers = [None, 7, {("a", "b"): 1}, circle, {"n": "x" * (control.MAX_ANSWER_BYTES + 1)}, {"n": 1}]
    with Control(tmp_path, lambda request: answers.pop(0)):
        for words in ("TypeError", "TypeError", "TypeError", "ValueError", "is too long"):
            with pytest.raises(LoopError, match=words):
                ask(tmp_path, "x")
        assert ask(tmp_path, "x") == {"n": 1}


def test_one_request_at_a_time(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(_request: Any) -> dict[str, Any]:
        seen.append("in")
        time.sleep(0.002)
        seen.append("out")
        return {}

    with Control(tmp_path, answer), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ask(tmp_path, "x"), range(40)))
    assert seen == ["in", "out"] * 40


# Bad clients


NONSENSE = (b"", b"nonsense", b"[1]", b"7", b"\xff\xfe", b"[" * 20_000, b'{"a":' + b"9" * 5000 + b"}")


def test_nonsense_is_refused_in_words(tmp_path: Path) -> None:
    with Control(tmp_path, not_asked):
        for text in NONSENSE:
            with raw(tmp_path, text + b"\n") as client:
                answer = json.loads(all_of(client))
            assert answer["ok"] is False and "JSON object" in answer["error"], text[:20]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_long_request_is_refused(tmp_path: Path, end: bytes) -> None:
    long = b'{"command": "' + b"x" * control.MAX_REQUEST_BYTES + b'"}' + end
    with Control(tmp_path, echo):
        with raw(tmp_path) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(long)
            assert "at most 65536 bytes" in json.loads(all_of(client))["error"]
        with pytest.raises(LoopError, match="at most 65536 bytes"):
            ask(tmp_path, "x", text="x" * control.MAX_REQUEST_BYTES)
        assert ask(tmp_path, "ping")


def test_clients_that_go_away(tmp_path: Path) -> None:
    asked: list[Any] = []
    with Control(tmp_path, lambda request: asked.append(request) or {"text": "x" * 1_000_000}):
        ask(tmp_path, "first")
        before = num_descriptors()
        for text in (b"", b'{"command": "ha', b'{"command": "x"}\n', b'{"command": "x"}\n{"command": "y"}\n'):
            for _ in range(20):
                with raw(tmp_path, text):
                    pass
        ask(tmp_path, "last")
        wait_until(lambda: len(asked) == 42, lambda: f"{len(asked)} were carried out")
        assert sum(request["command"] == "x" for request in asked) == 40
        wait_until(lambda: num_descriptors() <= before, lambda: "descriptors are left")


def test_hundreds_that_say_nothing_are_in_nobodys_way(tmp_path: Path) -> None:
    before = num_descriptors()
    with Control(tmp_path, echo), contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(raw(tmp_path, b'{"comm' if number % 2 else b""))
        for _ in range(5):
            assert ask(tmp_path, "ping")
        assert num_descriptors() < before + 300 + control.MOST_CLIENTS + 10


def test_who_does_not_read_or_says_nothing_is_in_nobodys_way_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 3_000_000
    with Control(tmp_path, lambda request: {"text": long if request["command"] == "long" else "short"}) as serving:
        with raw(tmp_path, b'{"command": "long"}\n') as slow:
            assert ask(tmp_path, "x") == {"text": "short"}
            assert json.loads(all_of(slow))["text"] == long
        monkeypatch.setattr(control, "CLIENT_TIMEOUT_S", 0.2)
        with raw(tmp_path, b'{"command"') as silent:
            assert all_of(silent) == b""
        with raw(tmp_path, b'{"command": "long"}\n') as slow:
            assert slow.recv(1)
            wait_until(lambda: not serving._clients)
            assert not all_of(slow).endswith(b"\n"), "it should have been cut off"


def test_who_waits_for_the_turn_is_not_dropped_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLIENT_TIMEOUT_S", 0.1)
    begun, go_on = threading.Event(), threading.Event()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(HANG_S)
        return {"did": request["command"]}

    with Control(tmp_path, answer), raw(tmp_path, b'{"command": "first"}\n') as first:
        assert begun.wait(HANG_S)
        with raw(tmp_path, b'{"command": "second"}\n') as second:
            time.sleep(0.3)
            go_on.set()
            assert b'"first"' in all_of(first) and b'"second"' in all_of(second)


def test_more_than_the_kernel_keeps_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MOST_WAITING", 1)
    go = threading.Event()
    with Control(tmp_path, lambda request: {"went": go.wait(HANG_S)}), ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, tmp_path, "x") for _ in range(20)]
        time.sleep(0.3)
        go.set()
        assert all(each.result() == {"went": True} for each in asked)


def test_no_descriptors_for_a_while(tmp_path: Path) -> None:
    half = b'{"command": "a"'
    with Control(tmp_path, echo) as serving, raw(tmp_path, half) as first, socket.socket(socket.AF_UNIX) as second:
        second.settimeout(HANG_S)
        wait_until(lambda: serving._clients)
        with contextlib.ExitStack() as stack:
            stack.enter_context(descriptors_below(max(map(int, os.listdir("/proc/self/fd")))))
            with contextlib.suppress(OSError):
                while True:
                    stack.callback(os.close, os.dup(0))
            second.connect(str(tmp_path / SOCKET))
            second.sendall(b'{"command": "b"}\n')
            first.sendall(b"}\n")
            assert b'"a"' in all_of(first)
        assert b'"b"' in all_of(second)


# Who may


@pytest.mark.parametrize("umask", [0, 0o022, 0o277, 0o777])
def test_the_socket_is_private_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    modes: list[int] = []
    bind = socket.socket.bind

    def look() -> None:
        modes.append(stat.S_IMODE((tmp_path / SOCKET).stat().st_mode))

    class Watched(socket.socket):
        def bind(self, name: Any) -> None:
            bind(self, name)
            look()

    monkeypatch.setattr(control.socket, "socket", Watched)
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(umask))
        stack.enter_context(Control(tmp_path, echo))
        look()
        assert os.umask(umask) == umask, "other threads make files meanwhile"
    assert modes[0] | 0o600 == modes[1] == 0o600


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_peer", lambda connection: os.geteuid() + 1)
    with Control(tmp_path, not_asked):
        for _ in range(50):  # the answer comes before the request was read
            with pytest.raises(LoopError, match="may not command this run") as caught:
                ask(tmp_path, "stop")
            assert caught.value.exit_code == 77


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_for_real() -> None:
    words = f"""
import socket
s = socket.socket(socket.AF_UNIX)
try:
    s.connect({SOCKET!r})
    print(s.recv(1000).decode())
except PermissionError:
    print("EACCES")
"""
    with tempfile.TemporaryDirectory() as name, Control(Path(name), not_asked):
        run_dir = Path(name)
        run_dir.chmod(0o755)

        def as_nobody() -> str:
            for python in (sys.executable, "/usr/bin/python3"):  # which of them everybody may run
                with contextlib.suppress(OSError):
                    command, nobody = (
                        [python, "-I", "-S", "-c", words],
                        {"user": 65534, "group": 65534, "extra_groups": []},
                    )
                    return subprocess.run(command, cwd=run_dir, capture_output=True, text=True, **nobody).stdout
            return ""

        if not (answer := as_nobody()):
            pytest.skip("another user cannot run this Python")
        assert answer == "EACCES\n"
        (run_dir / SOCKET).chmod(0o666)
        assert "user 65534 may not command this run" in as_nobody()


def test_what_may_not_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_connect", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionDenied, match="as the user who runs the loop"):
        ask(tmp_path, "x")


# Beginning and end


def test_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / SOCKET).touch()
    for run_dir in (tmp_path, tmp_path / "none", tmp_path / "file", tmp_path / "left"):
        with pytest.raises(NotRunning) as caught:
            ask(run_dir, "x")
        assert caught.value.exit_code == 3


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    words = "import sys, time; from pathlib import Path; from loop.daemon.control import Control\n"
    words += "with Control(Path(sys.argv[1]), dict): print('up', flush=True); time.sleep(1000)"
    command = [sys.executable, "-c", words, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"up\n"
        assert ask(tmp_path, "x") == {"command": "x"}
        daemon.kill()
    assert (tmp_path / SOCKET).exists()
    with pytest.raises(NotRunning):
        ask(tmp_path, "x")
    with Control(tmp_path, echo):
        assert ask(tmp_path, "x")
    assert not (tmp_path / SOCKET).exists()


def test_without_a_free_thread_a_client_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = threading.Thread.start, list[threading.Thread]()

    def refuses_once(thread: threading.Thread) -> None:
        if thread.name == "control client" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuses_once)
    with Control(tmp_path, echo) as serving:
        with raw(tmp_path) as connection:
            assert all_of(connection) == b""
        assert refused and not serving._clients
        assert ask(tmp_path, "ping")["echo"]["command"] == "ping"


def test_nothing_is_left(tmp_path: Path) -> None:
    before, threads = num_descriptors(), threading.active_count()
    for _ in range(3):
        with Control(tmp_path, echo), raw(tmp_path):
            ask(tmp_path, "x")
    assert (num_descriptors(), threading.active_count()) == (before, threads)
    assert not (tmp_path / SOCKET).exists()
    with pytest.raises(NotRunning):
        ask(tmp_path, "x")


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / SOCKET).mkdir()
    before = num_descriptors()
    for run_dir in (tmp_path, tmp_path / "none"):
        with pytest.raises(LoopError, match=r"control\.sock: no socket can be made"), Control(run_dir, echo):
            pass
    assert num_descriptors() == before


def test_the_request_that_ends_it_is_answered(tmp_path: Path) -> None:
    for _ in range(20):
        end = Wake()
        with ThreadPoolExecutor(1) as pool:
            with Control(tmp_path, lambda request, end=end: end.wake() or {"text": "stopping"}):
                asked = pool.submit(ask, tmp_path, "stop")
                assert end.wait(HANG_S)
            assert asked.result() == {"text": "stopping"}
        end.close()


def fails(run_dir: Path, words: str, timeout_s: float) -> None:
    """A request ends in these words, and not as if nobody had heard it: it may have been done."""
    with pytest.raises(LoopError, match=words) as caught:
        ask(run_dir, "x", timeout_s=timeout_s)
    assert not isinstance(caught.value, NotRunning)


@contextlib.contextmanager
def stand_in(run_dir: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """Somebody else on the socket."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(run_dir / SOCKET))
        listener.listen()

        def serve_a_client() -> None:
            with listener.accept()[0] as connection:
                serve(connection)

        pool.submit(serve_a_client)
        yield


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b"nonsense\n"])
def test_a_daemon_that_dies_over_it(tmp_path: Path, answer: bytes) -> None:
    with stand_in(tmp_path, lambda connection: (connection.recv(1000), connection.sendall(answer))):
        fails(tmp_path, "ended before it answered", HANG_S)


@pytest.mark.parametrize("drop", [b"", b" "])
def test_a_daemon_that_says_nothing_or_drips(tmp_path: Path, drop: bytes) -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.05):
                connection.sendall(drop)

    with stand_in(tmp_path, drip), contextlib.ExitStack() as stack:
        stack.callback(over.set)
        fails(tmp_path, r"within 0\.4 s", 0.4)


def test_loopctl_does_not_wait_for_it() -> None:
    heavy = {"pydantic", "click", "rich", "sqlite3", "sqlite_utils", "torch", "apscheduler", "psutil", "subprocess"}
    assert not heavy & imported_by("loop.daemon.control")
