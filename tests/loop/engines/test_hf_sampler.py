"""What the sampler over transformers owes to transformers: log-probabilities, greedy texts, ends, batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loop.engines import hf_sampler, precision
from loop.engines.base import CheckpointRef, Request
from loop.errors import EngineError
from tests.support.engines import GREEDY, HOT, ask, chat, in_process, teacher_forced
from tests.support.tiny import END, make_tiny_model, make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


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
