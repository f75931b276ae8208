"""Which of several hosts this one is, and how they connect."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import jax

from fusion_jax.errors import InputError
from fusion_jax.hosts.signals import end_on_sigterm

HEARTBEAT_SECONDS = 30  # without a sign of life after which a host is lost


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
    end_on_sigterm()
    host = join(settings, connected=_number(settings.count, "JAX_NUM_PROCESSES") is not None)
    if host.count > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"is missing: {host.count} hosts share the devices and are not connected", field="--hosts.coordinator",
            cure='Give "auto" where the cluster knows its hosts, else ADDRESS:PORT of host 0, the count and the index',
        )  # fmt: skip
    return host


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise InputError(f"'{text}' is no number", field=variable, cure="Set it to a whole number")
    return int(text)


def _initialise(address: str, count: int | None, index: int | None, patience: float) -> None:
    named = address != "auto"
    # Its count of steps would have to go on over all stages, and Orbax keeps another: see `preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address if named else None, count, index, cluster_detection_method="deactivate" if named else None,
            shutdown_timeout_seconds=math.ceil(patience),  # of the hosts that end before the first one
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the hosts cannot connect ({' '.join(str(error).split())})", field="--hosts.coordinator",
            cure="Give ADDRESS:PORT of host 0, the count and each host's own index",
        ) from None  # fmt: skip
