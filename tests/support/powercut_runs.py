"""A recorded run, and what must hold after a power cut at any moment of it."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from loop.engines.fake import write_fake_model
from loop.run.base_model import FAKE_SKILL
from store.db import Database, open_database, query
from store.errors import StoreError
from store.verify import verify_store
from tests.support.powercut_replay import Chance, Disk, Record, library, read_log, record, tree_of, write_tree
from tests.support.runs import KEEPING, ROOT, drive, dump, environment, write_run

RUN_DIR, CHECKPOINTS, MODEL = ".loop", ".loop/checkpoints", ".loop/fake-model"
ACCUMULATE = '[collect]\ndata = { type = "accumulate" }\n'  # the second round then lists completions of the first, too
PREPARED = (RUN_DIR, CHECKPOINTS, MODEL)  # a run directory in which a run was prepared long ago

# Runs rounds and says in the log what was acknowledged: that call has returned, so it is a promise. argv: the configuration,
# the number of rounds, and code that changes something first.
DRIVER = r"""
import json, os, sys
from pathlib import Path
from tests.support import powercut_replay
from loop import round as rounds
from loop.run import opening
from loop.config.loading import load_config
from loop.stages import sampling, training
from store import corpus, evaluations, ledger

sampling.STORED_AT_ONCE = 1  # cuts are to come between the lists of one stage

def say(**words):
    powercut_replay.mark(json.dumps(words))

def wrap(owner, name, promise):
    real = getattr(owner, name)
    def wrapped(self, *args, **kwargs):
        args = [list(arg) if hasattr(arg, "__next__") else arg for arg in args]
        result = real(self, *args, **kwargs)
        last = ledger.Ledger(self.db).events.last()
        say(kind=name, seq=last.seq if last else 0, sha256=last.sha256 if last else None, **promise(result, *args, **kwargs))
        return result
    setattr(owner, name, wrapped)

wrap(corpus.Corpus, "add_completions", lambda result, batch: {"completions": [row.id for row in batch]})
wrap(evaluations.Evaluations, "add_verdicts", lambda result, batch: {"verdicts": [row.completion_id for row in batch]})
wrap(evaluations.Evaluations, "finish", lambda result, id, metrics: {"evaluation": id})
wrap(ledger.Ledger, "create_run", lambda run, *args, **more: {"run": run.id})
wrap(ledger.Ledger, "begin_round", lambda round, *args, **more: {"begun": round.number})
wrap(ledger.Ledger, "decide", lambda round, *args, **more: {"decided": round.number, "state": round.state})
wrap(
    ledger.Ledger, "finish_stage",
    lambda round, before, stage, *args, candidates=(), **more:
        {"finished": [round.number, stage], "candidates": [candidate.sha256 for candidate in candidates]},
)

config, num_rounds, change = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
loaded = load_config(config)

class Quiet:
    def stage(self, round, stage, what): pass
    def progress(self, done, total): pass
    def note(self, text): print(text, file=sys.stderr)
    def pulse(self): pass

opened = lambda session: None
exec(change)
with opening.open_session(loaded, Quiet()) as session:
    opened(session)
    while len(session.ledger.decisions(session.run_id)) < num_rounds:
        round = rounds.run_round(session)
        assert round.state != "failed", round.error
say(kind="end")
"""


@dataclass(frozen=True, slots=True)
class Recording:
    """A run's own place, the disk there before it began, and every change since. Disks are built there, too."""

    root: Path
    before: Disk
    records: list[Record]  # paths are relative to the root


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut after the first `after` records."""

    after: int
    chance: Chance


def record_run(
    place: Path,
    *,
    num_rounds: int = 2,
    change: str = "",
    failpoints: Sequence[str] = ("",),
    made: Sequence[str] = PREPARED,
) -> Recording:
    """Run under the recorder, in one process after another, each with its failpoint; the last one reaches the end.

    `change` is code that changes the program first; `made` is what of the run directory is on disk before that. Skips
    the test where nothing can be recorded.
    """
    if sys.platform != "linux":
        pytest.skip("recording needs Linux")
    root, log = write_run(place / "disk", KEEPING + ACCUMULATE).parent, place / "log"
    for name in made:
        (root / name).mkdir()
    if MODEL in made:
        write_fake_model(root / MODEL, FAKE_SKILL)
    before = Disk(root)
    try:
        preload = library(place)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"recording needs a C compiler that works: {error}")
    for failpoint in failpoints:
        code = _drive(root, log, preload, num_rounds, change, failpoint)
        assert code == (-signal.SIGKILL if failpoint else 0), log.with_suffix(".stderr").read_text()
    records = read_log(log, root)
    writes = Counter(record.path for record in records if record.op == "write")
    if not any(path.endswith("loop.db-wal") for path in writes):
        pytest.skip("this Python's SQLite calls the system without libc; its writes cannot be recorded")
    return _whole(Recording(root, before, records))


def record_recovery(recording: Recording, cut: Cut, *, num_rounds: int = 2, change: str = "") -> Recording:
    """How the run continues after a cut, in the same place. What had been acknowledged before the cut leads the records."""
    for _ in lay_down(recording, [cut]):
        before = Disk(recording.root)
    log = recording.root.parent / f"log-after-{cut.after}-{cut.chance.seed}"
    code = _drive(recording.root, log, library(recording.root.parent), num_rounds, change)
    assert code == 0, (cut, log.with_suffix(".stderr").read_text())
    marks = [change for change in recording.records[: cut.after] if change.op == "mark"]
    return _whole(replace(recording, before=before, records=marks + read_log(log, recording.root)))


def _drive(root: Path, log: Path, preload: Path, num_rounds: int, change: str, failpoint: str = "") -> int:
    given = environment() | {"PYTHONPATH": str(ROOT), "LOOP_FAILPOINT": failpoint}
    command = [sys.executable, "-P", "-c", DRIVER, str(root / "loop.toml"), str(num_rounds), change]
    return record(command, root, log, preload, given)


def _whole(recording: Recording) -> Recording:
    """The recording, right after it was made, if the disk is as the log says: the recorder missed nothing."""
    disk = copy.deepcopy(recording.before)
    for change in recording.records:
        disk.apply(change)
    logged, tree = disk.as_seen(), tree_of(recording.root)
    missed = [path for path in logged.keys() | tree.keys() if logged.get(path, b"?") != tree.get(path, b"?")]
    assert missed == [], "files that were changed past the recorder"
    return recording


def promises(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """What had been acknowledged, in order."""
    return (json.loads(record.data) for record in records if record.op == "mark")


def after_each_promise(recording: Recording) -> list[Cut]:
    """The worst that can happen right after each acknowledgement: nothing is there that was not synced."""
    marks = [place for place, change in enumerate(recording.records, 1) if change.op == "mark"]
    return [Cut(place, Chance("dropped", place)) for place in marks]


def lay_down(recording: Recording, cuts: Iterable[Cut]) -> Iterator[Cut]:
    """For each cut, in order of its moment: the disk as it may be then, in the run's place."""
    disk, done = copy.deepcopy(recording.before), 0
    for cut in sorted(cuts, key=lambda cut: cut.after):
        for change in recording.records[done : cut.after]:
            disk.apply(change)
        done = cut.after
        write_tree(recording.root, disk.after_cut(cut.chance))
        yield cut


def broken(recording: Recording, cut: Cut) -> list[str]:
    """What is wrong with the disk that lies there after the cut: promises that do not hold, and what `verify` finds."""
    promised = list(promises(recording.records[: cut.after]))
    path = recording.root / RUN_DIR / "loop.db"
    if not path.exists():
        return ["the store is gone"] if promised else []
    try:
        with closing(open_database(path)) as db:
            return _findings(db, recording) + list(_unkept(db, promised))
    except StoreError as error:
        return [f"the store does not open or cannot be read: {error}"]


def _findings(db: Database, recording: Recording) -> list[str]:
    return [f"{finding.kind}: {finding.message}" for finding in verify_store(db, recording.root / RUN_DIR).findings]


def _unkept(db: Database, promised: list[dict[str, Any]]) -> Iterator[str]:
    def rows(sql: str) -> Counter[tuple[Any, ...]]:
        return Counter(tuple(row.values()) for row in query(db, f"SELECT {sql}"))

    stored = {"completions": rows("id FROM completions"), "verdicts": rows("completion_id FROM verdicts")}
    runs, events = rows("id FROM runs"), rows("seq, sha256 FROM events")
    finished = rows("round, name FROM stages WHERE finished_at IS NOT NULL")
    present = rows("sha256 FROM checkpoints WHERE state = 'present'")
    decided = rows("number, state FROM rounds AS r JOIN decisions AS d ON d.run_id = r.run_id AND d.round = r.number")
    for promise in promised:
        if promise.get("seq") and (promise["seq"], promise["sha256"]) not in events:
            yield f"event {promise['seq']} was acknowledged and is gone, or is another ({promise['kind']})"
        for what, num in stored.items():
            ids = [id for id in promise.get(what, []) if num[id,] != 1]
            yield from (f"{what} of {id}: {num[id,]} in place of one" for id in ids)
        if "run" in promise and (promise["run"],) not in runs:
            yield "the run is gone"
        if "finished" in promise and tuple(promise["finished"]) not in finished:
            yield f"{promise['finished']} was acknowledged as finished and is not"
        for sha256 in promise.get("candidates", ()):
            if (sha256,) not in present:
                yield f"checkpoint {sha256} was acknowledged and is not present"
        if "decided" in promise and (promise["decided"], promise["state"]) not in decided:
            yield f"round {promise['decided']}: the decision was acknowledged and is gone"


def as_if_synced(recording: Recording, paths: Iterable[str]) -> Recording:
    """The same recording, had each of these files and directories been synced with its name when it was last changed."""
    records = list(recording.records)
    inodes = {change.path: change.inode for change in records if change.op in ("create", "mkdir")}
    inodes |= {"": next(inode for inode, node in recording.before.by_inode.items() if node is recording.before.root)}
    for path in paths:
        changes = [place for place, change in enumerate(records) if change.path == path and change.op != "sync"]
        for synced in (path, path.rpartition("/")[0]):
            records.insert(max(changes) + 1, Record("sync", 0, synced, inodes[synced], 0))
    return replace(recording, records=records)


def all_broken(recording: Recording, cuts: Iterable[Cut]) -> list[str]:
    """Everything that is wrong after any of the cuts, with the cut."""
    return [f"{cut}: {wrong}" for cut in lay_down(recording, cuts) for wrong in broken(recording, cut)]


def out_of_order(recording: Recording, number: int) -> list[str]:
    """How the way of a round's checkpoint to the disk differs from the one that survives a power cut at any place."""
    records = recording.records
    final, wal = f"{CHECKPOINTS}/round-{number:04d}", f"{RUN_DIR}/loop.db-wal"

    def places(op: str, path: str, since: int = 0, until: int = len(records)) -> list[int]:
        return [place for place in range(since, until) if records[place].op == op and records[place].path == path]

    (renamed,) = (place for place, change in enumerate(records) if change.op == "rename" and change.target == final)
    temporary = records[renamed].path
    paths = {change.path for change in records[:renamed] if change.op == "write"}
    files = sorted(path for path in paths if path.startswith(f"{temporary}/"))
    manifest = f"{temporary}/MANIFEST.json"
    assert manifest in files and len(files) >= 2, files
    wrong = []
    manifest_synced = max(places("sync", manifest, until=renamed), default=-1)
    for path in files:
        written = max(places("write", path))
        synced = places("sync", path, written, renamed)
        if not synced or min(synced) > manifest_synced:
            wrong.append(f"{path}: is not synced between its last write and the end of the manifest")
    if not places("sync", temporary, max(0, manifest_synced), renamed):
        wrong.append("the directory is not synced between the manifest and its renaming")
    (finished,) = (
        place for place, change in enumerate(records)
        if change.op == "mark" and json.loads(change.data).get("finished") == [number, "training"]
    )  # fmt: skip
    named = min(places("sync", CHECKPOINTS, renamed, finished), default=finished)
    if named == finished:
        wrong.append("the directory of checkpoints is not synced between the renaming and the acknowledgement")
    sha256 = json.loads(records[finished].data)["candidates"][0].encode()
    noted = [place for place in places("write", wal) if sha256 in records[place].data]
    if min(noted) < named:
        wrong.append("the ledger's transaction is written before the checkpoint has its name on disk")
    last = max(places("write", wal, until=finished))
    if not places("sync", wal, last, finished):
        wrong.append("the ledger's transaction is not synced before it is acknowledged")
    return wrong


def go_on(recording: Recording, uninterrupted: dict[str, Any]) -> list[str]:
    """Drive the run from what lies there to its end; how that differs from a run that was never interrupted."""
    if drive(recording.root / "loop.toml") != 0:
        return [f"the run does not continue: {(recording.root / 'stderr').read_text()[-2000:]}"]
    ended = dump(recording.root / RUN_DIR)
    differing = [table for table in uninterrupted if ended[table] != uninterrupted[table]]
    wrong = [f"{table}: differs from an uninterrupted run" for table in differing]
    with closing(open_database(recording.root / RUN_DIR / "loop.db", read_only=True)) as db:
        wrong += _findings(db, recording)
    return wrong + [f"{path.name} is left" for path in (recording.root / CHECKPOINTS).glob("tmp-*")]
