"""One warm Python in the sandbox, from which solutions are forked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from typing import Any, NamedTuple

from loop.errors import HarnessError

ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "TZ": "UTC"}
START_TIMEOUT_S = 60.0
"""A busy machine may take long to start a process, which is no fault of the program."""
END_TIMEOUT_S = 30.0


class Ended(NamedTuple):
    """How a process of a job ended: its exit status, negative for a signal, or None if it was killed at the end."""

    status: int | None
    cpu_s: float


class Interpreter:
    """A process in a sandbox that forks others on order. It never runs a solution itself."""

    def __init__(
        self,
        command: list[str],
        core: int,
        programs: bytes,
        level: str,
        directory: str,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._level = level
        self._errors = _memory_file()
        self._control, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its_end:
                self._process = subprocess.Popen(
                    command,
                    stdin=its_end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env=ENVIRONMENT if level == "none" else {},
                    cwd=directory if level == "none" else "/",
                    start_new_session=True,
                )
        except OSError as error:
            self._control.close()
            self._errors.close()
            raise HarnessError(f"the sandbox could not start: {error.strerror}") from None
        self.pid = self._process.pid
        self._control.settimeout(start_timeout_s)
        try:
            self._control.send(core.to_bytes(8, "little"))
            self._control.send(programs)
            reply = self._control.recv(100)
        except OSError:
            reply = b""
        if reply != b"ready":
            words = self.last_words()
            self.close()
            raise HarnessError(f"the sandbox could not start: {words}")
        self._control.settimeout(END_TIMEOUT_S)

    def order(self, order: dict[str, Any], its_end: socket.socket) -> None:
        """Have it start a process that holds this socket."""
        try:
            socket.send_fds(self._control, [json.dumps(order).encode()], [its_end.fileno()])
        except OSError:
            raise HarnessError(f"the sandbox has ended ({self.last_words()})") from None

    def end(self, role: str, wait: bool = False) -> Ended:
        """End a process that it has started. With `wait` the process is given time to end by itself."""
        try:
            self._control.send(json.dumps({"do": "end", "role": role, "wait": wait}).encode())
            return Ended(**json.loads(self._control.recv(1 << 16)))
        except (OSError, ValueError, TypeError):
            raise HarnessError(f"the sandbox has ended ({self.last_words()})") from None

    def wait(self) -> None:
        """Wait until it ends by itself, however long that takes."""
        self._process.wait()

    def last_words(self) -> str:
        """The end of what bwrap or Python wrote to standard error, in one line."""
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), 4000, max(0, size - 4000)).decode("utf-8", "replace")
        return " ".join(text.replace(";", ",").split())[-300:] or "it said nothing"

    def kill(self) -> None:
        """Kill it; may be called from another thread."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.poll() is None or self._level == "none":
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it with all that it started, and wait until it is gone. Safe to repeat."""
        if self._control.fileno() < 0:
            return
        self.kill()
        self._process.wait()
        if self._level != "none":  # the last process inside holds the control socket open
            self._control.settimeout(5.0)
            with contextlib.suppress(OSError):
                while self._control.recv(1 << 16):
                    pass
        self._control.close()
        self._errors.close()


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create("errors"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
