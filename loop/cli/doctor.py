"""`loopctl doctor` says what this machine can do, and what would help. It asks torch in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from loop.cli.options import Call, command, print_json, the_call
from loop.config.samplers import AUTO, SAMPLERS, sampler_kind
from loop.errors import ConfigError, LoopError
from loop.words import count, safe, size

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig
    from loop.workers.cluster import Hub, Node

TORCH_TIMEOUT_S = 120.0
SERVER_TIMEOUT_S = 3.0
GRADER_TIMEOUT_S = 120.0
LITTLE_MEMORY_BYTES = 2 << 30  # what the run itself needs is a check of its own
LITTLE_DISK_BYTES = 2 << 30
Verdict = Literal["ok", "warn", "fail"]
_ENGINES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_DEVICES = """
import json, torch
gpus = []
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    gpus.append([p.name, p.total_memory])
print(json.dumps({"gpus": gpus, "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True, slots=True)
class Line:
    """What a check has given. `remedy` is "" where none is needed."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


@command("doctor", "loopctl doctor")
@click.option("--deep", is_flag=True, help="Also try what takes time: sync, database, socket, model, every hash.")
def doctor_command(deep: bool) -> int:
    """Say what this machine can do, a line per check: ok, warn or fail, with the remedy. Exit code 1 if any fails."""
    lines = []
    for line in _examine(the_call(), deep):
        lines.append(line)
        if not the_call().json:
            remedy = f"; {line.remedy}" if line.remedy else ""
            click.echo(f"{line.verdict:4}  {line.name:12} {safe(line.detail)}{safe(remedy)}")
    failed = any(line.verdict == "fail" for line in lines)
    if the_call().json:
        print_json({"ok": not failed, "checks": [asdict(line) for line in lines]})
    return 1 if failed else 0


def _examine(call: Call, deep: bool) -> Iterator[Line]:
    """Make every check in turn, the quick ones first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Line(
        "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    )
    yield _sqlite()
    yield _memory()
    loaded, trouble = _configuration(call)
    yield from trouble
    if loaded:
        yield from _run_directory(loaded.run_dir)
    yield from _engines(loaded)
    if loaded:
        yield from map(_server, loaded.config.engine.servers)
    if loaded and loaded.config.watching.trackers:
        yield _trackers(loaded.config.watching.trackers)
    yield _devices(loaded)
    if loaded and loaded.config.cluster:
        yield from _cluster(loaded)
    if loaded:
        yield from _fit(loaded)
    yield _sandbox(loaded)
    if deep and loaded and not any(line.verdict == "fail" for line in trouble):
        from loop.cli.doctor_deep import try_everything

        for name, works, words, remedy in try_everything(loaded):
            yield Line(name, "ok" if works else "fail", words, remedy)


def _cluster(loaded: LoadedConfig) -> Iterator[Line]:
    """The cluster as a whole, and a line for each of its nodes."""
    from loop.workers.cluster import Hub
    from loop.workers.nodes import check_same, versions_here

    assert loaded.config.cluster is not None
    try:
        hub = Hub(loaded.config.cluster, loaded.run_dir / "logs" / "doctor-hub.log")
    except LoopError as error:
        yield Line("cluster", "fail", *_parted(str(error).removeprefix("cluster: ")))
        return
    try:
        nodes = hub.nodes()
        num_gpus, num_free = sum(node.num_gpus for node in nodes), sum(node.free_gpus for node in nodes)
        words = f"{len(nodes)} nodes can compute, {num_gpus} GPUs ({num_free} free)"
        if not nodes:
            yield Line("cluster", "fail", words, "start nodes: `ray start --address=HOST:6379`")
            return
        check_same(nodes, versions_here())
        yield Line("cluster", "ok", words)
        for node in nodes:
            yield Line("node", "ok", _node(node))
        for name, why in hub.problems.items():
            yield Line("node", "warn", f"{name}: {why}", "without it the run has less to compute with")
        if loaded.config.cluster.grading:
            yield from _graders(loaded, hub, [node for node in nodes if node.may_grade])
    except LoopError as error:
        yield Line("cluster", "fail", *_parted(str(error).removeprefix("cluster: ")))
    finally:
        hub.close()


def _node(node: Node) -> str:
    """node-a: 32 cores, 252 GB memory, 8 GPUs of 80 GB (6 free; NVIDIA H100); python 3.11.7, torch 2.13.0; checkpoints in DIR"""
    gpus = (
        f"{count(node.num_gpus, 'GPU')} of {size(node.gpu_bytes)} ({node.free_gpus} free; {node.gpu or 'unknown kind'})"
    )
    has = (
        f"{count(int(node.num_cpus), 'core')}, {size(node.memory_bytes)} memory, {gpus if node.num_gpus else 'no GPU'}"
    )
    versions = [f"{package} {version}" for package, version in node.versions.items() if version != "none"]
    vllm = [] if node.has_vllm else ["no vLLM"]
    return f"{node.name}: {has}; {', '.join([*versions, *vllm])}; checkpoints in {node.directory}"


def _graders(loaded: LoadedConfig, hub: Hub, nodes: Sequence[Node]) -> Iterator[Line]:
    """Whether the sandbox works on each node that is to grade: tried there, on all at once."""
    from loop.workers.graders import start_grader

    def tried(number: int, node: Node) -> Line:
        log = loaded.run_dir / "logs" / f"doctor-grader-{number}.log"
        try:
            worker = start_grader(hub, node, loaded.config.grading, log, GRADER_TIMEOUT_S)
            worker.end()
            return Line("grading", "ok", f"{node.name}: {worker.info['sandbox']}")
        except LoopError as error:
            detail, _, remedy = str(error).removeprefix("grading.sandbox: ").partition("; ")
            return Line("grading", "warn", f"{node.name} does not grade: {detail}", remedy)

    if not nodes:
        yield Line(
            "grading",
            "warn",
            "no node but this machine has cores",
            "start nodes with some, or leave cluster.grading out",
        )
        return
    with ThreadPoolExecutor(len(nodes)) as threads:
        yield from threads.map(tried, range(1, len(nodes) + 1), nodes)


def _sqlite() -> Line:
    from store.db import Database, scalar

    db = Database()
    version = str(scalar(db, "SELECT sqlite_version()"))
    if not scalar(db, "SELECT count(*) FROM pragma_module_list WHERE name = 'fts5'"):
        remedy = "use a Python whose SQLite has it, such as python.org's"
        return Line("sqlite", "fail", f"{version} without FTS5", remedy)
    if (3, 7, 0) <= tuple(map(int, version.split(".")[:3])) <= (3, 51, 2):
        version += " (its WAL-reset race needs two writers; a run has one)"
    return Line("sqlite", "ok", version)


def _memory() -> Line:
    import psutil

    memory = psutil.virtual_memory()
    words = f"{size(memory.available)} of {size(memory.total)} available"
    if memory.available < LITTLE_MEMORY_BYTES:
        remedy = "close other programs"
        return Line("memory", "warn", words, remedy)
    return Line("memory", "ok", words)


def _configuration(call: Call) -> tuple[LoadedConfig | None, list[Line]]:
    """Check loop.toml and all that it names. A missing loop.toml is only a warning."""
    if not call.has_config:
        remedy = "`loopctl init` writes one, or give --config FILE"
        return None, [Line("loop.toml", "warn", "no such file here", remedy)]
    from loop.inputs import read_inputs

    loaded = None
    try:
        loaded = call.load()
        read_inputs(loaded, fetch=False)
    except LoopError as error:
        name = "model, data" if loaded else "loop.toml"
        return loaded, [Line(name, "fail", *_parted(line)) for line in str(error).splitlines()]
    config = loaded.config
    sources = ", ".join([config.prompts.source, *dict.fromkeys(suite.source for suite in config.suites)])
    return loaded, [
        Line("loop.toml", "ok", loaded.file.place),
        Line("model, data", "ok", f"{config.model.source}; {sources}"),
    ]


def _parted(line: str) -> tuple[str, str]:
    problem, _, remedy = line.rpartition("; ")
    return (problem, remedy) if problem else (remedy, "")


def _run_directory(run_dir: Path) -> Iterator[Line]:
    from loop.system.lock import holder

    place = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        yield Line("run_dir", "fail", f"{place} cannot be written to", "choose a run_dir that this user can write to")
        return
    pid = holder(run_dir)
    held = f"held by process {pid}" if pid else "free" if run_dir.exists() else "will be made"
    yield Line("run_dir", "ok", f"{run_dir}: {held}")
    free = shutil.disk_usage(place).free
    yield Line("disk", *(("ok", f"{size(free)} free") if free >= LITTLE_DISK_BYTES else _little(free)))


def _little(free: int) -> tuple[Verdict, str, str]:
    return "warn" if free else "fail", f"{size(free)} free", "make room, or set run_dir to a larger disk"


def _fit(loaded: LoadedConfig) -> Iterator[Line]:
    """Check what each stage needs against what this machine has, by the formula of `loopctl estimate`."""
    from loop.fitting.fit import fit_of
    from loop.inputs import read_inputs

    try:
        prompts = read_inputs(loaded, fetch=False).prompts
    except LoopError:  # which another check has told
        prompts = []
    estimated = fit_of(loaded, prompts)
    for need in estimated.needs if estimated else ():
        verdict: Verdict = {"fits": "ok", "tight": "warn", "cannot": "fail"}[need.verdict]  # type: ignore[assignment]
        words = f"{size(need.needed_bytes)} of {size(need.has_bytes)}: {need.detail}"
        yield Line(f"fit {need.what}", verdict, words, need.remedy)


def _engines(loaded: LoadedConfig | None) -> Iterator[Line]:
    fake = loaded is not None and loaded.config.engine.trainer == "fake" and not _uses_torch(loaded)
    versions = {name: _version(name) for name in _ENGINES}
    missing = [name for name, version in versions.items() if version is None]
    words = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        remedy = "pip install 'ssd-loop[train]'"
        yield Line("engines", "warn" if fake else "fail", f"{', '.join(missing)} missing", remedy)
    else:
        yield Line("engines", "ok", words)
    vllm = next(filter(None, map(_version, SAMPLERS["vllm"].packages)), None)
    yield Line("vllm", "ok", vllm or "not installed (optional)")
    if loaded is not None and loaded.config.engine.sampler == AUTO:
        from loop.workers.up import best_sampler

        name, why = best_sampler(loaded.config.engine.device)
        yield Line("sampler", "ok", f"{name}: {why}")
    yield _precision(loaded)


def _uses_torch(loaded: LoadedConfig | None) -> bool:
    return loaded is None or sampler_kind(loaded.config.engine.sampler).uses_torch


def _precision(loaded: LoadedConfig | None) -> Line:
    """Say in which precision weights are while sampling, and why; warn where the CPU must emulate the configured one."""
    from loop.engines.precision import auto_dtype
    from loop.system.gpus import used_bytes

    device, dtype = (loaded.config.engine.device, loaded.config.engine.dtype) if loaded else ("auto", "auto")
    best, why = auto_dtype(on_gpu=device != "cpu" and bool(used_bytes()))
    if dtype == "auto":
        return Line("precision", "ok", f"{best}: {why}")
    if (dtype, best) == ("bfloat16", "float32"):
        return Line("precision", "warn", f"bfloat16, as engine.dtype says, but {why}", 'set engine.dtype = "auto"')
    return Line("precision", "ok", f"{dtype}, as engine.dtype says")


def _trackers(names: tuple[str, ...]) -> Line:
    from loop.watching.trackers import EXTRA, missing

    if lacking := missing(names):
        return Line("trackers", "warn", f"{', '.join(lacking)} missing: nothing is sent there", EXTRA)
    return Line("trackers", "ok", ", ".join(names))


def _server(url: str) -> Line:
    try:
        from loop.engines.server_http import first_model

        return Line("server", "ok", f"{url} serves {first_model(url, SERVER_TIMEOUT_S)[:200]}")
    except ImportError:
        return Line("server", "fail", "httpx2 is missing", "install the project again")
    except LoopError as error:
        return Line("server", "fail", str(error), "start `vllm serve DIR` there, or correct its address in [engine]")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(loaded: LoadedConfig | None) -> Line:
    wanted = loaded.config.engine.device if loaded else "auto"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _DEVICES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TORCH_TIMEOUT_S,
            check=True,
        )
        devices = json.loads(asked.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        words = f"torch did not answer within {TORCH_TIMEOUT_S:g} s"
        return Line("devices", "warn", words, "try again on an idle machine")
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        verdict: Verdict = "fail" if _uses_torch(loaded) else "warn"
        return Line("devices", verdict, "torch cannot be imported", "pip install 'ssd-loop[train]'")
    if devices["gpus"]:
        words = ", ".join(f"{name} ({size(memory)})" for name, memory in devices["gpus"])
        return Line("devices", "ok", words)
    words = f"CPU, {devices['threads']} threads; no GPU that torch can use"
    if wanted == "cuda":
        return Line("devices", "fail", words, 'set engine.device = "auto", or install a CUDA build of torch')
    return Line("devices", "ok", words)


def _sandbox(loaded: LoadedConfig | None) -> Line:
    from loop.grading.working_sandbox import open_sandbox

    try:
        sandbox = open_sandbox(loaded.config.grading.sandbox if loaded else "bubblewrap")
    except ConfigError as error:
        detail, _, remedy = str(error).removeprefix("grading.sandbox: ").partition("; ")
        return Line("sandbox", "fail", detail, remedy)
    if sandbox.level == "none":
        remedy = 'set grading.sandbox = "bubblewrap" unless you can lose this machine'
        return Line("sandbox", "warn", sandbox.words, remedy)
    return Line("sandbox", "ok", sandbox.words)
