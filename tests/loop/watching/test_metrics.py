"""The Prometheus endpoint: what it shows, by the conventions of the field, and that it is in nobody's way."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loop.config.settings import Watching
from loop.errors import ConfigError
from loop.watching import metrics as metrics_module
from loop.watching.metrics import STATES, Metrics, Snapshot, metrics_of
from store.records import STAGES
from tests.support import ROOT
from tests.support.cli import finish
from tests.support.waiting import HANG_S, num_descriptors, wait_until

FULL = Snapshot(
    run='de"mo\n', state="running", stage="training", round=14, done_ratio=0.25, completions=3584,
    rounds_kept=9, rounds_carried=3, rounds_rolled_back=4, rounds_failed=1, head_round=12, tip_round=14, head_pass_ratio=0.121,
    free_bytes=81_000_000_000, checkpoints_bytes=2_100_000_000,
    started_at=1_700_000_000.5, beat_at=1_700_000_100.25, next_due_at=1_700_003_600.0,
)  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Endpoint(NamedTuple):
    port: int
    metrics: Metrics

    def show(self, snapshot: Snapshot) -> None:
        self.metrics.look = lambda: snapshot
        self.metrics.state()

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, self.port), timeout=HANG_S)

    def get(self, path: str = "/metrics", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def answers(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return self.get()[0] == 200
        return False

    def samples(self) -> dict[str, float]:
        return {
            sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.get()[1])
            for sample in family.samples
        }


@contextlib.contextmanager
def at_port(port: int | None = None) -> Iterator[Endpoint]:
    port = port or free_port()
    with metrics_of(Watching(prometheus_port=port), lambda: FULL) as metrics:
        assert metrics is not None
        yield Endpoint(port, metrics)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(metrics_module, "CLIENT_TIMEOUT_S", HANG_S)
    with at_port() as endpoint:
        yield endpoint


def test_a_snapshot_is_shown(endpoint: Endpoint) -> None:
    endpoint.show(FULL)
    assert endpoint.samples() == {
        'loopd_run_info/de"mo\n': 1,
        **{f"loopd_state/{name}": float(name == "running") for name in STATES},
        **{f"loopd_stage/{name}": float(name == "training") for name in STAGES},
        "loopd_rounds_total/kept": 9,
        "loopd_rounds_total/rolled_back": 4,
        "loopd_rounds_total/carried": 3,
        "loopd_completions_total": 3584,
        "loopd_failed_rounds": 1,
        "loopd_round": 14,
        "loopd_stage_done_ratio": 0.25,
        "loopd_head_round": 12,
        "loopd_tip_round": 14,
        "loopd_head_pass_ratio": 0.121,
        "loopd_disk_free_bytes": 81_000_000_000,
        "loopd_checkpoints_bytes": 2_100_000_000,
        "loopd_start_time_seconds": 1_700_000_000.5,
        "loopd_heartbeat_time_seconds": 1_700_000_100.25,
        "loopd_next_due_time_seconds": 1_700_003_600.0,
    }


def test_the_newest_one_is_shown_and_what_is_not_known_is_not(endpoint: Endpoint) -> None:
    assert endpoint.get() == (200, "")
    endpoint.show(FULL)
    bare = dataclasses.replace(FULL, rounds_failed=0, done_ratio=None, head_pass_ratio=None, next_due_at=None, stage="")
    for state in STATES:
        endpoint.show(dataclasses.replace(bare, state=state))
        samples = endpoint.samples()
        assert [name for name in STATES if samples[f"loopd_state/{name}"]] == [state]
        assert not any(samples[f"loopd_stage/{stage}"] for stage in STAGES)
        assert samples["loopd_failed_rounds"] == 0  # zero is known
        text = endpoint.get()[1]
        assert not any(word in text for word in ("done_ratio", "pass_ratio", "next_due"))


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_names_follow_the_conventions(endpoint: Endpoint, accept: str) -> None:
    endpoint.show(FULL)
    status, text = endpoint.get(Accept=accept)
    assert status == 200
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert kinds.keys() == helps.keys() and len(kinds) == 16
    samples = [line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    for sample in samples:
        assert re.fullmatch(r"loopd_[a-z]+(_[a-z]+)*", sample)
        assert not re.search(r"gauge|counter|milli|kilo|mega|minutes|hours|percent|count$|sum$|bucket$", sample)
        kind = kinds.get(sample) or kinds[re.sub("_(total|info)$", "", sample)]
        assert (kind == "counter") == sample.endswith("_total")
    assert all(words.endswith(".") for words in helps.values())
    assert len(set(samples)) == 16  # nothing of the process or the client's own


def test_a_snapshot_is_made_when_the_state_changes_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Snapshot] = []
    metrics = Metrics(lambda: made.append(FULL) or FULL)  # type: ignore[func-returns-value]
    for _ in range(3):
        metrics.beat()
    assert len(made) == 1
    metrics.state("paused", None, None)
    assert len(made) == 2
    monkeypatch.setattr(metrics_module, "LOOK_S", 0.0)
    metrics.beat()
    assert len(made) == 3


def test_only_this_machine_may_ask_and_clients_that_say_nothing_are_in_nobodys_way(endpoint: Endpoint) -> None:
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect("127.0.0.2").close()
    assert endpoint.get("/metrics?name[]=loopd_round")[0] == endpoint.get("/")[0] == 200
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(endpoint.connect())
        assert endpoint.get()[0] == 200


def test_more_clients_than_the_daemon_can_spare_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MOST_CLIENTS", 4)
    monkeypatch.setattr(metrics_module, "CLIENT_TIMEOUT_S", HANG_S)
    with at_port() as endpoint, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(endpoint.connect()) for _ in range(5)]
        assert silent[-1].recv(1) == b"", "closed at once, and not after the limit of a silent client"
        stack.close()
        wait_until(endpoint.answers)


def test_those_who_say_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(metrics_module, "CLIENT_TIMEOUT_S", 0.2)
    # A client may be dropped before it has spoken, or with what it said unread.
    with at_port() as endpoint, endpoint.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /met")
        assert connection.recv(100) == b""
    assert capfd.readouterr() == ("", "")


def test_those_who_go_away_leave_no_trace(endpoint: Endpoint, capfd: pytest.CaptureFixture[str]) -> None:
    endpoint.show(FULL)
    for _ in range(20):
        with endpoint.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert endpoint.get()[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_a_mistake_in_the_configuration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError) as caught, at_port(port):
            pass
    text = str(caught.value)
    assert caught.value.exit_code == 78 and "\n" not in text
    assert text.startswith(f"watching.prometheus_port: 127.0.0.1:{port}: ") and "free" in text


def test_it_ends_with_its_block(endpoint: Endpoint) -> None:
    before, port = (threading.active_count(), num_descriptors()), free_port()
    for _ in range(3):  # the port is free again at once
        with pytest.raises(KeyError), at_port(port) as another:
            assert another.get()[0] == 200
            raise KeyError
    with pytest.raises(ConnectionRefusedError):
        another.connect().close()
    wait_until(lambda: (threading.active_count(), num_descriptors()) == before)


def test_the_client_is_imported_only_where_it_is_wanted() -> None:
    words = """
import sys
from loop.config.settings import Watching
from loop.watching.metrics import metrics_of
for port in (None, int(sys.argv[1])):
    with metrics_of(Watching(prometheus_port=port), lambda: None) as metrics:
        print(metrics is None, "prometheus_client" in sys.modules, "http.server" in sys.modules)
"""
    done = finish([sys.executable, "-c", words, str(free_port())], ROOT)
    assert done.out.splitlines() == ["True False False", "False True True"], done.err
