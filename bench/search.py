"""The full-text index: what it adds to a store, how fast it is made, and what a search takes with and without it.

    python -m bench.search [--num NUM]

Texts are functions of Python's standard library, each with a number in it, as a store holds code of its kind.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import sysconfig
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.measuring import timed
from bench.stores import store
from store.corpus import Corpus
from store.db import open_database
from store.ledger import Ledger

CHARACTERS_PER_TOKEN = 3.5  # of code in SmolLM2's tokenizer, about
BATCH = 1000
SEARCHES = ("def test_it(", " return None\n", "for i in range(", "[::-1]", "no_such_name_here")


def functions() -> list[str]:
    """Functions between 200 and 2,500 characters long."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        except (SyntaxError, ValueError, OSError):
            continue
        lines = source.splitlines(keepends=True)
        segments = ("".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes)
        texts += [text for text in segments if 200 < len(text) < 2500]
        if len(texts) > 20_000:
            break
    return texts


def figures(num_completions: int) -> dict[str, Any]:
    """All figures by name."""
    texts = functions()
    with tempfile.TemporaryDirectory() as scratch:
        path = store(Path(scratch), 1000, 1).parent / ".loop" / "loop.db"
        db = open_database(path)
        corpus = Corpus(db)
        template = replace(next(corpus.completions(Ledger(db).run().id, 1)), created_at="", sha256="")
        num_bytes = 0
        for first in range(0, num_completions, BATCH):
            rows = []
            for n in range(first, first + BATCH):
                text = f"# {n}\n{texts[n % len(texts)]}"
                tokens = tuple((n * 7919 + k * 104_729) % 49_152 for k in range(int(len(text) / CHARACTERS_PER_TOKEN)))
                rows.append(replace(template, id=f"{n:064x}", sample_index=n, text=text, token_ids=tokens))
                num_bytes += len(text.encode())
            corpus.add_completions(rows)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = os.path.getsize(path)
        without = {text: _search(corpus, text) for text in SEARCHES}
        cpu = time.process_time()
        num_indexed, seconds = timed(lambda: sum(corpus.search.index(10**9)))
        cpu = time.process_time() - cpu
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        grown = os.path.getsize(path) - before
        results = {
            "num_completions": num_indexed,
            "mean_text_bytes": round(num_bytes / num_completions),
            "store_bytes": before,
            "index_bytes": grown,
            "index_to_store": round(grown / before, 3),
            "index_to_texts": round(grown / num_bytes, 3),
            "rows_per_s": round(num_indexed / seconds),
            "cpu_s_per_100_000": round(cpu / num_indexed * 100_000, 1),
            "search_s": {text: [without[text], _search(corpus, text)] for text in SEARCHES},
        }
        db.close()
    return results


def _search(corpus: Corpus, text: str) -> float:
    """The seconds that a search takes."""
    return round(statistics.median(timed(lambda: corpus.search.find(text=text, limit=10))[1] for _ in range(3)), 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=100_000)
    print(json.dumps(figures(parser.parse_args().num), indent=2))
