"""A command or a webhook that is told of decisions, pauses and failures. Nothing that it does can hold up a round.

Both get the same JSON object: {"event": "decision" | "pause" | "failure", "time", ...}; the command on its standard input,
the webhook by POST. Telling is tried once: what fails is a line in the log, in which no part of a URL but its host stands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from loop.config.machine import Watching
from loop.system import trees as guard
from loop.system.guarded import LOOK_S, NOT_STARTED, run_guarded
from store.records import DecisionRow, Round, RunState

MOST_WAITING = 100  # events
END_S = 5.0  # for what is still queued when the daemon ends


class Hooks:
    """A thread that tells one event after another; the oldest is dropped when too many wait.

    `say(level, text)` is called for what goes wrong, from that thread or from the one that calls `tell`. `run` is the
    run's name. `directory` is where the command runs; by default where the daemon does. `clock` gives seconds.
    """

    def __init__(
        self,
        settings: Watching,
        run: str,
        say: Callable[[str, str], None],
        directory: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.run, self.say, self.directory, self.clock = settings, run, say, directory, clock
        self._waiting: deque[dict[str, Any]] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._give_up_at = float("inf")  # by the clock
        self._posting: threading.Thread | None = None
        # The thread must live until `close`: a command gets its death signal when the thread that started it ends.
        self._thread = threading.Thread(target=self._work, name="hooks", daemon=True)
        self._thread.start()

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if state == "paused":
            self.tell("pause", {"reason": reason, "until": until.isoformat() if until else None})

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if decision:
            reasons = [gate["reason"] for gate in decision.gates]
            self.tell("decision", {"round": round.number, "verdict": decision.verdict, "reasons": reasons})
        else:
            self.tell("failure", {"round": round.number, "stage": round.stage, "error": round.error})

    def tell(self, event: str, more: dict[str, Any]) -> None:
        """Queue an event, if the configuration wants it told. Returns at once, from any thread; does nothing after `close`."""
        if event not in self.settings.on:
            return
        dropped = None
        with self._news:
            if self._closing:
                return
            if len(self._waiting) >= MOST_WAITING:
                dropped = self._waiting.popleft()
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._waiting.append({"event": event, "time": now, "run": self.run, **more})
            self._news.notify()
        if dropped:
            event = dropped["event"]
            self.say("warning", f"watching: {MOST_WAITING} events wait to be told; dropped the oldest, a {event}")

    def close(self, timeout_s: float = END_S) -> None:
        """Tell what is queued for at most that long; then end the command that runs and drop the rest.

        No process of a command is left when this returns. Safe to repeat.
        """
        with self._news:
            self._closing = True
            self._give_up_at = min(self._give_up_at, self.clock() + timeout_s)
            self._news.notify()
        self._thread.join(timeout_s + 2 * guard.END_TIMEOUT_S)

    def _work(self) -> None:
        while (told := self._next()) is not None:
            for name, tell in (("command", self._command), ("webhook", self._webhook)):
                if self.clock() >= self._give_up_at:
                    break
                try:
                    tell(json.dumps(told, default=str).encode())
                except Exception as error:  # the thread outlives whatever goes wrong with one event
                    self.say("warning", f"watching.{name}: {_reason(error)}")

    def _next(self) -> dict[str, Any] | None:
        with self._news:
            while not self._waiting and not self._closing:
                self._news.wait()
            if self._waiting and self.clock() < self._give_up_at:
                return self._waiting.popleft()
            if self._waiting:
                self.say("warning", f"watching: {len(self._waiting)} events were not told before the end")
                self._waiting.clear()
            return None

    def _patience(self) -> Callable[[], bool]:
        """Tells whether watching.timeout_s have passed since this call, or everything is given up at the end."""
        deadline = self.clock() + self.settings.timeout_s
        return lambda: self.clock() >= min(deadline, self._give_up_at)

    def _command(self, body: bytes) -> None:
        if not self.settings.command:
            return
        name = self.settings.command[0]
        stdin = os.memfd_create("event")  # unlike a pipe, it never blocks, however little of it the command reads
        try:
            os.write(stdin, body)
            os.lseek(stdin, 0, os.SEEK_SET)
            code = run_guarded(
                self.settings.command, self._patience(), stdin=stdin, stderr=subprocess.DEVNULL, cwd=self.directory
            )
        finally:
            os.close(stdin)
        if code is None:
            self.say("warning", f"watching.command: {name} took too long and was ended")
        elif code:
            self.say("warning", f"watching.command: {name}: {NOT_STARTED.get(code, f'exit code {code}')}")

    def _webhook(self, body: bytes) -> None:
        if not self.settings.webhook:
            return
        host = urlsplit(self.settings.webhook).hostname
        if self._posting and self._posting.is_alive():
            self.say("warning", f"watching.webhook: {host} has not answered the last event yet; not told")
            return
        problems: list[str] = []
        # A thread of its own: urllib's timeout is that of one read, and looking up a name has none.
        self._posting = threading.Thread(
            target=lambda: problems.extend(_post(str(self.settings.webhook), body, self.settings.timeout_s)),
            name="webhook",
            daemon=True,
        )
        self._posting.start()
        is_over = self._patience()
        while self._posting.is_alive() and not is_over():
            self._posting.join(LOOK_S)
        for problem in ["took too long"] if self._posting.is_alive() else problems:
            self.say("warning", f"watching.webhook: {host}: {problem}")


def _reason(error: object) -> str:
    """What went wrong, without a library's own message, which may hold a URL."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _post(url: str, body: bytes, timeout_s: float) -> list[str]:
    """POST it; what went wrong, without any part of the URL."""
    import urllib.error  # here, since it costs two megabytes of memory
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        """A POST that is redirected becomes a GET without the body, perhaps to somebody else."""

        def redirect_request(self, *_: Any) -> None:
            return None

    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "loopd"}
    userinfo, _, place = parts.netloc.rpartition("@")
    if userinfo:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(userinfo).encode()).decode()
    try:
        bare = urlunsplit((parts.scheme, place, parts.path, parts.query, ""))
        request = urllib.request.Request(bare, body, headers, method="POST")
        with urllib.request.build_opener(NoRedirects).open(request, timeout=timeout_s) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        moved = "; it names another address: give that one" if 300 <= error.code < 400 else ""
        error.close()
        return [f"answered {error.code}{moved}"]
    except urllib.error.URLError as error:
        return [_reason(error.reason)]
    except Exception as error:
        return [_reason(error)]
    return []


@contextlib.contextmanager
def hooks_of(
    settings: Watching, run: str, say: Callable[[str, str], None], directory: Path | None = None
) -> Iterator[Hooks | None]:
    """The hooks of a configuration while the block lasts; None if it has none."""
    if not settings.command and not settings.webhook:
        yield None
        return
    hooks = Hooks(settings, run, say, directory)
    try:
        yield hooks
    finally:
        hooks.close()
