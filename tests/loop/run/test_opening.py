"""Opening a run and its weights: each file is hashed once, signs of life go on meanwhile, and a stop need not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.daemon.service import LeaveRound
from loop.round import run_round
from loop.run.opening import open_session
from loop.system.heartbeat import read_heartbeat
from store import hashing
from tests.support.runs import KEEPING, Quiet, environment, write_run
from tests.support.waiting import HANG_S, wait_until


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files of weights that were read from now on, by the name of their directory. All count as written a while ago."""
    read: list[str] = []
    real = hashing._read

    def counted(path: Path, ended: Event) -> Any:
        read.extend([path.parent.name] if path.suffix == ".safetensors" else [])
        return real(path, ended)

    monkeypatch.setattr(hashing, "CLOCK_S", -1.0)
    monkeypatch.setattr(hashing, "_read", counted)
    yield read


def test_weights_are_read_once_until_they_are_touched(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, watch = load_config(write_run(tmp_path / "run", KEEPING)), Quiet()
    with open_session(loaded, watch) as session:
        assert run_round(session).state == "kept"
        assert run_round(session).state == "kept"
        assert sorted(reads) == ["fake-model", "weights", "weights"], (
            "the base, and each candidate when it is committed"
        )
    reads.clear()
    with open_session(loaded, watch) as session:
        base, head = session.run.base_checkpoint, session.run.head_checkpoint
        session.weights(base), session.weights(head)
        assert reads == [], "the run remembers"
        weights = session.weights(head).path / "model.safetensors"
        time.sleep(0.02)  # the clock of the file system
        os.utime(weights)
        session.weights(base), session.weights(head)
        assert reads == ["round-0002"]
    reads.clear()
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(hashing, "BOOT_ID", tmp_path / "boot")
    with open_session(loaded, watch) as session:
        session.weights(base), session.weights(head), session.weights(head)
        assert sorted(reads) == ["fake-model", "round-0002"], "the machine has started again since"


def test_what_nodes_did_in_its_last_attempt_is_kept_with_a_stage(tmp_path: Path) -> None:
    class Sampled(Quiet):
        """Counts tokens of an engine on a node when sampling begins."""

        def stage(self, round: int, stage: str, what: str) -> None:
            if (round, stage) == (1, "sampling"):
                engine.num_tokens, engine.worked_s = 30, 2.0

    with open_session(load_config(write_run(tmp_path, KEEPING)), Sampled()) as session:
        engine = session.engines.by_node.begin("sampler-1", "a")
        engine.num_tokens, engine.worked_s, engine.lost = 7, 1.0, "before the round"
        run_round(session)
        finished = session.ledger.events.of(session.run_id, "stage_finished", 1)
        nodes = [{"name": "a", "tokens": 30, "tokens_per_s": 15.0, "lost": None}]
        assert [(event.stage, event.data.get("nodes")) for event in finished] == [
            ("sampling", nodes), ("training", None), ("evaluating", None),
        ]  # fmt: skip


def test_orders_and_signs_of_life_go_on_while_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def for_ever(path: Path, ended: Event) -> Any:
        ended.wait()
        raise hashing._Ended

    def leave(round: object) -> None:
        raise LeaveRound("stopped")

    class Beating(Quiet):
        num_beats = 0

        def pulse(self) -> None:
            self.num_beats += 1
            if self.num_beats > 1:
                raise KeyboardInterrupt

    with open_session(load_config(write_run(tmp_path, KEEPING)), beating := Beating()) as session:
        monkeypatch.setattr(hashing, "PULSE_S", 0.01)
        monkeypatch.setattr(hashing, "_read", for_ever)
        session.check_orders, session.hasher.memory = leave, None
        session.hasher.known.clear()
        with pytest.raises(LeaveRound):
            session.weights(session.run.base_checkpoint)
        assert beating.num_beats == 1
        with pytest.raises(KeyboardInterrupt):
            session.weights(session.run.base_checkpoint, may_leave=False)


def test_a_stop_ends_the_hashing_of_a_new_base(tmp_path: Path) -> None:
    """Beside it the heartbeat, and with it the sign to the service manager's watchdog, goes on."""
    config = write_run(tmp_path, KEEPING)
    weights = tmp_path / ".loop" / "fake-model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    os.truncate(weights, 1 << 40)  # empty, and yet to hash it takes half an hour
    command = [sys.executable, "-m", "loop.daemon", "--config", str(config)]
    daemon = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        beats: set[float] = set()
        wait_until(lambda: (beat := read_heartbeat(tmp_path / ".loop")) and (beats.add(beat.at) or len(beats) > 2))
        daemon.send_signal(signal.SIGTERM)
        _, said = daemon.communicate(timeout=HANG_S)
    finally:
        daemon.kill()
    assert daemon.returncode == 0 and "stopped by SIGTERM; the next start continues" in said
