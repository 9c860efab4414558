"""vLLM's engine as processes below this one: with which arguments they start, why they did not, and what happens when one dies.

The engine computes in a process of its own (EngineCore), with several GPUs or on a CPU in further ones below it. All of them
belong to the worker's tree, so its guard ends them, and their CPU time counts as the worker's. Runs only inside a worker
process; imports vLLM only when an engine is started.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from loop.engines.base import CheckpointRef, EngineConfig
from loop.errors import EngineError

CPU_CACHE_BYTES = 2 << 30
MAX_SOCKETS_DIRECTORY = 107 - 37  # bytes: of a socket's path, less a slash and the name that vLLM gives it
REAP_S = 5.0  # for the kernel to say how a process ended whose pipe is closed already
NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # what models' configurations call it
MAX_LOG_BYTES = 4 << 20  # of what the engine wrote while it started, in which the reason is looked for
# A traceback's last line, with what vLLM writes before each: "(Worker pid=7) ERROR 11-30 23:58:07 [core.py:15] ValueError: why".
EXCEPTION = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?(?:\w+\.)*[A-Z]\w*(?:Error|Exception): (.+)$", re.MULTILINE
)


def start_engine(checkpoint: CheckpointRef, settings: EngineConfig, dtype: str, on_gpu: bool) -> Any:
    """An LLMEngine over a checkpoint, or over its base where it is an adapter. EngineError with the reason.

    When a process of the engine dies, this process ends in the same way: vLLM may wait for it for ever.
    """
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    os.environ.setdefault("VLLM_RPC_BASE_PATH", place_of_sockets())
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores(settings.num_threads))
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.engine.llm_engine import LLMEngine

    begins = log_size()
    try:
        arguments = EngineArgs(**engine_arguments(checkpoint, settings, dtype, on_gpu))
        # As in vLLM's own LLM class: its default for the tokens of a step is meant for throughput.
        engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
    except Exception as error:  # whatever vLLM and torch raise
        said = root_cause(begins)
        traceback.print_exc()
        reason = said or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"vLLM cannot start with {checkpoint.path}: {reason[:400]}; if it is memory, lower "
            'engine.kv_cache_bytes or engine.batch_size; engine.sampler = "transformers" does without vLLM; '
            "sampler.log says more"
        ) from None
    end_with(engine.engine_core.resources.engine_manager.processes)
    for name in ("step", "collective_rpc"):
        setattr(engine, name, ending(getattr(engine, name), EngineDeadError))
    return engine


def engine_arguments(checkpoint: CheckpointRef, settings: EngineConfig, dtype: str, on_gpu: bool) -> dict[str, Any]:
    """The keyword arguments of vLLM's EngineArgs."""
    more: dict[str, Any] = {}
    if not on_gpu:
        # Per-request seeds end the engine where a prompt is prefilled in chunks. Without compilation it starts in a
        # tenth of the time and runs a tenth slower.
        more = {"enable_chunked_prefill": False, "enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
    if settings.kv_cache_bytes:
        more["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    if settings.batch_size or not on_gpu:  # else vLLM chooses, by the GPU's memory
        more["max_num_seqs"] = settings.batch
    if settings.gpus_per_engine > 1 and has_experts(checkpoint):
        more["enable_expert_parallel"] = True  # whole experts on each GPU, not a part of every one
    if rank := settings.lora_rank:
        more |= {"enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length()), "max_loras": 1}
    return {
        "model": str(checkpoint.base_path or checkpoint.path),
        "tokenizer": str(checkpoint.path),
        "dtype": dtype,
        "max_model_len": -1,  # the model's, or as much as the cache holds
        "tensor_parallel_size": settings.gpus_per_engine,
        "worker_extension_cls": "loop.engines.vllm_worker.Extension",
        "disable_log_stats": True,
        **more,
    }


def has_experts(checkpoint: CheckpointRef) -> bool:
    """Whether the model is a mixture of experts, by its configuration."""
    full = checkpoint.base_path or checkpoint.path
    config = AutoConfig.from_pretrained(full, local_files_only=True).get_text_config()
    return any((getattr(config, name, None) or 0) > 1 for name in NUM_EXPERTS)


def place_of_sockets() -> str:
    """The directory for temporary files, by a path that leaves room for a name: the kernel takes no long path of a socket."""
    directory = tempfile.gettempdir()
    if len(directory) <= MAX_SOCKETS_DIRECTORY:
        return directory
    return (
        f"/proc/{os.getpid()}/fd/{os.open(directory, os.O_RDONLY | os.O_DIRECTORY)}"  # open for as long as this process
    )


def cores(num_threads: int | None) -> str:
    """The cores that vLLM's threads are bound to, in vLLM's notation: "0,1"."""
    allowed = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, allowed[: num_threads or len(allowed)]))


def log_size() -> int:
    """The bytes of the file that standard error goes to; 0 where it is none."""
    return os.fstat(2).st_size


def root_cause(begins: int) -> str | None:
    """The first exception in the worker's log from a byte on. vLLM's own error says only that another process failed."""
    try:
        with Path("/proc/self/fd/2").open("rb") as log:
            log.seek(begins)
            text = log.read(MAX_LOG_BYTES).decode(errors="replace")
    except OSError:  # no file
        return None
    found = EXCEPTION.search(text)
    return found[1].strip() if found else None


def end_with(processes: list[Any]) -> None:
    """End this process as soon as one of these has ended, and in the same way: by the same signal, or with its exit code."""

    def follow() -> None:
        ended = connection.wait([process.sentinel for process in processes])
        (first, *_) = [process for process in processes if process.sentinel in ended]
        deadline = time.monotonic() + REAP_S
        # None for a moment also where a thread of vLLM has asked the kernel first and has not noted the answer yet.
        while (code := first.exitcode) is None and time.monotonic() < deadline:
            time.sleep(REAP_S / 100)
        if code is not None and code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code or 1)

    threading.Thread(target=follow, daemon=True).start()


def ending(call: Callable[..., Any], dead: type[Exception]) -> Callable[..., Any]:
    """The same call, but where it finds the engine `dead` this process ends: at the latest when `end_with` had time to.

    The daemon would take an error for one of the request, and ask the dead engine again.
    """

    def called(*args: Any, **named: Any) -> Any:
        try:
            return call(*args, **named)
        except dead:
            traceback.print_exc()
            time.sleep(REAP_S)
            os._exit(1)

    return called
