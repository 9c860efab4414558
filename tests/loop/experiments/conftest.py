"""Gives all tests of experiments the same fixtures."""

from tests.support.experiments import begun, first_done

__all__ = ["begun", "first_done"]
