"""Averages and element-by-element choices: linear, model_stock, nearswap, arcee_fusion, passthrough, ram, ramplus_tl.

Merge specification, sections 4.1 and 4.6 to 4.10.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fusion_jax.merge.methods.arithmetic import MathDtype, as_math, divide, rounder, task_vectors
from fusion_jax.merge.methods.checks import PerModel, count_models, need_base, normalized, number, per_model
from fusion_jax.merge.methods.method import Merged, Method, Parameter, by_name
from fusion_jax.merge.methods.select import kth_smallest
from fusion_jax.merge.methods.sums import dots, total, weighted_sum

Array = jax.Array


def linear(
    models: Array,
    base: Array | None = None,
    *,
    weight: PerModel,
    normalize: bool = True,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """The weighted mean sum_j weight[j] models[j] / sum_j weight[j] (section 4.1).

    Without `normalize` the weighted sum.

    Args:
      models: float[K,...]; base: not used.

    Returns float32[...].
    Raises InputError where weights are not finite, or to be normalised and sum to 0.
    Source: model soups, Wortsman et al., arXiv 2203.05482.

    >>> linear(jnp.array([[1.0, 2.0], [3.0, 6.0]]), weight=[1, 3]).tensor.tolist()
    [2.5, 5.0]
    """
    weights = per_model(weight, count_models(models, "linear"), "weight")
    if normalize:
        normalized(weights)
    return _linear(models, weights, normalize=normalize, math_dtype=math_dtype)


@partial(jax.jit, static_argnames=("normalize", "math_dtype"))
def _linear(models: Array, weight: Array, *, normalize: bool, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    weight = rounded(weight)
    merged = weighted_sum(weight, as_math(models, rounded), rounded)
    return Merged(rounded(divide(merged, rounded(total(weight)))) if normalize else merged, {})


def model_stock(
    models: Array, base: Array | None, *, filter_wise: bool = False, math_dtype: MathDtype = "float32"
) -> Merged:
    """t mean_j(models) + (1 - t) base, with t = K c / (1 + (K - 1) c) (section 4.6).

    c is the mean over pairs of models of the cosine between their task vectors. With K = 2 and opposite task vectors t
    has no finite value: it is 0, the base.

    Args:
      models: float[K,...] with K >= 2; base: float[...].
      filter_wise: one t for each row (vector along the last axis) in place of one for the tensor.

    Returns float32[...] and "t", its mean over rows.
    Raises InputError for fewer than 2 models or no base of their shape.
    Source: Jang et al., arXiv 2403.19522.

    >>> merged = model_stock(jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.zeros(2))
    >>> merged.tensor.tolist(), float(merged.report["t"])
    ([0.0, 0.0], 0.0)
    """
    count_models(models, "model_stock", 2)
    return _model_stock(models, need_base(models, base, "model_stock"), filter_wise=filter_wise, math_dtype=math_dtype)


@partial(jax.jit, static_argnames=("filter_wise", "math_dtype"))
def _model_stock(models: Array, base: Array, *, filter_wise: bool, math_dtype: MathDtype) -> Merged:
    rounded, count = rounder(math_dtype), len(models)
    theta, models = as_math(base, rounded), as_math(models, rounded)
    products = rounded(dots(task_vectors(models, theta, rounded), -1 if filter_wise and base.ndim else None))
    lengths = rounded(jnp.sqrt(jnp.stack([products[j, j] for j in range(count)])))
    cosines = [
        rounded(products[i, j] / jnp.maximum(rounded(lengths[i] * lengths[j]), rounded(jnp.float32(1e-6))))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = rounded(total(jnp.clip(jnp.stack(cosines), -1.0, 1.0)) / len(cosines))
    below = rounded(1.0 + rounded((count - 1) * cosine))
    t = jnp.where(below == 0, 0.0, rounded(rounded(count * cosine) / jnp.where(below == 0, 1.0, below)))
    weight = t[..., None] if t.ndim else t
    mean = rounded(divide(rounded(total(models)), jnp.float32(count)))
    merged = rounded(rounded(weight * mean) + rounded(rounded(1.0 - weight) * theta))
    return Merged(merged, {"t": t.mean()})


def nearswap(models: Array, base: Array | None, *, t: float, math_dtype: MathDtype = "float32") -> Merged:
    """w model + (1 - w) base with w = clip(t / |model - base|, 0, 1), element by element (section 4.7).

    An element within t of the base is the model's; further apart it is less of it.

    Args:
      models: float[1,...]; base: float[...].

    Returns float32[...].
    Raises InputError unless there are one model and a base of its shape, or where t is not finite.
    Source: the nearswap method of mergekit.

    >>> nearswap(jnp.array([[0.5, 2.0]]), jnp.zeros(2), t=1.0).tensor.tolist()
    [0.5, 1.0]
    """
    count_models(models, "nearswap", 1, 1)
    return _nearswap(models, need_base(models, base, "nearswap"), number(t, "t"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _nearswap(models: Array, base: Array, t: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    a, b = as_math(base, rounded), as_math(models[0], rounded)
    distance = jnp.maximum(jnp.abs(rounded(a - b)), rounded(jnp.float32(1e-6)))
    weight = jnp.clip(rounded(t / distance), 0.0, 1.0)
    return Merged(rounded(rounded(weight * b) + rounded(rounded(1.0 - weight) * a)), {})


def arcee_fusion(models: Array, base: Array | None, *, math_dtype: MathDtype = "float32") -> Merged:
    """The base with the most important changes of one model (section 4.8).

    Importance is |change| times the row's KL divergence of softmax(weights); it counts from 1.5 quartile ranges above
    the median. Quartiles are those of all elements, at any size.

    Args:
      models: float[1,...]; base: float[...].

    Returns float32[...] and "kept", the share of the elements taken from the model.
    Raises InputError unless there are one model and a base of its shape.
    Source: the arcee_fusion method of mergekit.

    >>> merged = arcee_fusion(jnp.array([[0.1, 0.1, 0.2, 4.0]]), jnp.zeros(4))
    >>> merged.tensor.tolist(), float(merged.report["kept"])
    ([0.0, 0.0, 0.0, 4.0], 0.25)
    """
    count_models(models, "arcee_fusion", 1, 1)
    return _arcee_fusion(models, need_base(models, base, "arcee_fusion"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _arcee_fusion(models: Array, base: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    b, x = as_math(base, rounded), as_math(models[0], rounded)
    row = -1 if base.ndim else None
    p, q = (rounded(rounded(jax.nn.softmax(y, row)) + 1e-8) for y in (x, b))
    divergence = rounded(rounded(p * rounded(jnp.log(rounded(p / q)))).sum(row, keepdims=True))
    change = rounded(x - b)
    importance = rounded(jnp.abs(change) * divergence)
    last = base.size - 1
    lower, middle, upper = (kth_smallest(importance, jnp.uint32(last * i // 4)) for i in (1, 2, 3))
    kept = importance >= rounded(middle + rounded(1.5 * rounded(upper - lower)))
    return Merged(rounded(b + jnp.where(kept, change, 0.0)), {"kept": kept.mean(dtype=jnp.float32)})


def passthrough(
    models: Array, base: Array | None = None, *, scale: PerModel = 1.0, math_dtype: MathDtype = "float32"
) -> Merged:
    """scale times the only model (section 4.9).

    Args:
      models: float[1,...]; base: not used.

    Returns float32[...].
    Raises InputError unless there is exactly one model, or where scale is not finite.
    Source: the passthrough method of mergekit; with slices it stacks layers.

    >>> passthrough(jnp.array([[1.0, 2.0]]), scale=0.5).tensor.tolist()
    [0.5, 1.0]
    """
    count_models(models, "passthrough", 1, 1)
    return _passthrough(models, per_model(scale, 1, "scale"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _passthrough(models: Array, scale: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    return Merged(rounded(scale[0] * as_math(models[0], rounded)), {})


def ram(models: Array, base: Array | None, *, epsilon: float = 1e-5, math_dtype: MathDtype = "float32") -> Merged:
    """base plus, element by element, the mean of the changes greater than epsilon (section 4.10).

    sum_j z_j / max(c, 1) with z_j = task vector j where it is greater than epsilon, else 0; c: how many are.

    Args:
      models: float[K,...]; base: float[...].

    Returns float32[...].
    Raises InputError without a base of their shape, or where epsilon is not finite.
    Source: the ram method of mergekit.

    >>> ram(jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.zeros(2)).tensor.tolist()
    [1.0, 3.0]
    """
    count_models(models, "ram")
    return _ram(models, need_base(models, base, "ram"), number(epsilon, "epsilon"), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _ram(models: Array, base: Array, epsilon: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    theta = as_math(base, rounded)
    changes, changed, owners = _changes(models, theta, epsilon, math_dtype)
    mean = rounded(rounded(total(changes)) / jnp.maximum(owners, 1.0))
    return Merged(rounded(theta + mean), {})


def ramplus_tl(
    models: Array,
    base: Array | None,
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """`ram`, with each model's unshared changes scaled by 1 + r min(shared / unshared, alpha) (section 4.10).

    Args:
      models: float[K,...]; base: float[...].

    Returns float32[...]. shared and unshared: numbers of elements that others, or no others, have changed too.
    Raises InputError without a base of their shape, or where epsilon, r or alpha is not finite.
    Source: the ramplus_tl method of mergekit.

    >>> ramplus_tl(jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.zeros(2), r=0.5, alpha=1.0).tensor.tolist()
    [1.5, 3.0]
    """
    count_models(models, "ramplus_tl")
    numbers = (number(epsilon, "epsilon"), number(r, "r"), number(alpha, "alpha"))
    return _ramplus_tl(models, need_base(models, base, "ramplus_tl"), *numbers, math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _ramplus_tl(models: Array, base: Array, epsilon: Array, r: Array, alpha: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    theta = as_math(base, rounded)
    changes, changed, owners = _changes(models, theta, epsilon, math_dtype)
    parts = []
    for change, own in zip(changes, changed, strict=True):
        shared, unique = ((own & where).sum(dtype=jnp.uint32) for where in (owners > 1, owners == 1))
        ratio = shared / jnp.maximum(unique.astype(jnp.float32), epsilon)
        gain = rounded(1.0 + r * jnp.clip(ratio, 0.0, alpha))
        alone = rounded(gain * change)
        parts.append(jnp.where(owners == 1, alone, rounded(change / jnp.maximum(owners, 1.0))))
    return Merged(rounded(theta + rounded(total(jnp.stack(parts)))), {})


def _changes(models: Array, theta: Array, epsilon: Array, math_dtype: MathDtype) -> tuple[Array, Array, Array]:
    """Task vectors with changes up to epsilon zeroed [K,...], where they are kept [K,...], by how many models [...]."""
    rounded = rounder(math_dtype)
    vectors = task_vectors(as_math(models, rounded), theta, rounded)
    changed = jnp.abs(vectors) > epsilon
    return jnp.where(changed, vectors, 0.0), changed, total(changed.astype(jnp.float32))


METHODS = by_name(
    Method("linear", linear, (Parameter("weight", per_model=True), Parameter("normalize", True)), base="none"),
    Method("model_stock", model_stock, (Parameter("filter_wise", False),), least_models=2),
    Method("nearswap", nearswap, (Parameter("t", least=0.0),), most_models=1),
    Method("arcee_fusion", arcee_fusion, most_models=1),
    Method("passthrough", passthrough, (Parameter("scale", 1.0, per_model=True),), base="none", most_models=1),
    Method("ram", ram, (Parameter("epsilon", 1e-5, least=0.0),)),
    Method(
        "ramplus_tl",
        ramplus_tl,
        (Parameter("epsilon", 1e-5, least=0.0), Parameter("r", 0.1, least=0.0), Parameter("alpha", 0.2, least=0.0)),
    ),
)
