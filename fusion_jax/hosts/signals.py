"""How a host ends: told to stop by SIGTERM, or because another host is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PREEMPTED = 75  # exit code: told to stop, a training state is saved, start again (EX_TEMPFAIL of sysexits.h)
LOST = 134  # exit code: another host is gone; what a shell sees where JAX itself aborts for this reason
GRACE_SECONDS = 15  # for the others to end alike, before this host ends without them


def end_on_sigterm() -> None:
    """From here on SIGTERM ends the process with the exit code that says: start again."""
    _on_sigterm(_end_preempted)


def _on_sigterm(handler: Any) -> Any:
    """Set what SIGTERM does and give what it did; None outside of the main thread, where signals do not come."""
    return signal.signal(signal.SIGTERM, handler) if threading.current_thread() is threading.main_thread() else None


def _end_preempted(number: int, frame: FrameType | None) -> NoReturn:
    """At once: an exception can be lost in a callback, and the interpreter must not end under a computation."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h")  # a progress line hides the cursor
    os._exit(PREEMPTED)


@contextmanager
def preemption() -> Iterator[Callable[[], bool | jax.Array]]:
    """While it is open, SIGTERM is only noted, so that a loop can save its state between two steps, and what it has
    begun to write is written. Cloud's own word of a preemption or a maintenance event is read only as the SIGTERM
    that a TPU VM which shuts down, or GKE, sends to the process.

    Gives a function that says whether any host was told to stop: the same answer on all hosts, which call it together.
    It returns before the answer is known, where devices still work.

    Raises:
      SystemExit: with `PREEMPTED`, on all hosts, where one was told after the last question.
    """
    noted = threading.Event()
    told_to_stop = noted.is_set if jax.process_count() == 1 else _on_any_host(noted.is_set)
    before = _on_sigterm(lambda number, frame: noted.set())
    try:
        yield told_to_stop
    finally:
        _on_sigterm(before or signal.SIG_DFL)
    if bool(told_to_stop()):
        raise SystemExit(PREEMPTED)


def _on_any_host(flag: Callable[[], bool]) -> Callable[[], jax.Array]:
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    each, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["devices"], []))
    found = jax.jit(jnp.any, out_shardings=whole)

    def ask() -> jax.Array:
        mine = np.asarray([flag()])  # read once, for all devices of this host
        return found(jax.make_array_from_callback((jax.device_count(),), each, lambda _: mine))

    return ask


@contextmanager
def ending_together() -> Iterator[None]:
    """Around a program: where an error ends this host and not the others, they learn of it soon.

    Connected hosts wait for each other at their end. One that fails waits `GRACE_SECONDS`, as the others may fail
    alike; then it is gone, and JAX stops them. A host that finds another one gone ends at once.
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _GONE):
                _end_lost(error)
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            timer = threading.Timer(GRACE_SECONDS, os._exit, (code,))
            timer.daemon = True
            timer.start()
        raise


_GONE = ("onnection closed by peer", "onnection reset by peer", "Gloo", "gloo", "oordination service", "heartbeat")


def _end_lost(error: Exception) -> NoReturn:
    print(
        f"error: host {jax.process_index()} of {jax.process_count()} has lost another host, see that one's messages "
        f"({' '.join(str(error).split())[:200]}). Start all hosts again with --resume: the run goes on at its "
        "last checkpoint.", file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(LOST)
