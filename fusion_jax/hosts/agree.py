"""Hosts that run one program in step: what the first one sees and writes, and how the others come to know it.

What is read from the file system may differ between hosts for a while, so that the first host decides by it and writes,
and the others are told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from fusion_jax.errors import InputError
from fusion_jax.hosts.join import HostSettings

SEEN_SECONDS = 60.0  # for what one host has written to be seen by the others


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
    sent = bytes(agreed(text)).rstrip(b"\0")
    if failure is not None:
        raise failure
    if sent:
        raise InputError(**json.loads(sent))


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
