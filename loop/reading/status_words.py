"""How a run stands, in words: what `loopctl status`, `watch` and the page say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loop.words import (
    all_done,
    count,
    decoding_words,
    duration,
    interval,
    moment,
    rate,
    round_name,
    safe,
    seconds_between,
    signed,
    size,
)

if TYPE_CHECKING:
    from store.records import Json

BARS = "▁▂▃▄▅▆▇█"
# The line "next": when a process goes on and with how much, and what to do where there is none.
AT_ONCE, CONTINUOUS = "at once", "continuous"
EVERY = "{} after the start of this round"
CRON = "when schedule.cron says so ({})"
AT = "{:%Y-%m-%d %H:%M} UTC, in {}"
GOES_ON = {
    "user": "when you say so: `loopctl resume`",
    "failure": "when you say so: `loopctl resume` tries it again",
    "schedule": "by itself",
    "disk": "by itself when there is room; `loopctl gc --dry-run` shows what may go",
}
NO_END, TO_GO, LAST_ROUND = "no end set", "{} to go", "nothing after this round"
ENDING = "nothing: it is ending"
HELD = "`loopctl resume`, then `loopctl start`"
OPEN_ROUND = "`loopctl start` or `loopctl run` goes on with round {}, {}"
START = "`loopctl start` or `loopctl run` ({})"
OVER = "nothing while that holds; change [schedule] in loop.toml, then `loopctl start`"


def labelled(answer: Json, every: str | None = None) -> list[tuple[str, str]]:
    """What is said below the title, by label; a text may be empty. None of it before the first run."""
    if answer["head"] is None:
        return []
    return [
        ("head", _head(answer)),
        ("last", _last(answer)),
        ("trend", _trend(answer)),
        ("corpus", _corpus(answer)),
        ("error", _error(answer)),
        ("needs you", _needs_you(answer)),
        ("next", _next(answer, every)),
    ]


def doing(answer: Json) -> list[str]:
    """Why it is in its state, and the round that is open with how far it is."""
    return [safe(part) for part in (answer["reason"], _now(answer["round"])) if part]


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
    words = round_name(head["round"])
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
    points = [point["pass@1"] for point in answer["trend"]]
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
    """The last failure while it matters: its stage is still to be done, and the title does not say it anyway."""
    error = answer["last_error"]
    if not error or not error["current"] or error["error"] in (answer["reason"] or ""):
        return ""
    where = f"round {error['round']}, {error['stage']}, attempt {error['attempt']}"
    return f"{where}   {safe(error['error'])}; {safe(error['next_step'])}"


def _needs_you(answer: Json) -> str:
    """What the title does not say."""
    reason = answer["reason"] or ""
    return safe("; ".join(need for need in answer["needs_you"] if not reason or reason not in need))


def _next(answer: Json, every: str | None) -> str:
    if answer["pid"] is None:
        return _next_start(answer)
    words = _goes_on(answer, every)
    if answer["uptime_s"] is None:
        return words
    return f"{words}        up {duration(answer['uptime_s'])}, heartbeat {duration(answer['heartbeat_age_s'])} ago"


def _goes_on(answer: Json, every: str | None) -> str:
    """When a living process goes on, and with how many rounds."""
    if answer["next_due"]:
        left_s = seconds_between(answer["as_of"], answer["next_due"])
        when = AT.format(moment(answer["next_due"]), duration(left_s))
    elif answer["paused_by"]:
        return GOES_ON[answer["paused_by"]]
    elif answer["state"] != "running":
        return ENDING
    else:
        when = _rhythm(answer, every)
    left = _left(answer)
    if answer["round"] and left == 1:
        return LAST_ROUND
    return f"{when} · {NO_END if left is None else TO_GO.format(count(left, 'round'))}"


def _rhythm(answer: Json, every: str | None) -> str:
    """When the round after this one begins."""
    if every in (None, CONTINUOUS):
        return f"{AT_ONCE} ({CONTINUOUS})"
    if not answer["round"]:
        return AT_ONCE
    return (CRON if " " in every.strip() else EVERY).format(safe(every)) if every else AT_ONCE


def _left(answer: Json) -> int | None:
    """How many rounds are still to be decided; None: without end."""
    rounds = answer["rounds"]
    return max(0, rounds["planned"] - rounds["kept"] - rounds["rolled_back"]) if rounds["planned"] else None


def _next_start(answer: Json) -> str:
    """What to do where no process runs."""
    if answer["paused_by"]:
        return HELD
    if answer["round"]:
        return OPEN_ROUND.format(answer["round"]["number"], answer["round"]["stage"])
    left = _left(answer)
    if left == 0:
        return all_done(answer["rounds"]["planned"])
    if answer["state"] == "idle" and answer["reason"]:
        return OVER
    return START.format(NO_END if left is None else TO_GO.format(count(left, "round")))
