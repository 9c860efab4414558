"""`loopctl serve`: who is answered, what is shown while rounds run, and how it ends. Against the real server on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from loop.serve.live import CannotShow, Live
from loop.serve.sources import Mark
from loop.serve.who_may_ask import names
from store.db import open_database
from store.errors import NoStore
from tests.support import TESTS
from tests.support.browser import Shown, Tab, browser, needs_a_browser
from tests.support.cli import altered, call, finished, finished_run, ledger_of, one_line, start, write_configuration
from tests.support.experiments import loopctl, write_experiment
from tests.support.stages import Stages
from tests.support.waiting import HANG_S, Clock, wait_until

__all__ = ["call", "finished"]


class Served:
    """A server as a process, and requests to it."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.process = start(directory, "serve", "--port", "0", *arguments, **variables)
        assert self.process.stdout and self.process.stderr
        self.line = self.process.stdout.readline()
        assert self.line, self.process.stderr.read()
        self.url = json.loads(self.line)["url"] if "--json" in arguments else self.line.split()[0]
        self.port = urlsplit(self.url).port or 0

    def ask(self, path: str = "/", method: str = "GET", host: str | None = None, **headers: str) -> Any:
        """The answer, with `.body`, its text."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name}: {value}" for name, value in ({"Connection": "close"} | headers).items()]
        return self.answer("\r\n".join([*lines, "", ""]), method)

    def answer(self, request: str, method: str = "GET") -> Any:
        """Likewise, to exactly this request; it must ask for the end of the connection."""
        with self.connect() as connection:
            connection.sendall(request.encode())
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            answer.body = answer.read().decode()  # type: ignore[attr-defined]
            return answer

    def status(self) -> Any:
        return json.loads(self.ask("/status.json").body)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)

    def listen(self) -> socket.socket:
        """A stream of events, open."""
        stream = self.connect()
        stream.sendall(f"GET /events HTTP/1.1\r\nHost: localhost:{self.port}\r\n\r\n".encode())
        assert b"text/event-stream" in until(stream, b"data:")
        return stream

    def end(self, signum: int = signal.SIGINT) -> int:
        self.process.send_signal(signum)
        try:
            return self.process.wait(HANG_S)
        finally:
            self.process.kill()


def until(stream: socket.socket, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        received += (more := stream.recv(4096))
        assert more, received
    return received


@contextlib.contextmanager
def serving(directory: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    served = Served(directory, *arguments, **variables)
    try:
        yield served
    finally:
        served.end()


@contextlib.contextmanager
def running(directory: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`loopctl run` in a process of its own, which has done all rounds when the block ends."""
    process = start(directory, "run", **variables)
    try:
        yield process
        assert process.communicate(timeout=HANG_S) and process.returncode == 0
    finally:
        process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that change nothing."""
    directory = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(finished_run()[0], directory)
    with serving(directory) as served:
        yield served


def test_the_page_and_what_belongs_to_it(served: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/   \(Ctrl-C ends it\)\n", served.line)
    page, body = served.ask("/"), served.ask("/body")
    assert page.status == body.status == 200 and page.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "<html" in page.body and "EventSource" in page.body and "small" in body.body and "<html" not in body.body
    status = served.status()
    assert status["run"] == "small" and status["rounds"]["planned"] == 2 and status["pid"] is None
    assert served.ask("/healthz").body == "ok\n"
    assert served.ask("/nothing").status == 404 and "nothing" not in served.ask("/<nothing>").body


PATHS = ("/", "/body", "/events", "/status.json", "/healthz", "/nothing")


def test_foreign_names_are_refused(served: Served) -> None:
    port = served.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert served.ask(host=host).status == 200, host
    for host in ("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}", "127.0.0.1", "localhost:1",
                 f"127.0.0.1:{port}.evil.example", f"user@127.0.0.1:{port}", f"0.0.0.0:{port}", f"[::ffff:127.0.0.1]:{port}",
                 f"192.168.1.5:{port}", "", f"127.0.0.1:{port}, evil.example"):  # fmt: skip
        for path in PATHS:
            answer = served.ask(path, host=host or " ")
            assert answer.status in (400, 421), (host, path)
            assert "small" not in answer.body and "127.0.0.1" not in answer.body
    for lines in ("", f"Host: localhost:{port}\r\nHost: evil.example\r\n"):
        for version in ("1.0", "1.1"):
            assert served.answer(f"GET / HTTP/{version}\r\n{lines}Connection: close\r\n\r\n").status in (400, 421)


def test_only_reading(served: Served) -> None:
    for path in PATHS:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"):
            assert served.ask(path, method).status in (400, 405), (method, path)
        head = served.ask(path, "HEAD")
        assert (head.status, head.body) == (404 if path == "/nothing" else 200, "")
    version = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA=="}
    assert served.ask("/nothing", Upgrade="websocket", Connection="Upgrade", **version).status == 404


def test_what_every_answer_says_to_browsers(served: Served) -> None:
    for path, status in (("/", 200), ("/body", 200), ("/status.json", 200), ("/nothing", 404)):
        answer = served.ask(path, Origin="http://evil.example")
        headers = [answer.getheader("X-Content-Type-Options"), answer.getheader("Referrer-Policy")]
        assert answer.status == status and headers == ["nosniff", "no-referrer"]
        assert answer.getheader("Cache-Control") == "no-store" and answer.getheader("Server") is None
        policy = answer.getheader("Content-Security-Policy")
        assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
        assert "unsafe" not in policy and ("script-src" in policy) == (path == "/")
        assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control")]


def test_who_goes_away_leaves_nothing_behind(served: Served) -> None:
    server = psutil.Process(served.process.pid)
    served.ask("/")
    wait_until(lambda: all(connection.status == "LISTEN" for connection in server.connections()))
    before = server.num_fds(), server.num_threads()
    streams = [served.listen() for _ in range(20)]
    assert server.num_fds() >= before[0] + 20
    for number, stream in enumerate(streams):
        if number % 2:  # half of them by a reset
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.close()
    wait_until(lambda: server.num_fds() <= before[0] and server.num_threads() <= before[1])
    assert served.ask("/healthz").status == 200


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_though_somebody_looks(finished: Path, signum: int) -> None:
    with serving(finished) as served, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(served.listen())
        assert served.end(signum) == 0
        assert served.process.stderr and served.process.stderr.read() == ""


def test_a_round_in_another_process_is_followed_to_its_end(tmp_path: Path) -> None:
    write_configuration(tmp_path)
    stages = Stages(tmp_path)
    with serving(tmp_path) as served:
        waiting = served.ask("/")
        assert waiting.status == 200 and "start one with" in waiting.body and "round 1" not in waiting.body
        assert served.status()["state"] == "stopped"
        stages.stand_still("sampling")
        with running(tmp_path, **stages.variables) as run:
            for stage in ("sampling", "evaluating"):
                stages.stand_still(stage)
                stages.wait(stage)
                wait_until(lambda: "round 1" in served.ask("/body").body)
                assert served.status()["round"]["stage"] == stage
            stages.go_on()
            while run.poll() is None:
                assert served.ask("/body").status == 200
        with served.listen() as last, ledger_of(tmp_path) as ledger:
            stored = ledger.run()
            assert stored
            ledger.events.append(stored.id, "noted")
            until(last, b"data:")  # news come by themselves
        assert served.status()["last_decision"]["round"] == 2


@pytest.mark.slow
def test_an_experiment_is_shown_from_before_it_begins(tmp_path: Path) -> None:
    arms = 'name = "arms"\nrounds = 1\nseeds = [1]\n[[arms]]\nname = "plain"\n[[arms]]\nname = "other"\ntraining.num_steps = 2\n'
    path = write_experiment(tmp_path, arms)
    with serving(tmp_path, "--experiment", str(path)) as served:
        assert served.ask("/").status == 200 and "plain" in served.ask("/body").body
        with served.listen() as stream:
            loopctl("run", path)
            until(stream, b"data:")
        wait_until(lambda: "2 of 2 runs done" in served.ask("/body").body)
        assert [run["state"] for run in served.status()["runs"]] == ["done", "done"]


@needs_a_browser
def test_a_browser_follows_a_run_by_itself(tmp_path: Path) -> None:
    """From before the first round to the decision of the last, without a click."""
    write_configuration(tmp_path)
    with browser() as chromium, serving(tmp_path) as served:
        tab = Tab(chromium, served.url)
        assert tab.page.locator(".round").count() == 0
        with running(tmp_path):
            tab.page.locator("#round-2 .gates").wait_for(state="attached")
        tab.page.locator(".panel svg").first.wait_for()
        tab.page.close()
    assert tab.complaints == []
    assert set(tab.requests) == {served.url, f"{served.url}events", f"{served.url}body"}


@needs_a_browser
def test_an_open_page_takes_in_what_is_new(finished: Path) -> None:
    """What is open stays open, the scroll stays, and when the server is gone the page says so."""
    with browser() as chromium, serving(finished) as served:
        shown = Shown(chromium, served.url)
        tab = shown.page
        tab.click(".rounds a[href='#round-1']")
        tab.fill("#browser input", "ones/7")
        tab.click(".list button")
        tab.evaluate("scrollTo(0, 900)")
        place = tab.evaluate("scrollY")
        assert place > 0 and not tab.locator("#connection").is_visible()
        with altered(finished) as conn:
            conn.execute("UPDATE runs SET name = 'renamed <b>meanwhile</b>'")
            # That is news.
            conn.execute("UPDATE events SET sha256 = 'another' WHERE seq = (SELECT max(seq) FROM events)")
        tab.locator("h1", has_text="renamed <b>meanwhile</b>").wait_for()
        assert tab.locator("#round-1 .gates").is_visible()
        assert tab.inner_text(".reader h3") == "ones/7" and tab.input_value("#browser input") == "ones/7"
        tab.locator(".panel:not(.drawn)").first.wait_for(state="detached")
        assert abs(tab.evaluate("scrollY") - place) < 3
        assert shown.complaints == []
        served.end()
        tab.locator("#connection").wait_for(state="visible")
        tab.close()


def test_a_store_of_an_older_version_is_shown_once_it_is_migrated(tmp_path: Path) -> None:
    shutil.unpack_archive(max((TESTS / "golden").glob("schema-*.tar.gz")), tmp_path, filter="data")
    with serving(tmp_path) as served:
        waiting = served.ask("/")
        assert waiting.status == 503 and "refresh" in waiting.body
        assert "lacks migration" in served.ask("/body").body
        assert "lacks migration" in served.status()["error"]
        open_database(tmp_path / ".loop" / "loop.db").close()
        wait_until(lambda: served.ask("/").status == 200)


def test_any_other_address_needs_the_token(finished: Path) -> None:
    with serving(finished, "--host", "0.0.0.0") as served:
        (token,) = re.findall(r"\?token=([\w-]{20,})", served.url)
        for path in set(PATHS) - {"/healthz"}:
            assert served.ask(path).status == 401
            assert served.ask(f"{path}?token={token[:-1]}").status == 401
            assert served.ask(path, Cookie=f"loop_{served.port}=x").status == 401
            assert served.ask(path, Authorization=f"Bearer {token}x").status == 401
        assert served.ask("/healthz").body == "ok\n"
        moved = served.ask(f"/body?token={token}")
        assert moved.status == 303 and moved.getheader("Location") == "/body"
        cookie = moved.getheader("Set-Cookie")
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
        assert served.ask("/", Cookie=cookie.partition(";")[0]).status == 200
        assert served.ask("/status.json", Authorization=f"Bearer {token}").status == 200
        assert served.ask("/", host=f"192.168.1.5:{served.port}").status == 401, "reached by an address in digits"
        assert served.ask("/", host=f"evil.example:{served.port}", Authorization=f"Bearer {token}").status == 421
        assert served.ask(f"//evil.example/?token={token}").getheader("Location") == "/evil.example/"
        for target in ("[", "x/healthz", "http://evil.example/healthz", "/healthz%3F/../body", "*"):
            answer = served.ask(target)
            assert answer.status == 401 and answer.getheader("X-Content-Type-Options") == "nosniff", target


def test_a_token_of_ones_own(finished: Path) -> None:
    with serving(finished, "--json", LOOP_SERVE_TOKEN="correct horse battery") as served:
        assert served.url.endswith("?token=correct%20horse%20battery")
        assert served.ask("/").status == 401
        assert served.ask("/?token=correct%20horse%20battery").status == 303
        assert served.ask("/", Authorization="Bearer correct horse battery").status == 200


def test_an_address_that_cannot_be_had(finished: Path, call: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = call("serve", "--port", str(other.getsockname()[1]))
    one_line(done, 1, "is taken")
    hosts = ("no.such.host.invalid", "192.0.2.1", "\u20ac" * 70, "a..b")
    tokens = ("short", "\u20ac" * 20, "a line\nand another line")
    for option, texts in (("--host", hosts), ("--token", tokens), ("--port", ("-1",))):
        for text in texts:
            done = call("serve", option, text)
            assert done.code == 2 and done.err.count("\n") == 1 and done.out == "", text


def test_a_directory_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    write_configuration(directory)
    with serving(directory) as served:
        assert "caf\udce9" in served.status()["reason"]
        assert served.ask("/status.json").status == served.ask("/").status == 200


def test_names() -> None:
    box = names("box.lan", 8420)
    assert box("box.lan:8420") and box("BOX.lan:8420") and box("localhost:8420")
    assert not box("10.0.0.1:8420") and not box("box.lan") and not box("box.lan.:8420")
    everywhere = names("::", 80)
    good = ("localhost", "localhost:80", "10.0.0.1", "10.0.0.1:80", "[fe80::1]", "[fe80::1]:80")
    bad = ("box.lan", "10.0.0.1:81", "[fe80::1]:8", "fe80::1", "", ":80", "10.0.0.1.evil", "[10.0.0.1", "2130706433x")
    assert list(filter(everywhere, good + bad)) == list(good)
    assert names("fe80::1", 8420)("[fe80::1]:8420")


class Made:
    """A source for `Live` that a test moves by hand."""

    def __init__(self) -> None:
        self.history, self.pulse, self.num_facts, self.error = 0, 0, 0, None
        self.clock = Clock()
        words: dict[str, Any] = {name: lambda facts, name=name: f"{name} {facts}" for name in ("body", "page")}
        self.live = Live(self, words, self.clock)

    def mark(self) -> Mark:
        return Mark((self.history,), (self.pulse,))

    def facts(self) -> Any:
        self.num_facts += 1
        time.sleep(0.05)  # for others to ask meanwhile
        self.clock.now_s += 0.05
        if self.error:
            raise self.error
        return f"{self.history}.{self.pulse} \ud800"

    def status(self) -> Any:
        return {}


def in_a_loop(test: Any) -> Any:
    return functools.wraps(test)(lambda *fixtures, **named: asyncio.run(test(*fixtures, **named)))


@in_a_loop
async def test_a_page_is_made_once_for_all_who_look() -> None:
    source = Made()
    shown = source.live
    answers = await asyncio.gather(*(shown.html(["page", "body"][n % 2]) for n in range(50)))
    assert set(answers) == {b"body 0.0 ?", b"page 0.0 ?"} and source.num_facts == 1
    await shown.html("page")
    assert source.num_facts == 1
    source.history = 1
    source.clock.now_s += 0.2
    assert await shown.html("body") == b"body 1.0 ?" and source.num_facts == 2
    source.pulse = 1  # a moment after something happened: not worth a page of its own yet
    assert await shown.html("body") == b"body 1.0 ?" and source.num_facts == 2
    source.clock.now_s += 60
    assert await shown.html("body") == b"body 1.1 ?" and source.num_facts == 3


@in_a_loop
async def test_news_reach_all_who_listen_and_nothing_stays() -> None:
    source = Made()
    shown = source.live
    await shown.look()
    watching = asyncio.create_task(shown.watch())
    streams = [shown.events() for _ in range(3)]
    for stream in streams:
        assert (await anext(stream)).startswith("id: 1\n")
    assert shown.num_listeners == 3
    wanted = [asyncio.create_task(anext(stream)) for stream in streams]
    await shown.look()
    assert not any(task.done() for task in wanted), "there is nothing new"
    source.history = 1
    news = await asyncio.wait_for(asyncio.gather(*wanted), HANG_S)
    assert len(set(news)) == 1 and "data: 2" in news[0]
    await streams[0].aclose()
    left = asyncio.create_task(anext(streams[1]))
    await asyncio.sleep(0)
    left.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await left
    assert shown.num_listeners == 1
    await shown.close()
    assert [item async for item in streams[2]] in ([], [news[0]])
    assert shown.num_listeners == 0
    watching.cancel()


@in_a_loop
async def test_a_silent_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loop.serve.live.KEEP_ALIVE_S", 0.02)
    stream = Made().live.events()
    assert [(await anext(stream))[:3] for _ in range(3)] == ["id:", ": s", ": s"]
    await stream.aclose()


@in_a_loop
async def test_what_cannot_be_shown_is_named_and_looked_at_again() -> None:
    source = Made()
    source.error, shown = NoStore("x: no such file"), source.live
    with pytest.raises(CannotShow, match="no run here yet"):
        await shown.html("page")
    source.error, source.history = None, 1
    source.clock.now_s += 60
    assert (await shown.html("page")).startswith(b"page 1.0")
    source.error, source.history = ValueError("a mistake"), 2
    source.clock.now_s += 60
    with pytest.raises(ValueError, match="a mistake"):
        await shown.html("page")
