"""What a service manager is told, by systemd's notify protocol: datagrams to the socket named in $NOTIFY_SOCKET.

See sd_notify(3) and sd_watchdog_enabled(3). A file's path and an abstract address ("@...") are understood.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

MAX_STATUS = 1000  # characters


class Notifier:
    """Says READY, STATUS, WATCHDOG and STOPPING; says nothing where nobody asked. Never raises, never waits.

    Making one takes the variables out of the environment: what the daemon starts must not speak for it. What the service
    manager has no room for at the moment goes with the next message.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_usec, watchdog_pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._every_s = _third_s(watchdog_usec) if watchdog_pid in ("", str(os.getpid())) else None
        self._last = float("-inf")
        self._unsaid: dict[str, str] = {}
        self._socket: socket.socket | None = None
        if address[:1] in ("@", "/"):
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)

    def ready(self) -> None:
        """Everything is checked and open."""
        self._say("READY", "1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`: line breaks become spaces, a long text is cut."""
        line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
        self._say("STATUS", line[:MAX_STATUS])

    def watchdog(self) -> None:
        """The loop moves. Call it as often as it does; a third of the time allowed lies between two messages."""
        now = time.monotonic()
        if self._every_s is not None and now - self._last >= self._every_s:
            self._last = now
            self._say("WATCHDOG", "1")

    def stopping(self) -> None:
        """It is about to end."""
        self._say("STOPPING", "1")

    def _say(self, name: str, value: str) -> None:
        if self._socket is None:
            return
        self._unsaid[name] = value
        message = "\n".join(f"{name}={value}" for name, value in self._unsaid.items())
        with contextlib.suppress(OSError, ValueError):
            self._socket.sendto(message.encode(errors="replace"), self._address)
            self._unsaid = {}


def _third_s(usec: str) -> float | None:
    """A third of the time that the watchdog allows; None without one."""
    with contextlib.suppress(ValueError, OverflowError):
        return int(usec) / 3e6 if int(usec) > 0 else None
    return None
