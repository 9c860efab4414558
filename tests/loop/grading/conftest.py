"""What the tests of grading share."""

from __future__ import annotations

import pytest

from loop.grading.grader import Grader
from tests.support.cli import call

__all__ = ["call", "grader"]


@pytest.fixture(scope="module")
def grader() -> Grader:
    return Grader(timeout_s=10.0, num_workers=2)
