"""The figures of a page, from its facts, in the order of the page."""

from __future__ import annotations

from loop.report import experiment_figures, run_figures
from loop.report.charts import Figure
from store.records import Json


def figures(facts: Json) -> list[Figure]:
    """Those of a run or of an experiment; what has nothing to draw is left out."""
    of = experiment_figures if facts["kind"] == "experiment" else run_figures
    found = (make(facts) for make in of.FIGURES)
    return [figure for figure in found if figure is not None and figure.panels]
