"""Generalised task arithmetic: one algorithm, eight methods (merge specification, section 5).

`merge_task_vectors` is the algorithm; `TABLE` says how the methods differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.methods.arithmetic import MathDtype, as_math, divide, rounder, split_task_vectors
from fusion_jax.merge.methods.checks import PerModel, count_models, doubles, need_base, number, per_model
from fusion_jax.merge.methods.method import Merged, Method, Parameter, by_name
from fusion_jax.merge.methods.sparsify import RANDOM, Plan, Rescale, Sparsifier, keep, rescale_rule, rescaled, thinning
from fusion_jax.merge.methods.sums import count, total
from fusion_jax.merge.methods.votes import erased, winners

Array = jax.Array
Vote = Literal["none", "weighted", "unweighted"]
LEAST_WEIGHT = 1e-8  # a sum of weights below it does not normalize
FAMILY = "a method of task vectors"


@dataclass(frozen=True)
class Variant:
    """A method of the table.

    votes: whether signs are voted on. normalize, rescale: the defaults of these parameters.
    """

    sparsifier: Sparsifier
    votes: bool
    normalize: bool
    rescale: Rescale
    title: str
    example: str


# What `sparsify` is, and the source.
SPARSIFY: Mapping[Sparsifier, str] = {
    "none": """
    merged = base + lambda sum_j weight_j tau_j; density and rescale are accepted and ignored, as by mergekit.
    Source: Ilharco et al., arXiv 2212.04089.""",
    "magnitude": """
    sparsify keeps the int(density n) largest |tau_j| of a tensor of n entries, of equal ones those of lowest index.
    Source: Yadav et al., arXiv 2306.01708.""",
    "random": """
    sparsify keeps each entry with probability density.
    Source: Yu et al., arXiv 2311.03099.""",
    "magprune": """
    sparsify keeps the entry of rank r among the c of its row, by ascending magnitude, with probability
    density - epsilon + 2 epsilon (r - 1) / (c - 1). Source: Deep et al., arXiv 2406.11617.""",
    "magnitude_outliers": """
    Of the n entries of a tensor sparsify drops the int(gamma n) largest, then keeps the int(density n) next ones.
    breadcrumbs_compat: keep nothing where gamma removes no entry, as mergekit 0.1.4 does.
    Source: Davari and Belilovsky, arXiv 2312.06795.""",
}
TABLE: Mapping[str, Variant] = {
    "task_arithmetic": Variant(
        "none", votes=False, normalize=False, rescale="none",
        title="Task arithmetic: the base plus a weighted sum of task vectors.",
        example="""
        >>> models = jnp.array([[2.0, 0.5], [-1.0, 1.0]])
        >>> task_arithmetic(models, jnp.zeros(2), weight=0.5).tensor.tolist()
        [0.5, 0.75]""",
    ),
    "ties": Variant(
        "magnitude", votes=True, normalize=True, rescale="none",
        title="TIES: each task vector's largest magnitudes, and of those the ones that win the vote on signs.",
        example="""
        >>> models = jnp.array([[2.0, 0.5, -3.0], [-1.0, 1.5, 0.5]])
        >>> ties(models, jnp.zeros(3), weight=1.0, density=0.7).tensor.tolist()
        [2.0, 1.5, -3.0]""",
    ),
    "dare_linear": Variant(
        "random", votes=False, normalize=False, rescale="l1",
        title="DARE: entries dropped at random, the rest rescaled; a weighted sum.",
        example="""
        >>> models, masks = jnp.array([[2.0, -2.0]]), jnp.array([[True, False]])
        >>> dare_linear(models, jnp.zeros(2), weight=1.0, density=0.5, masks=masks).tensor.tolist()
        [4.0, 0.0]""",
    ),
    "dare_ties": Variant(
        "random", votes=True, normalize=False, rescale="l1",
        title="DARE with the vote of TIES.",
        example="""
        >>> models, masks = jnp.array([[2.0, -2.0], [-1.0, 0.0]]), jnp.array([[True, True], [True, False]])
        >>> dare_ties(models, jnp.zeros(2), weight=1.0, density=0.5, masks=masks).tensor.tolist()
        [2.0, -2.0]""",
    ),
    "della": Variant(
        "magprune", votes=True, normalize=True, rescale="l1",
        title="DELLA: entries dropped at random, small ones of a row more likely; with the vote of TIES.",
        example="""
        >>> models, masks = jnp.array([[1.0, 3.0], [2.0, -1.0]]), jnp.array([[False, True], [True, True]])
        >>> della(models, jnp.zeros(2), weight=1.0, density=0.5, masks=masks).tensor.tolist()
        [2.0, 4.0]""",
    ),
    "della_linear": Variant(
        "magprune", votes=False, normalize=False, rescale="l1",
        title="DELLA without a vote: a weighted sum.",
        example="""
        >>> models, masks = jnp.array([[1.0, 3.0]]), jnp.array([[False, True]])
        >>> della_linear(models, jnp.zeros(2), weight=0.5, density=0.5, masks=masks).tensor.tolist()
        [0.0, 2.0]""",
    ),
    "breadcrumbs": Variant(
        "magnitude_outliers", votes=False, normalize=False, rescale="none",
        title="Model Breadcrumbs: without the largest magnitudes and the smallest ones; a weighted sum.",
        example="""
        >>> models = jnp.array([[1.0, 2.0, 3.0, 4.0]])
        >>> breadcrumbs(models, jnp.zeros(4), weight=1.0, density=0.5, gamma=0.25).tensor.tolist()
        [0.0, 2.0, 3.0, 0.0]""",
    ),
    "breadcrumbs_ties": Variant(
        "magnitude_outliers", votes=True, normalize=False, rescale="none",
        title="Model Breadcrumbs with the vote of TIES.",
        example="""
        >>> models = jnp.array([[1.0, 2.0, 3.0, 4.0], [4.0, -1.0, 2.0, 3.0]])
        >>> breadcrumbs_ties(models, jnp.zeros(4), weight=1.0, density=0.5, gamma=0.25).tensor.tolist()
        [0.0, 2.0, 5.0, 3.0]""",
    ),
}  # fmt: skip


def merge_task_vectors(
    variant: Variant,
    models: Array,
    base: Array | None,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    gamma: PerModel = 0.01,
    breadcrumbs_compat: bool = False,
    normalize: bool,
    rescale: bool | str,
    lambda_: float = 1.0,
    ties_vote: Vote = "weighted",
    keys: Array | None = None,
    masks: Array | None = None,
    int8_mask: bool = False,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """Merge by a variant of the table.

    With the task vectors tau_j = models[j] - base:

        D_j = weight_j sparsify(tau_j)
        merged = base + lambda sum_j E_j D_j / (sum_j E_j weight_j if normalize else 1)

    E_j is 1; in a method that votes it is 1 where D_j has the sign of sum_j D_j (of which 0 is positive), 0 elsewhere.

    Args, of which a method has those of its signature:
      models: float[K,...]; base: float[...].
      weight, density, epsilon, gamma: a number, or one for each of the K models. density: share of entries that stay.
      normalize: divide by the weights (of the models that won the vote, where there is one).
      rescale: how entries that stay make up for the others: "l1" (or True), "inverse_density", "none" (or False).
      lambda_: factor of the merged task vector.
      ties_vote: whether signs are voted on by weighted task vectors (mergekit), or unweighted ones (the TIES paper).
      keys: key array [K], see `tensor_keys`; masks: bool[K,...], taken instead of drawing.
      int8_mask: accepted from mergekit's recipes; changes no number.

    Returns float32[...] and the report "kept" float32[K] (share of positions that the sparsifier left) and, with a
    vote, "erased" float32[K] (share of nonzero entries that lost it).
    Raises InputError for a parameter out of range, a base of another shape or none, no keys where there are no masks.
    """
    size = count_models(models, FAMILY)
    base = need_base(models, base, FAMILY)
    sparsifier, plan, densities, rule = variant.sparsifier, Plan(), (1.0,) * size, rescale_rule(rescale)
    if sparsifier != "none":
        densities = doubles(density, size, "density", 0.0, 1.0)
        sparsifier, plan = thinning(
            sparsifier,
            base.size,
            densities,
            epsilon=epsilon,
            gamma=gamma,
            compat=breadcrumbs_compat,
            keys=keys,
            masks=masks,
        )
    if all(d >= 1 for d in densities):
        sparsifier, plan, rule = "none", Plan(), "none"
    how = _Static(sparsifier, rule, _vote(ties_vote) if variant.votes else "none", normalize, math_dtype)
    weights, factor = per_model(weight, size, "weight"), number(lambda_, "lambda")
    thinned = np.asarray(densities, np.float32), plan
    # One model at a time: what a selection needs is not held K times, and in a loop of the compiler's a CPU would draw
    # random numbers on one core.
    chosen = [] if sparsifier == "none" else map(np.int32, range(size))
    sparse = [_sparsified(models, base, thinned, model, how=how) for model in chosen]
    return _mixture(models, base, sparse, weights, factor, how=how)


def _vote(ties_vote: Vote) -> Vote:
    if ties_vote not in ("weighted", "unweighted"):
        raise InputError(f"{ties_vote!r} is no vote", field="ties_vote", cure="Give weighted or unweighted")
    return ties_vote


class _Static(NamedTuple):
    """What a compiled kernel is made for."""

    sparsifier: Sparsifier
    rescale: Rescale
    vote: Vote
    normalize: bool
    math_dtype: MathDtype


class _Sparse(NamedTuple):
    """A sparsified task vector float32[...], and the share of positions kept."""

    delta: Array
    kept: Array


@partial(jax.jit, static_argnames="how")
def _sparsified(models: Array, base: Array, thinned: tuple[Array, Plan], model: Array, *, how: _Static) -> _Sparse:
    """Of models[model]; thinned: densities [K] and the plan, of all models."""
    rounded = rounder(how.math_dtype)
    density, plan = jax.tree.map(lambda of_models: of_models[model], thinned)
    (delta,) = split_task_vectors(models[model][None], base, rounded)
    kept = keep(how.sparsifier, jnp.abs(delta), plan)
    return _Sparse(rescaled(delta, kept, how.rescale, density, rounded), count(kept) / kept.size)


@partial(jax.jit, static_argnames="how")
def _mixture(
    models: Array, base: Array, sparse: Sequence[_Sparse], weight: Array, factor: Array, *, how: _Static
) -> Merged:
    """The base and the factor times the mix of the sparse task vectors, or of the whole ones where there are none."""
    rounded = rounder(how.math_dtype)
    deltas = [one.delta for one in sparse] or split_task_vectors(models, base, rounded)
    kept = [one.kept for one in sparse] or [jnp.float32(1.0)] * len(models)
    moved, report = _mixed(deltas, rounded(weight), how)
    merged = rounded(as_math(base, rounded) + rounded(factor * moved).reshape(base.shape))
    return Merged(merged, {"kept": jnp.stack(kept)} | report)


def _mixed(deltas: Sequence[Array], weight: Array, how: _Static) -> tuple[Array, dict[str, Array]]:
    """The weighted sum or mean float32[...] of task vectors, after the vote if there is one; the report."""
    rounded = rounder(how.math_dtype)
    weighted = [rounded(w * d) for w, d in zip(weight, deltas)]
    report: dict[str, Array] = {}
    if how.vote == "none":
        shares = rounded(total(weight))
        shares = jnp.where(jnp.abs(shares) < LEAST_WEIGHT, 1.0, shares)
    else:
        votes = weighted if how.vote == "weighted" else deltas
        stays = winners(votes, rounded)
        report = {"erased": erased(votes, stays)}
        weighted = [jnp.where(s, d, 0.0) for s, d in zip(stays, weighted)]
        shares = rounded(total([jnp.where(s, w, 0.0) for s, w in zip(stays, weight)]))
        shares = jnp.where(shares == 0, 1.0, shares)
    moved = rounded(total(weighted))
    return (rounded(divide(moved, shares)) if how.normalize else moved), report


# What every function of the family says of its arguments.
_ARGUMENTS = inspect.cleandoc(merge_task_vectors.__doc__ or "").partition("\n\n")[2]
_SHARE = partial(Parameter, per_model=True, least=0.0, most=1.0)
_OWN: Mapping[Sparsifier, tuple[Parameter, ...]] = {
    "magprune": (_SHARE("epsilon", 0.15),),
    "magnitude_outliers": (_SHARE("gamma", 0.01), Parameter("breadcrumbs_compat", False)),
}


def _method(name: str) -> Method:
    """A variant as a method: its parameters in a recipe, and its function with their signature and a docstring."""
    variant = TABLE[name]
    random = variant.sparsifier in RANDOM
    votes = (Parameter("ties_vote", "weighted", choices=("weighted", "unweighted")),) if variant.votes else ()
    numbers = (
        Parameter("weight", per_model=True),
        _SHARE("density", 1.0),
        *_OWN.get(variant.sparsifier, ()),
        Parameter("normalize", variant.normalize),
        Parameter("rescale", variant.rescale, choices=("none", "l1", "inverse_density")),
        Parameter("lambda", 1.0),
        *votes,
    )
    arguments = ["lambda_" if one.name == "lambda" else one.name for one in numbers]
    signature = _signature(variant, [*arguments, *(("keys", "masks") if random else ()), "int8_mask", "math_dtype"])

    def function(*given: Any, **named: Any) -> Merged:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        return merge_task_vectors(variant, **bound.arguments)

    function.__name__ = function.__qualname__ = name
    about = (variant.title, SPARSIFY[variant.sparsifier], _ARGUMENTS, variant.example)
    function.__doc__ = "\n\n".join(map(inspect.cleandoc, about))
    function.__signature__ = signature  # type: ignore[attr-defined]
    return Method(name, function, (*numbers, Parameter("int8_mask", False)), random=random)


def _signature(variant: Variant, arguments: Sequence[str]) -> inspect.Signature:
    """Models, base, and these arguments of `merge_task_vectors`, with the variant's defaults."""
    known = inspect.signature(merge_task_vectors).parameters
    defaults = {"normalize": variant.normalize, "rescale": variant.rescale}
    chosen = [known[one].replace(default=defaults.get(one, known[one].default)) for one in arguments]
    return inspect.Signature([known["models"], known["base"], *chosen], return_annotation="Merged")


METHODS = by_name(*map(_method, TABLE))
task_arithmetic = METHODS["task_arithmetic"].function
ties = METHODS["ties"].function
dare_linear = METHODS["dare_linear"].function
dare_ties = METHODS["dare_ties"].function
della = METHODS["della"].function
della_linear = METHODS["della_linear"].function
breadcrumbs = METHODS["breadcrumbs"].function
breadcrumbs_ties = METHODS["breadcrumbs_ties"].function
