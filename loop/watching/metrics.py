"""Prometheus metrics on 127.0.0.1, by the official client, which is imported only where they are wanted.

They are read from one frozen snapshot, so that a scrape never touches the store and never waits for the loop.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from loop.config.machine import Watching
from loop.errors import ConfigError
from store.records import STAGES, RunState

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from prometheus_client.core import Metric

STATES: tuple[RunState, ...] = get_args(RunState)
HOSTS = ("127.0.0.1", "localhost")
CLIENT_TIMEOUT_S = 5.0  # for each read of a request
MOST_CLIENTS = 8  # at a time; more are turned away, so that nobody can use up the daemon's descriptors


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be shown. Times are Unix seconds, ratios lie between 0 and 1; what is None is not shown."""

    run: str
    state: str  # a RunState
    round: int  # 0 between rounds
    done_ratio: float | None  # of the present part of the stage
    rounds_kept: int
    rounds_rolled_back: int
    rounds_failed: int  # that are failed now; one that is resumed no longer counts
    completions: int
    head_round: int  # 0: the base
    head_pass_ratio: float | None
    free_bytes: int
    checkpoints_bytes: int
    started_at: float
    beat_at: float
    next_due_at: float | None
    stage: str = ""  # a StageName; anything else is shown as no stage


class Metrics:
    """Shows the newest snapshot to whoever asks; the main loop only replaces it. Nothing is shown before the first."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        """From now on this one. Returns at once."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All figures of one snapshot. Called by the client in the thread of a scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        now = self._snapshot
        if now is None:
            return
        yield InfoMetricFamily("loopd_run", "The run that this daemon serves.", value={"run": now.run})
        for name, words, label, values, value in (
            ("loopd_state", "1 for what the run is doing, 0 for the rest.", "state", STATES, now.state),
            ("loopd_stage", "1 for the stage that is going on, 0 for the rest.", "stage", STAGES, now.stage),
        ):
            gauge = GaugeMetricFamily(name, words, labels=[label])
            for each in values:
                gauge.add_metric([each], float(each == value))
            yield gauge
        rounds = CounterMetricFamily("loopd_rounds", "Rounds that were decided.", labels=["outcome"])
        rounds.add_metric(["kept"], now.rounds_kept)
        rounds.add_metric(["rolled_back"], now.rounds_rolled_back)
        yield rounds
        for name, words, count in (("loopd_completions", "Completions that were stored.", now.completions),):
            if count is not None:
                yield CounterMetricFamily(name, words, value=count)
        for name, words, figure in (
            ("loopd_failed_rounds", "Rounds that are failed now.", now.rounds_failed),
            ("loopd_round", "The round that is going on; 0 between rounds.", now.round),
            ("loopd_stage_done_ratio", "How much of the present part of the stage is done.", now.done_ratio),
            ("loopd_head_round", "The round that made the head; 0 is the base.", now.head_round),
            ("loopd_head_pass_ratio", "pass@1 of the head on the suite that decides.", now.head_pass_ratio),
            ("loopd_disk_free_bytes", "Free space where the run is kept.", now.free_bytes),
            ("loopd_checkpoints_bytes", "Size of the checkpoints below the run directory.", now.checkpoints_bytes),
            ("loopd_start_time_seconds", "When the daemon started.", now.started_at),
            ("loopd_heartbeat_time_seconds", "When its loop last moved.", now.beat_at),
            ("loopd_next_due_time_seconds", "When the next round is due.", now.next_due_at),
        ):
            if figure is not None:
                yield GaugeMetricFamily(name, words, value=float(figure))


def _server(port: int, metrics: Metrics) -> ThreadingHTTPServer:
    """Bound and listening; it serves once `serve_forever` runs. OSError where the port cannot be had."""
    from http.server import ThreadingHTTPServer

    from prometheus_client import CollectorRegistry, MetricsHandler

    registry = CollectorRegistry()  # the client's own one shows the process's figures, too
    registry.register(metrics)
    free = threading.BoundedSemaphore(MOST_CLIENTS)

    class Handler(MetricsHandler.factory(registry)):  # type: ignore[misc]
        timeout = CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            host = self.headers.get("Host")
            if host is not None and host.rpartition(":")[0 if ":" in host else 2].lower() not in HOSTS:
                self.send_error(403, "Ask for localhost")  # a web page that had its own name resolve to us
            elif self.path.partition("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
            else:
                super().do_GET()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # HTTPServer would ask the resolver for our name
            self.server_name, self.server_port = "127.0.0.1", port

        def process_request(self, request: Any, client_address: Any) -> None:
            if free.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                free.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # whoever asked is gone

    return Server(("127.0.0.1", port), Handler)


@contextlib.contextmanager
def metrics_of(settings: Watching) -> Iterator[Metrics | None]:
    """The endpoint of a configuration while the block lasts; None if it has none. ConfigError if the port is taken."""
    port = settings.prometheus_port
    if port is None:
        yield None
        return
    metrics = Metrics()
    try:
        server = _server(port, metrics)
    except OSError as error:
        raise ConfigError(
            f"watching.prometheus_port: 127.0.0.1:{port}: {error.strerror}; give a port that is free"
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
