"""Generalised task arithmetic: task_arithmetic, ties, dare_*, della*, breadcrumbs* (specification, section 5).

Every method is the same kernel with another sparsifier, with or without a vote on signs. Common arguments:

  models: float[K,...]; base: float[...].
  weight, density, epsilon, gamma: a number, or one for each of the K models. density: share of entries that stay.
  normalize: divide by the weights (of the models that won the vote, where there is one).
  rescale: how entries that stay make up for the others: "l1" (or True), "inverse_density", "none" (or False).
  lambda_: factor of the merged task vector.
  ties_vote: whether signs are voted on by weighted task vectors (mergekit), or unweighted ones (the TIES paper).
  int8_mask: accepted from mergekit's recipes; changes no number.
  keys: key array [K], see `tensor_key`; masks: bool[K,...], taken instead of drawing.

They return float32[...] and the report "kept" float32[K] (share of positions that the sparsifier left) and, with a
vote, "erased" float32[K] (share of nonzero entries that lost it). InputError names a parameter out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import MathDtype, Merged, Method, Parameter, as_math, rounder
from fusion_jax.merge.differences import count, differences, doubles, erased, winners
from fusion_jax.merge.sparsify import (
    Plan,
    Rescale,
    Sparsifier,
    keep,
    magnitude_plan,
    magprune_plan,
    outliers_plan,
    random_plan,
    rescale_rule,
    rescaled,
)
from fusion_jax.merge.stacks import PerModel, count_models, divide, need_base, number, per_model, total

Array = jax.Array
Vote = Literal["none", "weighted", "unweighted"]
LEAST_WEIGHT = 1e-8  # a sum of weights below it does not normalize


class _Sparse(NamedTuple):
    """How a method thins out task vectors: the sparsifier, its plan, densities [K] and the rule of rescaling."""

    kind: Sparsifier
    plan: Plan
    density: tuple[float, ...]
    rescale: bool | str


class _Mix(NamedTuple):
    """How a method joins task vectors."""

    weight: PerModel
    lambda_: float
    normalize: bool
    vote: Vote
    math_dtype: MathDtype


def task_arithmetic(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    normalize: bool = False,
    rescale: bool | str = "none",
    lambda_: float = 1.0,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """base + lambda times the weighted sum of task vectors; density and rescale are accepted and ignored."""
    del density, rescale, int8_mask
    mix = _Mix(weight, lambda_, normalize, "none", math_dtype)
    return _merge(models, base, _Sparse("none", {}, (), False), mix)


def ties(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    normalize: bool = True,
    rescale: bool | str = "none",
    lambda_: float = 1.0,
    ties_vote: Vote = "weighted",
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """TIES: each task vector's largest magnitudes, and of those the ones that win the vote on signs."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _Sparse("magnitude", magnitude_plan(models[0].size, densities), densities, rescale)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, _vote(ties_vote), math_dtype))


def dare_linear(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    normalize: bool = False,
    rescale: bool | str = "l1",
    lambda_: float = 1.0,
    keys: Array | None = None,
    masks: Array | None = None,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """DARE: entries dropped at random, the rest rescaled; a weighted sum."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _dare(densities, rescale, keys, masks)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, "none", math_dtype))


def dare_ties(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    normalize: bool = False,
    rescale: bool | str = "l1",
    lambda_: float = 1.0,
    ties_vote: Vote = "weighted",
    keys: Array | None = None,
    masks: Array | None = None,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """DARE with the vote of TIES."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _dare(densities, rescale, keys, masks)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, _vote(ties_vote), math_dtype))


def della(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    normalize: bool = True,
    rescale: bool | str = "l1",
    lambda_: float = 1.0,
    ties_vote: Vote = "weighted",
    keys: Array | None = None,
    masks: Array | None = None,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """DELLA: entries dropped at random, small ones of a row more likely; with the vote of TIES."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _della(densities, epsilon, rescale, keys, masks)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, _vote(ties_vote), math_dtype))


def della_linear(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    normalize: bool = False,
    rescale: bool | str = "l1",
    lambda_: float = 1.0,
    keys: Array | None = None,
    masks: Array | None = None,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """DELLA without a vote: a weighted sum."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _della(densities, epsilon, rescale, keys, masks)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, "none", math_dtype))


def breadcrumbs(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    gamma: PerModel = 0.01,
    breadcrumbs_compat: bool = False,
    normalize: bool = False,
    rescale: bool | str = "none",
    lambda_: float = 1.0,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """Model Breadcrumbs: without the largest share gamma of magnitudes and the smallest ones."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _breadcrumbs(models[0].size, densities, gamma, rescale, breadcrumbs_compat)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, "none", math_dtype))


def breadcrumbs_ties(
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    gamma: PerModel = 0.01,
    breadcrumbs_compat: bool = False,
    normalize: bool = False,
    rescale: bool | str = "none",
    lambda_: float = 1.0,
    ties_vote: Vote = "weighted",
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """Model Breadcrumbs with the vote of TIES."""
    del int8_mask
    densities = _densities(models, density)
    sparse = _breadcrumbs(models[0].size, densities, gamma, rescale, breadcrumbs_compat)
    return _merge(models, base, sparse, _Mix(weight, lambda_, normalize, _vote(ties_vote), math_dtype))


def _densities(models: Array, density: PerModel) -> tuple[float, ...]:
    return doubles(density, count_models(models, "a method of task vectors"), "density", 0.0, 1.0)


def _vote(ties_vote: Vote) -> Vote:
    if ties_vote not in ("weighted", "unweighted"):
        raise InputError(f"{ties_vote!r} is no vote", field="ties_vote", cure="Give weighted or unweighted")
    return ties_vote


def _drawn(
    kind: Sparsifier, plan: Plan, density: tuple[float, ...], rescale: bool | str, masks: Array | None
) -> _Sparse:
    """A random sparsifier, or the masks given in place of its draws."""
    if masks is not None:
        return _Sparse("masks", {"mask": masks}, density, rescale)
    if plan["key"] is None:
        raise InputError("no random keys", field="keys", cure="Give a key for each model, see tensor_key")
    return _Sparse(kind, plan, density, rescale)


def _dare(density: tuple[float, ...], rescale: bool | str, keys: Array | None, masks: Array | None) -> _Sparse:
    return _drawn("random", random_plan(density, keys), density, rescale, masks)


def _della(
    density: tuple[float, ...], epsilon: PerModel, rescale: bool | str, keys: Array | None, masks: Array | None
) -> _Sparse:
    epsilons = doubles(epsilon, len(density), "epsilon", 0.0, 1.0)
    return _drawn("magprune", magprune_plan(density, epsilons, keys), density, rescale, masks)


def _breadcrumbs(size: int, density: tuple[float, ...], gamma: PerModel, rescale: bool | str, compat: bool) -> _Sparse:
    gammas = doubles(gamma, len(density), "gamma", 0.0, 1.0)
    return _Sparse("magnitude_outliers", outliers_plan(size, density, gammas, compat=compat), density, rescale)


def _merge(models: Array, base: Array | None, sparse: _Sparse, mix: _Mix) -> Merged:
    base = need_base(models, base, "a method of task vectors")
    weight = per_model(mix.weight, count_models(models, "a method of task vectors"), "weight")
    rule = rescale_rule(sparse.rescale)
    if all(d >= 1 for d in sparse.density):
        sparse, rule = _Sparse("none", {}, (), False), "none"
    thinned = np.asarray(sparse.density, np.float32), sparse.plan
    static = _Static(sparse.kind, rule, mix.vote, mix.normalize, mix.math_dtype)
    # One model at a time: what a selection needs is not held K times, and in a loop of the compiler's a CPU would draw
    # random numbers on one core.
    sparsify = partial(_sparsified, models, base, thinned, static=static)
    sparse_deltas = [] if sparse.kind == "none" else [sparsify(np.int32(j)) for j in range(len(models))]
    return _mixture(models, base, sparse_deltas, weight, number(mix.lambda_, "lambda"), static)


class _Static(NamedTuple):
    """What a compiled kernel is made for."""

    sparsifier: Sparsifier
    rescale: Rescale
    vote: Vote
    normalize: bool
    math_dtype: MathDtype


@partial(jax.jit, static_argnames="static")
def _sparsified(
    models: Array, base: Array, thinned: tuple[Array, Plan], model: Array, *, static: _Static
) -> tuple[Array, Array]:
    """The sparsified task vector of models[model], and the share of positions kept."""
    rounded = rounder(static.math_dtype)
    density, plan = jax.tree.map(lambda of_models: of_models[model], thinned)
    (delta,), _ = differences(models[model][None], base, rounded)
    kept = keep(static.sparsifier, jnp.abs(delta), plan)
    return rescaled(delta, kept, static.rescale, density, rounded), count(kept) / kept.size


@partial(jax.jit, static_argnames="static")
def _mixture(
    models: Array, base: Array, sparse: list[tuple[Array, Array]], weight: Array, factor: Array, static: _Static
) -> Merged:
    """The base and the factor times the mix of the sparse task vectors, or of the whole ones where there are none."""
    rounded = rounder(static.math_dtype)
    deltas, kept = zip(*sparse) if sparse else (differences(models, base, rounded)[0], [1.0] * len(models))
    moved, report = _mixed(deltas, rounded(weight), static)
    merged = rounded(as_math(base, rounded) + rounded(factor * moved).reshape(base.shape))
    return Merged(merged, {"kept": jnp.stack(kept)} | report)


def _mixed(deltas: Sequence[Array], weight: Array, static: _Static) -> tuple[Array, dict[str, Array]]:
    """The weighted sum or mean float32[...] of task vectors, after the vote if there is one; the report."""
    rounded = rounder(static.math_dtype)
    weighted = [rounded(w * d) for w, d in zip(weight, deltas)]
    report: dict[str, Array] = {}
    if static.vote == "none":
        shares = rounded(total(weight))
        shares = jnp.where(jnp.abs(shares) < LEAST_WEIGHT, 1.0, shares)
    else:
        votes = weighted if static.vote == "weighted" else deltas
        stays = winners(votes, rounded)
        report = {"erased": erased(votes, stays)}
        weighted = [jnp.where(s, d, 0.0) for s, d in zip(stays, weighted)]
        shares = rounded(total([jnp.where(s, w, 0.0) for s, w in zip(stays, weight)]))
        shares = jnp.where(shares == 0, 1.0, shares)
    moved = rounded(total(weighted))
    return (rounded(divide(moved, shares)) if static.normalize else moved), report


def _parameters(
    *own: Parameter, normalize: bool = False, rescale: Rescale = "none", vote: bool
) -> tuple[Parameter, ...]:
    votes = (Parameter("ties_vote", "weighted", choices=("weighted", "unweighted")),) if vote else ()
    return (
        Parameter("weight", per_model=True),
        Parameter("density", 1.0, per_model=True, least=0.0, most=1.0),
        *own,
        Parameter("normalize", normalize),
        Parameter("rescale", rescale, choices=("none", "l1", "inverse_density")),
        Parameter("lambda", 1.0),
        *votes,
        Parameter("int8_mask", False),
    )


_EPSILON = Parameter("epsilon", 0.15, per_model=True, least=0.0, most=1.0)
_GAMMA = Parameter("gamma", 0.01, per_model=True, least=0.0, most=1.0)
_COMPAT = Parameter("breadcrumbs_compat", False)
METHODS = (
    Method("task_arithmetic", task_arithmetic, _parameters(vote=False)),
    Method("ties", ties, _parameters(normalize=True, vote=True)),
    Method("dare_linear", dare_linear, _parameters(rescale="l1", vote=False), random=True),
    Method("dare_ties", dare_ties, _parameters(rescale="l1", vote=True), random=True),
    Method("della", della, _parameters(_EPSILON, normalize=True, rescale="l1", vote=True), random=True),
    Method("della_linear", della_linear, _parameters(_EPSILON, rescale="l1", vote=False), random=True),
    Method("breadcrumbs", breadcrumbs, _parameters(_GAMMA, _COMPAT, vote=False)),
    Method("breadcrumbs_ties", breadcrumbs_ties, _parameters(_GAMMA, _COMPAT, vote=True)),
)
