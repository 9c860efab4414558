"""Where the rows of a running batch keep their keys and values, and attention over them without copies.

`Places` is for models whose layers all look back over everything: a place per row, filled from the left, so that a row
can leave and another come while the rest continue. `Batch` is for all other kinds of cache (sliding windows, states):
rows can leave it, but none can come before it is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROUPED = "grouped_sdpa"
BLOCK = 256  # tokens by which the room for every row grows


def grouped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **named: Any
) -> tuple[torch.Tensor, Any]:
    """transformers' sdpa; for one new token, the query heads that share a key head stand as positions of it.

    So nothing is copied for each query head: on a CPU that copy costs more than the attention. (B, H, t, d) -> (B, t, H, d).
    """
    num_rows, num_heads, width, size = query.shape
    groups = num_heads // key.shape[1]
    plain = attention_mask is None or attention_mask.shape[1] == 1
    if width > 1 or groups == 1 or not plain or named.get("dropout") or named.get("position_bias") is not None:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        return output, weights
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(num_rows, key.shape[1], groups, size), key, value, attention_mask, scale=named.get("scaling")
    )
    return output.reshape(num_rows, 1, num_heads, value.shape[-1]), None


def use_grouped_attention(model: Any) -> None:
    """Let a model that attends through transformers' sdpa do so without copies."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


class PlacesLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, H, T, d), of which the first rows and columns are in use."""

    def __init__(self, places: Places, like: DynamicLayer) -> None:
        super().__init__()
        self.places = places
        self.keys, self.values = (old.new_zeros(0, old.shape[1], 0, old.shape[3]) for old in (like.keys, like.values))
        self.is_initialized = True

    def grow(self, num_places: int, width: int) -> None:
        """Room for so many rows of so many tokens; what is there stays."""
        old = self.keys, self.values
        self.keys, self.values = (each.new_zeros(num_places, each.shape[1], width, each.shape[3]) for each in old)
        for new, before in zip((self.keys, self.values), old, strict=True):
            new[: before.shape[0], :, : before.shape[2]] = before

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Each row's new token is its last one. (n, H, 1, d) twice -> (n, H, width, d) twice."""
        rows, columns, width = self.places.rows, self.places.lengths - 1, self.places.width
        self.keys[rows, :, columns] = key_states[:, :, 0]
        self.values[rows, :, columns] = value_states[:, :, 0]
        return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]

    def get_seq_length(self) -> int:
        """As if all rows were as long as the longest; the attention mask says how long each is."""
        return self.places.width - 1


class Places:
    """Room for rows, of which those in use are the first ones. It grows by blocks."""

    def __init__(self, device: torch.device) -> None:
        self.size = 0, 0
        self.cache = Cache(layers=[])  # made as the first rows come, whose layers show the shapes
        self._use(torch.zeros(0, dtype=torch.long, device=device))

    def _use(self, lengths: torch.Tensor) -> None:
        """Rows with so many tokens each are in use. (n,)"""
        self.lengths = lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self.width = int(lengths.max()) if len(lengths) else 0

    def _grow(self, num_rows: int, width: int) -> None:
        size = max(num_rows, self.size[0]), max(-(-width // BLOCK) * BLOCK, self.size[1])
        if size != self.size:
            self.size = size
            for layer in self.cache.layers:
                layer.grow(*size)

    def put(self, cache: DynamicCache, mask: torch.Tensor, index: torch.Tensor) -> None:
        """New rows behind those in use: row i is row index[i] of the left-padded `cache` with its `mask` (B, T)."""
        if not self.cache.layers:
            self.cache = Cache(layers=[PlacesLayer(self, layer) for layer in cache.layers])
        lengths = mask.sum(-1)[index]
        self._grow(len(self.lengths) + len(lengths), int(lengths.max()))
        for place, (number, length) in enumerate(zip(index.tolist(), lengths.tolist(), strict=True), len(self.lengths)):
            real = mask[number].bool()
            for layer, new in zip(self.cache.layers, cache.layers, strict=True):
                layer.keys[place, :, :length] = new.keys[number][:, real]
                layer.values[place, :, :length] = new.values[number][:, real]
        self._use(torch.cat([self.lengths, lengths]))

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Let go of all other rows; the last ones move into the gaps. The order of the rows that are left."""
        gaps = sorted(set(range(len(kept))) - set(kept))
        moved = dict(zip(gaps, reversed(kept), strict=False))
        for gap, last in moved.items():
            length = int(self.lengths[last])
            for layer in self.cache.layers:
                layer.keys[gap, :, :length] = layer.keys[last, :, :length]
                layer.values[gap, :, :length] = layer.values[last, :, :length]
        order = [moved.get(place, place) for place in range(len(kept))]
        self._use(self.lengths[torch.tensor(order, dtype=torch.long, device=self.lengths.device)])
        return order

    def inputs(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Each row gets one token more: the cache, its mask (n, width) and the positions (n, 1) of the new tokens."""
        self._grow(len(self.lengths), self.width + 1)
        self.lengths = self.lengths + 1
        self.width += 1
        mask = (torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]).long()
        return self.cache, mask, self.lengths[:, None] - 1


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
