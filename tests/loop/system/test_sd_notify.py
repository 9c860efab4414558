"""The notify protocol, against real datagram sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from loop.system import sd_notify
from loop.system.sd_notify import Notifier

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:  # so that what a test leaves of them is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@contextlib.contextmanager
def listening_at(address: str) -> Iterator[socket.socket]:
    """A socket that never waits for a message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        yield listening


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0loop-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
    with listening_at(address) as listening:
        yield listening


def heard(manager: socket.socket) -> list[str]:
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(manager.recv(65536).decode())
    return messages


def test_what_is_said_is_heard(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.status("round 3")
    notifier.stopping()
    assert heard(manager) == ["READY=1", "STATUS=round 3", "STOPPING=1"]


def test_a_status_is_a_line_of_text(manager: socket.socket) -> None:
    notifier = Notifier()
    for text in ("a\nREADY=1\r\nb", "\x1b[31mred\x00", "é\ud800", "é" * 5000):
        notifier.status(text)
    lines = ("a READY=1 b", "[31mred", "é", "é" * sd_notify.MAX_STATUS)
    assert heard(manager) == [f"STATUS={line}" for line in lines]


def test_children_do_not_speak_for_it(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier()
    inherited = subprocess.check_output(["env"], text=True)
    assert "PATH=" in inherited and not any(f"{name}=" in inherited for name in VARIABLES)
    notifier.ready()
    assert heard(manager) == ["READY=1"]


@pytest.mark.parametrize("ours", [False, True])
def test_a_third_of_the_time_lies_between_two_signs_of_life(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    if ours:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier, when = Notifier(), list[float]()
    for tenth in range(400):
        monkeypatch.setattr(sd_notify, "time", SimpleNamespace(monotonic=lambda now=tenth / 10: now))
        notifier.watchdog()
        when += [tenth / 10 for message in heard(manager) if message == "WATCHDOG=1"]
    assert when == [0.0, 10.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("usec", "pid"),
    [("30000000", "1"), ("30000000", "x"), *((usec, None) for usec in (None, "0", "-5", "soon", "²", "9" * 5000))],
)
def test_no_sign_of_life_where_none_is_wanted(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value:
            monkeypatch.setenv(name, value)
    Notifier().watchdog()
    assert heard(manager) == []
    assert not set(VARIABLES) & set(os.environ)


@pytest.mark.parametrize(
    "address", [None, "", "/none/such", "/" + "x" * 300, "relative", "vsock:2:1234", "@" + "y" * 300]
)
def test_it_never_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "3")
    with listening_at("relative") as listening:
        notifier = Notifier()
        notifier.ready()
        notifier.watchdog()
        notifier.stopping()
        notifier.status("x")
        assert heard(listening) == [], "a relative path is no address"


def test_without_a_descriptor_it_is_silent(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sd_notify.socket, "socket", Mock(side_effect=OSError(24, "Too many open files")))
        notifier = Notifier()
    notifier.ready()
    assert heard(manager) == []


def test_what_finds_no_room_goes_with_the_next(manager: socket.socket) -> None:
    notifier = Notifier()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"noise", manager.getsockname())
        notifier.ready()  # neither waits nor is lost
        notifier.status("first")
        notifier.status("second")
        assert set(heard(manager)) == {"noise"}
        notifier.stopping()
    assert heard(manager) == ["READY=1\nSTATUS=second\nSTOPPING=1"]
    notifier.status("third")
    assert heard(manager) == ["STATUS=third"]
