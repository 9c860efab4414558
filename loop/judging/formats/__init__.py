"""The files that harnesses leave: a module for each format, and a line in the table below. All that others know of them is here.

A module has NAME, WHAT (the file, in words), `reads` (is this such a file, by its content) and `read` (a `Results` for each suite
and metric in it, the harness's main metric first).
"""

from __future__ import annotations

from pathlib import Path

from loop.errors import LoopError
from loop.judging.formats import bigcodebench, evalplus, grade, inspect, lighteval, livecodebench, lm_eval, ml_ssd
from loop.judging.left import Left
from loop.judging.results import Results
from loop.words import safe

_FORMATS = (evalplus, bigcodebench, livecodebench, ml_ssd, lm_eval, inspect, lighteval, grade)
READ = ", ".join(form.WHAT for form in _FORMATS)


def read_results(place: Path) -> list[Results]:
    """All results that a file or a directory holds, in the order of their files' names. LoopError if there are none."""
    if not place.exists():
        raise LoopError(f"{safe(place)}: no such file or directory; check the name")
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    results = [each for path in files for each in _read(path)]
    if not results:
        what = "holds no file that is" if place.is_dir() else "is not"
        raise LoopError(f"{safe(place)}: {what} any of these: {READ}")
    return results


def _read(path: Path) -> list[Results]:
    left = Left(path)
    for form in _FORMATS:
        if form.reads(left):
            results = list(form.read(left))
            empty = next((each for each in results if not each.problems), None)
            if empty or not results:
                raise LoopError(f"{safe(path)}: holds no graded answer; give a file of {form.NAME} that does")
            return results
    return []
