"""loopctl slurm: the batch file is run for real, with programs in the place of SLURM's and Ray's that note how they are called."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.system.heartbeat import read_heartbeat
from tests.support import ROOT
from tests.support.cli import Loopctl, change, environment, one_line, process, write_configuration
from tests.support.waiting import HANG_S, wait_until

CLUSTER = "\n[cluster]\n"
NOTE = '#!/bin/bash\nnote() { (IFS="|"; echo "${0##*/}|$*" >> "$CALLS"); }\n'
WAIT = "while :; do sleep 0.02; done\n"
PROGRAMS = {
    "srun": 'note "$@"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "ray": f'note "$@" "$RAY_AUTH_MODE" "$(stat -c %a:%s "$RAY_AUTH_TOKEN_PATH")"\n{WAIT}',
    "python": '[[ $(grep -c "^ray|" "$CALLS") -ge ${@: -1} ]] && note "${@: -2}"\n',  # whether so many nodes have joined
    "scontrol": 'note "$@"\nif [[ $1 == show ]]; then printf "first\\nsecond\\n"; fi\n',
    "squeue": 'note "$@"\necho "$STATE"\n',
    "getent": 'note "$@"\necho "10.0.0.7 STREAM first"\n',
    "loopctl": (
        'trap \'((--TERMS)) || { sleep "${LAST_S:-0}"; exit "$AFTER_TERM"; }; note again\' TERM\n'
        f'note "$@" "$RAY_ADDRESS"\n[[ -z $AT_ONCE ]] || exit "$AT_ONCE"\n{WAIT}'
    ),
}


class Job:
    """A directory with a run, SLURM's and Ray's programs as they are here, and a batch file that was started."""

    def __init__(self, directory: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.call, self.calls = directory, call, directory / "calls"
        self.programs = directory / "bin"
        self.programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            (self.programs / name).write_text(NOTE + text)
            (self.programs / name).chmod(0o755)
        self.config = write_configuration(directory / "run")
        self.monkeypatch = monkeypatch

    def script(self, *arguments: str, fake: bool = True) -> str:
        """What is printed, where this installation is that of the directory if it is `fake`."""
        with self.monkeypatch.context() as patched:
            if fake:
                patched.setattr("sys.executable", str(self.programs / "python"))
            said = self.call("slurm", "--config", str(self.config), *arguments)
        assert said.code == 0, said.err
        return said.out

    def start(self, script: str, **variables: str) -> subprocess.Popen[str]:
        (self.directory / "loop.sbatch").write_text(script)
        own = {
            "PATH": f"{self.programs}:{os.environ['PATH']}", "CALLS": str(self.calls), "HOME": str(self.directory),
            "SLURM_JOB_ID": "71234", "SLURM_JOB_NODELIST": "[first,second]", "SLURM_CPUS_ON_NODE": "6",
            "STATE": "RUNNING", "TERMS": "1", "AFTER_TERM": "143", "AT_ONCE": "",
        }  # fmt: skip
        words = ["bash", str(self.directory / "loop.sbatch")]
        env = environment(**own | variables)
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def said(self, program: str) -> list[list[str]]:
        """The arguments of each call of a program."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.split("|")[1:] for line in lines if line.startswith(f"{program}|")]

    def requeued(self) -> bool:
        return ["requeue", "71234"] in self.said("scontrol")

    def ends(self, job: subprocess.Popen[str], when: Callable[[], object] | None = None) -> int:
        """Its exit code; `when` something is so, it first gets TERM, as SLURM sends it to the batch script alone."""
        if when is not None:
            wait_until(lambda: when() or job.poll() is not None)
            job.send_signal(signal.SIGTERM)
        out, _ = job.communicate(timeout=HANG_S)
        with contextlib.suppress(FileNotFoundError):
            print(self.calls.read_text())
        print(out)
        return job.returncode


@pytest.fixture
def job(tmp_path: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path / 'it\'s "a" $HOME of `jobs`', call, monkeypatch)


def test_what_it_asks_of_slurm(job: Job) -> None:
    script = job.script("--gpus-per-node", "8", "--time", "2-00:00:00")
    asked = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "--job-name=small", "--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=8", "--exclusive", "--mem=0",
        "--time=2-00:00:00", "--requeue", "--open-mode=append", "--signal=B:TERM@660",
    ]  # fmt: skip
    assert "ray" not in script and script.index("#SBATCH") < script.index("\n\n")
    change(job.config.parent, ("[engine]", "[daemon]\nstop_grace_s = 30.5\n[engine]"))
    shared = job.script("--cpus-per-node", "4").splitlines()
    assert "#SBATCH --cpus-per-task=4" in shared and "#SBATCH --signal=B:TERM@90" in shared
    assert not [line for line in shared if "exclusive" in line or "--mem" in line or "--time=" in line]
    assert json.loads(job.call("slurm", "--config", str(job.config), "--json").out)["script"].startswith(
        "#!/bin/bash\n"
    )


@pytest.mark.parametrize(
    ("variables", "is_signalled", "code", "is_requeued"),
    [
        ({}, True, 143, True),
        ({"AFTER_TERM": "0"}, True, 0, False),
        ({"AFTER_TERM": "1"}, True, 1, False),
        ({"STATE": "COMPLETING"}, True, 143, False),
        ({"AT_ONCE": "0"}, False, 0, False),
        ({"AT_ONCE": "1"}, False, 1, False),
        ({"AT_ONCE": "143"}, False, 143, False),
    ],
    ids=["rounds left", "done meanwhile", "failed meanwhile", "cancelled", "done", "failed", "stopped by hand"],
)
def test_only_an_unfinished_run_is_queued_again(
    job: Job, variables: dict[str, str], is_signalled: bool, code: int, is_requeued: bool
) -> None:
    running = job.start(job.script(), **variables)
    assert job.ends(running, (lambda: job.said("loopctl")) if is_signalled else None) == code
    assert job.said("loopctl") == [["run", "--grace", "--config", str(job.config), ""]]
    assert job.requeued() == is_requeued


def test_a_second_signal_is_passed_on_and_the_end_awaited(job: Job) -> None:
    running = job.start(job.script(), TERMS="2", AFTER_TERM="0", LAST_S="0.3")
    wait_until(lambda: job.said("loopctl"))
    running.send_signal(signal.SIGTERM)
    assert job.ends(running, lambda: ["again"] in job.said("loopctl")) == 0
    assert not job.requeued()


def test_a_cluster_is_started_with_a_token_and_ended(job: Job) -> None:
    job.config.write_text(job.config.read_text() + CLUSTER)
    running = job.start(job.script("--nodes", "2", "--gpus-per-node", "8"))
    assert job.ends(running, lambda: job.said("loopctl")) == 143
    assert job.requeued()
    common = ["--num-gpus=8", "--object-store-memory=1000000000", "--disable-usage-stats", "--block", "token", "600:64"]
    head = ["start", "--head", "--port=21234", "--num-cpus=0", "--include-dashboard=false", *common]
    other = ["start", "--address=10.0.0.7:21234", "--num-cpus=6", *common]
    assert job.said("ray") == [head, other]
    assert job.said("python") == [["10.0.0.7:21234", "1"], ["10.0.0.7:21234", "2"]], "each is waited for"
    assert job.said("getent") == [["ahostsv4", "first"]]
    places = [[word for word in words if word.startswith(("--nod", "--excl"))] for words in job.said("srun")]
    assert places == [
        ["--nodes=1", "--nodelist=second"], ["--nodes=1", "--nodelist=first"], ["--nodes=1", "--exclude=first"]
    ]  # fmt: skip
    assert job.said("loopctl")[0][-1] == "10.0.0.7:21234", "what cluster.address is then"
    assert not list(job.directory.rglob("ray-token-*"))
    wait_until(lambda: not processes_with(str(job.programs / "ray")))


def processes_with(word: str) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path] * (word.encode() in path.read_bytes().split(b"\0"))
    return found


def test_how_many_nodes_and_where_the_token_lies(job: Job) -> None:
    table = "\n[cluster]\nshared = true\n"
    job.config.write_text(job.config.read_text() + table)
    assert f"RAY_AUTH_TOKEN_PATH={shlex.quote(str(job.config.parent / '.loop'))}/" in job.script()
    job.config.write_text(job.config.read_text().replace(table, CLUSTER + "training_nodes = 2\n"))
    on_gpus, on_cpus = job.script("--gpus-per-node", "4"), job.script()
    assert "#SBATCH --nodes=2" in on_gpus and on_gpus.count("--num-gpus=4") == 2
    assert "#SBATCH --nodes=3" in on_cpus and on_cpus.count("--num-gpus=0") == 2


def test_ray_that_does_not_start_is_said(job: Job) -> None:
    job.config.write_text(job.config.read_text() + CLUSTER)
    for name in ("ray", "python"):
        (job.programs / name).write_text("#!/bin/bash\nexit 1\n")
    running = job.start(job.script())
    out, _ = running.communicate(timeout=HANG_S)
    assert running.returncode == 1 and "Ray did not start on all nodes" in out
    assert not job.said("loopctl") and not job.requeued()


@pytest.mark.parametrize(
    ("more", "arguments", "code", "said"),
    [
        ("", ["--nodes", "2"], 2, "--nodes 2 needs the table [cluster] in loop.toml: without it one machine does everything"),
        (CLUSTER, ["--nodes", "1"], 2, "--nodes 1 is too few for [cluster] in loop.toml; give at least 2"),
        (CLUSTER + "training_nodes = 4\n", ["--nodes", "4"], 2,
         "--nodes 4 is too few for cluster.training_nodes = 4 in loop.toml; give at least 5"),
        ("", ["--nodes", "0"], 2, "0 is not in the range x>=1"),
        ("", ["--time", "1 day"], 2, "--time '1 day' is no time; give hours, minutes and seconds, as 24:00:00"),
        ("", ["--time", "00:11:00"], 2, "--time 00:11:00 is no longer than a stop may take, 660 s"),
        ("\n[daemon]\nstop_grace_s = 70000\n", [], 78, "daemon.stop_grace_s: SLURM sends its signal at most 65535 s"),
        (CLUSTER + 'address = "10.0.0.5:6379"\n', [], 78, "cluster.address: a job of SLURM starts a cluster of its own"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    here: Path, call: Loopctl, more: str, arguments: list[str], code: int, said: str
) -> None:
    (here / "loop.toml").write_text((here / "loop.toml").read_text() + more)
    one_line(call("slurm", *arguments), code, said)


def test_a_real_run_stops_at_a_safe_point_and_the_next_turn_ends_it(job: Job) -> None:
    """Nothing in the place of loopctl here."""
    program = f"{shlex.quote(str(ROOT / '.venv/bin/python'))} -P -m loop.cli.main"
    job.monkeypatch.setattr("loop.cli.slurm._program", lambda name, module: program)
    script, run_dir = job.script(fake=False), job.config.parent / ".loop"

    def samples() -> bool:
        beat = read_heartbeat(run_dir)
        return beat is not None and beat.round == 1 and beat.stage == "sampling"

    assert job.ends(job.start(script, LOOP_FAKE_STEP_S="0.2"), samples) == 143
    status = process(job.config.parent, "status", "--json").json
    assert (status["state"], status["rounds"]["kept"] + status["rounds"]["rolled_back"]) == ("stopped", 0)
    assert status["reason"].startswith("`loopctl start` or"), "not interrupted"
    assert job.requeued()
    job.calls.unlink()
    assert job.ends(job.start(script)) == 0
    assert process(job.config.parent, "status", "--json").json["state"] == "idle", "all is done"
    assert not job.requeued()
