"""The tiny world of `bench/study.py`: tasks, a byte-level BPE and a Llama trained from scratch on them, all seeded.

A task is one line over a list of integers: a filter, a map and what becomes of the result. The base learns them from
solutions of which some are wrong on purpose: one part is another's. So it knows the right answer to most tasks, and still
writes wrong ones at T 1: there is something to gain by sharpening, as there is for a large model.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loop.prompts.templates import ask, content, opening

SIGNATURE = "def f(xs):"
END, PAD = "<|end|>", "<|pad|>"
NUMBERS = range(2, 13)
Part = tuple[str, str]  # in words and in code

FILTERS: list[Part] = [
    ("the numbers", ""), ("the even numbers", " if x % 2 == 0"), ("the odd numbers", " if x % 2 == 1"),
    ("the positive numbers", " if x > 0"), ("the negative numbers", " if x < 0"),
    *((f"the numbers above {k}", f" if x > {k}") for k in NUMBERS),
    *((f"the numbers below {k}", f" if x < {k}") for k in NUMBERS),
]  # fmt: skip
MAPS: list[Part] = [
    ("", "x"), (" squared", "x * x"), (" negated", "-x"), (" without sign", "abs(x)"),
    *((f" times {k}", f"x * {k}") for k in NUMBERS),
    *((f" plus {k}", f"x + {k}") for k in NUMBERS),
    *((f" minus {k}", f"x - {k}") for k in NUMBERS),
]  # fmt: skip
ENDS: list[Part] = [
    ("the list of", "{}"), ("the sum of", "sum({})"), ("the count of", "len({})"), ("the sorted list of", "sorted({})"),
    ("the largest of", "max({}, default=0)"), ("the smallest of", "min({}, default=0)"),
    ("the reversed list of", "{}[::-1]"), ("the distinct count of", "len(set({}))"),
    *((f"the first {k} of", f"{{}}[:{k}]") for k in range(2, 7)),
    *((f"the last {k} of", f"{{}}[-{k}:]") for k in range(2, 7)),
]  # fmt: skip
PARTS = (FILTERS, MAPS, ENDS)
INPUTS = ([3, -4, 8, 13, 0, -7, 6, 5, 11, 2, 9, -2], [-1, 12, 4, 4, 7, -6, 10, 1], [14, -13, 3, 2], [])

Task = tuple[int, int, int]  # an index into each of PARTS


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the base depends on, beside the code of this file."""

    seed: int = 0
    vocab_size: int = 442
    hidden_size: int = 128
    num_layers: int = 4
    num_steps: int = 800
    batch_size: int = 32
    learning_rate: float = 3e-3
    wrong_share: float = 0.3
    num_decide: int = 300
    num_held_out: int = 150
    num_prompts: int = 4096

    @property
    def sha256(self) -> str:
        """Names the cache: another recipe, or another version of this file, makes another base."""
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps([code, asdict(self)]).encode()).hexdigest()


def statement(task: Task) -> str:
    """The task in words."""
    which, how, end = (part[index][0] for part, index in zip(PARTS, task, strict=True))
    return f"Return {end} {which}{how}."


def solution(task: Task) -> str:
    """The right expression."""
    which, how, end = (part[index][1] for part, index in zip(PARTS, task, strict=True))
    return end.format(f"[{how} for x in xs{which}]")


def spoilt(task: Task, rng: random.Random) -> Task:
    """The task with one part replaced by another."""
    place = rng.randrange(3)
    other = rng.choice([index for index in range(len(PARTS[place])) if index != task[place]])
    return tuple(other if at == place else index for at, index in enumerate(task))  # type: ignore[return-value]


def problem(task: Task, name: str) -> dict[str, Any]:
    """A row in MBPP's format, with a signature."""
    code = solution(task)
    results = [eval(code, {"xs": list(xs)}) for xs in INPUTS]  # our own expressions
    tests = [f"assert f({xs!r}) == {result!r}" for xs, result in zip(INPUTS, results, strict=True)]
    return {"task_id": name, "text": statement(task), "signature": SIGNATURE, "entry_point": "f",
            "test_list": tests, "code": f"{SIGNATURE}\n    return {code}"}  # fmt: skip


def asked(task: Task) -> str:
    """What the loop asks, to the letter: bare text, without a chat template."""
    return str(content(ask(statement(task), SIGNATURE), chat=False, opening=opening(SIGNATURE))["prefill"])


def answered(task: Task) -> str:
    """An answer, from the signature on."""
    return f"\n    return {solution(task)}\n```{END}"


def make_world(where: Path, recipe: Recipe, say: Callable[[str], None]) -> Path:
    """A directory with `model`, `decide.jsonl`, `held-out.jsonl` and `prompts.jsonl`; one that exists is used as it is.

    Base training, prompts and both suites have no task in common.
    """
    place = where / f"base-{recipe.sha256[:12]}"
    if place.exists():
        return place
    rng = random.Random(recipe.seed)
    tasks: list[Task] = [(i, j, k) for i in range(len(FILTERS)) for j in range(len(MAPS)) for k in range(len(ENDS))]
    rng.shuffle(tasks)
    cuts = [recipe.num_decide, recipe.num_held_out, recipe.num_prompts]
    decide, held_out, prompts = (tasks[sum(cuts[:n]) : sum(cuts[: n + 1])] for n in range(3))
    rest = tasks[sum(cuts) :]
    where.mkdir(parents=True, exist_ok=True)
    made = place.with_suffix(".partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for name, group in (("decide", decide), ("held-out", held_out)):
        write_rows(made / f"{name}.jsonl", [problem(task, f"{name}/{n}") for n, task in enumerate(group)])
    rows = [{"id": f"prompt/{n}", "statement": statement(t), "signature": SIGNATURE} for n, t in enumerate(prompts)]
    write_rows(made / "prompts.jsonl", rows)
    train_base(made / "model", rest, recipe, say)
    made.rename(place)
    return place


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_base(path: Path, tasks: Sequence[Task], recipe: Recipe, say: Callable[[str], None]) -> None:
    """Train on one thread, loss on the answers alone, and write a Hugging Face directory."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed + 1)
    tokenizer = make_tokenizer(tasks, recipe)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden_size, intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.num_layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, recipe.num_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.02, 1 - step / recipe.num_steps))
    )
    started = time.monotonic()
    for step in range(recipe.num_steps):
        rows = []
        for task in rng.sample(tasks, recipe.batch_size):
            answer = answered(spoilt(task, rng) if rng.random() < recipe.wrong_share else task)
            rows.append((tokenizer(asked(task))["input_ids"], tokenizer(answer)["input_ids"]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)  # (B, T)
        labels = torch.full((len(rows), width), -100)
        for n, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            input_ids[n, :end] = torch.tensor(prompt + answer)
            labels[n, len(prompt) : end] = torch.tensor(answer)
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.num_steps:
            say(
                f"base: step {step + 1} of {recipe.num_steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s"
            )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    say(f"base: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")


def make_tokenizer(tasks: Sequence[Task], recipe: Recipe) -> Any:
    """A byte-level BPE trained on the tasks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [asked(task) + answered(task).removesuffix(END) for task in tasks[:2000]]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=512)
