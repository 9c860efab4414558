"""Tells a service manager how the daemon is, by systemd's notify protocol: datagrams to the socket in $NOTIFY_SOCKET.

See sd_notify(3) and sd_watchdog_enabled(3). The socket is a file or an abstract address ("@...").
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time

from loop.words import one_line

MAX_STATUS = 1000  # characters


class Notifier:
    """Says READY, STATUS, WATCHDOG and STOPPING, or nothing without a service manager. Never raises, never waits.

    A new Notifier takes the variables out of the environment: the daemon's children must not speak for it. A message for
    which the socket has no room goes with the next one.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_usec, watchdog_pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_wanted = watchdog_pid in ("", str(os.getpid())) and re.fullmatch("0*[1-9][0-9]{0,17}", watchdog_usec)
        self._every_s = int(watchdog_usec) / 3e6 if is_wanted else None  # a third of the time that is allowed
        self._last = float("-inf")
        self._unsaid: dict[str, str] = {}
        self._socket: socket.socket | None = None
        if address[:1] in ("@", "/"):
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)

    def ready(self) -> None:
        """Say that everything is checked and open."""
        self._say("READY", "1")

    def status(self, text: str) -> None:
        """Give `systemctl status` its line: line breaks become spaces, a long text is cut."""
        self._say("STATUS", one_line(text)[:MAX_STATUS])

    def watchdog(self) -> None:
        """Say that the loop moves. Call it as often as it does: a message goes out in every third of the time allowed."""
        now = time.monotonic()
        if self._every_s is not None and now - self._last >= self._every_s:
            self._last = now
            self._say("WATCHDOG", "1")

    def stopping(self) -> None:
        """Say that the daemon is about to end."""
        self._say("STOPPING", "1")

    def _say(self, name: str, value: str) -> None:
        if self._socket is None:
            return
        self._unsaid[name] = value
        message = "\n".join(f"{name}={value}" for name, value in self._unsaid.items())
        with contextlib.suppress(OSError, ValueError):
            self._socket.sendto(message.encode(errors="replace"), self._address)
            self._unsaid = {}
