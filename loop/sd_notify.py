"""What a service manager is told, by systemd's notify protocol: a datagram to the socket in $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """Says READY, STATUS, WATCHDOG and STOPPING; says nothing where nobody asked. Never raises, never waits.

    The variables are taken out of the environment: a worker must not speak for the daemon.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_usec, watchdog_pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = watchdog_pid in ("", str(os.getpid()))
        self._every_s = int(watchdog_usec) / 3e6 if watchdog_usec.isdigit() and ours else None
        self._last = float("-inf")
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self) -> None:
        """Everything is checked and open."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> None:
        """The loop moves. Call it as often as it does; a third of the time allowed lies between two messages."""
        now = time.monotonic()
        if self._every_s is not None and now - self._last >= self._every_s:
            self._last = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(errors="replace")[:4096], self._address)
