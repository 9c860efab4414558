"""What several benches share: programs in processes of their own, seconds, and sides that take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOOPCTL = [sys.executable, "-m", "loop.cli.main"]


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that can import the project from anywhere."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def loopctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run loopctl to its end."""
    return subprocess.run([*LOOPCTL, *arguments], env=environment(), capture_output=True, text=True)


def last_line(*arguments: str, python: str = sys.executable) -> Any:
    """The JSON in the last line that a program of Python prints; libraries may print before it."""
    done = subprocess.run([python, *arguments], env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the seconds that it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def in_turns(names: Iterable[str], num_turns: int) -> Iterator[tuple[int, str]]:
    """(turn, name): every second turn goes backwards, so that a busy moment meets all names alike."""
    order = list(names)
    for turn in range(num_turns):
        yield from ((turn, name) for name in order)
        order.reverse()


def num_tokens(batches: Iterable[list[Any]]) -> int:
    """How many tokens the completions of a sampler have."""
    return sum(len(drawn.token_ids) for batch in batches for drawn in batch)
