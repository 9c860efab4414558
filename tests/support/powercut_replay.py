"""Power cuts without a plug: every change below a directory is recorded, and a disk is built as a cut might leave it.

`record` runs a program with tests/powercut/record.c preloaded. `Disk` replays the log: what was synced is there, and what
was not is dropped, kept, or torn, as a `Chance` draws it. It knows files, names and syncs; nothing of stores or rounds.

The model is stricter than common file systems. fsync of a file makes its content durable and promises nothing of its name;
a name, a renaming or a removal is durable only when a directory that it touches is synced. A renaming is atomic. Changes
that were not synced reach the disk in any combination, and a write in any combination of its 512-byte sectors. What it
leaves out: sectors that are damaged although they were synced, disks that lie about syncs, garbage in place of zeros where
a file grew, modes and times.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

from tests.support import TESTS

SOURCE = TESTS / "powercut" / "record.c"
SECTOR = 512
HEADER = struct.Struct("@IIi c3x Qq")

How = Literal["dropped", "kept", "mixed", "prefix"]
OPS = {  # what a record says, by its letter in the log
    "C": "create", "D": "mkdir", "T": "truncate", "W": "write", "S": "sync", "A": "sync all", "R": "rename",
    "U": "remove", "L": "link", "M": "mark",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One change, in its place in the order of all. Paths are relative to the root, "" is the root itself."""

    op: str  # one of OPS
    pid: int
    path: str
    inode: int
    offset: int  # of a write; the new size of a truncation
    data: bytes = b""  # of a write or a mark; of a renaming, the target as it stands in the log
    target: str = ""  # of a renaming


@cache
def library(directory: Path) -> Path:
    """record.c, compiled into `directory`; CalledProcessError or OSError if that cannot be done here."""
    target = directory / "record.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-pthread", "-o", str(target), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def record(command: list[str], root: Path, log: Path, preload: Path, environment: dict[str, str]) -> int:
    """Run a program to its end; the exit code. Its changes below `root` are appended to `log`."""
    mine = {"LD_PRELOAD": str(preload), "POWERCUT_ROOT": os.path.realpath(root), "POWERCUT_LOG": os.path.realpath(log)}
    with open(log.with_suffix(".stderr"), "ab") as stderr:
        return subprocess.run(command, env=environment | mine, stderr=stderr, check=False).returncode


def mark(text: str) -> None:
    """Put a word of one's own into the log; from inside a recorded program."""
    encoded = text.encode()
    ctypes.CDLL(None).powercut_mark(encoded, ctypes.c_size_t(len(encoded)))


def read_log(log: Path, root: Path) -> list[Record]:
    """All records, in order."""
    content, place, records = log.read_bytes(), 0, []
    base = os.path.realpath(root)

    def relative(path: bytes) -> str:
        clean = os.path.normpath(path.decode().removesuffix(" (deleted)"))
        return "" if clean == base else clean.removeprefix(base + "/")

    while place < len(content):
        path_size, more_size, pid, op, inode, offset = HEADER.unpack_from(content, place)
        place += HEADER.size
        path, more = content[place : place + path_size], content[place + path_size : place + path_size + more_size]
        place += path_size + more_size
        kind = OPS[op.decode()]
        name, target = "" if kind == "mark" else relative(path), relative(more) if kind == "rename" else ""
        records.append(Record(kind, pid, name, inode, offset, more, target))
    return records


@dataclass(slots=True)
class Chance:
    """What a cut does to what was not synced.

    "dropped": nothing of it is there, the worst case. "kept": all of it is. "mixed": each name and each sector is there or
    not. "prefix": everything up to some moment is, the last write torn; that is what a journal gives.
    `names_follow_files`: a new file's first name is durable once its content is synced, as on most file systems.
    """

    how: How
    seed: int
    names_follow_files: bool = False


@dataclass(slots=True, eq=False)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)
    synced: bool = False  # at least once since it was made


class _Directory:
    pass


_Node = _File | _Directory
_Entries = list[tuple[_Directory, str, _Node | None]]


@dataclass(slots=True, eq=False)
class _Change:
    """A write, or a truncation (no data) to `offset` bytes."""

    number: int
    offset: int
    data: bytes | None

    def apply(self, content: bytearray, kept: list[bool] | None = None) -> None:
        """Carry it out on a content; `kept`, by sector, says what of it: None is all."""
        for (start, end), stays in zip(self.sectors(), kept or repeat(True), strict=False):
            if stays and self.data is None:
                del content[self.offset :]
                content.extend(bytes(self.offset - len(content)))
            elif stays and self.data is not None:
                content.extend(bytes(max(0, self.offset + start - len(content))))
                content[self.offset + start : self.offset + end] = self.data[start:end]

    def sectors(self) -> Iterator[tuple[int, int]]:
        """The parts of a write that the disk's sectors cut it into, counted from its own start; a truncation is one."""
        start, size = 0, 1 if self.data is None else len(self.data)
        while start < size:
            end = min(size, start + SECTOR - (self.offset + start) % SECTOR)
            yield start, end
            start = end


@dataclass(slots=True, eq=False)
class _Naming:
    """Names given and taken in one step; None takes one away."""

    number: int
    entries: _Entries
    durable: bool = False
    creates: _Node | None = None


class Disk:
    """The files below a root: what programs see, and what a power cut may leave of it."""

    def __init__(self, root: Path | None = None) -> None:
        """Begin with what lies below `root`, all of it durable; without a root, with nothing."""
        self.root = _Directory()
        self.seen: dict[_Directory, dict[str, _Node]] = {self.root: {}}
        self.namings: list[_Naming] = []
        self.files: list[_File] = []  # removed ones too: the removal may not be on disk
        self.by_inode: dict[int, _Node] = {}
        self.number = 0
        if root is not None:
            self.by_inode[root.stat().st_ino] = self.root
            self._take_in(root, self.root)

    def _take_in(self, path: Path, directory: _Directory) -> None:
        for entry in sorted(path.iterdir()):
            node: _Node = _Directory() if entry.is_dir() else _File(bytearray(entry.read_bytes()), synced=True)
            self._name([(directory, entry.name, node)], durable=True)
            self._meet(node, entry.stat().st_ino)
            if isinstance(node, _Directory):
                self._take_in(entry, node)

    def apply(self, record: Record) -> None:
        """One more change."""
        self.number += 1
        match record.op:
            case "create" | "mkdir":
                node: _Node = _File() if record.op == "create" else _Directory()
                self._meet(node, record.inode)
                self._name([(*self._place(record.path), node)], creates=node)
            case "link":
                self._name([(*self._place(record.path), self.by_inode[record.inode])])
            case "rename":
                directory, name = self._place(record.path)
                node = self.seen[directory][name]
                self._name([(directory, name, None), (*self._place(record.target), node)])
            case "remove":
                self._name([(*self._place(record.path), None)])
            case "write" | "truncate":
                file = self.by_inode[record.inode]
                data = record.data if record.op == "write" else None
                file.pending.append(_Change(self.number, record.offset, data))
            case "sync":
                self._sync(self.by_inode[record.inode])
            case "sync all":
                for node in (*self.files, *self.seen):
                    self._sync(node)

    def _meet(self, node: _Node, inode: int) -> None:
        self.by_inode[inode] = node
        if isinstance(node, _Directory):
            self.seen[node] = {}
        else:
            self.files.append(node)

    def _place(self, path: str) -> tuple[_Directory, str]:
        *parents, name = path.split("/")
        directory = self.root
        for parent in parents:
            directory = self.seen[directory][parent]
        return directory, name

    def _name(self, entries: _Entries, **particulars: Any) -> None:
        self.namings.append(_Naming(self.number, entries, **particulars))
        _apply_names(self.seen, entries)

    def _sync(self, node: _Node) -> None:
        if isinstance(node, _File):
            for change in node.pending:
                change.apply(node.durable)
            node.pending.clear()
            node.synced = True
            return
        for naming in self.namings:
            naming.durable = naming.durable or any(directory is node for directory, _, _ in naming.entries)

    def as_seen(self) -> dict[str, bytes | None]:
        """What programs see now: path -> content, None for a directory."""
        return self._tree(self.seen, lambda change: None)

    def after_cut(self, chance: Chance) -> dict[str, bytes | None]:
        """What may be there after a power cut at this moment: path -> content, None for a directory."""
        draw = random.Random(chance.seed)
        share = draw.choice((0.1, 0.5, 0.9))
        moments = [change.number for file in self.files for change in file.pending]
        moments += [naming.number for naming in self.namings if not naming.durable]
        last = draw.choice(sorted(set(moments) or {0}))

        def survives(number: int) -> bool:
            if chance.how == "mixed":
                return draw.random() < share
            return chance.how == "kept" or (chance.how == "prefix" and number <= last)

        def kept(change: _Change) -> list[bool]:
            num_sectors = len(list(change.sectors()))
            torn = chance.how == "prefix" and change.number == last and change.data is not None
            if chance.how == "mixed" or torn:
                return [draw.random() < share for _ in range(num_sectors)]
            return [survives(change.number)] * num_sectors

        names: dict[_Directory, dict[str, _Node]] = {}
        for naming in self.namings:
            follows = chance.names_follow_files and isinstance(naming.creates, _File) and naming.creates.synced
            if naming.durable or follows or survives(naming.number):
                _apply_names(names, naming.entries)
        return self._tree(names, kept)

    def _tree(
        self, names: dict[_Directory, dict[str, _Node]], kept: Callable[[_Change], list[bool] | None]
    ) -> dict[str, bytes | None]:
        tree: dict[str, bytes | None] = {}

        def walk(directory: _Directory, prefix: str) -> None:
            for name, node in names.get(directory, {}).items():
                tree[prefix + name] = None
                if isinstance(node, _Directory):
                    walk(node, f"{prefix}{name}/")
                else:
                    content = bytearray(node.durable)
                    for change in node.pending:
                        change.apply(content, kept(change))
                    tree[prefix + name] = bytes(content)

        walk(self.root, "")
        return tree


def _apply_names(names: dict[_Directory, dict[str, _Node]], entries: _Entries) -> None:
    for directory, name, node in entries:
        entry = names.setdefault(directory, {})
        entry.pop(name, None)
        if node is not None:
            entry[name] = node


def tree_of(root: Path) -> dict[str, bytes | None]:
    """What lies below a directory, as `Disk.as_seen` gives it; SQLite's -shm files left out, as in the log."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
        if not path.name.endswith("-shm")
    }


def write_tree(root: Path, tree: dict[str, bytes | None]) -> None:
    """Lay files and directories down in place of what was there."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, content in tree.items():  # a directory comes before what is in it
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
