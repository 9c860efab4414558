"""Hooks: what a command and a webhook are told, and that nothing they do is in the loop's way or outlives it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGCHLD, SIGINT, SIGPIPE, SIGTERM, SIGXFSZ
from typing import Any
from unittest.mock import MagicMock, Mock

import psutil
import pytest

from loop.config.same_run import resolved
from loop.config.settings import Watching
from loop.watching import hooks as hooks_module
from loop.watching.hooks import MOST_WAITING, Hooks, hooks_of
from store.records import DecisionRow, Round
from tests.support.configurations import VALID, load_text, mistakes_in
from tests.support.runs import environment
from tests.support.waiting import HANG_S, Clock, Log, pid_in, wait_until
from tests.support.workers import alive


@pytest.fixture
def log() -> Log:
    return Log()


def settings(**keys: Any) -> Watching:
    return Watching(**{"timeout_s": HANG_S} | keys)


def shell(words: str, *arguments: object) -> tuple[str, ...]:
    return ("sh", "-c", words, "sh", *map(str, arguments))


@contextlib.contextmanager
def telling(watching: Watching, log: Log, *more: Any, **keys: Any) -> Iterator[Hooks]:
    hooks = Hooks(watching, "demo", log, *more, **keys)
    try:
        yield hooks
    finally:
        hooks.close(HANG_S)


def tell(log: Log, *events: tuple[str, dict[str, Any]], directory: Path | None = None, **keys: Any) -> None:
    """Tell hooks with these settings all of it; without an event, that of a pause."""
    with telling(settings(**keys), log, directory) as hooks:
        for event, more in events or [("pause", {})]:
            hooks.tell(event, more)


def appending(file: Path) -> tuple[str, ...]:
    """The command that adds what it is told to a file, a line each."""
    return shell('cat >> "$1"; echo >> "$1"', file)


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_command_gets_json_objects(tmp_path: Path, log: Log) -> None:
    gone_wrong = Round("r", 4, "failed", "training", "p", None, "2026-03-02T12:00:00Z", None, "no room")
    kept = dataclasses.replace(gone_wrong, state="kept", error=None)
    decision = DecisionRow("r", 4, "keep", "keep", [{"reason": "it gained"}], {}, {}, "p", "c")
    with telling(settings(command=appending(tmp_path / "got")), log) as hooks:
        hooks.state("running", None, None)
        hooks.state("paused", "outside schedule.windows", datetime(2026, 3, 2, 22, tzinfo=UTC))
        hooks.round_ended(kept, decision)
        hooks.round_ended(gone_wrong, None)
        hooks.tell("decision", {"reasons": ["größer", "\x1b[31m"], "at": Path("x")})
    lines = lines_of(tmp_path / "got")
    assert all(line.pop("time").endswith("Z") for line in lines) and log == []
    assert lines == [
        {"event": "pause", "run": "demo", "reason": "outside schedule.windows", "until": "2026-03-02T22:00:00+00:00"},
        {
            "event": "decision",
            "run": "demo",
            "round": 4,
            "verdict": "keep",
            "action": "keep",
            "reasons": ["it gained"],
            "head_before": "p",
            "head_after": "c",
        },
        {"event": "failure", "run": "demo", "round": 4, "stage": "training", "error": "no room"},
        {"event": "decision", "run": "demo", "reasons": ["größer", "\x1b[31m"], "at": "x"},
    ]


def test_only_what_is_wanted_in_order(tmp_path: Path, log: Log) -> None:
    events = [(event, {"number": n}) for n, event in enumerate(["decision", "pause", "failure", "pause", "nonsense"])]
    tell(log, *events, on=("pause", "failure"), command=appending(tmp_path / "got"))
    got = [(line["event"], line["number"]) for line in lines_of(tmp_path / "got")]
    assert got == [("pause", 1), ("failure", 2), ("pause", 3)]


@pytest.mark.parametrize("words", ["sleep 0.3; wc -c", "true", "exec 0<&-"])
def test_how_much_it_reads_is_its_own_business(tmp_path: Path, log: Log, words: str) -> None:
    tell(log, ("decision", {"reasons": ["x" * 1_000_000]}), command=shell(f'({words}) > "$1"', tmp_path / "got"))
    assert log == []
    if "wc" in words:
        assert int((tmp_path / "got").read_text()) > 1_000_000


def test_there_is_no_shell(tmp_path: Path, log: Log) -> None:
    words = f"$(touch {tmp_path}/no); touch {tmp_path}/no"
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    tell(log, command=(sys.executable, "-c", write, str(tmp_path / "got"), words))
    assert (tmp_path / "got").read_text() == words and not (tmp_path / "no").exists()


def test_where_and_how_it_runs(tmp_path: Path, log: Log) -> None:
    tell(log, directory=tmp_path, command=shell("grep -E 'Sig(Ign|Blk)' /proc/self/status > got"))
    # What Python itself ignores, and what the daemon handles; whoever runs the tests may have ignored others.
    ours = sum(1 << (number - 1) for number in (SIGPIPE, SIGXFSZ, SIGTERM, SIGINT, SIGCHLD))
    blocked, ignored = (int(line.split()[1], 16) for line in (tmp_path / "got").read_text().splitlines())
    assert blocked == 0 and ignored & ours == 0


def test_a_failure_is_a_line_in_the_log(tmp_path: Path, log: Log) -> None:
    for command in (shell("exit 7"), ("/none/such",), (str(tmp_path),), shell("kill -9 $$")):
        tell(log, command=command)
    tell(log, ("pause", {}), ("pause", {}), directory=tmp_path / "none", command=("true",))
    assert [line.removeprefix("watching.command: ") for line in log] == [
        "sh: exit code 7",
        "/none/such: there is no such command",
        f"{tmp_path}: it may not be executed",
        "sh: exit code 137",
        *["No such file or directory"] * 2,
    ]


DEAF = 'trap "" TERM HUP; setsid sleep 1000 & echo $! > "$1/below"; echo $$ > "$1/top"; while true; do sleep 1; done'


def test_what_takes_too_long_is_ended_with_all_below_it(tmp_path: Path, log: Log) -> None:
    clock, pids = Clock(), [0, 0]
    with telling(settings(command=shell(DEAF, tmp_path)), log, clock=clock) as hooks:
        hooks.tell("pause", {})
        hooks.tell("decision", {})
        for number in (1, 2):
            pids = [pid_in(tmp_path / name, but=pid) for name, pid in zip(("below", "top"), pids, strict=True)]
            clock.now_s += HANG_S
            wait_until(lambda number=number: len(log) == number)
            assert not any(map(alive, pids))
    assert log == ["watching.command: sh took too long and was ended"] * 2


@pytest.mark.parametrize("is_killed", [False, True])
def test_nothing_outlives_a_command_or_its_killed_guard(tmp_path: Path, log: Log, is_killed: bool) -> None:
    words = 'echo $PPID > "$1/guard"; setsid sleep 1000 & echo $! > "$1/below"' + "; sleep 1000" * is_killed
    with telling(settings(command=shell(words, tmp_path)), log) as hooks:
        hooks.tell("pause", {})
        guard, below = pid_in(tmp_path / "guard"), pid_in(tmp_path / "below")
        if is_killed:
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda: log)
            assert not alive(below)
        wait_until(lambda: not alive(below))
    assert log == ["watching.command: sh: exit code -9"] * is_killed


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_daemon(tmp_path: Path, signum: signal.Signals) -> None:
    words = """
import sys, time
from loop.config.settings import Watching
from loop.watching.hooks import Hooks
Hooks(Watching(command=tuple(sys.argv[1:])), "demo", print).tell("pause", {})
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", words, *shell(DEAF, tmp_path)], env=environment()) as daemon:
        pids = [pid_in(tmp_path / name) for name in ("below", "top")]
        guard = psutil.Process(daemon.pid).children()[0]
        assert all(map(alive, pids))
        daemon.send_signal(signum)
    wait_until(lambda: not any(map(alive, [*pids, guard.pid])))


def test_the_oldest_is_dropped_when_too_many_wait(tmp_path: Path, log: Log) -> None:
    words = 'cat >> "$1/got"; echo >> "$1/got"; while test ! -e "$1/go"; do sleep 0.02; done'
    with telling(settings(on=("pause", "decision"), command=shell(words, tmp_path)), log) as hooks:
        hooks.tell("pause", {"number": -1})
        wait_until(lambda: (tmp_path / "got").exists())
        for number in range(MOST_WAITING + 3):
            hooks.tell("decision", {"number": number})
        assert log == ["watching: 100 events wait to be told; dropped the oldest, a decision"] * 3
        assert [waiting["number"] for waiting in hooks._waiting] == list(range(3, MOST_WAITING + 3))
        hooks.settings = settings(on=("pause",))  # the rest of them need not run
        (tmp_path / "go").touch()


def test_the_thread_outlives_what_cannot_be_told(tmp_path: Path, log: Log) -> None:
    broken = MagicMock(__str__=Mock(side_effect=RuntimeError("s3cret")))
    tell(log, ("pause", {"number": broken}), ("pause", {"number": 2}), command=appending(tmp_path / "got"))
    assert [line["number"] for line in lines_of(tmp_path / "got")] == [2]
    assert "watching.command: RuntimeError" in log and "s3cret" not in str(log)


def test_what_is_queued_at_the_end_has_some_time(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Hooks.close.__defaults__ == (hooks_module.END_S,) and hooks_module.END_S > 0
    monkeypatch.setattr(Hooks.close, "__defaults__", (HANG_S,))
    with hooks_of(settings(command=shell('sleep 0.1; echo >> "$1"', tmp_path / "got")), "demo", log) as hooks:
        assert hooks is not None
        for _ in range(5):
            hooks.tell("decision", {})
    assert (tmp_path / "got").read_text() == "\n" * 5 and log == []


def test_at_the_end_of_that_time_everything_ends(tmp_path: Path, log: Log) -> None:
    words = 'echo $$ > "$1/top"; setsid sleep 1000 & echo $! > "$1/below"; sleep 1000'
    hooks = Hooks(settings(command=shell(words, tmp_path), timeout_s=1000.0), "demo", log)
    for _ in range(3):
        hooks.tell("decision", {})
    pids = [pid_in(tmp_path / name) for name in ("below", "top")]
    hooks.close(0.1)
    assert not hooks._thread.is_alive() and not any(map(alive, pids))
    ended = "watching.command: sh took too long and was ended"
    assert log == [ended, "watching: 2 events were not told before the end"]
    hooks.close(0.1)
    hooks.tell("decision", {})
    assert not hooks._waiting


def test_without_hooks_there_is_no_thread(log: Log) -> None:
    before = threading.active_count()
    with hooks_of(Watching(prometheus_port=9999), "demo", log) as hooks:
        assert hooks is None and threading.active_count() == before


class Answering(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.command, self.path, dict(self.headers), json.loads(body or b"null")))
        self.server.hold.wait(HANG_S)
        with contextlib.suppress(OSError):
            self.send_response(self.server.status)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
            self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


class Receiver(ThreadingHTTPServer):
    """A web server on this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.got: list[tuple[str, str, dict[str, str], Any]] = []
        self.status, self.hold = 204, threading.Event()
        self.hold.set()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True).start()
        yield receiver
        receiver.hold.set()
        receiver.shutdown()


def test_a_webhook_gets_the_same(receiver: Receiver, tmp_path: Path, log: Log) -> None:
    url = f"http://us%40er:s3cret@127.0.0.1:{receiver.server_port}/hook?key=s3cret#part"
    tell(log, ("failure", {"round": 2, "error": "größer"}), webhook=url, command=appending(tmp_path / "got"))
    [(method, path, headers, body)] = receiver.got
    assert (method, path, headers["Content-Type"]) == ("POST", "/hook?key=s3cret", "application/json")
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"us@er:s3cret").decode()
    assert headers["Host"] == f"127.0.0.1:{receiver.server_port}"
    assert body["error"] == "größer" and [body] == lines_of(tmp_path / "got")
    assert log == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 500])
def test_another_answer_is_a_line_in_the_log_and_leads_nowhere(receiver: Receiver, log: Log, status: int) -> None:
    receiver.status = status
    tell(log, webhook=f"http://u:s3cret@localhost:{receiver.server_port}/s3cret?s3cret")
    assert [got[1] for got in receiver.got] == ["/s3cret?s3cret"]
    moved = "; it names another address: give that one" if status < 400 else ""
    assert log == [f"watching.webhook: localhost: answered {status}{moved}"]


def test_a_server_that_does_not_answer_is_given_up(receiver: Receiver, log: Log) -> None:
    receiver.hold.clear()
    # Each read may take as long as the whole: a server that drips must not have for ever.
    with telling(settings(webhook=f"http://127.0.0.1:{receiver.server_port}", timeout_s=0.5), log) as hooks:
        hooks.tell("pause", {})
        wait_until(lambda: log)
        receiver.hold.set()
    assert log[0] in ("watching.webhook: 127.0.0.1: took too long", "watching.webhook: 127.0.0.1: TimeoutError")


def test_a_server_that_drips_is_given_up_and_not_told_twice_at_a_time(log: Log) -> None:
    begun, over, clock = threading.Event(), threading.Event(), Clock()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection = listener.accept()[0]
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.0 200 OK\r\nX: ")
                while not over.wait(0.05):
                    connection.sendall(b"x")
                    begun.set()

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with telling(settings(webhook=url), log, clock=clock) as hooks:
            hooks.tell("pause", {})
            hooks.tell("pause", {})
            assert begun.wait(HANG_S)
            clock.now_s += HANG_S
            wait_until(lambda: len(log) == 2)
        over.set()
        thread.join()
    unanswered = "127.0.0.1 has not answered the last event yet; not told"
    assert log == ["watching.webhook: 127.0.0.1: took too long", f"watching.webhook: {unanswered}"]


@pytest.mark.parametrize(
    "url",
    [
        "http://u:s3cret@127.0.0.1:1/s3cret?t=s3cret",  # nobody listens at this port
        "http://u:s3cret@host.invalid/s3cret",
        "http://u:s3cret@127.0.0.1:s3cret/",
        "http://127.0.0.1/s3\x00cret s3cret\n",
        "http://[s3cret/",
        "s3cret://127.0.0.1/",
        "https://u:s3cret@127.0.0.1:{port}/s3cret",  # it does not speak TLS
    ],
)
def test_secrets_are_not_logged(receiver: Receiver, log: Log, url: str) -> None:
    with telling(Watching.model_construct(webhook=url.format(port=receiver.server_port), timeout_s=5.0), log) as hooks:
        hooks.tell("pause", {})
    assert len(log) == 1 and log[0].startswith("watching.webhook: ") and "s3cret" not in log[0]


def test_the_webhook_is_not_kept_with_the_run(tmp_path: Path) -> None:
    keys = 'webhook = "https://u:s3cret@example.org/s3cret"\ntimeout_s = 3.5\n'
    config = load_text(tmp_path, f"{VALID}[watching]\n{keys}").config
    assert config.watching.webhook == "https://u:s3cret@example.org/s3cret"
    assert "s3cret" not in json.dumps(resolved(config)) + repr(config)
    assert resolved(config)["watching"]["timeout_s"] == 3.5


NO_ADDRESSES = ("ftp://example.org/s3cret", "s3cret", "https:///s3cret", "https://u:s3cret@", "https://[s3cret/", "",
                "https://example.org/s3cret two", "https://example.org:s3cret/")  # fmt: skip
MISTAKES = (*(f'webhook = "{url}"' for url in NO_ADDRESSES), 'webhook = ["s3cret"]', 'command = [""]',
            'command = ["a", "\\u0000"]', 'on = ["decision", "failed"]', "timeout_s = 0", "prometheus_port = 0",
            "prometheus_port = 65536")  # fmt: skip


@pytest.mark.parametrize("keys", MISTAKES)
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, keys: str) -> None:
    (line,) = mistakes_in(tmp_path, f"{VALID}[watching]\n{keys}\n")
    assert f"watching.{keys.split(' ')[0]}" in line and "s3cret" not in line


def test_web_addresses() -> None:
    for url in ("http://localhost", "https://[::1]:8443/x?y=z", "https://example.org/b-c_d%20e", "HTTPS://EXAMPLE.org"):
        assert Watching(webhook=url).webhook == url
