"""The loop around rounds, with a clock that the tests hold: what it waits for, what it leaves, and how it ends."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loop.config.loading import load_config
from loop.daemon import commands
from loop.daemon.onlooker import Onlookers
from loop.daemon.schedule import Schedule
from loop.daemon.service import MOST_VANISHED, Ending, Service
from loop.errors import EngineError, NoRoom
from loop.run.opening import open_session
from loop.run.session import Session
from loop.system.heartbeat import Beating
from loop.system.signals import Stop
from policies.retries import Retries
from store import failpoints
from store.ledger import Ledger
from store.records import DecisionRow, Round, RunState
from store.verify import verify_store
from tests.support.runs import KEEPING, Quiet, drive, dump, write_run

FREE = "\n[storage]\nmin_free_bytes = 0\n"
START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday


class Around:
    """A clock, what was said, and what happens while the loop waits or at its safe points."""

    def __init__(self) -> None:
        self.now = START
        self.said: list[tuple[RunState, str | None, datetime | None]] = []
        self.rounds: list[tuple[int, str, datetime]] = []
        self.waiting: list[Callable[[], None]] = []  # one is done at each wait
        self.beating: list[Callable[[], None]] = []  # one is done at each beat
        self.num_waits = 0
        self.most_waits = 2000

    def state(self, state: RunState, reason: str | None, until: datetime | None) -> None:
        self.said.append((state, reason, until))

    def beat(self) -> None:
        if self.beating:
            self.beating.pop(0)()

    def round_ended(self, round: Round, decision: DecisionRow | None) -> None:
        self.rounds.append((round.number, round.state, self.now))

    def wait(self, seconds: float) -> None:
        self.num_waits += 1
        assert self.num_waits < self.most_waits, "it spins, or waits for what never comes"
        if self.waiting:
            self.waiting.pop(0)()
        until = self.said[-1][2]
        self.now = max(self.now + timedelta(seconds=seconds), until or self.now)  # nothing else happens until then

    @property
    def states(self) -> list[str]:
        return [state for state, _, _ in self.said]


@contextmanager
def serving(directory: Path, config: str = "", rounds: int = 2) -> Iterator[tuple[Service, Around, Session]]:
    """A service over a run with the fake engine; `config` is added to its configuration."""
    text = KEEPING.replace("rounds = 2", f"rounds = {rounds}") + FREE + config
    loaded = load_config(write_run(directory, text))
    around = Around()
    with open_session(loaded, Quiet()) as session:
        ledger = session.ledger
        ledger.now = lambda: around.now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        schedule = Schedule(loaded.config.schedule, START)
        stop = Stop(at_once=False)
        watch = Onlookers(Beating(loaded.run_dir), around, check=stop.check)
        service = Service(
            session,
            stop,
            watch,
            around.wait,
            schedule=schedule,
            stops=loaded.config.schedule.stop,
            clock=lambda: around.now,
        )
        yield service, around, session


def sound(session: Session) -> bool:
    return verify_store(session.ledger.db, session.loaded.run_dir).findings == []


def held(session: Session) -> commands.HeldRun:
    return commands.HeldRun(session.ledger, session.loaded.run_dir, session.loaded.config, alive=True)


def test_rounds_follow_each_other_until_the_run_has_all(tmp_path: Path) -> None:
    with serving(tmp_path) as (service, around, session):
        assert service.run() == Ending("idle", None)
        assert [row[:2] for row in around.rounds] == [(1, "kept"), (2, "kept")]
        assert around.num_waits == 0 and session.run.state == "idle" and sound(session)


def test_a_cron_time_gives_one_round_whatever_the_clock_does(tmp_path: Path) -> None:
    with serving(tmp_path, '[schedule]\ncron = "0 22 * * *"\n', rounds=3) as (service, around, _session):

        def sleep_through_two() -> None:
            around.now += timedelta(days=2, hours=13)  # suspended: two times pass

        def set_back() -> None:
            around.now = around.rounds[-1][2] - timedelta(hours=2)  # the time that was served comes again

        around.waiting = [lambda: None, lambda: None]
        real = around.round_ended

        def round_ended(round: Round, decision: DecisionRow | None) -> None:
            real(round, decision)
            around.waiting = {1: [set_back], 2: [sleep_through_two]}.get(round.number, [])

        around.round_ended = round_ended  # type: ignore[method-assign]
        assert service.run().state == "idle"
        at = [when for _, _, when in around.rounds]
        assert at[0].replace(second=0, microsecond=0) == START.replace(hour=22)
        assert at[1].replace(second=0, microsecond=0) == at[0].replace(second=0, microsecond=0) + timedelta(days=1), (
            "the time that came twice was served once"
        )
        assert at[1] + timedelta(days=2) < at[2] < at[1] + timedelta(days=3), (
            "two that were slept through gave one round"
        )
        assert {"idle", "running"} <= set(around.states)


def test_a_window_that_closes_pauses_at_a_safe_point_and_opens_again(tmp_path: Path) -> None:
    with serving(tmp_path, '[schedule]\nwindows = ["11:00-13:00"]\n', rounds=1) as (service, around, session):
        around.beating = [lambda: None] * 4 + [lambda: setattr(around, "now", START + timedelta(hours=1))]
        assert service.run().state == "idle"
        paused = next(said for said in around.said if said[0] == "paused")
        assert paused[1] == "outside schedule.windows; the run continues by itself"
        assert paused[2] == START + timedelta(hours=23)
        assert around.rounds[0][2] >= START + timedelta(hours=23) and sound(session)
        attempts = [a for s in session.ledger.stages(session.run_id, 1)
                    for a in session.ledger.attempts(session.run_id, 1, s.name)]  # fmt: skip
        assert sum(a.error is not None for a in attempts) <= 1 and all(a.finished_at for a in attempts)


def test_a_pause_leaves_the_round_and_a_resume_goes_on_to_the_same_end(tmp_path: Path) -> None:
    with serving(tmp_path / "paused") as (service, around, session):
        run = held(session)
        around.beating = [lambda: None] * 6 + [lambda: commands.pause(run) and None]
        around.waiting = [lambda: None, lambda: commands.resume(run) and None]
        assert service.run().state == "idle"
        assert "paused" in around.states and sound(session)
        found = dump(session.loaded.run_dir)
    whole = write_run(tmp_path / "whole", KEEPING)
    assert drive(whole) == 0
    expected = dump(whole.parent / ".loop")
    for table in ("rounds", "completions", "verdicts", "decisions", "checkpoints"):
        assert found[table] == expected[table], table


def test_a_wish_for_the_base_gives_up_the_open_round_at_its_next_safe_point(tmp_path: Path) -> None:
    with serving(tmp_path, rounds=3) as (service, around, session):
        run = held(session)
        answers: list[Any] = []

        def ask() -> None:
            if session.run.num_kept == 2 and session.ledger.open_round(session.run_id) and not answers:
                answers.append(commands.rollback(run, "base"))
            else:
                around.beating.append(ask)

        around.beating = [ask]
        assert service.run().state == "idle"
        assert answers and answers[0]["moved"] is False and "is given up" in answers[0]["text"]
        given_up, last = session.ledger.round(session.run_id, 3), session.ledger.round(session.run_id, 4)
        assert given_up and given_up.state == "failed" and "given up" in (given_up.error or "")
        assert last and last.parent_checkpoint == session.run.base_checkpoint and last.state == "kept"
        assert session.ledger.control(session.run_id).wanted_head is None and sound(session)


def test_a_stage_that_keeps_failing_pauses_the_run_and_does_not_spin(tmp_path: Path, monkeypatch: Any) -> None:
    tries = 0

    def broken(*_: Any, **__: Any) -> None:
        nonlocal tries
        tries += 1
        raise EngineError("the trainer is broken")

    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr("loop.round.train", broken)
        run = held(session)
        around.waiting = [lambda: None] * 50 + [monkeypatch.undo, lambda: commands.resume(run) and None]
        assert service.run().state == "idle"
        assert tries == session.loaded.config.engine.max_attempts
        reason = next(reason for state, reason, _ in around.said if state == "paused")
        assert "round 1 failed in training: the trainer is broken" in (reason or "")
        assert "`loopctl resume` tries it again" in (reason or "")
        assert around.rounds[-1][:2] == (1, "kept") and session.run.num_failed == 0 and sound(session)


def test_a_lack_of_room_pauses_before_a_stage_and_ends_by_itself(tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        around.waiting = [lambda: None] * 5 + [monkeypatch.undo]
        assert service.run().state == "idle"
        assert "disk short: 0 MB free" in (around.said[0][1] or "") and around.states[0] == "paused"
        assert around.rounds[0][:2] == (1, "kept") and session.run.num_failed == 0


@pytest.mark.parametrize("count", [pytest.param(n, marks=[pytest.mark.slow] if n % 3 else []) for n in range(1, 30)])
def test_a_full_disk_at_any_write_loses_nothing(count: int, tmp_path: Path, monkeypatch: Any) -> None:
    with serving(tmp_path, rounds=1) as (service, around, session):
        monkeypatch.setattr("loop.daemon.service.NO_ROOM", Retries(waits_s=(0.0,)))
        monkeypatch.setattr(failpoints, "ARMED", {"store.commit": ("full", count, False)})
        failpoints._reached.clear()
        assert service.run().state == "idle"
        monkeypatch.setattr(failpoints, "ARMED", {})
        assert around.rounds[-1][:2] == (1, "kept") and sound(session)
        found = dump(session.loaded.run_dir)
    expected = uninterrupted(tmp_path / "whole")
    for table in ("rounds", "completions", "verdicts", "decisions", "checkpoints"):
        assert found[table] == expected[table], table


_UNINTERRUPTED: dict[str, Any] = {}


def uninterrupted(directory: Path) -> dict[str, Any]:
    """One round that nothing disturbed; made once."""
    if not _UNINTERRUPTED:
        whole = write_run(directory, KEEPING.replace("rounds = 2", "rounds = 1"))
        assert drive(whole) == 0
        _UNINTERRUPTED.update(dump(whole.parent / ".loop"))
    return _UNINTERRUPTED


def test_in_the_foreground_a_lack_of_room_ends_it_with_a_remedy(tmp_path: Path, monkeypatch: Any) -> None:
    with serving(tmp_path) as (service, _, _session):
        service.schedule = None
        monkeypatch.setattr("loop.daemon.service.run_round", _full)
        with pytest.raises(NoRoom, match="make room and run it again: it continues where it was left"):
            service.run()


def _full(_: Session) -> Round:
    raise OSError(errno.ENOSPC, "No space left on device", "loop.db")


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


def test_stop_waits_for_a_safe_point_and_leaves_a_round_that_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, rounds=1) as (service, around, session):
        around.beating = [lambda: None] * 3 + [service.stop.ask]
        ending = service.run()
        assert ending.state == "stopped" and session.run.state == "stopped"
        left = session.ledger.open_round(session.run_id)
        assert left is not None
        stop = Stop(at_once=False)
        watch = Onlookers(service.watch.beating, around, check=stop.check)
        again = Service(session, stop, watch, around.wait, schedule=service.schedule, clock=lambda: around.now)
        assert again.run().state == "idle" and around.rounds[-1][:2] == (1, "kept") and sound(session)


def test_until_and_stop_policies_end_the_run(tmp_path: Path) -> None:
    with serving(tmp_path / "until", '[schedule]\nuntil = "2026-03-02T12:30"\n', rounds=0) as (
        service,
        around,
        _session,
    ):
        around.beating = [lambda: None] * 30 + [lambda: setattr(around, "now", START + timedelta(hours=1))]
        ending = service.run()
        assert ending.state == "idle" and "schedule.until (2026-03-02T12:30) has passed" in (ending.reason or "")
    hours = '[schedule]\nstop = [{ type = "hours", value = 10 }]\n'
    with serving(tmp_path / "hours", hours, rounds=0) as (service, around, _session):
        around.beating = [lambda: setattr(around, "now", around.now + timedelta(hours=1))] * 200
        ending = service.run()
        assert ending.state == "idle" and "schedule.stop: hours: the run has worked" in (ending.reason or "")
        assert around.rounds, "the round that is going on is brought to its end"
    target = '[schedule]\nstop = [{ type = "target", value = 0.5 }]\n'
    with serving(tmp_path / "target", target, rounds=0) as (service, around, _session):
        ending = service.run()
        assert ending.state == "idle" and "schedule.stop: target: the head's pass@1" in (ending.reason or "")
        assert 1 <= len(around.rounds) < 5
