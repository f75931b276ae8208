"""Every kernel of attention gives what plain attention gives: windows, shared prompts, packed rows, heads, meshes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax.numpy as jnp
import pytest

from fusion_jax.ops.kernels import Visible
from tests.ops.every_kernel import EVERY_HEADS, WINDOWS, apart, cases, cases_on_meshes
from tests.programs import finished
from tests.small import virtual_devices

pytestmark = pytest.mark.usefixtures("quick_compiler")

TOLERANCE = 2e-5


@pytest.mark.parametrize(("kernel", "layout", "window", "heads"), cases())
def test_values_and_gradients(kernel, layout, window, heads):
    assert apart(kernel, layout, WINDOWS[window], EVERY_HEADS[heads], None) < TOLERANCE


@pytest.fixture(scope="module")
def on_meshes() -> dict[str, float]:
    """What `every_kernel` finds on 8 virtual devices."""
    script = Path(__file__).with_name("every_kernel.py")
    return json.loads(finished([str(script)], os.environ | virtual_devices(8)))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases_on_meshes(), ids=" | ".join)
def test_values_and_gradients_on_a_mesh(case, on_meshes):
    assert on_meshes[" | ".join(case)] < TOLERANCE


def test_what_no_kernel_answers_is_refused():
    one = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="no segments"):
        Visible(one, one, jnp.ones(1, jnp.int32), branches=(2, 1))
    with pytest.raises(ValueError, match="belong together"):
        Visible(one, branches=(2, 1))
