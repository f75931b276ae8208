"""Several hosts at one job: which of them this one is, how they connect, agree, wait for each other and end.

A mesh over all hosts needs `jax.distributed`. Hosts that write independent files do not: told their number and index,
they meet in a folder of a shared file system, and one that dies takes no other along.

Hosts of one mesh run one program in step. What is read from the file system may differ between them for a while, so
that the first host decides by it and writes, and the others are told: `agreed`, `on_first`.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.errors import InputError

PREEMPTED = 75  # exit code: told to stop, a training state is saved, start again (EX_TEMPFAIL of sysexits.h)
LOST = 134  # exit code: another host is gone; what a shell sees where JAX itself aborts for this reason
HEARTBEAT_SECONDS = 30  # without a sign of life after which a host is lost
GRACE_SECONDS = 15  # for the others to end alike, before this host ends without them
SEEN_SECONDS = 60.0  # for what one host has written to be seen by the others


@dataclass(frozen=True)
class HostSettings:
    """Which host this is; what is left out comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    and without these from the devices: a TPU pod slice knows its hosts."""

    coordinator: str = ""
    """ADDRESS:PORT of host 0, for `jax.distributed`; "auto" asks the cluster (TPU, GKE, Slurm, Open MPI)."""
    count: int | None = None
    """How many hosts there are."""
    index: int | None = None
    """Which of them this one is, from 0."""
    patience: float = 1800.0
    """Seconds without a new file after which the hosts that owe one count as lost: more than one file takes."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("index", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{value} is out of range", field=name, cure=f"Give {least} or more")
        if not 0 < self.patience < math.inf:
            raise InputError(f"{self.patience} is out of range", field="patience", cure="Give more than 0")


@dataclass(frozen=True)
class Host:
    """This host among `count`."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.index == 0


def join(settings: HostSettings, *, connected: bool = False) -> Host:
    """Find this host's place, and initialise `jax.distributed` if there is a coordinator; call before any other use
    of JAX.

    With a coordinator, JAX ends every process when one of them dies or does not come, with its own message.

    Args:
      connected: the hosts shall share a mesh.

    Raises:
      InputError: a part of the settings is missing or does not fit, or the cluster does not name a coordinator.
    """
    address = settings.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(settings.count, "JAX_NUM_PROCESSES")
    index = _number(settings.index, "JAX_PROCESS_ID")
    if (count is None) != (index is None) or (address not in ("", "auto") and count is None):
        raise InputError(
            "coordinator, count and index belong together", field="--hosts", cure="Give all three, or count and index"
        )
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(f"{index} is no host of {count}", field="--hosts.index", cure=f"Give 0 to {max(count, 1) - 1}")
    if connected and not address:
        raise InputError(
            "is missing, and a mesh over all hosts needs one", field="--hosts.coordinator",
            cure='Give ADDRESS:PORT of host 0, or "auto" where the cluster knows it',
        )  # fmt: skip
    if address and address != "auto" and not address.rpartition(":")[2].isdecimal():
        raise InputError(f"'{address}' has no port", field="--hosts.coordinator", cure="Give ADDRESS:PORT, or auto")
    if address:
        _initialise(address, count, index, settings.patience)
    elif count is not None and index is not None:
        return Host(index, count)
    return this_host()


def this_host() -> Host:
    """This host among those that share a mesh."""
    return Host(jax.process_index(), jax.process_count())


def connect(settings: HostSettings) -> Host:
    """`join` for a program that trains over one mesh: several hosts need a coordinator. SIGTERM ends it from here on
    with the exit code that says: start again.

    Raises:
      InputError: as `join`; the devices are those of several hosts, as on a TPU pod slice, and nobody connected them.
    """
    _on_sigterm(_end_preempted)
    host = join(settings, connected=_number(settings.count, "JAX_NUM_PROCESSES") is not None)
    if host.count > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"is missing: {host.count} hosts share the devices and are not connected", field="--hosts.coordinator",
            cure='Give "auto" where the cluster knows its hosts, else ADDRESS:PORT of host 0, the count and the index',
        )  # fmt: skip
    return host


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


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise InputError(f"'{text}' is no number", field=variable, cure="Set it to a whole number")
    return int(text)


def _initialise(address: str, count: int | None, index: int | None, patience: float) -> None:
    told = address != "auto"
    # Its count of steps would have to go on over all stages, and Orbax keeps another: see `preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address if told else None, count, index, cluster_detection_method="deactivate" if told else None,
            shutdown_timeout_seconds=math.ceil(patience),  # of the hosts that end before the first one
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the hosts cannot connect ({' '.join(str(error).split())})", field="--hosts.coordinator",
            cure="Give ADDRESS:PORT of host 0, the count and each host's own index",
        ) from None  # fmt: skip


def first_host() -> bool:
    """Whether this host writes what all have made."""
    return jax.process_index() == 0


def agreed(values: np.ndarray) -> np.ndarray:
    """What the first host gives, on all hosts: a file system may show them different things for a while."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values)) if jax.process_count() > 1 else values


def agreed_exists(path: Path) -> bool:
    """Whether the first host sees the path; where it does, all hosts do when this returns.

    The others do not look before: a file system may remember for a while that there was nothing.

    Raises:
      InputError: as `seen`.
    """
    there = bool(agreed(np.asarray(first_host() and path.exists())))
    if there:
        seen(path)
    return there


def seen(path: Path, as_written: Callable[[Path], bool] = lambda path: path.exists()) -> None:
    """Wait until all hosts see a file or folder as the first one has written it.

    Raises:
      InputError: on all hosts, where one of them does not within `SEEN_SECONDS`.
    """
    if jax.process_count() == 1:
        return
    last = time.monotonic() + SEEN_SECONDS
    while not (found := as_written(path)) and time.monotonic() < last:
        time.sleep(0.2)
    wrong = np.flatnonzero(~multihost_utils.process_allgather(np.asarray(found)))
    if wrong.size:
        raise InputError(
            f"host {wrong[0]} does not find it as host 0 has written it", file=path, field="--out",
            cure="Give a folder that all hosts see, and all hosts the same settings",
        )  # fmt: skip


def barrier(name: str) -> None:
    """Wait until all hosts of the mesh are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


_MESSAGE_BYTES = 4096


def on_first(work: Callable[[], object]) -> None:
    """Do on the first host what is done once, such as writing a file; the others wait and fail as it fails.

    Raises:
      InputError: on the other hosts, whatever stopped the first one; there, the error itself.
    """
    if jax.process_count() == 1:
        work()
        return
    failure: Exception | None = None
    if first_host():
        try:
            work()
        except Exception as error:
            failure = error
    parts = {}
    if isinstance(failure, InputError):
        parts = {name: getattr(failure, name) for name in ("problem", "file", "record", "field", "cure")}
    elif failure is not None:
        parts = {"problem": f"host 0 failed ({type(failure).__name__}: {failure})"}
    text = np.zeros(_MESSAGE_BYTES, np.uint8)
    raw = json.dumps(parts).encode() if parts else b""
    if len(raw) > _MESSAGE_BYTES:
        raw = json.dumps({"problem": "host 0 failed, see its messages"}).encode()
    text[: len(raw)] = np.frombuffer(raw, np.uint8)
    told = bytes(agreed(text)).rstrip(b"\0")
    if failure is not None:
        raise failure
    if told:
        raise InputError(**json.loads(told))


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
    told = noted.is_set if jax.process_count() == 1 else _on_any_host(noted.is_set)
    before = _on_sigterm(lambda number, frame: noted.set())
    try:
        yield told
    finally:
        _on_sigterm(before or signal.SIG_DFL)
    if bool(told()):
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


def wait_for(missing: Callable[[], dict[str, int]], settings: HostSettings) -> None:
    """Wait until nothing is missing: a barrier made of files on a shared file system.

    Args:
      missing: -> the names of files that are not there yet, each with the host that owes it.

    Raises:
      InputError: nothing came for `patience` seconds; names the hosts and the first file.
    """
    left, since = missing(), time.monotonic()
    while left:
        if time.monotonic() - since > settings.patience:
            lost = ", ".join(str(host) for host in sorted(set(left.values())))
            raise InputError(
                f"nothing came from host {lost} for {settings.patience:g} s", file=next(iter(left)),
                cure="Run the same command again, on any number of hosts: it goes on at the missing parts",
            )  # fmt: skip
        time.sleep(min(0.5, settings.patience / 10))
        now = missing()
        left, since = now, since if len(now) == len(left) else time.monotonic()
