"""The figures of a comparison of two models: gains with their intervals, and pass@k of both. Facts as `loopctl compare` makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loop.report.charts import Figure, curves, difference, forest
from loop.words import rate
from store.records import Json


def _gains(facts: Json) -> Figure | None:
    points = [point for compared in facts["comparisons"] for point in _points(compared)]
    about = "B's mean less A's, paired by problem, with intervals. Those of whole suites hold together; those of parts are 95% each."
    rows = [[point["label"], *difference(point)] for point in points]
    return Figure("gains", "B - A", about, [forest(points, "B - A")], ["of", "B - A", "interval"], rows)


def _points(compared: Json) -> Iterator[Json]:
    """The suite, then its parts."""
    suite = f"{compared['suite']} ({compared['num_problems']})"
    parts = [*compared["by_difficulty"], *compared["by_month"]]
    labelled = [
        (suite, compared),
        *((f"{compared['suite']}: {part['name']} ({part['num_problems']})", part) for part in parts),
    ]
    for label, part in labelled:
        low, high = part["interval"]
        clear = "apart" if low > 0 or high < 0 else "cannot be told apart"
        yield {"label": label, "value": part["gain"], "low": low, "high": high, "clear": clear}


def _pass_at_k(facts: Json) -> Figure | None:
    panels, rows = [], []
    for compared in facts["comparisons"]:
        if len(compared["at_k"]) > 1:
            points = [{"k": at["k"], "who": who, "value": at[who.lower()]} for at in compared["at_k"] for who in "AB"]
            panels.append({"title": compared["suite"], **curves(points, "pass@k", ["A", "B"])})
            rows += [[f"{compared['suite']}, k = {at['k']}", rate(at["a"]), rate(at["b"])] for at in compared["at_k"]]
    about = "What k samples together solve. Curves that cross: one model is surer, the other one knows more."
    return Figure("passk", "pass@k", about, panels, ["of", "A", "B"], rows)


FIGURES: tuple[Callable[[Json], Figure | None], ...] = (_gains, _pass_at_k)
