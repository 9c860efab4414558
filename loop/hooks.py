"""A command or a webhook that is told of decisions, pauses and failures. Nothing that it does can hold up a round."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from loop.config import Watching

MOST_WAITING = 100
END_S = 5.0  # what is queued when the daemon ends has so long

# The command's parent: it dies with the daemon and takes the command's process group with it.
_KEEPER = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
child = subprocess.Popen(sys.argv[2:], start_new_session=True)
def end(*_):
    os.killpg(child.pid, signal.SIGKILL)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
code = child.wait()
sys.exit(code if code >= 0 else 128 - code)
"""


class Hooks:
    """One thread that tells one thing after another; the oldest is dropped when too many wait."""

    def __init__(self, settings: Watching, say: Callable[[str, str], None]) -> None:
        self.settings, self.say = settings, say
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="hooks", daemon=True)
        self._thread.start()

    def tell(self, event: str, more: dict[str, Any]) -> None:
        """Queue it, if the configuration wants it told. Returns at once."""
        if event not in self.settings.on:
            return
        if self._waiting.qsize() >= MOST_WAITING:
            with contextlib.suppress(queue.Empty):
                lost = self._waiting.get_nowait()
                self.say("warning", f"watching: too much waits to be told; dropped: {lost and lost['event']}")
        self._waiting.put({"event": event, **more})

    def close(self) -> None:
        """Let what is queued be told, for a short time."""
        self._waiting.put(None)
        self._thread.join(END_S)

    def _work(self) -> None:
        while (told := self._waiting.get()) is not None:
            for tell in (self._command, self._webhook):
                try:
                    tell(json.dumps(told, default=str).encode())
                except Exception as error:  # a hook is never a reason to stop telling
                    self.say("warning", f"watching: {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _command(self, body: bytes) -> None:
        if not self.settings.command:
            return
        name, limit = self.settings.command[0], self.settings.timeout_s
        keeper = [sys.executable, "-I", "-S", "-c", _KEEPER, str(os.getpid()), *self.settings.command]
        # the thread that starts it lives as long as the daemon, so its death signal comes with the daemon's death
        process = subprocess.Popen(
            keeper, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.communicate(body, timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
            self.say("warning", f"watching.command: {name} took longer than {limit:g} s and was ended")
            return
        if process.returncode:
            self.say("warning", f"watching.command: {name} ended with exit code {process.returncode}")

    def _webhook(self, body: bytes) -> None:
        if not self.settings.webhook:
            return
        host = urlsplit(self.settings.webhook).hostname  # the rest may hold a secret
        request = urllib.request.Request(
            self.settings.webhook, body, {"Content-Type": "application/json", "User-Agent": "loopd"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.settings.timeout_s) as answer:
                answer.read(1024)
        except urllib.error.HTTPError as error:
            self.say("warning", f"watching.webhook: {host} answered {error.code}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self.say("warning", f"watching.webhook: {host}: {reason}")


@contextlib.contextmanager
def hooks_of(settings: Watching, say: Callable[[str, str], None]) -> Iterator[Hooks | None]:
    """The hooks of a configuration; None if it has none."""
    if not settings.command and not settings.webhook:
        yield None
        return
    hooks = Hooks(settings, say)
    try:
        yield hooks
    finally:
        hooks.close()
