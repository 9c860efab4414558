"""The power goes out at any moment of a run: what was acknowledged is there, and the run continues to the same end.

A run is recorded once, then disks are built as a cut may leave them (powercut_replay.py) and looked at with the project's
own code (powercut_runs.py).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from store.verify import HIGH_WATER
from tests.support.powercut_replay import Chance, Disk, How, Record
from tests.support.powercut_runs import (
    CHECKPOINTS,
    MODEL,
    RUN_DIR,
    Cut,
    Recording,
    after_each_promise,
    all_broken,
    as_if_synced,
    go_on,
    lay_down,
    out_of_order,
    promises,
    record_recovery,
    record_run,
)
from tests.support.runs import drive, dump

# The WAL is begun anew many times, as in a long run, and the high-water mark is written at every safe point.
LIKE_A_LONG_RUN = """
from store.verify import write_high_water
def opened(session):
    session.ledger.db.conn.execute("PRAGMA wal_autocheckpoint = 60")
    session.check_orders = lambda round: write_high_water(session.ledger.db, loaded.run_dir)
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two rounds that are kept."""
    return record_run(tmp_path_factory.mktemp("recording"), change=LIKE_A_LONG_RUN)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, recording: Recording) -> dict[str, Any]:
    """The same run, without a recorder and without a cut, in the same place: the base model's path is absolute."""
    for _ in lay_down(recording, [Cut(0, Chance("kept", 0))]):
        assert drive(recording.root / "loop.toml") == 0, (recording.root / "stderr").read_text()
    return dump(recording.root / RUN_DIR)


HOW: tuple[How, ...] = ("dropped", "dropped", "mixed", "mixed", "prefix", "prefix", "kept")


def drawn(recording: Recording, num_cuts: int, seed: int) -> list[Cut]:
    """Half of the moments anywhere, half beside something that counts: a sync, a name, an acknowledgement."""
    draw = random.Random(seed)
    beside = [place for place, change in enumerate(recording.records) if change.op not in ("write", "truncate")]
    cuts = []
    for number in range(num_cuts):
        at = draw.choice(beside) + draw.randrange(2) if number % 2 else draw.randrange(len(recording.records) + 1)
        cuts.append(Cut(at, Chance(draw.choice(HOW), draw.getrandbits(32), names_follow_files=draw.random() < 0.5)))
    return cuts


def test_the_recording_is_of_a_whole_run(recording: Recording) -> None:
    *promised, last = promises(recording.records)
    assert [(word["decided"], word["state"]) for word in promised if "decided" in word] == [(1, "kept"), (2, "kept")]
    assert last == {"kind": "end"}
    assert len({change.pid for change in recording.records}) >= 2, "the trainer writes in a process of its own"
    first = [change for change in recording.records if change.op == "write" and change.offset == 0]
    assert sum(change.path.endswith("-wal") for change in first) >= 5, "the WAL was begun anew"
    assert sum(change.target == f"{RUN_DIR}/{HIGH_WATER}" for change in recording.records) >= 20


@pytest.mark.parametrize(
    ("num_cuts", "num_continued", "seed"), [(60, 2, 1), pytest.param(500, 40, 2, marks=pytest.mark.slow)]
)
def test_nothing_acknowledged_is_lost(
    recording: Recording, uninterrupted: dict[str, Any], num_cuts: int, num_continued: int, seed: int
) -> None:
    cuts = drawn(recording, num_cuts, seed)
    assert all_broken(recording, cuts) == []
    sample = random.Random(seed).sample(cuts, num_continued)
    assert [f"{cut}: {wrong}" for cut in lay_down(recording, sample) for wrong in go_on(recording, uninterrupted)] == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_second_cut_while_the_run_recovers_from_the_first(
    recording: Recording, uninterrupted: dict[str, Any], seed: int
) -> None:
    (first,) = random.Random(seed).sample(drawn(recording, 20, seed), 1)
    recovery = record_recovery(recording, first, change=LIKE_A_LONG_RUN)
    marks = [place for place, change in enumerate(recovery.records, 1) if change.op == "mark"]
    num_before = sum(change.op == "mark" for change in recording.records[: first.after])
    until = [*marks[num_before:], len(recovery.records)][:5][-1]  # the first words that the second process says
    recovering = replace(recovery, records=recovery.records[:until])
    cuts = [cut for cut in drawn(recovering, 60, seed) if cut.after >= num_before]
    assert len(cuts) > 15 and all_broken(recovery, cuts) == []
    assert [f"{cut}: {wrong}" for cut in lay_down(recovery, cuts[:3]) for wrong in go_on(recovery, uninterrupted)] == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_reaches_the_disk_in_order(recording: Recording, number: int) -> None:
    assert out_of_order(recording, number) == []


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """One round of a run whose directory is not there yet."""
    return record_run(tmp_path_factory.mktemp("nothing"), num_rounds=1, made=())


MADE = {
    "the run directory": [RUN_DIR],
    "the directory of checkpoints": [CHECKPOINTS],
    "the fake base model": [f"{MODEL}/config.json", f"{MODEL}/model.safetensors", MODEL],
}


@pytest.mark.parametrize("what", [*MADE, "everything else"])
def test_what_a_first_round_makes_is_on_disk(what: str, from_nothing: Recording) -> None:
    """Each on its own: as if the others had been synced."""
    others = [path for other, paths in MADE.items() if other != what for path in paths]
    recording = as_if_synced(from_nothing, others)
    assert all_broken(recording, after_each_promise(recording)) == []


def test_a_checkpoint_that_a_killed_process_had_just_named(tmp_path: Path) -> None:
    """The process dies before the new name is synced; the next one finds the whole directory, and then the power goes."""
    recording = record_run(tmp_path, num_rounds=1, failpoints=("checkpoint.renamed=kill", ""))
    assert all_broken(recording, after_each_promise(recording)) == []


def test_the_model_of_the_disk() -> None:
    root = Record("sync", 1, "", 0, 0)

    def a(op: str, offset: int = 0, data: bytes = b"", inode: int = 1, **more: Any) -> Record:
        return Record(op, 1, "a", inode, offset, data, **more)

    def after(how: Any, *changes: Record, seed: int = 0, **more: Any) -> dict[str, bytes | None]:
        disk = Disk()
        disk.by_inode[0] = disk.root
        for change in changes:
            disk.apply(change)
        return disk.after_cut(Chance(how, seed, **more))

    new = (a("create"), a("write", 0, b"x" * 600))
    synced = (*new, a("sync"))
    assert after("dropped", *new) == {} and after("kept", *new) == {"a": b"x" * 600}
    assert after("dropped", *new, root) == {"a": b""}, "a name without its content"
    assert after("dropped", *synced) == {}, "a content without its name"
    assert after("dropped", *synced, names_follow_files=True) == after("dropped", *synced, root) == {"a": b"x" * 600}
    moved = (*synced, root, a("rename", target="b"))
    assert after("dropped", *moved) == {"a": b"x" * 600} and after("dropped", *moved, root) == {"b": b"x" * 600}
    torn = {after("mixed", *synced, root, a("write", 500, b"y" * 600), seed=seed)["a"] for seed in range(60)}
    old, sectors = b"x" * 600, (b"y" * 12, b"y" * 512, b"y" * 76)
    assert old[:500] + b"".join(sectors) in torn and old in torn
    assert old[:500] + sectors[0] + old[512:] in torn and old[:512] + sectors[1] in torn, "sectors are on their own"
    cut = (*synced, root, a("truncate"), a("write", 0, b"z"))
    assert {after("prefix", *cut, seed=seed)["a"] for seed in range(20)} == {b"", b"z"}
    gone = (*synced, root, a("remove"), a("create", inode=2), a("write", 0, b"new", inode=2))
    assert after("dropped", *gone) == {"a": b"x" * 600} and after("kept", *gone) == {"a": b"new"}
