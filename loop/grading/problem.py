"""A problem to be solved: what is asked, how a solution is tried."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from loop.errors import ConfigError


class UntestedProblem(ConfigError):
    """A problem without tests: anything would pass."""


class Problem(BaseModel):
    """One problem, ready to be asked and graded.

    `statement` says in words what is wanted; `prompt_code` is the code that an answer continues (HumanEval's prompt, a
    signature, LiveCodeBench's starter code) or "". `kind` names its format (`loop.grading.formats`); `payload` holds what the
    grader needs, as plain JSON. `reference` is a whole program that solves it, if the file has one; no model or solution sees
    it. `date` is when the problem was published, as the file has it. No hash covers these two. `asked` is what the model gets
    where a published harness says so (`loop.prompts.templates.content`). Problems of one `group` stand in one split. `place` is the
    directory with what a problem of a repository needs beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task_id: str
    statement: str
    prompt_code: str = ""
    entry_point: str | None = None
    difficulty: str | None = None
    kind: str
    payload: dict[str, Any]
    reference: str | None = None
    date: str | None = None
    asked: dict[str, Any] | None = None
    group: str | None = None
    place: str | None = None

    def content(self) -> dict[str, Any]:
        """What is asked and how it is graded, for hashes. Later fields are left out, so that old hashes stay valid."""
        later = {name for name in ("asked", "group") if getattr(self, name) is None}
        return self.model_dump(exclude={"reference", "date", "place", *later})
