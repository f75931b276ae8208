"""Whether the code of a response passes the tests of its prompt.

Running what a model wrote is off unless a run asks for it. Each program then runs in a process of its own with limits
on time, memory and files and without a network (`code_worker`). The limits keep careless programs from harm; they are
no wall against a determined attacker: for models that are not trusted, run the whole experiment in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fusion_jax.errors import InputError
from fusion_jax.rewards.code_worker import NO_NETWORK
from fusion_jax.settings import bounded

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_MIB = 2**20


@dataclass(frozen=True)
class CodeLimits:
    """What a program may use."""

    seconds: int = 5
    """Processor time; a program that only waits is ended after twice as long."""
    memory_mib: int = 512
    """Memory."""
    at_once: int = 2
    """Programs that run side by side."""

    def __post_init__(self) -> None:
        bounded(self, "seconds", "at_once", least=1)
        bounded(self, "memory_mib", least=64)


def code_of(response: str) -> str:
    """The Python code of a response: its longest fenced block, or all of it where there is none."""
    return max(_FENCE.findall(response), key=len, default=response)


def passes(response: str, tests: str, limits: CodeLimits) -> bool:
    """Whether a response's code and then the tests, Python statements that raise where something is wrong, run through.

    Raises:
      InputError: this system gives no process a network of its own.
    """
    completed = 64 + secrets.randbelow(64)  # a program that ends the process itself does not know it
    request = {
        "code": f"{code_of(response)}\n\n{tests}\n", "seconds": limits.seconds, "memory": limits.memory_mib * _MIB,
        "completed": completed,
    }  # fmt: skip
    worker = Path(__file__).with_name("code_worker.py")
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            [sys.executable, "-I", str(worker)], cwd=empty, env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate((json.dumps(request) + "\n").encode(), timeout=2 * limits.seconds + 5)
        finally:
            _end(process)
    if process.returncode == NO_NETWORK:
        raise InputError(
            "this system does not let a process shut off its network", field="code_tests",
            cure="Run as root or allow user namespaces, or leave code tests off",
        )  # fmt: skip
    return process.returncode == completed


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the process's session is left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_worker(limits: CodeLimits) -> None:
    """Run an empty program.

    Raises:
      InputError: this system gives no process a network of its own.
    """
    passes("", "", limits)


def all_pass(responses: Sequence[str], tests: Sequence[str], limits: CodeLimits) -> list[bool]:
    """`passes` of each response with the tests of its prompt, several side by side."""
    with ThreadPoolExecutor(limits.at_once) as pool:
        return list(pool.map(lambda one: passes(one[0], one[1], limits), zip(responses, tests, strict=True)))
