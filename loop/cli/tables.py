"""Rounds as tables that a person understands at a glance, drawn by rich from the values of `loop.reading.rounds`.

Every text that is not our own goes through `safe`; nothing is read as rich's markup.
"""

from __future__ import annotations

import sys
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loop.cli.paper import Paper
from loop.words import count, decoding_words, duration, interval, one_line, rate, round_name, safe, signed
from store.records import Json

WHO = ("base", "head", "candidate")
STATES = {"kept": "kept", "rolled_back": "rolled back", "failed": "failed"}
STYLES = {"kept": "green", "rolled_back": "yellow", "failed": "red", "pass": "green", "fail": "yellow"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """End as every other command does when its reader has gone."""
        raise BrokenPipeError


def console(file: IO[str] | None = None) -> Console:
    """A console that prints text as it is, and is wide enough in a pipe that tables keep their lines."""
    file = file or sys.stdout
    return _Console(file=file, width=Paper(file).width, highlight=False, markup=False, emoji=False)


def show(out: Console, *parts: RenderableType) -> None:
    """Print; in a pipe without the spaces at the ends of lines."""
    if out.is_terminal:
        out.print(*parts)
        return
    with out.capture() as caught:
        out.print(*parts)
    out.file.write("".join(f"{line.rstrip(' ')}\n" for line in caught.get().split("\n")[:-1]))


def cell(text: str, style: str = "") -> Text:
    """Text for a table, in which rich finds no markup."""
    return Text(text, style=style)


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
    """Base, head and candidate on every suite with a line per pass@k and per difficulty.

    On a narrow terminal each interval stands below its figure.
    """
    gap, figure, last = ("\n", 13, 16) if width < 110 else (" ", 19, 23)
    lines = {name: _lines_of(suite) for name, suite in answer["suites"].items()}
    label_width = max(len(label) for of_suite in lines.values() for label, _, _ in of_suite)
    parts: list[RenderableType] = []
    for name, suite in answer["suites"].items():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", width=label_width)
        for who in ("base", f"head ({_begun_from(answer)})", "candidate"):
            table.add_column(who, min_width=figure)
        table.add_column("candidate - head", min_width=last)
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
    """Locks and forks: what base, head and candidate would write at the same positions, and a sentence about it."""
    from policies.diagnosis import in_words, summary_of

    diagnosis = answer["diagnosis"]
    summary = summary_of({key: value for key, value in diagnosis.items() if key != "probe"})
    narrow = width < 110
    head, difference = ("head", "change") if narrow else (f"head ({_begun_from(answer)})", "candidate - head")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "", "base", head, "candidate", difference):
        table.add_column(name, no_wrap=True)
    for part, name in _PARTS:
        values = diagnosis[part]
        for number, (key, label) in enumerate(_FIGURES[part] if values else ()):
            where = f"{name} ({values['num_positions']:,})" if number == 0 else ""
            moved = values["change"][key]
            table.add_row(where, label, *(f"{values[who][key]:.4f}" for who in WHO), _moved(moved, narrow))
    values, locks = diagnosis["everywhere"], diagnosis["locks"]
    changed = f"; at {locks['top_changed']:.1%} of the locks another token leads" if locks else ""
    distance = f"candidate from head: KL at least {values['kl_to_head']:.4f} nats a token, from base {values['kl_to_base']:.4f}"
    title = Text.assemble(
        ("  locks and forks", ""), (f" (on {count(diagnosis['num_sequences'], 'text')} by the base)", "dim")
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
    """(label, key, difficulty) of each line of a suite's table: every pass@k, then pass@1 by difficulty."""
    known: Json = next((suite[who] for who in WHO if suite[who]), {})
    keys = [key for key in known if key.startswith("pass@") and key.removeprefix("pass@").isdigit()]
    lines: list[tuple[str, str, str | None]] = [
        (key, key, None) for key in sorted(keys or ["pass@1"], key=lambda key: int(key.removeprefix("pass@")))
    ]
    for level, group in known.get("by_difficulty", {}).items():
        lines.append((f"  {one_line(level, 20)} ({group['num_problems']})", "pass@1", level))
    return lines


def _part_of(figures: Json | None, level: str | None) -> Json | None:
    """The figures, or those of one difficulty."""
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


def state_words(state: str) -> Text:
    """kept, rolled back, failed, or the stage of an open round."""
    return cell(STATES.get(state, safe(state)), STYLES.get(state, ""))


def round_report(answer: Json, width: int) -> Group:
    """All of a round but its settings: figures, decision and reasons, what training saw, times."""
    title = Text.assemble((f"round {answer['round']}: ", "bold"), state_words(answer["state"]))
    parts: list[RenderableType] = [title]
    if answer["error"] and answer["state"] == "failed":
        parts.append(cell(f"  {answer['stage']}: {safe(answer['error'])}", "red"))
    if any(suite[who] for suite in answer["suites"].values() for who in ("head", "candidate")):
        parts.append(Padding(figures_tables(answer, width), (1, 0, 0, 2), expand=False))
    if answer["diagnosis"]:
        parts.append(Padding(diagnosis_table(answer, width), (0, 0, 1, 2), expand=False))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if answer["decision"]:
        facts.add_row("decision", _verdict(answer))
        for gate in answer["gates"]:
            kind = (f"{safe(gate['type'])}: ", STYLES.get(gate["verdict"], ""))
            facts.add_row("", Text.assemble(kind, safe(gate["reason"])))
    if answer["adapted"]:
        facts.add_row("adapted", cell(safe(answer["adapted"])))
    if answer["training"]["num_used"] or answer["training"]["num_left_out"]:
        facts.add_row("training", cell(_training_words(answer["training"])))
    for line in _shared_words(answer):
        facts.add_row("shared", cell(line))
    if answer["stages"]:
        facts.add_row("times", cell(_times(answer)))
    parts.append(Padding(facts, (0, 0, 1, 2)))
    return Group(*parts)


def _verdict(answer: Json) -> Text:
    decision = answer["decision"]
    if decision["verdict"] == "keep":
        return Text.assemble(("keep", "green"), f": the head is round {answer['round']} now")
    word = "roll back" if decision["conclusive"] else "inconclusive"
    return Text.assemble((word, "yellow"), f": the head stays {round_name(answer['head_round'])}")


def _training_words(training: Json) -> str:
    total = training["num_used"] + training["num_left_out"]
    words = f"saw {training['num_used'] - training['num_held_out']:,} of {count(total, 'completion')}"
    if training["num_held_out"]:
        words += f", {training['num_held_out']:,} held out"
    if training["num_earlier"]:
        words += f", {training['num_earlier']:,} of them from earlier rounds"
    if training["left_out"]:
        reasons = ", ".join(f"{number:,} {safe(reason)}" for reason, number in training["left_out"].items())
        words += f" (left out: {reasons})"
    if training["mean_loss"] is not None:  # the mean, because the loss of a single step says little
        words += f"; mean loss {training['mean_loss']:.3f} over {count(training['num_steps'], 'step')}"
    if training["held_out_loss"] is not None:
        words += f"; then {training['train_loss']:.3f}, and {training['held_out_loss']:.3f} on those held out"
    return words


def _shared_words(answer: Json) -> list[str]:
    """What was taken from other runs of an experiment, a line for each of them."""
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


def rounds_table(rows: list[Json], base: Json, base_decoding: str) -> Table:
    """A line per round, the base first: its decision, the figure that decides, its change, the other suites, the time."""
    names = list(base)
    decider, canaries = names[0], names[1:]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("round", justify="right")
    table.add_column("decision", no_wrap=True)
    table.add_column(f"▸ {safe(decider)} pass@1" + (f" ({base_decoding})" if base_decoding else ""), overflow="fold")
    table.add_column("over head")
    for name in canaries:
        table.add_column(cell(safe(name)), overflow="fold")
    table.add_column("trained on", justify="right")
    table.add_column("time", justify="right")
    table.add_row(
        "base", cell("-", "dim"), _with_interval(base[decider]), cell("-", "dim"),
        *(cell(rate(base[name]["pass@1"]) if base[name] else "-") for name in canaries), cell("-", "dim"), "",
    )  # fmt: skip
    for row in rows:
        mine = row["suites"][decider]
        used = f"{row['num_used']:,}" if row["num_used"] is not None else "-"
        table.add_row(
            str(row["round"]), state_words(row["state"]), _with_interval(mine), cell(signed(mine["gain"])),
            *(_canary(row["suites"][name]) for name in canaries), used, duration(row["duration_s"]),
        )  # fmt: skip
    return table


def _canary(suite: Json) -> Text:
    if suite["pass@1"] is None:
        return cell("-", "dim")
    text = cell(rate(suite["pass@1"]))
    return text.append(f" {signed(suite['gain'])}", "dim") if suite["gain"] is not None else text
