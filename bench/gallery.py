"""The pictures of docs/gallery.md: figures by `loopctl plot`, and screenshots of the report in light, dark and on a phone.

    python bench/gallery.py OUT_DIR [loop.toml ...] [--experiment FILE ...]

A run's pictures go to OUT_DIR/NAME/. The pictures are small: SVG figures, and PNG screenshots of one screen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.measuring import loopctl
from tests.support.browser import PROGRAM, Shown, browser

DESKTOP = {"viewport": {"width": 1180, "height": 820}}
FIGURES = {"run": ("pass1", "change", "signals", "mind", "training", "time"), "experiment": ("change", "pass1", "comparisons", "signals")}  # fmt: skip
SCREENS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("light", DESKTOP, ""),
    ("dark", {**DESKTOP, "color_scheme": "dark"}, "#progress"),
    ("completions", DESKTOP, "#completions"),
    ("phone", {"viewport": {"width": 390, "height": 760}, "is_mobile": True, "has_touch": True}, ""),
)


def pictures(out: Path, kind: str, where: list[str], report: list[str]) -> None:
    """All pictures of one run or experiment. A figure for which nothing was measured is left out, with a line that says so."""
    out.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES[kind]:
        done = loopctl("plot", *where, "--figure", figure, "-o", str(out / f"{figure}.svg"))
        print(done.stdout.strip() or f"{figure}: {done.stderr.strip()}")
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "report.html"
        done = loopctl(*report, "-o", str(page))
        if done.returncode:
            sys.exit(done.stderr)
        screenshots(page, out)


def screenshots(page: Path, out: Path) -> None:
    """Take screenshots of the page; none without a browser."""
    if PROGRAM is None:
        print("no chromium: no screenshots")
        return
    with browser() as chromium:
        for name, options, place in SCREENS:
            tab = Shown(chromium, page, **options).page
            if place and tab.locator(place).count() == 0:
                continue
            if place:
                tab.evaluate("id => document.querySelector(id).scrollIntoView()", place)
            tab.wait_for_timeout(200)
            tab.screenshot(path=str(out / f"{name}.png"))
            print(out / f"{name}.png")
            tab.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="*", metavar="loop.toml")
    parser.add_argument("--experiment", action="append", default=[], metavar="FILE")
    options = parser.parse_args()
    for config in options.runs:
        done = loopctl("status", "--json", "--config", config)
        if not done.stdout:
            sys.exit(done.stderr.strip())
        name = json.loads(done.stdout)["run"]
        pictures(options.out / name, "run", ["--config", config], ["report", "--config", config])
    for file in options.experiment:
        pictures(options.out / Path(file).stem, "experiment", ["--experiment", file], ["experiment", "report", file])


if __name__ == "__main__":
    main()
