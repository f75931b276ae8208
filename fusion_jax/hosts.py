"""Several hosts at one job: which of them this one is, how they connect, how one waits for the others.

A mesh over all hosts needs `jax.distributed`. Hosts that write independent files do not: told their number and index,
they meet in a folder of a shared file system, and one that dies takes no other along.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from fusion_jax.errors import InputError
from fusion_jax.settings import bounded


@dataclass(frozen=True)
class HostSettings:
    """Which host this is; what is left out comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    and without these from the devices: a TPU pod slice knows its hosts.

    coordinator: ADDRESS:PORT of host 0, for `jax.distributed`; "auto" asks the cluster (TPU, GKE, Slurm, Open MPI).
    count, index: how many hosts, and which one this is, from 0.
    patience: seconds without a new file after which the hosts that owe one count as lost: more than one file takes.
    """

    coordinator: str = ""
    count: int | None = None
    index: int | None = None
    patience: float = 1800.0

    def __post_init__(self) -> None:
        bounded(self, "patience", above=0)


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
    if address:
        _initialise(address, count, index, settings.patience)
    elif count is not None and index is not None:
        return Host(index, count)
    return Host(jax.process_index(), jax.process_count())


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise InputError(f"'{text}' is no number", field=variable, cure="Set it to a whole number")
    return int(text)


def _initialise(address: str, count: int | None, index: int | None, patience: float) -> None:
    told = address != "auto"
    try:
        jax.distributed.initialize(
            address if told else None, count, index, cluster_detection_method="deactivate" if told else None,
            shutdown_timeout_seconds=math.ceil(patience),  # of the hosts that end before the first one
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the hosts cannot connect ({' '.join(str(error).split())})", field="--hosts.coordinator",
            cure="Give ADDRESS:PORT of host 0, the count and each host's own index",
        ) from None  # fmt: skip


def agreed(values: np.ndarray) -> np.ndarray:
    """What the first host gives, on all hosts: a file system may show them different things for a while."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values)) if jax.process_count() > 1 else values


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
