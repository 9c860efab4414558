"""A stand-in for a Hugging Face hub: as much of its HTTP interface as pushing a directory calls. It holds no tests.

Regular files come inside the commit, `*.safetensors` through the LFS batch interface, as on the hub without Xet.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"
USER = "me"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def oid(self, path: str) -> str | None:
        """As the hub has it: SHA-256 of what is in LFS, git's blob hash of everything else."""
        content = self.files.get(path)
        if content is None:
            return None
        if path.endswith(".safetensors"):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def mode(self, path: str) -> dict[str, Any]:
        """How a file is to be uploaded."""
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": self.oid(path)}


@dataclass
class Hub:
    """What the server holds, and how it is to behave."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # in LFS, by SHA-256
    asked: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)  # a part of a request -> status and message

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that is to push here."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | more


class Handler(BaseHTTPRequestHandler):
    """Answers one request from what `hub` holds."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        refusals = (refusal for part, refusal in self.hub.answers.items() if part in asked)
        if refusal := next(refusals, None):
            self.answer(refusal[0], {"error": refusal[1]}, refusal[1])
        elif path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self.answer(200, {})
        elif path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."}, "Invalid credentials in Authorization header")
        else:
            self.answer(*self.carried_out(path, body))

    do_POST = do_PUT = do_GET

    def carried_out(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        owner, name, *rest = path.removeprefix("/api/models").removeprefix("/").replace(".git/", "/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        match rest:
            case ["info", "lfs", "objects", "batch"]:
                return 200, {"transfer": "basic", "objects": list(map(self.action, json.loads(body)["objects"]))}
            case [] | ["revision", "main"]:
                sha = repository.commits[-1] if repository.commits else None
                return 200, {"id": f"{owner}/{name}", "private": repository.private, "sha": sha, "siblings": []}
            case ["tree", "main"]:
                files = repository.files.items()
                return 200, [{"type": "file", "path": p, "size": len(c), "oid": repository.oid(p)} for p, c in files]
            case ["preupload", "main"]:
                return 200, {"files": [repository.mode(file["path"]) for file in json.loads(body)["files"]]}
            case ["commit", "main"]:
                return self.commit(f"{owner}/{name}", repository, body)
        return 404, {"error": "not here"}

    def create(self, wanted: Any) -> tuple[int, Any]:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return 409, url | {"error": "You already created this model repo"}
        self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return 200, url

    def action(self, wanted: Any) -> Any:
        upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
        actions = {} if wanted["oid"] in self.hub.stored else {"actions": upload}
        return {"oid": wanted["oid"], "size": wanted["size"]} | actions

    def commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del repository.files[value["path"]]
        oid = hashlib.sha1(body).hexdigest()
        repository.commits.append(oid)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}

    def answer(self, status: int, value: Any, message: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if message:
            self.send_header("X-Error-Message", message)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """The server on a free port, in a thread, while the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
