"""`loopctl status`: what is happening, what was decided and why, and whether anything needs you."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from loop.cli.call import print_json, shared_options, the_call
from loop.cli.clock import moment, seconds_between
from loop.cli.text import all_done, clock, count, decoding_words, duration, interval, rate, safe, signed, size, warn
from store.records import Json

if TYPE_CHECKING:
    from rich.text import Text

RUNNING, NOT_RUNNING, UNKNOWN, FAILED = 0, 3, 4, 1
BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 40
STYLES = {"running": "green", "paused": "yellow", "failed": "red"}


@click.command("status")
@click.option("--check", is_flag=True, help="For monitoring: also fail when failed, stalled or short of disk.")
@shared_options
@click.pass_context
def status_command(context: click.Context, check: bool) -> None:
    """What is happening, what was decided and why, and whether anything needs you.

    Exit code: 0 running or paused, 3 not running, 4 unknown; with --check, 1 for what needs you.
    """
    from loop.cli.view import status, troubles
    from store.errors import StoreError, StoreTooNew

    place = the_call().place()
    try:
        answer = status(place.run_dir, place.name, place.rounds)
    except StoreTooNew:
        raise
    except StoreError as error:
        warn(safe(error))
        context.exit(UNKNOWN)
    if the_call().json:
        print_json(answer)
    else:
        _print(answer)
    found = troubles(answer) if check else []
    for trouble in found:
        warn(safe(trouble))
    context.exit(FAILED if found else RUNNING if answer["state"] in ("running", "paused") else NOT_RUNNING)


def _print(answer: Json) -> None:
    from rich.table import Table
    from rich.text import Text

    from loop.cli.tables import console, show

    out = console()
    out.print(_title(answer), soft_wrap=True)
    if answer["head"] is None:
        return
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for label, words in (
        ("head", _head(answer)),
        ("last", _last(answer)),
        ("trend", _trend(answer)),
        ("corpus", _corpus(answer)),
        ("error", _error(answer)),
        ("next", _next(answer)),
    ):
        if words:
            lines.add_row(f"  {label}", Text(words))
    show(out, lines)


def _title(answer: Json) -> Text:
    from rich.text import Text

    title = Text("● " if answer["pid"] else "○ ", style=STYLES.get(answer["state"], ""))
    title.append(safe(answer["run"] or "no run"), "bold default").append("   ")
    title.append(answer["state"], STYLES.get(answer["state"], "default"))
    for part in (answer["reason"], _now(answer["round"])):
        if part:
            title.append(f"   {safe(part)}", "default")
    return title.append(f"   as of {clock(answer['as_of'])}", "dim")


def _now(round: Json | None) -> str:
    """round 14 · training 62% · 3 min left"""
    if not round:
        return ""
    words = f"round {round['number']} · {round['part'] or round['stage']}"
    if round["done"] is not None and round["total"]:
        words += f" {round['done'] / round['total']:.0%}"
    if round["attempt"] > 1:
        words += f" · attempt {round['attempt']}"
    if round["eta_s"] is not None:
        words += f" · {duration(round['eta_s'])} left"
    return words


def _head(answer: Json) -> str:
    head = answer["head"]
    words = f"round {head['round']}" if head["round"] else "the base"
    if head["pass@1"] is None:
        return f"{words}   not measured yet"
    words += f"   pass@1 {rate(head['pass@1'])} {interval(head['pass@1_interval'])}"
    if over := head["gain_over_base"]:
        words += f"   {signed(over['gain'])} over base {interval(over['interval'], sign=True)}"
    return f"{words}   {safe(head['suite'])}, {safe(decoding_words(head['decoding']))}"


def _last(answer: Json) -> str:
    last = answer["last_decision"]
    if not last:
        return ""
    words = "kept" if last["verdict"] == "keep" else "rolled back" if last["conclusive"] else "inconclusive"
    return f"round {last['round']}   {words}: {safe('; '.join(last['reasons']))}"


def _trend(answer: Json) -> str:
    rounds = answer["rounds"]
    counts = f"{rounds['kept']} kept · {rounds['rolled_back']} rolled back · {rounds['failed']} failed"
    points = [point["pass@1"] for point in answer["trend"]][-MOST_BARS:]
    return f"{sparkline(points)}   {counts}" if points else counts


def sparkline(points: list[float]) -> str:
    """A bar per point, from the lowest to the highest; all alike if they are equal."""
    low, high = min(points), max(points)
    if high == low:
        return BARS[3] * len(points)
    return "".join(BARS[round((point - low) / (high - low) * (len(BARS) - 1))] for point in points)


def _corpus(answer: Json) -> str:
    corpus, disk = answer["corpus"], answer["disk"]
    room = f"disk {size(disk['free_bytes'])} free, checkpoints {size(disk['checkpoints_bytes'])}"
    return f"{count(corpus['completions'], 'completion')} · {size(corpus['bytes'])}        {room}"


def _error(answer: Json) -> str:
    """The last error while it still matters: nothing was decided since."""
    error, last = answer["last_error"], answer["last_decision"]
    if not error or (last and last["decided_at"] > error["at"]):
        return ""
    where = f"round {error['round']}, {error['stage']}, attempt {error['attempt']}"
    return f"{where}   {safe(error['error'])}; {safe(error['next_step'])}"


def _next(answer: Json) -> str:
    rounds = answer["rounds"]
    left = rounds["planned"] - rounds["kept"] - rounds["rolled_back"]
    if answer["pid"]:
        if answer["next_due"]:
            left_s = seconds_between(answer["as_of"], answer["next_due"])
            words = f"{moment(answer['next_due']):%Y-%m-%d %H:%M:%S} UTC, in {duration(left_s)}"
        elif answer["state"] == "paused":
            words = "when that is over"
        elif not rounds["planned"]:
            words = "at once, without end"
        else:
            words = f"{count(left, 'round')} to go" if left > 0 else "nothing after this round"
        up = f"up {duration(answer['uptime_s'])}, heartbeat {duration(answer['heartbeat_age_s'])} ago"
        return f"{words}        {up}" if answer["uptime_s"] is not None else words
    if answer["hold"]:
        return "`loopctl resume`, then `loopctl start`"
    if answer["round"]:
        return f"`loopctl start` or `loopctl run` goes on with round {answer['round']['number']}, {answer['round']['stage']}"
    if left > 0 or not rounds["planned"]:
        return f"`loopctl start` or `loopctl run` ({count(left, 'round')} to go)" if left > 0 else "`loopctl start`"
    return all_done(rounds["planned"])
