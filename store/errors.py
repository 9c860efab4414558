"""What can go wrong in the store. Every message is one line for the operator: the thing, the value, the remedy."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked; whatever was being written was rolled back as a whole."""


class CannotWrite(StoreError):
    """The disk is full or read-only. Nothing was stored; when it can be written, the same can be done again."""


class NoStore(StoreError):
    """There is no file to read."""


class NotAStore(StoreError):
    """The file is something else: not SQLite, or another program's database. It was not touched."""


class StoreTooNew(StoreError):
    """A later version of the program has migrated the store. It was not touched."""


class StoreTooOld(StoreError):
    """The store needs a migration, which only an open for writing applies."""


class StaleState(StoreError):
    """A compare-and-swap failed: the round, stage or attempt is no longer where the caller believed it to be."""


class Conflict(StoreError):
    """Something that never changes, a stage's input among it, was given again with other content."""


class DamagedCheckpoint(StoreError):
    """A directory of weights is not what its manifest says. It must not be loaded."""
