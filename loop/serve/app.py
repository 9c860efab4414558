"""The addresses that are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from loop.errors import LoopError
from loop.serve.live import CannotShow, Live, in_thread, in_words, waiting_page
from loop.serve.who_may_ask import EMBEDDED, Guard
from loop.words import safe, warn
from store.errors import StoreError


def application(live: Live, meant: Callable[[str], bool], token: str | None, port: int, policy: str) -> ASGIApp:
    """The whole server. `meant` tells which Host headers name it; `policy` is the page's Content-Security-Policy."""

    async def page(request: Request) -> Response:
        try:
            return HTMLResponse(await live.html("page"), headers={"Content-Security-Policy": f"{policy}; {EMBEDDED}"})
        except CannotShow as why:
            return HTMLResponse(waiting_page(str(why)), 503)

    async def body(request: Request) -> Response:
        try:
            return HTMLResponse(await live.html("body"))
        except CannotShow as why:
            return PlainTextResponse(f"{why}\n", 503)

    async def events(request: Request) -> Response:
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(live.events(), headers=headers)

    async def status(request: Request) -> Response:
        try:
            answer = await in_thread(live.source.status)
        except (LoopError, StoreError, OSError) as error:
            return JSONResponse({"error": in_words(error)}, 503)
        # not JSONResponse: a path can hold bytes that are not UTF-8
        return Response(json.dumps(answer), media_type="application/json")

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def lost(request: Request, error: Exception) -> Response:
        code = error.status_code if isinstance(error, HTTPException) else 500
        return PlainTextResponse("no such page\n" if code == 404 else "cannot be answered\n", code)

    async def failed(request: Request, error: Exception) -> Response:
        warn(safe(f"serve: {type(error).__name__}: {error}"))
        return PlainTextResponse("this is a bug in the loop; the terminal of `loopctl serve` tells more\n", 500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(live.watch())
        try:
            yield
        finally:
            watching.cancel()

    answers = {"/": page, "/body": body, "/events": events, "/status.json": status, "/healthz": health}
    routes = [Route(path, answer) for path, answer in answers.items()]
    inner = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: lost, Exception: failed})
    return Guard(inner, meant, token, cookie=f"loop_{port}")
