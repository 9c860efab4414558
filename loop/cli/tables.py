"""Draws rounds as tables that a person understands at a glance, with rich, from the values of `loop.reading.rounds`.

Every text that is not our own goes through `safe`; nothing is read as rich's markup.
"""

from __future__ import annotations

import re
import sys
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from loop.cli.paper import Paper
from loop.words import (
    candidates_words,
    count,
    decoding_words,
    duration,
    fate,
    interval,
    nodes_words,
    number,
    one_line,
    rate,
    round_name,
    safe,
    signed,
)
from store.records import Json

WHO = ("base", "head", "candidate")
STYLES = {
    "kept": "green",
    "carried": "cyan",
    "rolled_back": "yellow",
    "failed": "red",
    "pass": "green",
    "fail": "yellow",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """End as every other command does when its reader has gone."""
        raise BrokenPipeError


def console(file: IO[str] | None = None) -> Console:
    """Make a console that prints text as it is, and is wide enough in a pipe that tables keep their lines."""
    file = file or sys.stdout
    return _Console(file=file, width=Paper(file).width, highlight=False, markup=False, emoji=False)


def show(out: Console, *parts: RenderableType) -> None:
    """Print the parts below each other; in a pipe without the spaces at the ends of lines."""
    if out.is_terminal:
        out.print(*parts, sep="\n")
        return
    with out.capture() as caught:
        out.print(*parts, sep="\n")
    out.file.write("".join(f"{line.rstrip(' ')}\n" for line in caught.get().split("\n")[:-1]))


def cell(text: str, style: str = "") -> Text:
    """Make text for a table, in which rich sees no markup."""
    return Text(text, style=style)


def headed_table(*columns: Column | str) -> Table:
    """Make a table with a line below its heads."""
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)


def plain_table(*columns: Column | str) -> Table:
    """Make a table without lines."""
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _labels_table() -> Table:
    """Make a table with two columns: labels and texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _with_interval(figures: Json | None, key: str = "pass@1", gap: str = " ") -> Text:
    if not figures or figures.get(key) is None:
        return cell("-", "dim")
    text = cell(rate(figures[key]))
    if ends := figures.get(f"{key}_interval"):
        text.append(f"{gap}{interval(ends)}", "dim")
    return text


def change(gain: Json | None, gap: str = " ") -> Text:
    """+0.031 [+0.012 +0.051], green or red where the interval leaves no doubt about the sign."""
    if not gain:
        return cell("-", "dim")
    low, high = gain["interval"]
    style = "green" if low > 0 else "red" if high < 0 else ""
    return Text.assemble((signed(gain["gain"]), style), (f"{gap}{interval([low, high], sign=True)}", "dim"))


def suite_label(name: str, suite: Json) -> Text:
    """▸ first-steps (select, T 0.7, top_p 0.95)"""
    words = [suite.get("split"), decoding_words(suite.get("decoding"))]
    where = ", ".join(word for word in words if word and word != "all")
    mark, style, decides = ("▸ ", "bold", " decides") if suite["decides"] else ("  ", "", "")
    return Text.assemble(
        mark, (safe(name.partition("/")[0]), style), (f" ({safe(where)})" if where else "", "dim"), (decides, "bold")
    )


def figures_tables(answer: Json, width: int) -> Group:
    """Show base, head and candidate on every suite with a line per pass@k and per difficulty.

    On a narrow terminal each interval stands below its figure.
    """
    gap, figure, last = ("\n", 13, 16) if width < 110 else (" ", 19, 23)
    lines = {name: _lines_of(suite) for name, suite in answer["suites"].items()}
    label_width = max(len(label) for of_suite in lines.values() for label, _, _ in of_suite)
    parts: list[RenderableType] = []
    for name, suite in answer["suites"].items():
        table = plain_table(
            Column("", width=label_width),
            *(Column(who, min_width=figure) for who in ("base", f"head ({_begun_from(answer)})", "candidate")),
            Column("candidate - head", min_width=last),
        )
        for label, key, level in lines[name]:
            base, head, candidate = (_part_of(suite[who], level) for who in WHO)
            has_interval = level is None and key == "pass@1"
            table.add_row(
                cell(label, "" if level is None else "dim"),
                *(_with_interval(figures, key, gap) for figures in (base, head, candidate)),
                change(suite["gain"], gap) if has_interval else _difference(head, candidate, key),
            )
        parts += [suite_label(name, suite), Padding(table, (0, 0, 1, 2), expand=False)]
    return Group(*parts)


_PARTS = (("locks", "locks"), ("forks", "forks"), ("everywhere", "all"))
_FIGURES = {
    "locks": (("tail_mass", "tail mass"), ("top_probability", "top-1 probability")),
    "forks": (("entropy", "entropy (nats)"), ("tail_mass", "tail mass")),
    "everywhere": (("entropy", "entropy (nats)"),),
}


def diagnosis_table(answer: Json, width: int) -> Group:
    """Show what base, head and candidate would write at the same positions, at locks and forks, and say it in a sentence."""
    from policies.diagnosis import in_words, summary_of

    diagnosis = answer["diagnosis"]
    summary = summary_of({key: value for key, value in diagnosis.items() if key != "probe"})
    narrow = width < 110
    head, difference = ("head", "change") if narrow else (f"head ({_begun_from(answer)})", "candidate - head")
    names = ("", "", "base", head, "candidate", difference)
    table = plain_table(*(Column(name, no_wrap=True) for name in names))
    for part, name in _PARTS:
        values = diagnosis[part]
        for position, (key, label) in enumerate(_FIGURES[part] if values else ()):
            where = f"{name} ({values['num_positions']:,})" if position == 0 else ""
            moved = values["change"][key]
            table.add_row(where, label, *(f"{values[who][key]:.4f}" for who in WHO), _moved(moved, narrow))
    values, locks = diagnosis["everywhere"], diagnosis["locks"]
    changed = f"; at {locks['top_changed']:.1%} of the locks another token leads" if locks else ""
    distance = f"candidate from head: KL at least {values['kl_to_head']:.4f} nats a token, from base {values['kl_to_base']:.4f}"
    title = Text.assemble(
        "  locks and forks", (f" (on {count(diagnosis['num_sequences'], 'text')} by the base)", "dim")
    )
    below = Group(table, cell(f"{distance}{changed}"), cell(in_words(summary)))
    return Group(title, Padding(below, (0, 0, 0, 2), expand=False))


def _moved(moved: Json, narrow: bool) -> Text:
    """-0.0036 [-0.0050 -0.0021], without a colour: whether less is good depends on where."""
    text = cell(f"{moved['mean']:+z.4f}")
    if moved["interval"] and not narrow:
        text.append(f" [{' '.join(f'{end:+z.4f}' for end in moved['interval'])}]", "dim")
    return text


def _lines_of(suite: Json) -> list[tuple[str, str, str | None]]:
    """List (label, key, difficulty) of each line of a suite's table: every pass@k, then pass@1 by difficulty."""
    figures: Json = next((suite[who] for who in WHO if suite[who]), {})
    ks = sorted(int(key.removeprefix("pass@")) for key in figures if re.fullmatch(r"pass@\d+", key))
    lines: list[tuple[str, str, str | None]] = [(f"pass@{k}", f"pass@{k}", None) for k in ks or [1]]
    levels = figures.get("by_difficulty", {}).items()
    return lines + [(f"  {one_line(level, 20)} ({group['num_problems']})", "pass@1", level) for level, group in levels]


def _part_of(figures: Json | None, level: str | None) -> Json | None:
    """Return the figures, or those of one difficulty."""
    if figures is None or level is None:
        return figures
    part: Json | None = figures.get("by_difficulty", {}).get(level)
    return part


def _difference(head: Json | None, candidate: Json | None, key: str) -> Text:
    if not head or not candidate or head.get(key) is None or candidate.get(key) is None:
        return cell("-", "dim")
    return cell(signed(candidate[key] - head[key]))


def _begun_from(answer: Json) -> str:
    return round_name(answer["head_round"]).removeprefix("the ")


def _state(state: str) -> Text:
    """Write kept, carried, rolled back, failed, or the stage of an open round."""
    return cell(safe(state).replace("_", " "), STYLES.get(state, ""))


def round_report(answer: Json, width: int) -> Group:
    """Show all of a round but its settings and attempts: figures, decision and reasons, what training saw, times."""
    parts: list[RenderableType] = [Text.assemble((f"round {answer['round']}: ", "bold"), _state(answer["state"]))]
    if answer["error"] and answer["state"] == "failed":
        parts.append(cell(f"  {answer['stage']}: {safe(answer['error'])}", "red"))
    if any(suite[who] for suite in answer["suites"].values() for who in ("head", "candidate")):
        parts.append(Padding(figures_tables(answer, width), (1, 0, 0, 2), expand=False))
    if answer["diagnosis"]:
        parts.append(Padding(diagnosis_table(answer, width), (0, 0, 1, 2), expand=False))
    facts = _labels_table()
    if answer["parent_round"] != answer["head_round"]:
        tip, head = round_name(answer["parent_round"]), round_name(answer["head_round"])
        facts.add_row("line", cell(f"trained from {tip}, which was carried; compared with the head of then, {head}"))
    if answer["decision"]:
        facts.add_row("decision", _verdict(answer))
        for gate in answer["gates"]:
            kind = (f"{safe(gate['type'])}: ", STYLES.get(gate["verdict"], ""))
            facts.add_row("", Text.assemble(kind, safe(gate["reason"])))
    if answer["adapted"]:
        facts.add_row("adapted", cell(safe(answer["adapted"])))
    if answer["training"]["num_used"] or answer["training"]["num_left_out"]:
        facts.add_row("training", cell(_training_words(answer["training"])))
    if answer["candidates"]:
        facts.add_row("candidates", cell(candidates_words(answer["candidates"])))
    for line in _shared_words(answer):
        facts.add_row("shared", cell(line))
    if answer["stages"]:
        facts.add_row("times", cell(_times(answer)))
    for stage in answer["stages"]:
        if stage["nodes"]:
            facts.add_row("nodes", cell(f"{stage['stage']}: {nodes_words(stage['nodes'])}"))
    parts.append(Padding(facts, (0, 0, 1, 2)))
    return Group(*parts)


def round_details(answer: Json) -> Table:
    """List the attempts, settings and checkpoints of a round."""
    table = _labels_table()
    for stage in answer["stages"]:
        for attempt in stage["attempts"]:
            end = attempt["finished_at"] or "no end: interrupted, or still going on"
            line = cell(f"attempt {attempt['attempt']}: {attempt['started_at']} to {end}")
            if attempt["error"]:
                line.append(f"; failed: {safe(attempt['error'])}", "red")
            table.add_row(f"  {stage['stage']}", line)
    for name, settings in answer["settings"].items():
        shown = settings.items() if isinstance(settings, dict) else [("", settings)]
        table.add_row(f"  {name}", cell(", ".join(f"{key} {_setting(value)}".strip() for key, value in shown)))
    table.add_row(
        "  checkpoints", cell(f"parent {answer['parent'][:12]}, candidate {(answer['candidate'] or '-')[:12]}")
    )
    return table


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_setting(entry)}" for key, entry in value.items()) + "}"
    return "-" if value is None else safe(value)


def _verdict(answer: Json) -> Text:
    decision = answer["decision"]
    if decision["verdict"] == "keep":
        return Text.assemble(("keep", "green"), f": the head is round {answer['round']} now")
    if decision["verdict"] == "carry":
        head = round_name(answer["head_round"])
        now = f"; {became}" if (became := _became(answer["carried"])) else ""
        return Text.assemble(
            ("carry", "cyan"), f": the head stays {head}; the next round begins from round {answer['round']}{now}"
        )
    word = "roll back" if decision["conclusive"] else "inconclusive"
    if any(gate["type"] == "tip" and gate["verdict"] == "pass" for gate in answer["gates"]):
        tip = round_name(answer["parent_round"])
        return Text.assemble((word, "yellow"), f": but its tip, {tip}, is shown and is the head now")
    given_up = ", as what was carried since is given up" if answer["parent_round"] != answer["head_round"] else ""
    return Text.assemble(
        (word, "yellow"),
        f": the head stays {round_name(answer['head_round'])}; the next round begins from it{given_up}",
    )


def _became(carried: Json | None) -> str:
    """What was decided later of a carried round."""
    if carried is None or not (carried["into"] or carried["given_up"]):
        return ""
    return (
        f"shown later, as part of round {carried['into']}"
        if carried["into"]
        else "given up later: its line ended without a gain that was shown"
    )


def _training_words(training: Json) -> str:
    total = training["num_used"] + training["num_left_out"]
    words = f"saw {training['num_used'] - training['num_held_out']:,} of {count(total, 'completion')}"
    if training["num_held_out"]:
        words += f", {training['num_held_out']:,} held out"
    if training["num_earlier"]:
        words += f", {training['num_earlier']:,} of them from earlier rounds"
    if training["left_out"]:
        reasons = ", ".join(f"{num:,} {safe(reason)}" for reason, num in training["left_out"].items())
        words += f" (left out: {reasons})"
    if training["mean_loss"] is not None:  # the mean, because the loss of a single step says little
        words += f"; mean loss {training['mean_loss']:.3f} over {count(training['num_steps'], 'step')}"
    if training["held_out_loss"] is not None:
        words += f"; then {training['train_loss']:.3f}, and {training['held_out_loss']:.3f} on those held out"
    return words


def _shared_words(answer: Json) -> list[str]:
    """Say what was taken from other runs of an experiment, in a line for each of them."""
    taken: dict[str, list[str]] = {}
    for stage in answer["stages"]:
        for shared in (stage["output"] or {}).get("shared", []):
            who = f"{safe(shared['ran_in']['arm'])}/seed-{shared['ran_in']['seed']}"
            prefix = "" if stage["stage"] == "evaluating" else f"{stage['stage']} "
            taken.setdefault(who, []).append(f"{prefix}{safe(shared['what'])}")
    return [f"taken from {who}: {', '.join(what)}" for who, what in taken.items()]


def _times(answer: Json) -> str:
    parts = []
    for stage in answer["stages"]:
        tries = len(stage["attempts"])
        again = f" ({count(tries, 'attempt')})" if tries > 1 else ""
        parts.append(f"{stage['stage']} {duration(stage['duration_s'])}{again}")
    return f"{', '.join(parts)}; in all {duration(answer['duration_s'])}"


def rounds_table(rows: list[Json], base: Json, base_decoding: str, width: int) -> Table:
    """Draw a line per round, the base first: decision, the figure that decides, its change, the other suites, the time.

    On a narrow terminal figures come without intervals, and what does not decide without its change: a round stays one line.
    """
    names, narrow = list(base), width < 110
    measured = _without_interval if narrow else _with_interval
    decider, canaries = names[0], names[1:]
    table = headed_table(
        Column("round", justify="right"),
        Column("decision", no_wrap=True),
        Column(f"▸ {safe(decider)} pass@1" + (f" ({base_decoding})" if base_decoding else ""), overflow="fold"),
        "over head",
        *(Column(cell(safe(name)), overflow="fold") for name in canaries),
        *(Column(name, justify="right") for name in ("trained on", "time")),
    )
    table.add_row(
        "base", cell("-", "dim"), measured(base[decider]), cell("-", "dim"),
        *(cell(rate(base[name]["pass@1"]) if base[name] else "-") for name in canaries), cell("-", "dim"), "",
    )  # fmt: skip
    for row in rows:
        mine = row["suites"][decider]
        table.add_row(
            str(row["round"]), _outcome(row), measured(mine), cell(signed(mine["gain"])),
            *(_canary(row["suites"][name], narrow) for name in canaries), number(row["num_used"]), duration(row["duration_s"]),
        )  # fmt: skip
    return table


def _outcome(row: Json) -> Text:
    """carried into 3"""
    return Text.assemble(_state(row["state"]), (fate(row["carried"]), "dim"))


def _without_interval(figures: Json | None) -> Text:
    return cell("-", "dim") if not figures or figures["pass@1"] is None else cell(rate(figures["pass@1"]))


def _canary(suite: Json, narrow: bool) -> Text:
    if suite["pass@1"] is None:
        return cell("-", "dim")
    text = cell(rate(suite["pass@1"]))
    return text.append(f" {signed(suite['gain'])}", "dim") if suite["gain"] is not None and not narrow else text
