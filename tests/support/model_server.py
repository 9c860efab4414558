"""A stand-in for `vllm serve`: transformers with a tiny model behind the fields of vLLM's completions that are used."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loop.engines.base import CheckpointRef, SamplingParams
from loop.engines.feed import Listed
from tests.support.engines import chat, in_process, no_progress, settings

Body = dict[str, Any]
KEY = "sk-very-secret"


class StandIn:
    """What `vllm serve` is to the sampler. `spoil` makes something else of a completion's answer, bytes are sent as they are."""

    def __init__(self, checkpoint: CheckpointRef, port: int = 0) -> None:
        self.lock = threading.Lock()
        self.load(checkpoint)
        self.spoil: Callable[[Body], Any] = lambda answer: answer
        self.statuses: list[int] = []  # of the next answers, in place of what they would be
        self.asked: list[tuple[str, Body, dict[str, str]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.answer(self, {})

            def do_POST(self) -> None:
                stand_in.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # of those who hang up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def load(self, checkpoint: CheckpointRef) -> None:
        self.sampler = in_process(checkpoint)

    def answer(self, handler: BaseHTTPRequestHandler, body: Body) -> None:
        self.asked.append((handler.path, body, dict(handler.headers)))
        status = self.statuses.pop(0) if self.statuses else 200
        answer: Any = {"error": {"message": f"no\x1b[31m\n{KEY} " + "x" * 500}}
        if status == 200:
            with self.lock:
                answer = self.answer_to(handler.path, body)
        sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    def answer_to(self, path: str, body: Body) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "served", "object": "model", "max_model_len": 2048}]}
        if path == "/reload":
            self.load(CheckpointRef(sha256="", path=Path(body["path"])))
            return {}
        assert path == "/v1/completions" and body["model"] == "served" and body["return_token_ids"]
        answer = {"object": "text_completion", "model": "served", "choices": [self.choice(body)]}
        return answer if body.get("prompt_logprobs") is not None else self.spoil(answer)

    def choice(self, body: Body) -> Body:
        from loop.engines.hf_sampler import Row

        names = ("temperature", "top_k", "top_p", "repetition_penalty", "stop")
        params = SamplingParams(max_new_tokens=body["max_tokens"], **{name: body[name] for name in names})
        row = Row(chat("r", seed=body["seed"]), tuple(body["prompt"]))
        ((drawn,),) = self.sampler._run(Listed([row], 1).take, 1, params)
        logprobs = self.logprobs([*body["prompt"], *drawn.token_ids])
        num, choice = len(body["prompt"]), {"index": 0, "text": drawn.text, "stop_reason": None}
        if drawn.finish_reason == "stop":
            choice["stop_reason"] = next(word for word in body["stop"] if word in drawn.text)
        if body.get("prompt_logprobs") is not None:
            pairs = zip(body["prompt"][1:], logprobs[: num - 1], strict=True)
            choice["prompt_logprobs"] = [None, *({str(token): {"logprob": value, "rank": 1}} for token, value in pairs)]
        tokens = [f"token_id:{token}" for token in drawn.token_ids]
        return choice | {
            "finish_reason": "length" if drawn.finish_reason == "length" else "stop",
            "logprobs": {"token_logprobs": logprobs[num - 1 :], "tokens": tokens},
            "token_ids": list(drawn.token_ids),
            "prompt_token_ids": body["prompt"],
        }

    def logprobs(self, token_ids: list[int]) -> list[float]:
        """Of each token after the first."""
        import torch

        ids = torch.tensor([token_ids])
        with torch.inference_mode():
            logprobs = self.sampler.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def server_sampler(checkpoint: CheckpointRef, url: str, **changed: Any) -> Any:
    from loop.engines.server_sampler import ServerSampler

    return ServerSampler(checkpoint, settings(server_url=url, **changed), no_progress)


RELOAD = [
    sys.executable,
    "-c",
    "import json, sys, urllib.request as u; url = sys.argv[1].removesuffix('/v1') + '/reload'; "
    "u.urlopen(u.Request(url, json.dumps({'path': sys.argv[2]}).encode(), method='POST')).read()",
    "{url}",
    "{path}",
]  # the command that has the stand-in serve other weights
