"""A policy: the gates of loop.toml and the split that they look at; and how it is built from loop.toml's tables.

It judges one candidate on complete evidence. Which checkpoint moves where is the ledger's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from policies.decision import Decision
from policies.evidence import Evidence
from policies.gates import Gate, Improvement
from policies.mistakes import Path, dotted, first_mistake, shown

ENTRY_POINTS = "loop.gates"
BUILT_IN: dict[str, type[Gate]] = {"improvement": Improvement}


class BadPolicy(ValueError):
    """A gate in loop.toml is wrong: str() is one line, `path` the keys that lead there, `problem` the line without."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{dotted(path)}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Policy:
    """Keep if every gate passes on the split; roll back if one fails; else say that it is inconclusive."""

    gates: tuple[Gate, ...]
    split: str

    def decide(self, evidence: Evidence) -> Decision:
        """A pure function of evidence. BadEvidence if the split is not there: a failed stage, not a rollback."""
        results = tuple(gate.evaluate(evidence, self.split) for gate in self.gates)
        verdicts = {result.verdict for result in results}
        if "fail" in verdicts:
            return Decision(verdict="rollback", gates=results, action="rollback")
        if "inconclusive" in verdicts:
            return Decision(verdict="inconclusive", gates=results, action="pause")
        return Decision(verdict="keep", gates=results, action="keep")


def build_policy(gates: Sequence[Mapping[str, Any]], split: str) -> Policy:
    """The policy of loop.toml's `decide` table. BadPolicy (a ValueError) for the first mistake."""
    where: Path = ("decide", "gates")
    if not gates:
        raise BadPolicy(where, 'no gates, so every candidate would be kept; give at least one, {type = "improvement"}')
    return Policy(tuple(_build_gate(gate, (*where, index)) for index, gate in enumerate(gates)), split)


def _build_gate(table: Mapping[str, Any], where: Path) -> Gate:
    known = ", ".join(BUILT_IN)
    if "type" not in table:
        raise BadPolicy(where, f"type is missing; known types: {known}")
    gate_type = table["type"]
    if not isinstance(gate_type, str):
        raise BadPolicy((*where, "type"), f"{shown(gate_type)} is not the name of a gate; known types: {known}")
    found = BUILT_IN.get(gate_type) or _from_entry_point(gate_type, (*where, "type"))
    try:
        return found.model_validate(dict(table))
    except ValidationError as error:
        path, problem = first_mistake(error)
        if problem == "unknown key":
            problem += f"; the keys of {gate_type!r} are {', '.join(found.model_fields)}"
        elif path and (field := found.model_fields.get(str(path[0]))) is not None and field.description:
            problem += f" ({field.description.rstrip('.')})"
        raise BadPolicy((*where, *path), problem) from None


def _from_entry_point(gate_type: str, where: Path) -> type[Gate]:
    """A third party's gate."""
    from importlib.metadata import entry_points  # 20 ms that a run with built-in gates does not spend

    offered = entry_points(group=ENTRY_POINTS)
    named = [entry for entry in offered if entry.name == gate_type]
    if not named:
        known = ", ".join([*BUILT_IN, *sorted({entry.name for entry in offered} - set(BUILT_IN))])
        raise BadPolicy(where, f"unknown type {shown(gate_type)}; known types: {known}")
    if len(named) > 1:
        values = ", ".join(entry.value for entry in named)
        raise BadPolicy(where, f"{gate_type!r} is offered more than once ({values}); uninstall all but one")
    try:
        found = named[0].load()
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise BadPolicy(where, f"{gate_type!r} ({named[0].value}) cannot be loaded: {shown(str(error))}") from error
    if not (isinstance(found, type) and issubclass(found, Gate)):
        raise BadPolicy(where, f"{gate_type!r} ({named[0].value}) is not a subclass of policies.gates.Gate")
    return found
