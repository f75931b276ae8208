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
from fusion_jax.merge.methods.arithmetic import MathDtype, Round, as_math, rounder, split_task_vectors
from fusion_jax.merge.methods.checks import count_models, doubles, need_base
from fusion_jax.merge.methods.method import Merged, Method, Parameter, by_name
from fusion_jax.merge.methods.select import largest
from fusion_jax.merge.methods.sums import count, exact_sums, total
from fusion_jax.merge.methods.votes import erased, winners

Array = jax.Array
Variant = Literal["fuseai", "paper", "mergekit"]
LEAST = 1e-6  # mergekit's: of a sum of mean squares that is told from none, and of a denominator


def sce(
    models: Array,
    base: Array | None,
    *,
    select_topk: float = 1.0,
    sce_variant: Variant = "fuseai",
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """Task vectors merged with coefficients from their mean squares at the positions where models disagree most.

    base + sum_j c_j E_j tau_j / sum_j c_j E_j. Select: the share select_topk of positions, those of largest variance
    over the task vectors tau_j. Calculate: c_j, the share of model j in the squares at these positions. Erase: E_j is 1
    where tau_j has the sign of the sum over models, else 0.

    Args:
      models: float[K,...]; base: float[...].
      select_topk: share of the positions of nonzero variance that are selected; at 1 all positions are.
      sce_variant: "fuseai" (published checkpoints): the selection decides the coefficients only, every position is
        merged and renormalised over the models that survive. "paper": only selected positions move, without
        renormalisation. "mergekit": only selected positions move, renormalised; coefficients are equal where the mean
        squares sum to less than 1e-6. Where the selection is empty, every variant merges all positions with equal
        coefficients.
      int8_mask: accepted from mergekit's recipes; changes no number.

    Returns float32[...] and the report: "coefficients" float32[K], "selected" (share of positions), "erased"
    float32[K] (share of nonzero entries that lost the vote).
    Raises InputError for no base of the models' shape, a select_topk outside [0, 1] or another variant.
    Source: FuseChat v2, arXiv 2408.07990, Algorithm 1; the published code.

    >>> merged = sce(jnp.array([[2.0, 1.0, 1.0], [-2.0, 1.0, 2.0]]), jnp.zeros(3), select_topk=0.5)
    >>> merged.tensor.tolist(), merged.report["coefficients"].tolist()
    ([2.0, 1.0, 1.5], [0.5, 0.5])
    """
    del int8_mask
    count_models(models, "sce")
    base = need_base(models, base, "sce")
    (topk,) = doubles(select_topk, 1, "select_topk", 0.0, 1.0)
    if sce_variant not in get_args(Variant):
        raise InputError(f"{sce_variant!r} is no variant", field="sce_variant", cure=f"Give one of {get_args(Variant)}")
    return _sce(models, base, np.float32(topk), selects=topk < 1, variant=sce_variant, math_dtype=math_dtype)


@partial(jax.jit, static_argnames=("selects", "variant", "math_dtype"))
def _sce(models: Array, base: Array, topk: Array, *, selects: bool, variant: Variant, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    deltas = split_task_vectors(models, base, rounded)
    selected, share = deltas, jnp.float32(1.0)
    if selects:
        mask, k = _selected(deltas, topk, rounded)
        selected, share = [jnp.where(mask, d, 0.0) for d in deltas], k / mask.size
        if variant != "fuseai":
            deltas = [jnp.where(mask | (k == 0), d, 0.0) for d in deltas]
    coefficients = _coefficients(selected, variant, rounded)
    stays = winners(deltas, rounded)
    weights = [jnp.where(s, c, 0.0) for s, c in zip(stays, coefficients)]
    moved = rounded(total([rounded(d * w) for d, w in zip(deltas, weights)]))
    if variant != "paper":
        surviving = rounded(total(weights))
        divisor = jnp.maximum(surviving, rounded(jnp.float32(LEAST))) if variant == "mergekit" else surviving
        moved = rounded(moved / jnp.where(surviving == 0, 1.0, divisor))
    report = {"coefficients": coefficients, "selected": share, "erased": erased(deltas, stays)}
    return Merged(rounded(as_math(jnp.atleast_1d(base), rounded) + moved).reshape(base.shape), report)


def _selected(deltas: list[Array], topk: Array, rounded: Round) -> tuple[Array, Array]:
    """bool[...]: the positions of largest variance, exactly 0 where all models moved alike; uint32: their number."""
    shifted = [d - deltas[0] for d in deltas]
    mean = total(shifted) / len(deltas)
    variance = rounded(total([jnp.square(s - mean) for s in shifted]) / len(deltas))
    k = (count(variance != 0).astype(jnp.float32) * topk).astype(jnp.uint32)
    return largest(variance, k), k


def _coefficients(deltas: list[Array], variant: Variant, rounded: Round) -> Array:
    """float32[K]: shares of the mean squares of the selected task vectors, equal where there are none."""
    squares = jnp.stack(exact_sums([rounded(jnp.square(d)) for d in deltas]))
    if variant == "mergekit":
        squares = rounded(squares / deltas[0].size)
        whole = rounded(squares.sum())
        none = whole < LEAST
    else:
        squares = rounded(squares)
        whole = squares.sum()
        none = whole == 0
    return rounded(jnp.where(none, 1 / len(deltas), squares / jnp.where(none, 1.0, whole)))


METHODS = by_name(
    Method(
        "sce",
        sce,
        (
            Parameter("select_topk", 1.0, least=0.0, most=1.0),
            Parameter("sce_variant", "fuseai", choices=get_args(Variant)),
            Parameter("int8_mask", False),
        ),
    )
)
