"""Which checkpoints stay, and how the others go. What the ledger still needs is never touched.

The ledger says "collected" before a directory is removed, so that no row ever promises weights that are half gone. A kill
in between leaves a directory that nobody needs; the next collection finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.checkpoints import CHECKPOINTS, remove_directory
from store.db import query, transaction
from store.errors import StoreError
from store.failpoints import reach
from store.ledger import Ledger
from store.records import Checkpoint, Run


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that stays, and why."""

    checkpoint: Checkpoint
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection does. `leftovers` are directories of checkpoints that were collected or set aside before."""

    kept: tuple[Kept, ...]
    doomed: tuple[Checkpoint, ...]
    leftovers: tuple[Path, ...]


def plan_collection(
    ledger: Ledger,
    run: Run,
    run_dir: Path,
    suite_name: str,
    *,
    keep_last: int,
    max_total_bytes: int | None = None,
    damaged: bool = False,
) -> Plan:
    """Base, head, best, pinned, what an open round works with and the newest `keep_last` stay.

    `max_total_bytes` bounds the size of all that stays below the run directory: the oldest of the newest go first, and
    never one that stays for another reason. `damaged`: remove what was set aside, too.
    """
    present = [row for row in ledger.checkpoints.all(run.id) if row.state == "present"]
    needed = _needed(ledger, run, suite_name, {row.sha256: row for row in present})
    inside = [row for row in present if not Path(row.path).is_absolute()]  # the run directory
    newest = sorted((row for row in inside if row.sha256 not in needed), key=lambda row: row.round, reverse=True)
    num_bytes = sum(row.size_bytes for row in inside if row.sha256 in needed)
    doomed = []
    for num_newer, row in enumerate(newest):
        num_bytes += row.size_bytes
        if num_newer >= keep_last or (max_total_bytes is not None and num_bytes > max_total_bytes):
            doomed.append(row)
        else:
            needed[row.sha256] = f"among the newest {keep_last}"
    kept = tuple(Kept(row, needed[row.sha256]) for row in present if row.sha256 in needed)
    return Plan(kept, tuple(sorted(doomed, key=lambda row: row.round)), _leftovers(ledger, run, run_dir, damaged))


def collect(ledger: Ledger, run_dir: Path, plan: Plan) -> int:
    """Carry a plan out; the bytes that it freed. Harmless to repeat. StoreError if the ledger has moved on since."""
    with transaction(ledger.db):
        for row in plan.doomed:
            run = ledger.run_of(row.run_id)
            last = ledger.last_round(row.run_id)
            used = {run.head_checkpoint, run.base_checkpoint}
            if last and last.state not in ("kept", "rolled_back"):
                used |= {last.parent_checkpoint, last.candidate_checkpoint or ""}
            if row.sha256 in used or (now := ledger.checkpoints.get(row.sha256)) is None or now.pinned:
                raise StoreError(f"the checkpoint of round {row.round} is needed since; ask again")
            ledger.checkpoints.set_state(row.sha256, "collected")
    reach("checkpoint.collected")
    freed = 0
    for path in (*(run_dir / row.path for row in plan.doomed), *plan.leftovers):
        if path.exists():
            freed += size_bytes(path)
            remove_directory(path)
    return freed


def size_bytes(directory: Path) -> int:
    """The size of all files below a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def best_round(ledger: Ledger, run: Run, suite_name: str) -> int:
    """The kept round, or 0 for the base, that did best on the suite that decides; the earliest of equals."""
    sql = (
        "SELECT e.checkpoint, json_extract(e.metrics, '$.\"pass@1\"') AS rate FROM evaluations AS e "
        "WHERE e.run_id = ? AND e.suite_name = ? AND e.split = ? AND e.metrics IS NOT NULL ORDER BY e.rowid"
    )  # the last row of a checkpoint counts: a head answers afresh, so that having been selected flatters it no longer
    split = run.config.get("decide", {}).get("split", "all")
    rates = {row["checkpoint"]: row["rate"] for row in query(ledger.db, sql, (run.id, suite_name, split))}
    sql = (
        "SELECT number, candidate_checkpoint AS sha256 FROM rounds WHERE run_id = ? AND state = 'kept' ORDER BY number"
    )
    best, number = rates.get(run.base_checkpoint, -1.0), 0
    for row in query(ledger.db, sql, (run.id,)):
        if rates.get(row["sha256"], -1.0) > best:
            best, number = rates[row["sha256"]], row["number"]
    return number


def _needed(ledger: Ledger, run: Run, suite_name: str, present: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Hash of each checkpoint that must stay, whatever the retention says, and why."""
    needed = {run.base_checkpoint: "the base", run.head_checkpoint: "the head"}
    last = ledger.last_round(run.id)
    if last and last.state not in ("kept", "rolled_back"):
        for sha256 in filter(None, (last.parent_checkpoint, last.candidate_checkpoint)):
            needed.setdefault(sha256, f"round {last.number} works with it")
    wanted = ledger.control(run.id).wanted_head
    for number, why in ((best_round(ledger, run, suite_name), "the best"), (wanted, "to be the head")):
        if number and (round := ledger.round(run.id, number)) and round.candidate_checkpoint:
            needed.setdefault(round.candidate_checkpoint, why)
    for row in present.values():
        if row.pinned:
            needed.setdefault(row.sha256, "pinned")
    for sha256 in list(needed):
        if (stays := present.get(sha256)) and stays.base:
            needed.setdefault(stays.base, "the base of an adapter that stays")
    return needed


def _leftovers(ledger: Ledger, run: Run, run_dir: Path, damaged: bool) -> tuple[Path, ...]:
    rows = ledger.checkpoints.all(run.id)
    present = {row.path for row in rows if row.state == "present"}
    paths = [run_dir / row.path for row in rows if row.state == "collected" and row.path not in present]
    paths += _unrecorded(ledger, run, run_dir, {row.path for row in rows})
    if damaged:
        paths += sorted((run_dir / CHECKPOINTS).glob("*.damaged*"))
    return tuple(path for path in paths if path.is_dir())


def _unrecorded(ledger: Ledger, run: Run, run_dir: Path, recorded: set[str]) -> list[Path]:
    """Directories of rounds that are over and whose weights have another home: those of an equal checkpoint."""
    last = ledger.last_round(run.id)
    over = (last.number if last.state in ("kept", "rolled_back") else last.number - 1) if last else 0
    paths = []
    for path in sorted((run_dir / CHECKPOINTS).glob("round-*")):
        number = path.name.removeprefix("round-")
        if number.isdigit() and int(number) <= over and str(path.relative_to(run_dir)) not in recorded:
            paths.append(path)
    return paths
