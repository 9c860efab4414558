"""The socket and the process: an address that is free, uvicorn on it, and a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import secrets
import signal
import socket
from urllib.parse import quote

import uvicorn

from loop.errors import LoopError, PermissionDenied, UsageError
from loop.serve.app import application
from loop.serve.live import Live
from loop.serve.who_may_ask import in_url, names

END_S = 1  # for the answers that are under way when the server ends


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at this address; port 0 takes any free one. UsageError, PermissionDenied or LoopError if not."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host}: no such host; give an address of this machine, or leave it out") from None
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        return listener
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise LoopError(f"port {port} of {host} is taken; choose another with --port, or 0 for any") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host}: is no address of this machine; leave it out for 127.0.0.1") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(f"port {port}: this user may not listen there; use one above 1023") from None
        raise LoopError(f"{host}, port {port}: {error.strerror}; choose another") from None


def is_for_this_machine_only(listener: socket.socket) -> bool:
    """Whether no other machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{in_url(host)}:{port}/" + (f"?token={quote(token)}" if token else "")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, live: Live) -> None:
        super().__init__(config)
        self.live = live

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.live.close()  # otherwise it waits for the streams of events, which have no end
        await super().shutdown(sockets)


def serve(live: Live, listener: socket.socket, host: str, token: str | None, policy: str) -> None:
    """Answer until a signal comes: SIGINT and SIGTERM end it at once, whoever is still looking."""
    port = int(listener.getsockname()[1])
    config = uvicorn.Config(
        application(live, names(host, port), token, port, policy),
        http="h11", ws="none", lifespan="on", loop="asyncio", log_config=None, log_level="critical", access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=END_S,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it is done
    try:
        with contextlib.suppress(KeyboardInterrupt):  # likewise
            asyncio.run(_Server(config, live).serve(sockets=[listener]))
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()
