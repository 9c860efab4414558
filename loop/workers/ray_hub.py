"""The hub, `python -m loop.workers.ray_hub ADDRESS DIRECTORY QUESTIONS ANSWERS`: the daemon's one connection to a Ray cluster.

The daemon's side is `loop.workers.cluster`. Questions come over the socket QUESTIONS, answers go into the pipe ANSWERS, a line of
JSON each; both are numbers of descriptors. Each question is answered in a thread of its own. When the daemon is gone, its end of
the socket is closed, this process ends, and Ray ends the actors with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells Ray's makers nothing; read when ray is imported

import ray
import ray._private.state
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loop.system import trees
from loop.workers.ray_delivery import CALL_S, Delivery, fetch, in_words
from loop.workers.ray_node import MOST_BYTES, RemoteWorker, Shelf
from store.canonical import sha256_of
from store.checkpoints import MANIFEST, hash_directory
from store.errors import StoreError
from store.hashing import Hasher

START_S = 300.0  # for a node to give a worker its GPUs, and for an actor to be there
LOST = 70  # the exit code of a worker that was lost with its node
LOOK_S, CHECK_S = 1.0, 5.0  # between two looks whether the cluster is there, and for the answer
GONE_S = 45.0  # a head that is away so long is gone; after 60 s Ray would end this process without a word to anybody
MAX_QUESTION_BYTES = 1 << 18
FEW = {"_generator_backpressure_num_objects": 8}  # pieces of a log that are on their way at once
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
KNOCK = """
import sys
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    ensure_token_if_auth_enabled(create_token_if_missing=False)  # without a token the next line ends the process
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


class Refused(Lost):
    """The same, and another attempt would not help."""


class Hub:
    """Answers what the daemon asks."""

    def __init__(self, questions: socket.socket, answers: int, address: str, directory: str) -> None:
        self.questions, self.answers, self.address, self.directory = questions, answers, address, directory
        self.hasher = Hasher()
        self.shelves: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.workers: dict[int, Any] = {}
        self.delivering, self.looking, self.answering = threading.Lock(), threading.Lock(), threading.Lock()

    def serve(self) -> None:
        """Answer questions until the daemon is gone."""
        while True:
            message, fds, _, _ = socket.recv_fds(self.questions, MAX_QUESTION_BYTES, 3)
            if not message:
                os._exit(0)  # nobody is left to whom an orderly end could matter
            question = json.loads(message)
            threading.Thread(target=self.answer, args=(question, fds), daemon=True).start()

    def reply(self, question: Question, **answer: Any) -> None:
        line = json.dumps({"number": question["number"]} | answer).encode() + b"\n"
        with self.answering, contextlib.suppress(OSError):
            write_all(self.answers, line)

    def answer(self, question: Question, fds: list[int]) -> None:
        try:
            if question["op"] == "start":
                self.run(question, *fds)
            else:
                self.reply(question, value=self.carry_out(question["op"], question["what"]))
        except (Lost, StoreError, OSError) as error:
            self.reply(question, error=in_words(error), is_final=isinstance(error, Refused))
        except Exception as error:
            traceback.print_exc()
            self.reply(question, error=f"{type(error).__name__}: {in_words(error)}")

    def carry_out(self, op: str, what: dict[str, Any]) -> Any:
        match op:
            case "join":
                return self.join(**what)
            case "nodes":
                return self.nodes()
            case "deliver":
                with self.delivering:
                    return self.deliver(**what)
            case "port":
                return ray.get(self.shelf(what["node"]).port.remote(), timeout=CALL_S)
            case "begin_training":
                with self.delivering:
                    return self.begin_training(**what)
            case "fetch":
                return fetch(self.shelf(what["node"]), what["name"], Path(what["target"]))
            case "end_training":
                for ended in [self.shelf(node).end_training.remote(what["name"]) for node in what["nodes"]]:
                    with contextlib.suppress(RayError):  # of a node that was lost
                        ray.get(ended, timeout=CALL_S)
                return None
            case "end":
                return self.end(what["process"])
        raise AssertionError(op)

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
        named = address if self.address == "auto" else self.address  # as the user knows it
        with ThreadPoolExecutor(2) as pool:
            with_ours, without = pool.map(knock, (address, address), ({}, NO_TOKEN))
        if with_ours == "refused":
            raise Refused(
                f"{named} refuses the token of this machine; copy the cluster's to ~/.ray/auth_token, readable by you alone, "
                "and set RAY_AUTH_MODE=token"
            )
        if with_ours != "open":
            raise Lost(f"no cluster answers at {named} ({with_ours}); is it up, and may this machine reach it?")
        if without == "open" and not is_open_allowed:
            raise Refused(
                f"whoever reaches {named} can run programs on its nodes, since it asks for no token; set "
                "RAY_AUTH_MODE=token on every node (docs/several-machines.md), or cluster.insecure = true"
            )
        try:
            ray.init(address=address, namespace="ssd-loop", log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise Lost(
                f"{named} answers, but cannot be joined ({in_words(error)}); this machine must be one of its nodes: "
                f"`ray start --address={named} --num-cpus=0`"
            ) from None

        self.own = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self.watch, args=(named,), daemon=True).start()

    def watch(self, name: str) -> None:
        """End this process when the cluster is gone, or this machine's part of it, without which Ray lets it live for nothing."""
        client, heard_at = ray._private.worker.global_worker.gcs_client, time.monotonic()
        while time.monotonic() - heard_at < GONE_S:
            time.sleep(LOOK_S)
            with contextlib.suppress(RayError):
                (lives,) = client.check_alive([ray.NodeID.from_hex(self.own)], timeout=CHECK_S)
                heard_at = time.monotonic()
                if not lives:
                    self.leave_without_raylet()
        self.leave(f"the cluster at {name} is gone: its head has given no answer for {GONE_S:g} s")

    def leave_without_raylet(self) -> NoReturn:
        self.leave("this machine is no node of the cluster any more: its raylet was lost (`ray start` starts another)")

    def leave(self, why: str) -> NoReturn:
        """End, and all on the nodes with it."""
        with self.answering:
            with contextlib.suppress(OSError):
                write_all(self.answers, json.dumps({"ended": why}).encode() + b"\n")
            os._exit(1)

    def nodes(self) -> dict[str, Any]:
        """The nodes that have cores or GPUs for this run, by name, each with a shelf; and what is wrong with others."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        free = ray._private.state.available_resources_per_node()
        nodes = []
        for node in alive:
            has, key = node["Resources"], node["NodeID"]
            if has.get("CPU", 0) or has.get("GPU", 0):
                gpus = {"num_gpus": int(has.get("GPU", 0)), "free_gpus": int(free.get(key, {}).get("GPU", 0))}
                place = {"id": key, "address": node["NodeManagerAddress"], "name": node["NodeManagerHostname"]}
                nodes.append({"num_cpus": has.get("CPU", 0.0), "is_here": key == self.own} | place | gpus)
        about = {node["id"]: self.shelf(node["id"]).about.remote() for node in nodes}
        good, problems = [], {}
        for node in nodes:
            try:
                good.append(node | ray.get(about[node["id"]], timeout=START_S))
            except RayError as error:
                problems[node["name"]] = in_words(error)
                self.forget(node["id"])
        often = Counter(node["name"] for node in good)
        for node in good:
            if often[node["name"]] > 1:
                node["name"] += f"-{node['id'][:4]}"
            self.names[node["id"]] = node["name"]
        return {"nodes": sorted(good, key=lambda node: str(node["name"])), "problems": problems}

    def shelf(self, node: str) -> Any:
        with self.looking:
            if node not in self.shelves:
                self.shelves[node] = on_node(Shelf, node).remote(self.directory)
            return self.shelves[node]

    def forget(self, node: str) -> None:
        """The shelf of a node does not answer; another one is tried the next time."""
        with self.looking:
            shelf = self.shelves.pop(node, None)
        if shelf is not None:
            ray.kill(shelf)

    def deliver(self, paths: Sequence[str], sha256: str, nodes: Sequence[str], is_shared: bool) -> dict[str, Any]:
        """Bring these directories to the nodes: what they are called there, by node, and why others do not have them.

        `sha256`: of the first one's manifest. `is_shared`: they are there under the same path, where they are only proved.
        """
        places: dict[str, list[str]] = {node: [] for node in nodes}
        failed: dict[str, str] = {}
        for number, path in enumerate(paths):
            manifest = self.manifest(Path(path))
            if number == 0 and len(sha256) == 64 and sha256_of(manifest) != sha256:
                raise Lost(f"{path}: its manifest is not that of checkpoint {sha256[:12]}; `loopctl verify` says more")
            got, why = self.bring(Path(path), manifest, list(places), is_shared)
            failed |= why
            places = {node: [*names, got[node]] for node, names in places.items() if node in got}
        return {"places": places, "failed": failed}

    def bring(
        self, directory: Path, manifest: dict[str, Any], nodes: Sequence[str], is_shared: bool
    ) -> tuple[dict[str, str], dict[str, str]]:
        delivery = Delivery(directory, manifest, {node: self.shelf(node) for node in nodes})
        places = delivery.prove() if is_shared else delivery.bring()
        for node in delivery.failed:
            self.forget(node)
        return places, {node: f"{self.name(node)}: {why}" for node, why in delivery.failed.items()}

    def begin_training(self, name: str, rows: str, weights: str, nodes: Sequence[str]) -> dict[str, Any]:
        """Bring a training's rows to its nodes: what each has for it, by node."""
        directory, file = os.path.split(rows)
        (measured,) = self.hasher.measure([Path(rows)])
        manifest = {"files": {file: measured}, "whole_directory": False}
        places, failed = self.bring(Path(directory), manifest, nodes, is_shared=False)
        if failed:
            raise Lost(f"{'; '.join(failed.values())}, before the training began")
        begun = {
            node: self.shelf(node).begin_training.remote(name, os.path.join(place, file), weights)
            for node, place in places.items()
        }
        return {node: ray.get(each, timeout=CALL_S) for node, each in begun.items()}

    def manifest(self, directory: Path) -> dict[str, Any]:
        if (directory / MANIFEST).exists():
            manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
            return manifest
        return hash_directory(directory, self.hasher)

    def run(self, question: Question, commands: int, answers: int, log: int) -> None:
        """Start a worker, pass on what it reads and writes, and say at last how it ended."""
        number, node, num_gpus = question["number"], question["what"]["node"], question["what"]["num_gpus"]
        code, why, fed = LOST, "", False
        try:
            what = question["what"]
            arguments = what["module"], what["variables"], num_gpus > 0, tuple(what["share"])
            actor = on_node(RemoteWorker, node, num_gpus=num_gpus, max_concurrency=8).remote(*arguments)
            self.workers[number] = actor
            self.wait_until_up(actor, node, num_gpus)
            threading.Thread(target=keep_log, args=(stream(actor, "follow", **FEW), log), daemon=True).start()
            threading.Thread(target=self.feed, args=(actor, commands, number), daemon=True).start()
            fed = True
            self.pass_on(actor, answers)
            code = ray.get(actor.wait.remote(), timeout=2 * trees.END_TIMEOUT_S)
        except GetTimeoutError:
            why = f"it closed its pipe on {self.name(node)} and did not end"
        except Lost as error:
            why = str(error)
        except RayError as error:
            why = self.why(node, error)
        except Exception as error:  # the daemon reads no more, or a fault of ours
            why = in_words(error)
        finally:
            self.end(number)
            if actor := self.workers.pop(number, None):
                ray.kill(actor)
            self.reply(question, code=code, why=why)
            for fd in (answers, *(() if fed else (commands, log))):
                os.close(fd)

    def pass_on(self, actor: Any, answers: int) -> None:
        """Pass on what the worker writes until it has ended."""
        num_bytes = told = 0
        for ref in stream(actor, "read"):
            piece = ray.get(ref)
            write_all(answers, piece)
            num_bytes += len(piece)
            if num_bytes - told >= MOST_BYTES // 8:
                actor.taken.remote(num_bytes)
                told = num_bytes

    def wait_until_up(self, actor: Any, node: str, num_gpus: int) -> None:
        """Lost where the node has no room for it in time."""
        try:
            ray.get(actor.is_up.remote(), timeout=START_S)
        except GetTimeoutError:
            what = f"{num_gpus} GPUs" if num_gpus else "a process"
            raise Lost(
                f"{self.name(node)} gave it no {what} within {START_S:g} s; others have them (`ray status` on that machine)"
            ) from None

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
            alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
            if self.own not in alive:
                self.leave_without_raylet()
            if node not in alive:
                return f"its node {self.name(node)} was lost ({in_words(error)})"
        return f"it was lost on {self.name(node)} ({type(error).__name__}: {in_words(error)})"


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
    own = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(kind).options(scheduling_strategy=place, **own | options)


def stream(actor: Any, method: str, **options: Any) -> Iterator[Any]:
    return getattr(actor, method).options(num_returns="streaming", **options).remote()  # type: ignore[no-any-return]


def write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def keep_log(pieces: Iterator[Any], fd: int) -> None:
    """Write what a worker writes into its log, as far as the disk takes it, and close."""
    with contextlib.suppress(RayError):
        for ref in pieces:
            piece = ray.get(ref)
            with contextlib.suppress(OSError):
                write_all(fd, piece)
    os.close(fd)


def main(address: str, directory: str, questions: str, answers: str) -> None:
    trees.offer_to_the_oom_killer()
    Hub(socket.socket(fileno=int(questions)), int(answers), address, directory).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
