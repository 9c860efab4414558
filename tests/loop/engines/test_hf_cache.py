"""The room for keys and values: it holds what was put there, follows the rows in use, and changes no completion."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from loop.engines import hf_cache
from loop.engines.base import CheckpointRef, Generated
from loop.engines.hf_cache import Places
from tests.support.engines import ask, chat, hot, in_process

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, SIZE, LAYERS = 2, 3, 2


def contents(row: int, start: int, end: int) -> torch.Tensor:
    """What stands for the keys of a row's tokens from start to end. (H, t, d)"""
    numbers = row * 1e4 + torch.arange(start, end, dtype=torch.float64)
    return numbers[None, :, None].expand(HEADS, -1, SIZE)


def prompt_cache(rows: list[int], lengths: list[int]) -> tuple[DynamicCache, torch.Tensor]:
    """The left-padded cache and the mask of new rows."""
    width = max(lengths)
    keys = torch.full((len(rows), HEADS, width, SIZE), torch.nan, dtype=torch.float64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        keys[i, :, width - length :] = contents(row, 0, length)
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(keys, -keys, layer)
    return cache, (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()


def script(prompts: list[int], answers: list[int], num_places: int) -> Iterator[tuple[Places, list[int]]]:
    """A sampler's life without a model: after each token, the room and the number of tokens of each row in it.

    Row i has prompts[i] tokens and ends after answers[i] more. What attention sees is compared with what was put there.
    """
    room, waiting = Places(torch.device("cpu")), list(range(len(prompts)))
    active: list[int] = []
    lengths: list[int] = []
    while waiting or active:
        if active:
            cache, mask, positions = room.inputs()
            lengths = [length + 1 for length in lengths]
            assert mask.sum(-1).tolist() == lengths and (positions[:, 0] + 1).tolist() == lengths
            new = torch.stack([contents(row, n - 1, n) for row, n in zip(active, lengths, strict=True)])
            for layer in cache.layers:
                check(layer, *layer.update(new.clone(), -new), active, lengths)
        if waiting and (num_places - len(active)) * 8 >= num_places:
            rows, waiting = waiting[: num_places - len(active)], waiting[num_places - len(active) :]
            room.put(*prompt_cache(rows, [prompts[row] for row in rows]), torch.arange(len(rows)))
            active, lengths = active + rows, lengths + [prompts[row] for row in rows]
        yield room, lengths
        ended = [length >= prompts[row] + answers[row] for row, length in zip(active, lengths, strict=True)]
        if any(ended):
            order = room.keep([i for i, end in enumerate(ended) if not end])
            active, lengths = [active[i] for i in order], [lengths[i] for i in order]
            yield room, lengths


def check(layer: Any, key: torch.Tensor, value: torch.Tensor, active: list[int], lengths: list[int]) -> None:
    """Every row is on one shelf, with what was put there, and attention gets it without a copy."""
    assert key.shape == value.shape == (len(active), HEADS, 1, SIZE)
    seen: list[int] = []
    memory = {tensor.data_ptr() for shelf in layer.places.shelves.values() for tensor in shelf.tensors[layer.number]}
    for rows, keys, values in key.shelves:  # type: ignore[attr-defined]
        on_it = torch.arange(len(active))[rows].tolist()
        seen += on_it
        assert keys.data_ptr() in memory and values.data_ptr() in memory, "a copy"
        assert keys.shape[2] == max(lengths[row] for row in on_it) and not keys.isnan().any()
        for place, row in enumerate(on_it):
            expected = contents(active[row], 0, lengths[row])
            assert torch.equal(keys[place, :, : lengths[row]], expected)
            assert torch.equal(values[place, :, : lengths[row]], -expected)
    assert sorted(seen) == list(range(len(active)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shelves for up to 32, 64, 128 ... tokens that grow by 8."""
    monkeypatch.setattr(hf_cache, "FIRST_SHELF", 32)
    monkeypatch.setattr(hf_cache, "BLOCK", 8)


@pytest.mark.parametrize("seed", range(4))
def test_room_follows_the_rows_in_use(seed: int, small: None) -> None:
    """Two blocks a row and the widest row of each shelf, and a third of that more; far less than for the longest rows."""
    draws = random.Random(seed)
    prompts = [draws.randint(1, 20) for _ in range(60)]
    answers = [min(300, 1 + int(draws.lognormvariate(3.3, 1.0))) for _ in prompts]
    num_places, peak, most, shelves = 16, 0, 0, 0
    for room, lengths in script(prompts, answers, num_places):
        size = sum(math.prod(shelf.size) for shelf in room.shelves.values())
        tensors = [tensor for shelf in room.shelves.values() for pair in shelf.tensors for tensor in pair]
        assert sum(tensor.numel() for tensor in tensors) == size * HEADS * SIZE * LAYERS * 2
        by_shelf: dict[int, list[int]] = {}
        for length in lengths:
            by_shelf.setdefault(hf_cache.shelf_of(length), []).append(length)
        needed = sum(len(each) * (max(each) + 2 * 8) for each in by_shelf.values())
        assert size <= needed / hf_cache.SHRINKS_BELOW
        peak, most, shelves = max(peak, size), max(most, sum(lengths)), max(shelves, len(room.shelves))
    assert not room.shelves
    assert shelves > 2 and peak < 2.5 * most < num_places * (20 + 300) * 0.75


def test_a_full_batch_of_short_rows_is_copied_once_a_block(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come and go one by one, which are within an eighth of all, make no copies."""
    monkeypatch.setattr(hf_cache, "FIRST_SHELF", 1024)
    sizes, resize = [], hf_cache.Shelf._resize

    def counted(shelf: hf_cache.Shelf, num_rows: int, width: int) -> None:
        if (num_rows, width) != shelf.size:
            sizes.append((num_rows, width))
        resize(shelf, num_rows, width)

    monkeypatch.setattr(hf_cache.Shelf, "_resize", counted)
    steps = list(script([4] * 120, [32 + i % 16 for i in range(120)], 16))
    assert len(sizes) < len(steps) / 8


def test_completions_are_those_of_room_for_everything(tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit where all rows stand on one shelf; beside longer rows on other shelves, up to the last bits of a sum."""
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(24)]
    params = hot(max_new_tokens=96)
    seen: set[tuple[tuple[int, tuple[int, int]], ...]] = set()
    inputs = Places.inputs

    def counted(room: Places) -> Any:
        answer = inputs(room)
        seen.add(tuple((number, shelf.size) for number, shelf in room.shelves.items()))
        return answer

    monkeypatch.setattr(Places, "inputs", counted)

    def drawn(first_shelf: int, block: int) -> dict[str, Generated]:
        seen.clear()
        monkeypatch.setattr(hf_cache, "FIRST_SHELF", first_shelf)
        monkeypatch.setattr(hf_cache, "BLOCK", block)
        return ask(in_process(tiny, batch_size=8), requests, params)

    whole = drawn(1024, 1024)
    assert {size[1] for shelves in seen for _, size in shelves} == {1024}
    assert drawn(1024, 16) == whole and len(seen) > 4
    for name, generated in drawn(64, 16).items():
        assert generated.token_ids == whole[name].token_ids
        assert generated.logprob_sum == pytest.approx(whole[name].logprob_sum, abs=1e-4)
    assert max(map(len, seen)) > 1


def test_a_model_that_attends_in_another_way_runs_batch_by_batch(tiny: CheckpointRef) -> None:
    sampler = in_process(tiny)
    assert sampler.takes_rows_later
    sampler.model.set_attn_implementation("eager")
    assert not hf_cache.use_grouped_attention(sampler.model)
    with pytest.raises(RuntimeError, match="size"):  # and neither would it go wrong in silence
        ask(sampler, [chat("r", seed=1)], hot())
