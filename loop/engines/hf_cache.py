"""Where the rows of a running batch keep their keys and values, and attention over them without copies.

`Places` is for models whose layers all look back over everything: a place per row, filled from the left, so that a row
can leave and another come while the rest continue. Rows of similar length stand side by side on a shelf, so that a long row
costs no memory for the short ones. `Batch` is for all other kinds of cache (sliding windows, states): rows can leave it, but
none can come before it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROUPED = "grouped_sdpa"
ALL = slice(None)  # the rows of a batch, where they stand on one shelf in the batch's order
FIRST_SHELF = 1024  # tokens; every further shelf is for rows of up to twice as many
BLOCK = 256  # tokens by which all rows of a shelf get longer: attention reads it all for each of them, so a copy costs little
SHRINKS_BELOW = 0.75  # of its size; lower than the share of rows that is left when the sampler takes in new ones


def grouped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **named: Any
) -> tuple[torch.Tensor, Any]:
    """transformers' sdpa; for one new token, over the shelves of `Places` where its rows are there. (B, H, t, d) -> (B, t, H, d)."""
    num_rows, num_heads, width, _ = query.shape
    plain = attention_mask is None or attention_mask.shape[1] == 1
    if width > 1 or not plain or named.get("dropout") or named.get("position_bias") is not None:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        return output, weights
    scaling = named.get("scaling")
    shelves = getattr(key, "shelves", None)
    if shelves is not None and len(shelves) == 1 and shelves[0][0] is ALL:
        _, key, value = shelves.pop()
        shelves = None
    if shelves is None:
        output = _for_one_token(query, key, value, attention_mask, scaling)
    else:
        output = query.new_empty(num_rows, num_heads, 1, value.shape[-1])
        for rows, keys, values in shelves:
            mask = None if attention_mask is None else attention_mask[rows, :, :, : keys.shape[2]]
            output[rows] = _for_one_token(query[rows], keys, values, mask, scaling)
    return output.reshape(num_rows, 1, num_heads, value.shape[-1]), None


def _for_one_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: Any
) -> torch.Tensor:
    """Attention of one token a row, in which the query heads that share a key head stand as positions of it.

    So nothing is copied for each query head: on a CPU that copy costs more than the attention. (B, H, 1, d) -> (B, H, 1, d).
    """
    num_rows, num_heads, _, size = query.shape
    grouped = query.reshape(num_rows, key.shape[1], num_heads // key.shape[1], size)
    output = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, mask, scale=scaling)
    return output.reshape(num_rows, num_heads, 1, value.shape[-1])


def use_grouped_attention(model: Any) -> bool:
    """Let a model that attends through transformers' sdpa do so without copies, which `Places` needs. Whether it does."""
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
    return True


def filled(kept: Sequence[int]) -> list[int]:
    """Which of the things that stood in a row stands where, once those not kept are gone and the last ones fill the gaps."""
    gaps = sorted(set(range(len(kept))) - set(kept))
    moved = dict(zip(gaps, reversed(kept), strict=False))
    return [moved.get(place, place) for place in range(len(kept))]


def blocks(num_tokens: int) -> int:
    """The number of tokens in as many whole blocks as these take."""
    return math.ceil(num_tokens / BLOCK) * BLOCK


def shelf_of(num_tokens: int) -> int:
    """The number of the shelf for a row of that length, of at least one token."""
    return ((num_tokens - 1) // FIRST_SHELF).bit_length()


class Shelf:
    """Rows of similar length, of every layer the keys and values (P, H, W, d), with the rows in use in front.

    It is as many rows high and as many tokens wide as they need: it grows by blocks, each time into new tensors, and shrinks
    when rows have left that took a good part of it.
    """

    def __init__(self, empty: Sequence[Sequence[torch.Tensor]]) -> None:
        self.rows: list[int] = []  # the row of the batch in each place
        self.width = 0  # of the longest row in use
        self.size = 0, 0
        self.tensors = [list(pair) for pair in empty]  # of each layer keys and values

    def grow(self, num_rows: int, width: int) -> None:
        """Room for at least `num_rows` rows of `width` tokens."""
        self._resize(max(num_rows, self.size[0]), max(blocks(width), self.size[1]))

    def _resize(self, num_rows: int, width: int) -> None:
        if (num_rows, width) == self.size:
            return
        self.size = num_rows, width
        for pair in self.tensors:
            for i in range(2):  # one tensor at a time, so that no more than one is there twice
                # Zeros: what the mask leaves out is multiplied with zero, and a NaN would stay one.
                new = pair[i].new_zeros(num_rows, pair[i].shape[1], width, pair[i].shape[3])
                new[: len(self.rows), :, : self.width] = pair[i][: len(self.rows), :, : self.width]
                pair[i] = new

    def put(self, row: int, contents: Sequence[Sequence[torch.Tensor]]) -> None:
        """A row's keys and values of each layer, (H, t, d), in the next place; there is room for it."""
        for pair, states in zip(self.tensors, contents, strict=True):
            for old, new in zip(pair, states, strict=True):
                old[len(self.rows), :, : new.shape[1]] = new
        self.width = max(self.width, contents[0][0].shape[1])
        self.rows.append(row)

    def contents(self, place: int, length: int) -> list[list[torch.Tensor]]:
        """What `put` was given."""
        return [[tensor[place, :, :length] for tensor in pair] for pair in self.tensors]

    def keep(self, kept: Sequence[int], lengths: Sequence[int]) -> None:
        """Let go of the rows in all other places. `lengths`: of all rows of the batch."""
        order = filled(kept)
        for place, before in enumerate(order):
            if place != before:
                for pair in self.tensors:
                    for tensor in pair:
                        tensor[place, :, : self.width] = tensor[before, :, : self.width]
        self.rows = [self.rows[place] for place in order]
        self.width = max((lengths[row] for row in self.rows), default=0)
        # A block stays free, so that a row of a middling length does not make it grow again at once.
        width = blocks(self.width + BLOCK) if self.rows else 0
        size = len(self.rows), min(width, self.size[1])
        if math.prod(size) < SHRINKS_BELOW * math.prod(self.size):
            self._resize(*size)


class PlacesLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, as the model's cache has them."""

    def __init__(self, places: Places, number: int) -> None:
        super().__init__()
        self.places, self.number = places, number
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Each row's new token is its last one. (n, H, 1, d) twice, as given; `shelves` of the first is what to attend to.

        A model that attends in another way than `grouped_attention` would see one token where its mask has all, and fail.
        """
        shelves = []
        for shelf, rows, places, columns in self.places.last:
            views = []
            for tensor, new in zip(shelf.tensors[self.number], (key_states, value_states), strict=True):
                tensor[places, :, columns] = new[rows, :, 0]
                views.append(tensor[: len(places), :, : shelf.width])
            shelves.append((rows, *views))
        key_states.shelves = shelves
        return key_states, value_states

    def get_seq_length(self) -> int:
        """As if all rows were as long as the longest; the attention mask says how long each is."""
        return max(self.places.lengths) - 1


class Places:
    """Room for rows of different lengths: on each shelf those whose length lies between two powers of two."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache = Cache(layers=[])  # made as the first rows come, whose layers show the shapes
        self.empty: list[list[torch.Tensor]] = []  # of each layer keys and values of no row, (0, H, 0, d)
        self.lengths: list[int] = []  # of each row of the batch
        self.shelves: dict[int, Shelf] = {}
        # Of each shelf, the batch's rows (m,) that stand there, their places (m,) and the columns (m,) of their new tokens.
        self.last: list[tuple[Shelf, Any, torch.Tensor, torch.Tensor]] = []

    def put(self, cache: DynamicCache, mask: torch.Tensor, index: torch.Tensor) -> None:
        """New rows behind those in use: row i is row index[i] of the left-padded `cache` with its `mask` (B, T)."""
        if not self.cache.layers:
            self.cache = Cache(layers=[PlacesLayer(self, number) for number in range(len(cache.layers))])
            pairs = [(layer.keys, layer.values) for layer in cache.layers]
            self.empty = [[old.new_zeros(0, old.shape[1], 0, old.shape[3]) for old in pair] for pair in pairs]
        start, lengths = len(self.lengths), mask.sum(-1)[index].tolist()
        self.lengths += lengths
        for number in sorted(set(map(shelf_of, lengths))):
            here = [i for i, length in enumerate(lengths) if shelf_of(length) == number]
            shelf = self._room(number, len(here), max(lengths[i] for i in here) + 1)
            for i in here:
                row = int(index[i])
                real = mask[row].bool()
                shelf.put(
                    start + i, [[old[row][:, real] for old in (layer.keys, layer.values)] for layer in cache.layers]
                )

    def _room(self, number: int, num_rows: int, width: int) -> Shelf:
        """The shelf of that number, with room for so many rows more of that width."""
        shelf = self.shelves.setdefault(number, Shelf(self.empty))
        shelf.grow(len(shelf.rows) + num_rows, width)
        return shelf

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Let go of all other rows; the last ones move into the gaps. The order of the rows that are left."""
        self.last = []  # it would keep alive what is let go of
        order = filled(kept)
        place_of = {before: place for place, before in enumerate(order)}
        for number, shelf in list(self.shelves.items()):
            shelf.keep([place for place, row in enumerate(shelf.rows) if row in place_of], self.lengths)
            shelf.rows = [place_of[row] for row in shelf.rows]
            if not shelf.rows:
                del self.shelves[number]
        self.lengths = [self.lengths[row] for row in order]
        return order

    def inputs(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Each row gets one token more: the cache, its mask (n, width) and the positions (n, 1) of the new tokens."""
        for row, length in enumerate(self.lengths):
            if shelf_of(length + 1) != shelf_of(length):
                self._move(row, length)
        self.lengths = [length + 1 for length in self.lengths]
        lengths = torch.tensor(self.lengths, device=self.device)
        numbers = torch.arange(max(self.lengths), device=self.device)
        self.last = []
        for shelf in self.shelves.values():
            shelf.grow(len(shelf.rows), shelf.width + 1)
            shelf.width += 1
            in_order = shelf.rows == list(range(len(self.lengths)))
            rows = ALL if in_order else torch.tensor(shelf.rows, device=self.device)
            self.last.append((shelf, rows, torch.arange(len(shelf.rows), device=self.device), lengths[rows] - 1))
        return self.cache, (numbers < lengths[:, None]).long(), lengths[:, None] - 1

    def _move(self, row: int, length: int) -> None:
        """Take a row that is about to get longer to the next shelf."""
        shelf = self.shelves[shelf_of(length)]
        place = shelf.rows.index(row)
        longer = self._room(shelf_of(length + 1), 1, length + 1)
        longer.put(row, shelf.contents(place, length))
        shelf.keep([other for other in range(len(shelf.rows)) if other != place], self.lengths)
        if not shelf.rows:
            del self.shelves[shelf_of(length)]


class Batch:
    """Rows that began together, in the cache that transformers made for them."""

    def put(self, cache: DynamicCache, mask: torch.Tensor, index: torch.Tensor) -> None:
        """See `Places.put`; only while no row is here."""
        cache.batch_select_indices(index)
        self.cache, self.mask = cache, mask[index]

    def keep(self, kept: Sequence[int]) -> list[int]:
        """See `Places.keep`."""
        index = torch.tensor(kept, dtype=torch.long, device=self.mask.device)
        if len(kept):
            self.cache.batch_select_indices(index)
        self.mask = self.mask[index]
        return list(kept)

    def inputs(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """See `Places.inputs`."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self.cache, self.mask, self.mask.sum(-1, keepdim=True) - 1


def takes_rows_later(cache: DynamicCache) -> bool:
    """Whether rows with such a cache may join others that are under way: every layer is an ordinary one."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
