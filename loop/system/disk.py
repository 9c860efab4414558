"""Whether an error means that a disk is full or cannot be written."""

from __future__ import annotations

import errno
import re

from loop.errors import EngineError, NoRoom
from store.errors import CannotWrite

NO_ROOM_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_no_room(error: BaseException) -> bool:
    """Whether the error or one of its causes means a full or read-only disk. A worker's error is known by its text."""
    seen: BaseException | None = error
    while seen is not None:
        by_number = isinstance(seen, OSError) and seen.errno in NO_ROOM_ERRNOS
        by_text = isinstance(seen, EngineError) and re.search("No space left on device|os error 28", str(seen))
        if by_number or by_text or isinstance(seen, NoRoom | CannotWrite):
            return True
        seen = seen.__cause__
    return False
