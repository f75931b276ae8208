"""What hosts of one mesh ask each other, played to one process as the second of two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from experiments import dpo
from fusion_jax.errors import InputError
from fusion_jax.hosts import agree
from fusion_jax.hosts.join import HostSettings, join
from fusion_jax.hosts.signals import PREEMPTED
from tests.small import fails


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is host 1 of 2; the first host sees every file, and no host fails."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda mine: np.ones_like(mine))
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.stack([np.ones_like(mine), mine]))


class Late(type(Path())):
    """A file that this host sees when it has looked three times; each look is counted."""

    looks = 0

    def exists(self, **_: bool) -> bool:
        Late.looks += 1
        return Late.looks > 3


def test_hosts_that_are_not_connected_are_refused(second, tmp_path, capsys):
    """As on a TPU pod slice, whose devices are all seen without `jax.distributed`."""
    line = fails(dpo, ["--out", str(tmp_path / "run")], capsys, "2 hosts share the devices", 'Give "auto"')
    assert "--hosts.coordinator" in line and not (tmp_path / "run").exists()


def test_only_the_first_host_looks_and_the_others_wait(second, monkeypatch, tmp_path):
    asked: list[int] = []
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda mine: (asked.append(Late.looks), np.ones_like(mine))[1]
    )
    assert agree.agreed_exists(Late(tmp_path / "file")) is True
    assert asked == [0] and Late.looks == 4


def test_where_the_first_host_sees_nothing_nobody_looks(second, monkeypatch, tmp_path):
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", np.zeros_like)
    monkeypatch.setattr(Late, "exists", lambda self: pytest.fail("looked"))
    assert agree.agreed_exists(Late(tmp_path / "file")) is False


def test_a_host_that_never_sees_it_is_named(second, monkeypatch, tmp_path):
    monkeypatch.setattr(agree, "SEEN_SECONDS", 0.3)
    with pytest.raises(InputError, match=r"file.*host 1 does not find it as host 0 has written it"):
        agree.agreed_exists(tmp_path / "file")


def test_a_coordinator_without_a_port_is_refused():
    with pytest.raises(InputError, match=r"hosts.coordinator.*'10.0.0.1' has no port"):
        join(HostSettings(coordinator="10.0.0.1", count=2, index=0))


def test_sigterm_ends_a_program_at_once_with_the_code_that_says_start_again():
    """Also inside a computation and inside a callback, where an exception would be lost."""
    script = (
        "import os, signal; from fusion_jax.hosts.join import HostSettings, connect; import jax, jax.numpy as jnp\n"
        "connect(HostSettings())\n"
        "class Doomed:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); sum(range(10**6))\n"
        "x = jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, lambda i, x: x @ x, x))(jnp.eye(200))\n"
        "print('started', flush=True); Doomed(); print('went on', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (PREEMPTED, "started\n"), done.stderr[-1000:]
