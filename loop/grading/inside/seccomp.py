"""Takes away the system calls that no solution needs and that most escapes from sandboxes begin with.

The filter is classic BPF as in seccomp(2). The calls named here fail with EPERM, `clone` only if it asks for a new namespace,
and `socket` for every family but AF_UNIX. A filter cannot see the arguments of `clone3`, so that call does not exist, and the C
library uses `clone` instead. Objects that outlive a process, such as System V memory, are refused, so that nothing is left for
the next program; so is memory that belongs to no process, because only the processes' memory is counted.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Any

# Names and numbers as in the kernel's tables, for (x86_64, aarch64).
REFUSED = {
    # what is another process's
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    # what outlives a process
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
    # memory that belongs to no process
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "syslog": (103, 116),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEW_NAMESPACES = 0x7E020000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06


def _program() -> bytes:
    if platform.machine() not in _MACHINES:
        return b""
    column, architecture = _MACHINES[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if column == 0:
        steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # the x32 numbers of the same calls
    for numbers in REFUSED.values():
        steps += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | 1)]
    steps += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | 38)]
    steps += [(_EQUAL, 0, 3, _SOCKET[column]), (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, 1), (_RETURN, 0, 0, _ERRNO | 97)]
    steps += [(_LOAD, 0, 0, 0), (_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    steps += [(_RETURN, 0, 0, _ERRNO | 1), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


KNOWN = platform.machine() in _MACHINES
_STEPS = ctypes.create_string_buffer(_program())
_HEADER = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(_STEPS) // 8, ctypes.addressof(_STEPS)))


def install(libc: Any) -> None:
    """Filter the calls of this process and of all that it starts. Does nothing if this machine's numbers are not `KNOWN`."""
    if KNOWN and libc.prctl(22, 2, _HEADER, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
