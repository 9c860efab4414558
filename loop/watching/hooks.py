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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from loop.config.machine import Watching
from loop.system.guarded import LOOK_S, NOT_STARTED, run_guarded
from loop.watching.teller import Clock, Say, Teller, reason
from store.records import DecisionRow, Json, Round, RunState

MOST_WAITING = 100  # events
END_S = 5.0  # for what is still queued when the daemon ends


class Hooks(Teller[Json]):
    """Tells one event after another; the oldest is dropped when too many wait.

    `run` is the run's name. `directory` is where the command runs; by default where the daemon does.
    """

    def __init__(
        self, settings: Watching, run: str, say: Say, directory: Path | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.settings, self.run, self.directory = settings, run, directory
        self._posting: threading.Thread | None = None
        super().__init__("hooks", say, clock)

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if state == "paused":
            self.tell("pause", {"reason": reason, "until": until.isoformat() if until else None})

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if decision:
            reasons = [gate["reason"] for gate in decision.gates]
            self.tell(
                "decision",
                {
                    "round": round.number,
                    "verdict": decision.verdict,
                    "action": decision.action,
                    "reasons": reasons,
                    "head_before": decision.head_before,
                    "head_after": decision.head_after,
                },
            )
        else:
            self.tell("failure", {"round": round.number, "stage": round.stage, "error": round.error})

    def tell(self, event: str, more: Json) -> None:
        """Queue an event, if the configuration wants it told. Returns at once, from any thread; does nothing after `close`."""
        if event not in self.settings.on:
            return
        with self._news:
            if self._closing:
                return
            dropped = self._waiting.popleft() if len(self._waiting) >= MOST_WAITING else None
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._waiting.append({"event": event, "time": now, "run": self.run, **more})
            self._news.notify()
        if dropped:
            event = dropped["event"]
            self.say("warning", f"watching: {MOST_WAITING} events wait to be told; dropped the oldest, a {event}")

    def close(self, timeout_s: float = END_S) -> None:
        """See `Teller`."""
        super().close(timeout_s)
        if self._waiting:
            self.say("warning", f"watching: {len(self._waiting)} events were not told before the end")
            self._waiting.clear()

    def listeners(self) -> Iterator[tuple[str, Callable[[Json], None]]]:
        """The command and the webhook, as far as the configuration has them."""
        if self.settings.command:
            yield "command", self._command
        if self.settings.webhook:
            yield "webhook", self._webhook

    def _command(self, told: Json) -> None:
        command, is_over = self.settings.command, self.patience(self.settings.timeout_s)
        # In memory: unlike a pipe, it never blocks, however little of it the command reads.
        with open(os.memfd_create("event"), "w+b", buffering=0) as stdin:
            stdin.write(_body(told))
            stdin.seek(0)
            code = run_guarded(command, is_over, stdin=stdin, stderr=subprocess.DEVNULL, cwd=self.directory)
        if code is None:
            self.say("warning", f"watching.command: {command[0]} took too long and was ended")
        elif code:
            self.say("warning", f"watching.command: {command[0]}: {NOT_STARTED.get(code, f'exit code {code}')}")

    def _webhook(self, told: Json) -> None:
        url, body, timeout_s = str(self.settings.webhook), _body(told), self.settings.timeout_s
        host = urlsplit(url).hostname
        if self._posting and self._posting.is_alive():
            self.say("warning", f"watching.webhook: {host} has not answered the last event yet; not told")
            return
        problems: list[str] = []
        # A thread of its own: urllib's timeout is that of one read, and looking up a name has none.
        self._posting = threading.Thread(
            target=lambda: problems.extend(_post(url, body, timeout_s)), name="webhook", daemon=True
        )
        self._posting.start()
        is_over = self.patience(timeout_s)
        while self._posting.is_alive() and not is_over():
            self._posting.join(LOOK_S)
        for problem in ["took too long"] if self._posting.is_alive() else problems:
            self.say("warning", f"watching.webhook: {host}: {problem}")


def _body(told: Json) -> bytes:
    return json.dumps(told, default=str).encode()


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
        return [reason(error.reason)]
    except Exception as error:
        return [reason(error)]
    return []


def hooks_of(
    settings: Watching, run: str, say: Say, directory: Path | None = None
) -> contextlib.AbstractContextManager[Hooks | None]:
    """The hooks of a configuration while the block lasts; None if it has none."""
    if not settings.command and not settings.webhook:
        return contextlib.nullcontext()
    return contextlib.closing(Hooks(settings, run, say, directory))
