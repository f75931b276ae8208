"""Runs one program of a model in a process of its own, shut off as far as the kernel allows.

Reads a line of JSON with "code" and the limits from standard input. Before the code runs, the process has no network
(a network namespace of its own), no file that it could write (a limit of 0 bytes), bounded processor time, memory,
processes and open files, and an empty directory as working directory. It imports nothing of this package.

Exit status: the number that the request names, the code ran to its end; 3 the network could not be shut off, and
nothing was run; any other one: the code raised, ended the process or was ended.

Only `fusion_jax.rewards.code_tests` starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
from typing import Any

NO_NETWORK = 3
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_NO_NEW_PRIVS = 38


def shut_off_network() -> bool:
    """Whether this process now has a network of its own, without any device that is up."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return done


def limit(seconds: int, memory: int) -> None:
    """Bounds that the kernel keeps, and that the code cannot raise again."""
    bounds = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
        resource.RLIMIT_CORE: (0, 0),
    }
    for name, pair in bounds.items():
        resource.setrlimit(name, pair)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: refuses what opens files for writing, removes or renames them, or starts processes."""
    if event == "open":
        mode, flags = arguments[1], arguments[2] or 0
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & writing:
            raise PermissionError("files cannot be written here")
    elif event in FORBIDDEN or event.startswith(("socket.", "ctypes.", "subprocess.", "shutil.")):
        raise PermissionError(f"{event} is not allowed here")


FORBIDDEN = {
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.chdir", "os.putenv", "os.setxattr", "os.removexattr", "pty.spawn", "resource.setrlimit", "signal.pthread_kill",
}  # fmt: skip


def main() -> int:
    request = json.loads(sys.stdin.readline())
    if not shut_off_network():
        return NO_NETWORK
    limit(request["seconds"], request["memory"])
    program = compile(request["code"], "<code>", "exec", dont_inherit=True)
    sys.addaudithook(forbid)
    try:
        exec(program, {"__name__": "code"})
    except SystemExit:
        return 1
    return int(request["completed"])


if __name__ == "__main__":
    sys.exit(main())
