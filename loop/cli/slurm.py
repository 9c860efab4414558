"""`loopctl slurm` prints a batch file for SLURM: the run in a job that gives its nodes back in time and queues itself again.

With [cluster] the job starts a Ray cluster of its own: the head on the first node, beside the run, and a node on each other one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loop.cli.options import command, print_answer, the_call

if TYPE_CHECKING:
    from loop.config.loading import LoadedConfig

END_S = 60  # of the job's time, for what comes after the grace of a stop
MAX_SIGNAL_S = 65535  # SLURM's own limit
STORE_BYTES = 1_000_000_000  # of a node's object store: a checkpoint passes through it in pieces
JOIN_S = 600  # for all nodes to join
TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):(\d\d):(\d\d)")


@command("slurm", "loopctl slurm", "loopctl slurm --gpus-per-node 8 --time 24:00:00 > loop.sbatch")
@click.option(
    "--nodes", type=click.IntRange(min=1), metavar="N", help="Default: 1; with [cluster] the fewest that will do."
)
@click.option("--gpus-per-node", type=click.IntRange(min=1), metavar="N", help="Default: none.")
@click.option("--cpus-per-node", type=click.IntRange(min=1), metavar="N", help="Default: whole nodes, with all memory.")
@click.option("--time", metavar="[D-]HH:MM:SS", help="How long one turn of the job takes; default: the partition's.")
def slurm_command(nodes: int | None, gpus_per_node: int | None, cpus_per_node: int | None, time: str | None) -> None:
    """Print a batch file that runs this configuration under SLURM.

    Before its time is over the job stops at a safe point and queues itself again, until all rounds are done.
    """
    loaded = the_call().load()
    _refuse_what_cannot_work(loaded, time)
    script = batch_file(loaded, _num_nodes(loaded, nodes, gpus_per_node), gpus_per_node, cpus_per_node, time)
    print_answer({"script": script}, lambda _: click.echo(script, nl=False))


def _signal_s(loaded: LoadedConfig) -> int:
    return int(loaded.config.daemon.stop_grace_s) + END_S


def _refuse_what_cannot_work(loaded: LoadedConfig, time: str | None) -> None:
    from loop.errors import UsageError

    cluster, signal_s = loaded.config.cluster, _signal_s(loaded)
    if signal_s > MAX_SIGNAL_S:
        problem = f"SLURM sends its signal at most {MAX_SIGNAL_S} s before the end; give at most {MAX_SIGNAL_S - END_S}"
        loaded.file.refuse([(("daemon", "stop_grace_s"), problem)])
    if cluster and cluster.address != "auto":
        loaded.file.refuse([(("cluster", "address"), "a job of SLURM starts a cluster of its own; leave the key out")])
    if time is not None:
        if (parts := TIME.fullmatch(time)) is None:
            raise UsageError(f"--time {time!r} is no time; give hours, minutes and seconds, as 24:00:00 or 2-00:00:00")
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        if ((days * 24 + hours) * 60 + minutes) * 60 + seconds <= signal_s:
            raise UsageError(
                f"--time {time} is no longer than a stop may take, {signal_s} s (daemon.stop_grace_s and {END_S} s); give more"
            )


def _num_nodes(loaded: LoadedConfig, nodes: int | None, gpus_per_node: int | None) -> int:
    """The job's nodes. UsageError for a number that does not go together with [cluster]."""
    from loop.errors import UsageError

    cluster = loaded.config.cluster
    if cluster is None:
        if (nodes or 1) > 1:
            raise UsageError(
                f"--nodes {nodes} needs the table [cluster] in {loaded.file.place}: without it one machine does everything"
            )
        return 1
    wanted = cluster.training_nodes or 1
    least = max(2, wanted if gpus_per_node else wanted + 1)  # the first node's cores are the run's own
    if nodes is not None and nodes < least:
        why = f"cluster.training_nodes = {wanted}" if wanted > 1 else "[cluster]"
        raise UsageError(
            f"--nodes {nodes} is too few for {why} in {loaded.file.place}; give at least {least}, or change that"
        )
    return nodes or least


def batch_file(
    loaded: LoadedConfig, num_nodes: int, gpus_per_node: int | None, cpus_per_node: int | None, time: str | None
) -> str:
    """The whole file. Without [cluster] `num_nodes` is 1."""
    signal_s = _signal_s(loaded)
    options = [
        f"--job-name={loaded.config.name}",
        f"--nodes={num_nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={gpus_per_node}"] if gpus_per_node else []),
        *([f"--cpus-per-task={cpus_per_node}"] if cpus_per_node else ["--exclusive", "--mem=0"]),
        *([f"--time={time}"] if time else []),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{signal_s}",
    ]
    lines = [
        "#!/bin/bash",
        "# `loopctl slurm > FILE`, then `sbatch FILE`. What sbatch is given beside it comes first: --partition, --account, --time.",
        f"# SLURM sends TERM {signal_s} s before the job's time is over. The run stops at its next safe point, at the latest after",
        "# daemon.stop_grace_s; then the job queues itself again and continues the run. `scancel` ends it for good.",
        *(f"#SBATCH {option}" for option in options),
        "",
        *(_cluster(loaded, gpus_per_node or 0) if loaded.config.cluster else []),
        "stopped=",
        "trap 'stopped=1; kill -TERM \"$run\"' TERM",
        f"{_program('loopctl', 'loop.cli.main')} run --grace --config {shlex.quote(str(loaded.path))} &",
        "run=$!",
        'if [[ $stopped ]]; then kill -TERM "$run"; fi  # it came in between',
        'wait "$run"  # the signal ends it early',
        'while kill -0 "$run" 2> /dev/null; do wait "$run"; done',
        'wait "$run"',
        "code=$?  # 143 where rounds are left",
        'if [[ $stopped && $code == 143 && $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _cluster(loaded: LoadedConfig, num_gpus: int) -> list[str]:
    """The lines that start a Ray cluster on the job's nodes, and wait for all of them."""
    cluster = loaded.config.cluster
    assert cluster is not None
    ray = _program("ray", "ray.scripts.scripts")
    tokens = shlex.quote(str(loaded.run_dir)) if cluster.shared else '"$HOME"/.ray'
    common = f"--num-gpus={num_gpus} --object-store-memory={STORE_BYTES} --disable-usage-stats --block"
    return [
        "# Ray's ports are open to whoever reaches these nodes: the token, readable by you alone, is what keeps others out.",
        "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0",
        f'export RAY_AUTH_TOKEN_PATH={tokens}/ray-token-"$SLURM_JOB_ID"',
        "steps=()",
        'trap \'kill "${steps[@]}" 2> /dev/null; rm -f "$RAY_AUTH_TOKEN_PATH"\' EXIT',
        'mkdir -p "${RAY_AUTH_TOKEN_PATH%/*}" && rm -f "$RAY_AUTH_TOKEN_PATH" || exit 1',
        "(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \\n' > \"$RAY_AUTH_TOKEN_PATH\") || exit 1",
        "",
        'mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "step=(srun --ntasks-per-node=1 --overlap --cpu-bind=none --kill-on-bad-exit=0 --wait=0)",
        "# What another node calls the first one, which may call itself 127.0.0.1.",
        'read -r host _ < <("${step[@]}" --nodes=1 --nodelist="${nodes[1]}" getent ahostsv4 "${nodes[0]}")',
        'if [[ -z $host ]]; then echo "${nodes[1]} knows no address of ${nodes[0]}" >&2 && exit 1; fi',
        "port=$((20000 + SLURM_JOB_ID % 10000))",
        "",
        "# Started, and waited for until so many nodes belong to the cluster.",
        "start() {",
        '    "${step[@]}" "${@:2}" &',
        "    steps+=($!)",
        f'    until {shlex.quote(sys.executable)} -P -c "$joined" "$host:$port" "$1" 2> /dev/null; do',
        f'        if ! kill -0 "${{steps[-1]}}" 2> /dev/null || ((SECONDS > {JOIN_S})); then',
        f'            echo "Ray did not start on all nodes within {JOIN_S} s; see above, and /tmp/ray on the nodes" >&2',
        "            exit 1",
        "        fi",
        "        sleep 1",
        "    done",
        "}",
        "joined='import sys, ray",
        "ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)",
        'sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))\'',
        f'start 1 --nodes=1 --nodelist="${{nodes[0]}}" {ray} start --head --port="$port" \\',
        f"    --num-cpus=0 --include-dashboard=false {common}",
        'start "${#nodes[@]}" --nodes=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" '
        f'{ray} start --address="$host:$port" \\',
        f'    --num-cpus="$SLURM_CPUS_ON_NODE" {common}',
        'export RAY_ADDRESS="$host:$port"  # what cluster.address = "auto" stands for',
        "",
    ]


def _program(name: str, module: str) -> str:
    """How a program of this installation is called in a shell."""
    ours = Path(sys.executable).with_name(name)
    program = str(ours) if ours.exists() else shutil.which(name)
    return shlex.quote(program) if program else f"{shlex.quote(sys.executable)} -P -m {module}"
