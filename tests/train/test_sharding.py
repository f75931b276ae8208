"""Loss, metrics and gradients on 8 virtual devices equal those of one device within float32 rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives():
    root = Path(__file__).parents[2]
    env = os.environ | virtual_devices(8) | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(root / "tests/train/sharded_step.py")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert len(results) == 5
    for mesh, r in results.items():
        assert r["values"] < 1e-4, (mesh, r)
        assert r["gradient"] < 1e-5, (mesh, r)
        assert r["devices"][-1] == 8, (mesh, r)
