"""Batches that are smaller than the number of devices are filled up; what fills them changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_batches_smaller_than_the_devices():
    """On 16 virtual devices, with the splash kernel, as on one with plain attention."""
    script = Path(__file__).with_name("many_devices.py")
    env = os.environ | virtual_devices(16)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    one, many = json.loads(done.stdout.splitlines()[-1])
    for what, values in one.items():
        np.testing.assert_allclose(many[what], values, rtol=1e-4, atol=1e-4, err_msg=what)
