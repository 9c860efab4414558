"""Gates: each reads evidence, compares one thing with its limit, and says pass, fail or inconclusive, with figures and a reason.

A gate is a frozen pydantic model chosen by `type` in loop.toml; its fields are the keys there. To add one, subclass
Gate and name it in `GATES`; a package of your own names it in an entry point of the group "loop.gates".
"""

from policies.by_type import Registry
from policies.gates.base import Gate, Look
from policies.gates.best_so_far import BestSoFar
from policies.gates.collapse import Collapse
from policies.gates.drift import Drift
from policies.gates.improvement import Improvement
from policies.gates.no_regression import NoRegression

GATES = Registry(Gate, "loop.gates", '{ type = "improvement" }', Improvement, NoRegression, Collapse, Drift, BestSoFar)

__all__ = ["GATES", "BestSoFar", "Collapse", "Drift", "Gate", "Improvement", "Look", "NoRegression"]
