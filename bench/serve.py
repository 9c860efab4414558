"""How soon the live page shows a finished round: from the ledger's decision to a body that has it, as a browser asks for it.

    python -m bench.serve [--rounds N]

A run of the fake engine in one process, `loopctl serve` in another, and a reader that waits for news.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from bench.stores import write_configuration
from store.db import open_database
from store.ledger import Ledger

LOOPCTL = [sys.executable, "-m", "loop.cli.main"]


def figures(num_rounds: int) -> dict[str, object]:
    """Seconds from each decision to the page, and what a look costs."""
    with tempfile.TemporaryDirectory() as scratch:
        config = write_configuration(Path(scratch), num_rounds, num_problems=16)
        named = ["--config", str(config)]
        server = subprocess.Popen(
            [*LOOPCTL, *named, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout
        port = urlsplit(json.loads(server.stdout.readline())["url"]).port
        begun, cpu = time.time(), _cpu(server.pid)
        running = subprocess.Popen(
            [*LOOPCTL, *named, "run"], env=os.environ | {"LOOP_FAKE_STEP_S": "0.05"}, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            shown = _follow(port or 0, num_rounds)
            running.wait()
            used = (_cpu(server.pid) - cpu) / (time.time() - begun)
        finally:
            running.kill()
            server.terminate()
            server.wait()
        db = open_database(config.parent / ".loop" / "loop.db", read_only=True)
        ledger = Ledger(db)
        run = ledger.run()
        assert run is not None
        took = [
            shown[decision.round] - datetime.fromisoformat(decision.decided_at).timestamp()
            for decision in ledger.decisions(run.id)
        ]
        db.close()
    return {"seconds": [round(each, 2) for each in took], "most": round(max(took), 2), "of_a_core": round(used, 3)}


def _follow(port: int, num_rounds: int) -> dict[int, float]:
    """When the decision of each round was first in the body, as Unix time."""
    events = http.client.HTTPConnection("127.0.0.1", port)
    events.request("GET", "/events")
    stream, shown = events.getresponse(), {}  # type: ignore[var-annotated]
    while len(shown) < num_rounds:
        if not stream.readline().startswith(b"data:"):
            continue
        ask = http.client.HTTPConnection("127.0.0.1", port)
        ask.request("GET", "/body")
        body, at = ask.getresponse().read().decode(), time.time()
        ask.close()
        for number in range(1, num_rounds + 1):
            _, _, section = body.partition(f'id="round-{number}"')
            summary = section.partition("</summary>")[0]
            if any(f"mark {outcome}" in summary for outcome in ("kept", "rolled_back", "inconclusive")):
                shown.setdefault(number, at)
    events.close()
    return shown


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(figures(parser.parse_args().rounds), indent=2))
