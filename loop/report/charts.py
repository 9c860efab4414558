"""Charts as Vega-Lite specifications, the same for the page and for a paper: what a line, a bar, an interval looks like.

A figure has panels, each a specification without size and theme, which `themed` adds, and the table of what they show.
Colours are readable on white and on black, and what is not coloured takes the colour of the text around it, so that a page
drawn once fits light, dark and print. The figures themselves are in run_figures.py and experiment_figures.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loop.words import interval, rate, signed
from store.records import Json

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched from there
BLUE, GREEN, ORANGE, GREY, PURPLE, TEAL, RED, BROWN = (
    "#3f7fc1", "#2f9e6e", "#d9822b", "#8b8f98", "#a765b3", "#35a3b5", "#cc4b4b", "#957a52",
)  # fmt: skip
SERIES = [BLUE, ORANGE, GREEN, PURPLE, TEAL, RED, BROWN, GREY]
OUTCOMES = {"kept": GREEN, "carried": TEAL, "rolled back": ORANGE, "inconclusive": PURPLE, "open": GREY, "failed": RED}
SHAPES = {
    "kept": "circle",
    "carried": "triangle-up",
    "rolled back": "cross",
    "inconclusive": "diamond",
    "open": "square",
    "failed": "square",
}
WIDTH, HEIGHT = 640, 320  # of a single panel; several stand side by side, half as wide
PANEL_WIDTH, PANEL_HEIGHT = 320, 200
LEGEND_WIDTH = 150  # of a name in a legend
MANY_ROUNDS = 60  # marks of more rounds than this are drawn smaller


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: what it shows in a sentence, its panels, and its numbers as a table."""

    name: str
    title: str
    about: str
    panels: list[Json]
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)


def any_value(points: Sequence[Json]) -> bool:
    """Whether there is anything to draw."""
    return any(point["value"] is not None for point in points)


def table(points: Sequence[Json], form: Callable[[Any], str] = rate) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a figure's table: a row per round and a column per series, each value written by `form`."""
    names = list(dict.fromkeys(point["who"] for point in points))
    values = {(point["round"], point["who"]): point["value"] for point in points}
    numbers = sorted({point["round"] for point in points})
    rows = [[str(n) if n else "base", *(form(values.get((n, name))) for name in names)] for n in numbers]
    return ["round", *names], rows


def ends(point: Json, *, sign: bool = False) -> str:
    """The interval of a point in words, or nothing."""
    low, high = point["low"], point["high"]
    return "" if low is None or high is None else interval([low, high], sign=sign)


def difference(point: Json) -> list[str]:
    """A difference and its interval, each in words."""
    return [signed(point["value"]), ends(point, sign=True)]


# Whole specifications


def themed(panel: Json, *, width: int | str, height: int, ink: str = "currentColor", font: str = "sans-serif") -> Json:
    """A panel that can be drawn. `width`: pixels, or "container"."""
    soft = {"labelColor": ink, "titleColor": ink, "labelFont": font, "titleFont": font, "titleFontWeight": "normal"}
    axis = {"gridColor": ink, "gridOpacity": 0.13, "domainColor": ink, "domainOpacity": 0.4, "tickColor": ink}
    sized = {} if "concat" in panel else {"width": width, "height": height}
    # a long legend breaks into lines; on a page, whose width only the browser knows, report.js says how many names fit
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
    title = {"text": figure.title, "subtitle": textwrap.wrap(figure.about, 110)}
    panel = figure.panels[0]
    if len(figure.panels) > 1:
        sized = [{"width": PANEL_WIDTH, "height": PANEL_HEIGHT, **panel} for panel in figure.panels]
        apart = dict.fromkeys(("color", "shape", "x", "y"), "independent")
        panel = {"concat": sized, "columns": 2, "spacing": 30, "resolve": {"scale": apart, "legend": apart}}
    whole = themed(panel, width=0 if "concat" in panel else WIDTH, height=HEIGHT, ink=ink, font=font)
    return whole | {"title": title, "background": "white", "padding": 12}


# Parts of a panel


def by_round(num: int) -> Json:
    """The horizontal axis of rounds 0 to `num`."""
    num = max(1, num)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, num) if num / step <= 20)
    axis = {"values": list(range(0, num + 1, every)), "format": "d", "grid": False}
    scale = {"domain": [0, num + 0.5 if num > 1 else 1.25], "nice": False, "padding": 8}
    return {"field": "round", "type": "quantitative", "title": "round", "axis": axis, "scale": scale}


def by_value(title: str, form: str | None = None, zero: bool = False) -> Json:
    """The vertical axis of values, written in d3's format `form`; `zero`: it begins there, or goes through it."""
    axis: Json = {"format": form} if form else {}
    return {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": zero, "padding": 6}, "axis": {"tickCount": 6, **axis}}  # fmt: skip


def named(names: Sequence[str], drawn_as: Sequence[str], by: str = "who") -> Json:
    """Colours or shapes of names, with a legend."""
    return {"field": by, "type": "nominal", "title": None, "scale": {"domain": list(names), "range": list(drawn_as)}}


def dot(size: int) -> Json:
    """A filled mark."""
    return {"type": "point", "filled": True, "size": size, "opacity": 1}


def _by_outcome(names: Iterable[str], colours: dict[str, str]) -> tuple[Json, Json]:
    """Colours and shapes of the outcomes that occur."""
    occurring = [name for name in colours if name in set(names)]
    colour = named(occurring, [colours[name] for name in occurring])
    return colour, named(occurring, [SHAPES.get(name, "stroke") for name in occurring])


def _intervals(mark: Json, x: Json, y: Json, colour: Json) -> Json:
    """The layer of the intervals, where a point has one."""
    encoding = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    return {"transform": [{"filter": "isValid(datum.low)"}], "mark": mark, "encoding": encoding}


def _zero(channel: str, axis: Json) -> Json:
    """A line through zero."""
    return {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "stroke": GREY},
            "encoding": {channel: {**axis, "field": "zero"}}}  # fmt: skip


def _tooltip(title: str, form: str) -> list[Json]:
    return [
        {"field": "round", "title": "round"}, {"field": "who", "title": "decision"},
        {"field": "value", "title": title, "format": form},
        {"field": "low", "title": "from", "format": form}, {"field": "high", "title": "to", "format": form},
    ]  # fmt: skip


# Panels


def trajectory(
    points: Sequence[Json], base: float | None, title: str, form: str | None = None, lines: Sequence[Json] = ()
) -> Json:
    """Candidates by round as marks with their intervals, the head after each round as a line, the base as a rule.

    A point has `round`, `who` (the outcome), `value`, `low` and `high` (or None), and `head`. A line from one of them to another
    has `round`, `value`, `to` and `to_value`.
    """
    values = [point for point in points if point["value"] is not None]
    head = [{"round": point["round"], "who": "head", "value": point["head"]} for point in points]
    if base is not None:
        head.insert(0, {"round": 0, "who": "head", "value": base})
    num = max([point["round"] for point in points], default=1)
    beyond = 0.5 if num > 1 else 0.25  # the last mark
    head += [{**last, "round": last["round"] + beyond} for last in head[-1:]]
    head = [point for point in head if point["value"] is not None]
    many = num > MANY_ROUNDS
    colour, shape = _by_outcome({"head", *(point["who"] for point in values)}, {"head": BLUE, **OUTCOMES})
    x, y = by_round(num), by_value(title, form)
    layers: list[Json] = []
    if base is not None:
        dashes = {"type": "rule", "strokeDash": [4, 4], "stroke": GREY}
        layers.append({"data": {"values": [{"base": base}]}, "mark": dashes, "encoding": {"y": {**y, "field": "base"}}})
    if head:  # vega warns of a layer without data
        steps = {"type": "line", "interpolate": "step-after", "strokeWidth": 2}
        layers.append({"data": {"values": head}, "mark": steps, "encoding": {"x": x, "y": y, "color": colour}})
    if lines:
        dots = {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.5, "stroke": TEAL}
        ends = {"x": x, "y": y, "x2": {"field": "to"}, "y2": {"field": "to_value"}}
        layers.append({"data": {"values": list(lines)}, "mark": dots, "encoding": ends})
    if any(point.get("low") is not None for point in values):
        rule = {"type": "rule", "strokeWidth": 1 if many else 2, "opacity": 0.45 if many else 0.8}
        layers.append(_intervals(rule, x, y, colour))
    if values:
        tooltip = [*_tooltip("candidate", ".4~f"), {"field": "head", "title": "head after it", "format": ".4~f"}]
        encoding = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tooltip}
        layers.append({"mark": dot(28 if many else 60), "encoding": encoding})
    return {"data": {"values": values}, "layer": layers}


def differences(points: Sequence[Json], title: str) -> Json:
    """Differences by round with their intervals and a line at zero; points as in `trajectory`."""
    values = [point for point in points if point["value"] is not None]
    num = max([point["round"] for point in points], default=1)
    many = num > MANY_ROUNDS
    colour, shape = _by_outcome({point["who"] for point in values}, OUTCOMES)
    x, y = by_round(num), by_value(title, "+.3~f", zero=True)
    tooltip = _tooltip("difference", "+.4f")
    return {
        "data": {"values": values},
        "layer": [
            _zero("y", y),
            _intervals({"type": "rule", "strokeWidth": 1 if many else 1.6, "opacity": 0.6}, x, y, colour),
            {"mark": dot(28 if many else 60),
             "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip, "shape": shape}},
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
    x, y = {**by_round(num), "field": "at"}, by_value(title, form, zero)
    if zero and all(min(point["value"], point.get("low") or 0) >= 0 for point in values):
        y["scale"]["domainMin"] = 0  # no room for values that cannot be
    if apart:
        x["scale"] = {**x["scale"], "domain": [-0.3, num + 0.5]}
    colour = named(names, [SERIES[n % len(SERIES)] for n in range(len(names))])
    tooltip: list[Json] = [{"field": "who", "title": "of"}, {"field": "round"}]
    tooltip += [{"field": "value", "format": ".4~f", "title": title or "value"}]
    mark: Json = {"type": "line", "strokeWidth": 2}
    if dots:
        mark["point"] = {"filled": True, "size": 18 if num > MANY_ROUNDS else 36}
    layers: list[Json] = [{"mark": mark, "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}}]
    if intervals:
        tooltip += [{"field": end, "title": word, "format": ".4~f"} for end, word in (("low", "from"), ("high", "to"))]
        shape = {"type": "area", "opacity": 0.14} if band else {"type": "rule", "strokeWidth": 1.4, "opacity": 0.55}
        layers.insert(0, _intervals(shape, x, y, colour))
    return {"data": {"values": values}, "layer": layers}


def curves(points: Sequence[Json], title: str, order: Sequence[str]) -> Json:
    """A line per series over k, on a scale of powers. A point has `k`, `who` and `value`."""
    ks = sorted({point["k"] for point in points})
    x = {
        "field": "k",
        "type": "quantitative",
        "title": "k",
        "scale": {"type": "log", "nice": False, "padding": 8},
        "axis": {"values": ks, "grid": False},
    }
    tooltip: list[Json] = [{"field": "who", "title": "of"}, {"field": "k"}]
    tooltip += [{"field": "value", "format": ".4~f", "title": title}]
    mark = {"type": "line", "strokeWidth": 2, "point": {"filled": True, "size": 36}}
    colour = named(order, SERIES[: len(order)])
    return {"data": {"values": list(points)}, "mark": mark,
            "encoding": {"x": x, "y": by_value(title, ".3~f"), "color": colour, "tooltip": tooltip}}  # fmt: skip


def bars(points: Sequence[Json], title: str, order: Sequence[str], form: str = "~s") -> Json:
    """Stacked bars by round. A point has `round`, `who` and `value`."""
    values = [point for point in points if point["value"]]
    num = max([point["round"] for point in points], default=1)
    present = [name for name in order if any(point["who"] == name for point in values)]
    colour = named(present, [SERIES[list(order).index(name) % len(SERIES)] for name in present])
    x: Json = {"field": "round", "type": "ordinal", "title": "round", "axis": {"labelAngle": 0, "labelOverlap": True}}
    if num > 40:
        x["axis"]["values"] = list(range(0, num + 1, max(1, -(-num // 20))))
    axis = {"format": form, "tickCount": 6}
    y = {"field": "value", "type": "quantitative", "title": title, "stack": "zero", "axis": axis}
    tooltip = [{"field": "round"}, {"field": "who", "title": "of"}]
    tooltip += [{"field": "value", "format": ",.4~f", "title": title}]
    return {"data": {"values": values}, "mark": {"type": "bar"},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}}  # fmt: skip


def forest(points: Sequence[Json], title: str) -> Json:
    """A line per difference, with its interval. A point has `label`, `value`, `low`, `high` and `clear`."""
    y = {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
    x = {"type": "quantitative", "title": title, "axis": {"format": "+.3~f"}}
    colour = named(["apart", "cannot be told apart"], [BLUE, GREY], by="clear")
    values = [{"field": name, "format": "+.4f"} for name in ("value", "low", "high")]
    tooltip = [{"field": "label", "title": "of"}, *values]
    return {
        "height": max(60, 24 * len(points)),
        "data": {"values": list(points)},
        "layer": [
            _zero("x", x),
            {"mark": {"type": "rule", "strokeWidth": 2},
             "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour}},
            {"mark": dot(60), "encoding": {"y": y, "x": {**x, "field": "value"}, "color": colour, "tooltip": tooltip}},
        ],
    }  # fmt: skip
