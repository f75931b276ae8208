"""Batches that are smaller than the number of devices are filled up; what fills them changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.slow
def test_batches_smaller_than_the_devices():
    """On 16 virtual devices, with the splash kernel, as on one with plain attention."""
    script = Path(__file__).with_name("many_devices.py")
    one, many = json.loads(finished([str(script)], os.environ | virtual_devices(16)).splitlines()[-1])
    for what, values in one.items():
        np.testing.assert_allclose(many[what], values, rtol=1e-4, atol=1e-4, err_msg=what)
