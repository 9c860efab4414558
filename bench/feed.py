"""How long a sampling stage takes on several GPUs, and how full they are, under the hand-out of requests. Nothing is timed.

`python bench/feed.py [--completions N] [--engines E]`. The pool and the feed are the product's own; the engines are scripted: a
GPU computes a step in the time in which it reads its weights and the cache of its rows (a roofline, with an overhead per
step), lengths are lognormal, a row is let in while the cache has room for its prompt, and where the cache is full the last one
waits again, as in vLLM. Time is virtual: of all engines the one that is furthest behind moves, so the figures are the same on
every machine. "chunks" is the hand-out that came before: two batches at a time, the next only when all of one are done, and
slices of 2,048.

`busy`: of all that the engines could have computed until 95% of the tokens were drawn, how much they did.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loop.engines.base import CheckpointRef, Request, SamplingParams
from loop.engines.feed import Feed, room
from loop.workers.pool import Pool

BYTES_PER_S, OVERHEAD_S = 2.6e12, 2.5e-3  # of an H100, as measured by others; per step
PROMPT_TOKENS = 400
SLICE = 2048
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=1)


class Profile(NamedTuple):
    """A model on a GPU. Lengths are lognormal; bytes are those of the weights read in a step, of a token's cache, of all of it."""

    name: str
    median: int
    sigma: float
    longest: int
    weights: float
    token: float
    cache: float

    def lengths(self, num: int) -> list[int]:
        draw = random.Random(1)
        drawn = (int(self.median * math.exp(self.sigma * draw.gauss(0, 1))) for _ in range(num))
        return [min(self.longest, max(16, length)) for length in drawn]


PROFILES = (
    Profile("Qwen3-4B instruct, 16k", 2500, 0.9, 16384, 8.0e9, 147e3, 60e9),
    Profile("Qwen3-4B thinking, 32k", 12000, 0.6, 32768, 8.0e9, 147e3, 60e9),
    Profile("Llama-3.1-8B, 8k", 700, 0.7, 8192, 16e9, 131e3, 52e9),
    Profile("Qwen3-30B-A3B, H200, 16k", 2500, 0.9, 16384, 58e9, 98e3, 60e9),
)


class Spell(NamedTuple):
    """A time in which an engine computed the same rows. `busy`: the share of its room that they took."""

    begin_s: float
    end_s: float
    num_running: int
    num_tokens: int
    busy: float


class Answer(NamedTuple):
    """As much of a completion as the pool looks at."""

    id: str


class Row(NamedTuple):
    """A completion in the making. `num_cached`: tokens that the cache holds as it begins, or begins again."""

    id: str
    num_left: int
    num_cached: int = PROMPT_TOKENS


@dataclass
class Gpu:
    """The rows of one engine that computes at most `num_places` at once."""

    profile: Profile
    num_places: int
    now_s: float = 0.0
    num_steps: int = 0
    num_cached: int = 0  # tokens of all rows
    num_begun: int = 0  # rows that were computed before and have not ended
    waiting: deque[Row] = field(default_factory=deque)
    running: list[tuple[int, int, Row]] = field(default_factory=list)  # a heap: the steps at its end and its begin
    spells: list[Spell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = int(self.profile.cache / self.profile.token)

    @property
    def num_inside(self) -> int:
        return len(self.running) + len(self.waiting)

    def add(self, id: str, length: int) -> None:
        self.waiting.append(Row(id, length))

    def admit(self) -> None:
        """Let in what waits, as far as there is room."""
        while (
            self.waiting
            and len(self.running) < self.num_places
            and self.num_cached + self.waiting[0].num_cached < self.size - len(self.running)
        ):
            row = self.waiting.popleft()
            heapq.heappush(self.running, (self.num_steps + row.num_left, self.num_steps, row))
            self.num_cached += row.num_cached
            self.num_begun += row.num_cached == PROMPT_TOKENS

    def suspend(self) -> None:
        """The row that came last waits again, and leaves the cache; to compute its tokens again costs nothing here."""
        end, begin, row = last = max(self.running, key=lambda each: (each[1], each[0]))
        self.running.remove(last)
        heapq.heapify(self.running)
        num_cached = row.num_cached + self.num_steps - begin
        self.waiting.appendleft(Row(row.id, end - self.num_steps, num_cached))
        self.num_cached -= num_cached

    def advance(self) -> list[Answer]:
        """Compute until a row ends or the cache is full; those that have ended."""
        while len(self.running) > 1 and self.num_cached + len(self.running) > self.size:
            self.suspend()
        num_running = len(self.running)
        num_steps = self.running[0][0] - self.num_steps
        if num_running > 1:
            num_steps = min(num_steps, (self.size - self.num_cached) // num_running)
        fitting = min(self.num_places, self.size * num_running / self.num_cached)  # rows like these
        busy = 1.0 if self.waiting else min(1.0, num_running / fitting)
        read = self.profile.token * (self.num_cached + num_running * num_steps / 2)
        began_s = self.now_s
        self.now_s += num_steps * (OVERHEAD_S + (self.profile.weights + read) / BYTES_PER_S)
        self.spells.append(Spell(began_s, self.now_s, num_running, num_running * num_steps, busy))
        self.num_steps += num_steps
        self.num_cached += num_running * num_steps
        ended = []
        while self.running and self.running[0][0] <= self.num_steps:
            end, begin, row = heapq.heappop(self.running)
            self.num_cached -= row.num_cached + end - begin
            self.num_begun -= 1
            ended.append(Answer(row.id))
        return ended


class Turns:
    """Lets threads move one at a time: the one whose engine is furthest behind."""

    def __init__(self, num: int) -> None:
        self.at = dict.fromkeys(range(num), 0.0)
        self.changed = threading.Condition()

    def wait(self, number: int, now_s: float) -> None:
        """Return when no engine is further behind than this one."""
        with self.changed:
            self.at[number] = now_s
            self.changed.notify_all()
            self.changed.wait_for(lambda: min((at, each) for each, at in self.at.items()) == (now_s, number))

    def leave(self, number: int) -> None:
        """Nobody waits for this one any more."""
        with self.changed:
            del self.at[number]
            self.changed.notify_all()


class Scripted:
    """An engine that takes requests as `VllmSampler` does."""

    tokenizer_sha256 = "none"
    ended = False

    def __init__(self, number: int, gpu: Gpu, turns: Turns) -> None:
        self.number, self.gpu, self.turns = number, gpu, turns

    def generate(self, feed: Feed[Request], params: SamplingParams) -> Iterator[list[Answer]]:
        gpu = self.gpu
        while True:
            self.turns.wait(self.number, gpu.now_s)
            gpu.admit()
            while taken := feed.take(room(gpu.num_begun, gpu.num_inside), wait=not gpu.num_inside):
                for request in taken:
                    gpu.add(request.id, request.seed)
                gpu.admit()
            if not gpu.running:
                return self.turns.leave(self.number)
            if ended := gpu.advance():
                yield ended

    def change(self, checkpoint: CheckpointRef) -> bool:
        return True

    def close(self) -> None:
        """Nothing to end."""


def fed(profile: Profile, lengths: Sequence[int], num_engines: int, num_places: int) -> list[Gpu]:
    """Each engine takes from the pool's feed while it runs. A request's seed says how long its completion becomes."""
    gpus = [Gpu(profile, num_places) for _ in range(num_engines)]
    turns = Turns(num_engines)

    def start_of(number: int) -> Callable[..., Any]:
        return lambda checkpoint, pulse: Scripted(number, gpus[number], turns)

    pool = Pool(
        [start_of(number) for number in range(num_engines)],
        CheckpointRef(sha256="", path=Path()),
        progress=lambda done, total: None,
        pulse=lambda: None,
        note=lambda text: None,
    )
    requests = [Request(id=str(number), prefill="x", seed=length) for number, length in enumerate(lengths)]
    num_done = sum(len(batch) for batch in pool.generate(requests, PARAMS))
    pool.close()
    assert num_done == len(lengths)
    return gpus


def chunked(profile: Profile, lengths: Sequence[int], num_engines: int, num_places: int) -> list[Gpu]:
    """The hand-out before: chunks that drain, in slices that drain."""
    gpus = [Gpu(profile, num_places) for _ in range(num_engines)]
    for start in range(0, len(lengths), SLICE):
        left = deque(enumerate(lengths[start : start + SLICE]))
        for gpu in gpus:
            gpu.now_s = max(each.now_s for each in gpus)
        turns = [(gpu.now_s, number) for number, gpu in enumerate(gpus)]
        while turns:
            _, number = heapq.heappop(turns)
            gpu = gpus[number]
            if not gpu.running and not gpu.waiting and left:
                free = sum(not each.running for each in gpus)
                share = max(-(-len(left) // num_engines), -(-num_places // 4))
                size = min(num_places, share, -(-len(left) // free))
                if len(left) >= 4 * num_engines * num_places:
                    size = 2 * num_places
                for _ in range(min(size, len(left))):
                    id, length = left.popleft()
                    gpu.add(str(id), length)
            gpu.admit()
            if gpu.running:
                gpu.advance()
                heapq.heappush(turns, (gpu.now_s, number))
    return gpus


class Figures(NamedTuple):
    """Of one stage. `mean_running`: rows of an engine, over the time in which it had any."""

    hours: float
    mean_running: float
    busy: float


def figures(gpus: Sequence[Gpu]) -> Figures:
    spells = sorted((spell for gpu in gpus for spell in gpu.spells), key=lambda spell: spell.end_s)
    total, drawn, until_s = sum(spell.num_tokens for spell in spells), 0, 0.0
    for spell in spells:
        drawn, until_s = drawn + spell.num_tokens, spell.end_s
        if drawn >= 0.95 * total:
            break
    busy_s = sum(spell.busy * max(0.0, min(spell.end_s, until_s) - spell.begin_s) for spell in spells)
    computed_s = sum(spell.end_s - spell.begin_s for spell in spells)
    running = sum(spell.num_running * (spell.end_s - spell.begin_s) for spell in spells)
    return Figures(max(gpu.now_s for gpu in gpus) / 3600, running / computed_s, busy_s / (len(gpus) * until_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--engines", type=int, default=8)
    options = parser.parse_args()
    ways = (
        ("chunks, 32 rows", chunked, 32),
        ("feed, 32 rows", fed, 32),
        ("feed, 256 rows", fed, 256),
        ("feed, 1024 rows", fed, 1024),
    )
    print(
        f"{options.completions} completions, {options.engines} engines: hours, rows running, busy until 95% of the tokens"
    )
    for profile in PROFILES:
        lengths = profile.lengths(options.completions)
        print(f"{profile.name}, {sum(lengths) / 1e6:.0f} M tokens")
        for name, hand_out, num_places in ways:
            hours, running, busy = figures(hand_out(profile, lengths, options.engines, num_places))
            print(f"  {name:<16}{hours:8.3f} h{running:7.0f}{busy:8.1%}", flush=True)


if __name__ == "__main__":
    main()
