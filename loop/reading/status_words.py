"""What `loopctl status`, `watch` and the page say of a run: the words for each line, from a `Standing`.

Whatever status is to say more has its value in standing.py, and a label and a function here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loop import words

if TYPE_CHECKING:
    from loop.reading.standing import Head, LastDecision, OpenRound, Standing, Tip

MOST_NODES = 8  # that are named
BARS = "▁▂▃▄▅▆▇█"
AFTER_A_PAUSE = {  # by who paused it
    "user": "when you say so: `loopctl resume`",
    "failure": "when you say so: `loopctl resume` tries it again",
    "decision": "when you say so: `loopctl resume`",
    "schedule": "by itself",
    "disk": "by itself when there is room; `loopctl gc --dry-run` shows what can be deleted",
}


def labelled(standing: Standing, every: str | None = None) -> list[tuple[str, str]]:
    """The lines below the title, by label; a text may be empty. None of them before the first run.

    `every`: the schedule, as loop.toml has it.
    """
    if standing.head is None:
        return []
    return [
        ("head", _head(standing.head)),
        ("shown", _shown(standing)),
        ("tip", _tip(standing.tip)),
        ("nodes", _nodes(standing)),
        ("last", _last(standing.last_decision)),
        ("trend", _trend(standing)),
        ("corpus", _corpus(standing)),
        ("error", _error(standing)),
        ("needs you", _needs_you(standing)),
        ("next", _next(standing, every)),
    ]


def doing(standing: Standing) -> list[str]:
    """Why the run is in its state, and how far the open round is."""
    return [words.safe(part) for part in (standing.reason, _now(standing.round)) if part]


def _now(round: OpenRound | None) -> str:
    """round 14 · training 62% · 3 min left"""
    if not round:
        return ""
    text = f"round {round.number} · {round.part or round.stage}"
    if round.done is not None and round.total:
        text += f" {round.done / round.total:.0%}"
    text += f" · attempt {round.attempt}" if round.attempt > 1 else ""
    return text if round.eta_s is None else f"{text} · {words.duration(round.eta_s)} left"


def _nodes(standing: Standing) -> str:
    """node-a: 8 engines sampling, 9,120 tokens/s; node-b: lost: its node node-b was lost. Of many, the lost ones come first."""
    nodes = sorted(standing.nodes or [], key=lambda node: not node["lost"])
    more = [f"and {words.count(len(nodes) - MOST_NODES, 'more node')}"] if len(nodes) > MOST_NODES else []
    return "; ".join([words.nodes_words(nodes[:MOST_NODES]), *more])


def _head(head: Head) -> str:
    """round 12   pass@1 0.121 [0.098 0.146]   +0.031 over base [+0.012 +0.051]   first-steps, T 0.7"""
    text = words.round_name(head.round)
    if head.pass_at_1 is None:
        return f"{text}   not measured yet"
    text += f"   pass@1 {words.rate(head.pass_at_1)} {words.interval(head.pass_at_1_interval)}"
    if over := head.gain_over_base:
        text += f"   {words.signed(over.gain)} over base {words.interval(over.interval, sign=True)}"
    return f"{text}   {words.safe(head.suite)}, {words.safe(words.decoding_words(head.decoding))}"


def _shown(standing: Standing) -> str:
    """by round 12: +0.030 over round 9, at least +0.005, on 100 problems x 4 samples (select); wrong with a chance of 0.18%

    Empty where the line of the last decision says the same, and for a head that no look for a gain has made.
    """
    head, last = standing.head, standing.last_decision
    if head is None or (shown := head.shown) is None:
        return ""
    if last is not None and last.round == head.round and shown.in_round:
        return ""
    by = f"by round {head.round}" if shown.in_round else f"by a look at it after round {head.round}"
    asked = f"{words.count(shown.num_problems, 'problem')} x {words.count(shown.num_samples, 'sample')}"
    return (
        f"{by}: {words.signed(shown.gain)} over {words.round_name(shown.over_round)}, at least {words.signed(shown.lower)}, on "
        f"{asked} ({words.safe(shown.split)}); wrong with a chance of {shown.level:.2%}"
    )


def _tip(tip: Tip | None) -> str:
    """round 14   2 rounds carried since the head: +0.012 over it [-0.004 +0.028], not shown yet"""
    if tip is None or not tip.depth:
        return ""
    text = f"{words.round_name(tip.round)}   {words.count(tip.depth, 'round')} carried since the head"
    if over := tip.gain_over_head:
        text += f": {words.signed(over.gain)} over it {words.interval(over.interval, sign=True)}"
    return f"{text}, not shown yet"


def _last(last: LastDecision | None) -> str:
    if not last:
        return ""
    text = {"keep": "kept", "carry": "carried"}.get(last.verdict, "rolled back" if last.conclusive else "inconclusive")
    return f"round {last.round}   {text}: {words.safe('; '.join(last.reasons))}"


def _trend(standing: Standing) -> str:
    rounds = standing.rounds
    carried = f"{rounds.carried} carried · " if rounds.carried else ""
    counts = f"{rounds.kept} kept · {carried}{rounds.rolled_back} rolled back · {rounds.failed} failed"
    bars = sparkline([point.pass_at_1 for point in standing.trend])
    return f"{bars}   {counts}" if bars else counts


def sparkline(points: Sequence[float]) -> str:
    """A bar per point, from the lowest to the highest; all alike if they are equal."""
    low, high = min(points, default=0.0), max(points, default=0.0)
    if high == low:
        return BARS[3] * len(points)
    return "".join(BARS[round((point - low) / (high - low) * (len(BARS) - 1))] for point in points)


def _corpus(standing: Standing) -> str:
    corpus, disk = standing.corpus, standing.disk
    room = f"disk {words.size(disk.free_bytes)} free, checkpoints {words.size(disk.checkpoints_bytes)}"
    return f"{words.count(corpus.completions, 'completion')} · {words.size(corpus.bytes)}        {room}"


def _error(standing: Standing) -> str:
    """The last failure while it matters: its stage is still to be done, and the title does not say it anyway."""
    error = standing.last_error
    if not error or not error.current or error.error in (standing.reason or ""):
        return ""
    where = f"round {error.round}, {error.stage}, attempt {error.attempt}"
    return f"{where}   {words.safe(error.error)}; {words.safe(error.next_step)}"


def _needs_you(standing: Standing) -> str:
    """What the title does not say."""
    reason = standing.reason or ""
    return words.safe("; ".join(need for need in standing.needs_you if not reason or reason not in need))


def _next(standing: Standing, every: str | None) -> str:
    if standing.pid is None:
        return _without_a_process(standing)
    text = _with_a_process(standing, every)
    if standing.uptime_s is None:
        return text
    return f"{text}        up {words.duration(standing.uptime_s)}, heartbeat {words.duration(standing.heartbeat_age_s)} ago"


def _with_a_process(standing: Standing, every: str | None) -> str:
    """When a living process continues, and with how many rounds."""
    if standing.next_due:
        left_s = words.seconds_between(standing.as_of, standing.next_due)
        when = f"{words.moment(standing.next_due):%Y-%m-%d %H:%M} UTC, in {words.duration(left_s)}"
    elif standing.paused_by:
        return AFTER_A_PAUSE[standing.paused_by]
    elif standing.state != "running":
        return "nothing: it is ending"
    else:
        when = _rhythm(standing, every)
    if standing.round and standing.rounds.left == 1:
        return "nothing after this round"
    return f"{when} · {_to_go(standing)}"


def _to_go(standing: Standing) -> str:
    left = standing.rounds.left
    return "no end set" if left is None else f"{words.count(left, 'round')} to go"


def _rhythm(standing: Standing, every: str | None) -> str:
    """When the round after this one begins."""
    if every in (None, "continuous"):
        return "at once (continuous)"
    if not standing.round or not every:
        return "at once"
    if " " in every.strip():
        return f"when schedule.cron says so ({words.safe(every)})"
    return f"{words.safe(every)} after the start of this round"


def _without_a_process(standing: Standing) -> str:
    """What to do where no process runs."""
    if standing.paused_by:
        return "`loopctl resume`, then `loopctl start`"
    if standing.round:
        return f"`loopctl start` or `loopctl run` continues round {standing.round.number}, {standing.round.stage}"
    rounds = standing.rounds
    if rounds.planned and rounds.left == 0:
        return words.all_done(rounds.planned)
    if standing.state == "idle" and standing.reason:
        return "nothing until you change [schedule] in loop.toml; then `loopctl start`"
    return f"`loopctl start` or `loopctl run` ({_to_go(standing)})"
