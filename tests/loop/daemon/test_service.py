"""The loop around rounds, with a clock that the tests hold: what it waits for, what it leaves, and how it ends."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from loop.config.loading import load_config
from loop.daemon import commands
from loop.daemon.onlooker import Onlookers
from loop.daemon.schedule import Schedule
from loop.daemon.service import MOST_VANISHED, Ending, Service
from loop.engines.base import Kept
from loop.errors import EngineError
from loop.run.opening import open_session
from loop.run.session import Session
from loop.system.heartbeat import Beating
from loop.system.signals import Stop
from policies.retries import Retries
from store import failpoints
from store.ledger import Ledger
from store.records import STAGES, DecisionRow, Round, RunState
from tests.support.runs import KEEPING, Quiet, assert_same, drive, dump, findings, write_run
from tests.support.stages import Stages

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday


class Around:
    """A clock, what was said, and what happens while the loop waits or at its safe points."""

    run: commands.HeldRun

    def __init__(self) -> None:
        self.now = START
        self.told: list[tuple[RunState, str | None, datetime | None]] = []
        self.rounds: list[tuple[int, str, datetime]] = []
        self.waiting: list[Callable[[], object]] = []  # at each wait the first is done and removed
        self.beating: list[Callable[[], object]] = []  # likewise at each beat
        self.passes_after: dict[int, timedelta] = {}  # at the first wait after a round
        self.num_waits = 0

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        self.told.append((state, reason, until))

    def beat(self) -> None:
        if self.beating:
            self.beating.pop(0)()

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        self.rounds.append((round.number, round.state, self.now))
        if round.number in self.passes_after:
            self.waiting = [partial(self.pass_by, self.passes_after[round.number])]

    def wait(self, seconds: float) -> None:
        self.num_waits += 1
        assert self.num_waits < 2000, "it spins, or waits for what never comes"
        if self.waiting:
            self.waiting.pop(0)()
        until = self.told[-1][2]
        self.now = max(self.now + timedelta(seconds=seconds), until or self.now)  # nothing else happens until then

    def pass_by(self, time: timedelta) -> None:
        self.now += time

    @property
    def states(self) -> list[str]:
        return [state for state, _, _ in self.told]


@contextmanager
def serving(directory: Path, config: str = "", rounds: int = 2) -> Iterator[tuple[Service, Around, Session]]:
    """A service over a run with the fake engine; `config` is added to its configuration."""
    text = KEEPING.replace("rounds = 2", f"rounds = {rounds}") + "\n[storage]\nmin_free_bytes = 0\n" + config
    loaded = load_config(write_run(directory, text))
    around = Around()
    with open_session(loaded, Quiet()) as session:
        ledger = session.ledger
        ledger.now = lambda: around.now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        schedule = Schedule(loaded.config.schedule, START)
        stop = Stop(at_once=False)
        watch = Onlookers(Beating(loaded.run_dir), around, check=stop.check)
        stops, clock = loaded.config.schedule.stop, lambda: around.now
        service = Service(session, stop, watch, around.wait, schedule=schedule, stops=stops, clock=clock)
        around.run = commands.HeldRun(ledger, loaded.run_dir, loaded.config, alive=True)
        yield service, around, session
        assert findings(loaded.run_dir) == []


COMPARED = ("rounds", "completions", "verdicts", "decisions", "checkpoints")


def test_a_cron_time_gives_one_round_whatever_the_clock_does(tmp_path: Path) -> None:
    with serving(tmp_path, '[schedule]\ncron = "0 22 * * *"\n', rounds=3) as (service, around, _session):
        # After the first round the time that was served comes again; after the second, two pass while it is suspended.
        around.passes_after = {1: timedelta(hours=-2), 2: timedelta(days=2, hours=13)}
        assert service.run().state == "idle"
        first, second, third = (when for _, _, when in around.rounds)
        minutes = [when.replace(second=0, microsecond=0) for when in (first, second)]
        assert minutes == [START.replace(day=day, hour=22) for day in (2, 3)], "what came twice was served once"
        assert timedelta(days=2) < third - second < timedelta(days=3), "two that were slept through gave one round"
        assert {"idle", "running"} <= set(around.states)


def test_a_window_that_closes_pauses_at_a_safe_point_and_opens_again(tmp_path: Path) -> None:
    with serving(tmp_path, '[schedule]\nwindows = ["11:00-13:00"]\n', rounds=1) as (service, around, session):
        around.beating = [lambda: None] * 4 + [partial(around.pass_by, timedelta(hours=1))]
        assert service.run().state == "idle"
        paused = next(told for told in around.told if told[0] == "paused")
        assert paused[1] == "outside schedule.windows; the run continues by itself"
        assert paused[2] == START + timedelta(hours=23)
        assert around.rounds[0][2] >= START + timedelta(hours=23)
        attempts = [attempt for stage in STAGES for attempt in session.ledger.attempts(session.run_id, 1, stage)]
        assert sum(a.error is not None for a in attempts) <= 1 and all(a.finished_at for a in attempts)


def test_a_pause_leaves_the_round_and_after_a_resume_the_run_ends_as_it_would_have(tmp_path: Path) -> None:
    with serving(tmp_path / "whole") as (service, around, session):
        assert service.run() == Ending("idle", None)
        assert [row[:2] for row in around.rounds] == [(1, "kept"), (2, "kept")]
        assert around.num_waits == 0 and session.run.state == "idle"
    with serving(tmp_path / "paused") as (service, around, session):
        around.beating = [lambda: None] * 6 + [lambda: commands.pause(around.run)]
        around.waiting = [lambda: None, lambda: commands.resume(around.run)]
        assert service.run().state == "idle"
        assert "paused" in around.states
    assert_same(session.loaded.run_dir, dump(tmp_path / "whole" / ".loop"), *COMPARED)


def test_a_wish_for_the_base_gives_up_the_open_round_at_its_next_safe_point(tmp_path: Path) -> None:
    with serving(tmp_path, rounds=3) as (service, around, session):
        answers: list[Any] = []

        def ask() -> None:
            if session.run.num_kept == 2 and session.ledger.open_round(session.run_id) and not answers:
                answers.append(commands.rollback(around.run, "base"))
            else:
                around.beating.append(ask)

        around.beating = [ask]
        assert service.run().state == "idle"
        assert answers and answers[0]["moved"] is False and "is given up" in answers[0]["text"]
        given_up, last = session.ledger.round(session.run_id, 3), session.ledger.round(session.run_id, 4)
        assert given_up and given_up.state == "failed" and "given up" in (given_up.error or "")
        assert last and last.parent_checkpoint == session.run.base_checkpoint and last.state == "kept"
        assert session.ledger.control(session.run_id).wanted_head is None


def test_a_stage_that_keeps_failing_pauses_the_run_and_does_not_spin(tmp_path: Path, monkeypatch: Any) -> None:
    broken = Mock(side_effect=EngineError("the trainer is broken"))
    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr("loop.round.train", broken)
        around.waiting = [lambda: None] * 50 + [monkeypatch.undo, lambda: commands.resume(around.run)]
        assert service.run().state == "idle"
        assert broken.call_count == session.loaded.config.engine.max_attempts
        reason = next(reason or "" for state, reason, _ in around.told if state == "paused")
        assert "round 1 failed in training: the trainer is broken" in reason
        assert "`loopctl resume` tries it again" in reason
        assert around.rounds[-1][:2] == (1, "kept") and session.run.num_failed == 0


def test_a_lack_of_room_pauses_before_a_stage_and_ends_by_itself(tmp_path: Path, monkeypatch: Any) -> None:
    """Others use the disk meanwhile, and what is free changes: that is no news."""
    usage, free = shutil.disk_usage(tmp_path), itertools.count(100, 2_000_000)
    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
        around.waiting = [lambda: None] * 5 + [monkeypatch.undo]
        assert service.run().state == "idle"
        assert "disk short: 0 MB free" in (around.told[0][1] or "") and around.states[:2] == ["paused", "running"]
        assert len({reason for state, reason, _ in around.told if state == "paused"}) == 1
        assert around.rounds[0][:2] == (1, "kept") and session.run.num_failed == 0


@pytest.fixture(scope="module")
def whole_round(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The dump of a round that nothing disturbed."""
    config = write_run(tmp_path_factory.mktemp("whole"), KEEPING.replace("rounds = 2", "rounds = 1"))
    assert drive(config) == 0
    return dump(config.parent / ".loop")


@pytest.mark.parametrize("count", [pytest.param(n, marks=[pytest.mark.slow] if n % 7 else []) for n in range(1, 30)])
def test_a_full_disk_at_any_write_loses_nothing(count: int, tmp_path: Path, monkeypatch: Any, whole_round: Any) -> None:
    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr("loop.daemon.service.NO_ROOM", Retries(waits_s=(0.0,)))
        monkeypatch.setattr(failpoints, "ARMED", {"store.commit": ("full", count, False)})
        failpoints._reached.clear()
        assert service.run().state == "idle"
        monkeypatch.setattr(failpoints, "ARMED", {})
        assert around.rounds[-1][:2] == (1, "kept")
    assert_same(session.loaded.run_dir, whole_round, *COMPARED)


@pytest.mark.parametrize("set_by_s", [1, -7200])
def test_a_process_that_keeps_vanishing_is_held(tmp_path: Path, set_by_s: int) -> None:
    with serving(tmp_path, rounds=1) as (service, around, session):
        ledger: Ledger = session.ledger
        round = ledger.begin_round(session.run_id)
        for _ in range(MOST_VANISHED):
            around.now += timedelta(seconds=1)
            ledger.begin_attempt(round, "sampling", {"as": "ever"})
        assert service._obstacle() is not None
        reason = ledger.control(session.run_id).hold_reason or ""
        assert f"vanished {MOST_VANISHED} times in sampling" in reason and "`loopctl resume`" in reason
        around.now += timedelta(seconds=set_by_s)
        ledger.release_run(session.run_id)
        assert service._obstacle() is None, "a person has looked at it"


def test_stop_waits_for_a_safe_point_and_leaves_a_round_that_is_continued(tmp_path: Path) -> None:
    with serving(tmp_path, rounds=1) as (service, around, session):
        around.beating = [lambda: None] * 3 + [service.stop.ask]
        ending = service.run()
        assert ending.state == "stopped" and session.run.state == "stopped"
        assert session.ledger.open_round(session.run_id) is not None
        stop, clock = Stop(at_once=False), lambda: around.now
        again = Service(session, stop, service.watch, around.wait, schedule=service.schedule, clock=clock)
        service.watch.check = stop.check
        assert again.run().state == "idle" and around.rounds[-1][:2] == (1, "kept")


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_a_training_is_left_after_its_step_and_continues_there(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_round: Any
) -> None:
    """Its state is no garbage meanwhile; and once the round has its weights, nothing of it is left."""
    stages, steps = Stages(tmp_path / "stages"), list[int]()
    for name, value in stages.variables.items():
        monkeypatch.setenv(name, value)
    stages.stand_still("training")
    with serving(tmp_path, rounds=1) as (service, around, session):
        checkpoints = session.loaded.run_dir / "checkpoints"

        def progress(done: int, total: int) -> None:
            if total == 20:  # those of the training
                steps.append(done)
                if steps == [1]:
                    commands.pause(around.run) if how == "pause" else service.stop.ask()

        def ask_to_end(kept: Kept, wanted: bool = True, ask: Any = Kept.ask_to_end) -> None:
            ask(kept, wanted)
            if wanted:
                stages.go_on()

        def resume() -> None:
            assert [path.name[:10] for path in checkpoints.iterdir()] == [".training-"]
            assert commands.gc(around.run)["removed"] == []
            steps.clear()
            commands.resume(around.run)

        monkeypatch.setattr(session.engines.watch, "progress", progress)
        monkeypatch.setattr(Kept, "ask_to_end", ask_to_end)
        around.waiting = [resume]
        ending = service.run()
        if how == "stop":
            assert ending.state == "stopped"
            resume()
            stop, clock = Stop(at_once=False), lambda: around.now
            service.watch.check = stop.check
            again = Service(session, stop, service.watch, around.wait, schedule=service.schedule, clock=clock)
            ending = again.run()
        assert ending.state == "idle" and around.rounds[-1][:2] == (1, "kept")
        assert steps[0] == 2, "the first step is not taken again"
        assert [path.name for path in checkpoints.iterdir()] == ["round-0001"]
        attempts = session.ledger.attempts(session.run_id, 1, "training")
        assert [each.error for each in attempts] == ["stopped" if how == "stop" else commands.BY_HAND, None]
    assert_same(session.loaded.run_dir, whole_round, *COMPARED)


@pytest.mark.parametrize(
    ("keys", "hours", "reason", "num_least"),
    [
        ('until = "2026-03-02T12:30"', [0] * 30 + [1], "schedule.until (2026-03-02T12:30) has passed", 0),
        # the round that is under way is brought to its end
        ('stop = [{ type = "hours", value = 10 }]', [1] * 200, "schedule.stop: hours: the run has worked", 1),
        ('stop = [{ type = "target", value = 0.5 }]', [], "schedule.stop: target: the head's pass@1", 1),
    ],
)
def test_until_and_stop_rules(tmp_path: Path, keys: str, hours: list[int], reason: str, num_least: int) -> None:
    with serving(tmp_path, f"[schedule]\n{keys}\n", rounds=0) as (service, around, _session):
        around.beating = [partial(around.pass_by, timedelta(hours=num)) for num in hours]
        ending = service.run()
        assert ending.state == "idle" and reason in (ending.reason or "")
        assert num_least <= len(around.rounds) < 5
