"""Where a repository's tree stands inside its sandboxes, and the copy-on-write view of it that each process gets."""

from __future__ import annotations

import os
from typing import Any

from loop.grading.inside import cell

TREE = "/repo"
LOWER = "/tree"
"""The copy of the repository, which nobody inside can change."""
JOB = "/job"
"""A directory from outside: job.json, and in `stub` the files that stand in place of the tree's."""
RESULT = "/result"
SCRATCH = ("/upper", "/upper2")
TOOLS = "/loop-tools"


def mount(libc: Any, lower: tuple[str, ...], scratch: str) -> None:
    """Mount a view of these directories, the first on top, at TREE; changes go to `scratch`/changed, in memory. Raises OSError."""
    cell.must(libc.mount(b"loop", scratch.encode(), b"tmpfs", 6, b"mode=0755,size=256m"), "mount tmpfs")
    for name in ("changed", "work"):
        os.mkdir(f"{scratch}/{name}")
    options = f"lowerdir={':'.join(lower)},upperdir={scratch}/changed,workdir={scratch}/work,userxattr"
    cell.must(libc.mount(b"loop", TREE.encode(), b"overlay", 0, options.encode()), "mount overlay")
