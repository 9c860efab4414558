"""Who may ask, and what every answer tells browsers.

Any site that the user visits can send requests to 127.0.0.1, and under its own name if that name is made to point there (DNS
rebinding). So this server answers only under its own names, forbids other pages to embed it, allows nothing but reading, and
wants a token at any address that other machines reach.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN = "/healthz"  # for monitors; it tells nothing of the run
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
EMBEDDED = "frame-ancestors 'none'"
CLOSED = f"default-src 'none'; base-uri 'none'; form-action 'none'; {EMBEDDED}"  # for all but the page
WITHOUT_TOKEN = "a token is needed: open the address that `loopctl serve` printed, or send Authorization: Bearer TOKEN"


def names(host: str, port: int) -> Callable[[str], bool]:
    """A test of Host headers: do they name a server that listens on `host`?

    A server at every address also answers to any address in digits: rebinding needs a name.
    """
    expected = {f"{name}:{port}" for name in (*LOOPBACK, in_url(host.lower()))}
    if port == 80:
        expected |= {name.removesuffix(":80") for name in expected}
    everywhere = host in ("", "0.0.0.0", "::")

    def meant(header: str) -> bool:
        header = header.lower()
        return header in expected or (everywhere and _is_address(header, port))

    return meant


def in_url(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _is_address(header: str, port: int) -> bool:
    host, colon, given = header.rpartition(":")
    if port == 80 and (not colon or header.endswith("]")):
        host, given = header, "80"
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return given == str(port)


class Guard:
    """Wraps an ASGI application: refuses foreign names, methods that are not for reading, and requests without the token."""

    def __init__(self, app: ASGIApp, meant: Callable[[str], bool], token: str | None, cookie: str) -> None:
        self.app, self.meant, self.token, self.cookie = app, meant, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", CLOSED)
            await send(message)

        answer = self._refusal(Request(scope)) or self.app
        await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer instead; None if the request may pass."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self.meant(hosts[0]):
            return _plain(421, "not the name of this server; open it as it was printed, or start it with --host NAME")
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "this page is for reading only", Allow="GET, HEAD")
        path: str = request.scope["path"]  # not that of request.url, which the client's target can falsify
        if self.token is None or path == OPEN:
            return None
        if given := parse_qs(request.scope["query_string"].decode("latin-1")).get("token"):
            if not self._is_token(given[0]):
                return _plain(401, WITHOUT_TOKEN)
            # so that the token does not stay in the address bar and the history
            moved = RedirectResponse("/" + path.lstrip("/"), 303)
            # lax: a browser that follows a link from another site would not send a strict cookie
            moved.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return moved
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if self._is_token(request.cookies.get(self.cookie, "")) or (
            scheme.lower() == "bearer" and self._is_token(bearer)
        ):
            return None
        return _plain(401, WITHOUT_TOKEN, **{"WWW-Authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(given.strip().encode(errors="replace"), self.token.encode())


def _plain(status: int, words: str, **headers: str) -> Response:
    return PlainTextResponse(words + "\n", status, headers)
