"""How soon the live page shows a finished round: from the ledger's decision to a body that has it, as a browser asks for it.

    python -m bench.serve [--rounds N]

A run of the fake engine in one process, `loopctl serve` in another, and a reader that waits for news.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

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
        port = urlsplit(json.loads(server.stdout.readline())["url"]).port
        process = psutil.Process(server.pid)
        begun, cpu = time.time(), sum(process.cpu_times()[:2])
        running = subprocess.Popen(
            [*command, "run"],
            env=environment(LOOP_FAKE_STEP_S="0.05"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            shown = _follow(port, num_rounds)
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


def _follow(port: int, num_rounds: int) -> dict[int, float]:
    """When the decision of each round was first in the body, as Unix time."""
    events = http.client.HTTPConnection("127.0.0.1", port)
    events.request("GET", "/events")
    stream, shown = events.getresponse(), {}
    while len(shown) < num_rounds:
        if not stream.readline().startswith(b"data:"):
            continue
        ask = http.client.HTTPConnection("127.0.0.1", port)
        ask.request("GET", "/body")
        body, at = ask.getresponse().read().decode(), time.time()
        ask.close()
        for number in range(1, num_rounds + 1):
            summary = body.partition(f'id="round-{number}"')[2].partition("</summary>")[0]
            if any(f"mark {outcome}" in summary for outcome in ("kept", "rolled_back", "inconclusive")):
                shown.setdefault(number, at)
    events.close()
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(figures(parser.parse_args().rounds), indent=2))
