"""How numbers are rounded, and differences from the base.

Arrays are float32 and hold values of the math dtype: rounding after each operation gives bit for bit what arithmetic
in that dtype gives, and no compiler may leave it out (merge specification, sections 1.3 and 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
MathDtype = Literal["float32", "bfloat16", "float16"]
Round = Callable[[Array], Array]


def rounder(math_dtype: MathDtype) -> Round:
    """x -> x rounded to the math dtype, still float32."""
    if math_dtype == "float32":
        return lambda x: x
    return _rounded_to_float16 if math_dtype == "float16" else lambda x: jax.lax.reduce_precision(x, 8, 7)


def _rounded_to_float16(x: Array) -> Array:
    """reduce_precision makes subnormals 0: here they are what float16 has, multiples of 2**-24."""
    subnormal = jnp.round(x * 2.0**24) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, subnormal, jax.lax.reduce_precision(x, 5, 10))


def as_math(x: Array, rounded: Round) -> Array:
    """Stored weights as float32 values of the math dtype."""
    return rounded(x.astype(jnp.float32))


def task_vectors(models: Array, base: Array, rounded: Round) -> Array:
    """float32[K,...]: models minus base, both already of the math dtype."""
    return rounded(models - base)


def split_task_vectors(models: Array, base: Array, rounded: Round) -> list[Array]:
    """K task vectors float32[...], each an array of its own and of at least one axis, of stored models and base."""
    base = as_math(jnp.atleast_1d(base), rounded)
    models = models.reshape(len(models), *base.shape)
    return [task_vectors(as_math(model, rounded), base, rounded) for model in models]


def divide(x: Array, divisor: Array) -> Array:
    """x / divisor (a scalar, not 0) rounded as a division: XLA multiplies with the reciprocal of a lone scalar."""
    return x / jnp.where(x == 0, 1.0, divisor)
