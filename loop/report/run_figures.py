"""The figures of a run, from its facts (facts.py): each with a sentence about what it shows, and its numbers as a table.

The suite that decides is the first of the facts' suites.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from loop.report import charts
from loop.report.charts import Figure, any_value
from loop.words import duration, interval, number, rate
from store.records import STAGES, Json

# What the figures are of


def measured_on(suite: Json) -> str:
    """first-steps, split select: 41 problems x 4 samples, T 0.7, top_p 0.95"""
    split = f", split {suite['split']}" if suite.get("split") not in (None, "all") else ""
    num = f": {suite['num_problems']:,} problems" if suite.get("num_problems") else ""
    times = f" x {suite['num_samples']:,} samples" if num and (suite.get("num_samples") or 1) > 1 else ""
    words = f", {suite['decoding_words']}" if suite.get("decoding_words") else ""
    return f"{suite['name']}{split}{num}{times}{words}"


def _point(row: Json, candidate: float | None, interval: Sequence[float] | None, head: float | None = None) -> Json:
    """A round's mark: the candidate's value with its interval, and the value of the head that the round began with."""
    low, high = interval or (None, None)
    after = candidate if row["outcome"] == "kept" else head
    who = row["outcome"].replace("_", " ")
    return {"round": row["round"], "who": who, "value": candidate, "low": low, "high": high, "head": after}


def _points(facts: Json, name: str, key: str, level: str | None = None) -> list[Json]:
    """One figure of the candidates on a suite, with that of the head after each round."""
    points = []
    for row in facts["rounds"]:
        suite = row["suites"].get(name, {})
        candidate, head = (_part(suite.get(who), level) for who in ("candidate", "head"))
        points.append(_point(row, candidate.get(key), candidate.get(f"{key}_interval"), head.get(key)))
    return points


def _lines(facts: Json, points: Sequence[Json], base: float | None) -> list[Json]:
    """From where to where each round of a line of carried rounds went: `round` and `value`, `to` and `to_value`."""
    carried = {row["round"] for row in facts["rounds"] if row["outcome"] == "carried"}
    reached: dict[int, float | None] = {0: base} | {point["round"]: point["value"] for point in points}
    steps = [
        (row["parent_round"], row["round"]) for row in facts["rounds"] if {row["round"], row["parent_round"]} & carried
    ]
    return [
        {"round": start, "value": reached.get(start), "to": end, "to_value": reached.get(end)}
        for start, end in steps
        if reached.get(start) is not None and reached.get(end) is not None
    ]


def _part(figures: Json | None, level: str | None) -> Json:
    if figures is None:
        return {}
    return figures if level is None else figures.get("by_difficulty", {}).get(level, {})


def _newest(facts: Json) -> Json:
    """The newest figures of the suite that decides; {} if nothing was measured on it."""
    suite = facts["suites"][0]
    sides = [row["suites"].get(suite["name"], {}).get(who) for row in reversed(facts["rounds"]) for who in ("candidate", "head")]  # fmt: skip
    return next((figures for figures in [*sides, suite["base"]] if figures), {})


def _panels(facts: Json, figures: Iterable[tuple[Json, str, str, str, str]]) -> tuple[list[Json], list[Json]]:
    """Panels of the candidates and the points of their table, of each (suite, key, title, axis, form) that was measured."""
    panels, of_table = [], []
    for suite, key, title, axis, form in figures:
        points, base = _points(facts, suite["name"], key), _part(suite["base"], None).get(key)
        if any_value(points):
            panels.append({"title": title, **charts.trajectory(points, base, axis, form)})
            of_table += [point | {"who": title} for point in [{"round": 0, "value": base}, *points]]
    return panels, of_table


def _heads(
    facts: Json, keys: Sequence[tuple[str, str, str | None]], axis: str, name: str, title: str, about: str
) -> Figure | None:
    """The figure of the head after each round, a series for each (label, key, difficulty)."""
    suite = facts["suites"][0]
    points = []
    for label, key, level in keys:
        points.append({"round": 0, "who": label, "value": _part(suite["base"], level).get(key)})
        rounds = _points(facts, suite["name"], key, level)
        points += [{"round": point["round"], "who": label, "value": point["head"]} for point in rounds]
    if not any_value(points):
        return None
    order = [label for label, _, _ in keys]
    panel = charts.lines(points, axis, form=".3~f", order=order, dots=len(facts["rounds"]) < charts.MANY_ROUNDS)
    return Figure(name, title, f"{measured_on(suite)}. {about}", [panel], *charts.table(points))


# The figures


def _pass1(facts: Json) -> Figure | None:
    suite = facts["suites"][0]
    points, base = _points(facts, suite["name"], "pass@1"), _part(suite["base"], None).get("pass@1")
    if not any_value(points) and base is None:
        return None
    rows = [["base", "", rate(base), interval(suite["base"]["pass@1_interval"]) if suite["base"] else "", rate(base)]]
    rows += [[str(p["round"]), p["who"], rate(p["value"]), charts.ends(p), rate(p["head"])] for p in points]
    about = "Marks: each round's candidate with its 95% interval. Line: the head after the round. Dashed: the base."
    lines = _lines(facts, points, base)
    if lines:
        about += " Dotted: from which weights a carried round, or the one after it, began."
    panel = charts.trajectory(points, base, "pass@1", ".3~f", lines)
    columns = ["round", "decision", "candidate", "95% interval", "head after it"]
    return Figure("pass1", "pass@1 by round", f"{measured_on(suite)}. {about}", [panel], columns, rows)


def _gains(facts: Json, key: str) -> list[Json]:
    name = facts["suites"][0]["name"]
    gains = ((row, row["suites"].get(name, {}).get(key) or {}) for row in facts["rounds"])
    return [_point(row, gain.get("gain"), gain.get("interval")) for row, gain in gains]


def _change(facts: Json) -> Figure:
    over_head, over_base = _gains(facts, "gain"), _gains(facts, "gain_over_base")
    panels = [
        charts.differences(points, f"candidate - {other}, pass@1")
        for other, points in (("head", over_head), ("base", over_base))
        if any_value(points)
    ]
    about = (
        f"{measured_on(facts['suites'][0])}. Candidate minus head, and minus base, in pass@1 on the same problems, with 95% "
        "intervals of the difference. The intervals are each round's own: the decisions also spend an error budget over the run."
    )
    columns = ["round", "decision", "over head", "95% interval", "over base", "95% interval"]
    rows = [
        [str(head["round"]), head["who"], *charts.difference(head), *charts.difference(base)]
        for head, base in zip(over_head, over_base, strict=True)
    ]
    return Figure("change", "What each round changed", about, panels, columns, rows)


def _pass_at_k(facts: Json) -> Figure | None:
    numbers = sorted(int(key[5:]) for key in _newest(facts) if key.startswith("pass@") and key[5:].isdigit())
    if len(numbers) < 2:
        return None
    keys = [(f"pass@{k}", f"pass@{k}", None) for k in numbers]
    about = "The head after each round; round 0 is the base."
    return _heads(facts, keys, "share of problems", "passk", "pass@k by round", about)


def _difficulty(facts: Json) -> Figure | None:
    levels = _newest(facts).get("by_difficulty") or {}
    keys = [(f"{level} ({part['num_problems']})", "pass@1", level) for level, part in levels.items()]
    about = "pass@1 of the head after each round, by difficulty (how many problems); round 0 is the base."
    return _heads(facts, keys, "pass@1", "difficulty", "By difficulty", about)


def _canaries(facts: Json) -> Figure:
    suites = [suite for suite in facts["suites"][1:] if any_value(_points(facts, suite["name"], "pass@1"))]
    panels, of_table = _panels(facts, ((suite, "pass@1", suite["name"], "pass@1", ".3~f") for suite in suites))
    words = "; ".join(map(measured_on, suites))
    about = f"Reported, never decided on by themselves: {words}. Marks, line and dashes as above."
    return Figure("canaries", "Canaries", about, panels, *charts.table(of_table))


_SIGNALS = (
    ("distinct_correct_rate", "different right answers (share)", ".3~f"),
    ("distinct_rate", "different answers (share)", ".3~f"),
    ("spread", "spread", ".3~f"),
    ("mean_tokens", "mean length (tokens)", "~s"),
    ("truncation_rate", "cut off at the limit (share)", ".3~f"),
    ("code_rate", "answers with code (share)", ".3~f"),
)


def _signals(facts: Json) -> Figure:
    """Diversity and length."""
    suite = facts["suites"][0]
    panels, of_table = _panels(facts, ((suite, key, title, "", form) for key, title, form in _SIGNALS))
    about = f"{measured_on(suite)}. Sharpening narrows wrong answers; collapse is the loss of what is right. "
    about += "Marks: candidates; line: the head after the round; dashed: the base."
    return Figure("signals", "Signals of collapse", about, panels, *charts.table(of_table))


_MIND = (
    ("locks", "tail_mass", "tail mass at locks", ".3~f"),
    ("locks", "top_probability", "top-1 probability at locks", ".3~f"),
    ("forks", "entropy", "entropy at forks (nats)", ".3~f"),
    ("everywhere", "entropy", "entropy everywhere (nats)", ".3~f"),
)


def _mind(facts: Json) -> Figure | None:
    rows = [row for row in facts["rounds"] if row["diagnosis"]]
    if not rows:
        return None
    panels, of_table = [], []
    for part, key, title, form in _MIND:
        points, base = [], None
        for row in rows:
            if figures := row["diagnosis"].get(part):
                base, head, candidate = (figures[who][key] for who in ("base", "head", "candidate"))
                moved = (figures["change"].get(key) or {}).get("interval")
                points.append(_point(row, candidate, moved and [head + end for end in moved], head))
                of_table.append({"round": row["round"], "who": f"{title}: before", "value": head})
                of_table.append({"round": row["round"], "who": f"{title}: after", "value": candidate})
        if any_value(points):
            panels.append({"title": title, **charts.trajectory(points, base, "", form)})
    far = [
        {"round": row["round"], "who": f"from the {who}", "value": figures[f"kl_to_{who}"]}
        for row in rows
        if (figures := row["diagnosis"].get("everywhere"))
        for who in ("head", "base")
    ]
    if far:
        panels.append({"title": "distance (KL, nats a token)", **charts.lines(far, "", form=".3~f", zero=True)})
        of_table += [{**point, "who": f"KL {point['who']}"} for point in far]
    about = (
        "Candidate (mark, with a 95% interval of its change from the head) and head (line) at the same positions of "
        f"{rows[-1]['diagnosis']['num_sequences']} texts by the base. Locks are where the base is nearly certain, forks where it has "
        "a real choice."
    )
    words = charts.table(of_table, lambda value: "-" if value is None else f"{value:.4f}")
    return Figure("mind", "Locks and forks, before and after", about, panels, *words)


_AFTER = (("train_loss", "after training, on what it saw"), ("held_out_loss", "after training, held out"))


def _loss(facts: Json) -> Figure | None:
    if not facts["losses"]:
        return None
    num = max(row["round"] for row in facts["rounds"])
    curve = [
        {"round": point["round"] - 0.45 + 0.9 * point["at"], "of": point["round"], "who": "each step", "value": point["loss"]}
        for point in facts["losses"]
    ]  # fmt: skip
    after = [
        {"round": row["round"], "who": name, "value": row["training"][key]}
        for row in facts["rounds"]
        for key, name in _AFTER
        if row["training"][key] is not None
    ]
    names = ["each step", *dict.fromkeys(point["who"] for point in after)]
    colour = charts.named(names, [charts.BLUE, charts.GREEN, charts.ORANGE][: len(names)])
    x, y = charts.by_round(num), charts.by_value("loss (nats a token)", ".3~f")
    x = {**x, "scale": {**x["scale"], "domain": [0.5, num + 0.5]}}
    tooltip = [{"field": "round"}, {"field": "who"}, {"field": "value", "format": ".4f"}]
    marks: list[Json] = [
        {"data": {"values": curve}, "mark": {"type": "line", "strokeWidth": 1.3},
         "encoding": {"x": x, "y": y, "color": colour, "detail": {"field": "of"}}},
        {"data": {"values": after}, "mark": charts.dot(50), "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip}},
    ]  # fmt: skip
    keys = ("loss_first", "loss_last", "mean_loss", "train_loss", "held_out_loss")
    rows = [[str(row["round"]), *(rate(row["training"][key]) for key in keys)] for row in facts["rounds"]]
    columns = ["round", "first step", "last step", "mean", "after, on what it saw", "after, held out"]
    about = "Cross-entropy on the completions, each round's steps side by side. Compare within a round only: each round trains on other texts."
    return Figure("loss", "Training loss", about, [{"layer": marks if after else marks[:1]}], columns, rows)


def _training(facts: Json) -> Figure:
    amounts = facts["amounts"]
    sums = itertools.accumulate(amount["num_completions"] for amount in amounts)
    total = [
        {"round": row["round"], "who": "completions", "value": num} for row, num in zip(amounts, sums, strict=True)
    ]
    points = []
    for row in facts["rounds"]:
        seen = row["training"]
        earlier, held_out = seen["num_earlier"] or 0, seen["num_held_out"] or 0
        parts = {"of this round": seen["num_used"] - earlier - held_out, "of earlier rounds": earlier,
                 "held out": held_out, "left out": seen["num_left_out"] or 0}  # fmt: skip
        points += [{"round": row["round"], "who": name, "value": value} for name, value in parts.items()]
    panels = []
    if any(point["value"] for point in points):
        order = ["of this round", "of earlier rounds", "held out", "left out"]
        panels.append({"title": "what training saw, and what it did not", **charts.bars(points, "completions", order)})
    if panels or any(point["value"] for point in total):
        growth = charts.lines(total, "completions", form="~s", zero=True, dots=len(total) < charts.MANY_ROUNDS)
        panels.append({"title": "growth of the corpus", **growth})
    about = "Completions by round. What is left out stays in the corpus; the reason stands under each round."
    return Figure("training", "What training saw", about, panels, *charts.table(points + total, number))


def _time(facts: Json) -> Figure:
    seconds, tokens = (
        [{"round": amount["round"], "who": who, "value": value} for amount in facts["amounts"] for who, value in amount[key].items()]
        for key in ("seconds", "tokens")
    )  # fmt: skip
    longest = max((sum(amount["seconds"].values()) for amount in facts["amounts"]), default=0)
    size, unit = next(((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if longest > 3 * size), (1, "seconds"))  # fmt: skip
    scaled = [{**point, "value": point["value"] / size} for point in seconds]
    panels = []
    if any(point["value"] for point in seconds):
        panels.append({"title": f"time by stage ({unit})", **charts.bars(scaled, unit, STAGES, ",.3~f")})
    if any(point["value"] for point in tokens):
        panels.append({"title": "tokens", **charts.bars(tokens, "tokens", ["sampled", "trained on", "evaluated"])})
    words = [{**point, "value": duration(point["value"])} for point in seconds]
    words += [{**point, "who": f"tokens {point['who']}", "value": number(point["value"])} for point in tokens]
    about = "Time of all attempts, failed ones too; tokens that the model wrote for training, was trained on, and wrote to be graded."
    return Figure("time", "Time and tokens", about, panels, *charts.table(words, lambda text: text or "-"))


FIGURES: tuple[Callable[[Json], Figure | None], ...] = (
    _pass1, _change, _pass_at_k, _difficulty, _canaries, _signals, _mind, _loss, _training, _time,
)  # fmt: skip
