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
_NO_DEVICES_OR_SETUID, _READ_ONLY = 6, 0x1027  # this mount alone; its other flags stay
PYTEST = ("-p", "no:cacheprovider", "--capture=sys", "-q", "--assert=plain", "--tb=line")
"""Arguments of pytest. To rewrite the assertions and to format a failure takes longer than most tests."""
SCRATCH = ("/upper", "/upper2")
TOOLS = "/loop-tools"


def keep_from_candidates(libc: Any) -> None:
    """Make what later candidates see read-only in this namespace, and give it a /tmp of its own. Raises OSError."""
    cell.must(libc.mount(None, SCRATCH[0].encode(), None, _READ_ONLY, None), "remount")
    cell.must(libc.mount(b"loop", b"/tmp", b"tmpfs", _NO_DEVICES_OR_SETUID, b"mode=1777,size=256m"), "mount tmpfs")


def mount(libc: Any, lower: tuple[str, ...], scratch: str) -> None:
    """Mount a view of these directories, the first on top, at TREE; changes go to `scratch`/changed, in memory. Raises OSError."""
    cell.must(
        libc.mount(b"loop", scratch.encode(), b"tmpfs", _NO_DEVICES_OR_SETUID, b"mode=0755,size=256m"), "mount tmpfs"
    )
    for name in ("changed", "work"):
        os.mkdir(f"{scratch}/{name}")
    options = f"lowerdir={':'.join(lower)},upperdir={scratch}/changed,workdir={scratch}/work,userxattr"
    cell.must(libc.mount(b"loop", TREE.encode(), b"overlay", 0, options.encode()), "mount overlay")
