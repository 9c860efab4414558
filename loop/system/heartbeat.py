"""The heartbeat of a run: the file beside the store in which its process says what it does and how far it is.

Readers take no lock, so they can never be in the way of a process that starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
MIN_WAIT_S = 1.0  # between two writes that have no news
SIZE_BYTES = 16384  # with about a hundred nodes; the file's size never changes: written in place, it needs no room on a full disk
NUM_READS, READ_AGAIN_S = 5, 0.002  # a read that met a write is tried again
LONGEST = 1500  # characters of a text, before those beyond ASCII are escaped


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life. Times are Unix seconds; `part` names what the stage is doing."""

    pid: int
    at: float
    started_at: float
    state: str = "running"  # running, paused or idle; when it ends, how
    reason: str | None = None  # why, in words
    next_due_at: float | None = None  # when it continues by itself, if it waits for a time
    round: int = 0
    stage: str = ""
    part: str = ""
    part_started_at: float = 0.0
    done: int | None = None
    total: int | None = None
    first_done: int | None = (
        None  # the first that was reported of the part, and when: what was done before took no time now
    )
    first_done_at: float = 0.0
    warning: str | None = None  # what the user should know while the part lasts
    nodes: list[dict[str, Any]] | None = None  # of a cluster, as `loop.workers.by_node` has them

    @property
    def rate(self) -> float | None:
        """Units of the part per second, without those that were done before it began; None before that is known."""
        if self.done is None or self.first_done is None or self.done <= self.first_done:
            return None
        return (self.done - self.first_done) / max(1e-9, self.at - self.first_done_at)


class Beating:
    """Writes the heartbeat of this process: news at once, and otherwise at most once a second that it is alive.

    Only for the process that holds the run's lock. A heartbeat that cannot be written is left out: a full disk stops the run
    elsewhere.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / HEARTBEAT
        self._began = self._part_began = self._first_done_at = time.monotonic()
        self._last_write = 0.0
        self._num_writes = 0
        self._descriptor: int | None = None
        self._state: dict[str, Any] = {}
        self._part: dict[str, Any] = {}
        self._nodes: list[dict[str, Any]] = []

    def say(self, state: str, reason: str | None = None, next_due_at: float | None = None) -> None:
        """Say what the run is doing, and why. A run that is not running has no part."""
        self._state = {"state": state, "reason": reason and reason[:LONGEST], "next_due_at": next_due_at}
        if state != "running":
            self._part, self._nodes = {}, []
        self._write()

    def begin(self, round: int, stage: str, part: str) -> None:
        """A stage, or a part of one, begins."""
        self._part, self._part_began = {"round": round, "stage": stage, "part": part[:LONGEST]}, time.monotonic()
        self._write()

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` of the part are done."""
        if "first_done" not in self._part:
            self._part["first_done"], self._first_done_at = done, time.monotonic()
        self._part |= {"done": done, "total": total}
        self.beat()

    def warn(self, text: str) -> None:
        """What the user should know while the part lasts; an empty text takes it back."""
        if (self._part.get("warning") or "") != text:
            self._part["warning"] = text[:LONGEST]
            self._write()

    def nodes(self, nodes: list[dict[str, Any]]) -> None:
        """What the nodes of a cluster do; none where there is no cluster."""
        self._nodes = nodes
        self.beat()

    def beat(self) -> None:
        """Say that the loop moves. Call it as often as it does."""
        if time.monotonic() - self._last_write >= MIN_WAIT_S:
            self._write()

    @property
    def now(self) -> Heartbeat:
        """The heartbeat to write now. Past moments count back from the present clock, which may have been set since."""
        at, now = time.time(), time.monotonic()
        since = {"part_started_at": at - (now - self._part_began), "first_done_at": at - (now - self._first_done_at)}
        part = self._part and self._part | since
        return Heartbeat(os.getpid(), at, at - (now - self._began), **self._state, **part, nodes=self._nodes or None)

    def _write(self) -> None:
        self._last_write = time.monotonic()
        self._num_writes += 1
        beat = asdict(self.now)
        length = LONGEST
        while len(content := _encoded(beat, self._num_writes)) > SIZE_BYTES:
            length //= 2
            beat = {key: value[:length] if isinstance(value, str | list) else value for key, value in beat.items()}
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                os.ftruncate(self._descriptor, SIZE_BYTES)
            os.pwrite(self._descriptor, content, 0)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _encoded(beat: dict[str, Any], number: int) -> bytes:
    """The heartbeat between two equal numbers, by which a reader knows that it saw one write and not parts of two."""
    text = json.dumps({"write": number, **beat, "written": number})
    return f"{text:<{SIZE_BYTES - 1}}\n".encode("ascii")


def read_heartbeat(run_dir: Path) -> Heartbeat | None:
    """The last heartbeat of any process; None if none can be read."""
    for _ in range(NUM_READS):
        try:
            values = json.loads((run_dir / HEARTBEAT).read_bytes())
            if values.pop("write") == values.pop("written"):
                names = {field.name for field in fields(Heartbeat)}
                return Heartbeat(**{name: value for name, value in values.items() if name in names})
        except OSError:
            return None
        except (ValueError, TypeError, AttributeError, KeyError):  # torn, or another program's
            pass
        time.sleep(READ_AGAIN_S)
    return None
