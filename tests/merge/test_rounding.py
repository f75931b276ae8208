"""The rounder against NumPy's own conversions."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest

from fusion_jax.merge.methods.arithmetic import MathDtype, rounder

DTYPES: dict[MathDtype, type] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@pytest.mark.parametrize("math_dtype", DTYPES)
def test_rounds_as_the_dtype_does(math_dtype: MathDtype) -> None:
    """Normal and, of float16, subnormal numbers, ties and what overflows."""
    random = np.random.default_rng(0)
    magnitudes = 2.0 ** random.uniform(-30, 17, 20_000) * random.choice([-1, 1], 20_000)
    ties = (np.arange(-3000, 3000) + 0.5) * 2.0**-24
    values = np.concatenate([magnitudes, ties, [0.0, 65519.0, 65520.0, 2.0**-14, 1e-6]]).astype(np.float32)
    with np.errstate(over="ignore"):
        want = values.astype(DTYPES[math_dtype]).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(rounder(math_dtype))(values), want)
