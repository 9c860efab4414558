"""vLLM's processes, with stand-ins: `test_vllm.py` runs the real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest

from loop.engines.base import CheckpointRef
from loop.engines.vllm_process import EXCEPTION, cores, engine_arguments, place_of_sockets
from loop.errors import EngineError
from loop.workers.worker import Worker
from tests.support.engines import no_progress, settings
from tests.support.tiny import make_tiny_model
from tests.support.waiting import HANG_S


def model_with(directory: Path, **config: Any) -> CheckpointRef:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return CheckpointRef(sha256="", path=directory)


@pytest.mark.parametrize(
    ("on_gpu", "changed", "batch"),
    [
        (True, {"batch_size": None}, None),
        (True, {"batch_size": 7}, 7),
        (False, {"batch_size": None}, 32),
        (False, {"batch_size": 7}, 7),
    ],
)
def test_a_batch_that_nobody_set_is_left_to_vllm_on_a_gpu(
    tmp_path: Path, on_gpu: bool, changed: dict[str, Any], batch: int | None
) -> None:
    dense = model_with(tmp_path / "dense", model_type="llama")
    assert engine_arguments(dense, settings(**changed), "float32", on_gpu).get("max_num_seqs") == batch


def test_experts_are_dealt_out_over_the_gpus_of_an_engine(tmp_path: Path) -> None:
    dense = model_with(tmp_path / "dense", model_type="llama")
    moe = model_with(tmp_path / "moe", model_type="qwen3_moe", num_experts=8)
    gpt = model_with(tmp_path / "gpt", model_type="gpt_oss", num_local_experts=8)
    parallel = {
        (name, num): bool(
            engine_arguments(each, settings(gpus_per_engine=num), "bfloat16", True).get("enable_expert_parallel")
        )
        for name, each in (("dense", dense), ("moe", moe), ("gpt", gpt))
        for num in (1, 2)
    }
    assert {key for key, is_on in parallel.items() if is_on} == {("moe", 2), ("gpt", 2)}


def test_the_variables_are_set_when_vllm_is_imported(tmp_path: Path) -> None:
    """With them vLLM spawns its engine, and what torch was asked about CUDA before does no harm. They are there first."""
    package = tmp_path / "vllm"
    for directory in (package, package / "engine"):
        directory.mkdir()
        (directory / "__init__.py").touch()
    (package / "engine" / "arg_utils.py").write_text(
        "import os\n"
        "names = 'VLLM_WORKER_MULTIPROC_METHOD', 'PYTORCH_NVML_BASED_CUDA_CHECK'\n"
        "begun = dict(line.split('=', 1) for line in open('/proc/self/environ').read().split(chr(0)) if '=' in line)\n"
        "raise RuntimeError(f'{[(os.environ[name], begun[name]) for name in names]}')\n"
    )
    checkpoint = CheckpointRef(sha256="1", path=make_tiny_model(tmp_path / "tiny"))
    init = {"op": "load_sampler", "checkpoint": checkpoint, "settings": settings(sampler="vllm")}
    with pytest.raises(EngineError) as refused:
        Worker(
            init,
            log_file=tmp_path / "log",
            stall_timeout_s=HANG_S,
            progress=no_progress,
            environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
    assert "[('spawn', 'spawn'), ('1', '1')]" in str(refused.value)


LOG = """\
(Worker pid=7) INFO 11-30 23:58:04 [base_loader.py:82] Initializing model took 0.24 seconds
(Worker_TP0 pid=7) ERROR 11-30 23:58:07 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker_TP0 pid=7) ERROR 11-30 23:58:07 [multiproc_executor.py:1063]     raise ValueError(
(Worker_TP0 pid=7) ERROR 11-30 23:58:07 [multiproc_executor.py:1063] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB
(EngineCore pid=1) ERROR 11-30 23:58:07 [core.py:1510] RuntimeError: Worker failed with error 'CUDA out of memory'
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_reason_is_the_first_exception_of_any_process() -> None:
    found = EXCEPTION.search(LOG)
    assert found and found[1] == "CUDA out of memory. Tried 2 GiB"
    assert EXCEPTION.search("\n".join(LOG.splitlines()[-1:])), "one without vLLM's prefix"
    assert EXCEPTION.search(LOG.splitlines()[0]) is None


def ends(how: str) -> int:
    """The status of a process that follows one which ends so."""
    code = (
        "import multiprocessing, os, signal, time\n"
        "from loop.engines.vllm_process import end_with\n"
        f"def end(): {how}\n"
        "fork = multiprocessing.get_context('fork')\n"
        "others = [fork.Process(target=time.sleep, args=(600,), daemon=True), fork.Process(target=end)]\n"
        "[process.start() for process in others]\n"
        "end_with(others)\n"
        "time.sleep(600)\n"
    )
    return subprocess.run([sys.executable, "-c", code], timeout=HANG_S).returncode


@pytest.mark.parametrize(
    ("how", "status"),
    [("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL), ("os._exit(3)", 3), ("os._exit(0)", 1)],
)
def test_a_worker_ends_as_its_engine_does(how: str, status: int) -> None:
    """vLLM waits for ever for an engine that was killed; the daemon would take that for a long silence."""
    assert ends(how) == status


def test_a_worker_ends_where_its_engine_says_that_it_is_dead() -> None:
    """As it does when a process below it has died; until then it answers, and other errors are errors."""
    code = (
        "from loop.engines import vllm_process\n"
        "vllm_process.REAP_S = 0.1\n"
        "class Dead(Exception): pass\n"
        "def call(what):\n"
        "    if isinstance(what, Exception): raise what\n"
        "    return what\n"
        "asked = vllm_process.ending(call, Dead)\n"
        "assert asked(2) == asked(what=2) == 2\n"
        "try: asked(ValueError())\n"
        "except ValueError: print('an error', flush=True)\n"
        "asked(Dead())\n"
        "print('lives')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=HANG_S, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "an error\n") and "Dead" in ended.stderr


@pytest.mark.parametrize("name", ["short", "l" * 150])
def test_sockets_have_room_for_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Another process finds them there, and they lie in the directory that goes with the worker."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="s")) if name == "short" else tmp_path / name
    directory.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    path = f"{place_of_sockets()}/{uuid.uuid4()}"
    assert len(path) <= 107
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        subprocess.run([sys.executable, "-c", connect, path], check=True, timeout=HANG_S)
    assert len(list(directory.iterdir())) == 1
    shutil.rmtree(directory)


def test_the_engine_is_bound_to_as_many_cores_as_it_may_use() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert cores(1) == str(allowed[0]) and len(cores(None).split(",")) == len(allowed)
