"""What the sampler over transformers owes to transformers: log-probabilities, greedy texts, ends, batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.engines import hf_models, hf_sampler
from loop.engines.base import CheckpointRef, Forced, Request
from loop.errors import EngineError
from tests.support.engines import GREEDY, HOT, ask, at, chat, forced, greedy, hot, in_process
from tests.support.tiny import END, make_tiny_model, make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_log_probabilities_are_the_models_own(tiny: CheckpointRef, penalty: float) -> None:
    sampler = in_process(tiny)
    requests = [chat(f"r{i}", seed=i, task=3 * i) for i in range(12)]
    for generated in ask(sampler, requests, hot(repetition_penalty=penalty)).values():
        assert generated.logprob_sum == forced(sampler.model, generated)


def test_text_is_the_decoding_of_what_was_drawn(tiny: CheckpointRef) -> None:
    sampler = in_process(tiny)
    drawn = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(24)], hot(max_new_tokens=18))
    assert {generated.finish_reason for generated in drawn.values()} == {"eos", "length"}
    for generated in drawn.values():
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

    sampler = in_process(at(make_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos, trained=pad_is_eos)))
    requests = [chat(f"r{i}", seed=i, task=5 * i) for i in range(6)]
    how = {"do_sample": False, "max_new_tokens": 64, "repetition_penalty": penalty}
    for generated in ask(sampler, requests, greedy(repetition_penalty=penalty)).values():
        prompt = torch.tensor([generated.prompt_token_ids])
        expected = sampler.model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        assert list(generated.token_ids) == expected[0, prompt.shape[1] :].tolist()


def test_a_longer_neighbour_changes_nothing(tiny: CheckpointRef) -> None:
    """Left padding: alone and beside a prompt ten times as long, the same tokens; log-probabilities within 1e-4."""
    sampler = in_process(tiny)
    short = Request(id="short", prefill="def sum_words(", seed=5)
    padded = [short, Request(id="long", prefill="def max_lists(a, b):\n    return max(a, b)\n" * 10, seed=6)]
    for params in (GREEDY, HOT, hot(repetition_penalty=1.5)):
        alone, beside = ask(sampler, [short], params)["short"], ask(sampler, padded, params)["short"]
        assert alone.token_ids == beside.token_ids
        assert alone.logprob_sum == pytest.approx(beside.logprob_sum, abs=1e-4)


OTHER_MODELS: dict[str, dict[str, Any]] = {
    # Its positions are absolute: padding on the left must not move them.
    "gpt2": {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2},
    # Its cache, a sliding window, forgets and so cannot hold rows side by side: it runs batch by batch.
    "mistral": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 16, "max_position_embeddings": 512,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_kinds_of_models_are_sampled_alike(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=400, eos_token_id=0, bos_token_id=0, **OTHER_MODELS[kind])
    model = AutoModelForCausalLM.from_config(config)
    if kind == "gpt2":
        torch.nn.init.normal_(model.transformer.wpe.weight, std=1.0)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    sampler = in_process(at(tmp_path))
    requests = [Request(id=f"r{i}", prefill="def f(" + "a, " * i, seed=i) for i in range(10)]
    drawn = ask(sampler, requests, HOT)
    assert ask(sampler, requests[:1], HOT)["r0"].token_ids == drawn["r0"].token_ids
    for generated in drawn.values():
        assert generated.logprob_sum == forced(sampler.model, generated)


def passes_of(sampler: Any) -> list[tuple[int, int]]:
    """The shape (rows, tokens) of the input of every forward pass from now on."""
    shapes: list[tuple[int, int]] = []
    sampler.model.register_forward_pre_hook(
        lambda module, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_finished_rows_leave_the_batch(tiny: CheckpointRef) -> None:
    sampler = in_process(tiny, batch_size=16)
    passes = passes_of(sampler)
    drawn = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(16)], HOT)
    lengths = [len(generated.token_ids) for generated in drawn.values()]
    assert len(set(lengths)) > 2
    sizes = [num_rows for num_rows, _ in passes]
    assert sizes[0] == 1, "what all prompts begin with is computed once"
    assert sizes[1:] == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_new_rows_take_the_places_of_finished_ones(tiny: CheckpointRef) -> None:
    """With requests waiting, no forward pass over the running batch lacks more than the rows that just finished."""
    sampler = in_process(tiny, batch_size=8)
    passes = passes_of(sampler)
    drawn = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(40)], HOT)
    lengths = [len(generated.token_ids) for generated in drawn.values()]
    assert len(set(lengths)) > 2
    num_steps = sum(num_tokens == 1 for _, num_tokens in passes)
    assert num_steps < sum(lengths) / 8 * 1.3 + max(lengths), "the batch is not kept full"


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
    drawn = ask(sliced, requests, HOT)
    assert all(drawn[name].token_ids == each.token_ids for name, each in whole.items())
    assert sizes == [2, 2, 2, 2]


def test_every_end_token_of_the_generation_config_ends(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    model = at(make_tiny_model(tmp_path / "model"))
    free = ask(in_process(model), [chat("r", seed=1)], GREEDY)["r"]
    another = free.token_ids[5]
    GenerationConfig(eos_token_id=[0, another], pad_token_id=0).save_pretrained(model.path)
    ended = ask(in_process(model), [chat("r", seed=1)], GREEDY)["r"]
    assert ended.finish_reason == "eos"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(another) + 1]


@pytest.mark.parametrize(
    ("dtype", "cpu", "expected"),
    [("auto", "float32", "float32"), ("auto", "bfloat16", "bfloat16"), ("bfloat16", "float32", "bfloat16")],
)
def test_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, cpu: str, expected: str) -> None:
    """auto is what the CPU can do, whatever the checkpoint's own is; bfloat16 works where it is asked for."""
    monkeypatch.setattr(hf_models, "auto_dtype", lambda on_gpu: (cpu, "it can"))
    sampler = in_process(at(make_tiny_model(tmp_path / "model", bfloat16=True)), dtype=dtype)
    assert sampler.model.dtype == hf_models.DTYPES[expected]
    drawn = ask(sampler, [chat(f"r{i}", seed=i, task=i) for i in range(8)], HOT)
    assert all(math.isfinite(generated.logprob_sum) for generated in drawn.values())


def test_damaged_weights_are_an_error_and_neither_a_completion_nor_a_record(tiny: CheckpointRef) -> None:
    import torch

    sampler = in_process(tiny)
    text = Forced(id="t", prompt_token_ids=(5,), token_ids=(6,))
    torch.nn.init.constant_(sampler.model.model.norm.weight, float("nan"))
    for use in (lambda: ask(sampler, [chat("r", seed=1)], HOT), lambda: list(sampler.probe([text], HOT, 8))):
        with pytest.raises(EngineError, match="(request r|text t): the model's logits are not finite"):
            use()


def test_a_model_without_chat_template(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "model")
    (path / "chat_template.jinja").unlink()
    sampler = in_process(at(path))
    with pytest.raises(EngineError, match=r"no chat template; set model\.chat_template = false"):
        ask(sampler, [chat("r", seed=1)], HOT)
    assert ask(sampler, [Request(id="r", prefill="def ", seed=1)], HOT)


def test_the_chat_template_is_part_of_the_tokenizers_hash(tmp_path: Path) -> None:
    from loop.engines.hf_models import load_tokenizer

    path = make_tiny_model(tmp_path / "model")
    before = load_tokenizer(at(path))[1]
    template = path / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert load_tokenizer(at(path))[1] != before


PROMPTS = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.lists(PROMPTS, min_size=1, max_size=3), min_size=1, max_size=5))
def test_what_all_prompts_begin_with_is_known_as_far_as_they_have_come(pieces: list[list[tuple[int, ...]]]) -> None:
    """And its cache is computed anew exactly when it is another."""
    beginning, seen = hf_sampler.Beginning(), set[tuple[int, ...]]()
    for piece in pieces:
        before = beginning.token_ids
        if beginning.take(piece):
            beginning.cache = beginning.token_ids  # type: ignore[assignment]
        seen.update(piece)
        num = hf_sampler.shared_beginning(list(seen)) if len(seen) > 1 else 0
        assert beginning.token_ids == min(seen)[:num]
        assert (beginning.cache or ()) == beginning.token_ids
        assert len(before) == 0 or num <= len(before)
