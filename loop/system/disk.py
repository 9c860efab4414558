"""Whether an error means that a disk is full or cannot be written."""

from __future__ import annotations

import errno

from loop.errors import EngineError, NoRoom
from store.errors import CannotWrite

NO_ROOM_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_no_room(error: BaseException) -> bool:
    """Whether the error or one of its causes means a full or read-only disk. A worker's error is known by its text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoRoom | CannotWrite):
            return True
        if isinstance(seen, OSError) and seen.errno in NO_ROOM_ERRNOS:
            return True
        if isinstance(seen, EngineError) and ("No space left on device" in str(seen) or "os error 28" in str(seen)):
            return True
        seen = seen.__cause__
    return False
