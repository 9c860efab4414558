"""A cluster that asks for a token: who has it joins, and who does not is told what to do."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from loop.config.machine import Cluster
from loop.errors import ConfigError
from loop.workers.cluster import Hub
from tests.support.clusters import ENVIRONMENT, STORE_BYTES, all_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def write_token(file: Path) -> Path:
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    return file


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_token(tmp_path_factory.mktemp("token") / "right")


@pytest.fixture(scope="module")
def address(token: Path) -> Iterator[str]:
    """Of a cluster of one node that asks for that token. It is started as a user does, since this process has joined others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    log = token.with_name("log")
    with log.open("wb") as out:
        head = subprocess.Popen(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1",
                "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", "--include-dashboard=false",
                f"--object-store-memory={STORE_BYTES}",
            ],
            env=os.environ | ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    wait_until(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None, log.read_text)
    assert head.poll() is None, log.read_text()
    its = psutil.Process(head.pid).children(recursive=True)
    yield address
    head.send_signal(signal.SIGTERM)
    head.wait()
    assert all_gone(its)


def join(address: str, directory: Path) -> list[str]:
    """The names of the nodes of the cluster."""
    with closing(Hub(Cluster(address=address, dir=str(directory / "shelf")), directory / "hub.log")) as hub:
        return [node.name for node in hub.nodes()]


def test_with_the_token_it_is_joined(
    address: str, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert join(address, tmp_path) == [socket.gethostname()]


@pytest.mark.parametrize("which", ["another", "none", "a file that is missing", "no mode"])
def test_without_it_the_remedy_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if which != "no mode":
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
    if which in ("another", "a file that is missing"):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "another"))
    if which == "another":
        write_token(tmp_path / "another")
    with pytest.raises(
        ConfigError,
        match=rf"^cluster: {address} refuses the token of this machine; copy the cluster's to ~/.ray/auth_token, readable "
        "by you alone, and set RAY_AUTH_MODE=token",
    ):
        join(address, tmp_path)
