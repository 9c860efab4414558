"""What the pages and loop.toml name is there: links, keys, commands and their options, files, make targets, messages."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from pydantic import BaseModel

from loop.cli.main import loopctl
from loop.config.page_of_keys import keys_markdown, tables_in
from loop.config.same_run import MAY_CHANGE
from loop.config.settings import Config
from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.M)


class Page(NamedTuple):
    """A page: its prose, and what stands as code in it, a span or a line of a block each."""

    path: Path
    prose: str
    code: list[str]


def page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    lines = [line.strip() for block in BLOCK.findall(text) for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return Page(path, prose, [*lines, *spans])


ALL = [page(path) for path in PAGES]
EACH = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.path.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@EACH
def test_links_lead_somewhere(page: Page) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.prose):
        file, _, anchor = "".join(target).partition("#")
        path = page.path.parent / file if file else page.path
        if not file.startswith("https://") and not (path.exists() and (not anchor or anchor in anchors(path))):
            dead.append("".join(target))
    assert dead == []


def is_key(path: list[str], table: type[BaseModel] = Config) -> bool:
    """Whether loop.toml may have this key. What stands below a key that is no table of ours is not looked at."""
    field = table.model_fields.get(path[0])
    if field is None:
        return False
    below = list(tables_in(field.annotation))
    return len(path) == 1 or not below or any(is_key(path[1:], table) for table in below)


@EACH
def test_keys_exist(page: Page) -> None:
    named = re.compile(rf"(?<![\w./-])((?:{'|'.join(Config.model_fields)})(?:\.[a-z][\w-]*)+)(?![\w-])(?<!\.py)")
    keys = {key for code in page.code for key in named.findall(code) if not key.startswith("suites.")}
    assert [key for key in sorted(keys) if not is_key(key.split("."))] == []


def test_every_key_is_described() -> None:
    told = (ROOT / "docs/every-key.md").read_text(encoding="utf-8")
    assert told == keys_markdown(), "run python -m loop.config.page_of_keys > docs/every-key.md"


def test_a_key_that_is_not_there_is_noticed() -> None:
    assert is_key(["training", "lora", "merge"]) and is_key(["collect", "data"])
    assert not is_key(["training", "lora", "merged"]) and not is_key(["grading", "workers"])


def test_keys_of_the_shipped_configuration_exist() -> None:
    """Those behind # too, each with a value that TOML can read."""
    table, wrong, seen = "", [], 0
    for line in (ROOT / "loop.toml").read_text().splitlines():
        if heading := re.match(r"(?:# )?\[+([\w.]+)\]+", line):
            table = heading[1]
        elif key := re.match(r"# ([a-z_]+) = ", line):
            seen += 1
            tomllib.loads(line[2:])
            if not is_key([*table.split("."), key[1]] if table else [key[1]]):
                wrong.append(f"{table}.{key[1]}")
    assert wrong == [] and seen > 40


def test_what_a_run_may_change_is_what_the_page_says() -> None:
    told = (ROOT / "docs/running-as-a-service.md").read_text().partition("A run may change")[2].partition("All else")[0]
    assert {code.strip("[]") for code in re.findall(r"`([^`]+)`", told)} == {".".join(key) for key in MAY_CHANGE}


def strange_words(line: str) -> list[str]:
    """What in a command line of loopctl is neither a command nor an option that it takes."""
    command: click.Command = loopctl
    words = re.split(r"\s+#|\s\||\s>|&&|;|`", line)[0].split()[1:]
    while words and isinstance(command, click.Group) and re.fullmatch(r"[a-z]+(-[a-z]+)*", words[0]):
        below = command.get_command(click.Context(command), words.pop(0))
        if below is None:
            return [line]
        command = below
    options = {"-h", "--help", *(option for parameter in command.params for option in parameter.opts)}
    return [word for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(words)) if word not in options]


@EACH
def test_commands_exist_and_take_their_options(page: Page) -> None:
    lines = [line for code in page.code for line in re.findall(r"(?:^|&& )(?:\.venv/bin/)?(loopctl .*)", code)]
    assert {line: strange for line in lines if (strange := strange_words(line))} == {}


def test_a_command_that_is_not_there_is_noticed() -> None:
    assert strange_words("loopctl rollback --to best") == []
    assert strange_words("loopctl rollback --too best") == ["--too"]
    assert strange_words("loopctl experiment begin first.toml") == ["loopctl experiment begin first.toml"]


@EACH
def test_files_targets_and_programs_exist(page: Page) -> None:
    missing = []
    for code in page.code:
        for file in re.findall(r"(?<![\w/.-])((?:loop|store|policies|tests|bench|docs|recipes)/[\w./-]*)", code):
            missing += [] if (ROOT / file.rstrip(".")).exists() else [file]
        if (target := re.match(r"make ([\w-]+)", code)) and target[1] not in TARGETS:
            missing.append(code)
        if program := re.match(r"(?:.*/)?python (?:-m )?((?:bench|store)[\w./]*)(.*)", code):
            source = ROOT / (program[1] if program[1].endswith(".py") else program[1].replace(".", "/") + ".py")
            text = source.read_text() if source.exists() else ""
            missing += [] if text else [code]
            missing += [option for option in re.findall(r"--[\w-]+", program[2]) if f'"{option}"' not in text]
    assert missing == []


def literals() -> str:
    """Every text in the code, without backticks; where a value is put in there is a gap."""
    texts = []
    for path in (path for room in ("loop", "store") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts).replace("`", "")


def test_the_page_on_what_goes_wrong_quotes_what_the_code_says() -> None:
    """The first column: what stands between "...", numbers and names in capitals."""
    told = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/when-something-goes-wrong.md").read_text(encoding="utf-8"), re.M)
    quoted, texts = re.findall(r"`([^`]+)`", "\n".join(told)), literals()
    assert len(quoted) > 30
    for message in quoted:
        for part in re.split(r"\.\.\.|\b(?:\d+|N|STAGE|FILE|LINE|key)\b", message):
            assert part.strip(" ;:") in texts, f"{part!r} of {message!r} is not in the code"
