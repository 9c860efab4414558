"""Pushing a directory to a Hugging Face hub, through the hub's own client. Each failure is one line.

Uses HF_ENDPOINT, HF_TOKEN and the token that `hf auth login` stored. Pushing the same files again changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, logging, set_client_factory, validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from loop.errors import LoopError, PermissionDenied, UsageError
from loop.words import one_line
from store.records import Json

CONNECT_TIMEOUT_S = 30.0
# What an earlier push may have left of another model; nothing else in the repository is touched.
STALE = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"]
SAID_LENGTH = 200  # characters of what a server said
LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
REFUSALS = {  # by the server's status: what is wrong, and the remedy
    401: f": the token is not accepted; {LOGIN}",
    403: ": this token may not write there; use one with write access, or another name",
    404: ": there is no such repository, owner or server; check the name and HF_ENDPOINT",
    **dict.fromkeys((409, 412), ": somebody else is changing it; the same command tries again"),
    429: ": too many requests; wait, then the same command tries again",
    **dict.fromkeys((400, 413, 422), ": it was not accepted as it is; correct that, then the same command tries again"),
}


def check_push(repo: str) -> None:
    """Check what can be checked before anything is written: UsageError for a bad name, LoopError without a token."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        why = str(error).split(": '")[0].rstrip(".")
        raise UsageError(f"--push {repo}: {why[:1].lower()}{why[1:]}; give owner/name") from None
    if constants.HF_HUB_OFFLINE:
        raise LoopError("--push: HF_HUB_OFFLINE is set; unset it, or push later with the same command")
    if not get_token():
        raise LoopError(f"--push: no token for {constants.ENDPOINT}; {LOGIN}")


def push(directory: Path, repo: str, *, private: bool, message: str) -> Json:
    """Create the repository if it is missing, and commit what has changed. Returns where it is now; LoopError if that fails."""

    def client() -> Any:
        made = default_client_factory()
        made.timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)
        return made

    endpoint = constants.ENDPOINT
    disable_progress_bars()
    logging.set_verbosity_error()
    set_client_factory(client)
    try:
        api = HfApi(library_name="ssd-loop")
        made = api.create_repo(repo, private=True if private else None, exist_ok=True)
        is_private = bool(api.repo_info(made.repo_id).private)
        if private and not is_private:
            raise LoopError(f"--push {repo}: it exists and is public; make it private there, or give another name")
        done = api.upload_folder(
            repo_id=made.repo_id, folder_path=directory, commit_message=message, delete_patterns=STALE
        )
    except LoopError:
        raise
    except Exception as error:
        raise _explained(error, repo, endpoint) from error
    url = f"{endpoint}/{made.repo_id}"
    return {"repo": made.repo_id, "url": url, "commit": done.oid, "private": is_private}


def _explained(error: BaseException, repo: str, endpoint: str) -> LoopError:
    """The error in one line, with the remedy. Words of the server are shortened, because they may be hostile."""
    again = "the directory is whole; the same command tries again"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status, message = cause.response.status_code, one_line(cause.server_message or "", SAID_LENGTH)
            answer = f"--push {repo}: {endpoint} answered {status}{f' ({message})' if message else ''}"
            kind = PermissionDenied if status in (401, 403) else LoopError
            return kind(answer + REFUSALS.get(status, "; the directory is whole: the same command tries again"))
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            why = one_line(str(cause) or type(cause).__name__, SAID_LENGTH)
            return LoopError(f"--push {repo}: {endpoint} cannot be reached ({why}); {again}")
        cause = cause.__cause__ or cause.__context__
    return LoopError(f"--push {repo}: {one_line(f'{type(error).__name__}: {error}', SAID_LENGTH)}; {again}")
