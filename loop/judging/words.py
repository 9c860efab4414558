"""A comparison in the few lines that a person reads. Text from files goes through `one_line` or `safe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loop.judging.judged import AtK, Judged, Part, Side
from loop.words import count, decoding_words, interval, one_line, rate, safe, signed

FAR = 64
"""The k up to which pass@k should be looked at before a gain in pass@1 is believed to be one of the model."""


def lines_of(judged: Judged) -> Iterator[str]:
    """All that is said of one suite, a line each."""
    name = "pass@1" if judged.is_pass_rate else "mean"
    yield f"{safe(judged.suite)} ({safe(judged.metric)}): {count(judged.num_problems, 'problem')}"
    for letter, side in (("A", judged.a), ("B", judged.b)):
        yield _line(letter, f"{name} {rate(side.mean)} {interval(side.mean_interval)}   {_about(side)}")
    verdict = {"the same": "all problems came out the same"}.get(judged.verdict, judged.verdict)
    gain = f"{signed(judged.gain)} {interval(judged.interval, sign=True)}"
    yield _line("B - A", f"{gain} at {100 * judged.confidence:.4g}%, paired by problem: {verdict}")
    if judged.stopped_after is not None:
        yield _line(
            "stopped", f"after {judged.stopped_after:.0%} of the problems; the interval holds wherever it stops"
        )
    if judged.detectable_gain is not None:
        seen = f"a difference of {100 * judged.detectable_gain:.1f}pp could have been seen ({judged.power:.0%} of the time)"
        yield _line("power", seen)
    yield _line(
        "ties",
        f"{judged.num_same:,} of {count(judged.num_problems, 'problem')} came out the same; "
        f"B did better on {judged.num_b_better:,}, A on {judged.num_a_better:,}",
    )
    yield from _table("pass@k", [(str(at.k), at) for at in judged.at_k if len(judged.at_k) > 1])
    if judged.is_pass_rate and (said := _of_crossing(judged)):
        yield _line("", said)
    yield from _table(
        "by difficulty", [(f"{one_line(part.name, 20)} ({part.num_problems:,})", part) for part in judged.by_difficulty]
    )
    yield from _table(
        "by month", [(f"{one_line(part.name, 20)} ({part.num_problems:,})", part) for part in judged.by_month]
    )
    for note in judged.notes:
        yield _line("note", safe(note))


def correction_words(num_comparisons: int) -> str:
    """What the number of suites did to the intervals."""
    if num_comparisons == 1:
        return "one suite, no correction; intervals are over problems"
    level = 100 * (1 - 0.05 / num_comparisons)
    return (
        f"Bonferroni over {num_comparisons} suites: each interval of B - A is at {level:.4g}%, so that with 95% confidence all "
        "hold together; intervals are over problems"
    )


def _line(label: str, text: str) -> str:
    return f"  {label:<8}{text}".rstrip()


def _about(side: Side) -> str:
    fewest, most = side.num_samples
    samples = count(most, "sample") if fewest == most else f"{fewest:,} to {most:,} samples"
    known = decoding_words(side.decoding) if "temperature" in side.decoding and _plain(side) else ""
    parts = [
        one_line(side.model, 60) if side.model else "",
        f"{samples} each",
        known,
        f"{one_line(side.harness, 20)}, {safe(side.file)}",
    ]
    return ", ".join(part for part in parts if part)


def _plain(side: Side) -> bool:
    """Whether the settings are numbers that `decoding_words` can write."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return all(isinstance(side.decoding.get(name, 0), int | float) for name in names)


def _table(title: str, rows: Sequence[tuple[str, AtK | Part]]) -> Iterator[str]:
    if not rows:
        return
    width = max(len(title), *(len(label) for label, _ in rows))
    yield f"  {title:<{width}}  {'A':>6} {'B':>6}  B - A"
    for label, row in rows:
        yield f"  {label:<{width}}  {rate(row.a):>6} {rate(row.b):>6}  {signed(row.gain)} {interval(row.interval, sign=True)}"


def _of_crossing(judged: Judged) -> str:
    """Whether the curves of pass@k cross, as far as they go."""
    largest = judged.at_k[-1].k
    if judged.crossing:
        first, other = judged.crossing.leads_at_1, "A" if judged.crossing.leads_at_1 == "B" else "B"
        sure = "" if judged.crossing.told else ", but the intervals do not exclude chance"
        return (
            f"the curves cross: {first} leads at pass@1, {other} from pass@{judged.crossing.other_leads_from} on{sure}"
        )
    far = "" if largest >= FAR else f"; whether they do by pass@{FAR} takes {FAR} samples of each problem"
    return f"the curves do not cross up to pass@{largest}{far}" if largest > 1 else ""
