"""The Prometheus endpoint: what it shows, by the conventions of the field, and that it is in nobody's way."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loop.config.settings import Watching
from loop.errors import ConfigError
from loop.watching import metrics as metrics_module
from loop.watching.metrics import MOST_CLIENTS, STATES, Metrics, Snapshot, metrics_of
from store.records import STAGES
from tests.support import ROOT
from tests.support.waiting import HANG_S, wait_until

FULL = Snapshot(
    run='de"mo\n',
    state="running",
    round=14,
    done_ratio=0.25,
    rounds_kept=9,
    rounds_rolled_back=4,
    rounds_failed=1,
    completions=3584,
    head_round=12,
    head_pass_ratio=0.121,
    free_bytes=81_000_000_000,
    checkpoints_bytes=2_100_000_000,
    started_at=1_700_000_000.5,
    beat_at=1_700_000_100.25,
    next_due_at=1_700_003_600.0,
    stage="training",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclasses.dataclass
class Endpoint:
    port: int
    metrics: Metrics

    def get(self, path: str = "/metrics", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def samples(self) -> dict[str, float]:
        return {
            sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get()[1])
            for sample in family.samples
        }


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(metrics_module, "CLIENT_TIMEOUT_S", HANG_S)
    port = free_port()
    with metrics_of(Watching(prometheus_port=port)) as metrics:
        assert metrics is not None
        yield Endpoint(port, metrics)


def test_a_snapshot_is_shown(endpoint: Endpoint) -> None:
    endpoint.metrics.show(FULL)
    assert endpoint.samples() == {
        'loopd_run_info/de"mo\n': 1,
        "loopd_state/running": 1,
        "loopd_state/paused": 0,
        "loopd_state/idle": 0,
        "loopd_state/stopped": 0,
        "loopd_state/failed": 0,
        "loopd_stage/sampling": 0,
        "loopd_stage/training": 1,
        "loopd_stage/evaluating": 0,
        "loopd_stage/deciding": 0,
        "loopd_rounds_total/kept": 9,
        "loopd_rounds_total/rolled_back": 4,
        "loopd_completions_total": 3584,
        "loopd_failed_rounds": 1,
        "loopd_round": 14,
        "loopd_stage_done_ratio": 0.25,
        "loopd_head_round": 12,
        "loopd_head_pass_ratio": 0.121,
        "loopd_disk_free_bytes": 81_000_000_000,
        "loopd_checkpoints_bytes": 2_100_000_000,
        "loopd_start_time_seconds": 1_700_000_000.5,
        "loopd_heartbeat_time_seconds": 1_700_000_100.25,
        "loopd_next_due_time_seconds": 1_700_003_600.0,
    }


def test_the_newest_one_is_shown_and_what_is_not_known_is_not(endpoint: Endpoint) -> None:
    assert endpoint.get() == (200, "")
    endpoint.metrics.show(FULL)
    bare = {"done_ratio": None, "head_pass_ratio": None, "next_due_at": None, "stage": ""}
    for state in STATES:
        endpoint.metrics.show(dataclasses.replace(FULL, state=state, rounds_failed=0, **bare))  # type: ignore[arg-type]
        samples = endpoint.samples()
        assert [name for name in STATES if samples[f"loopd_state/{name}"]] == [state]
        assert not any(samples[f"loopd_stage/{stage}"] for stage in STAGES)
        assert samples["loopd_failed_rounds"] == 0  # zero is known
        unknown = ("done_ratio", "pass_ratio", "next_due")
        text = endpoint.get()[1]
        assert not any(word in text for word in unknown)


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_names_follow_the_conventions(endpoint: Endpoint, accept: str) -> None:
    endpoint.metrics.show(FULL)
    status, text = endpoint.get(Accept=accept)
    assert status == 200
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert kinds.keys() == helps.keys() and len(kinds) == 15
    samples = [line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    for sample in samples:
        assert re.fullmatch(r"loopd_[a-z]+(_[a-z]+)*", sample)
        assert not re.search(r"gauge|counter|milli|kilo|mega|minutes|hours|percent|count$|sum$|bucket$", sample)
        kind = kinds.get(sample) or kinds[re.sub("_(total|info)$", "", sample)]
        assert (kind == "counter") == sample.endswith("_total")
    assert all(words.endswith(".") for words in helps.values())
    assert len(set(samples)) == 15  # nothing of the process or the client's own


def test_only_this_machine_may_ask(endpoint: Endpoint) -> None:
    endpoint.metrics.show(FULL)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=HANG_S).close()
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{endpoint.port}"):
        assert endpoint.get(Host=host)[0] == 200
    for host in ("example.org", "example.org:80", "localhost.example.org", "", "127.0.0.1.nip.io", "a:b:localhost"):
        status, text = endpoint.get(Host=host)
        assert status == 403 and "loopd" not in text
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=HANG_S) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")  # no Host at all: no browser
        assert connection.recv(100).startswith(b"HTTP/1.0 200")


def test_what_is_not_there(endpoint: Endpoint) -> None:
    assert [endpoint.get(path)[0] for path in ("/", "/metrics?name[]=x", "/favicon.ico", "/metrics/..")] == [
        200,
        200,
        404,
        404,
    ]


def test_those_who_say_nothing_use_up_neither_threads_nor_time(endpoint: Endpoint) -> None:
    endpoint.metrics.show(FULL)
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port), timeout=HANG_S))
        wait_until(lambda: threading.active_count() >= before + MOST_CLIENTS)
        time.sleep(0.3)  # no more come
        assert threading.active_count() == before + MOST_CLIENTS

    def is_answered() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return endpoint.get()[0] == 200
        return False

    wait_until(is_answered)  # they have gone away, and there is room again


def test_those_who_say_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "CLIENT_TIMEOUT_S", 0.2)
    port = free_port()
    with (
        metrics_of(Watching(prometheus_port=port)),
        socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection,
        contextlib.suppress(ConnectionError),  # dropped before it has spoken, or with what it said unread
    ):
        connection.sendall(b"GET /met")
        assert connection.recv(100) == b""


def test_those_who_go_away_leave_no_trace(endpoint: Endpoint, capfd: pytest.CaptureFixture[str]) -> None:
    endpoint.metrics.show(FULL)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=HANG_S) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert endpoint.get()[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_a_mistake_in_the_configuration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError) as caught, metrics_of(Watching(prometheus_port=port)):
            pass
    text = str(caught.value)
    assert caught.value.exit_code == 78 and "\n" not in text
    assert text.startswith(f"watching.prometheus_port: 127.0.0.1:{port}: ") and "free" in text


def test_it_ends_with_its_block(endpoint: Endpoint) -> None:
    before, descriptors, port = threading.active_count(), len(os.listdir("/proc/self/fd")), free_port()
    for _ in range(3):  # the port is free again at once
        with pytest.raises(KeyError), metrics_of(Watching(prometheus_port=port)) as metrics:
            assert metrics is not None and Endpoint(port, metrics).get()[0] == 200
            raise KeyError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=HANG_S).close()
    wait_until(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (before, descriptors))


def test_the_client_is_imported_only_where_it_is_wanted() -> None:
    words = """
import sys
from loop.config.settings import Watching
from loop.watching.metrics import metrics_of
for port in (None, int(sys.argv[1])):
    with metrics_of(Watching(prometheus_port=port)) as metrics:
        print(metrics is None, "prometheus_client" in sys.modules, "http.server" in sys.modules)
"""
    command: list[Any] = [sys.executable, "-c", words, str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["True False False", "False True True"]
