"""The figures of an experiment: its arms side by side. Facts as in `loop.experiments.facts`."""

from __future__ import annotations

from collections.abc import Callable

from loop.report.charts import Figure, any_value, difference, ends, forest, lines, table
from loop.words import count, decoding_words, rate, signed
from store.records import Json


def _arms(facts: Json) -> list[str]:
    return [arm["name"] for arm in facts["arms"]]


def _yardstick(facts: Json) -> str:
    words = decoding_words(facts["decoding"])
    return f"{facts['suite']}{f', {words}' if words else ''}, {count(len(facts['seeds']), 'seed')} an arm"


def _change(facts: Json) -> Figure | None:
    about = f"{_yardstick(facts)}. The head's pass@1 minus the base's, mean over seeds, with 95% intervals."
    return _with_intervals(facts, "change", "Change over the base, by arm", about, "change in pass@1", sign=True)


def _pass1(facts: Json) -> Figure | None:
    about = f"{_yardstick(facts)}. The head's pass@1 after each round, mean over seeds, with 95% intervals."
    return _with_intervals(facts, "pass@1", "pass@1 by arm", about, "pass@1", sign=False)


def _with_intervals(facts: Json, key: str, title: str, about: str, axis: str, *, sign: bool) -> Figure | None:
    """One figure of all arms by round. `sign`: it is a difference."""
    points: list[Json] = []
    for line in facts["lines"]:
        low, high = line.get(f"{key}_interval") or (None, None)
        points.append({"round": line["round"], "who": line["arm"], "value": line.get(key), "low": low, "high": high})
    if not any_value(points):
        return None
    written = signed if sign else rate
    words = [{**point, "value": f"{written(point['value'])} {ends(point, sign=sign)}".strip()} for point in points]
    columns, rows = table(words, lambda text: text or "-")
    panel = lines(points, axis, form="+.3~f" if sign else ".3~f", zero=sign, order=_arms(facts))
    return Figure(key.replace("@", ""), title, about, [panel], columns, rows)


def _pass_at_k(facts: Json) -> Figure | None:
    panels, of_table = [], []
    for k in sorted({int(k) for line in facts["lines"] for k in line["pass@k"]} - {1}):
        key = f"pass@{k}"
        points = [
            {"round": line["round"], "who": line["arm"], "value": line["pass@k"].get(str(k))} for line in facts["lines"]
        ]
        if any_value(points):
            panels.append({"title": key, **lines(points, key, form=".3~f", order=_arms(facts))})
            of_table += [{**point, "who": f"{key}, {point['who']}"} for point in points]
    about = f"{_yardstick(facts)}. What k samples together solve, of the head after each round."
    return Figure("passk", "pass@k by arm", about, panels, *table(of_table))


def _signals(facts: Json) -> Figure | None:
    panels, of_table = [], []
    for key, title, form in (
        ("distinct_rate", "different answers (share)", ".3~f"),
        ("spread", "spread", ".3~f"),
        ("mean_tokens", "mean length (tokens)", "~s"),
        ("num_kept", "seeds that kept this round", "d"),
    ):
        points = [{"round": line["round"], "who": line["arm"], "value": line.get(key)} for line in facts["lines"]]
        if any_value(points):
            panels.append({"title": title, **lines(points, "", form=form, order=_arms(facts))})
            of_table += [{**point, "who": f"{title}, {point['who']}"} for point in points]
    about = f"{_yardstick(facts)}. Of the head after each round, mean over seeds."
    return Figure("signals", "Diversity and length, by arm", about, panels, *table(of_table))


def _comparisons(facts: Json) -> Figure | None:
    points = []
    for compared in facts["comparisons"]:
        low, high = compared["interval"]
        clear = "apart" if low > 0 or high < 0 else "cannot be told apart"
        label = f"{compared['ours']} - {compared['theirs']}, round {compared['round']}"
        points.append({"label": label, "value": compared["change"], "low": low, "high": high, "clear": clear})
    if not points:
        return None
    rows = [[point["label"], *difference(point), point["clear"]] for point in points]
    about = f"{_yardstick(facts)}. Paired by problem and seed. {facts['correction']}"
    panel, columns = forest(points, "difference in pass@1"), ["arms", "difference", "interval", ""]
    return Figure("comparisons", "Arms compared", about, [panel], columns, rows)


FIGURES: tuple[Callable[[Json], Figure | None], ...] = (_change, _pass1, _comparisons, _pass_at_k, _signals)
