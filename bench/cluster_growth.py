"""How far a cluster can grow before something on the daemon's machine is busy: `python bench/cluster_growth.py --hub-ms H --stream-ms S`.

H and S are what `python bench/cluster.py` prints: milliseconds of the hub's CPU for a completion, and a second for each engine. Measured
here is what the daemon itself does for a completion of 500 tokens: it reads its message and stores it. How many completions an
engine gives a second comes from the scripted GPUs of `bench/feed.py`, whose pool and feed are the product's own; time is virtual
there. Then arithmetic: which share of one core the hub and the daemon need, and how large the hub becomes. Both compute on one core
at a time, as Python does. No network is looked at but for the weights, which leave the daemon's machine once for each node at worst.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.corpus import _Appender
from bench.feed import PROFILES, fed
from bench.measuring import timed
from bench.stores import store
from loop.engines.base import Generated
from loop.workers.frames import decode_body, encode_frame

NUM_TOKENS, NUM_PROMPT_TOKENS = 500, 200
ENGINES_PER_NODE = 8
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # nodes
NETWORK = 1.25e9  # bytes a second of a network card of 10 Gbit/s
TEXT = "    total = sum(value for value in values if value > limit)\n" * 25


class Costs(NamedTuple):
    """Seconds of CPU for a completion, and a second for each engine; bytes of memory, and for each engine."""

    hub_s: float
    stream_s: float
    daemon_s: float
    hub_bytes: float
    stream_bytes: float


def daemon_s(num: int) -> float:
    """What the daemon needs to read a completion from a worker's message, to prove it, and to store it."""
    tokens, prompt = tuple(range(40_000, 40_000 + NUM_TOKENS)), tuple(range(NUM_PROMPT_TOKENS))
    drawn = [
        Generated(id=f"{n:064x}", text=f"# {n}\n{TEXT}", token_ids=tokens, prompt_token_ids=prompt, finish_reason="eos")
        for n in range(num)
    ]
    frames = [encode_frame({"type": "items", "items": [each], "call": 1}) for each in drawn]

    def read() -> list[Generated]:
        return [Generated.model_validate(decode_body(frame[4:])["items"][0]) for frame in frames]

    read_s = min(timed(read)[1] for _ in range(3)) / num
    with tempfile.TemporaryDirectory() as directory:
        appender = _Appender(store(Path(directory), 64, 1).parent)
        rows = list(appender._rows(num))
        parts = [rows[start : start + 64] for start in range(0, num, 64)]

        def append() -> None:
            for part in parts:
                appender.corpus.add_completions(part)

        return read_s + timed(append)[1] / num


def completions_per_s(num: int, num_engines: int) -> Iterator[tuple[str, float]]:
    """Of one engine, by model, while all of them are full."""
    for profile in PROFILES:
        gpus = fed(profile, profile.lengths(num), num_engines, 256)
        yield profile.name, num / max(gpu.now_s for gpu in gpus) / num_engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub-ms", type=float, required=True)
    parser.add_argument("--stream-ms", type=float, required=True)
    parser.add_argument("--hub-mb", type=float, default=150)
    parser.add_argument("--stream-mb", type=float, default=1.3)
    parser.add_argument("--completions", type=int, default=10_000)
    asked = parser.parse_args()
    own_s = daemon_s(max(64, asked.completions // 5))
    print(f"the daemon reads and stores a completion of {NUM_TOKENS} tokens in {1000 * own_s:.2f} ms")
    for name, rate in completions_per_s(asked.completions, ENGINES_PER_NODE):
        print(f"{name}: {rate:.2f} completions a second for each engine")
        print(
            f"  {'nodes x engines':<18}{'completions/s':>14}{'hub':>9}{'daemon':>9}{'hub, MB':>10}{'16 GB of weights':>19}"
        )
        for num in SIZES:
            engines = num * ENGINES_PER_NODE
            hub = engines * (rate * asked.hub_ms + asked.stream_ms) / 1000
            row = f"  {f'{num} x {ENGINES_PER_NODE}':<18}{engines * rate:>14,.0f}{hub:>9.1%}{engines * rate * own_s:>9.1%}"
            print(f"{row}{asked.hub_mb + engines * asked.stream_mb:>10,.0f}{num * 16e9 / NETWORK:>17,.0f} s")
        most = 1 / max((rate * asked.hub_ms + asked.stream_ms) / 1000, rate * own_s)
        first = "the hub" if (rate * asked.hub_ms + asked.stream_ms) / 1000 > rate * own_s else "the daemon"
        print(f"  {first} is the first that has no core left, at {most:,.0f} engines")


if __name__ == "__main__":
    main()
