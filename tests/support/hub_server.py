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
        self.serve()

    do_POST = do_PUT = do_GET

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        for part, (status, message) in self.hub.answers.items():
            if part in asked:
                self.answer(status, {"error": message}, message)
                return
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self.answer(200, {})
        elif path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."}, "Invalid credentials in Authorization header")
        else:
            self.answer(*self.carried_out(path, body))

    def carried_out(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name, _, rest = path.removeprefix("/api/models/").removeprefix("/").partition(".git/")
        parts = name.split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        if repository is None:
            return 404, {"error": "Repository not found"}
        if rest == "info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self.action(one) for one in json.loads(body)["objects"]]}
        match parts[2:]:
            case [] | ["revision", "main"]:
                sha = repository.commits[-1] if repository.commits else None
                return 200, {"id": "/".join(parts[:2]), "private": repository.private, "sha": sha, "siblings": []}
            case ["tree", "main"]:
                return 200, [
                    {"type": "file", "path": name, "size": len(content), "oid": repository.oid(name)}
                    for name, content in repository.files.items()
                ]
            case ["preupload", "main"]:
                return 200, {"files": [self.mode(repository, one) for one in json.loads(body)["files"]]}
            case ["commit", "main"]:
                return self.commit("/".join(parts[:2]), repository, body)
        return 404, {"error": "not here"}

    def create(self, wanted: Any) -> tuple[int, Any]:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return 409, url | {"error": "You already created this model repo"}
        self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return 200, url

    def action(self, wanted: Any) -> Any:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.stored:
            return known
        return known | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}}

    def mode(self, repository: Repository, wanted: Any) -> Any:
        mode = "lfs" if wanted["path"].endswith(".safetensors") else "regular"
        oid = repository.oid(wanted["path"])
        return {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(body).hexdigest()
        repository.files = files
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
