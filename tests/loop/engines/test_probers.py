"""One contract over all probers, in process and remote; then what the one over transformers owes to a plain softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import LEAST_LOGPROB, CheckpointRef, Forced, Probed, Prober, SamplingParams
from loop.errors import EngineError
from tests.support.engines import ask, chat, in_process, next_token_logits, remote

TOP = 16
TRUNCATION = SamplingParams(temperature=1.2, top_k=20, top_p=0.8, max_new_tokens=1)
DRAWN = SamplingParams(temperature=1.2, top_k=40, max_new_tokens=24)

pytestmark = pytest.mark.usefixtures("one_thread")


def texts_of(sampler: Any, count: int = 10) -> list[Forced]:
    """Texts of different lengths that the model wrote."""
    written = ask(sampler, [chat(f"t{i}", seed=i, task=5 * i) for i in range(count)], DRAWN)
    return [
        Forced(id=text.id, prompt_token_ids=text.prompt_token_ids, token_ids=text.token_ids)
        for _, text in sorted(written.items())
    ]


def look(
    prober: Prober, texts: list[Forced], top: int = TOP, truncation: SamplingParams = TRUNCATION
) -> dict[str, Probed]:
    lists = list(prober.probe(texts, truncation, top))
    assert all(lists), "an empty list"
    everything = [record for records in lists for record in records]
    assert sorted(record.id for record in everything) == sorted(text.id for text in texts)
    return {record.id: record for record in everything}


def close(first: Probed, second: Probed) -> None:
    """Equal but for the last bits of float32 and the rounding of what is reported; of two that are as likely either may come first."""
    for name in ("entropy", "top_probability", "rest"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=2e-4), name
    for index, (ours, theirs) in enumerate(zip(first.logprobs, second.logprobs, strict=True)):
        assert ours == pytest.approx(theirs, abs=2e-4)
        mine, yours = (dict(zip(each.at[index], each.logprobs[index], strict=True)) for each in (first, second))
        for token in mine.keys() | yours.keys():  # who is only in one list is as likely as the last in the other
            assert mine.get(token, min(ours)) == pytest.approx(yours.get(token, min(theirs)), abs=4e-4)
        assert mine[first.top_token_id[index]] == pytest.approx(mine[second.top_token_id[index]], abs=4e-4)


# ---- the contract --------------------------------------------------------------------------------------------------


def test_a_record_has_an_entry_for_every_token(pair: tuple[Any, Any]) -> None:
    texts = texts_of(pair[0])
    assert len({len(text.prompt_token_ids) + len(text.token_ids) for text in texts}) > 1
    for text in texts:
        record = look(pair[0], [text])[text.id]
        for name in set(Probed.model_fields) - {"id"}:
            assert len(getattr(record, name)) == len(text.token_ids), name
        for index, (ids, logprobs) in enumerate(zip(record.at, record.logprobs, strict=True)):
            assert len(ids) == len(set(ids)) == len(logprobs) == TOP
            assert list(logprobs) == sorted(logprobs, reverse=True), "likeliest first"
            assert ids[0] == record.top_token_id[index]
            assert math.exp(logprobs[0]) == pytest.approx(record.top_probability[index], abs=1e-4)
            total = math.fsum(map(math.exp, (*logprobs, record.rest[index])))
            assert total == pytest.approx(1, abs=2e-4)
            assert 0 <= record.entropy[index] <= math.log(500)
            assert 1 <= record.num_kept[index] <= TOP


def test_the_same_texts_the_same_records(pair: tuple[Any, Any]) -> None:
    texts = texts_of(pair[0])
    assert look(pair[0], texts) == look(pair[0], texts)


def test_a_record_does_not_depend_on_its_batch(pair: tuple[Any, Any]) -> None:
    texts = texts_of(pair[0], 12)
    four = look(pair[0], texts)
    for others in (look(pair[1], texts), look(pair[0], texts[::-2]), look(pair[0], texts[3:4])):
        for identifier, record in others.items():
            close(record, four[identifier])


def test_the_tokens_that_are_named_are_those_that_are_looked_at(pair: tuple[Any, Any]) -> None:
    texts = texts_of(pair[0], 5)
    own = look(pair[0], texts)
    same = look(pair[0], [text.model_copy(update={"at": own[text.id].at}) for text in texts])
    for identifier, record in own.items():
        close(record, same[identifier])
    turned = [text.model_copy(update={"at": tuple(ids[2:0:-1] for ids in own[text.id].at)}) for text in texts]
    for identifier, record in look(pair[0], turned).items():
        assert record.top_token_id == own[identifier].top_token_id and record.entropy == own[identifier].entropy
        for two, all_of_it, rest in zip(record.logprobs, own[identifier].logprobs, record.rest, strict=True):
            assert two == pytest.approx(all_of_it[2:0:-1], abs=2e-4)
            assert math.exp(rest) == pytest.approx(1 - math.fsum(map(math.exp, two)), abs=2e-4)


def test_a_small_vocabulary_and_no_truncation(pair: tuple[Any, Any]) -> None:
    """Everything is named and everything kept: nothing is left over, and that can be said in JSON."""
    free = SamplingParams(temperature=1.0, max_new_tokens=1)
    for record in look(pair[0], texts_of(pair[0], 2), 100_000, free).values():
        assert {*record.num_kept} == {len(record.at[0])} and len(record.at[0]) in (257, 400)
        assert {*record.rest} == {LEAST_LOGPROB}


def test_what_cannot_be_looked_at_is_refused_by_name(pair: tuple[Any, Any]) -> None:
    for prompt, tokens in (((), (1,)), ((1,), ()), ((1,), (2,) * 70_000)):
        with pytest.raises(EngineError, match=r"text odd: .*(no token|exceed)"):
            look(pair[0], [Forced(id="odd", prompt_token_ids=prompt, token_ids=tokens)])
    assert look(pair[0], []) == {}
    assert look(pair[0], texts_of(pair[0], 1)), "it goes on"


# ---- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_logits", [1 << 24, 400 * 4 * 3, 1])
def test_every_number_is_that_of_a_plain_softmax(
    tiny: CheckpointRef, max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one forward pass in float64 without cache, padding, batch or slices; slices of all, of 3 and of 1 position."""
    import torch

    from loop.engines import hf_prober
    from loop.engines.drawing import truncated_distribution

    monkeypatch.setattr(hf_prober, "MAX_LOGITS", max_logits)
    prober = in_process(tiny)
    texts = texts_of(prober, 9)
    records = look(prober, texts)
    plain = in_process(tiny).model.double()
    for text in texts:
        record, logits = records[text.id], next_token_logits(plain, text.prompt_token_ids, text.token_ids)
        logprobs = logits.log_softmax(-1)
        p = logprobs.exp()
        assert record.entropy == pytest.approx((-(p * logprobs).sum(-1)).tolist(), abs=1e-4)
        assert list(record.top_token_id) == p.argmax(-1).tolist()
        assert record.top_probability == pytest.approx(p.max(-1).values.tolist(), abs=1e-5)
        kept, _ = truncated_distribution(logits, TRUNCATION)
        assert list(record.num_kept) == (kept > 0).sum(-1).clamp(max=TOP).tolist()
        for index, ids in enumerate(record.at):
            assert record.logprobs[index] == pytest.approx(logprobs[index, list(ids)].tolist(), abs=3e-4)
            others = logprobs[index].clone()
            others[list(ids)] = -torch.inf
            assert record.rest[index] == pytest.approx(float(others.logsumexp(-1)), abs=1e-3)


def test_few_logits_are_in_memory_at_a_time(tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> None:
    from loop.engines import hf_prober

    monkeypatch.setattr(hf_prober, "MAX_LOGITS", 400 * 4 * 5)
    prober = in_process(tiny)
    sizes: list[int] = []
    prober.model.register_forward_hook(lambda module, inputs, output: sizes.append(output.logits.numel()))
    text = Forced(id="long", prompt_token_ids=tuple(range(5, 205)), token_ids=tuple(range(5, 205)) * 3)
    look(prober, [text.model_copy(update={"id": str(i)}) for i in range(4)])
    assert max(sizes) <= 400 * 4 * 5 and len(sizes) > 100


SPOILT: dict[str, Callable[[list[Any]], object]] = {
    "short": lambda records: records[0]["entropy"].pop(),
    "nan": lambda records: records[0]["rest"].__setitem__(0, math.nan),
    "other tokens": lambda records: records[0]["at"].__setitem__(0, [1, 3]),
    "twice": lambda records: records.append(records[0]),
}


@pytest.mark.parametrize("change", SPOILT)
def test_a_record_that_does_not_fit_its_text_ends_the_worker(
    change: str, fake: CheckpointRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prober: Any = remote(fake, "fake", tmp_path / "worker.log")
    text = texts_of(prober, 1)[0]
    text = text.model_copy(update={"at": tuple((1, 2) for _ in text.token_ids)})
    real = prober.worker.stream

    def stream(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for kind, value in real(*args, **kwargs):
            if kind == "items":
                SPOILT[change](value)
            yield kind, value

    monkeypatch.setattr(prober.worker, "stream", stream)
    with pytest.raises(EngineError, match="it sent a record that"):
        look(prober, [text])
    assert prober.worker.ended


def test_the_summary_of_real_models_is_that_of_their_whole_softmaxes(tiny: CheckpointRef) -> None:
    """A base, a head and a candidate a little off from each other, through engine and arithmetic; numpy over all tokens."""
    import numpy as np
    import torch

    from policies.diagnosis import Compared, Positions, summarise

    def off(scale: float, seed: int) -> Any:
        sampler = in_process(tiny)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in sampler.model.parameters():
                parameter += scale * parameter.std() * torch.randn(parameter.shape, generator=generator)
        return sampler

    models = {"base": in_process(tiny), "head": off(0.02, 1), "candidate": off(0.05, 2)}
    texts = texts_of(models["base"], 12)
    records = {"base": look(models["base"], texts, 64)}
    named = [text.model_copy(update={"at": records["base"][text.id].at}) for text in texts]
    records |= {who: look(models[who], named, 64) for who in ("head", "candidate")}
    columns = ("entropy", "top_token_id", "top_probability", "logprobs", "rest")
    compared = []
    for text in texts:
        parts: dict[str, Any] = {
            who: Positions(**{name: getattr(looked[text.id], name) for name in columns})
            for who, looked in records.items()
        }
        compared.append(Compared(**parts, num_kept=records["base"][text.id].num_kept))
    summary = summarise(compared, 0.3, 1.0)

    whole: dict[str, Any] = {}
    for who, sampler in models.items():
        rows = [next_token_logits(sampler.model, text.prompt_token_ids, text.token_ids) for text in texts]
        whole[who] = torch.cat(rows).softmax(-1).numpy()
    num_kept = np.array([count for text in texts for count in records["base"][text.id].num_kept])
    rank = np.argsort(np.argsort(-whole["base"], 1), 1)
    entropy = {who: -(p * np.log(p)).sum(1) for who, p in whole.items()}
    for part, mask in (
        (summary.everywhere, entropy["base"] > -1),
        (summary.locks, entropy["base"] < 0.3),
        (summary.forks, entropy["base"] > 1.0),
    ):
        assert part is not None and part.num_positions == mask.sum() > 5
        for who, p in whole.items():
            level = getattr(part, who)
            assert level.entropy == pytest.approx(entropy[who][mask].mean(), abs=1e-4)
            assert level.top_probability == pytest.approx(p.max(1)[mask].mean(), abs=1e-4)
            outside = (p * (rank >= num_kept[:, None])).sum(1)[mask].mean()
            assert level.tail_mass == pytest.approx(outside, abs=2e-4)
        for bound, who in ((part.kl_to_head, "head"), (part.kl_to_base, "base")):
            p, q = whole["candidate"][mask], whole[who][mask]
            true = (p * np.log(p / q)).sum(1).mean()
            assert 0.9 * true <= bound <= true + 1e-4, "64 of 400 tokens hold nearly all"
