"""Sparsifiers of task vectors: which entries stay, and how those are scaled up for the rest (specification, section 6).

A plan is made outside jit, in Python's double precision; it holds one number for each model, so that another density
compiles nothing. `keep` sees one model's task vector; nothing it does depends on the number of devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.methods.arithmetic import Round, divide
from fusion_jax.merge.methods.checks import PerModel, doubles
from fusion_jax.merge.methods.select import largest, smallest
from fusion_jax.merge.methods.sums import exact_sums

Array = jax.Array
Sparsifier = Literal["none", "magnitude", "random", "magprune", "magnitude_outliers", "masks"]
Rescale = Literal["none", "l1", "inverse_density"]
Plan = dict[str, Any]
RANDOM: tuple[Sparsifier, ...] = ("random", "magprune")
NEGLIGIBLE = 1e-7  # an L1 norm below it is not rescaled


def tensor_keys(seed: int, name: str, models: Iterable[int]) -> Array:
    """Key array [K]: the random key of each model's tensor, which depends on nothing else.

    The order of tensors, the other models and the devices do not matter.
    """
    stable = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    of_tensor = jax.random.fold_in(jax.random.key(seed), jnp.uint32(stable))
    return jnp.stack([jax.random.fold_in(of_tensor, model) for model in models])


def rescale_rule(value: bool | str) -> Rescale:
    """A recipe's `rescale`: mergekit's true is "l1" and false is "none"."""
    if isinstance(value, bool):
        return "l1" if value else "none"
    for rule in get_args(Rescale):
        if value == rule:
            return rule
    raise InputError(f"{value!r} is no rule", field="rescale", cure="Give true, false, l1 or inverse_density")


def thinning(
    kind: Sparsifier,
    size: int,
    density: Sequence[float],
    *,
    epsilon: PerModel,
    gamma: PerModel,
    compat: bool,
    keys: Array | None,
    masks: Array | None,
) -> tuple[Sparsifier, Plan]:
    """What `keep` takes for a sparsifier of K models: its kind, and its plan with K numbers each.

    Args:
      size: entries of a task vector.
      density: K shares of entries to keep. The others: see `task_vectors.merge_task_vectors`.

    Raises InputError for a number out of range, and for a random sparsifier without keys or masks.
    """
    count = len(density)
    if kind == "magnitude":
        return kind, {"count": np.asarray([size if d >= 1 else int(d * size) for d in density], np.uint32)}
    if kind == "magnitude_outliers":
        return kind, outliers_plan(size, density, doubles(gamma, count, "gamma", 0.0, 1.0), compat=compat)
    assert kind in RANDOM, kind
    plan: Plan = {"low": np.asarray(density, np.float32)}
    if kind == "magprune":
        plan = magprune_plan(density, doubles(epsilon, count, "epsilon", 0.0, 1.0))
    if masks is not None:
        return "masks", {"mask": masks}
    if keys is None:
        raise InputError("no random keys", field="keys", cure="Give a key for each model, see tensor_keys")
    return kind, plan | {"key": keys}


def outliers_plan(size: int, density: Sequence[float], gamma: Sequence[float], *, compat: bool) -> Plan:
    """For `keep` "magnitude_outliers": the ranks [start, stop) by ascending magnitude to keep.

    compat: keep nothing where gamma removes no entry, as mergekit's slice does.
    """
    ranks = [_outlier_ranks(size, d, g, compat) for d, g in zip(density, gamma, strict=True)]
    start, stop = np.asarray(ranks, np.uint32).T
    return {"start": start, "stop": stop}


def _outlier_ranks(size: int, density: float, gamma: float, compat: bool) -> tuple[int, int]:
    if density >= 1:
        return 0, size
    kept, top = int(density * size), int(gamma * size)
    bottom = size - kept - top
    if bottom < 0:
        top, bottom = top + bottom, 0
    return bottom, bottom if compat and top == 0 else size - top


def magprune_plan(density: Sequence[float], epsilon: Sequence[float]) -> Plan:
    """For `keep` "magprune": the range [low, low + width] of keep probabilities."""
    for d, e in zip(density, epsilon, strict=True):
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            problem = f"density {d:g} with epsilon {e:g} leaves the probabilities (0, 1)"
            cure = "Give an epsilon smaller than the density and than 1 - density"
            raise InputError(problem, field="epsilon", cure=cure)
    spread = [e if 0 < d < 1 else 0.0 for d, e in zip(density, epsilon)]
    low = np.asarray([d - e for d, e in zip(density, spread)], np.float32)
    return {"low": low, "width": np.asarray([2 * e for e in spread], np.float32)}


def keep(kind: Sparsifier, magnitude: Array, plan: Plan) -> Array:
    """bool[...]: the entries of one task vector that stay.

    Args:
      magnitude: float32[...], absolute values of the task vector.
      plan: this model's numbers, of the plan made for `kind`.
    """
    if kind == "magnitude":
        return largest(magnitude, plan["count"])
    if kind == "magnitude_outliers":
        return smallest(magnitude, plan["stop"]) & ~smallest(magnitude, plan["start"])
    if kind == "random":
        return jax.random.uniform(plan["key"], magnitude.shape) < plan["low"]
    if kind == "magprune":
        draws = jax.random.uniform(plan["key"], magnitude.shape)
        return rank_weighted(draws, magnitude, plan["low"], plan["width"])
    assert kind == "masks", kind
    return plan["mask"].reshape(magnitude.shape)


def rank_weighted(draws: Array, magnitude: Array, low: Array | float, width: Array | float) -> Array:
    """DELLA's mask: an entry of rank r of the c in its row stays with probability low + width (r - 1) / (c - 1).

    Rows lie along the last axis; ranks are by ascending magnitude, equal ones by index. Nothing is sorted: (r - 1) /
    (c - 1) is the probability that another entry of the row, picked at random, precedes this one. A draw below `low`
    keeps, one within `width` above it picks the other entry and lets the comparison decide. The one entry of a row
    of length 1 stays with the middle probability.

    Args:
      draws, magnitude: float32[...]; draws are uniform in [0, 1).
    """
    length = magnitude.shape[-1]
    if length == 1:
        return draws < low + width / 2
    own = jax.lax.broadcasted_iota(jnp.int32, magnitude.shape, magnitude.ndim - 1)
    place = (draws - low) / jnp.maximum(width, jnp.finfo(jnp.float32).tiny)
    pick = jnp.clip(place * (length - 1), 0, length - 2).astype(jnp.int32)
    pick += pick >= own
    other = jnp.take_along_axis(magnitude, pick, -1, mode="promise_in_bounds")
    precedes = (other < magnitude) | ((other == magnitude) & (pick < own))
    return (draws < low) | ((draws < low + width) & precedes)


def rescaled(delta: Array, kept: Array, rule: Rescale, density: Array, rounded: Round) -> Array:
    """float32[...]: the task vector with zeros where not kept, the rest scaled up by `rule`.

    "l1" restores the tensor's sum of magnitudes; "inverse_density" divides by the density (DARE's paper).
    """
    sparse = jnp.where(kept, delta, 0.0)
    if rule == "none":
        return sparse
    if rule == "inverse_density":
        return rounded(divide(sparse, density))
    before, after = map(rounded, exact_sums([jnp.abs(delta), jnp.abs(sparse)]))
    usable = (before >= NEGLIGIBLE) & (after >= NEGLIGIBLE)
    return rounded(sparse * jnp.where(usable, rounded(before / after), 1.0))
