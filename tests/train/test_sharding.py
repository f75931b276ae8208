"""Loss, metrics and gradients on 8 virtual devices equal those of one device within float32 rounding."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives():
    script = Path(__file__).with_name("sharded_step.py")
    results = json.loads(finished([str(script)], os.environ | virtual_devices(8)))
    assert results.pop("decoded") == [True, True]
    assert len(results) == 15
    for mesh, r in results.items():
        assert r["values"] < 1e-4, (mesh, r)
        assert r["gradient"] < 1e-5, (mesh, r)
        assert r["devices"][-1] == 8, (mesh, r)
