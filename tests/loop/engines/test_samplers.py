"""One contract over all samplers, in process and remote; then what the one over transformers owes to transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loop.engines import hf_sampler, precision
from loop.engines.base import CheckpointRef, Generated, Request, Sampler, SamplingParams
from loop.engines.fake import FakeSampler, write_fake_model
from loop.errors import EngineError
from loop.workers.pool import Pool, Start
from tests.support.engines import GREEDY, HOT, ask, chat, in_process, no_progress, remote, settings
from tests.support.tiny import END, make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    return CheckpointRef(sha256="1" * 64, path=make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    directory = tmp_path_factory.mktemp("models") / "fake"
    write_fake_model(directory, 0.5)
    return CheckpointRef(sha256="2" * 64, path=directory)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pool_of(checkpoint: CheckpointRef, logs: Path) -> Pool:
    def start_of(number: int) -> Start:
        return lambda checkpoint, pulse: remote(checkpoint, "fake", logs / f"sampler-{number}.log")

    starts = [start_of(number) for number in (1, 2)]
    return Pool(starts, checkpoint, batch_size=4, progress=no_progress, pulse=lambda: None, note=pytest.fail)


@pytest.fixture(scope="module", params=["fake", "fake remote", "pool of fakes", "transformers", "transformers remote"])
def pair(
    request: pytest.FixtureRequest, fake: CheckpointRef, tiny: CheckpointRef, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Sampler, Sampler]]:
    """The sampler under test, with batches of 4, and another over the same checkpoint in process, with batches of 7."""
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    samplers: dict[str, Any] = {
        "fake": lambda: FakeSampler(fake, settings(), no_progress),
        "fake remote": lambda: remote(fake, "fake", log),
        "pool of fakes": lambda: pool_of(fake, log.parent),
        "transformers": lambda: in_process(tiny),
        "transformers remote": lambda: remote(tiny, "transformers", log),
    }
    sampler = samplers[request.param]()
    if "fake" in request.param:
        yield sampler, FakeSampler(fake, settings(batch_size=7), no_progress)
    else:
        yield sampler, in_process(tiny, batch_size=7)
    sampler.close()
    sampler.close()


# ---- the contract --------------------------------------------------------------------------------------------------


def test_same_requests_same_completions(pair: tuple[Sampler, Sampler]) -> None:
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(10)]
    first = ask(pair[0], requests, HOT)
    assert ask(pair[0], requests, HOT) == first


def test_a_completion_does_not_depend_on_its_batch(pair: tuple[Sampler, Sampler]) -> None:
    """Token ids, text and reason are equal to the letter, log-probabilities to 1e-4: float32 differs in its last bits."""
    requests = [chat(f"r{i}", seed=100 + i, task=5 * i) for i in range(12)]
    four, seven = ask(pair[0], requests, HOT), ask(pair[1], requests, HOT)
    backwards = ask(pair[0], requests[::-2], HOT)
    alone = ask(pair[0], requests[3:4], HOT)
    for others in (seven, backwards, alone):
        for identifier, one in others.items():
            other = four[identifier]
            assert one.model_copy(update={"logprob_sum": None}) == other.model_copy(update={"logprob_sum": None})
            assert one.logprob_sum == pytest.approx(other.logprob_sum, abs=1e-4)


def test_seeds_make_the_difference_and_greedy_knows_none(pair: tuple[Sampler, Sampler]) -> None:
    requests = [chat(f"r{i}", seed=i) for i in range(16)]
    hot = {generated.token_ids for generated in ask(pair[0], requests, HOT).values()}
    assert len(hot) > 1
    assert len({generated.token_ids for generated in ask(pair[0], requests, GREEDY).values()}) == 1
    same = ask(pair[0], [chat(f"r{i}", seed=7) for i in range(4)], HOT)
    assert len({generated.token_ids for generated in same.values()}) == 1


def test_reasons_and_limits(pair: tuple[Sampler, Sampler]) -> None:
    long = next(iter(ask(pair[0], [chat("r", seed=3)], GREEDY).values()))
    assert long.finish_reason == "eos" and len(long.token_ids) < 64 and long.logprob_sum < 0
    for limit in (1, len(long.token_ids) - 1):
        cut = next(
            iter(ask(pair[0], [chat("r", seed=3)], GREEDY.model_copy(update={"max_new_tokens": limit})).values())
        )
        assert cut.finish_reason == "length"
        assert cut.token_ids == long.token_ids[:limit]
    exact = GREEDY.model_copy(update={"max_new_tokens": len(long.token_ids)})
    assert ask(pair[0], [chat("r", seed=3)], exact)["r"] == long


def test_a_stop_string_ends_a_completion(pair: tuple[Sampler, Sampler]) -> None:
    """It is taken from what the model writes without it, which is not the same on every CPU."""
    written = {task: ask(pair[0], [chat("r", seed=3, task=task)], GREEDY)["r"] for task in range(6)}
    task, free = max(written.items(), key=lambda one: len(one[1].text))
    starts = range(len(free.text) // 4, len(free.text) // 2)
    stop = next(free.text[start : start + 2] for start in starts if free.text[start : start + 2].isascii())
    params = GREEDY.model_copy(update={"stop": ("never seen", stop)})
    stopped = ask(pair[0], [chat("r", seed=3, task=task)], params)["r"]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert stop in stopped.text and free.text.startswith(stopped.text)
    assert len(stopped.text) < len(free.text)


def test_what_can_never_fit_is_refused_by_name(pair: tuple[Sampler, Sampler]) -> None:
    for text in ("def f():", "def f():" * 10000):
        params = HOT.model_copy(update={"max_new_tokens": 100_000 if len(text) < 100 else 10})
        with pytest.raises(
            EngineError, match=r"a prompt that begins 'def f\(\):.*exceeds?.* the model's \d+.*; lower max_new_tokens"
        ):
            ask(pair[0], [Request(id="long", prefill=text, seed=1)], params)
    with pytest.raises(EngineError, match="request none: the prompt is empty"):
        ask(pair[0], [chat("fine", seed=1), Request(id="none", seed=1)], HOT)
    assert ask(pair[0], [chat("fine", seed=1)], HOT)


def test_bare_text_and_no_requests(pair: tuple[Sampler, Sampler]) -> None:
    assert list(pair[0].generate([], HOT)) == []
    bare = ask(pair[0], [Request(id="b", prefill="def sum_words(a, b):", seed=1)], HOT)["b"]
    assert bare.prompt_token_ids and bare.token_ids


def test_the_tokenizer_has_one_hash(pair: tuple[Sampler, Sampler]) -> None:
    assert pair[0].tokenizer_sha256 == pair[1].tokenizer_sha256
    assert len(pair[0].tokenizer_sha256) == 64


@pytest.mark.parametrize("kind", ["fake", "transformers"])
def test_generation_is_lazy_and_lets_go_of_what_is_finished(
    kind: str, fake: CheckpointRef, tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists come while most is still to do, progress never goes back, and what was handed over is let go of."""
    import gc

    sampler = FakeSampler(fake, settings(), no_progress) if kind == "fake" else in_process(tiny)
    seen: list[tuple[int, int]] = []
    sampler.progress = lambda done, total: seen.append((done, total))
    num_given = 0
    for found in sampler.generate([chat(f"r{i}", seed=i) for i in range(20)], HOT):
        num_given += len(found)
        assert 1 <= len(found) <= 4
        assert seen[-1] == (num_given, 20)
        del found
        gc.collect()
        assert sum(type(thing).__name__ == "Row" and bool(thing.token_ids) for thing in gc.get_objects()) <= 5
    assert num_given == 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---- transformers --------------------------------------------------------------------------------------------------


def teacher_forced(model: Any, generated: Generated) -> Any:
    """The log-probabilities of the completion's tokens from one forward pass without cache, padding or batch."""
    import torch

    ids = torch.tensor([[*generated.prompt_token_ids, *generated.token_ids]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(generated.prompt_token_ids)
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_log_probabilities_are_the_models_own(tiny: CheckpointRef, penalty: float) -> None:
    sampler = in_process(tiny)
    params = HOT.model_copy(update={"repetition_penalty": penalty})
    for generated in ask(sampler, [chat(f"r{i}", seed=i, task=3 * i) for i in range(12)], params).values():
        assert generated.logprob_sum == pytest.approx(float(teacher_forced(sampler.model, generated).sum()), abs=1e-3)


def test_text_is_the_decoding_of_what_was_drawn(tiny: CheckpointRef) -> None:
    sampler = in_process(tiny)
    params = HOT.model_copy(update={"max_new_tokens": 18})
    found = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(24)], params)
    assert {generated.finish_reason for generated in found.values()} == {"eos", "length"}
    for generated in found.values():
        assert generated.text == sampler.tokenizer.decode(generated.token_ids, skip_special_tokens=True)
        ends = [token in sampler.eos for token in generated.token_ids]
        assert ends == [False] * (len(ends) - 1) + [generated.finish_reason == "eos"]
        assert END not in generated.text
        opened = sampler.tokenizer.decode(generated.prompt_token_ids)
        assert opened.startswith("<|im_start|>user\n") and opened.endswith("<|im_start|>assistant\n```python\n")


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_greedy_is_what_transformers_generates(tmp_path: Path, penalty: float, pad_is_eos: bool) -> None:
    import torch

    path = make_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos, trained=pad_is_eos)
    sampler = in_process(CheckpointRef(sha256="", path=path))
    params = GREEDY.model_copy(update={"repetition_penalty": penalty})
    for generated in ask(sampler, [chat(f"r{i}", seed=i, task=5 * i) for i in range(6)], params).values():
        prompt = torch.tensor([generated.prompt_token_ids])
        expected = sampler.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=64,
            repetition_penalty=penalty,
        )[0, prompt.shape[1] :]
        assert list(generated.token_ids) == expected.tolist()


def test_a_longer_neighbour_changes_nothing(tiny: CheckpointRef) -> None:
    """Left padding: alone and beside a prompt ten times as long, the same tokens; log-probabilities within 1e-4."""
    sampler = in_process(tiny)
    short = Request(id="short", prefill="def sum_words(", seed=5)
    padded = [short, Request(id="long", prefill="def max_lists(a, b):\n    return max(a, b)\n" * 10, seed=6)]
    for params in (GREEDY, HOT, HOT.model_copy(update={"repetition_penalty": 1.5})):
        alone, beside = ask(sampler, [short], params)["short"], ask(sampler, padded, params)["short"]
        assert alone.token_ids == beside.token_ids
        assert alone.logprob_sum == pytest.approx(beside.logprob_sum, abs=1e-4)


def test_learned_positions_count_from_the_first_real_token(tmp_path: Path) -> None:
    """A GPT-2, whose positions are absolute: padding on the left must not move them."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.support.tiny import make_tokenizer

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_positions=256, n_embd=32, n_layer=2, n_head=2, eos_token_id=0, bos_token_id=0)
    model = GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wpe.weight, std=1.0)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    sampler = in_process(CheckpointRef(sha256="", path=tmp_path))
    short = Request(id="short", prefill="def sum_words(", seed=5)
    alone = ask(sampler, [short], HOT)["short"]
    beside = ask(sampler, [short, Request(id="long", prefill="def max_lists(a, b):\n" * 5, seed=6)], HOT)["short"]
    assert alone.token_ids == beside.token_ids
    assert alone.logprob_sum == pytest.approx(float(teacher_forced(sampler.model, alone).sum()), abs=1e-3)


def test_finished_rows_leave_the_batch(tiny: CheckpointRef) -> None:
    sampler = in_process(tiny, batch_size=16)
    sizes: list[int] = []
    sampler.model.register_forward_pre_hook(
        lambda module, arguments, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    found = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(16)], HOT)
    lengths = [len(generated.token_ids) for generated in found.values()]
    assert len(set(lengths)) > 2
    assert sizes[0] == 1, "what all prompts begin with is computed once"
    assert sizes[1:] == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_new_rows_take_the_places_of_finished_ones(tiny: CheckpointRef) -> None:
    """With requests waiting, no forward pass over the running batch lacks more than the rows that just finished."""
    sampler = in_process(tiny, batch_size=8)
    sizes: list[int] = []
    sampler.model.register_forward_pre_hook(
        lambda module, arguments, named: (
            sizes.append(len(named["input_ids"])) if named["input_ids"].shape[1] == 1 else None
        ),
        with_kwargs=True,
    )
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(40)]
    found = ask(sampler, requests, HOT)
    lengths = [len(generated.token_ids) for generated in found.values()]
    assert len(set(lengths)) > 2
    assert len(sizes) < sum(lengths) / 8 * 1.3 + max(lengths), "the batch is not kept full"


def test_what_is_finished_is_handed_over_at_once(tiny: CheckpointRef) -> None:
    """What was handed over is not lost when the worker ends; the rest of the batch is still in the making."""
    requests = [chat(f"r{i}", seed=i, task=i) for i in range(4)]
    lengths = {name: len(each.token_ids) for name, each in ask(in_process(tiny), requests, HOT).items()}
    assert len(set(lengths.values())) > 1
    first = next(in_process(tiny).generate(requests, HOT))
    assert {lengths[each.id] for each in first} == {min(lengths.values())} and len(first) < 4


def test_prompts_are_computed_in_slices_that_report(tiny: CheckpointRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are the same; a prompt that several rows share is computed once, whatever slice it falls in."""
    requests = [chat(f"r{i}", seed=i, task=i // 2) for i in range(8)]
    whole = ask(in_process(tiny, batch_size=8), requests, HOT)
    monkeypatch.setattr(hf_sampler, "PREFILL_TOKENS", 1)
    sliced = in_process(tiny, batch_size=8)
    reports: list[tuple[int, int]] = []
    sizes: list[int] = []
    prefill = sliced._prefill

    def counted(rows: list[Any], *more: Any) -> Any:
        sizes.append(len(rows))
        assert len(reports) == len(sizes) - 1, "a report after each slice"
        return prefill(rows, *more)

    monkeypatch.setattr(sliced, "_prefill", counted)
    sliced.progress = lambda done, total: reports.append((done, total))
    assert {name: each.token_ids for name, each in ask(sliced, requests, HOT).items()} == {
        name: each.token_ids for name, each in whole.items()
    }
    assert sizes == [2, 2, 2, 2]


def test_a_sliding_window_is_sampled_without_places(tmp_path: Path) -> None:
    """A cache that forgets cannot hold rows side by side: such models run batch by batch, with the same completions."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from tests.support.tiny import make_tokenizer

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=512, max_position_embeddings=512, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    sampler = in_process(CheckpointRef(sha256="", path=tmp_path))
    requests = [Request(id=f"r{i}", prefill="def f(" + "a, " * i, seed=i) for i in range(10)]
    for generated in ask(sampler, requests, HOT).values():
        assert generated.logprob_sum == pytest.approx(float(teacher_forced(sampler.model, generated).sum()), abs=1e-3)


def test_every_end_token_of_the_generation_config_ends(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    path = make_tiny_model(tmp_path / "model")
    free = ask(in_process(CheckpointRef(sha256="", path=path)), [chat("r", seed=1)], GREEDY)["r"]
    another = free.token_ids[5]
    GenerationConfig(eos_token_id=[0, another], pad_token_id=0).save_pretrained(path)
    ended = ask(in_process(CheckpointRef(sha256="", path=path)), [chat("r", seed=1)], GREEDY)["r"]
    assert ended.finish_reason == "eos"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(another) + 1]


@pytest.mark.parametrize(
    ("dtype", "flags", "expected"),
    [
        ("auto", "avx2 fma", "float32"),
        ("auto", "avx2 avx512_bf16", "bfloat16"),
        ("bfloat16", "avx2 fma", "bfloat16"),
    ],
)
def test_precisions_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, flags: str, expected: str
) -> None:
    """auto is what the CPU can do, whatever the checkpoint's own is; bfloat16 works where it is asked for."""
    import torch

    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(precision, "CPU_FACTS", tmp_path / "cpuinfo")

    path = make_tiny_model(tmp_path / "model", bfloat16=True)
    sampler = in_process(CheckpointRef(sha256="", path=path), dtype=dtype)
    assert sampler.model.dtype == getattr(torch, expected)
    found = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(8)], HOT)
    assert all(math.isfinite(generated.logprob_sum) for generated in found.values())


def test_damaged_weights_are_an_error_and_not_a_completion(tiny: CheckpointRef) -> None:
    import torch

    sampler = in_process(tiny)
    torch.nn.init.constant_(sampler.model.model.norm.weight, float("nan"))
    with pytest.raises(EngineError, match="request r: the model's logits are not finite"):
        ask(sampler, [chat("r", seed=1)], HOT)


def test_a_model_without_chat_template(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "model")
    (path / "chat_template.jinja").unlink()
    sampler = in_process(CheckpointRef(sha256="", path=path))
    with pytest.raises(EngineError, match=r"no chat template; set model\.chat_template = false"):
        ask(sampler, [chat("r", seed=1)], HOT)
    assert ask(sampler, [Request(id="r", prefill="def ", seed=1)], HOT)


def test_the_chat_template_is_part_of_the_tokenizers_hash(tmp_path: Path) -> None:
    from loop.engines.hf_models import load_tokenizer

    path = make_tiny_model(tmp_path / "model")
    before = load_tokenizer(CheckpointRef(sha256="", path=path))[1]
    template = path / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert load_tokenizer(CheckpointRef(sha256="", path=path))[1] != before


# ---- the distribution ----------------------------------------------------------------------------------------------


def full(logits: Any, params: SamplingParams) -> Any:
    """`truncated_distribution` as (B, V)."""
    import torch

    from loop.engines.drawing import truncated_distribution

    probabilities, ids = truncated_distribution(logits, params)
    if ids is None:
        return probabilities
    return torch.zeros_like(logits).scatter(1, ids, probabilities)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([5, 400, 3000]),
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    temperature=st.floats(0.3, 3.0),
    top_k=st.sampled_from([0, 1, 3, 20, 2500]),
    top_p=st.sampled_from([0.05, 0.5, 0.8, 0.95, 0.999, 1.0]),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, vocabulary: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    """In float64, so that the border of the nucleus cannot fall differently for rounding. Flat logits over 3,000 tokens
    need a nucleus of more than the 1,024 that are sorted first."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64) * spread
    logits[2] *= 8  # a sharp row beside flat ones
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=1)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = full(logits, params)
    torch.testing.assert_close(found, expected.softmax(-1), atol=1e-9, rtol=1e-9)
    for row in range(3):
        torch.testing.assert_close(full(logits[row : row + 1], params)[0], found[row], atol=0, rtol=0)


def test_ties_fall_the_same_whoever_else_is_in_the_batch() -> None:
    import torch

    from loop.engines.drawing import truncated_distribution

    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1)).mul(8).round()  # many ties in a sharp row
    logits[1] = 0  # needs far more than the tokens that are sorted first
    params = SamplingParams(temperature=1.0, top_p=0.99, max_new_tokens=1)
    _, alone = truncated_distribution(logits[:1], params)
    _, beside = truncated_distribution(logits, params)
    assert alone is not None and beside is not None
    assert beside.shape[1] == 3000
    assert torch.equal(alone[0], beside[0, : alone.shape[1]])


@hypothesis_settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.floats(0.5, 2.0))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    from loop.engines.hf_sampler import TransformersSampler

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 50, generator=generator)
    before = torch.randint(0, 50, (4, 12), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(before, logits.clone())
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter_(1, before, True)
    params = SamplingParams(temperature=0.0, repetition_penalty=penalty, max_new_tokens=1)
    tokens, logprobs = TransformersSampler._choose(None, logits, [0.0] * 4, params, seen)  # type: ignore[arg-type]
    assert tokens.tolist() == expected.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=2.0, max_new_tokens=1),
        SamplingParams(temperature=2.5, top_k=20, top_p=0.9, max_new_tokens=1),
        SamplingParams(temperature=2.5, top_p=0.9, repetition_penalty=1.4, max_new_tokens=1),
    ],
)
def test_drawn_frequencies_are_the_distribution(tiny: CheckpointRef, params: SamplingParams) -> None:
    """2,000 first tokens against teacher-forced logits through transformers' processors; chi-square, fixed seeds."""
    import torch
    from scipy.stats import chisquare
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    sampler = in_process(tiny, batch_size=500)
    count = 2000
    found = ask(sampler, [Request(id=f"r{i}", prefill="def ", seed=i) for i in range(count)], params)
    drawn = torch.tensor([generated.token_ids[0] for generated in found.values()]).bincount(minlength=400)
    prompt = torch.tensor([next(iter(found.values())).prompt_token_ids])
    with torch.no_grad():
        logits = sampler.model(input_ids=prompt).logits[:, -1]
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(prompt, logits)
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    scores = TopKLogitsWarper(params.top_k)(None, scores) if params.top_k else scores
    scores = TopPLogitsWarper(params.top_p)(None, scores) if params.top_p < 1 else scores
    expected = scores.softmax(-1)[0].double()
    assert int(drawn[expected == 0].sum()) == 0
    common = expected * count >= 5
    observed = torch.cat([drawn[common], drawn[~common].sum()[None]]).double()
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * count
    keep = wanted > 0
    assert keep.sum() > 2
    wanted = wanted[keep] / wanted[keep].sum() * count
    assert chisquare(observed[keep].numpy(), wanted.numpy()).pvalue > 0.001
