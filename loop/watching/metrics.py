"""Prometheus metrics on 127.0.0.1, by the official client, which is imported only where they are wanted.

They are read from one frozen snapshot, so that a scrape never touches the store and never waits for the loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

from loop.config.machine import Watching
from loop.errors import ConfigError
from store.records import STAGES, RunState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STATES: tuple[RunState, ...] = get_args(RunState)
LOOK_S = 5.0  # between two snapshots while nothing changes: making one reads the store
MOST_CLIENTS = 128  # at a time
CLIENT_TIMEOUT_S = 5.0  # for each read of a request


def _gauge(name: str, documentation: str) -> Any:
    """A figure that is shown as it is."""
    return field(metadata={"name": name, "documentation": documentation})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The figures to show. Times are Unix seconds, ratios lie between 0 and 1; what is None is not shown."""

    run: str
    state: str  # a RunState
    stage: str  # a StageName; anything else counts as no stage
    rounds_kept: int
    rounds_carried: int
    rounds_rolled_back: int
    completions: int
    rounds_failed: int = _gauge(
        "loopd_failed_rounds", "Rounds that are failed now."
    )  # a resumed round no longer counts
    round: int = _gauge("loopd_round", "The round under way; 0 between rounds.")
    done_ratio: float | None = _gauge("loopd_stage_done_ratio", "How much of the present part of the stage is done.")
    head_round: int = _gauge("loopd_head_round", "The round that made the head; 0 is the base.")
    tip_round: int = _gauge("loopd_tip_round", "The round that made what is sampled from; 0 is the base.")
    head_pass_ratio: float | None = _gauge("loopd_head_pass_ratio", "pass@1 of the head on the suite that decides.")
    free_bytes: int = _gauge("loopd_disk_free_bytes", "Free space where the run is kept.")
    checkpoints_bytes: int = _gauge("loopd_checkpoints_bytes", "Size of the checkpoints below the run directory.")
    started_at: float = _gauge("loopd_start_time_seconds", "When the daemon started.")
    beat_at: float = _gauge("loopd_heartbeat_time_seconds", "When its loop last moved.")
    next_due_at: float | None = _gauge("loopd_next_due_time_seconds", "When the next round is due.")


class Metrics:
    """Shows the newest snapshot to whoever asks; nothing before the first.

    `look` makes a snapshot. It is called in the thread of the loop, when the run's state changes and every few seconds.
    """

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self.look = look
        self._snapshot: Snapshot | None = None
        self._looked_at = 0.0  # monotonic

    def state(self, *_: object) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        self._looked_at = time.monotonic()
        self._snapshot = self.look()

    def beat(self) -> None:
        """See `loop.daemon.onlooker.Onlookers`."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            self.state()

    def collect(self) -> Iterator[Metric]:
        """All figures of one snapshot. Called by the client in the thread of a scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        now = self._snapshot
        if now is None:
            return
        yield InfoMetricFamily("loopd_run", "The run that this daemon serves.", value={"run": now.run})
        for name, words, label, values, value in (
            ("loopd_state", "1 for what the run is doing, 0 for the rest.", "state", STATES, now.state),
            ("loopd_stage", "1 for the stage under way, 0 for the rest.", "stage", STAGES, now.stage),
        ):
            gauge = GaugeMetricFamily(name, words, labels=[label])
            for each in values:
                gauge.add_metric([each], float(each == value))
            yield gauge
        rounds = CounterMetricFamily("loopd_rounds", "Rounds that were decided.", labels=["outcome"])
        rounds.add_metric(["kept"], now.rounds_kept)
        rounds.add_metric(["carried"], now.rounds_carried)
        rounds.add_metric(["rolled_back"], now.rounds_rolled_back)
        yield rounds
        yield CounterMetricFamily("loopd_completions", "Completions that were stored.", value=now.completions)
        for figure in fields(now):
            if figure.metadata and (value := getattr(now, figure.name)) is not None:
                yield GaugeMetricFamily(**figure.metadata, value=float(value))


@contextlib.contextmanager
def metrics_of(settings: Watching, look: Callable[[], Snapshot]) -> Iterator[Metrics | None]:
    """The endpoint of a configuration while the block lasts; None if it has none. ConfigError if the port is taken."""
    port = settings.prometheus_port
    if port is None:
        yield None
        return
    from prometheus_client import CollectorRegistry, start_http_server

    metrics = Metrics(look)
    registry = CollectorRegistry()  # the client's own one shows the process's figures, too
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        place = f"watching.prometheus_port: 127.0.0.1:{port}"
        raise ConfigError(f"{place}: {error.strerror}; give a port that is free") from None
    # A client that says nothing must not keep a descriptor for ever, and one that goes away is no news for the journal.
    server.RequestHandlerClass.timeout = CLIENT_TIMEOUT_S  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    _take_few_at_a_time(server)
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _take_few_at_a_time(server: Any) -> None:
    """Turn clients away beyond MOST_CLIENTS, so that nobody can use up the daemon's descriptors."""
    open_requests: set[Any] = set()
    end = server.shutdown_request

    def is_taken(request: Any, _: Any) -> bool:
        if len(open_requests) >= MOST_CLIENTS:
            return False
        open_requests.add(request)
        return True

    def shutdown(request: Any) -> None:
        open_requests.discard(request)
        end(request)

    server.verify_request, server.shutdown_request = is_taken, shutdown
