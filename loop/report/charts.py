"""Figures as Vega-Lite specifications: the same for the page and for a paper, with the table of what they show.

A figure has panels, each a specification without size and theme; `themed` adds both. Colours are readable on white and on
black, and what is not coloured takes the colour of the text around it, so that a page drawn once fits light, dark and print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from loop.cli.text import count, decoding_words, duration, interval, rate, signed
from store.records import STAGES, Json

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched from there
BLUE, GREEN, ORANGE, GREY, PURPLE, TEAL, RED, BROWN = (
    "#3f7fc1", "#2f9e6e", "#d9822b", "#8b8f98", "#a765b3", "#35a3b5", "#cc4b4b", "#957a52",
)  # fmt: skip
SERIES = [BLUE, ORANGE, GREEN, PURPLE, TEAL, RED, BROWN, GREY]
OUTCOMES = {"kept": GREEN, "rolled back": ORANGE, "inconclusive": PURPLE, "open": GREY, "failed": RED}
SHAPES = {"kept": "circle", "rolled back": "cross", "inconclusive": "diamond", "open": "square", "failed": "square"}
WIDTH, HEIGHT = 640, 320  # of one panel on its own; of several side by side half as wide
PANEL_WIDTH, PANEL_HEIGHT = 320, 200
LEGEND_WIDTH = 150  # of one name in a legend


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: what it shows in a sentence, its panels, and its numbers as a table."""

    name: str
    title: str
    about: str
    panels: list[Json]
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)


# Drawing


def themed(panel: Json, *, width: int | str, height: int, ink: str = "currentColor", font: str = "sans-serif") -> Json:
    """A panel that can be drawn. `width`: pixels, or "container"."""
    soft = {"labelColor": ink, "titleColor": ink, "labelFont": font, "titleFont": font, "titleFontWeight": "normal"}
    axis = {"gridColor": ink, "gridOpacity": 0.13, "domainColor": ink, "domainOpacity": 0.4, "tickColor": ink}
    sized = {} if "hconcat" in panel or "concat" in panel else {"width": width, "height": height}
    # A long legend goes on in a further line. On a page, whose width is known there alone, report.js says how many fit.
    columns = None if width == "container" else max(1, (int(width) or PANEL_WIDTH) // LEGEND_WIDTH)
    return {
        "$schema": SCHEMA,
        "background": None,
        "padding": 4,
        "autosize": {"type": "fit-x" if width == "container" else "pad", "contains": "padding"},
        **sized,
        **panel,
        "config": {
            "view": {"stroke": None},
            "font": font,
            "axis": {**soft, **axis, "tickOpacity": 0.4, "labelOpacity": 0.85, "labelFontSize": 11, "titleFontSize": 12},
            "legend": {**soft, "orient": "top", "title": None, "labelFontSize": 12, "labelLimit": 320, "symbolOpacity": 1,
                       **({"columns": columns} if columns else {})},
            "title": {
                "color": ink, "subtitleColor": ink, "font": font, "subtitleFont": font,
                "anchor": "start", "fontSize": 14, "fontWeight": 600, "subtitleFontSize": 11,
            },
            "range": {"category": SERIES},
        },
    }  # fmt: skip


def paper(figure: Figure) -> Json:
    """The whole figure as one specification with its title, dark on white, for a file."""
    ink, font = "#1b1f24", "Helvetica, Arial, sans-serif"
    title = {"text": figure.title, "subtitle": _folded(figure.about)}
    if len(figure.panels) == 1:
        whole = themed(figure.panels[0], width=WIDTH, height=HEIGHT, ink=ink, font=font)
    else:
        sized = [{"width": PANEL_WIDTH, "height": PANEL_HEIGHT, **panel} for panel in figure.panels]
        apart = {"color": "independent", "shape": "independent", "x": "independent", "y": "independent"}
        many = {"concat": sized, "columns": 2, "spacing": 30, "resolve": {"scale": apart, "legend": apart}}
        whole = themed(many, width=0, height=0, ink=ink, font=font)
    return whole | {"title": title, "background": "white", "padding": 12}


def _folded(text: str, width: int = 110) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _rounds(num: int) -> Json:
    num = max(1, num)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, num) if num / step <= 20)
    axis = {"values": list(range(0, num + 1, every)), "format": "d", "grid": False}
    scale = {"domain": [0, num + 0.5 if num > 1 else 1.25], "nice": False, "padding": 8}
    return {"field": "round", "type": "quantitative", "title": "round", "axis": axis, "scale": scale}


def _y(title: str, name: str = "value", form: str | None = None, zero: bool = False) -> Json:
    axis: Json = {"format": form} if form else {}
    return {"field": name, "type": "quantitative", "title": title, "scale": {"zero": zero, "padding": 6}, "axis": {"tickCount": 6, **axis}}  # fmt: skip


def _outcome_words(row: Json) -> str:
    return str(row["outcome"]).replace("_", " ")


def _coloured(names: Iterable[str], colours: dict[str, str]) -> Json:
    there = [name for name in colours if name in set(names)]
    scale = {"domain": there, "range": [colours[name] for name in there]}
    return {"field": "who", "type": "nominal", "scale": scale, "title": None}


def trajectory(points: Sequence[Json], base: float | None, title: str, form: str | None = None) -> Json:
    """Candidates by round as marks with their intervals, the head after each round as a line, the base as a rule.

    A point has `round`, `who` (the outcome), `value`, `low` and `high` (or None), and `head`.
    """
    values = [point for point in points if point["value"] is not None]
    head = [{"round": point["round"], "who": "head", "value": point["head"]} for point in points]
    if base is not None:
        head.insert(0, {"round": 0, "who": "head", "value": base})
    num = max([point["round"] for point in points], default=1)
    head += [{**one, "round": one["round"] + (0.5 if num > 1 else 0.25)} for one in head[-1:]]  # it goes on
    many = num > 60
    colours = {"head": BLUE, **OUTCOMES}
    colour = _coloured({"head", *(point["who"] for point in values)}, colours)
    shapes = {name: SHAPES.get(name, "stroke") for name in colour["scale"]["domain"]}
    shape = {"field": "who", "type": "nominal", "title": None,
             "scale": {"domain": list(shapes), "range": list(shapes.values())}}  # fmt: skip
    tooltip = [
        {"field": "round", "title": "round"}, {"field": "who", "title": "decision"},
        {"field": "value", "title": "candidate", "format": ".4~f"}, {"field": "low", "title": "from", "format": ".4~f"},
        {"field": "high", "title": "to", "format": ".4~f"}, {"field": "head", "title": "head after it", "format": ".4~f"},
    ]  # fmt: skip
    x, y = _rounds(num), _y(title, form=form)
    layers: list[Json] = []
    if base is not None:
        layers.append(
            {
                "data": {"values": [{"base": base}]},
                "mark": {"type": "rule", "strokeDash": [4, 4], "stroke": GREY},
                "encoding": {"y": {**y, "field": "base"}},
            }
        )
    layers.append(
        {
            "data": {"values": [point for point in head if point["value"] is not None]},
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
            "encoding": {"x": x, "y": y, "color": colour},
        }
    )
    if not layers[-1]["data"]["values"]:  # vega warns of a layer without data
        layers.pop()
    if any(point.get("low") is not None for point in values):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1 if many else 2, "opacity": 0.45 if many else 0.8},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            }
        )
    if values:
        layers.append(
            {
                "mark": {"type": "point", "filled": True, "size": 28 if many else 60, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip},
            }
        )
    return {"data": {"values": values}, "layer": layers}


def differences(points: Sequence[Json], title: str) -> Json:
    """Differences by round with their intervals and a line at zero; points as in `trajectory`."""
    values = [point for point in points if point["value"] is not None]
    num = max([point["round"] for point in points], default=1)
    many = num > 60
    colour = _coloured({point["who"] for point in values}, OUTCOMES)
    shapes = {name: SHAPES[name] for name in colour["scale"]["domain"]}
    x, y = _rounds(num), _y(title, form="+.3~f", zero=True)
    tooltip = [
        {"field": "round", "title": "round"}, {"field": "who", "title": "decision"},
        {"field": "value", "title": "difference", "format": "+.4f"},
        {"field": "low", "title": "from", "format": "+.4f"}, {"field": "high", "title": "to", "format": "+.4f"},
    ]  # fmt: skip
    return {
        "data": {"values": values},
        "layer": [
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "stroke": GREY},
             "encoding": {"y": {**y, "field": "zero"}}},
            {"mark": {"type": "rule", "strokeWidth": 1 if many else 1.6, "opacity": 0.6},
             "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 28 if many else 60, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip,
                          "shape": {"field": "who", "type": "nominal", "title": None,
                                    "scale": {"domain": list(shapes), "range": list(shapes.values())}}}},
        ],
    }  # fmt: skip


def lines(
    points: Sequence[Json],
    title: str,
    *,
    form: str | None = None,
    zero: bool = False,
    order: Sequence[str] | None = None,
    dots: bool = True,
) -> Json:
    """A line per series. A point has `round`, `who` and `value`, and `low` and `high` where there is an interval.

    One series with intervals has a band; of several the intervals stand side by side, as bands would hide each other.
    """
    values = [point for point in points if point["value"] is not None]
    names = list(order or dict.fromkeys(point["who"] for point in values))
    num = int(max([point["round"] for point in points], default=1))
    intervals = any(point.get("low") is not None for point in values)
    band = intervals and (len(names) == 1 or num > 30)
    apart = min(0.1, 0.5 / len(names)) if intervals and not band else 0.0
    values = [
        {**point, "at": point["round"] + apart * (names.index(point["who"]) - (len(names) - 1) / 2)} for point in values
    ]
    x, y = {**_rounds(num), "field": "at"}, _y(title, form=form, zero=zero)
    if zero and all(min(point["value"], point.get("low") or 0) >= 0 for point in values):
        y["scale"]["domainMin"] = 0  # no room for what cannot be
    if apart:
        x["scale"] = {**x["scale"], "domain": [-0.3, num + 0.5]}
    scale = {"domain": names, "range": [SERIES[n % len(SERIES)] for n in range(len(names))]}
    colour = {"field": "who", "type": "nominal", "title": None, "scale": scale}
    tooltip: list[Json] = [{"field": "who", "title": "of"}, {"field": "round"}]
    tooltip += [{"field": "value", "format": ".4~f", "title": title or "value"}]
    mark: Json = {"type": "line", "strokeWidth": 2}
    if dots:
        mark["point"] = {"filled": True, "size": 18 if num > 60 else 36}
    layers: list[Json] = [{"mark": mark, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}}]
    if intervals:
        tooltip += [
            {"field": name, "title": word, "format": ".4~f"} for name, word in (("low", "from"), ("high", "to"))
        ]
        shape = {"type": "area", "opacity": 0.14} if band else {"type": "rule", "strokeWidth": 1.4, "opacity": 0.55}
        layers.insert(
            0,
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": shape,
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
        )
    return {"data": {"values": values}, "layer": layers}


def bars(points: Sequence[Json], title: str, order: Sequence[str], form: str = "~s") -> Json:
    """Stacked bars by round. A point has `round`, `who` and `value`."""
    values = [point for point in points if point["value"]]
    num = max([point["round"] for point in points], default=1)
    present = [name for name in order if any(point["who"] == name for point in values)]
    colour = {"field": "who", "type": "nominal", "title": None,
              "scale": {"domain": present, "range": [SERIES[list(order).index(name) % len(SERIES)] for name in present]}}  # fmt: skip
    x: Json = {"field": "round", "type": "ordinal", "title": "round", "axis": {"labelAngle": 0, "labelOverlap": True}}
    if num > 40:
        x["axis"]["values"] = list(range(0, num + 1, max(1, -(-num // 20))))
    y = {
        "field": "value",
        "type": "quantitative",
        "title": title,
        "stack": "zero",
        "axis": {"format": form, "tickCount": 6},
    }
    tooltip = [
        {"field": "round"},
        {"field": "who", "title": "of"},
        {"field": "value", "format": ",.4~f", "title": title},
    ]
    return {"data": {"values": values}, "mark": {"type": "bar"},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}}  # fmt: skip


def forest(points: Sequence[Json], title: str) -> Json:
    """A difference with its interval a line. A point has `label`, `value`, `low`, `high` and `clear`."""
    y = {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
    x = {"type": "quantitative", "title": title, "axis": {"format": "+.3~f"}}
    colour = {"field": "clear", "type": "nominal", "title": None,
              "scale": {"domain": ["apart", "cannot be told apart"], "range": [BLUE, GREY]}}  # fmt: skip
    tooltip = [
        {"field": "label", "title": "of"},
        *({"field": name, "format": "+.4f"} for name in ("value", "low", "high")),
    ]
    return {
        "height": max(60, 24 * len(points)),
        "data": {"values": list(points)},
        "layer": [
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "stroke": GREY},
             "encoding": {"x": {**x, "field": "zero"}}},
            {"mark": {"type": "rule", "strokeWidth": 2},
             "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
             "encoding": {"y": y, "x": {**x, "field": "value"}, "color": colour, "tooltip": tooltip}},
        ],
    }  # fmt: skip


# A run's figures


def figures(facts: Json) -> list[Figure]:
    """The figures of a run or an experiment, in the order of the page; those without a point are left out."""
    make = _OF_AN_EXPERIMENT if facts["kind"] == "experiment" else _OF_A_RUN
    found = []
    for one in make:
        figure = one(facts)
        if figure is not None and figure.panels:
            found.append(figure)
    return found


def decider_of(facts: Json) -> Json:
    """The yardstick that decides."""
    return next((suite for suite in facts["suites"] if suite["decides"]), {})


def measured_on(suite: Json) -> str:
    """first-steps, split select: 41 problems x 4 samples, T 0.7, top_p 0.95"""
    split = f", split {suite['split']}" if suite.get("split") not in (None, "all") else ""
    num = f": {suite['num_problems']:,} problems" if suite.get("num_problems") else ""
    times = f" x {suite['num_samples']:,} samples" if num and (suite.get("num_samples") or 1) > 1 else ""
    words = f", {suite['decoding_words']}" if suite.get("decoding_words") else ""
    return f"{suite['name']}{split}{num}{times}{words}"


Value = Callable[[Json], float | None]


def _points(facts: Json, name: str, key: str, *, level: str | None = None) -> list[Json]:
    """A figure of the candidates on a suite, with the head after each round."""
    points = []
    for row in facts["rounds"]:
        suite = row["suites"].get(name, {})
        candidate, head = (_part(suite.get(who), level) for who in ("candidate", "head"))
        ends = candidate.get(f"{key}_interval") or [None, None]
        points.append(
            {
                "round": row["round"],
                "who": _outcome_words(row),
                "value": candidate.get(key),
                "low": ends[0],
                "high": ends[1],
                "head": (candidate if row["outcome"] == "kept" else head).get(key),
            }
        )
    return points


def _part(figures: Json | None, level: str | None) -> Json:
    if figures is None:
        return {}
    return figures if level is None else figures.get("by_difficulty", {}).get(level, {})


def _base(facts: Json, name: str, key: str, level: str | None = None) -> float | None:
    suite = next(one for one in facts["suites"] if one["name"] == name)
    return _part(suite["base"], level).get(key)


def _any(points: Sequence[Json]) -> bool:
    return any(point["value"] is not None for point in points)


def _pass1(facts: Json) -> Figure | None:
    if not facts["suites"]:
        return None
    suite = decider_of(facts)
    points, base = _points(facts, suite["name"], "pass@1"), _base(facts, suite["name"], "pass@1")
    if not _any(points) and base is None:
        return None
    rows = [["base", "", rate(base), interval(suite["base"]["pass@1_interval"]) if suite["base"] else "", rate(base)]]
    rows += [[str(p["round"]), p["who"], rate(p["value"]), _ends(p["low"], p["high"]), rate(p["head"])] for p in points]
    return Figure(
        "pass1",
        "pass@1 by round",
        f"{measured_on(suite)}. Marks: each round's candidate with its 95% interval. Line: the head after the round. "
        "Dashed: the base.",
        [trajectory(points, base, "pass@1", ".3~f")],
        ["round", "decision", "candidate", "95% interval", "head after it"],
        rows,
    )


def _ends(low: float | None, high: float | None, sign: bool = False) -> str:
    return "" if low is None or high is None else interval([low, high], sign=sign)


def _change(facts: Json) -> Figure | None:
    if not facts["rounds"]:
        return None
    suite = decider_of(facts)
    panels, table = [], {}
    for key, other in (("gain", "head"), ("gain_over_base", "base")):
        points = []
        for row in facts["rounds"]:
            found = row["suites"].get(suite["name"], {}).get(key)
            low, high = found["interval"] if found else (None, None)
            value = found["gain"] if found else None
            points.append({"round": row["round"], "who": _outcome_words(row), "value": value, "low": low, "high": high})
        table[key] = points
        if _any(points):
            panels.append(differences(points, f"candidate - {other}, pass@1"))
    rows = [
        [str(one["round"]), one["who"], signed(one["value"]), _ends(one["low"], one["high"], True),
         signed(two["value"]), _ends(two["low"], two["high"], True)]
        for one, two in zip(table["gain"], table["gain_over_base"], strict=True)
    ]  # fmt: skip
    return Figure(
        "change",
        "What each round changed",
        f"{measured_on(suite)}. Candidate less head, and less base, in pass@1 on the same problems, with 95% intervals of "
        "the difference. The intervals are each round's own: the decisions also spend an error budget over the run.",
        panels,
        ["round", "decision", "over head", "95% interval", "over base", "95% interval"],
        rows,
    )


def _series(facts: Json, name: str, keys: Sequence[tuple[str, str, str | None]]) -> list[Json]:
    """The head after each round, a series for each (label, key, difficulty)."""
    points = []
    for label, key, level in keys:
        points.append({"round": 0, "who": label, "value": _base(facts, name, key, level)})
        found = _points(facts, name, key, level=level)
        points += [{"round": one["round"], "who": label, "value": one["head"]} for one in found]
    return points


def _table(points: Sequence[Json], form: Callable[[float | None], str] = rate) -> tuple[list[str], list[list[str]]]:
    """A row per round and a column per series."""
    names = list(dict.fromkeys(point["who"] for point in points))
    found = {(point["round"], point["who"]): point["value"] for point in points}
    numbers = sorted({point["round"] for point in points})
    rows = [[str(n) if n else "base", *(form(found.get((n, name))) for name in names)] for n in numbers]
    return ["round", *names], rows


def _pass_at_k(facts: Json) -> Figure | None:
    suite = decider_of(facts)
    known = next(iter(_known(facts, suite)), {}) if suite else {}
    keys = sorted(
        (key for key in known if key.startswith("pass@") and key.removeprefix("pass@").isdigit()), key=lambda key: int(key[5:])
    )  # fmt: skip
    if len(keys) < 2:
        return None
    points = _series(facts, suite["name"], [(key, key, None) for key in keys])
    if not _any(points):
        return None
    columns, rows = _table(points)
    about = f"{measured_on(suite)}. The head after each round; round 0 is the base."
    panel = lines(points, "share of problems", form=".3~f", order=keys, dots=len(facts["rounds"]) < 60)
    return Figure("passk", "pass@k by round", about, [panel], columns, rows)


def _known(facts: Json, suite: Json) -> list[Json]:
    """Figures of this suite, newest first."""
    found = [row["suites"].get(suite["name"], {}).get(who) for row in reversed(facts["rounds"]) for who in ("candidate", "head")]  # fmt: skip
    return [one for one in [*found, suite["base"]] if one]


def _difficulty(facts: Json) -> Figure | None:
    suite = decider_of(facts)
    known = next(iter(_known(facts, suite)), {}) if suite else {}
    levels = known.get("by_difficulty") or {}
    if not levels:
        return None
    names = [(f"{level} ({part['num_problems']})", "pass@1", level) for level, part in levels.items()]
    points = _series(facts, suite["name"], names)
    if not _any(points):
        return None
    columns, rows = _table(points)
    about = f"{measured_on(suite)}. pass@1 of the head after each round, by difficulty (how many problems); round 0 is the base."
    panel = lines(points, "pass@1", form=".3~f", order=[name for name, _, _ in names], dots=len(facts["rounds"]) < 60)
    return Figure("difficulty", "By difficulty", about, [panel], columns, rows)


def _canaries(facts: Json) -> Figure | None:
    panels, table = [], []
    words = []
    for suite in facts["suites"]:
        if suite["decides"]:
            continue
        points, base = _points(facts, suite["name"], "pass@1"), _base(facts, suite["name"], "pass@1")
        if not _any(points):
            continue
        panels.append({"title": suite["name"], **trajectory(points, base, "pass@1", ".3~f")})
        words.append(measured_on(suite))
        table += [{"round": 0, "who": suite["name"], "value": base}]
        table += [{"round": point["round"], "who": suite["name"], "value": point["value"]} for point in points]
    columns, rows = _table(table)
    about = f"Reported, never decided on by themselves: {'; '.join(words)}. Marks, line and dashes as above."
    return Figure("canaries", "Canaries", about, panels, columns, rows)


_SIGNALS = (
    ("distinct_correct_rate", "different right answers (share)", ".3~f"),
    ("distinct_rate", "different answers (share)", ".3~f"),
    ("spread", "spread", ".3~f"),
    ("mean_tokens", "mean length (tokens)", "~s"),
    ("truncation_rate", "cut off at the limit (share)", ".3~f"),
    ("code_rate", "answers with code (share)", ".3~f"),
)


def _signals(facts: Json) -> Figure | None:
    """Diversity and length."""
    suite = decider_of(facts)
    panels, table = [], []
    for key, title, form in _SIGNALS if suite else ():
        points = _points(facts, suite["name"], key)
        if _any(points):
            base = _base(facts, suite["name"], key)
            panels.append({"title": title, **trajectory(points, base, "", form)})
            table += [{"round": 0, "who": title, "value": base}]
            table += [{"round": one["round"], "who": title, "value": one["value"]} for one in points]
    columns, rows = _table(table)
    about = (
        f"{measured_on(suite) if suite else ''}. Sharpening narrows wrong answers; collapse is the loss of what is right. "
        "Marks: candidates; line: the head after the round; dashed: the base."
    )
    return Figure("signals", "Signals of collapse", about, panels, columns, rows)


_MIND = (
    ("locks", "tail_mass", "tail mass at locks", ".3~f"),
    ("locks", "top_probability", "top-1 probability at locks", ".3~f"),
    ("forks", "entropy", "entropy at forks (nats)", ".3~f"),
    ("everywhere", "entropy", "entropy everywhere (nats)", ".3~f"),
)


def _mind(facts: Json) -> Figure | None:
    panels, table = [], []
    sequences = 0
    for part, key, title, form in _MIND:
        points, base = [], None
        for row in facts["rounds"]:
            found = (row["diagnosis"] or {}).get(part)
            if not found:
                continue
            sequences = row["diagnosis"]["num_sequences"]
            base = found["base"][key]
            mine, head = found["candidate"][key], found["head"][key]
            shift = (found["change"].get(key) or {}).get("interval") or [None, None]
            low, high = (None if end is None else head + end for end in shift)
            after = mine if row["outcome"] == "kept" else head
            points.append({"round": row["round"], "who": _outcome_words(row), "value": mine, "low": low, "high": high, "head": after})  # fmt: skip
            table.append({"round": row["round"], "who": f"{title}: before", "value": head})
            table.append({"round": row["round"], "who": f"{title}: after", "value": mine})
        if _any(points):
            panels.append({"title": title, **trajectory(points, base, "", form)})
    far = []
    for row in facts["rounds"]:
        found = (row["diagnosis"] or {}).get("everywhere")
        if found:
            far += [{"round": row["round"], "who": f"from the {who}", "value": found[f"kl_to_{who}"]} for who in ("head", "base")]  # fmt: skip
    if far:
        panels.append({"title": "distance (KL, nats a token)", **lines(far, "", form=".3~f", zero=True)})
        table += [{**point, "who": f"KL {point['who']}"} for point in far]
    columns, rows = _table(table, lambda value: "-" if value is None else f"{value:.4f}")
    about = (
        f"Candidate (mark, with a 95% interval of its change from the head) and head (line) at the same positions of {sequences} "
        "texts by the base. Locks are where the base is nearly certain, forks where it has a real choice."
    )
    return Figure("mind", "Locks and forks, before and after", about, panels, columns, rows)


def _loss(facts: Json) -> Figure | None:
    if not facts["rounds"] or not facts["losses"]:
        return None
    num = max(row["round"] for row in facts["rounds"])
    curve = [
        {"round": point["round"] - 0.45 + 0.9 * point["at"], "of": point["round"], "who": "each step", "value": point["loss"]}
        for point in facts["losses"]
    ]  # fmt: skip
    after = []
    for row in facts["rounds"]:
        for key, name in (
            ("train_loss", "after training, on what it saw"),
            ("held_out_loss", "after training, held out"),
        ):
            if row["training"][key] is not None:
                after.append({"round": row["round"], "who": name, "value": row["training"][key]})
    names = ["each step", *dict.fromkeys(point["who"] for point in after)]
    colour = {"field": "who", "type": "nominal", "title": None,
              "scale": {"domain": names, "range": [BLUE, GREEN, ORANGE][: len(names)]}}  # fmt: skip
    x, y = _rounds(num), _y("loss (nats a token)", form=".3~f")
    x = {**x, "scale": {**x["scale"], "domain": [0.5, num + 0.5]}}
    marks: list[Json] = [
            {"data": {"values": curve}, "mark": {"type": "line", "strokeWidth": 1.3},
             "encoding": {"x": x, "y": y, "color": colour, "detail": {"field": "of"}}},
            {"data": {"values": after}, "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": colour,
                          "tooltip": [{"field": "round"}, {"field": "who"}, {"field": "value", "format": ".4f"}]}},
    ]  # fmt: skip
    panel: Json = {"layer": marks if after else marks[:1]}
    rows = []
    for row in facts["rounds"]:
        seen = row["training"]
        shown = (seen["loss_first"], seen["loss_last"], seen["mean_loss"], seen["train_loss"], seen["held_out_loss"])
        rows.append([str(row["round"]), *(rate(value) for value in shown)])
    columns = ["round", "first step", "last step", "mean", "after, on what it saw", "after, held out"]
    about = "Cross-entropy on the completions, each round's steps side by side: it compares within a round, as each sees other texts."
    return Figure("loss", "Training loss", about, [panel], columns, rows)


def _training(facts: Json) -> Figure | None:
    points, total = [], []
    num = 0
    for row, amount in zip(facts["rounds"], facts["amounts"] if facts["rounds"] else [], strict=True):
        seen = row["training"]
        num += amount["num_completions"]
        total.append({"round": row["round"], "who": "completions", "value": num})
        fresh = seen["num_used"] - (seen["num_earlier"] or 0) - (seen["num_held_out"] or 0)
        parts = {"of this round": fresh, "of earlier rounds": seen["num_earlier"], "held out": seen["num_held_out"],
                 "left out": seen["num_left_out"]}  # fmt: skip
        points += [{"round": row["round"], "who": name, "value": value or 0} for name, value in parts.items()]
    if not any(point["value"] for point in points + total):
        return None
    order = ["of this round", "of earlier rounds", "held out", "left out"]
    panels = []
    if any(point["value"] for point in points):
        panels.append({"title": "what training saw, and what it did not", **bars(points, "completions", order)})
    growth = lines(total, "completions", form="~s", zero=True, dots=len(total) < 60)
    panels.append({"title": "growth of the corpus", **growth})
    columns, rows = _table(points + total, lambda value: "-" if value is None else f"{value:,}")
    about = "Completions by round. What is left out stays in the corpus, with the reason (under each round below)."
    return Figure("training", "What training saw", about, panels, columns, rows)


def _time(facts: Json) -> Figure | None:
    if not facts["rounds"]:
        return None
    points = [
        {"round": one["round"], "who": stage, "value": seconds}
        for one in facts["amounts"]
        for stage, seconds in one["seconds"].items()
    ]
    tokens = [
        {"round": one["round"], "who": who, "value": num}
        for one in facts["amounts"]
        for who, num in one["tokens"].items()
    ]
    longest = max((sum(one["seconds"].values()) for one in facts["amounts"]), default=0)
    size, unit = next(((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if longest > 3 * size), (1, "seconds"))  # fmt: skip
    scaled = [{**point, "value": point["value"] / size} for point in points]
    panels = []
    if any(point["value"] for point in points):
        panels.append({"title": f"time by stage ({unit})", **bars(scaled, unit, STAGES, ",.3~f")})
    if any(point["value"] for point in tokens):
        order = ["sampled", "trained on", "evaluated"]
        panels.append({"title": "tokens", **bars(tokens, "tokens", order)})
    columns, rows = _table(points, duration)
    more, counts = _table(tokens, lambda value: "-" if value is None else f"{value:,}")
    found = {row[0]: row[1:] for row in counts}
    rows = [[*row, *found.get(row[0], [""] * (len(more) - 1))] for row in rows]
    about = "Work that attempts took, failed ones included; tokens that the model wrote for training, was trained on, and wrote to be graded."
    columns = [*columns, *(f"tokens {name}" for name in more[1:])]
    return Figure("time", "Time and tokens", about, panels, columns, rows)


_OF_A_RUN: tuple[Callable[[Json], Figure | None], ...] = (
    _pass1, _change, _pass_at_k, _difficulty, _canaries, _signals, _mind, _loss, _training, _time,
)  # fmt: skip


# An experiment's figures


def _arm_points(facts: Json, key: str) -> list[Json]:
    points = []
    for line in facts["lines"]:
        low, high = line.get(f"{key}_interval") or (None, None)
        points.append({"round": line["round"], "who": line["arm"], "value": line.get(key), "low": low, "high": high})
    return points


def _arms(facts: Json) -> list[str]:
    return [arm["name"] for arm in facts["arms"]]


def _yardstick(facts: Json) -> str:
    words = decoding_words(facts["decoding"])
    return f"{facts['suite']}{f', {words}' if words else ''}, {count(len(facts['seeds']), 'seed')} an arm"


def _with_ends(points: Sequence[Json], sign: bool) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(point["who"] for point in points))
    found = {(point["round"], point["who"]): point for point in points}
    rows = []
    for number in sorted({point["round"] for point in points}):
        row = [str(number) if number else "base"]
        for name in names:
            point = found.get((number, name))
            figure = (signed if sign else rate)(point["value"]) if point else "-"
            row.append(f"{figure} {_ends(point['low'], point['high'], sign)}".strip() if point else figure)
        rows.append(row)
    return ["round", *names], rows


def _arms_change(facts: Json) -> Figure | None:
    points = _arm_points(facts, "change")
    if not _any(points):
        return None
    columns, rows = _with_ends(points, True)
    about = f"{_yardstick(facts)}. The head's pass@1 less the base's, mean over seeds, with 95% intervals."
    panel = lines(points, "change in pass@1", form="+.3~f", zero=True, order=_arms(facts))
    return Figure("change", "Change over the base, by arm", about, [panel], columns, rows)


def _arms_pass1(facts: Json) -> Figure | None:
    points = _arm_points(facts, "pass@1")
    if not _any(points):
        return None
    columns, rows = _with_ends(points, False)
    about = f"{_yardstick(facts)}. The head's pass@1 after each round, mean over seeds, with 95% intervals."
    panel = lines(points, "pass@1", form=".3~f", order=_arms(facts))
    return Figure("pass1", "pass@1 by arm", about, [panel], columns, rows)


def _arms_pass_at_k(facts: Json) -> Figure | None:
    keys = sorted({int(k) for line in facts["lines"] for k in line["pass@k"]} - {1})
    panels, table = [], []
    for k in keys:
        key = f"pass@{k}"
        points = [
            {"round": line["round"], "who": line["arm"], "value": line["pass@k"].get(str(k))} for line in facts["lines"]
        ]
        if _any(points):
            panels.append({"title": key, **lines(points, key, form=".3~f", order=_arms(facts))})
            table += [{**point, "who": f"{key}, {point['who']}"} for point in points]
    columns, rows = _table(table)
    about = f"{_yardstick(facts)}. What k samples together solve, of the head after each round."
    return Figure("passk", "pass@k by arm", about, panels, columns, rows)


def _arms_signals(facts: Json) -> Figure | None:
    panels, table = [], []
    for key, title, form in (
        ("distinct_rate", "different answers (share)", ".3~f"),
        ("spread", "spread", ".3~f"),
        ("mean_tokens", "mean length (tokens)", "~s"),
        ("num_kept", "seeds that kept this round", "d"),
    ):
        points = [{"round": line["round"], "who": line["arm"], "value": line.get(key)} for line in facts["lines"]]
        if _any(points):
            panels.append({"title": title, **lines(points, "", form=form, order=_arms(facts))})
            table += [{**point, "who": f"{title}, {point['who']}"} for point in points]
    columns, rows = _table(table)
    about = f"{_yardstick(facts)}. Of the head after each round, mean over seeds."
    return Figure("signals", "Diversity and length, by arm", about, panels, columns, rows)


def _comparisons(facts: Json) -> Figure | None:
    points = []
    for one in facts["comparisons"]:
        low, high = one["interval"]
        clear = "apart" if low > 0 or high < 0 else "cannot be told apart"
        label = f"{one['ours']} - {one['theirs']}, round {one['round']}"
        points.append({"label": label, "value": one["change"], "low": low, "high": high, "clear": clear})
    if not points:
        return None
    rows = [[p["label"], signed(p["value"]), _ends(p["low"], p["high"], True), p["clear"]] for p in points]
    about = f"{_yardstick(facts)}. Paired by problem and seed. {facts['correction']}"
    return Figure(
        "comparisons", "Arms compared", about, [forest(points, "difference in pass@1")],
        ["arms", "difference", "interval", ""], rows,
    )  # fmt: skip


_OF_AN_EXPERIMENT: tuple[Callable[[Json], Figure | None], ...] = (
    _arms_change, _arms_pass1, _comparisons, _arms_pass_at_k, _arms_signals,
)  # fmt: skip
