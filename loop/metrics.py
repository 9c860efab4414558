"""Prometheus metrics on 127.0.0.1, by the official client, which is imported only where they are wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loop.config import Watching
from loop.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STATES = ("running", "paused", "idle", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be shown. Times are Unix seconds."""

    run: str
    state: str
    round: int
    done_ratio: float | None
    rounds_kept: int
    rounds_rolled_back: int
    rounds_failed: int
    completions: int
    head_round: int
    head_pass_ratio: float | None
    free_bytes: int
    checkpoints_bytes: int
    started_at: float
    beat_at: float
    next_due_at: float | None


class Metrics:
    """Shows the newest snapshot to whoever asks; the main loop only replaces it."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        """From now on this one."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's collectors."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._snapshot
        if now is None:
            return
        state = GaugeMetricFamily("loopd_state", "1 for what the run is doing, 0 for the rest.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == now.state))
        yield state
        rounds = CounterMetricFamily("loopd_rounds", "Rounds by how they ended.", labels=["outcome"])
        rounds.add_metric(["kept"], now.rounds_kept)
        rounds.add_metric(["rolled_back"], now.rounds_rolled_back)
        yield rounds
        yield CounterMetricFamily("loopd_completions", "Completions in the training corpus.", value=now.completions)
        for name, words, value in (
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
            if value is not None:
                yield GaugeMetricFamily(name, words, value=float(value))


@contextlib.contextmanager
def metrics_of(settings: Watching) -> Iterator[Metrics | None]:
    """The endpoint of a configuration while the block lasts; None if it has none."""
    port = settings.prometheus_port
    if port is None:
        yield None
        return
    from prometheus_client import CollectorRegistry, start_http_server

    registry, metrics = CollectorRegistry(), Metrics()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise ConfigError(
            f"watching.prometheus_port: 127.0.0.1:{port}: {error.strerror}; give a port that is free"
        ) from None
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5.0)
