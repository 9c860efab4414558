"""The sandbox as a user without rights has it, for tests that run as root."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from loop.grading.bubblewrap import Mode, bwrap_command, find_bwrap
from loop.grading.sandbox import Sandbox, own_python

_DROP = ("--reuid=65534", "--regid=65534", "--clear-groups")


@functools.cache
def readable_python() -> str | None:
    """A Python that a user without rights may run."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or find_bwrap() is None:
        return None
    for python in (own_python(), "/usr/bin/python3"):
        python = os.path.realpath(python)
        code = f"import sys; open({python!r}); open({find_bwrap()!r}); sys.exit(sys.version_info < (3, 11))"
        command = ["setpriv", *_DROP, python, "-c", code]
        if os.path.exists(python) and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return python
    return None


def as_user(mode: Mode) -> Sandbox:
    """One that starts bubblewrap as nobody."""
    python, bwrap = readable_python(), find_bwrap()
    assert python and bwrap
    command = (str(shutil.which("setpriv")), *_DROP, *bwrap_command(bwrap, mode, python))
    return Sandbox("bubblewrap", "", command, own_uid=False, nested=mode.nested)
