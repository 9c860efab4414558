"""Of what kind each key is: what derives from it is the list that was meant, and no key of [engine] is forgotten."""

from loop.config.machine import Engine
from loop.config.same_run import MAY_CHANGE
from loop.config.section import keys_of
from loop.config.settings import Config, Training
from loop.run.sharing import SAMPLER_SETTINGS, TRAINER_SETTINGS


def test_every_key_of_the_engine_says_what_depends_on_it() -> None:
    """One that changes results and does not say so would be shared between runs that differ in it."""
    assert set(Engine.model_fields) == set(keys_of(Engine, "cost", "sampling", "training"))
    assert not set(keys_of(Engine, "cost")) & set(keys_of(Engine, "sampling", "training"))


def test_what_derives_from_kinds() -> None:
    assert set(SAMPLER_SETTINGS) == {
        "sampler", "server_url", "server_urls", "device", "dtype", "batch_size", "gpus_per_engine", "num_engines", "num_threads", "lora_rank"
    }  # fmt: skip
    assert set(TRAINER_SETTINGS) == {"trainer", "device", "num_threads", "num_training_processes"}
    assert keys_of(Engine, "private") == ["server_url", "server_urls", "server_command"]
    assert keys_of(Training, "cost") == ["micro_batch_size", "gradient_checkpointing", "save_every_s"]
    operation = ["run_dir", "rounds", "schedule", "storage", "watching", "daemon"]
    assert keys_of(Config, "operation") == operation
    assert set(MAY_CHANGE) == {
        *((key,) for key in operation), ("engine",), ("cluster",), ("grading", "num_workers"),
        ("training", "micro_batch_size"), ("training", "gradient_checkpointing"), ("training", "save_every_s"),
    }  # fmt: skip
