"""Runs all tests of a repository once, in an order drawn from a seed, and says what each came to and what code it reached."""

from __future__ import annotations

import ctypes
import json
import linecache
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from loop.grading.inside.view import LOWER, PYTEST, RESULT, SCRATCH, TOOLS, TREE, mount


class TooLong(Exception):
    """A test took longer than it may."""


class Survey:
    """A plugin of pytest. `outcomes` has for each test its outcome, its seconds and the reason where it did not pass."""

    def __init__(self, job: dict[str, Any], cover: Any) -> None:
        self._job, self._cover = job, cover
        self.outcomes: dict[str, list[Any]] = {}
        self.troubles: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.troubles.append(f"{report.nodeid}: {reason_of(report)}")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        random.Random(self._job["seed"]).shuffle(items)

    def pytest_runtestloop(self, session: Any) -> bool:
        def late(*_: Any) -> None:
            raise TooLong(f"it took more than {limit_s:g} s")

        limit_s = self._job["limit_s"]
        signal.signal(signal.SIGALRM, late)
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            if self._cover is not None:
                self._cover.switch_context(item.nodeid)
            began = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            except BaseException as error:  # it ended pytest
                self._note(item.nodeid, "failed", f"{type(error).__name__}: {error}")
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.outcomes.setdefault(item.nodeid, ["failed", 0.0, "it was not run"])[1] = time.perf_counter() - began
        if self._cover is not None:
            self._cover.switch_context("")
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "call" or outcome != "passed":
            self._note(report.nodeid, outcome, "" if outcome == "passed" else reason_of(report))

    def _note(self, nodeid: str, outcome: str, reason: str) -> None:
        earlier = self.outcomes.get(nodeid)
        if earlier is None or earlier[0] == "passed":
            self.outcomes[nodeid] = [outcome, 0.0, reason]


def run(job: dict[str, Any]) -> None:
    """Write the survey to RESULT/survey.json. Never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    mount(libc, (LOWER,), SCRATCH[0])
    os.chdir(TREE)
    cover = None
    if job["spans"]:
        sys.path.append(TOOLS)
        import coverage

        # the tracer in C, since the monitor of newer Pythons has no contexts
        os.environ.setdefault("COVERAGE_CORE", "ctrace")
        cover = coverage.Coverage(
            data_file=None, config_file=False, include=[f"{TREE}/{file}" for file in job["spans"]]
        )
        cover.start()
    import pytest

    plugin = Survey(job, cover)
    with open(os.devnull, "w") as nothing:
        out, sys.stdout = sys.stdout, nothing
        status = pytest.main([*PYTEST, *job["options"]], plugins=[plugin])
        sys.stdout = out
    reached: list[tuple[str, int, list[str]]] = []
    if cover is not None:
        cover.stop()
        for file, spans in job["spans"].items():
            lines = cover.get_data().contexts_by_lineno(f"{TREE}/{file}")
            for number, (first, last) in enumerate(spans):
                tests = {name for line in range(first, last + 1) for name in lines.get(line, ()) if name}
                reached.append((file, number, sorted(tests)))
    text = {"status": int(status), "outcomes": plugin.outcomes, "troubles": plugin.troubles, "reached": reached}
    Path(RESULT, "survey.json").write_text(json.dumps(text), "utf-8")
    os._exit(0)


def reason_of(report: Any) -> str:
    """What was wrong, in a line: the exception, or the assertion that failed as it stands in the source."""
    text = str(report.longrepr).strip()
    lines = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    what = next(iter(lines or text.splitlines()), "")
    place = getattr(report.longrepr, "reprcrash", None)
    if what == "AssertionError" and place is not None:
        what = linecache.getline(str(place.path), place.lineno).strip() or what
    return what[:200]
