"""Asking an OpenAI-compatible server, as `vllm serve MODEL` is one. Imports no model library, so that `doctor` may ask, too.

A server's answers are checked: sizes, types and numbers. Whatever is wrong becomes a LostEngine of one printable line. The
API key is taken from the environment and is neither kept elsewhere nor shown.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal, TypeVar

import httpx2 as httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loop.errors import EngineError, LostEngine
from loop.words import one_line

CONNECT_TIMEOUT_S = 10.0
KEEP_S = 2.0  # an unused connection; uvicorn closes its own after 5
RETRY_WAIT_S = 1.0
SHOWN_CHARACTERS = 200
MODELS_BYTES = 1 << 20
TOKEN_BYTES = 1 << 10  # at most, of an answer per token: a few times what is needed


class Unavailable(LostEngine):
    """No server there, or one that says that it cannot answer now: worth another attempt."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class ModelCard(_Part):
    """One entry of /v1/models. vLLM says how many tokens fit; others may not."""

    id: str = Field(min_length=1)
    max_model_len: int | None = Field(None, gt=0)


class Models(_Part):
    """The answer of /v1/models."""

    data: list[ModelCard] = Field(min_length=1)


class TokenLogprob(_Part):
    logprob: float


class Logprobs(_Part):
    token_logprobs: list[float]


class Choice(_Part):
    """One completion, with what vLLM adds to it where it is asked for token ids."""

    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None = None
    logprobs: Logprobs
    prompt_logprobs: list[dict[str, TokenLogprob] | None] | None = None


class Completions(_Part):
    """The answer of /v1/completions to one prompt."""

    choices: list[Choice] = Field(min_length=1, max_length=1)


Answer = TypeVar("Answer", Models, Completions)


class Server:
    """A server at `url` ("http://HOST:PORT/v1"). Use within one event loop, and close it."""

    def __init__(self, url: str, timeout_s: float | None = None) -> None:
        """`timeout_s` limits each step of an answer; without it, the caller limits the whole."""
        self.url = url.rstrip("/")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not all("!" <= letter <= "~" for letter in self._key):
            raise EngineError("OPENAI_API_KEY: is no API key: it holds spaces or letters beyond ASCII; set it again")
        self._client = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=httpx.Timeout(timeout_s, connect=timeout_s or CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_S),
        )

    async def models(self) -> Models:
        """The models that are served, in one attempt. Unavailable, or another LostEngine."""
        return await self._answer(Models, "/models", MODELS_BYTES)

    async def complete(self, body: dict[str, Any]) -> Choice:
        """The completion of one prompt of token ids; where the server is unavailable, in a second attempt."""
        most = MODELS_BYTES + TOKEN_BYTES * (len(body["prompt"]) + body["max_tokens"])
        try:
            answer = await self._answer(Completions, "/completions", most, body)
        except Unavailable:
            await asyncio.sleep(RETRY_WAIT_S)
            answer = await self._answer(Completions, "/completions", most, body)
        return answer.choices[0]

    async def _answer(self, kind: type[Answer], path: str, most: int, sent: dict[str, Any] | None = None) -> Answer:
        """The answer with status 200 to what is sent. Read raw, so that no compressed body can grow beyond `most` bytes."""
        got = bytearray()
        try:
            async with self._client.stream("POST" if sent else "GET", self.url + path, json=sent) as answer:
                async for piece in answer.aiter_raw():
                    got += piece
                    if len(got) > most:
                        raise self.refusal(path, f"its answer is longer than {most} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = self.shown(str(error)) or type(error).__name__
            raise Unavailable(f"{self.url}{path}: does not answer: {reason}") from None
        if answer.status_code != 200:
            reason = f"status {answer.status_code}: {self.shown(got.decode(errors='replace'))}"
            raise (Unavailable if answer.status_code >= 500 else LostEngine)(f"{self.url}{path}: {reason}")
        try:
            return kind.model_validate_json(bytes(got))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = self.shown(f"{where}: {first['msg']}" if where else first["msg"])
            raise self.refusal(path, f"its answer is not what vLLM's is ({reason})") from None

    def refusal(self, path: str, what: str) -> LostEngine:
        """An error about the answer of `path`; `what` is printable."""
        return LostEngine(f"{self.url}{path}: {what}")

    def shown(self, text: str) -> str:
        """The beginning of a stranger's text, on one printable line and without the API key."""
        if self._key:
            text = text.replace(self._key, "***")
        return one_line(text)[:SHOWN_CHARACTERS].strip()

    async def close(self) -> None:
        """Let go of all connections. Safe to repeat."""
        await self._client.aclose()


def first_model(url: str, timeout_s: float) -> str:
    """The name of the first model that is served there. EngineError where none is, in at most `timeout_s`."""

    async def ask() -> str:
        server = Server(url, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return (await server.models()).data[0].id
        except TimeoutError:
            raise Unavailable(f"{server.url}/models: does not answer within {timeout_s:g} s") from None
        finally:
            await server.close()

    return asyncio.run(ask())
