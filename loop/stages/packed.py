"""One round's completions that may be trained on, packed: 96 bytes each, read in parts, so that a million of them need little.

What is packed is fixed once its round has been sampled, and later rounds need neither texts nor rows of it. The parts of
several rounds, one after the other, give one order: by prompt, sample, round and id.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from itertools import chain, compress
from operator import and_
from typing import NamedTuple

from policies.data import CompletionFacts

PARTS = 16  # by the first hexadecimal digit of the prompt's id; of earlier rounds one part is in memory at a time
ENTRY = struct.Struct(">32sI32sIQ16s")  # prompt, sample, id, number of tokens, arrival, beginning of the text's SHA-256
_PLACE, _ID, _ARRIVAL = 36, 68, 80  # where the bytes of prompt and sample end, of the id, of the arrival
_PLACED = struct.Struct(">40x32s4xQ")  # id and arrival in a place


class Described(NamedTuple):
    """A completion of a packed round. `text` stands for its text: those of the same text have the same."""

    candidate: CompletionFacts
    arrival: int
    text: bytes


def part_of(prompt_id: str) -> int:
    """The part that a prompt's completions are in."""
    return int(prompt_id[0], 16)


def pack(c: CompletionFacts, arrival: int, text: bytes) -> bytes:
    """A completion as an entry (see `Described`). Ids are SHA-256 in hex; entries sort by prompt, sample and id."""
    ids = bytes.fromhex(c.prompt_id), bytes.fromhex(c.id)
    assert [*map(len, ids)] == [32, 32], f"completion {c.id} of prompt {c.prompt_id}"
    return ENTRY.pack(ids[0], c.sample_index, ids[1], c.num_tokens, arrival, text)


class Packed(Collection[str]):
    """The `num` usable completions of one round; `entries` gives those of a part, sorted, as often as it is called.

    As a collection it holds the ids of the completions that stay; each loop over them reads them anew.
    """

    def __init__(self, round: int, from_base: bool, num: int, entries: Callable[[int], bytes]) -> None:
        self.round = round
        self.from_base = from_base
        self.num = num
        self._entries = entries
        self._kept: list[bytearray | None] = [None] * PARTS  # one byte an entry, 1 = still in; None = all still in

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(map(self.ids_of, range(PARTS)))

    def __contains__(self, id: object) -> bool:
        return any(id == each for each in self)

    def ids_of(self, part: int) -> Iterable[str]:
        """The ids of a part's completions that stay."""
        ids, kept = self._all_ids(part), self._kept[part]
        return ids if kept is None else compress(ids, kept)

    def described(self, part: int) -> Iterator[tuple[int, Described]]:
        """A part's completions that stay, each after its place in the part."""
        now = self._kept[part]
        kept = None if now is None else bytes(now)  # a copy: the caller may drop what it is given
        for at, (prompt, index, id, num_tokens, arrival, text) in enumerate(ENTRY.iter_unpack(self._entries(part))):
            if kept is None or kept[at]:
                candidate = CompletionFacts(id.hex(), self.round, prompt.hex(), index, num_tokens, self.from_base)
                yield at, Described(candidate, arrival, text)

    def places(self, part: int) -> list[bytes]:
        """The `place` of each completion of a part that stays; it ends with number of tokens and arrival."""
        entries, number = self._entries(part), self.round.to_bytes(4, "big")
        starts, kept = range(0, len(entries), ENTRY.size), self._kept[part]
        return [
            entries[at : at + _PLACE] + number + entries[at + _PLACE : at + _ARRIVAL]
            for at in (starts if kept is None else compress(starts, kept))
        ]

    def drop(self, part: int, at: int) -> None:
        """Leave out the completion at this place of a part."""
        kept = self._kept[part]
        if kept is None:
            kept = self._kept[part] = bytearray(b"\1") * (len(self._entries(part)) // ENTRY.size)
        self.num -= kept[at]
        kept[at] = 0

    def keep_only(self, ids: Container[str]) -> None:
        """Leave out all completions but these."""
        for part in range(PARTS):
            stay = bytearray([id in ids for id in self._all_ids(part)])
            if kept := self._kept[part]:
                stay = bytearray(map(and_, stay, kept))
            self._kept[part] = stay
        self.num = sum(map(sum, filter(None, self._kept)))

    def _all_ids(self, part: int) -> list[str]:
        text = self._entries(part).hex()
        return [text[at : at + 64] for at in range(2 * _PLACE, len(text), 2 * ENTRY.size)]


def place(candidate: CompletionFacts) -> bytes:
    """Sorts completions of several rounds: by prompt, sample, round and id. It ends as those of `Packed.places` do, with 0."""
    return (
        bytes.fromhex(candidate.prompt_id)
        + candidate.sample_index.to_bytes(4, "big")
        + candidate.round.to_bytes(4, "big")
        + bytes.fromhex(candidate.id)
        + bytes(_ARRIVAL - _ID)
    )


def placed(places: Iterable[bytes]) -> Iterator[tuple[str, int]]:
    """Id and arrival of the completions whose places they are; arrivals count from 1."""
    for id, arrival in map(_PLACED.unpack, places):
        yield id.hex(), arrival
