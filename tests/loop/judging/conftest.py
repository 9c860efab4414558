"""Gives all tests of loopctl the same fixtures."""

from tests.support.cli import call, finished, here

__all__ = ["call", "finished", "here"]
