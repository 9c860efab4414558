"""How loopctl reaches a running daemon: a Unix socket in the run directory, one JSON object a line in each direction.

The socket is private (0600) and serves our own user and root. Commands are carried out one at a time in a thread of their
own, so that they are answered in the middle of training; a client that says nothing is in nobody's way.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loop.errors import LoopError, PermissionDenied

SOCKET = "control.sock"
MAX_BYTES = 1 << 20  # of a request or an answer
CLIENT_TIMEOUT_S = 5.0  # so long a client may take to say what it wants
MOST_CLIENTS = 128
Json = dict[str, Any]


class NotRunning(LoopError):
    """Nobody listens: no daemon and no foreground run holds the run."""

    exit_code = 3


class Wake:
    """Wakes the main loop: from other threads, and from signal handlers, where locks would deadlock."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def wake(self) -> None:
        """Let `wait` return, now or the next time."""
        with contextlib.suppress(BlockingIOError):  # it is full of the same
            os.write(self._write, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Return after that time, or as soon as somebody wakes it; whether somebody did."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read, selectors.EVENT_READ)
            if not selector.select(max(0.0, timeout_s)):
                return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass
        return True


@contextlib.contextmanager
def _reachable(run_dir: Path) -> Iterator[str]:
    """A name of the socket that fits into the 108 bytes that the kernel allows, however long the directory's is."""
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


# ---- the daemon's half ----------------------------------------------------------------------------------------------


class Control:
    """Serves while its block lasts. The caller holds the run's lock, so a socket that is there already is a dead one's.

    `answer` is called in the control thread, one request at a time; what it raises becomes an answer, too. `prepare` and
    `close` run in the same thread before the first and after the last request.
    """

    def __init__(
        self,
        run_dir: Path,
        answer: Callable[[Json], Json],
        *,
        prepare: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_dir, self.answer, self.prepare, self.close = run_dir, answer, prepare, close
        self._end = Wake()
        self._ended = False
        self._clients: dict[socket.socket, _Client] = {}
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def __enter__(self) -> Control:
        self._listener = _listen(self.run_dir)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._end.wake()
        self._thread.join(timeout=5.0)
        with contextlib.suppress(OSError):
            (self.run_dir / SOCKET).unlink()
        self._listener.close()

    def _serve(self) -> None:
        try:
            self.prepare()
        except Exception as error:
            failure = error

            def refuse(_request: Json) -> Json:
                raise failure

            self.answer = refuse
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._end._read, selectors.EVENT_READ)
            while not self._ended:
                ready = selector.select(timeout=1.0 if self._clients else None)
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket):
                        self._heard(selector, key.fileobj)
                for connection, client in list(self._clients.items()):
                    if time.monotonic() > client.deadline:
                        self._drop(selector, connection)
            for connection in list(self._clients):
                self._drop(selector, connection)
        with contextlib.suppress(Exception):
            self.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            time.sleep(0.05)  # out of descriptors: whoever waits is served when some are free
            return
        connection.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            oldest = min(self._clients, key=lambda known: self._clients[known].deadline)
            self._drop(selector, oldest)
        if (uid := _peer(connection)) not in (0, os.getuid()):
            _reply(connection, _failed(PermissionDenied(f"user {uid} may not command this run; ask its owner")))
            connection.close()
            return
        self._clients[connection] = _Client()
        selector.register(connection, selectors.EVENT_READ)

    def _heard(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        client = self._clients[connection]
        try:
            chunk = connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        client.text += chunk
        line, newline, _ = bytes(client.text).partition(b"\n")
        if newline:
            _reply(connection, self._answered(line))
        elif chunk and len(client.text) <= MAX_BYTES:
            return
        self._drop(selector, connection)

    def _answered(self, line: bytes) -> Json:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return _failed(LoopError("a request is one JSON object on one line"))
        try:
            return {"ok": True, **self.answer(request)}
        except Exception as error:  # the thread must outlive whatever was asked of it
            return _failed(error)

    def _drop(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        del self._clients[connection]
        selector.unregister(connection)
        connection.close()


class _Client:
    """What was heard from a connection so far."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.deadline = time.monotonic() + CLIENT_TIMEOUT_S


def _listen(run_dir: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        (run_dir / SOCKET).unlink()
    try:
        with _reachable(run_dir) as name:
            before = os.umask(0o177)  # private from the first instant
            try:
                listener.bind(name)
            finally:
                os.umask(before)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise LoopError(f"{run_dir / SOCKET}: {error.strerror}; set run_dir to a local disk") from None
    return listener


def _peer(connection: socket.socket) -> int:
    """The user at the other end."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def _failed(error: Exception) -> Json:
    known = isinstance(error, LoopError) or type(error).__module__ == "store.errors"
    said = " ".join(str(error).split()) or type(error).__name__
    text = said if known else f"{type(error).__name__}: {said}"
    return {"ok": False, "error": text, "exit_code": getattr(error, "exit_code", 1)}


def _reply(connection: socket.socket, answer: Json) -> None:
    connection.settimeout(1.0)
    with contextlib.suppress(OSError):  # who asked may be gone
        connection.sendall(json.dumps(answer, default=str).encode() + b"\n")


# ---- loopctl's half -------------------------------------------------------------------------------------------------


def ask(run_dir: Path, command: str, timeout_s: float = 5.0, **arguments: Any) -> Json:
    """Have the run's process do something; its answer. NotRunning if there is none; otherwise the error that it gave."""
    answer = _exchange(run_dir, {"command": command, **arguments}, timeout_s)
    if answer.pop("ok", False) is not True:
        error = LoopError(str(answer.get("error", "the daemon gave no reason")))
        error.exit_code = int(answer.get("exit_code", 1))
        raise error
    return answer


def _exchange(run_dir: Path, request: Json, timeout_s: float) -> Json:
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with _reachable(run_dir) as name:
                connection.connect(name)
            connection.sendall(json.dumps(request).encode() + b"\n")
            text = bytearray()
            while not text.endswith(b"\n") and len(text) <= MAX_BYTES:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                chunk = connection.recv(1 << 16)
                if not chunk:
                    break
                text += chunk
        except TimeoutError:
            raise LoopError(
                f"the daemon did not answer within {timeout_s:g} s; see `loopctl status` and `loopctl logs`"
            ) from None
        except PermissionError:
            raise PermissionDenied(
                f"{run_dir / SOCKET}: permission denied; ask as the user who runs the loop"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunning(f"nothing runs in {run_dir}; `loopctl start` starts the daemon") from None
        except OSError as error:
            raise LoopError(f"{run_dir / SOCKET}: {error.strerror}; see `loopctl status`") from None
    try:
        answer = json.loads(text)
    except ValueError:
        raise LoopError("the daemon ended before it answered; see `loopctl status`") from None
    assert isinstance(answer, dict)
    return answer
