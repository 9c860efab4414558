"""How loopctl reaches a running daemon: a Unix socket in the run directory, one JSON object a line in each direction.

The socket is private (0600) and serves our own user and root. Each client has a thread, so that it is answered in the
middle of training, and so that no client, however silent or slow, delays another; requests are carried out one at a time.
A connection carries one request. Linux only: peer credentials, and /proc for long paths.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loop.errors import LoopError, PermissionDenied
from store.errors import StoreError
from store.records import Json

SOCKET = "control.sock"
MAX_REQUEST_BYTES = 1 << 16
MAX_ANSWER_BYTES = 4 << 20
CLIENT_TIMEOUT_S = 5.0  # how long a client may stay silent, and how long it may take to read its answer
MOST_CLIENTS = 128  # at a time; one more cuts off the oldest
MOST_WAITING = 512  # connections that the kernel keeps while a request is being answered
END_TIMEOUT_S = 5.0  # how long the end of the block waits for the request that is being answered
LONGEST_WAIT_S = 86_400.0  # poll(2) takes a C int of milliseconds


class NotRunning(LoopError):
    """No process answers: neither a daemon nor a foreground run holds the run."""

    exit_code = 3


class Wake:
    """Wakes one waiting thread: from other threads, and from signal handlers, where a lock could deadlock."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def wake(self) -> None:
        """Let the present `wait` return, or else the next one. Never blocks; many calls count as one."""
        with contextlib.suppress(OSError):  # the pipe is full of earlier calls, or closed
            os.write(self._write, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Return after that time (at most a day), or as soon as `wake` is called; whether it was. Drains it.

        A signal whose handler does not call `wake` does not end the wait. Needs no new descriptor. After `close` nothing
        ends the wait early.
        """
        waiting = select.poll()
        if self._read >= 0:
            waiting.register(self._read, select.POLLIN)
        if not waiting.poll(math.ceil(1000 * min(max(0.0, timeout_s), LONGEST_WAIT_S))):
            return False
        self.drain()
        return True

    def drain(self) -> None:
        """Forget all calls of `wake` so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Free its descriptors; `wake` has no effect from now on. Safe to repeat."""
        read, self._read, write, self._write = self._read, -1, self._write, -1
        for descriptor in (read, write):
            if descriptor >= 0:
                os.close(descriptor)


@contextlib.contextmanager
def _reachable(run_dir: Path) -> Iterator[str]:
    """A path of the socket that fits into the kernel's 108 bytes, however long the directory's own path is."""
    descriptor = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


# ---- the daemon's half ----------------------------------------------------------------------------------------------


class Control:
    """Serves while its block lasts. The caller holds the run's lock, so a socket that exists already is a dead process's.

    `answer` is called in a thread of the client's, one request at a time; what it raises becomes {"ok": false, "error",
    "exit_code"}, what it returns {"ok": true, ...}. While it works nobody else is answered, so it should take no longer
    than a second.

    Entering raises LoopError where no socket can be made. Leaving waits for the request that is being answered, a few
    seconds at most, and removes the socket; whoever has not been answered by then is cut off.
    """

    def __init__(self, run_dir: Path, answer: Callable[[Json], Json]) -> None:
        self.run_dir, self.answer = run_dir, answer
        self._turn = threading.Lock()
        self._ended = False
        self._clients: dict[socket.socket, threading.Thread] = {}  # the oldest first

    def __enter__(self) -> Control:
        self._listener = _listen(self.run_dir)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + END_TIMEOUT_S
        self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)  # accept returns
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(OSError):
            (self.run_dir / SOCKET).unlink()
        clients = dict(self._clients)
        for connection in clients:
            _shut(connection, socket.SHUT_RD)  # an answer is still sent
        for thread in clients.values():
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._listener.accept()
                if len(clients := list(self._clients.items())) >= MOST_CLIENTS:
                    oldest, thread = clients[0]
                    self._clients.pop(oldest, None)
                    _shut(oldest, socket.SHUT_RDWR)
                    thread.join(1.0)  # its descriptor is free again, or its request is being carried out
                thread = threading.Thread(target=self._serve, args=(connection,), name="control client", daemon=True)
                self._clients[connection] = thread
                try:
                    thread.start()
                except RuntimeError:
                    self._clients.pop(connection, None)
                    connection.close()
                    raise
            except (OSError, RuntimeError):  # no descriptor or thread is free; the next client is served when one is
                if not self._ended:
                    time.sleep(0.05)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # whoever asked is gone, or took too long
            connection.settimeout(CLIENT_TIMEOUT_S)
            if (answer := self._answer_to(connection)) is not None:
                connection.sendall(answer)
        self._clients.pop(connection, None)

    def _answer_to(self, connection: socket.socket) -> bytes | None:
        """The line to send back; None where the client left before its request was whole, or the end came first."""
        if (uid := _peer(connection)) not in (0, os.geteuid()):
            return _failed(PermissionDenied(f"user {uid} may not command this run; ask its owner"))
        with connection.makefile("rb") as lines:
            text = lines.readline(MAX_REQUEST_BYTES + 1)
        if not text.endswith(b"\n"):
            return _failed(_too_long()) if len(text) > MAX_REQUEST_BYTES else None
        try:
            request = json.loads(text)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return _failed(LoopError("a request is one JSON object on one line"))
        with self._turn:
            if self._ended:
                return None
            try:
                line = _line({"ok": True, **self.answer(request)})
                if len(line) > MAX_ANSWER_BYTES:
                    raise LoopError(f"the answer of {len(line)} bytes is too long; ask for less")
                return line
            except BaseException as error:  # the client hears whatever went wrong
                return _failed(error)


def _listen(run_dir: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (run_dir / SOCKET).unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # Linux creates the file with the mode of the socket: never any wider
        with _reachable(run_dir) as name:
            listener.bind(name)
            os.chmod(name, 0o600)  # a umask may have made it narrower still
        listener.listen(MOST_WAITING)
    except OSError as error:
        listener.close()
        raise LoopError(
            f"{run_dir / SOCKET}: no socket can be made: {error.strerror}; set run_dir to a local disk, with nothing else "
            "of that name in it"
        ) from None
    return listener


def _peer(connection: socket.socket) -> int:
    """The user id of the process at the other end."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # its thread may have closed it
        connection.shutdown(how)


def _failed(error: BaseException) -> bytes:
    name, message = type(error).__name__, " ".join(str(error).split())
    is_ours = isinstance(error, LoopError | StoreError)
    text = message if is_ours and message else ": ".join(filter(None, (name, message)))
    exit_code = error.exit_code if isinstance(error, LoopError) else 1
    return _line({"ok": False, "error": text, "exit_code": exit_code})


def _too_long() -> LoopError:
    return LoopError(f"a request has at most {MAX_REQUEST_BYTES} bytes")


def _line(answer: Json) -> bytes:
    return json.dumps(answer, default=str).encode() + b"\n"


# ---- loopctl's half -------------------------------------------------------------------------------------------------


def ask(run_dir: Path, command: str, timeout_s: float = 5.0, **arguments: Any) -> Json:
    """Have the process that holds the run carry out a command; its answer, without "ok".

    NotRunning if no process holds it. PermissionDenied where this user may not reach it. Otherwise LoopError: the error
    that the process gave, with its exit code; or that it gave no answer in time: then nobody knows whether the command
    was carried out, and asking again is the remedy.
    """
    answer = _exchange(run_dir, {"command": command, **arguments}, timeout_s)
    if answer.pop("ok", False) is not True:
        error = LoopError(str(answer.get("error", "the daemon gave no reason")))
        with contextlib.suppress(ValueError, TypeError):
            error.exit_code = int(answer.get("exit_code", 1))
        raise error
    return answer


def _exchange(run_dir: Path, request: Json, timeout_s: float) -> Json:
    deadline, at = time.monotonic() + timeout_s, run_dir / SOCKET
    line = _line(request)
    if len(line) > MAX_REQUEST_BYTES:
        raise _too_long()
    text = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _connect(connection, run_dir, deadline)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused unread: the answer says why
                connection.settimeout(_left(deadline))
                connection.sendall(line)
            with contextlib.suppress(ConnectionResetError):
                while not text.endswith(b"\n") and len(text) <= MAX_ANSWER_BYTES:
                    connection.settimeout(_left(deadline))
                    if not (chunk := connection.recv(1 << 16)):
                        break
                    text += chunk
    except TimeoutError:
        raise LoopError(
            f"the daemon did not answer within {timeout_s:g} s; ask again, or see `loopctl status`"
        ) from None
    except PermissionError:
        raise PermissionDenied(f"{at}: permission denied; ask as the user who runs the loop, or as root") from None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NotRunning(f"nothing runs in {run_dir}; `loopctl start` starts the daemon") from None
    except OSError as error:
        raise LoopError(f"{at}: {error.strerror}; see `loopctl status`") from None
    try:
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError):
        raise LoopError("the daemon ended before it answered; see `loopctl status`, then ask again") from None
    return answer


def _connect(connection: socket.socket, run_dir: Path, deadline: float) -> None:
    with _reachable(run_dir) as name:
        while True:
            connection.settimeout(_left(deadline))
            try:
                return connection.connect(name)
            except BlockingIOError:  # too many wait: the kernel takes no more just now
                time.sleep(0.02)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
