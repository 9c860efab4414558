"""Programs that reach for the machine below."""

from __future__ import annotations

import platform

from loop.grading.inside import seccomp
from tests.support.hostile_programs.problems import Program, attack, programs


def _call(*arguments: str, first: str = "") -> Program:
    """A system call that must not do what it is for."""
    body = f"import ctypes, os, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n{first}\nassert libc.{arguments[0]}({', '.join(arguments[1:])}) >= 0"
    return Program(attack(body.replace("\n\n", "\n")))


OUT = programs(
    "error",
    {
        "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
        "abstract sockets": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0NAME')",
        "sockets with a name": "import socket\nsocket.socket(socket.AF_UNIX).connect('SOCKET')",
        "name resolution": "import socket\nsocket.gethostbyname('example.com')",
        "the machine below": "import socket\nsocket.socket(40, socket.SOCK_STREAM)",
        "the kernel's ciphers": "import socket\nsocket.socket(38, socket.SOCK_SEQPACKET)",
        "raw packets": "import socket\nsocket.socket(17, socket.SOCK_RAW)",
        "raw sockets": "import socket\nsocket.socket(2, socket.SOCK_RAW, 1)",
        "another interface": Program(
            attack("import socket\nassert len(socket.if_nameindex()) > 1 or socket.if_nameindex()[0][1] != 'lo'")
        ),
        "passwords": "open('/etc/passwd').read()",
        "a host file": "open('HOSTFILE').read()",
        "a link to a host file": "import os\nos.symlink('HOSTFILE', '/tmp/l')\nopen('/tmp/l').read()",
        "a host file from above": "open('/tmp/../' * 20 + 'HOSTFILE').read()",
        "a host file by its handle": _call("open_by_handle_at", "-100", "b'\\0' * 32", "0"),
        "home": Program(attack("import os\nassert len(os.listdir('HOME')) > 1")),
        "processes of the host": "import os\nassert os.listdir('/proc')",
        "the kernel's files": "import os\nassert os.listdir('/sys')",
        "the kernel's words": _call("klogctl", "3", "ctypes.create_string_buffer(9999)", "9999"),
        "disks": Program(
            attack("import os\nassert set(os.listdir('/dev')) - {'null', 'zero', 'urandom', 'shm', 'stdin'}"),
            "failed error",
        ),
        "make a disk": "import os\nos.mknod('/tmp/d', 0o60666, os.makedev(8, 0))\nopen('/tmp/d', 'rb')",
        "make a null device": "import os\nos.mknod('/tmp/d', 0o20666, os.makedev(1, 3))\nopen('/tmp/d', 'wb')",
        "close a device to all": "import os\nos.chmod('/dev/null', 0o666)",
        "date a device": "import os\nos.utime('/dev/null')",
        "the name of the machine": "import os\nassert os.uname().nodename == 'HOSTNAME'",
        "a terminal": "open('/dev/tty')",
        "type into a terminal": "import fcntl\nfor fd in range(4): fcntl.ioctl(fd, 0x5412, b'x')",
        "third-party packages": "import sys\nsys.path += PACKAGES\nimport pydantic",
        "environment": Program(attack("import os\nassert any('LOOP' in name for name in os.environ)")),
        "write to the host": "open('HOSTFILE', 'a').write('x')",
        "write to Python": "import os\nopen(os.__file__, 'a').write('x')",
        "write beside Python": "import os\nopen(os.path.dirname(os.__file__) + '/site-packages/x', 'w')",
        "compile beside Python": "import os, py_compile\npy_compile.compile(os.__file__, doraise=True)",
        "write at the root": "open('/x', 'w')",
        "write to devices": "open('/dev/x', 'w')",
        "remove a device": "import os\nos.unlink('/dev/null')",
        "become root": "import os\nos.setuid(0)\nos.chroot('/')",
        "become someone else": "import os\nos.setgroups([0])\nos.setresuid(1, 1, 1)",
        "a file with root's rights": "import os\nopen('/tmp/x', 'w')\nos.chown('/tmp/x', 0, 0)\nos.chmod('/tmp/x', 0o4755)\nos.chown('/tmp/x', 1, 1)",
        "mount": _call("mount", "b'none'", "b'/tmp'", "b'tmpfs'", "0", "None"),
        "mount after exec": (
            'import subprocess, sys\ncode = \'import ctypes, sys; sys.exit(ctypes.CDLL(None).mount(b"n", b"/tmp", b"tmpfs", 0, None) & 1)\'\n'
            "subprocess.run([sys.executable, '-c', code], check=True)"
        ),
        "unmount": _call("umount2", "b'/tmp'", "2"),
        "a namespace of users": _call("unshare", "0x10000000"),
        "a namespace of mounts": _call("unshare", "0x20000"),
        "a namespace of networks": _call("unshare", "0x40000000"),
        "a child in a namespace": Program(
            attack(
                "import ctypes, os\npid = ctypes.CDLL(None).syscall(CLONE, 0x10000011, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nassert pid > 0"
            )
        ),
        "a child in a namespace, the new way": Program(
            attack(
                "import ctypes, os, struct\npid = ctypes.CDLL(None).syscall(435, struct.pack('<8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)\n"
                "if pid == 0: os._exit(0)\nassert pid > 0"
            )
        ),
        "trace": _call("ptrace", "16", "CHILD", "0", "0", first="CHILD = os.fork() or __import__('time').sleep(9)"),
        "read another process": Program(
            attack(
                "import ctypes, os, time\nx = ctypes.create_string_buffer(8)\nv = (ctypes.c_size_t * 2)(ctypes.addressof(x), 8)\nc = os.fork()\n"
                "if c == 0: time.sleep(9)\nassert ctypes.CDLL(None).process_vm_readv(c, v, 1, v, 1, 0) > 0"
            )
        ),
        "rings": Program(attack("import ctypes\nassert ctypes.CDLL(None).syscall(425, 8, b'\\0' * 120) >= 0")),
        "faults": Program(attack("import ctypes\nassert ctypes.CDLL(None).syscall(FAULTS, 1) >= 0")),
        "programs in the kernel": Program(
            attack("import ctypes\nassert ctypes.CDLL(None).syscall(BPF, 0, b'\\0' * 72, 72) >= 0")
        ),
        "another machine's calls": Program(
            attack(
                "import ctypes, mmap\ncode = b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3'\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(code)\n"
                "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\nassert ctypes.CFUNCTYPE(ctypes.c_int)(at)() > 0"
            )
        ),
        "chroot": _call("chroot", "b'/tmp'"),
        "another root": _call(
            "pivot_root", "b'/tmp'", "b'/tmp'", first="libc.pivot_root = lambda *a: libc.syscall(PIVOT, *a)"
        ),
        "a key": Program(
            attack("import ctypes\nassert ctypes.CDLL(None).syscall(KEYS, b'user', b'k', b'x', 1, -3) >= 0")
        ),
        "all rights": _call("capset", "struct.pack('<Ii', 0x20080522, 0)", "b'\\xff' * 24"),
        "rights that stay": _call("prctl", "47", "2", "21", "0", "0"),
        "raise its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
        "more open files": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))",
        "a better priority": "import os\nos.nice(-5)",
        "before all others": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(9))",
        "the clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())",
        "restart the machine": _call("reboot", "0"),
        "swap": _call("swapoff", "b'/swap'"),
        "modules of the kernel": _call("syscall", "MODULE", "b'x'", "1", "b''"),
        "no more filter": _call("prctl", "22", "0", "0", "0", "0"),
    },
    code_of=attack,
)
REFUSED = {
    f"the call {name}": Program(
        attack(
            f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.syscall({numbers[platform.machine() == 'aarch64']}, "
            "0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1"
        )
    )
    for name, numbers in seccomp.REFUSED.items()
}

_NUMBERS_OF_CALLS = {"KEYS": (248, 217), "CLONE": (56, 220), "FAULTS": (323, 282), "BPF": (321, 280)}
_NUMBERS_OF_CALLS |= {"PIVOT": (155, 41), "MODULE": (175, 105)}
CALLS = {name: str(numbers[platform.machine() == "aarch64"]) for name, numbers in _NUMBERS_OF_CALLS.items()}
