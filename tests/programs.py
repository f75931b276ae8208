"""Programs in processes of their own, forked from a server that has imported what they need.

A start by `subprocess` takes seconds for the imports alone. From there on the program is the same: the script as
`__main__`, its arguments, environment, streams, signals and exit code.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# What the experiments import, at the beginning or later.
IMPORTED = [
    "experiments.dpo", "experiments.sft", "experiments.fusechat", "experiments.merge", "experiments.cache_teacher",
    "transformers.tokenization_utils_tokenizers", "grain", "orbax.checkpoint", "matplotlib.figure",
    "matplotlib.backends.backend_agg",
]  # fmt: skip


class Program:
    """A script that runs, much as a `subprocess.Popen` with text in pipes.

    Args:
      script: its path, and its arguments.
      environment: its whole environment.
      first: Python that the process executes before the script.
    """

    def __init__(self, script: Sequence[str], environment: Mapping[str, str], first: str = "") -> None:
        _start_server()
        folder = tempfile.mkdtemp(prefix="program-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._streams = [Path(folder) / name for name in ("output", "errors")]
        self._process = CONTEXT.Process(
            target=_run, args=(list(script), dict(environment), first, [str(path) for path in self._streams])
        )
        self._process.start()
        atexit.register(self._process.kill)  # what a failed test leaves

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = 300) -> tuple[str, str]:
        """What it wrote to its output and its errors, when it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self._written()}")
        return self._written()

    def _written(self) -> tuple[str, str]:
        output, errors = (path.read_text() if path.exists() else "" for path in self._streams)
        return output, errors


def finished(script: Sequence[str], environment: Mapping[str, str], timeout: float = 300) -> str:
    """What a script writes to its output, when it has ended well."""
    program = Program(script, environment)
    output, errors = program.communicate(timeout)
    assert program.returncode == 0, errors[-3000:]
    return output


def _start_server() -> None:
    """With this process's environment; JAX warns of forking processes that have threads, which these have not yet."""
    CONTEXT.set_forkserver_preload(IMPORTED)
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:os.fork() was called:RuntimeWarning"]))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _run(script: list[str], environment: dict[str, str], first: str, streams: list[str]) -> None:
    """The forked process: what an interpreter does with a script."""
    import jax

    gc.freeze()  # what was imported stays, and no collection has to look at it
    for number, place in enumerate(streams, start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    jax.config.update("jax_disable_most_optimizations", environment.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1")
    sys.argv = script
    exec(first, {})
    try:
        runpy.run_path(script[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # multiprocessing leaves them out, and JAX's hosts part there
