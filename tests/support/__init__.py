"""What several tests use: runs, daemons, tiny models, programs that misbehave. It holds no tests."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
