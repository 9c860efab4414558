"""Runs of the fake engine that stand still in a stage until a test goes on, however long it takes to look at them.

A stage that only takes long may be over on a slow machine before anybody has seen it.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.runs import ROOT
from tests.support.waiting import wait_until

# Put before everything else in every process of a run. Whoever stands still leaves a file that is named after the stage, and
# a process that handles a signal a letter.
BEFORE = """
import os, sys, time
from pathlib import Path
if "loop.workers.child" in sys.orig_argv:
    from loop.engines import fake

    def stand_still(stage):
        named = Path(os.environ["STANDS_STILL"])
        while named.exists() and named.read_text() == stage:
            named.with_suffix("." + stage).touch()
            time.sleep(0.02)

    def generate(self, requests, params, generate=fake.FakeSampler.generate):
        for batch in generate(self, requests, params):
            yield batch
            stand_still("sampling" if params.temperature == 1.2 else "evaluating")  # 1.2 in the tests' configurations

    def fit(self, *arguments, fit=fake.FakeTrainer.fit):
        report = self.progress
        self.progress = lambda done, total: (report(done, total), stand_still("training"))
        try:
            return fit(self, *arguments)
        finally:
            self.progress = report

    fake.FakeSampler.generate, fake.FakeTrainer.fit = generate, fit
if "loop.daemon" in sys.orig_argv:
    from loop.system.signals import Stop

    def handle(self, signum, frame, handle=Stop._handle):
        with Path(os.environ["STANDS_STILL"]).with_suffix(".heard").open("a") as file:
            file.write("x")
        handle(self, signum, frame)

    Stop._handle = handle
"""


class Stages:
    """Where the runs with these `variables` in their environment stand still."""

    def __init__(self, directory: Path) -> None:
        self.first = directory / "first"  # of the places where Python looks for modules
        self.first.mkdir(parents=True)
        self.put_before(BEFORE)
        self._named = directory / "stands-still"
        self.variables = {"PYTHONPATH": f"{self.first}{os.pathsep}{ROOT}", "STANDS_STILL": str(self._named)}

    def put_before(self, code: str) -> None:
        """Have every process run this, too, before its own code."""
        with (self.first / "sitecustomize.py").open("a") as file:
            file.write(code)

    def stand_still(self, stage: str) -> None:
        """From now on sampling, training or evaluating does not get beyond its first step."""
        partial = self._named.with_suffix(".partial")
        partial.write_text(stage)
        partial.replace(self._named)

    def wait(self, stage: str) -> None:
        """Until it stands still there."""
        wait_until(self._named.with_suffix(f".{stage}").exists)

    def go_on(self) -> None:
        """Nothing stands still any more."""
        self._named.unlink()

    def forget(self) -> None:
        """Where the processes before stood, which are gone."""
        for stage in ("sampling", "training", "evaluating"):
            self._named.with_suffix(f".{stage}").unlink(missing_ok=True)

    def num_heard(self) -> int:
        """How many signals the daemons have handled."""
        heard = self._named.with_suffix(".heard")
        return len(heard.read_text()) if heard.exists() else 0
