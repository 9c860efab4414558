"""Collecting, the end of sampling: leaves out empty completions, stubs and the shortest, and applies the data policy to the rest.

Pure functions. The policies are in `policies.data`; `loop.run.choosing` reads the store for both. Whoever changes what is left out
raises "version" in `choosing.earlier_of`, or earlier rounds keep what the old rule gave.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from loop.config.settings import Collect
from loop.prompts.templates import answer
from loop.stages.packed import PARTS, Described, Packed, pack, part_of, place, placed
from policies.data import CompletionFacts, DataPolicy, Usable, repeats, why_not
from store.records import CompletionText, Selection


class Collected(NamedTuple):
    """A completion of a round; `why`: the reason why no training may see it, None where it may. See `Described` for the rest."""

    candidate: CompletionFacts
    why: str | None
    arrival: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Chosen:
    """What training sees. `selections` gives all of the round's own completions, and the earlier ones that are used.

    They come in order of position, anew with each call; they need not be in memory.
    """

    selections: Callable[[], Iterator[Selection]]
    num_used: int
    num_earlier: int
    earlier_left_out: dict[str, int]  # reason -> completions; one by one they would outgrow the corpus


def collect(
    completions: Iterable[CompletionText],
    openings: Mapping[str, str],
    settings: Collect,
    round: int,
    from_base: bool = False,
) -> list[Collected]:
    """All of one round's completions, in an order that does not depend on who arrived first.

    `openings`: prompt id -> the text that opened its answers; a line that it holds counts as a line of the answer.
    """
    collected = [
        Collected(
            CompletionFacts(c.id, round, sys.intern(c.prompt_id), c.sample_index, c.num_tokens, from_base),
            _why_never(c, openings, settings),
            c.arrival,
            hashlib.sha256(c.text.encode("utf-8", "surrogatepass")).digest()[:16],
        )
        for c in completions
    ]
    collected.sort(key=lambda each: place(each.candidate))
    usable = sorted((each.candidate.num_tokens, each.candidate.id) for each in collected if each.why is None)
    shortest = {id for _, id in usable[: int(settings.drop_shortest * len(usable))]}
    why = f"among the shortest {settings.drop_shortest:.0%}"
    return [
        each._replace(why=f"{why} ({each.candidate.num_tokens} tokens)") if each.candidate.id in shortest else each
        for each in collected
    ]


class PackedPart(NamedTuple):
    """A part of a round (see `packed`): its usable completions packed, and reason -> how many are left out."""

    entries: bytes
    left_out: dict[str, int]


def parts_of(collected: Iterable[Collected]) -> list[PackedPart]:
    """What later rounds need to know of a round that is `collect`ed, in PARTS parts."""
    entries, left_out = [bytearray() for _ in range(PARTS)], [Counter[str]() for _ in range(PARTS)]
    for candidate, why, arrival, text in collected:
        part = part_of(candidate.prompt_id)
        if why is None:
            entries[part] += pack(candidate, arrival, text)
        else:
            left_out[part][_in_short(why)] += 1
    return [PackedPart(bytes(packed), dict(counted)) for packed, counted in zip(entries, left_out, strict=True)]


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier round: its usable completions, and reason -> how many of it no training ever sees."""

    usable: Packed
    left_out: Mapping[str, int]

    @property
    def num_completions(self) -> int:
        """How many it has, the left-out ones included."""
        return len(self.usable) + sum(self.left_out.values())


def choose(
    policy: DataPolicy,
    own: Sequence[Collected],
    earlier: Sequence[Earlier],
    verdicts_of: Callable[[list[str]], Mapping[str, str]],
    texts_of: Callable[[list[int]], Mapping[int, str]],
    run_id: str,
    round: int,
    seed: int,
) -> Chosen:
    """Apply a data policy to the round's `own` completions and to those of the earlier rounds that it wants.

    `verdicts_of` is asked by id how completions did on their prompts' tests, and `texts_of` by arrival for one prompt's
    texts at a time. Memory is that of the round's own, of one part of the earlier ones, and of what a draw chooses.
    """
    left_out = {each.candidate.id: each.why for each in own if each.why is not None}
    counted = sum((Counter(past.left_out) for past in earlier), Counter[str]())
    parts = [part.entries for part in parts_of(own)]
    from_base = any(each.candidate.from_base for each in own)
    fresh = Packed(round, from_base, len(own) - len(left_out), parts.__getitem__)
    rounds = [*(past.usable for past in earlier), fresh]

    def leave_out(packed: Packed, part: int, at: int, id: str, why: str) -> None:
        packed.drop(part, at)
        if packed is fresh:
            left_out[id] = why
        else:
            counted[_in_short(why)] += 1

    if policy.passed_tests or policy.min_tokens or policy.max_tokens is not None:
        for packed in rounds:
            for part in range(PARTS):
                verdicts = verdicts_of(list(packed.ids_of(part))) if policy.passed_tests else {}
                for at, (candidate, _, _) in packed.described(part):
                    if why := why_not(policy, candidate, verdicts.get(candidate.id)):
                        leave_out(packed, part, at, candidate.id, why)
    if policy.dedup != "none":
        for part in range(PARTS):
            for group in _by_prompt(rounds, part):
                for packed, at, id, original in _repeats(policy, group, texts_of):
                    why = f"repeats another completion of its prompt (round {original.round}, sample {original.sample_index})"
                    leave_out(packed, part, at, id, why)
    usable = [Usable(packed.round, packed.from_base, packed) for packed in rounds]
    for packed, drawn in zip(rounds, policy.draw(usable, round, seed), strict=True):
        if drawn is packed:
            continue
        if packed is fresh:
            left_out |= {id: policy.not_drawn() for id in packed if id not in drawn}
        elif num := len(packed) - len(drawn):
            counted[_in_short(policy.not_drawn())] += num
        packed.keep_only(drawn)
    return Chosen(
        selections=partial(_in_order, own, rounds[:-1], left_out, run_id, round),
        num_used=sum(map(len, rounds)),
        num_earlier=sum(map(len, rounds[:-1])),
        earlier_left_out=dict(counted),
    )


def _in_order(
    own: Sequence[Collected], earlier: Sequence[Packed], left_out: dict[str, str], run_id: str, round: int
) -> Iterator[Selection]:
    own_places: list[list[bytes]] = [[] for _ in range(PARTS)]
    for candidate, *_ in own:
        own_places[part_of(candidate.prompt_id)].append(place(candidate))
    position = 0
    for part in range(PARTS):
        places, own_places[part] = own_places[part], []  # so that the places of one part alone are in memory
        for packed in earlier:
            places += packed.places(part)
        places.sort()
        for id, arrival in placed(places):
            why = left_out.get(id)
            yield Selection(run_id, round, id, position, why is None, why, arrival or None)
            position += 1


_Group = list[tuple[Packed, int, Described]]


def _by_prompt(rounds: Sequence[Packed], part: int) -> Iterable[_Group]:
    groups: dict[str, _Group] = defaultdict(list)
    for packed in rounds:
        for at, described in packed.described(part):
            groups[sys.intern(described.candidate.prompt_id)].append((packed, at, described))
    return groups.values()


def _repeats(
    policy: DataPolicy, group: _Group, texts_of: Callable[[list[int]], Mapping[int, str]]
) -> Iterator[tuple[Packed, int, str, CompletionFacts]]:
    """Which of one prompt's completions repeat another, and which other."""
    if len(group) == 1:
        return
    if policy.dedup == "exact":
        texts = {described.candidate.id: described.text.hex() for _, _, described in group}
    else:
        by_arrival = texts_of([described.arrival for _, _, described in group])
        texts = {described.candidate.id: by_arrival[described.arrival] for _, _, described in group}
    originals = repeats(policy, [described.candidate for _, _, described in group], texts)
    for packed, at, described in group:
        if original := originals.get(described.candidate.id):
            yield packed, at, described.candidate.id, original


def _in_short(why: str) -> str:
    """A reason without what is particular to one completion."""
    return why.partition(" (")[0]


def _why_never(completion: CompletionText, openings: Mapping[str, str], settings: Collect) -> str | None:
    if not completion.text.strip() or not completion.num_tokens:
        return "empty"
    whole = answer(openings.get(completion.prompt_id, ""), completion.text)
    num_lines = sum(bool(line.strip()) and not line.lstrip().startswith("```") for line in whole.splitlines())
    if num_lines < settings.min_lines:
        return f"a stub of {num_lines} line{'s' if num_lines != 1 else ''} (fewer than {settings.min_lines})"
    return None
