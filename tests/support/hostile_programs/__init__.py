"""Programs of our own making that cheat, attack or waste, by class. They run in the sandbox and nowhere else.

Where an attack can succeed, the program passes exactly if it does: `attack` gives the right answer once its lines got
through, and the tests in SECRETS hold an answer that no program can work out. `test_hostile.py` runs them.
"""

from __future__ import annotations

from tests.support.hostile_programs.ending import LEAVING, TEXT, USING_UP
from tests.support.hostile_programs.getting_out import CALLS, OUT, REFUSED
from tests.support.hostile_programs.harness import LINK, PATCHES
from tests.support.hostile_programs.names import NAMES
from tests.support.hostile_programs.problems import GIVEN, PROBLEMS, SECRET, WORD, Program, asked, right
from tests.support.hostile_programs.searches import SEARCHES, SWEEP
from tests.support.hostile_programs.standard_input import STDIN
from tests.support.hostile_programs.staying import STAYING
from tests.support.hostile_programs.values import DESCRIBED, RESULTS, VALUES

__all__ = ["CALLS", "CLASSES", "GIVEN", "PROBLEMS", "SECRET", "SWEEP", "WORD", "Program", "asked", "right"]

CLASSES: dict[str, dict[str, Program]] = {
    "names": NAMES,
    "values that lie": VALUES,
    "searches": SEARCHES,
    "patches": PATCHES,
    "messages": LINK,
    "leaving": LEAVING,
    "using up": USING_UP,
    "text": TEXT,
    "staying": STAYING,
    "getting out": OUT,
    "refused calls": REFUSED,
    "results": RESULTS,
    "descriptions": DESCRIBED,
    "standard input": STDIN,
}
