"""A tiny real model for tests: a Llama of some 60,000 parameters and its own tokenizer, made on the spot in a second or two.

It is trained for a moment on functions of one line inside a chat, so that it writes something like code and ends it.
torch is imported only when a model is made.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from loop.prompts.templates import ask

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FUNCTIONS = [
    (f"def {verb}_{noun}(a, b):", f"\n    return {body}\n```", f"Write a function that returns the {verb} of {noun}.")
    for noun in ("numbers", "lists", "words")
    for verb, body in (("sum", "a + b"), ("max", "max(a, b)"), ("length", "len(a)"), ("pair", "[a, b]"))
]


def make_tiny_model(
    path: Path,
    *,
    pad_is_eos: bool = True,
    bfloat16: bool = False,
    seed: int = 0,
    trained: bool = True,
    head_size: int = 12,
) -> Path:
    """Write a Hugging Face directory (safetensors, tokenizer with a ChatML template) into `path` and return it.

    The end-of-sequence token is `<|im_end|>`; it pads too, or `<|pad|>` does. The same arguments give the same bytes.
    vLLM's attention wants a head_size of 32 or more.
    """
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(pad_is_eos)
    model = LlamaForCausalLM(_config(tokenizer, head_size))
    model.load_state_dict(_weights(seed, trained, head_size))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    if bfloat16:
        model = model.to(torch.bfloat16)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tokenizer(pad_is_eos: bool = True) -> Any:
    """A byte-level BPE of 400 tokens trained on the functions above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, START, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([task + signature + body for signature, body, task in FUNCTIONS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END if pad_is_eos else PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def _config(tokenizer: Any, head_size: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=400,
        hidden_size=4 * head_size,
        intermediate_size=8 * head_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@functools.cache
def _weights(seed: int, trained: bool, head_size: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that threads only get in each other's way
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = make_tokenizer()
            model = LlamaForCausalLM(_config(tokenizer, head_size))
            if trained:
                _train(model, tokenizer)
    finally:
        torch.set_num_threads(threads)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _train(model: Any, tokenizer: Any, num_steps: int = 80) -> None:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows, targets = [], []
    for signature, body, task in FUNCTIONS:
        messages = [{"role": "user", "content": ask(task, signature)}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "```python\n"
        question, answer = (tokenizer(text)["input_ids"] for text in (prompt, f"{signature}{body}{END}"))
        rows.append(torch.tensor(question + answer))
        targets.append(torch.tensor([-100] * len(question) + answer))
    input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)  # (B, T)
    labels = pad_sequence(targets, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()


def make_random_model(path: Path, kind: str, head_size: int = 12) -> Path:
    """Write an untrained model of some 100,000 parameters with the same tokenizer: "llama" (untied), "qwen3", "qwen3-moe", "gpt-oss"."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = make_tokenizer()
    shape = {
        "vocab_size": 400, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": head_size, "max_position_embeddings": 2048, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    experts = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False}
    names, more = {
        "llama": ("Llama", {"tie_word_embeddings": False}),
        "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
        "qwen3-moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True} | experts),
        "gpt-oss": (
            "GptOss",
            {"num_local_experts": 4, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
            | experts,
        ),
    }[kind]
    config = getattr(transformers, f"{names}Config")(**shape, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tiny_gpt_oss(path: Path) -> Path:
    """Write a GPT-OSS of three layers and eight experts in bfloat16, with random weights and attention sinks."""
    import torch
    from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM

    tokenizer = make_tokenizer()
    config = GptOssConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GptOssForCausalLM(config)
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
