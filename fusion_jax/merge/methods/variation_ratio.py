"""VaRM: models weighted by how far fine-tuning moved them (merge specification, section 3; FuseChat, arXiv 2402.16107).

A granularity wider than a tensor takes two passes: `statistic` of every tensor, `varm_weights` of them all, then `varm`
of every tensor with its weights. The others take one: `varm` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.methods.arithmetic import MathDtype, as_math, rounder
from fusion_jax.merge.methods.checks import PerModel, check_shapes, count_models, need_base, normalized, per_model
from fusion_jax.merge.methods.method import Merged, Method, Parameter, by_name
from fusion_jax.merge.methods.sums import count, exact_sums, total
from fusion_jax.merge.names import layer_path, module_of

Array = jax.Array
MergeType = Literal["square", "abs", "default"]
Mode = Literal["intended", "published"]
Granularity = Literal["avg_param", "avg_module", "avg_layer", "avg_model", "avg_weight", "avg_item"]
WIDE: tuple[Granularity, ...] = ("avg_module", "avg_layer", "avg_model", "avg_weight")
LEAST_TOTAL = 1e-13  # avg_item: less change than this in all models together is none
_KINDS: dict[MergeType, Callable[[Array], Array]] = {"square": jnp.square, "abs": jnp.abs, "default": lambda x: x}


class Statistic(NamedTuple):
    """How far K models moved from the base, in one tensor or several.

    total: float[K], the sum of squares, absolute values or (signed) differences. changed: integers [K], how many
    elements differ. size: elements.
    """

    total: np.ndarray | Array
    changed: np.ndarray | Array
    size: int

    @property
    def mean(self) -> np.ndarray:
        return np.asarray(self.total, np.float64) / self.size


def statistic(models: Array, base: Array, merge_type: MergeType = "square") -> Statistic:
    """The statistic of one tensor: of the stored values, before any rounding to the math dtype.

    Its sums are the same on any devices: the last bit of a coefficient would turn roundings to bfloat16.

    Args:
      models: float[K,...]; base: float[...].

    Raises InputError where the shapes differ.
    """
    check_shapes(models, base)
    sums, changed = _statistic(models, base, merge_type=merge_type)
    return Statistic(sums, changed, base.size)


@partial(jax.jit, static_argnames="merge_type")
def _statistic(models: Array, base: Array, *, merge_type: MergeType) -> tuple[Array, Array]:
    moved = [jnp.atleast_1d(model.astype(jnp.float32) - base.astype(jnp.float32)) for model in models]
    sums = jnp.stack(exact_sums([_KINDS[merge_type](x) for x in moved]))
    return sums, jnp.stack([count(x != 0) for x in moved])


def whole_model(statistics: Mapping[str, Statistic]) -> Statistic:
    """The statistic over all elements of all tensors."""
    found = list(statistics.values())
    totals = np.sum([np.asarray(s.total, np.float64) for s in found], 0)
    changed = np.sum([np.asarray(s.changed, np.int64) for s in found], 0)
    return Statistic(totals, changed, sum(s.size for s in found))


def summed_means(statistics: Mapping[str, Statistic], group: Callable[[str], str | None]) -> dict[str, np.ndarray]:
    """Group -> float64[K], the sum of its tensors' means, big and small alike; group None is left out."""
    sums: dict[str, np.ndarray] = {}
    for name, found in statistics.items():
        if (key := group(name)) is not None:
            sums[key] = sums[key] + found.mean if key in sums else found.mean
    return sums


def varm_weights(
    statistics: Mapping[str, Statistic],
    granularity: Granularity = "avg_param",
    *,
    varm_mode: Mode = "intended",
    softmax: bool = False,
    temp: float = 1.0,
) -> dict[str, np.ndarray]:
    """Tensor name -> float64[K], the models' weights, from the statistics of all tensors of a model.

    Weights are proportional to the |value| of the granularity, or softmax(value / temp). Values: the tensor's mean
    ("avg_param"), the sum of the means of its module or layer (equal weights outside layers), the mean over the whole
    model ("avg_model"), or |that| times the percentage of changed elements ("avg_weight"). All models weigh the same
    where any value is 0, and under varm_mode "published", which is what the published command comes to.

    Raises InputError for "avg_item", whose weights are no numbers per tensor, for a temp that is not above 0, and for a
    layer or a module where no tensor's name tells its layer.
    """
    known = get_args(Granularity)[:-1]
    if granularity not in known:
        problem = f"'{granularity}' has no weights for whole tensors"
        raise InputError(problem, field="granularity", cure=f"Take one of {', '.join(known)}")
    _check_temp(temp)
    check_layers(granularity, statistics)
    values = _values(statistics, granularity)
    return {name: _weights(values(name), varm_mode, softmax, temp) for name in statistics}


def check_layers(granularity: str, names: Iterable[str], *, called: str = "tensor's name") -> None:
    """Refuse weights by layer or module where no name tells a layer: all models would weigh the same, silently.

    Raises InputError.
    """
    if granularity in ("avg_layer", "avg_module") and not any(map(layer_path, names)):
        cure = "Name layers as `layers.N.` (h.N, blocks.N, layer.N, block.N), or take avg_param or avg_model"
        raise InputError(f"no {called} names a layer for {granularity}", field="granularity", cure=cure)


def _check_temp(temp: float) -> None:
    if not temp > 0:
        raise InputError(f"{temp} is not above 0", field="temp", cure="Give a positive temperature")


def _values(statistics: Mapping[str, Statistic], granularity: Granularity) -> Callable[[str], np.ndarray]:
    """Tensor name -> float64[K], what its models' weights come from."""
    if granularity == "avg_param":
        return lambda name: statistics[name].mean
    if granularity == "avg_module":
        modules = summed_means(statistics, module_of)
        return lambda name: modules[module_of(name)]
    if granularity == "avg_layer":
        layers = summed_means(statistics, layer_path)
        none = np.zeros(len(next(iter(statistics.values())).total))
        return lambda name: layers.get(layer_path(name) or "", none)
    model = whole_model(statistics)
    percentage = 100.0 * np.asarray(model.changed, np.float64) / model.size
    value = model.mean if granularity == "avg_model" else percentage * np.abs(model.mean)
    return lambda name: value


def _weights(values: np.ndarray, varm_mode: Mode, softmax: bool, temp: float) -> np.ndarray:
    if varm_mode == "published" or (values == 0).any():
        return np.full(len(values), 1.0 / len(values))
    if softmax:
        shares = np.exp((values - values.max()) / temp)
    else:
        shares = np.abs(values)
    return shares / shares.sum()


def varm(
    models: Array,
    base: Array | None,
    *,
    granularity: Granularity = "avg_param",
    merge_type: MergeType = "square",
    varm_mode: Mode = "intended",
    softmax: bool = False,
    temp: float = 1.0,
    weight: PerModel | None = None,
    math_dtype: MathDtype = "float32",
) -> Merged:
    """VaRM: sum_j w_j models[j] with w_j = mean((models[j] - base)^2) / sum_i mean((models[i] - base)^2).

    Products are added and rounded model by model.

    Args:
      models: float[K,...]; base: float[...], what all models were fine-tuned from.
      granularity: what weights are shared by. "avg_item" weighs every element of the models by its own change.
      weight: K weights, for a granularity wider than a tensor: see `varm_weights`.

    Returns float32[...] and "coefficients" float32[K], for "avg_item" their mean over elements.
    Raises InputError without a base of their shape, and for a wide granularity without weights.
    Source: FuseChat v1, arXiv 2402.16107; the published code.

    >>> merged = varm(jnp.array([[1.0, 1.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0]]), jnp.zeros(4))
    >>> merged.tensor.tolist(), merged.report["coefficients"].tolist()
    ([2.5, 0.25, 0.25, 0.0], [0.25, 0.75])
    """
    size, base = count_models(models, "varm"), need_base(models, base, "varm")
    _check_temp(temp)
    if granularity == "avg_item" and merge_type == "default":
        cure = "Take square or abs"
        raise InputError("signed changes are no weights of elements", field="merge_type", cure=cure)
    if weight is None and granularity == "avg_item":
        return _avg_item(models, base, merge_type=merge_type, math_dtype=math_dtype)
    if weight is None and granularity in WIDE and varm_mode == "intended":
        cure = "Give what varm_weights makes of the statistics of all tensors"
        raise InputError(f"granularity '{granularity}' needs weights", field="weight", cure=cure)
    if weight is None:
        found = {"": statistic(models, base, merge_type)}
        own = varm_weights(found, varm_mode=varm_mode, softmax=softmax, temp=temp)[""]
        return _weighted(models, own.astype(np.float32), math_dtype=math_dtype)  # NaN stays what it is
    return _weighted(models, per_model(weight, size, "weight"), math_dtype=math_dtype)


def varm_linear(
    models: Array, base: Array | None = None, *, weight: PerModel, math_dtype: MathDtype = "float32"
) -> Merged:
    """`varm` with given weights, divided by their sum.

    Args:
      models: float[K,...]; base: not used.

    Returns float32[...] and "coefficients" float32[K].
    Raises InputError where weights are not finite or sum to 0.
    Source: the published code of FuseChat v1.

    >>> varm_linear(jnp.array([[1.0, 2.0], [3.0, 6.0]]), weight=[1, 3]).tensor.tolist()
    [2.5, 5.0]
    """
    weights = np.array(per_model(weight, count_models(models, "varm_linear"), "weight"))
    return _weighted(models, normalized(weights), math_dtype=math_dtype)


@partial(jax.jit, static_argnames="math_dtype")
def _weighted(models: Array, weight: Array, *, math_dtype: MathDtype) -> Merged:
    rounded = rounder(math_dtype)
    merged = jnp.zeros(models.shape[1:], jnp.float32)
    for share, model in zip(weight, models, strict=True):
        merged = rounded(merged + rounded(share * as_math(model, rounded)))
    return Merged(merged, {"coefficients": weight})


@partial(jax.jit, static_argnames=("merge_type", "math_dtype"))
def _avg_item(models: Array, base: Array, *, merge_type: MergeType, math_dtype: MathDtype) -> Merged:
    """Changes are of the rounded models against the stored base; all is float32 and rounded once.

    The official code raises a total below LEAST_TOTAL to it, which turns weights an update did not touch to 0; here
    such elements are the plain average.
    """
    rounded = rounder(math_dtype)
    models = as_math(models, rounded)
    changes = _KINDS[merge_type](models - base.astype(jnp.float32))
    sums = total(changes)
    still = sums < LEAST_TOTAL
    shares = jnp.where(still, 1.0 / len(models), changes / jnp.where(still, 1.0, sums))
    return Merged(rounded(total(shares * models)), {"coefficients": jnp.stack([share.mean() for share in shares])})


METHODS = by_name(
    Method(
        "varm",
        varm,
        (
            Parameter("granularity", "avg_param", choices=get_args(Granularity)),
            Parameter("merge_type", "square", choices=get_args(MergeType)),
            Parameter("varm_mode", "intended", choices=get_args(Mode)),
            Parameter("softmax", False),
            Parameter("temp", 1.0, least=0.0),
        ),
    ),
    Method("varm_linear", varm_linear, (Parameter("weight", per_model=True),), base="none"),
)
