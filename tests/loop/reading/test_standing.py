"""What `status` makes of the heartbeat and of the ledger."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop.daemon.onlooker import Onlookers
from loop.reading import standing
from loop.reading.as_json import as_json
from loop.system.heartbeat import HEARTBEAT, Beating
from loop.system.lock import locked
from store.db import open_database, transaction
from store.ledger import Ledger
from store.records import Run
from tests.support.cli import CONFIG, Loopctl, alive, call, finished
from tests.support.waiting import HANG_S, Clock

__all__ = ["call", "finished"]


# What status makes of a living process


@contextlib.contextmanager
def ledger(directory: Path) -> Iterator[tuple[Ledger, Run]]:
    """The run's ledger, for writing."""
    with contextlib.closing(open_database(directory / ".loop" / "loop.db")) as db:
        run = Ledger(db).run()
        assert run
        yield Ledger(db), run


def line(text: str, label: str) -> str:
    """What stands beside a label."""
    lines = re.search(rf"^  {label} +(.*(?:\n {{12}}.*)*)", text, re.MULTILINE)
    return re.sub(r"\n +", " ", lines[1]) if lines else ""


def set_rounds(directory: Path, number: int) -> None:
    (directory / "loop.toml").write_text(CONFIG.replace("rounds = 2\n", f"rounds = {number}\n"))


def test_a_process_that_ends_while_it_is_read_has_not_vanished(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, "running")
        asked: list[Path] = []

        def holder(run_dir: Path) -> int | None:
            asked.append(run_dir)
            if len(asked) == 2:  # the store was read, and the process ends well before it is looked for
                book.set_run_state(run.id, "idle")
            return 42 if len(asked) == 1 else None

        monkeypatch.setattr(standing, "holder", holder)
        assert standing.status(finished / ".loop", "small").state == "idle"


def test_running(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 5)
    with alive(finished) as beating:
        assert call("status", "--json").json["reason"] == standing.STARTING
        beating.say("running")
        answer = call("status", "--json")
        assert answer.code == 0
        assert (answer.json["state"], answer.json["reason"], answer.json["paused_by"]) == ("running", None, None)
        assert 0 <= answer.json["heartbeat_age_s"] < HANG_S and 0 <= answer.json["uptime_s"] < HANG_S
        assert line(call("status").out, "next").startswith("at once (continuous) · 3 rounds to go        up ")
        set_rounds(finished, 0)
        assert line(call("status").out, "next").startswith("at once (continuous) · no end set")
        with (finished / "loop.toml").open("a") as file:
            file.write('[schedule]\nevery = "6h"\n')
        with ledger(finished) as (book, run):
            book.begin_round(run.id)
        assert line(call("status").out, "next").startswith("6h after the start of this round · no end set")


def test_tests_of_completions_are_a_part_of_sampling(finished: Path, call: Loopctl) -> None:
    with ledger(finished) as (book, run):
        book.begin_attempt(book.begin_round(run.id), "sampling", {})
    with alive(finished) as beating:
        beating.say("running")
        beating.begin(3, "grading", "9 completions on their prompts' tests")
        assert call("status", "--json").json["round"]["part"].startswith("grading: 9 completions")


def test_the_time_that_is_left_counts_nothing_that_was_done_before(
    finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 of 1000 were done before, and loading took a minute; then each takes two seconds."""
    clock = Clock()
    for name in ("time", "monotonic"):
        monkeypatch.setattr(f"loop.system.heartbeat.time.{name}", clock)
    with ledger(finished) as (book, run):
        book.begin_attempt(book.begin_round(run.id), "sampling", {})
    with alive(finished) as beating:
        beating.say("running")
        beating.begin(3, "sampling", "9 completions")
        for passes_s, done, wanted_s in ((60, 501, None), (2, 502, 996), (196, 600, 800)):
            clock.now_s += passes_s
            beating.progress(done, 1000)
            assert call("status", "--json").json["round"]["eta_s"] == wanted_s
        assert "round 3 · sampling: 9 completions 60% · 13 min 20 s left" in call("status").out
        beating.begin(3, "sampling", "9 completions")  # the next attempt
        beating.progress(600, 1000)
        assert call("status", "--json").json["round"]["eta_s"] is None


def test_what_a_worker_warns_of_is_said_until_it_is_taken_back_or_the_part_ends(finished: Path, call: Loopctl) -> None:
    with ledger(finished) as (book, run):
        book.begin_attempt(book.begin_round(run.id), "sampling", {})
    with alive(finished) as beating:
        beating.say("running")
        for over in (lambda: beating.warn(""), lambda: beating.begin(3, "sampling", "9 completions")):
            beating.begin(3, "sampling", "9 completions")
            beating.warn("the training's state is not saved")
            assert call("status", "--json").json["round"]["warning"] == "the training's state is not saved"
            assert line(call("status").out, "needs you") == "the training's state is not saved"
            over()
            assert call("status", "--json").json["round"]["warning"] is None
            assert line(call("status").out, "needs you") == ""


def test_what_each_node_does(finished: Path, call: Loopctl) -> None:
    assert call("status", "--json").json["nodes"] is None and line(call("status").out, "nodes") == ""
    busy = {"name": "a", "engines": 8, "doing": "sampling", "tokens_per_s": 9120.4, "lost": None}
    lost = {"name": "b\x1b[2J", "engines": 0, "doing": "lost", "tokens_per_s": None, "lost": "its node was lost"}
    alone = {"name": "c", "engines": 1, "doing": "idle", "tokens_per_s": 5.0, "lost": None}
    with alive(finished) as beating:
        watch = Onlookers(beating)
        beating.say("running")
        watch.nodes([busy, lost, alone])
        beating.begin(3, "sampling", "9 completions")
        assert call("status", "--json").json["nodes"] == [busy, lost, alone]
        words = r"b\x1b[2J: lost: its node was lost; a: 8 engines sampling, 9,120 tokens/s; c: 1 engine idle"
        assert line(call("status").out, "nodes") == words
        watch.nodes([busy | {"name": f"n{number:02}"} for number in range(20)] + [lost])
        beating.begin(3, "sampling", "9 completions")
        text = line(call("status").out, "nodes")
        assert text.startswith("b") and text.endswith("; n06: 8 engines sampling, 9,120 tokens/s; and 13 more nodes")
        watch.nodes([alone | {"doing": "training"}, lost | {"doing": "training", "lost": None}])
        beating.begin(3, "training", "9 completions")
        assert line(call("status").out, "nodes") == r"c: training; b\x1b[2J: training"
        beating.say("idle")
        assert line(call("status").out, "nodes") == ""


def test_gates_of_one_type_have_figures_each(finished: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    last = Ledger.last_decision

    def with_two(self: Ledger, run_id: str) -> Any:
        row = last(self, run_id)
        assert row is not None
        return replace(row, gates=[{**row.gates[0], "type": "twice", "figures": {"num": num}} for num in (1, 2, 3)])

    monkeypatch.setattr(Ledger, "last_decision", with_two)
    metrics = call("status", "--json").json["last_decision"]["metrics"]
    assert [metrics[name]["num"] for name in ("twice", "twice 2", "twice 3")] == [1, 2, 3]


def test_the_last_round(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 3)
    with ledger(finished) as (book, run):
        round = book.begin_round(run.id)
        book.begin_attempt(round, "sampling", {})
    with alive(finished) as beating:
        beating.say("running")
        beating.begin(3, "sampling", "16 completions")
        beating._last_write = 0
        beating.progress(4, 16)
        text = call("status").out
        assert "round 3 · sampling: 16 completions 25%" in text.splitlines()[0]
        assert line(text, "next").startswith("nothing after this round")
        now = call("status", "--json").json["round"]
        assert (now["done"], now["total"], now["attempt"]) == (4, 16, 1) and now["elapsed_s"] >= 0


def test_idle_until_the_next_round_is_due(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 5)
    with alive(finished) as beating:
        beating.say("idle", None, DUE)
        done = call("status", "--json")
        assert done.code == 0, "it is at work, and only waits"
        assert done.json["state"] == "idle" and done.json["next_due"] == "2030-03-17T17:46:40.000000Z"
        assert done.json["paused_by"] is None
        assert re.match(r"2030-03-17 17:46 UTC, in [\d ]+ d \d+ h · 3 rounds to go", line(call("status").out, "next"))
        assert call("status", "--check").code == 0


DUE, RESUME = 1_900_000_000.0, "when you say so: `loopctl resume`"


@pytest.mark.parametrize(
    ("held", "due", "by", "words", "code"),
    [
        ("user", None, "user", RESUME, 0),
        ("failure", None, "failure", f"{RESUME} tries it again", 1),
        (None, DUE, "schedule", "2030-03-17 17:46 UTC", 0),
        ("decision", None, "decision", RESUME, 1),
        (None, None, "disk", "by itself when there is room; `loopctl gc --dry-run`", 1),
    ],
)
def test_paused(finished: Path, call: Loopctl, held: Any, due: float | None, by: str, words: str, code: int) -> None:
    reason = "round 3 failed in training: no; `loopctl resume` tries it again"
    with ledger(finished) as (book, run):
        if held:
            book.hold_run(run.id, held, reason)
    with alive(finished) as beating:
        beating.say("paused", reason, due)
        done = call("status", "--json")
        assert done.code == 0 and done.json["state"] == "paused" and done.json["reason"] == reason
        assert done.json["paused_by"] == by
        text = call("status").out
        assert f"paused   {reason}" in text.splitlines()[0]
        assert line(text, "next").startswith(words)
        checked = call("status", "--check")
        assert checked.code == code
        assert (reason in checked.err) == bool(code)
        assert bool(done.json["needs_you"]) == bool(code)
        assert line(text, "needs you") == "", "the title says it"


def test_what_was_asked_shows_before_it_is_done(finished: Path, call: Loopctl) -> None:
    with alive(finished) as beating, ledger(finished) as (book, run):
        beating.say("running")
        book.hold_run(run.id, "user", "paused by hand")
        answer = call("status", "--json").json
        assert (answer["state"], answer["reason"]) == ("running", "pausing at the next safe point")
        book.release_run(run.id)
        with transaction(book.db):
            book._set_control(replace(book.control(run.id), wanted_head=0))
        assert call("status", "--json").json["reason"] == "the head moves to the base at the next safe point"


def test_a_process_that_hangs(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    with alive(finished) as beating:
        monkeypatch.setattr("loop.system.heartbeat.time.time", lambda: 1000.0)
        beating.say("running")
        monkeypatch.undo()
        monkeypatch.chdir(finished)
        done = call("status", "--check")
        assert done.code == 1 and f"stalled: no sign of life from process {os.getpid()} for " in done.err
        text = call("status")
        assert text.code == 0 and "stalled" in line(text.out, "needs you")


def test_a_disk_that_is_nearly_full(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("status", "--check").code == 3
    monkeypatch.setattr(standing, "_disk", lambda _, wanted_bytes: standing.Disk(1_000_000, 0, wanted_bytes, False))
    done = call("status", "--check")
    assert done.code == 1 and "disk low: 1,000,000 bytes free" in done.err
    assert "disk low" in line(call("status").out, "needs you")


# And without one


@pytest.mark.parametrize(
    ("left", "due", "state"),
    [("running", None, "stopped"), ("paused", None, "stopped"), ("idle", DUE, "stopped"), ("idle", None, "idle")],
)
def test_how_the_last_process_left_the_run(finished: Path, call: Loopctl, left: Any, due: float, state: str) -> None:
    """One that was killed says nothing of its end; one that was idle for good had nothing left to do."""
    Beating(finished / ".loop").say(left, None, due)
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, left)
    answer = call("status", "--json")
    assert answer.code == 3
    assert (answer.json["state"], answer.json["reason"] == standing.VANISHED) == (state, state == "stopped")
    assert answer.json["pid"] is answer.json["heartbeat_age_s"] is answer.json["next_due"] is None


def test_the_heartbeat_of_another_process_says_nothing(finished: Path, call: Loopctl) -> None:
    beating = Beating(finished / ".loop")
    beating.say("paused", "yesterday", 1.9e9)
    path = finished / ".loop" / HEARTBEAT
    path.write_bytes(path.read_bytes().replace(f'"pid": {os.getpid()}'.encode(), b'"pid": 1', 1))
    with locked(finished / ".loop"):
        answer = call("status", "--json").json
        assert (answer["state"], answer["reason"], answer["next_due"]) == ("running", standing.STARTING, None)
        assert answer["uptime_s"] is None


def test_what_to_do_where_nothing_runs(finished: Path, call: Loopctl) -> None:
    assert "all 2 rounds are done" in line(call("status").out, "next")
    set_rounds(finished, 4)
    assert line(call("status").out, "next") == "`loopctl start` or `loopctl run` (2 rounds to go)"
    with ledger(finished) as (book, run):
        book.set_run_state(run.id, "idle", "schedule.until (2020-01-01) has passed")
        assert "[schedule]" in line(call("status").out, "next")
        round = book.begin_round(run.id)
        assert line(call("status").out, "next") == "`loopctl start` or `loopctl run` continues round 3, sampling"
        book.fail_round(round, "no")
        book.hold_run(run.id, "failure", "round 3 failed in sampling: no")
        book.set_run_state(run.id, "stopped", "stopped")
    done = call("status", "--json").json
    assert done["reason"] == "round 3 failed in sampling: no" and done["paused_by"] == "failure"
    assert line(call("status").out, "next") == "`loopctl resume`, then `loopctl start`"
    assert call("status", "--check").code == 1


def test_an_error_is_shown_while_it_matters(finished: Path, call: Loopctl) -> None:
    set_rounds(finished, 4)
    with ledger(finished) as (book, run):
        round = book.begin_round(run.id)
        attempt = book.begin_attempt(round, "sampling", {})
        book.fail_attempt(round, "sampling", attempt, "the worker\x1b[2J died", "it is tried again")
        error = call("status", "--json").json["last_error"]
        assert error["error"].startswith("the worker") and error["current"] is True
        text = line(call("status").out, "error")
        assert text == r"round 3, sampling, attempt 1   the worker\x1b[2J died; it is tried again"
        attempt = book.begin_attempt(round, "sampling", {})
        assert line(call("status").out, "error"), "it is being tried again"
        round = book.finish_stage(round, "sampling", attempt, {}, next_state="training", selections=[])
        assert line(call("status").out, "error") == "", "overcome"
        assert call("status", "--json").json["last_error"]["current"] is False
        attempt = book.begin_attempt(round, "training", {})
        book.fail_attempt(round, "training", attempt, "out of luck", "the round fails")
        failed = book.fail_round(round, "out of luck")
        book.set_run_state(run.id, "failed", "round 3, training: no memory")
        assert "the round fails" in line(call("status").out, "error")
        book.set_run_state(run.id, "failed", f"round 3, training: {failed.error}")
        assert line(call("status").out, "error") == "", "the title says it"


def test_before_the_first_run_the_answer_has_the_same_keys(finished: Path) -> None:
    before = as_json(standing.status(finished / "elsewhere", "small"))
    after = as_json(standing.status(finished / ".loop", "small"))
    assert list(before) == list(after) and list(before["disk"]) == list(after["disk"])
    assert (before["state"], before["head"], before["trend"], before["needs_you"]) == ("stopped", None, [], [])
    assert {"pass@1", "pass@1_interval"} < after["base"].keys() and "gain_over_base" not in after["base"]


# How much it reads


def test_every_read_is_by_a_key(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger(finished) as (book, run), transaction(book.db):
        for _ in range(30):  # failed ones are the quickest to make
            round = book.begin_round(run.id)
            attempt = book.begin_attempt(round, "sampling", {})
            book.fail_attempt(round, "sampling", attempt, "no", "the round fails")
            book.fail_round(round, "no")
    statements: list[tuple[str, Any]] = []

    def execute(self: Any, sql: str, parameters: Any = ()) -> Any:
        statements.append((sql, parameters))
        return self.conn.execute(sql, parameters)

    monkeypatch.setattr("store.db.Database.execute", execute)
    standing.status(finished / ".loop", "small")
    assert 0 < len(statements) < 30
    allowed = ("SCAN runs", "SCAN CONSTANT ROW", "SCAN schema_migrations")
    with contextlib.closing(open_database(finished / ".loop" / "loop.db", read_only=True)) as db:
        for sql, parameters in statements:
            for *_, step in db.conn.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall():
                if not (step.startswith("SCAN events") and "max(seq)" in sql):  # the newest by its key
                    assert not step.startswith("SCAN ") or step in allowed, (sql, step)
                    assert "TEMP B-TREE" not in step, (sql, step)


def test_the_trend_ends_with_the_newest_round(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = standing.status(finished / ".loop", "small")
    assert [point.round for point in answer.trend] == [1, 2]
    assert answer.last_decision and answer.trend[1].pass_at_1 == answer.last_decision.metrics["pass@1"]
    monkeypatch.setattr(standing, "MOST_POINTS", 1)
    assert [point.round for point in standing.status(finished / ".loop", "small").trend] == [2]


def test_the_size_of_checkpoints_has_a_bound(finished: Path, monkeypatch: pytest.MonkeyPatch, call: Loopctl) -> None:
    num_bytes = sum(p.stat().st_size for p in (finished / ".loop" / "checkpoints").rglob("*") if p.is_file())
    assert call("status", "--json").json["disk"]["checkpoints_bytes"] == num_bytes > 0
    monkeypatch.setattr(standing, "MOST_FILES", 2)
    assert call("status", "--json").json["disk"]["checkpoints_bytes"] is None
    assert "checkpoints -" in call("status").out
