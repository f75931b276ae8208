"""Task-vector methods against the official merges (tests/golden/merge.json), and what must hold of any of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import InputError
from fusion_jax.merge.methods import METHODS, task_vectors
from fusion_jax.merge.methods.select_calculate_erase import sce
from fusion_jax.merge.methods.sparsify import keep, magprune_plan, outliers_plan, rank_weighted, tensor_keys
from tests.merge import golden
from tests.programs import finished
from tests.small import virtual_devices

FAMILY = list(task_vectors.METHODS)
CASES = [
    *golden.cases("task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "sce"),
    *golden.cases("breadcrumbs", "breadcrumbs_ties"),
    *golden.cases("dare_linear", "ties", "sce", impl="fuseai"),
]
OTHER_SCE = [c["id"] for c in CASES if c["method"] == "sce"][1:]  # compiles for seconds
DELLA = golden.cases("della", "della_linear")
VARIANTS = ["fuseai", "paper", "mergekit"]
DRAWS = 10_000


def arguments(case: dict[str, Any], tensor: str) -> dict[str, Any]:
    """What the case's recipe says to our function, with the official code's random masks."""
    given = golden.arguments(case)
    fork = case["impl"] == "fuseai"
    if case["method"] == "sce":
        given["sce_variant"] = case["impl"]
    if case["method"] == "dare_linear" and fork and given["rescale"]:
        given["rescale"] = "inverse_density"
    if case["method"].startswith("breadcrumbs"):
        given["breadcrumbs_compat"] = True
    if "masks" in case:
        shape = golden.inputs(case, tensor)[0].shape
        bits = golden.arrays()[f"out/{case['id']}/mask/{tensor}"]
        given["masks"] = np.unpackbits(bits, axis=-1, count=int(np.prod(shape[1:]))).astype(bool).reshape(shape)
    return {METHODS[case["method"]].argument(name): value for name, value in given.items()}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c["id"] in OTHER_SCE else c for c in CASES],
    ids=lambda c: c["id"],
)
def test_golden(case):
    """Also where the file calls a tensor fragile: ties go by lowest index here, as they do there."""
    assert not case.get("errors")
    for name in golden.TENSORS:
        models, base = golden.inputs(case, name)
        got = METHODS[case["method"]].function(models, base, **arguments(case, name)).tensor
        if name in case.get("unexpected_shapes", {}):  # an empty selection: there the variants are one
            fuseai = {**arguments(case, name), "sce_variant": "fuseai"}
            np.testing.assert_array_equal(got, sce(models, base, **fuseai).tensor)
        else:
            golden.assert_equal(got, case, name, tolerance=1e-6)


@jax.jit
def kept_share(magnitude: jax.Array, low: jax.Array, width: jax.Array) -> jax.Array:
    """The share of evenly spaced draws with which each element stays."""
    draws = (jnp.arange(DRAWS) + 0.5) / DRAWS
    return jax.lax.map(lambda u: rank_weighted(jnp.full(magnitude.shape, u), magnitude, low, width), draws).mean(0)


@pytest.mark.parametrize("case", DELLA, ids=lambda c: c["id"])
def test_della_keeps_with_the_official_probabilities(case):
    """To the width of one draw for each other element of a row."""
    given = case["tensor_params"][0]
    plan = magprune_plan([given["density"]], [given["epsilon"]])
    for name in golden.TENSORS:
        models, base = golden.inputs(case, name)
        for delta, want in zip(models - base, golden.arrays()[f"out/{case['id']}/prob/{name}"], strict=True):
            found = kept_share(np.abs(np.atleast_2d(delta)), plan["low"][0], plan["width"][0])
            np.testing.assert_allclose(found.reshape(want.shape), want, atol=delta.shape[-1] / DRAWS, rtol=0)


def drawn(shape: tuple[int, ...] = (3, 40, 30), scale: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    base = rng.normal(size=shape[1:]).astype(np.float32)
    return base + scale * rng.normal(size=shape).astype(np.float32), base


def keys(count: int) -> jax.Array:
    return tensor_keys(3, "some.weight", range(count))


def random_arguments(name: str, count: int) -> dict[str, Any]:
    return {"keys": keys(count)} if METHODS[name].random else {}


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("math_dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_density_1_is_no_sparsifier(name, math_dtype):
    models, base = drawn()
    given = {"weight": [0.5, 0.2, 0.9], "math_dtype": math_dtype, "normalize": True, **random_arguments(name, 3)}
    function = METHODS[name].function
    votes = any(p.name == "ties_vote" for p in METHODS[name].parameters)
    plain = (task_vectors.ties if votes else task_vectors.task_arithmetic)(
        models, base, weight=given["weight"], normalize=True, math_dtype=math_dtype
    )
    np.testing.assert_array_equal(function(models, base, density=1.0, **given).tensor, plain.tensor)
    if name == "task_arithmetic":
        return
    mixed = function(models, base, density=[1.0, 0.5, 1.0], **given)  # the sparsifier runs, and leaves two alone
    np.testing.assert_allclose(mixed.report["kept"], [1, 0.5, 1], atol=0.06)
    assert float(mixed.report["kept"][0]) == float(mixed.report["kept"][2]) == 1


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", [*FAMILY, *VARIANTS])
@pytest.mark.parametrize("shape", [(1, 12, 9), (1,)])
def test_one_model_of_weight_1_is_that_model(name, shape):
    models, base = drawn(shape)
    if name in VARIANTS:
        out = [sce(models, base, sce_variant=name, select_topk=t).tensor for t in (0.5, 1.0)]
    else:
        out = [METHODS[name].function(models, base, weight=1.0, **random_arguments(name, 1)).tensor]
    for tensor in out:
        assert tensor.shape == base.shape
        np.testing.assert_allclose(tensor, models[0], atol=3e-7)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILY, *VARIANTS])
def test_the_order_of_models_changes_rounding_only(name):
    models, base = drawn((4, 40, 30))
    order = np.asarray([2, 0, 3, 1])
    if name in VARIANTS:
        one, other = (sce(m, base, sce_variant=name, select_topk=0.3).tensor for m in (models, models[order]))
    else:
        weight, density = np.asarray([0.3, 0.6, 0.2, 0.9]), np.asarray([0.5, 0.7, 0.4, 0.6])
        given = [{"weight": weight[o], "density": density[o]} for o in (range(4), order)]
        if METHODS[name].random:
            given = [g | {"keys": keys(4)[np.asarray(o)]} for g, o in zip(given, (range(4), order))]
        one = METHODS[name].function(models, base, **given[0]).tensor
        other = METHODS[name].function(models[order], base, **given[1]).tensor
    np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


def test_sce_variants_meet_where_all_is_selected():
    models, base = drawn()
    fuseai, mergekit = (sce(models, base, sce_variant=v) for v in ("fuseai", "mergekit"))
    np.testing.assert_allclose(fuseai.tensor, mergekit.tensor, atol=1e-6, rtol=0)
    squares = np.square(models - base).mean((1, 2))
    np.testing.assert_allclose(fuseai.report["coefficients"], squares / squares.sum(), rtol=1e-5)


def test_paper_sce_moves_selected_positions_by_shares_of_their_task_vectors():
    models, base = drawn((2, 40, 30))
    models[1] = base - 2 * (models[0] - base)  # opposite and larger: it wins every vote
    out = sce(models, base, sce_variant="paper", select_topk=0.25)
    moved = np.asarray(out.tensor) != base
    assert moved.sum() == int(out.report["selected"] * base.size) == 300
    np.testing.assert_allclose(out.report["coefficients"], [0.2, 0.8], atol=1e-5)
    np.testing.assert_allclose((out.tensor - base)[moved], 0.8 * (models[1] - base)[moved], atol=1e-6)
    np.testing.assert_array_equal(np.abs(models[0] - base)[moved].min() >= np.abs(models[0] - base)[~moved].max(), True)


def test_unweighted_votes_hear_every_model_alike():
    base = np.zeros((1, 2), np.float32)
    models = np.asarray([[[2.0, 1.0]], [[-1.0, -2.0]], [[-2.0, -1.5]]], np.float32)
    given: dict[str, Any] = {"weight": [5.0, 1.0, 1.0], "normalize": False}
    np.testing.assert_array_equal(task_vectors.ties(models, base, **given).tensor, [[10, 5]])
    unweighted = task_vectors.ties(models, base, ties_vote="unweighted", **given)
    np.testing.assert_array_equal(unweighted.tensor, [[-3, -3.5]])
    np.testing.assert_array_equal(unweighted.report["erased"], [1, 0, 0])


@pytest.mark.parametrize("density", [0.0, 0.2, 0.9])
def test_dare_keeps_about_its_density_and_each_tensor_its_own_draw(density):
    models, base = drawn((2, 200, 150))
    models[1] = models[0]
    given: dict[str, Any] = {"weight": [1.0, 0.0], "density": density, "rescale": "inverse_density"}
    out = task_vectors.dare_linear(models, base, keys=keys(2), **given)
    np.testing.assert_allclose(out.report["kept"], density, atol=5 * np.sqrt(density * (1 - density) / base.size))
    again = task_vectors.dare_linear(models, base, keys=keys(2), **given)
    np.testing.assert_array_equal(out.tensor, again.tensor)
    if density:
        moved = np.asarray(out.tensor) != base
        np.testing.assert_allclose((out.tensor - base)[moved], ((models[0] - base) / density)[moved], atol=1e-6)
        assert float(out.report["kept"][0]) != float(out.report["kept"][1])


def test_l1_rescaling_restores_the_sum_of_magnitudes():
    models, base = drawn((1, 60, 50))
    out = task_vectors.dare_linear(models, np.zeros_like(base), weight=1.0, density=0.3, keys=keys(1))
    np.testing.assert_allclose(
        np.abs(out.tensor).sum(dtype=np.float64), np.abs(models).sum(dtype=np.float64), rtol=1e-6
    )


@pytest.mark.parametrize(("gamma", "kept", "compat_kept"), [(0.0, [3, 4, 5, 6, 7, 8, 9], []), (0.2, [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])])  # fmt: skip
def test_breadcrumbs_without_outliers_keep_the_largest_unless_compatible(gamma, kept, compat_kept):
    magnitude = jnp.arange(10.0)
    for compat, want in ((False, kept), (True, compat_kept)):
        plan = outliers_plan(10, [0.7], [gamma], compat=compat)
        mask = keep("magnitude_outliers", magnitude, {name: values[0] for name, values in plan.items()})
        assert np.flatnonzero(mask).tolist() == want


def test_gradients_of_parameters_compile_nothing():
    models, base = drawn((2, 17, 13))
    kernels = (task_vectors._sparsified, task_vectors._mixture)
    before = [kernel._cache_size() for kernel in kernels]
    for weight, density in (([0.1, 0.2], 0.3), ([0.5, 0.4], [0.4, 0.9])):
        task_vectors.ties(models, base, weight=weight, density=density, lambda_=sum(weight))
    assert [kernel._cache_size() for kernel in kernels] == [size + 1 for size in before]


@pytest.mark.parametrize(
    ("name", "given", "field"),
    [
        ("ties", {"density": 1.2}, "density"),
        ("ties", {"density": float("nan")}, "density"),
        ("ties", {"density": [0.5, 0.5]}, "density"),
        ("ties", {"weight": float("inf")}, "weight"),
        ("ties", {"lambda_": float("nan")}, "lambda"),
        ("ties", {"ties_vote": "loud"}, "ties_vote"),
        ("ties", {"rescale": "twice"}, "rescale"),
        ("dare_ties", {"density": 0.5}, "keys"),
        ("della", {"density": 0.1, "keys": keys(3)}, "epsilon"),
        ("breadcrumbs", {"gamma": -0.1}, "gamma"),
        ("sce", {"select_topk": 1.5}, "select_topk"),
        ("sce", {"sce_variant": "other"}, "sce_variant"),
    ],
)
def test_bad_parameters_are_named(name, given, field):
    models, base = drawn((3, 4, 5))
    weight = {} if name == "sce" else {"weight": 1.0}
    with pytest.raises(InputError) as caught:
        METHODS[name].function(models, base, **weight | given)
    assert caught.value.field == field and caught.value.cure


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.slow
def test_sharded_tensors_merge_as_whole_ones():
    script = Path(__file__).with_name("sharded_methods.py")
    finished([str(script)], os.environ | virtual_devices(4))
