"""The environment in which every worker runs."""

from __future__ import annotations

import os

from loop.system import ourselves, trees

# How often a thread of OpenMP looks for work before it sleeps; `python bench/busy.py` measures it (docs/engines.md).
SPIN_COUNT = "3000"


def environment_of(token: str) -> dict[str, str]:
    """The environment of every worker: the user's, with what a worker needs."""
    return (
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order of nvidia-smi and of loop.system.gpus
        # torch that was asked for CUDA is of no use in a forked process. vLLM starts its engine in a process of its own:
        # by fork, unless this is set; and the question itself starts no CUDA, if the other is set before torch is imported.
        | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        | {
            "SPT_NOENV": "1"
        }  # vLLM renames its processes, which without this deletes the environment that shows whose they are
        | ({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPIN_COUNT})
        | ourselves.environment()
        | {
            trees.TREE: token,
            trees.PARENT: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
    )
