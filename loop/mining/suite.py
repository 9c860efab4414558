"""Makes a suite and prompts from a repository: the whole way, from its files to those of a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import ConfigError
from loop.grading.formats.repository import STATEMENT
from loop.grading.grader import Grader
from loop.grading.inside.repository import ASKED
from loop.grading.repositories import repository_at
from loop.mining.asking import BUDGET_CHARS, leaks, prompt_of
from loop.mining.bodies import asking_stub_of, own_program, stub_of
from loop.mining.copies import groups
from loop.mining.environment import environment_of, pytest_options, python_for
from loop.mining.functions import Function, Module, is_test, modules_of, roots_of
from loop.mining.page import page_of
from loop.mining.proving import Candidate, Proof, Row, prove
from loop.mining.surveying import Spans, Survey, survey
from loop.mining.tree import commit_of, copy_tree
from loop.words import safe

MAX_FUNCTIONS = 50_000
MOST_FILES = 12
"""Reports show gains by file up to so many files, and by package where there are more."""
MOST_TESTS_S = 5.0
"""Of the tests that reach a function so many seconds' worth are run on a candidate, those that reach the fewest others first."""


@dataclass(frozen=True)
class Wishes:
    """What may be chosen. `train` is the share of files whose problems go to the training prompts."""

    python: Path | None = None
    min_lines: int = 3
    max_lines: int = 60
    budget_chars: int = BUDGET_CHARS
    test_timeout_s: float = 60.0
    train: float = 0.3
    weak: bool = False
    workers: int | None = None
    memory_bytes: int = 1 << 30


def make_suite(source: Path, out: Path, wishes: Wishes, say: Callable[[str], None]) -> dict[str, Any]:
    """Write `out` and give what stands in its suite.json. An earlier one is replaced, once the new one is whole.

    Raises ConfigError and PermissionDenied. The repository is only read.
    """
    began, source, out = time.monotonic(), source.absolute(), out.absolute()
    if out.exists() and not (out / "suite.json").is_file():
        raise ConfigError(f"{safe(out)}: exists and holds no suite.json; choose a directory that does not exist")
    if os.path.realpath(out).startswith(os.path.realpath(source) + os.sep):
        raise ConfigError(f"{safe(out)}: lies in the repository, which stays as it is; choose a directory outside")
    part = out.with_name(out.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        facts = _made(source, part, wishes, say)
        facts["seconds"] = round(time.monotonic() - began, 1)
        (part / "suite.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        (part / "page.html").write_text(page_of(facts), "utf-8")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if out.exists():
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(out)
    repository_at.cache_clear()
    return facts


def _made(source: Path, part: Path, wishes: Wishes, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"copying {safe(source)}")
    tree = part / "tree"
    tree_hash = copy_tree(source, tree)
    roots = roots_of(tree)
    modules, broken = modules_of(tree, roots, wishes.min_lines, wishes.max_lines)
    functions = [function for module in modules for function in module.functions]
    if not functions:
        raise ConfigError(f"{safe(source)}: no Python function in its packages; give the directory that holds them")
    if len(functions) > MAX_FUNCTIONS:
        raise ConfigError(
            f"{safe(source)}: {len(functions):,} functions, more than {MAX_FUNCTIONS:,}; give the directory of one package"
        )
    python = python_for(source, out_environment(part), wishes.python)
    environment = environment_of(python, source, roots, pytest_options(tree))
    spans: Spans = {module.file: [(each.body_first, each.last) for each in module.functions] for module in modules}
    surveyed = survey(tree, environment, spans, wishes.test_timeout_s, say)
    tests = sorted(
        {file.relative_to(tree).as_posix() for file in tree.rglob("*.py") if is_test(file.relative_to(tree).as_posix())}
    )
    facts: dict[str, Any] = {
        "name": source.resolve().name,
        "commit": commit_of(source),
        "tree_sha256": tree_hash,
        "environment": environment.model_dump(),
        "environment_sha256": hashlib.sha256(environment.model_dump_json().encode()).hexdigest(),
        "tests": _hidden(tests, modules),
        "broken_files": broken,
    }
    (part / "suite.json").write_text(json.dumps(facts), "utf-8")
    repository_at.cache_clear()
    candidates, reasons = _candidates(modules, surveyed, wishes, tree)
    grader = Grader(num_workers=wishes.workers, memory_bytes=wishes.memory_bytes)
    proofs = prove(candidates, str(part), grader, say) if candidates else {}
    group = groups([function for function in functions if not function.left_out])
    rows, prompts = _rows(modules, candidates, proofs, group, wishes)
    if not rows and not prompts:
        raise ConfigError(
            f"{safe(source)}: none of {len(functions):,} functions makes a problem or a prompt; {_most(reasons, proofs)}"
        )
    _write(part / "problems.jsonl", rows)
    _write(part / "prompts.jsonl", prompts)
    return {**facts, **_counts(modules, surveyed, proofs, reasons, rows, prompts)}


def out_environment(part: Path) -> Path:
    """Where an environment is made: beside `out`, since its interpreter's paths stand in it."""
    return part.with_name(part.name.removesuffix(".partial") + ".environment")


def _candidates(
    modules: Sequence[Module], surveyed: Survey, wishes: Wishes, tree: Path
) -> tuple[list[Candidate], dict[str, str]]:
    """The functions that may make problems, and for the others the reason why not, by id."""
    reach = Counter(test for tests in surveyed.reached.values() for test in tests)
    candidates, reasons = [], {}
    for module in modules:
        for number, function in enumerate(module.functions):
            tests = surveyed.reached.get((module.file, number), [])
            if function.left_out:
                reasons[function.id] = function.left_out
            elif not tests:
                reasons[function.id] = "no test reaches it"
            elif leaks(prompt := prompt_of(function, module, wishes.budget_chars), function):
                reasons[function.id] = "its body stands in its own docstring"
            else:
                chosen = _chosen(tests, surveyed.seconds, reach)
                candidates.append(Candidate(function, _row_of(function, module, prompt, chosen, tree)))
    return candidates, reasons


def _chosen(tests: Sequence[str], seconds: dict[str, float], reach: Counter[str]) -> list[str]:
    """The tests that are run, fast ones first."""
    chosen: list[str] = []
    left_s = MOST_TESTS_S
    for name in sorted(tests, key=lambda name: (reach[name], seconds[name], name)):
        if chosen and seconds[name] > left_s:
            continue
        chosen.append(name)
        left_s -= seconds[name]
    return sorted(chosen, key=lambda name: (round(seconds[name], 2), reach[name], name))


def _row_of(function: Function, module: Module, prompt: str, tests: list[str], tree: Path) -> Callable[[str], Row]:
    files = sorted({name.partition("::")[0] for name in tests})
    texts = [module.text.encode("utf-8", "surrogatepass"), *((tree / file).read_bytes() for file in files)]
    sha256 = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()

    def row(level: str) -> Row:
        return {
            "task_id": function.id,
            "repository": module.name.partition(".")[0],
            "file": function.file,
            "module": module.name,
            "function": function.qualname,
            "prompt": prompt,
            "level": level,
            "tests": tests,
            "test_files": files,
            "body": own_program(function),
            "lines": [function.body_first, function.last],
            "stub": stub_of(function),
            "asks": asking_stub_of(function, ASKED),
            "sha256": sha256,
        }

    return row


def _rows(
    modules: Sequence[Module],
    candidates: Sequence[Candidate],
    proofs: dict[str, Proof],
    group: dict[str, str],
    wishes: Wishes,
) -> tuple[list[Row], list[Row]]:
    """The problems of the suite, and the prompts: functions of other groups with tests, and functions without tests."""
    rows: list[Row] = []
    prompts: list[Row] = []
    for each in candidates:
        proof, function = proofs[each.function.id], each.function
        if proof.word == "problem" or (proof.word == "weak" and wishes.weak):
            row = {**each.row(proof.level), "group": group[function.id], "duration_s": round(proof.seconds, 4)}
            row |= {"survivors": proof.survivors} if proof.survivors else {}
            (prompts if _share(group[function.id]) < wishes.train else rows).append(row)
    by_file = len({row["file"] for row in rows}) <= MOST_FILES
    for row in rows:
        row["difficulty"] = row["file"] if by_file else row["file"].rpartition("/")[0] or row["file"]
    taken = {row["task_id"] for row in [*rows, *prompts]}
    copies = {row["body"] for row in rows}
    for module in modules:
        for function in module.functions:
            if function.left_out or function.id in taken or own_program(function) in copies:
                continue
            prompt = prompt_of(function, module, wishes.budget_chars)
            if not leaks(prompt, function):
                prompts.append(
                    {"task_id": function.id, "file": function.file, "prompt": prompt, "group": group[function.id]}
                )
    return rows, [{"statement": STATEMENT, "signature": row["prompt"], **row} for row in prompts]


def _share(group: str) -> float:
    return int.from_bytes(hashlib.sha256(f"train:{group}".encode()).digest()[:8], "big") / 2**64


def _hidden(tests: Sequence[str], modules: Sequence[Module]) -> list[str]:
    """The files of the tests, or the folder of several that holds no module of a package."""
    used = {part for module in modules for part in _parents(module.file)}
    hidden: dict[str, None] = {}
    for file in tests:
        folder = next((part for part in _parents(file) if part not in used), None)
        hidden[folder or file] = None
    return list(hidden)


def _parents(file: str) -> list[str]:
    parts = file.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _counts(
    modules: Sequence[Module],
    surveyed: Survey,
    proofs: dict[str, Proof],
    reasons: dict[str, str],
    rows: list[Row],
    prompts: list[Row],
) -> dict[str, Any]:
    tried = {
        key: proof.reason or ("weak: passes with " + ", ".join(proof.survivors))
        for key, proof in proofs.items()
        if proof.word != "problem"
    }
    return {
        "num_functions": sum(len(module.functions) for module in modules),
        "num_problems": len(rows),
        "num_apart": sum(row["level"] == "apart" for row in rows),
        "num_prompts": len(prompts),
        "num_prompts_with_tests": sum("tests" in row for row in prompts),
        "num_groups": len({row["group"] for row in rows}),
        "largest_group": max(Counter(row["group"] for row in rows).values(), default=0),
        "num_tests": len(surveyed.seconds),
        "tests_s": round(sum(surveyed.seconds.values()), 2),
        "tests_left_out": surveyed.left_out,
        "troubles": surveyed.troubles,
        "left_out": {**reasons, **tried},
        "problems": [
            {key: row[key] for key in ("task_id", "file", "level", "duration_s")} | {"num_tests": len(row["tests"])}
            for row in rows
        ],
    }


def _most(reasons: dict[str, str], proofs: dict[str, Proof]) -> str:
    every = Counter([*reasons.values(), *(proof.reason or proof.word for proof in proofs.values())])
    return "most often: " + ", ".join(f"{reason} ({num:,})" for reason, num in every.most_common(3))


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", errors="surrogatepass"
    )
