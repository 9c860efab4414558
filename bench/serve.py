"""How soon the live page shows a finished round: from the ledger's decision to a body that has it, as a browser asks for it.

    python -m bench.serve [--rounds N]

A run of the fake engine in one process, `loopctl serve` in another, and a reader that waits for news.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

import psutil

from bench.measuring import LOOPCTL, environment
from bench.stores import write_configuration
from loop.reading.reader import reader
from loop.words import moment


def figures(num_rounds: int) -> dict[str, object]:
    """Seconds from each decision to the page, and what a look costs."""
    with tempfile.TemporaryDirectory() as scratch:
        config = write_configuration(Path(scratch), num_rounds, num_problems=16)
        command = [*LOOPCTL, "--config", str(config)]
        server = subprocess.Popen([*command, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
        url = json.loads(server.stdout.readline())["url"]
        process = psutil.Process(server.pid)
        begun, cpu = time.time(), sum(process.cpu_times()[:2])
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = subprocess.Popen([*command, "run"], env=environment(LOOP_FAKE_STEP_S="0.05"), **quiet)
        try:
            shown = _follow(url, num_rounds)
            running.wait()
            used = (sum(process.cpu_times()[:2]) - cpu) / (time.time() - begun)
        finally:
            running.kill()
            server.terminate()
            server.wait()
        with reader(config.parent / ".loop") as store:
            took = [
                shown[decision.round] - moment(decision.decided_at).timestamp()
                for decision in store.ledger.decisions(store.run.id)
            ]
    return {"seconds": [round(each, 2) for each in took], "most": round(max(took), 2), "of_a_core": round(used, 3)}


def _follow(url: str, num_rounds: int) -> dict[int, float]:
    """When the decision of each round was first in the body, as Unix time."""
    get = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    shown: dict[int, float] = {}
    with get(urljoin(url, "events")) as events:
        while len(shown) < num_rounds:
            if not events.readline().startswith(b"data:"):
                continue
            with get(urljoin(url, "body")) as answer:
                body, at = answer.read().decode(), time.time()
            for number in range(1, num_rounds + 1):
                summary = body.partition(f'id="round-{number}"')[2].partition("</summary>")[0]
                if any(f"mark {outcome}" in summary for outcome in ("kept", "carried", "rolled_back", "inconclusive")):
                    shown.setdefault(number, at)
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(figures(parser.parse_args().rounds), indent=2))
