"""Merging along great circles: slerp, nuslerp, multislerp, karcher (merge specification, sections 4.2 to 4.5).

Angles and coefficients, a few numbers a tensor, are float32 in every math dtype; whole tensors are rounded to it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.merge.methods.arithmetic import MathDtype, as_math, rounder, task_vectors
from fusion_jax.merge.methods.checks import PerModel, check_shapes, count_models, normalized, number, per_model
from fusion_jax.merge.methods.method import Merged, Method, Parameter, by_name
from fusion_jax.merge.methods.sums import dots, norms, weighted_sum

Array = jax.Array
LEAST_NORM = 1e-8  # slerp: a shorter vector is not normalised
COLLINEAR = 0.9995  # slerp: |cos| above which the arc is taken for a line
LEAST_SINE = 1e-6  # nuslerp: below it the arc is a line or undefined


def slerp(models: Array, base: Array | None, *, t: float, math_dtype: MathDtype = "float32") -> Merged:
    """The point at t on the arc from the base (t = 0) to the other model (t = 1); norms interpolate too (section 4.2).

    (sin((1 - t) phi) base + sin(t phi) model) / sin(phi), phi the angle between the two; the line between them where
    they are nearly parallel. A t outside [0, 1] goes on along the circle.

    Args:
      models: float[1,...], the other model; without a base it is returned as it is.
      base: float[...] or None.

    Returns float32[...] and the "angle" between the two, in radians.
    Raises InputError unless there is exactly one model, where shapes differ, or where t is not finite.
    Source: Shoemake, Animating rotation with quaternion curves (1985); the slerp method of mergekit.

    >>> merged = slerp(jnp.array([[0.0, 2.0]]), jnp.array([2.0, 0.0]), t=0.5)
    >>> print(merged.tensor.round(4), merged.report["angle"].round(4))
    [1.4142 1.4142] 1.5708
    """
    count_models(models, "slerp", 1, 1)
    check_shapes(models, base)
    if base is None:
        return Merged(as_math(models[0], rounder(math_dtype)), {})
    return _slerp(models, base, number(t, "t"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _slerp(models: Array, base: Array, t: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    a, b = as_math(base, rounded), as_math(models[0], rounded)
    lengths = norms(jnp.stack([a, b]))
    lengths = jnp.where(lengths > LEAST_NORM, lengths, 1.0)
    cosine = ((a / lengths[0]) * (b / lengths[1])).sum()
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    line = jnp.abs(cosine) > COLLINEAR
    sine = jnp.where(line, 1.0, jnp.sin(angle))
    left = jnp.where(line, 1.0 - t, jnp.sin(angle - t * angle) / sine)
    right = jnp.where(line, t, jnp.sin(t * angle) / sine)
    return Merged(rounded(left * a + right * b), {"angle": angle})


def nuslerp(
    models: Array,
    base: Array | None = None,
    *,
    weight: PerModel,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """The point at weight[1] / (weight[0] + weight[1]) on the arc between two models, or two task vectors (4.3).

    The angle is 2 atan2(|u0 - u1|, |u0 + u1|) of the unit vectors, which unlike an arc cosine in float32 sees parallel
    and opposite vectors: they are merged along the line between them.

    Args:
      models: float[2,...]; base: float[...], added back to the merged task vectors, or None.
      weight: two numbers; a sum near 0 counts as halves.
      nuslerp_flatten: one angle for the tensor. Otherwise one for each vector along the last axis, or with
        nuslerp_row_wise along the first.

    Returns float32[...] and the mean "angle" in radians.
    Raises InputError unless there are two models of the base's shape and finite weights.
    Source: the nuslerp method of mergekit.

    >>> print(nuslerp(jnp.array([[2.0, 0.0], [0.0, 2.0]]), weight=[1, 1]).tensor.round(4))
    [1.4142 1.4142]
    """
    first, second = per_model(weight, count_models(models, "nuslerp", 2, 2), "weight")
    check_shapes(models, base)
    t = jnp.float32(0.5 if abs(first + second) < 1e-6 else second / (first + second))
    axis = None if nuslerp_flatten else 0 if nuslerp_row_wise else -1
    return _nuslerp(models, base, t, axis=axis, math_dtype=math_dtype)


@partial(jax.jit, static_argnames=("axis", "math_dtype"))
def _nuslerp(models: Array, base: Array | None, t: Array, *, axis: int | None, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    models = as_math(models, rounded)
    theta = None if base is None else as_math(base, rounded)
    v = models if theta is None else task_vectors(models, theta, rounded)

    def length(x: Array) -> Array:
        return jnp.sqrt((x * x).sum(axis, keepdims=True))

    u0, u1 = (x / jnp.maximum(length(x), 1e-7) for x in v)
    angle = 2.0 * jnp.arctan2(length(u0 - u1), length(u0 + u1))
    sine = jnp.sin(angle)
    line = jnp.abs(sine) < LEAST_SINE
    left = jnp.where(line, 1.0 - t, jnp.sin((1.0 - t) * angle))
    right = jnp.where(line, t, jnp.sin(t * angle))
    merged = rounded(rounded(rounded(left * v[0]) + rounded(right * v[1])) / jnp.where(line, 1.0, sine))
    return Merged(merged if theta is None else rounded(theta + merged), {"angle": angle.mean()})


def multislerp(
    models: Array,
    base: Array | None = None,
    *,
    weight: PerModel,
    normalize_weights: bool = True,
    eps: float = 1e-8,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """The barycentre of K models, or task vectors, on the sphere, with the weighted mean of their norms (section 4.4).

    The specification projects the unit vectors U_j on the tangent space of their own mean mu = sum_j w_j U_j and steps
    along v, the weighted mean of the projections. v vanishes identically, since it is mu less its projection on mu: the
    result is mu, of length sum_j w_j |X_j|.
    Where |mu| < eps (no model has changed the tensor, or all cancel) it is the weighted sum of the models, for any K.

    Args:
      models: float[K,...]; one alone is returned as it is. base: float[...] or None.

    Returns float32[...].
    Raises InputError where shapes differ, or weights are not finite, or to be normalised and sum to 0.
    Source: the multislerp method of mergekit.

    >>> print(multislerp(jnp.array([[2.0, 0.0], [0.0, 2.0]]), weight=1.0).tensor.round(4))
    [1.4142 1.4142]
    """
    weights = per_model(weight, count_models(models, "multislerp"), "weight")
    check_shapes(models, base)
    if normalize_weights:
        weights = normalized(weights)
    if len(models) == 1:
        return Merged(as_math(models[0], rounder(math_dtype)), {})
    return _multislerp(models, base, weights, number(eps, "eps"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _multislerp(models: Array, base: Array | None, weight: Array, eps: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    models = as_math(models, rounded)
    theta = None if base is None else as_math(base, rounded)
    x = models if theta is None else task_vectors(models, theta, rounded)
    lengths = norms(x)
    share = weight / (lengths + eps)
    mean = weighted_sum(share, x, lambda y: y)
    length = jnp.sqrt((mean * mean).sum())
    scale = (weight * lengths).sum() / jnp.maximum(length, eps)
    merged = weighted_sum(jnp.where(length < eps, weight, share * scale), x, rounded)
    return Merged(merged if theta is None else rounded(theta + merged), {})


def karcher(
    models: Array,
    base: Array | None = None,
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """The Karcher mean of the directions of K models and the base, with the mean of their norms (section 4.5).

    The direction is the unit vector u that minimises the sum of squared angles to the models' directions.

    Every vector of the iteration is a combination of the models, so it runs on K coefficients and the K x K inner
    products, and the tensors are read twice: once for the products, once for the result.

    Args:
      models: float[K,...]; base: float[...], one more model, or None.

    Returns float32[...].
    Raises InputError where shapes differ, or tol is not finite.
    Source: Karcher, Riemannian center of mass (1977); the karcher method of mergekit.

    >>> print(karcher(jnp.array([[1.0, 0.0], [0.0, 3.0]])).tensor.round(4))
    [1.4142 1.4142]
    """
    count_models(models, "karcher")
    check_shapes(models, base)
    return _karcher(models, base, jnp.int32(max_iter), number(tol, "tol"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _karcher(models: Array, base: Array | None, max_iter: Array, tol: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    points = as_math(models, rounded)
    if base is not None:
        points = jnp.concatenate([points, as_math(base, rounded)[None]])
    products = dots(points)
    lengths = jnp.sqrt(jnp.diagonal(products))
    kept = lengths > tol
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, lengths, 1.0), 0.0)
    direction = _mean_direction(products * inverse[:, None] * inverse, kept, max_iter, tol)
    return Merged(weighted_sum(lengths.mean() * direction * inverse, points, rounded), {})


class _Walk(NamedTuple):
    step: Array
    direction: Array
    arrived: Array


def _mean_direction(cosines: Array, kept: Array, max_iter: Array, tol: Array) -> Array:
    """Coefficients float32[K] of the Karcher mean in unit vectors of these cosines [K,K]; `kept` ones count."""

    def length(x: Array) -> Array:
        return jnp.sqrt(jnp.maximum((x[:, None] * x * cosines).sum(), 0.0))

    def unit(x: Array, otherwise: Array) -> Array:
        size = length(x)
        return jnp.where(size > tol, x / jnp.where(size > tol, size, 1.0), otherwise)

    def advance(walk: _Walk) -> _Walk:
        u = walk.direction
        d = jnp.clip((cosines * u).sum(1), -1.0, 1.0)
        angle = jnp.arccos(d)
        far = kept & (angle >= tol)
        pull = jnp.where(far, share * angle / jnp.where(far, jnp.sin(angle), 1.0), 0.0)
        tangent = pull - (pull * d).sum() * u
        size = length(tangent)
        arrived = size < tol
        moved = jnp.cos(size) * u + jnp.sin(size) * tangent / jnp.where(arrived, 1.0, size)
        return _Walk(walk.step + 1, jnp.where(arrived, u, unit(moved, moved)), arrived)

    share = kept / jnp.maximum(kept.sum(), 1)
    first = (jnp.arange(len(kept)) == jnp.argmax(kept)) & kept
    start = _Walk(jnp.int32(0), unit(share, first.astype(share.dtype)), jnp.bool_(False))
    return jax.lax.while_loop(lambda walk: (walk.step < max_iter) & ~walk.arrived, advance, start).direction


METHODS = by_name(
    Method("slerp", slerp, (Parameter("t"),), most_models=1),
    Method(
        "nuslerp",
        nuslerp,
        (
            Parameter("weight", per_model=True),
            Parameter("nuslerp_flatten", True),
            Parameter("nuslerp_row_wise", False),
        ),
        base="optional",
        least_models=2,
        most_models=2,
    ),
    Method(
        "multislerp",
        multislerp,
        (Parameter("weight", per_model=True), Parameter("normalize_weights", True), Parameter("eps", 1e-8, least=0.0)),
        base="optional",
    ),
    Method(
        "karcher",
        karcher,
        (Parameter("max_iter", 10, least=1, most=2**31 - 1), Parameter("tol", 1e-5, least=0.0)),
        base="optional",
    ),
)
