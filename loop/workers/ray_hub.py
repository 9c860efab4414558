"""The hub, `python -m loop.workers.ray_hub ADDRESS DIRECTORY SOCKET`: the daemon's one connection to a Ray cluster.

The daemon's side is `loop.workers.cluster`. Each question is answered in a thread of its own. When the daemon is gone, its end
of the socket is closed, this process ends, and Ray ends the actors with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells Ray's makers nothing; read when ray is imported

import ray
import ray._private.state
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loop.system import trees
from loop.workers.ray_delivery import Delivery, fetch
from loop.workers.ray_node import RemoteWorker, Shelf
from store.checkpoints import MANIFEST, hash_directory
from store.errors import StoreError
from store.hashing import Hasher

NUM_KEPT = 4  # checkpoints on a node's shelf: base, head, tip and candidate
START_S = 300.0  # for a node to give a worker its GPUs
LOST = 70  # the exit code of a worker that was lost with its node
MAX_WHY = 400

NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).check_alive([], timeout=30)
    print("open")
except AuthenticationError:
    print("refused")
except Exception as error:
    print(" ".join(str(error).split())[:200])
"""

Question = dict[str, Any]


class Lost(Exception):
    """What is asked cannot be had of the cluster. The text goes to the user."""


class Hub:
    """Answers what the daemon asks."""

    def __init__(self, control: socket.socket, address: str, directory: str) -> None:
        self.control, self.address, self.directory = control, address, directory
        self.hasher = Hasher()
        self.shelves: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.workers: dict[int, Any] = {}
        self.delivering, self.looking = threading.Lock(), threading.Lock()

    def serve(self) -> None:
        """Answer questions until the daemon is gone."""
        while True:
            message, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 3)
            if not message:
                os._exit(0)  # nobody is left to whom an orderly end could matter
            question = json.loads(message)
            threading.Thread(target=self.answer, args=(question, fds), daemon=True).start()

    def reply(self, question: Question, **answer: Any) -> None:
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"number": question["number"]} | answer).encode())

    def answer(self, question: Question, fds: list[int]) -> None:
        try:
            match question["op"]:
                case "join":
                    self.join(question["is_open_allowed"])
                    self.reply(question, value=None)
                case "nodes":
                    self.reply(question, value=self.nodes())
                case "deliver":
                    with self.delivering:
                        self.reply(question, value=self.deliver(**question["what"]))
                case "begin_training":
                    self.reply(question, value=self.begin_training(**question["what"]))
                case "fetch":
                    fetch(self.shelf(question["node"]), question["name"], Path(question["target"]))
                    self.reply(question, value=None)
                case "end_training":
                    for ended in [self.shelf(node).end_training.remote(question["name"]) for node in question["nodes"]]:
                        with contextlib.suppress(RayError):  # of a node that was lost
                            ray.get(ended, timeout=START_S)
                    self.reply(question, value=None)
                case "start":
                    self.run(question, *fds)
                case "end":
                    self.end(question["process"])
        except (Lost, StoreError, OSError) as error:
            self.reply(question, error=str(error)[:2000])
        except Exception as error:
            traceback.print_exc()
            self.reply(question, error=f"{type(error).__name__}: {last_sentence(error)}")

    def join(self, is_open_allowed: bool) -> None:
        """Become a driver of the cluster. `is_open_allowed`: also where it asks nobody for a token."""
        try:
            address = canonicalize_bootstrap_address(self.address)
        except ConnectionError:  # "auto", and nothing of Ray runs here
            address = None
        if address is None:
            raise Lost(
                "this machine belongs to no cluster; start one (`ray start --head`), or join one (`ray start "
                "--address=HOST:6379`)"
            )
        with ThreadPoolExecutor(2) as pool:
            with_ours, without = pool.map(knock, (address, address), ({}, NO_TOKEN))
        if with_ours == "refused":
            raise Lost(
                f"{address} refuses the token of this machine; copy the cluster's to ~/.ray/auth_token, readable by you alone, "
                "and set RAY_AUTH_MODE=token"
            )
        if with_ours != "open":
            raise Lost(f"no cluster answers at {address} ({with_ours}); is it up, and may this machine reach it?")
        if without == "open" and not is_open_allowed:
            raise Lost(
                f"whoever reaches {address} can run programs on its nodes, since it asks for no token; set "
                "RAY_AUTH_MODE=token on every node (docs/several-machines.md), or cluster.insecure = true"
            )
        try:
            ray.init(address=address, namespace="ssd-loop", log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise Lost(
                f"{address} answers, but cannot be joined ({last_sentence(error)}); this machine must be one of its nodes: "
                f"`ray start --address={address} --num-cpus=0`"
            ) from None

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that have cores or GPUs for this run, each with a shelf, by name."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        free = ray._private.state.available_resources_per_node()
        nodes = []
        for node in alive:
            has, key = node["Resources"], node["NodeID"]
            if has.get("CPU", 0) or has.get("GPU", 0):
                num_gpus = int(has.get("GPU", 0))
                gpus = {"num_gpus": num_gpus, "free_gpus": int(free.get(key, {}).get("GPU", 0))}
                address = {"address": node["NodeManagerAddress"]}
                nodes.append({"id": key, "num_cpus": has.get("CPU", 0.0)} | address | gpus)
        shelves = {node["id"]: self.shelf(node["id"]) for node in nodes}
        about = {key: shelf.about.remote() for key, shelf in shelves.items()}
        found = []
        for node in nodes:
            with contextlib.suppress(RayError):  # a node that is lost meanwhile
                found.append(node | ray.get(about[node["id"]], timeout=START_S))
        often = Counter(node["name"] for node in found)
        for node in found:
            if often[node["name"]] > 1:
                node["name"] += f"-{node['id'][:4]}"
            self.names[node["id"]] = node["name"]
        return sorted(found, key=lambda node: node["name"])

    def shelf(self, node: str) -> Any:
        with self.looking:
            if node not in self.shelves:
                self.shelves[node] = on_node(Shelf, node).remote(self.directory)
            return self.shelves[node]

    def deliver(self, paths: Sequence[str], nodes: Sequence[str], is_shared: bool) -> dict[str, Any]:
        """Bring these directories to the nodes: what they are called there, by node. Nodes that were lost are left out.

        `is_shared`: they are there under the same path, where they are only proved.
        """
        places: dict[str, list[str]] = {node: [] for node in nodes}
        for path in paths:
            manifest = self.manifest(Path(path))
            for node, name in self.bring(Path(path), manifest, list(places), is_shared).items():
                places[node].append(name)
            places = {node: names for node, names in places.items() if names}
        for node in places:
            self.shelf(node).keep.remote(NUM_KEPT)
        return places

    def begin_training(self, name: str, rows: str, weights: str, nodes: Sequence[str]) -> dict[str, Any]:
        """Bring a training's rows to its nodes: what each has for it, by node."""
        directory, file = os.path.split(rows)
        (measured,) = self.hasher.measure([Path(rows)])
        manifest = {"files": {file: measured}, "whole_directory": False}
        with self.delivering:
            places = self.bring(Path(directory), manifest, nodes, is_shared=False)
        if missing := [self.name(node) for node in nodes if node not in places]:
            raise Lost(f"{', '.join(missing)} was lost before the training began")
        begun = {
            node: self.shelf(node).begin_training.remote(name, os.path.join(place, file), weights)
            for node, place in places.items()
        }
        return {node: ray.get(each) for node, each in begun.items()}

    def manifest(self, directory: Path) -> dict[str, Any]:
        if (directory / MANIFEST).exists():
            manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
            return manifest
        return hash_directory(directory, self.hasher)

    def bring(self, directory: Path, manifest: dict[str, Any], nodes: Sequence[str], is_shared: bool) -> dict[str, str]:
        delivery = Delivery(directory, manifest, {node: self.shelf(node) for node in nodes})
        places = delivery.prove() if is_shared else delivery.bring()
        for node, why in delivery.lost.items():
            print(f"delivery: {self.names.get(node, node)} was lost: {why}", file=sys.stderr)
            with self.looking:
                self.shelves.pop(node, None)
        for node, error in delivery.damaged.items():
            after = "is it the same path there?" if is_shared else "it was brought there twice; look at that disk"
            raise Lost(f"{self.name(node)}: {error}; {after}")
        return places

    def run(self, question: Question, commands: int, answers: int, log: int) -> None:
        """Start a worker, pass on what it reads and writes, and say at last how it ended."""
        number, node = question["number"], question["node"]
        code, why = LOST, ""
        try:
            options = {"num_gpus": question["num_gpus"], "max_concurrency": 8}
            actor = on_node(RemoteWorker, node, **options).remote(
                question["module"], question["variables"], question["num_gpus"] > 0
            )
            self.workers[number] = actor
            logged = stream(actor, "stderr")
            threading.Thread(target=pour, args=(logged, log), daemon=True).start()
            threading.Thread(target=self.feed, args=(actor, commands, number), daemon=True).start()
            pour(stream(actor, "stdout"), answers)
            code = ray.get(actor.wait.remote(), timeout=2 * trees.END_TIMEOUT_S)
        except GetTimeoutError:
            why = f"it closed its pipe on {self.name(node)} and did not end"
        except RayError as error:
            why = self.why(node, error)
        except OSError as error:  # the daemon reads no more
            why = str(error)
        finally:
            os.close(answers)
            self.end(number)
            if actor := self.workers.pop(number, None):
                ray.kill(actor)
            self.reply(question, code=code, why=why)

    def feed(self, actor: Any, commands: int, number: int) -> None:
        """Pass on what the daemon writes. When it closes its end, the worker ends."""
        with contextlib.suppress(RayError, OSError):
            while piece := os.read(commands, 1 << 20):
                ray.get(actor.write.remote(piece))
        os.close(commands)
        self.end(number)

    def end(self, number: int) -> None:
        """End a worker with all that it started. `run` sees that it has ended."""
        actor = self.workers.get(number)
        if actor is not None:
            try:
                ray.get(actor.end.remote(), timeout=2 * trees.END_TIMEOUT_S)
            except RayError:
                ray.kill(actor)

    def name(self, node: str) -> str:
        return self.names.get(node, node[:8])

    def why(self, node: str, error: RayError) -> str:
        """Why a worker was lost, from the one of Ray's errors that came first: they differ for one and the same loss."""
        with contextlib.suppress(RayError):
            if not any(each["Alive"] for each in ray.nodes() if each["NodeID"] == node):
                return f"its node {self.name(node)} was lost ({last_sentence(error)})"
        return f"it was lost on {self.name(node)} ({type(error).__name__}: {last_sentence(error)})"


def knock(address: str, variables: dict[str, str]) -> str:
    """Whether the cluster is "open" to a process with these variables, has "refused" it, or what is wrong in other words."""
    command = [sys.executable, "-P", "-c", KNOCK, address]
    try:
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=START_S)
    except subprocess.TimeoutExpired:
        return "it says nothing"
    return done.stdout.strip() or "no answer"


def on_node(kind: type, node: str, **options: Any) -> Any:
    """An actor of that kind on that node and no other; it takes no core, and Ray never starts it again."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(kind).options(
        num_cpus=0, max_restarts=0, max_task_retries=0, scheduling_strategy=place, **options
    )


def stream(actor: Any, which: str) -> Any:
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 8}
    return actor.read.options(**options).remote(which)


def pour(pieces: Any, fd: int) -> None:
    """Write what a worker puts out."""
    for ref in pieces:
        left = memoryview(ray.get(ref))
        while left:
            left = left[os.write(fd, left) :]


def last_sentence(error: BaseException) -> str:
    """The last line of Ray's long explanations that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:MAX_WHY] if lines else type(error).__name__


def main(address: str, directory: str, fd: str) -> None:
    trees.offer_to_the_oom_killer()
    Hub(socket.socket(fileno=int(fd)), address, directory).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
