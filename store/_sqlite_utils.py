"""Imports sqlite_utils without the data frame libraries that it would pull in where they are installed: 90 MB, 0.5 s."""

import sys

_UNWANTED = ("numpy", "pandas")
_hidden = [name for name in _UNWANTED if name not in sys.modules]
for _name in _hidden:
    sys.modules[_name] = None  # type: ignore[assignment]  # makes `import pandas` raise ImportError
try:
    import sqlite_utils
finally:
    for _name in _hidden:
        del sys.modules[_name]

__all__ = ["sqlite_utils"]
