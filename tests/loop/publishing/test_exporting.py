"""`loopctl export`: a directory that is whole or not there, and a card that says what the ledger knows and nothing else."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from loop.config.loading import load_config
from loop.config.same_run import config_sha256, resolved
from loop.config.toml_text import toml_text
from loop.errors import NoRoom
from loop.publishing import exporting
from loop.publishing.card import PAPER, card
from loop.publishing.card_facts import facts_of
from loop.publishing.exporting import generation_config
from loop.publishing.markdown import block, words
from loop.reading.checkpoints import checkpoint_named, publishable
from loop.reading.reader import reader
from loop.words import decoding_words, interval, rate, safe, signed
from tests.support import ROOT
from tests.support.cli import Loopctl, call, environment, finished, write_configuration

__all__ = ["call", "finished"]
HOSTILE = [
    "<script>alert(1)</script>", "</details><img src=x onerror=alert(1)>", "[click](javascript:alert(1))",
    "![picture](https://example.org/track.png)", "https://example.org www.example.org me@example.org",
    "<https://example.org> &lt;script&gt;", "| a | b |", "```\n# heading\n```", "`code` ``more`` `````",
    "**bold** __bold__ ~~gone~~ $x$ \\", "---\nmodel: other\n---", "\x1b[31m red \u202e right to left \u200b \ud800",
    "- item\n1. item\n> quote\n# heading", "- item", "+ item", "1. item", "12) item", "> quote", "# heading", "=== ---",
    "&#60;b&#62; &lt;i&gt; &amp;", "mailto:me@example.org xmpp:me@example.org",
]  # fmt: skip
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors"]


def left_over(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.endswith(".partial")]


def test_base_head_and_a_round(finished: Path, call: Loopctl) -> None:
    base = call("export", "base", "deep/er/base", "--json").json
    assert (base["path"], base["round"], base["kind"]) == (str(finished / "deep/er/base"), 0, "full")
    assert [entry["name"] for entry in base["files"]] == FILES
    assert base["size_bytes"] == sum(path.stat().st_size for path in Path("deep/er/base").iterdir())
    result = call("export", "1", "one")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"round 1: exported: {finished}/one (4 files, ")
    assert call("export", "head", "head").code == 0
    Path("beside").mkdir()
    assert Path("one").stat().st_mode == Path("beside").stat().st_mode
    again = call("export", "base", "again", "--json").json
    assert again["sha256"] == base["sha256"], "the same ledger gives the same bytes"
    assert left_over(finished) == []


def test_the_weights_are_the_checkpoints_own(finished: Path, readme: str) -> None:
    original = finished / ".loop/checkpoints/round-0001"  # both rounds trained the same weights
    assert (finished / "two/model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    expected = {"do_sample": True, "max_new_tokens": 256, "temperature": 0.9, "top_k": 0, "top_p": 0.95}
    assert json.loads((finished / "two/generation_config.json").read_text()) == expected


def test_what_is_there_is_refused(finished: Path, call: Loopctl) -> None:
    Path("full").mkdir()
    Path("full/mine").touch()
    Path("file").touch()
    for name, why in (("full", "is not empty"), ("file", "is a file"), ("file/below", f"{finished}/file is a file")):
        result = call("export", "head", name)
        assert result.code == 1 and result.out == "" and result.err.count("\n") == 1, result
        assert result.err.startswith(f"{name}: {why}")
    assert os.listdir("full") == ["mine"]
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    assert call("export", "head", "link").code == 0 and Path("empty/README.md").exists()
    assert call("export", "head", "empty").code == 1


def test_damaged_weights_are_not_exported(finished: Path, call: Loopctl) -> None:
    weights = finished / ".loop/checkpoints/round-0001/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = call("export", "1", "out")
    assert result.code == 1 and result.err.count("\n") == 1 and "round 1 is damaged" in result.err
    weights.unlink()
    result = call("export", "1", "out")
    assert result.code == 1 and "model.safetensors is missing" in result.err
    assert not Path("out").exists() and left_over(finished) == []


INTERRUPTED = (KeyboardInterrupt(), 130, "interrupted; nothing was written\n")
FULL = (OSError(errno.ENOSPC, "No space left on device"), NoRoom.exit_code, ".*the disk is full.*\\n")


@pytest.mark.parametrize(
    ("place", "error", "code", "words"),
    [*((place, *INTERRUPTED) for place in ("_copy", "_write_texts", "fsync", "_put")), ("_copied", *FULL)],
)
def test_ended_anywhere_it_leaves_nothing(
    finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch, place: str, error: Any, code: int, words: str
) -> None:
    monkeypatch.setattr(exporting, place, Mock(side_effect=error))
    result = call("export", "1", "out")
    assert result.code == code and re.fullmatch(words, result.err)
    assert not Path("out").exists() and left_over(finished) == []


def test_it_is_on_disk_before_it_has_its_name(finished: Path, call: Loopctl, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_sync, real_rename = exporting.fsync, os.rename
    monkeypatch.setattr(exporting, "fsync", lambda path: (order.append(path.name), real_sync(path)))
    monkeypatch.setattr(os, "rename", lambda old, new: (order.append("rename"), real_rename(old, new)))
    call("export", "1", "out")
    before, after = order[: order.index("rename")], order[order.index("rename") + 1 :]
    assert set(FILES) <= set(before)
    assert before[-1].startswith(".out.") and after == [finished.name]


def test_only_files_of_the_model_are_taken() -> None:
    taken = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model",
             "merges.txt", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "LICENSE", "LICENSE.md",
             "NOTICE", "USE_POLICY.md"]  # fmt: skip
    left = ["MANIFEST.json", "README.md", "modeling_x.py", "pytorch_model.bin", ".gitattributes", "original/a.safetensors",
            "runs/x.json", "model.gguf", "LICENSE.py", "NOTICE.pkl", "LICENSE.sh", "additional_chat_templates/x.py"]  # fmt: skip
    assert [name for name in taken + left if exporting._is_wanted(name)] == taken


def test_mistakes_on_the_command_line(finished: Path, call: Loopctl, tmp_path: Path) -> None:
    for arguments, code, problem in (
        ("newest out", 2, "neither head nor tip nor base nor a round's number"),
        ("head", 2, "DIR"),
        ("head out --private", 2, "--push OWNER/NAME"),
        ("7 out", 1, "there is no round 7"),
    ):
        result = call("export", *arguments.split())
        assert result.code == code and problem in result.err and result.err.count("\n") == 1, arguments
    write_configuration(tmp_path / "new")
    assert "no run in" in call("export", "head", "out", "--config", str(tmp_path / "new/loop.toml")).err
    assert not Path("out").exists()


def test_the_model_libraries_stay_out(finished: Path) -> None:
    words = "import sys; from loop.cli.main import loopctl, run; code = run(['export', 'head', 'out'], loopctl, 'loopctl'); "
    words += "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'peft')))"
    assert subprocess.run([sys.executable, "-c", words], env=environment(), check=False).returncode == 0


PLAIN = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("decoding", "expected"), [({"temperature": 0.0}, {"do_sample": False}), (PLAIN, {"do_sample": True} | PLAIN)]
)
def test_the_generation_config(decoding: dict[str, Any], expected: dict[str, Any]) -> None:
    before = {"eos_token_id": 2, "temperature": 0.1, "top_k": 50, "min_p": 0.1, "do_sample": True, "max_length": 20}
    config = generation_config(before, decoding | {"max_new_tokens": 8, "stop": ["x"]})
    assert config == expected | {"max_new_tokens": 8, "eos_token_id": 2}


@pytest.fixture
def readme(finished: Path, call: Loopctl) -> str:
    """The card of round 2."""
    call("export", "2", "two")
    return Path("two/README.md").read_text()


@pytest.fixture
def facts(finished: Path) -> Iterator[dict[str, Any]]:
    with reader(finished / ".loop") as store:
        yield facts_of(store, checkpoint_named(store.ledger, store.run, "2"), 2, finished)


def test_every_figure_has_its_decoding_settings_beside_it(readme: str, call: Loopctl) -> None:
    answer = call("round", "2", "--json").json
    rows = [line for line in readme.splitlines() if line.startswith("| ") and "x" in line]
    for name, suite in answer["suites"].items():
        mine = [row for row in rows if row.startswith(f"| {name} (")]
        decoding = decoding_words(suite["decoding"])
        assert len(mine) == len([key for key in suite["candidate"] if re.fullmatch(r"pass@\d+", key)])
        for row in mine:
            cells = [cell.strip() for cell in row.split("|")]
            assert decoding in cells[2] and f"at most {suite['decoding']['max_new_tokens']} tokens" in cells[2]
            assert cells[3] == f"{suite['candidate']['num_problems']} x {suite['num_samples']}"
            assert cells[5].startswith(rate(suite["base"][cells[4]]))
            assert cells[6].startswith(rate(suite["candidate"][cells[4]]))
        over = suite["gain_over_base"]
        assert any(f"{signed(over['gain'])} {interval(over['interval'], sign=True)}" in row for row in mine)
        assert interval(suite["candidate"]["pass@1_interval"]) in mine[0]
        assert ("canary" in mine[0]) == (not suite["decides"])
    passages = [
        "What could not have been seen",
        "## Limits",
        "bubblewrap",
        "No safety work",
        "Contamination",
        "Selection",
    ]
    passages += [*map(words, answer["decision"]["reasons"]), "\n| 2 | rolled back | "]
    assert [passage for passage in passages if passage not in readme] == []


def test_the_metadata_is_what_the_hubs_client_reads(readme: str, call: Loopctl) -> None:
    answer = call("round", "2", "--json").json
    data = ModelCard.load("two/README.md").data
    assert (data.library_name, data.model_name) == ("transformers", "small, round 2")
    assert "self-distillation" in data.tags
    results = {(result.dataset_name, result.metric_type): result for result in data.eval_results}
    assert set(results) == {("ones", "pass@1"), ("ones", "pass@2"), ("greedy", "pass@1")}
    result, suite = results["ones", "pass@1"], answer["suites"]["ones"]
    args = result.metric_args
    assert result.metric_value == suite["candidate"]["pass@1"] and "T 0.9, top_p 0.95" in result.metric_name
    assert args["interval_95"] == suite["candidate"]["pass@1_interval"]
    assert args["gain_over_base"] == suite["gain_over_base"]["gain"]
    assert (args["temperature"], args["top_p"], args["role"]) == (0.9, 0.95, "decides")
    greedy = results["greedy", "pass@1"]
    assert greedy.metric_args["role"] == "canary" and "greedy" in greedy.metric_name


def test_the_configuration_in_it_runs_again(finished: Path, call: Loopctl, readme: str) -> None:
    (finished / "again.toml").write_text(readme.partition("```toml\n")[2].partition("\n```")[0])
    assert call("config", "check", "--config", "again.toml").code == 0
    sha256 = config_sha256(load_config(finished / "again.toml").config)
    assert sha256 == config_sha256(load_config(finished / "loop.toml").config)


@pytest.mark.parametrize(
    "path", [ROOT / "loop.toml", *sorted((ROOT / "recipes").glob("*.toml"))], ids=lambda path: path.stem
)
def test_any_configuration_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    config = load_config(path).config
    (tmp_path / "loop.toml").write_text(toml_text(publishable(resolved(config))))
    assert config_sha256(load_config(tmp_path / "loop.toml").config) == config_sha256(config)


def test_what_is_nobodys_business_is_left_out(facts: dict[str, Any]) -> None:
    config = copy.deepcopy(facts["config"])
    config["watching"]["command"] = ["secret-command"]
    config["engine"] |= {"sampler": "server", "server_command": ["secret"]}
    config["run_dir"] = "/home/secret/run"
    url = "http://secret-host:8000/v1"
    for where in ({"server_url": url}, {"server_url": None, "server_urls": [url, url]}):
        config["engine"] |= where
        text = card(facts | {"config": config}, merged=False)
        assert "secret" not in text and text.count("http://HOST:PORT/v1") == 1


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_foreign_becomes_markup(facts: dict[str, Any], hostile: str) -> None:
    facts = copy.deepcopy(facts)
    facts["config"]["model"] |= {"source": hostile, "system_prompt": hostile}
    facts["config"]["prompts"]["source"] = hostile
    facts["config"]["suites"][0]["stop"] = [hostile]
    facts["base"] |= {"source": hostile, "revision": hostile, "licence_files": [hostile]}
    facts["decision"]["reasons"] = [hostile, f"plain, then {hostile}"]
    facts["adapted"] = facts["run"] = hostile
    facts["decoding"]["stop"] = [hostile]
    facts["sandboxes"] = [hostile]
    facts["example"] = {"messages": [{"role": "user", "content": hostile}], "prefill": hostile}
    facts["suites"] = {f"{name}/{hostile}": suite | {"split": hostile} for name, suite in facts["suites"].items()}
    text = card(facts, merged=False)
    assert not set(text) & {"\x1b", "\u202e", "\u200b", "\ud800"}
    assert ModelCard(text).data.library_name == "transformers"
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).enable("table").parse(body)
    headings = [token.tag for token in tokens if token.type == "heading_open"]
    assert headings == ["h1", "h2", "h2", "h2", "h2", "h2"]
    for token in [each for outer in tokens for each in (outer, *(outer.children or []))]:
        if token.type in ("html_block", "html_inline"):
            assert token.content.strip() in ("<details><summary>The whole configuration</summary>", "</details>")
        assert token.type != "image" and not (token.type == "code_inline" and hostile in token.content)
        if token.type == "link_open":
            assert token.attrs["href"] == PAPER
    num = Counter(token.type for token in tokens)
    assert (num["table_open"], num["th_open"], num["fence"]) == (2, 12, 4)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_foreign_text_is_shown_as_it_is(hostile: str) -> None:
    (opened, inline, closed) = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(words(hostile))
    assert opened.type == "paragraph_open" and closed.type == "paragraph_close"
    assert inline.children is not None and {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == " ".join(safe(hostile).split())


def test_plain_text_stays_readable_and_a_fence_is_longer_than_any_in_it() -> None:
    reason = "pass@1 on ones (select, T 0.9): 0.458 -> 0.500, gain +0.042 [-0.200 +0.250] is under 1%"
    assert words(reason) == reason.replace("[", "\\[").replace("]", "\\]")
    assert block("a ````` b").startswith("``````\n") and block("x", "sh") == "```sh\nx\n```"


def test_a_round_without_a_decision_says_so(tmp_path: Path, facts: dict[str, Any]) -> None:
    undecided = facts | {"decision": None, "state": "evaluating", "detectable": []}
    undecided["suites"] = {name: suite | {"candidate": None} for name, suite in facts["suites"].items()}
    text = card(undecided, merged=False)
    assert "**Not decided on.**" in text and "Nothing was measured." in text and "model-index" not in text
    rolled_back = facts | {"decision": facts["decision"] | {"verdict": "rollback"}}
    assert "**Rolled back.**" in card(rolled_back, merged=False)


def test_a_final_split_stands_in_it(finished: Path, call: Loopctl, facts: dict[str, Any]) -> None:
    final = {
        "suite": "ones", "decoding": {"temperature": 0.9, "top_p": 0.95}, "num_problems": 9, "num_samples": 2,
        "base": {"pass@1": 0.25, "pass@1_interval": [0.1, 0.4]}, "head": {"pass@1": 0.5, "pass@1_interval": [0.3, 0.7]},
        "gain": 0.25, "interval": [0.05, 0.45],
    }  # fmt: skip
    text = card(facts | {"final": final}, merged=False)
    assert "Final split" in text and "T 0.9, top_p 0.95" in text and "+0.250 [+0.050 +0.450]" in text
