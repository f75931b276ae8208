"""SCE merging: select by variance, calculate coefficients, erase the minority (specification, section 2).

FuseChat v2 (arXiv 2408.07990, Algorithm 1). Three definitions exist, and they differ where select_topk < 1.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import MathDtype, Merged, Method, Parameter, Round, as_math, rounder, task_vectors
from fusion_jax.merge.select import largest
from fusion_jax.merge.shared import check_shapes, count, model_sum, per_model, tensor_sum

Array = jax.Array
Variant = Literal["fuseai", "paper", "mergekit"]
LEAST = 1e-6  # mergekit's: of a sum of mean squares that is told from none, and of a denominator


def sce(
    models: Array,
    base: Array,
    *,
    select_topk: float = 1.0,
    sce_variant: Variant = "fuseai",
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """Task vectors merged with coefficients from their mean squares at the positions where models disagree most.

    Args:
      models: float[K,...]; base: float[...].
      select_topk: share of the positions of nonzero variance that are selected; at 1 all positions are.
      sce_variant: "fuseai" (published checkpoints): the selection decides the coefficients only, every position is
        merged and renormalised over the models that survive. "paper": only selected positions move, without
        renormalisation. "mergekit": only selected positions move, renormalised; coefficients are equal where the mean
        squares sum to less than 1e-6. Where the selection is empty, every variant merges all positions with equal
        coefficients.
      int8_mask: accepted from mergekit's recipes; changes no number.

    Returns:
      float32[...] and the report: "coefficients" float32[K], "kept" (share selected), "erased" float32[K] (share of
      nonzero entries that lost the vote).
    """
    del int8_mask
    check_shapes(models, base)
    (topk,) = per_model(select_topk, 1, "select_topk", least=0.0, most=1.0)
    if sce_variant not in get_args(Variant):
        raise InputError(f"{sce_variant!r} is no variant", field="sce_variant", cure=f"Give one of {get_args(Variant)}")
    return _sce(models, base, np.float32(topk), selects=topk < 1, variant=sce_variant, math_dtype=math_dtype)


@partial(jax.jit, static_argnames=("selects", "variant", "math_dtype"))
def _sce(models: Array, base: Array, topk: Array, *, selects: bool, variant: Variant, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    shape, base = base.shape, as_math(jnp.atleast_1d(base), rounded)
    delta = task_vectors(as_math(models.reshape(len(models), *base.shape), rounded), base, rounded)
    mask = _selected(delta, topk, rounded) if selects else jnp.ones(base.shape, bool)
    coefficients = _coefficients(jnp.where(mask, delta, 0.0), variant, rounded)
    if variant != "fuseai":
        delta = jnp.where(mask | ~mask.any(), delta, 0.0)
    winning = jnp.where(rounded(model_sum(delta)) >= 0, 1.0, -1.0)
    stays = jnp.sign(delta) == winning
    weights = jnp.where(stays, coefficients.reshape(-1, *(1,) * base.ndim), 0.0)
    moved = rounded(model_sum(rounded(delta * weights)))
    if variant != "paper":
        total = rounded(model_sum(weights))
        least = rounded(jnp.float32(LEAST))
        moved = rounded(
            moved / (jnp.maximum(total, least) if variant == "mergekit" else jnp.where(total == 0, 1, total))
        )
    report = {"coefficients": coefficients, "kept": count(mask) / mask.size}
    return Merged(rounded(base + moved).reshape(shape), report | {"erased": erased(delta, stays)})


def _selected(delta: Array, topk: Array, rounded: Round) -> Array:
    """bool[...]: the positions of largest variance; where all models moved alike, it is 0 to the last bit."""
    shifted = delta - delta[0]
    mean = model_sum(shifted) / len(delta)
    variance = rounded(model_sum(jnp.square(shifted - mean)) / len(delta))
    moved = count(variance != 0)
    return largest(variance, (moved.astype(jnp.float32) * topk).astype(jnp.uint32))


def _coefficients(delta: Array, variant: Variant, rounded: Round) -> Array:
    """float32[K]: shares of the mean squares of the selected task vectors, equal where there are none."""
    squares = jax.vmap(tensor_sum)(rounded(jnp.square(delta)))
    if variant == "mergekit":
        squares = rounded(squares / delta[0].size)
        total = rounded(squares.sum())
        none = total < LEAST
    else:
        squares = rounded(squares)
        total = squares.sum()
        none = total == 0
    return rounded(jnp.where(none, 1 / len(delta), squares / jnp.where(none, 1.0, total)))


def erased(delta: Array, stays: Array) -> Array:
    """float32[K]: the share of nonzero entries of task vectors [K,...] that do not stay."""
    nonzero = delta != 0
    return jax.vmap(count)(nonzero & ~stays) / jnp.maximum(jax.vmap(count)(nonzero), 1)


METHODS = (
    Method(
        "sce", sce,
        (
            Parameter("select_topk", 1.0, least=0.0, most=1.0),
            Parameter("sce_variant", "fuseai", choices=get_args(Variant)),
            Parameter("int8_mask", False),
        ),
    ),
)  # fmt: skip
