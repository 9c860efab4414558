"""Everything slow, one part after the other: `make nightly`, or `python3 tests/nightly.py [--only NAME ...] [--full]`.

It continues after a failure and ends with a table, which build/nightly/table.md has as Markdown with the machine; exit code 1
where anything failed. Each part writes build/nightly/NAME.log. A part is ended with all that it started when it passes a
limit that only a hang reaches. Sizes are for an hour and a quarter on two cores with what is installed the first time;
`--full` takes those of `make kills`, `make soak` and the benches' own, some hours. Nothing under docs/ is written.

Only the standard library, and any Python from 3.11: the first part installs the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "nightly"
PYTHON, VLLM_PYTHON = ".venv/bin/python", ".venv-vllm/bin/python"
LIMIT_S, FULL_LIMIT_S = 90 * 60.0, 6 * 3600.0
TREE = "NIGHTLY_TREE"  # in the environment of a part's processes: whose they are
# A test that hangs shows where it does in the log, long before its part is ended.
PYTEST = "-o faulthandler_timeout=1200 --durations 15"


class Part(NamedTuple):
    """A command, and the one of `--full` where that is another. `{results}`: where pytest puts its results, if it is pytest."""

    name: str
    command: str
    full: str | None = None


PARTS = (
    Part("setup", "make setup"),
    Part("browser", "make browser"),
    Part("lint", "make lint"),
    Part("tests", f"{PYTHON} -m pytest -n 2 -m 'not slow' {PYTEST} --junitxml {{results}}"),
    Part("slow-tests", f"{PYTHON} -m pytest -n 2 -m slow {PYTEST} --junitxml {{results}}"),
    Part("demo", "make demo DEMO=build/nightly/demo/loop.toml"),
    Part("kills", "make kills KILLS=200", "make kills"),
    Part("soak", "make soak MINUTES=6", "make soak"),
    Part("vllm-tests", f"make test-vllm PYTEST='{PYTEST} --junitxml {{results}}'"),
    Part("study", f"{PYTHON} bench/study.py --quick --out build/nightly/study"),
    *(
        Part(f"bench-{name}", f"{command} {small}", command)
        for name, command, small in (
            ("training", f"{PYTHON} bench/training.py", "--pairs 1 --rows 16"),
            ("sampling", f"{PYTHON} bench/sampling.py", "--pairs 1 --requests 32"),
            ("rounds", f"{PYTHON} bench/rounds.py", "--rounds 1 --small"),
            ("corpus", f"{PYTHON} -m bench.corpus --directory build/bench", "--num 100000 --pairs 3"),
            ("search", f"{PYTHON} -m bench.search", "--num 20000"),
            ("hashing", f"{PYTHON} -m bench.hashing", "--mb 64 --turns 3"),
            ("serve", f"{PYTHON} -m bench.serve", ""),
            ("status", f"{PYTHON} bench/status.py", "--completions 100000 --runs 7"),
            ("report", f"{PYTHON} bench/report.py", "--rounds 50 --completions 100000 --runs 2"),
            ("daemon", f"{PYTHON} bench/daemon.py", ""),
            ("grading", f"{PYTHON} bench/grading.py", "--repeats 4 --turns 1"),
            ("decisions", f"{PYTHON} bench/decisions.py", "--quick"),
            ("collapse", f"{PYTHON} bench/collapse.py", "--quick"),
            ("drift", f"{PYTHON} bench/drift.py", "--runs 50"),
            ("candidates", f"{PYTHON} bench/candidates.py", "--quick"),
            ("dealing", f"{PYTHON} bench/dealing.py", "--steps 100"),
            ("sharding", f"{PYTHON} bench/sharding.py", ""),
            ("cluster", f"{PYTHON} bench/cluster.py", "--requests 256 --turns 2 --streams 4 --mb 100"),
            ("cluster_training", f"{PYTHON} bench/cluster_training.py", "--turns 1"),
            ("cluster_losses", f"{PYTHON} bench/cluster_losses.py", ""),
            ("cluster_growth", f"{PYTHON} bench/cluster_growth.py", "--hub-ms 0.6 --stream-ms 0.3"),
            ("in_repository", f"{PYTHON} bench/in_repository.py", "--programs 1000"),
            ("planted", f"{PYTHON} bench/planted.py", "--runs 100"),
            ("feed", f"{PYTHON} bench/feed.py", "--completions 2000"),
            ("estimate", f"{PYTHON} bench/estimate.py", "--small"),
            ("busy", f"{PYTHON} bench/busy.py", "--variants before after --neighbours 0 2"),
            ("vllm", f"{VLLM_PYTHON} bench/sampling_vllm.py", "--pairs 1 --requests 32"),
            ("gpu", "make gpu", "DEVICE=cpu"),
        )
    ),
)


class Row(NamedTuple):
    """How a part went: pytest's own counts, or 1 and 0 by the exit code."""

    name: str
    passed: int
    failed: int
    seconds: float
    note: str = ""


def run(name: str, command: str, place: Path, limit_s: float, clock: Callable[[], float] = time.monotonic) -> Row:
    """Run a command from the repository's root into `place`/NAME.log, and end whatever of it is still there."""
    results, token = place / f"{name}.xml", secrets.token_hex(16)
    results.unlink(missing_ok=True)
    began = clock()
    with (place / f"{name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                shlex.split(command.replace("{results}", str(results))),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env=os.environ | {TREE: token},
            )  # fmt: skip
        except OSError as error:
            return Row(name, 0, 1, 0.0, f"cannot be started: {error}")
    try:
        while (code := process.poll()) is None and clock() - began <= limit_s:
            time.sleep(0.1)
    finally:
        num_ended = end(token, process)
    notes = []
    if code is None:
        notes.append(f"ended after {minutes(limit_s)} min")
    elif num_ended:
        notes.append(f"left {num_ended} processes behind, which were ended")
    passed, failed, skipped = counted(results) if "{results}" in command else (int(code == 0), 0, 0)
    if code != 0 and not failed:  # pytest may have ended before it wrote anything
        failed = 1
        notes = notes or [f"exit code {code}"]
    elif not passed and not failed:
        failed = 1
        notes.append("no test ran")
    if skipped:
        notes.append(f"{skipped} skipped")
    return Row(name, passed, failed, clock() - began, "; ".join(notes))


def end(token: str, process: subprocess.Popen[bytes]) -> int:
    """Kill all that a part started, wherever it went, until nothing is left; how many processes that were."""
    killed = set()
    while left := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _belongs(pid, token)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.05)
    process.wait()
    return len(killed)


def _belongs(pid: int, token: str) -> bool:
    """Whether it inherited the token. What has ended has no environment any more."""
    with contextlib.suppress(OSError):
        return f"{TREE}={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def counted(results: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests in a file of pytest's; zeros where there is none."""
    try:
        suites = list(ElementTree.parse(results).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return total - failures - errors - skipped, failures + errors, skipped


def run_all(parts: Sequence[tuple[str, str]], place: Path, limit_s: float) -> list[Row]:
    """Each part's row, in turn; said as it happens, and written to `place`/table.md after each."""
    rows: list[Row] = []
    for name, command in parts:
        print(f"{name}: {command}", flush=True)
        rows.append(row := run(name, command, place, limit_s))
        (place / "table.md").write_text(markdown(rows))
        told = f"{row.passed} passed, {row.failed} failed, {minutes(row.seconds)} min"
        print(f"{'':4}{told}{'; ' + row.note if row.note else ''}", flush=True)
        if row.failed:
            print(f"{'':4}see {place / name}.log", flush=True)
    return rows


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table: a header, a line per part, and the sum."""
    whole = Row("all", sum(r.passed for r in rows), sum(r.failed for r in rows), sum(r.seconds for r in rows))
    lines = (
        (r.name, str(r.passed), str(r.failed), minutes(r.seconds), r.note.replace("|", "/")) for r in (*rows, whole)
    )
    return [("what", "passed", "failed", "minutes", ""), *lines]


def markdown(rows: Sequence[Row]) -> str:
    header, *lines = ["| " + " | ".join(line) + " |" for line in cells(rows)]
    told = f"{datetime.date.today().isoformat()}, {machine()}"
    return "\n".join([told, "", header, "|---|---|---|---|---|", *lines, ""])


def plain(rows: Sequence[Row]) -> str:
    table = cells(rows)
    first, *others = (max(len(line[i]) for line in table) for i in range(4))
    padded = ([line[0].ljust(first), *map(str.rjust, line[1:4], others), line[4]] for line in table)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def machine() -> str:
    """Cores, CPU, versions and commit, as far as they can be had."""
    ours = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
    told = answer([PYTHON, "-c", "from bench.table import machine; print(machine())"]) or ours
    return ", ".join(filter(None, [told, answer(["git", "describe", "--always", "--dirty"])]))


def answer(command: list[str]) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    only = f"of {', '.join(names)}; setup is always done"
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=only)
    parser.add_argument("--full", action="store_true", help="full sizes: some hours")
    asked = parser.parse_args()
    wanted = set(asked.only or names) | {"setup"}
    for part in wanted & {"demo", "study"}:
        shutil.rmtree(PLACE / part, ignore_errors=True)  # what was done before would not be done again
    (PLACE / "demo").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "loop.toml", PLACE / "demo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part that runs is ended, too
    parts = [(part.name, (asked.full and part.full) or part.command) for part in PARTS if part.name in wanted]
    rows = run_all(parts, PLACE, FULL_LIMIT_S if asked.full else LIMIT_S)
    print(f"\n{plain(rows)}\n\n{PLACE / 'table.md'} has it as Markdown")
    sys.exit(any(row.failed for row in rows))


if __name__ == "__main__":
    main()
