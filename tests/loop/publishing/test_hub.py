"""Pushing an export, by huggingface_hub's own client, to a stand-in server; and one line for whatever goes wrong."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop.errors import UsageError
from loop.publishing.hub import check_push
from tests.support.cli import Said, finished, process
from tests.support.hub_server import Hub, Repository, hub_server

__all__ = ["finished"]
REPO = "me/my-model"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


def push(hub: Hub, *arguments: str, repo: str = REPO, **more: str) -> Said:
    """`loopctl export base out --push REPO` in a process of its own, with nobody's own login."""
    home = {"HF_HOME": str(Path.cwd() / "hf-home"), "HF_HUB_OFFLINE": ""}
    export = ("export", "base", "out", "--push", repo, *arguments)
    return process(Path.cwd(), *export, **hub.environment(**home | more))


def failed(result: Said, *words: str, code: int = 1, exported: bool = True) -> None:
    """One line that says why, and where the whole directory is."""
    assert result.code == code and result.out == "", result
    assert result.err.count("\n") == (2 if exported else 1), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err.splitlines()[-1], result.err
    assert (Path("out/README.md").exists(), "exported, but not pushed" in result.err) == (exported, exported)


def test_a_push_and_the_same_again(finished: Path, hub: Hub) -> None:
    result = push(hub, "--private", "--json")
    assert result.code == 0, result.err
    answer = result.json
    repository = hub.repositories[REPO]
    assert repository.private and answer["pushed"]["private"]
    assert answer["pushed"]["url"] == f"{hub.url}/{REPO}" and answer["pushed"]["commit"] == repository.commits[0]
    assert repository.files == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {entry["name"] for entry in answer["files"]} == set(repository.files)
    assert hub.stored, "weights go through LFS"
    num_puts = sum(asked.startswith("PUT") for asked in hub.asked)

    again = push(hub, "--private", "--json")
    assert again.code == 0, again.err
    assert again.json["pushed"] == answer["pushed"] and again.json["sha256"] == answer["sha256"]
    assert len(repository.commits) == 1, "nothing has changed"
    assert sum(asked.startswith("PUT") for asked in hub.asked) == num_puts


def test_what_another_model_left_goes_and_the_rest_stays(finished: Path, hub: Hub) -> None:
    old = {"model-00001-of-00002.safetensors": b"old", "adapter_config.json": b"{}", "picture.png": b"mine"}
    hub.repositories[REPO] = Repository(private=False, files=dict(old))
    assert push(hub).code == 0
    files = hub.repositories[REPO].files
    assert "picture.png" in files and not {"model-00001-of-00002.safetensors", "adapter_config.json"} & set(files)


def test_private_is_not_pushed_where_everybody_reads(finished: Path, hub: Hub) -> None:
    hub.repositories[REPO] = Repository(private=False)
    failed(push(hub, "--private"), "exists and is public")
    assert not hub.repositories[REPO].commits


@pytest.mark.parametrize(
    ("given", "words", "code", "exported"),
    [
        ({"HF_TOKEN": ""}, ["no token for http://127.0.0.1:", "HF_TOKEN"], 1, False),
        ({"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE"], 1, False),
        ({"repo": "a/b/c"}, ["--push a/b/c"], 2, False),
        ({"HF_TOKEN": "hf_wrong"}, ["401", "token is not accepted"], 77, True),
    ],
)
def test_it_ends_before_anything_is_written_where_it_can(
    finished: Path, hub: Hub, given: dict[str, str], words: list[str], code: int, exported: bool
) -> None:
    failed(push(hub, **given), *words, code=code, exported=exported)
    assert exported == bool(hub.asked)


@pytest.mark.parametrize("repo", ["a/b/c", "me/", "me/x--y", "me/\x1b[31m", "me/x.git", "../x", "-x"])
def test_a_bad_name(repo: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_push(repo)
    assert str(caught.value).startswith(f"--push {repo}: ") and "owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network(finished: Path, hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    failed(push(hub, HF_ENDPOINT=nobody), f"{nobody} cannot be reached")


@pytest.mark.parametrize(
    ("where", "status", "code", "words"),
    [
        ("repos/create", 403, 77, "may not write there"),
        ("commit/main", 403, 77, "may not write there"),
        ("commit/main", 409, 1, "somebody else is changing it"),
        ("preupload", 404, 1, "no such repository"),
        ("PUT /lfs", 413, 1, "not accepted as it is"),
        ("validate-yaml", 400, 1, "bad front matter"),
    ],
)
def test_the_hub_refuses(finished: Path, hub: Hub, where: str, status: int, code: int, words: str) -> None:
    hub.answers[where] = (status, "bad front matter \x1b[31m" if status == 400 else "no")
    if where == "repos/create":
        hub.answers["GET /api/models"] = (403, "no")
    result = push(hub)
    failed(result, words, code=code)
    assert "\x1b" not in result.err
    if status == 409:
        hub.answers.clear()
        assert push(hub).code == 0 and hub.repositories[REPO].files


def test_a_directory_with_other_files_is_not_pushed(finished: Path, hub: Hub) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    result = push(hub)
    assert result.code == 1 and "holds other files" in result.err and result.err.count("\n") == 1
    assert [path.name for path in Path("out").iterdir()] == ["notes.txt"] and hub.asked == []
