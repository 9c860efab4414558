"""How loopctl reaches a running daemon: a Unix socket in the run directory, one JSON object a line in each direction.

The socket is private (0600) and serves our own user and root. Requests are answered one at a time in a thread of their
own, so that they are answered in the middle of training. A connection carries one request; no client, however silent or
slow, is in another's way. Linux only: peer credentials, and /proc for long paths.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loop.errors import LoopError, PermissionDenied
from store.errors import StoreError

SOCKET = "control.sock"
MAX_REQUEST_BYTES = 1 << 16
MAX_ANSWER_BYTES = 4 << 20
CLIENT_TIMEOUT_S = 5.0  # so long a client may take to say what it wants, and again to take the answer
MOST_CLIENTS = 128  # at a time; one more drops the one that has the least time left
MOST_WAITING = 512  # connections that the kernel keeps while a request is being answered
END_TIMEOUT_S = 5.0  # for the request that is being answered when the block ends
LONGEST_WAIT_S = 86_400.0  # poll(2) takes a C int of milliseconds
Json = dict[str, Any]


class NotRunning(LoopError):
    """Nobody listens: no daemon and no foreground run holds the run."""

    exit_code = 3


class Wake:
    """Wakes one waiting thread: from other threads, and from signal handlers, where a lock could deadlock."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """Readable while somebody has woken it and nobody has drained it."""
        return self._read

    def wake(self) -> None:
        """Let `wait` return: the one under way, or else the next one. Never blocks; any number of times is as good as one."""
        with contextlib.suppress(OSError):  # full of the same, or closed
            os.write(self._write, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Return after that time (at most a day), or as soon as somebody wakes it; whether somebody did. Drains it.

        A signal whose handler does not wake it does not end the wait. Needs no new descriptor.
        """
        waiting = select.poll()
        waiting.register(self._read, select.POLLIN)
        if not waiting.poll(math.ceil(1000 * min(max(0.0, timeout_s), LONGEST_WAIT_S))):
            return False
        self.drain()
        return True

    def drain(self) -> None:
        """Forget that somebody woke it."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Nobody waits any more. What wakes it from now on has no effect."""
        read, self._read, write, self._write = self._read, -1, self._write, -1
        for descriptor in (read, write):
            if descriptor >= 0:
                os.close(descriptor)


@contextlib.contextmanager
def _reachable(run_dir: Path) -> Iterator[str]:
    """A name of the socket that fits into the 108 bytes that the kernel allows, however long the directory's is."""
    descriptor = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


# ---- the daemon's half ----------------------------------------------------------------------------------------------


class Control:
    """Serves while its block lasts. The caller holds the run's lock, so a socket that is there already is a dead one's.

    `answer` is called in the control thread, one request at a time; what it raises becomes {"ok": false, "error",
    "exit_code"}, what it returns {"ok": true, ...}. While it works nobody else is answered, so it should take no longer
    than a second. `prepare` and `close` run in the same thread, before the first and after the last request, for what
    belongs to one thread; if `prepare` raises, every request is refused with that. `close` is called in any case.

    Entering raises LoopError where no socket can be made. Leaving waits for the request that is being answered, a few
    seconds at most, and removes the socket; who has not been answered by then is cut off.
    """

    def __init__(
        self,
        run_dir: Path,
        answer: Callable[[Json], Json],
        *,
        prepare: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_dir, self.answer, self.prepare, self.close, self.clock = run_dir, answer, prepare, close, clock
        self._ended = False
        self._refusal: BaseException | None = None
        self._clients: dict[socket.socket, _Client] = {}
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def __enter__(self) -> Control:
        self._listener = _listen(self.run_dir)
        self._end = Wake()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._end.wake()
        self._thread.join(END_TIMEOUT_S)
        with contextlib.suppress(OSError):
            (self.run_dir / SOCKET).unlink()
        if not self._thread.is_alive():  # else it still uses them, and ends with the process
            self._listener.close()
            self._end.close()

    def _serve(self) -> None:
        try:
            self.prepare()
        except BaseException as error:
            self._refusal = error
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._end, selectors.EVENT_READ)
            while not self._ended:
                ready = selector.select(timeout=1.0 if self._clients else None)
                selected = self.clock()
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._clients and not self._ended:
                        self._serve_client(selector, key.fileobj)
                # Judged by the time before the others were answered: what came meanwhile is not read yet.
                for connection, client in list(self._clients.items()):
                    if selected > client.deadline:
                        self._drop(selector, connection)
            for connection in list(self._clients):
                self._drop(selector, connection)
        with contextlib.suppress(BaseException):
            self.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            time.sleep(0.05)  # out of descriptors: whoever waits is served when some are free
            return
        connection.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._drop(selector, min(self._clients, key=lambda known: self._clients[known].deadline))
        client = self._clients[connection] = _Client(self.clock() + CLIENT_TIMEOUT_S)
        uid = _peer(connection)
        if uid not in (0, os.geteuid()):
            client.unsent = _line(_failed(PermissionDenied(f"user {uid} may not command this run; ask its owner")))
        selector.register(connection, selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ)

    def _serve_client(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        """Read what is there, answer a request that is complete, and send as much as the other end takes now."""
        client = self._clients[connection]
        with contextlib.suppress(BlockingIOError):
            try:
                done = self._heard(selector, connection, client) if not client.unsent else False
                if client.unsent:
                    client.unsent = client.unsent[connection.send(client.unsent) :]
                    done = not client.unsent
            except BlockingIOError:
                raise
            except OSError:
                done = True  # who asked is gone
            if done:
                self._drop(selector, connection)

    def _heard(self, selector: selectors.BaseSelector, connection: socket.socket, client: _Client) -> bool:
        """Take what has come; a request that is complete is answered. Whether the other end has closed instead."""
        chunk = connection.recv(1 << 16)
        client.heard += chunk
        if b"\n" in chunk:
            client.unsent = self._answered(bytes(client.heard).partition(b"\n")[0])
        elif len(client.heard) > MAX_REQUEST_BYTES:
            client.unsent = _line(_failed(_too_long()))
        if client.unsent:
            client.deadline = self.clock() + CLIENT_TIMEOUT_S
            selector.modify(connection, selectors.EVENT_WRITE)
        return not chunk

    def _answered(self, text: bytes) -> memoryview:
        if len(text) > MAX_REQUEST_BYTES:
            return _line(_failed(_too_long()))
        try:
            request = json.loads(text)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return _line(_failed(LoopError("a request is one JSON object on one line")))
        if self._refusal is not None:
            return _line(_failed(self._refusal))
        try:
            line = _line({"ok": True, **self.answer(request)})
            if len(line) > MAX_ANSWER_BYTES:
                raise LoopError(f"the answer of {len(line)} bytes is too long; ask for less")
            return line
        except BaseException as error:  # the thread must outlive whatever was asked of it
            return _line(_failed(error))

    def _drop(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        del self._clients[connection]
        selector.unregister(connection)
        connection.close()


class _Client:
    """A connection: what was heard so far, then what is still to be sent, by the `deadline`."""

    def __init__(self, deadline: float) -> None:
        self.heard = bytearray()
        self.unsent = memoryview(b"")
        self.deadline = deadline


def _listen(run_dir: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            (run_dir / SOCKET).unlink()
        os.fchmod(listener.fileno(), 0o600)  # Linux creates the file with the mode of the socket: never any wider
        with _reachable(run_dir) as name:
            listener.bind(name)
            os.chmod(name, 0o600)  # a umask may have made it narrower still
        listener.listen(MOST_WAITING)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise LoopError(
            f"{run_dir / SOCKET}: no socket can be made: {error.strerror}; set run_dir to a local disk, with nothing else "
            "of that name in it"
        ) from None
    return listener


def _peer(connection: socket.socket) -> int:
    """The user at the other end."""
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def _failed(error: BaseException) -> Json:
    known = isinstance(error, LoopError | StoreError)
    said = " ".join(str(error).split())
    name = type(error).__name__
    text = (said or name) if known else f"{name}: {said}" if said else name
    return {"ok": False, "error": text, "exit_code": error.exit_code if isinstance(error, LoopError) else 1}


def _too_long() -> LoopError:
    return LoopError(f"a request has at most {MAX_REQUEST_BYTES} bytes")


def _line(answer: Json) -> memoryview:
    return memoryview(json.dumps(answer, default=str).encode() + b"\n")


# ---- loopctl's half -------------------------------------------------------------------------------------------------


def ask(run_dir: Path, command: str, timeout_s: float = 5.0, **arguments: Any) -> Json:
    """Have the run's process do something; its answer, without "ok".

    NotRunning if there is no such process. Otherwise LoopError: the error that it gave, with its exit code, or that it
    gave none in time; then nobody knows whether it was done, and asking again is the remedy. PermissionDenied where this
    user may not reach it.
    """
    answer = _exchange(run_dir, {"command": command, **arguments}, timeout_s)
    if answer.pop("ok", False) is not True:
        error = LoopError(str(answer.get("error", "the daemon gave no reason")))
        with contextlib.suppress(ValueError, TypeError):
            error.exit_code = int(answer.get("exit_code", 1))
        raise error
    return answer


def _exchange(run_dir: Path, request: Json, timeout_s: float) -> Json:
    deadline = time.monotonic() + timeout_s
    line = json.dumps(request).encode() + b"\n"
    if len(line) > MAX_REQUEST_BYTES:
        raise _too_long()
    text = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _connect(connection, run_dir, deadline)
            try:
                connection.settimeout(_left(deadline))
                connection.sendall(line)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before it was read: the answer says why
            with contextlib.suppress(ConnectionResetError):
                while not text.endswith(b"\n") and len(text) <= MAX_ANSWER_BYTES:
                    connection.settimeout(_left(deadline))
                    chunk = connection.recv(1 << 16)
                    if not chunk:
                        break
                    text += chunk
    except TimeoutError:
        raise LoopError(
            f"the daemon did not answer within {timeout_s:g} s; ask again, or see `loopctl status`"
        ) from None
    except PermissionError:
        raise PermissionDenied(
            f"{run_dir / SOCKET}: permission denied; ask as the user who runs the loop, or as root"
        ) from None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NotRunning(f"nothing runs in {run_dir}; `loopctl start` starts the daemon") from None
    except OSError as error:
        raise LoopError(f"{run_dir / SOCKET}: {error.strerror}; see `loopctl status`") from None
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
            except BlockingIOError:  # so many wait that the kernel takes no more just now
                time.sleep(0.02)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
