"""How text from strangers, numbers and times are written, safely for a terminal and in few letters.

Text that did not come from our own source goes through `safe` or `one_line` before it is printed. JSON needs neither: it
escapes all that is not ASCII.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any


def safe(text: object, *, lines: bool = False) -> str:
    """`text` with every character that does not print as itself shown as its escape; with `lines`, newlines stay.

    That is control characters, bidirectional and other format characters, lone surrogates, odd spaces.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (lines and character == "\n") else ascii(character)[1:-1]
        for character in text
    )


def one_line(text: object, max_length: int | None = None) -> str:
    """`text` on one line: spaces for what does not print, one space for several, and "..." where it is too long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if max_length is None or len(line) <= max_length else line[: max_length - 3] + "..."


def rate(value: float | None) -> str:
    """0.121, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def number(value: int | None) -> str:
    """3,584, or a dash."""
    return "-" if value is None else f"{value:,}"


def signed(value: float | None) -> str:
    """+0.031; what rounds to zero has no minus."""
    return "-" if value is None else f"{value:+z.3f}"


def interval(ends: Sequence[float] | None, *, sign: bool = False) -> str:
    """[0.098 0.146], or nothing."""
    return "" if ends is None else f"[{' '.join(signed(end) if sign else rate(end) for end in ends)}]"


def duration(seconds: float | None) -> str:
    """3.2 s, 41 s, 12 min 5 s, 2 h 4 min, 3 d 7 h."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, name, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s"


def size(num_bytes: float | None) -> str:
    """81 GB, 2.1 GB, 11 MB: powers of ten, as disks are sold."""
    if num_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.1f} {unit}" if unit != "B" and num_bytes < 9.95 else f"{num_bytes:.0f} {unit}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """3,584 completions, 1 completion."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def round_name(number: int | None) -> str:
    """round 3, or the base."""
    return f"round {number}" if number else "the base"


def fate(carried: dict[str, Any] | None) -> str:
    """What became of a carried round, right behind "carried": " into 3", ", given up" or ", open"."""
    if carried is None:
        return ""
    return f" into {carried['into']}" if carried["into"] else ", given up" if carried["given_up"] else ", open"


def all_done(planned: int) -> str:
    """What a run says once all its rounds are done."""
    done = "the one round is done" if planned == 1 else f"all {planned} rounds are done"
    return f"{done}; raise rounds in loop.toml, or give --rounds N"


def clock(at: str | None = None) -> str:
    """HH:MM:SS where the user is, of an RFC 3339 time or of now."""
    then = moment(at) if at else datetime.now(UTC)
    return then.astimezone().strftime("%H:%M:%S")


def decoding_words(settings: dict[str, Any] | None) -> str:
    """The decoding settings that stand beside every figure."""
    if not settings:
        return ""
    if not settings.get("temperature"):
        return "greedy"
    parts = [f"T {settings['temperature']:g}"]
    parts += [f"top_k {settings['top_k']}"] if settings.get("top_k") else []
    parts += [f"top_p {settings['top_p']:g}"] if settings.get("top_p", 1.0) < 1.0 else []
    penalty = settings.get("repetition_penalty", 1.0)
    parts += [f"repetition_penalty {penalty:g}"] if penalty != 1.0 else []
    return ", ".join(parts)


def candidates_words(candidates: Iterable[dict[str, Any]]) -> str:
    """step 5 0.412 on 20; step 10 0.437 on 20, 0.425 on 40, chosen"""
    told = []
    for each in candidates:
        figures = [(value, rung["num_problems"]) for rung in each["rungs"] for key, value in rung.items() if "@" in key]
        parts = [f"{rate(value)} on {num_problems}" for value, num_problems in figures]
        parts += ["chosen"] if each["chosen"] else []
        told.append(f"step {each['step']} {', '.join(parts)}".strip())
    return "; ".join(told)


def nodes_words(nodes: Iterable[dict[str, Any]]) -> str:
    """node-a: 8 engines sampling, 9,120 tokens/s; node-b: lost: its node node-b was lost"""
    told = []
    for node in nodes:
        trains = node.get("doing") == "training"
        parts = [f"{count(node['engines'], 'engine')} {node['doing']}"] if node.get("engines") and not trains else []
        parts += ["training"] if trains else []
        samples = node.get("doing", "sampling") == "sampling"
        parts += [f"{node['tokens_per_s']:,.0f} tokens/s"] if node["tokens_per_s"] and samples else []
        parts += [f"lost: {node['lost']}"] if node["lost"] else []
        told.append(": ".join(filter(None, [safe(node["name"]), safe(", ".join(parts))])))
    return "; ".join(told)


def warn(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def shown(value: Any) -> str:
    """A value of a TOML file in one short line that is safe in a terminal."""
    text = repr(value) if isinstance(value, float) else safe(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def moment(at: str) -> datetime:
    """The moment that an RFC 3339 time names."""
    return datetime.fromisoformat(at.replace("Z", "+00:00"))


def seconds_between(start: str, end: str) -> float:
    """How long it took, never less than nothing (a clock may be set back)."""
    return max(0.0, (moment(end) - moment(start)).total_seconds())


def as_rfc3339(seconds: float) -> str:
    """A Unix time as the store would write it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
