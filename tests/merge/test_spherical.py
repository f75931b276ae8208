"""Spherical methods against mergekit's results, and what must hold of any input."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.merge.methods import spherical
from fusion_jax.merge.methods.arithmetic import MathDtype, rounder
from tests.merge.golden import TENSORS, arguments, assert_equal, cases, compared, inputs

METHODS = spherical.METHODS
# The file states 5e-6 for multislerp, whose official code adds the rounding noise of a vector that is 0.
TOLERANCE = {name: 5e-6 if name == "multislerp" else 1e-6 for name in METHODS}


def stack(count: int, shape: tuple[int, ...] = (6, 5), scale: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Models [K,...] around a base."""
    random = np.random.default_rng(count)
    base = random.standard_normal(shape, np.float32)
    return base + scale * random.standard_normal((count, *shape), np.float32), base


def merged(case: dict[str, Any], name: str) -> Any:
    models, base = inputs(case, name)
    return METHODS[case["method"]].function(models, base if case["base"] else None, **arguments(case)).tensor


@pytest.mark.parametrize("case", cases(*METHODS), ids=lambda case: f"{case['id']}-{case['method']}")
def test_golden(case: dict[str, Any]) -> None:
    for name in compared(case):
        assert_equal(merged(case, name), case, name, tolerance=TOLERANCE[case["method"]])


@pytest.mark.parametrize("case", [c for c in cases("multislerp") if "errors" in c], ids=lambda case: case["id"])
def test_multislerp_of_tensors_that_no_model_changed_is_the_base(case: dict[str, Any]) -> None:
    """Where the official code stops."""
    assert list(case["errors"]) == ["model.norm.weight"]
    _, base = inputs(case, "model.norm.weight")
    np.testing.assert_array_equal(merged(case, "model.norm.weight"), base)


@pytest.mark.parametrize("case", [c for c in cases("nuslerp") if "fragile" in c], ids=lambda case: case["id"])
def test_nuslerp_of_opposite_changes_is_the_line_between_them(case: dict[str, Any]) -> None:
    """Where the official code divides by the rounding error of sin(pi)."""
    assert list(case["fragile"]) == ["lm_head.weight"] and "lm_head.weight" in TENSORS
    models, base = inputs(case, "lm_head.weight")
    first, second = arguments(case)["weight"]
    t = 0.5 if first + second == 0 else second / (first + second)
    want = base + (1 - t) * (models[0] - base) + t * (models[1] - base)
    np.testing.assert_allclose(merged(case, "lm_head.weight"), want, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("math_dtype", ["float32", "bfloat16", "float16"])
def test_slerp_ends(math_dtype: MathDtype) -> None:
    (other,), base = stack(1)
    for t, end in ((0.0, base), (1.0, other)):
        got = spherical.slerp(other[None], base, t=t, math_dtype=math_dtype).tensor
        np.testing.assert_array_equal(got, rounder(math_dtype)(end))


@pytest.mark.parametrize(
    "flags", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}]
)
@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp_ends(flags: dict[str, bool], with_base: bool) -> None:
    models, base = stack(2)
    for end, weight in enumerate(([1, 0], [0, 1])):
        got = spherical.nuslerp(models, base if with_base else None, weight=weight, **flags).tensor
        np.testing.assert_allclose(got, models[end], rtol=0, atol=1e-6)


def test_the_angle_is_reported() -> None:
    a, b = np.float32([[2.0, 0.0], [1.0, np.sqrt(3.0)]])
    merged = spherical.slerp(b[None], a, t=0.5)
    assert merged.report["angle"] == pytest.approx(np.pi / 3)
    np.testing.assert_allclose(merged.tensor, 2 * np.array([np.cos(np.pi / 6), np.sin(np.pi / 6)]), rtol=1e-6)
    assert spherical.nuslerp(np.stack([a, b]), weight=[1, 1]).report["angle"] == pytest.approx(np.pi / 3)


@pytest.mark.parametrize("math_dtype", ["float32", "bfloat16", "float16"])
def test_identical_models_give_that_model(math_dtype: MathDtype) -> None:
    _, base = stack(1)
    want = rounder(math_dtype)(base)
    three, two = np.stack([base] * 3), np.stack([base] * 2)
    results = {
        "slerp": spherical.slerp(base[None], base, t=0.3, math_dtype=math_dtype),
        "nuslerp": spherical.nuslerp(two, weight=[0.3, 0.7], math_dtype=math_dtype),
        "nuslerp with base": spherical.nuslerp(two, base, weight=[0.3, 0.7], math_dtype=math_dtype),
        "multislerp": spherical.multislerp(three, weight=[1, 2, 3], math_dtype=math_dtype),
        "multislerp with base": spherical.multislerp(three, base, weight=[1, 2, 3], math_dtype=math_dtype),
        "karcher": spherical.karcher(three, math_dtype=math_dtype),
        "karcher with base": spherical.karcher(three, base, math_dtype=math_dtype),
    }
    ulp = {"float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}[math_dtype]
    for name, result in results.items():
        np.testing.assert_allclose(result.tensor, want, rtol=2 * ulp, atol=0, err_msg=name)


def test_the_order_of_models_changes_only_rounding() -> None:
    models, base = stack(4)
    order, weight = [3, 1, 0, 2], np.array([0.1, 0.4, 0.3, 0.5])
    for theta in (None, base):
        straight = spherical.multislerp(models, theta, weight=weight).tensor
        turned = spherical.multislerp(models[order], theta, weight=weight[order]).tensor
        np.testing.assert_allclose(turned, straight, rtol=0, atol=2e-6)
        straight, turned = spherical.karcher(models, theta).tensor, spherical.karcher(models[order], theta).tensor
        np.testing.assert_allclose(turned, straight, rtol=0, atol=2e-6)
    straight = spherical.nuslerp(models[:2], base, weight=[0.2, 0.6]).tensor
    turned = spherical.nuslerp(models[1::-1], base, weight=[0.6, 0.2]).tensor
    np.testing.assert_allclose(turned, straight, rtol=0, atol=2e-6)


def test_one_model_is_returned() -> None:
    models, base = stack(1)
    np.testing.assert_array_equal(spherical.slerp(models, None, t=0.4).tensor, models[0])
    np.testing.assert_array_equal(spherical.multislerp(models, base, weight=1.0).tensor, models[0])
    np.testing.assert_allclose(spherical.karcher(models).tensor, models[0], rtol=0, atol=1e-6)


def full_karcher(points: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """Section 4.5 on whole vectors, float64."""
    x = points.reshape(len(points), -1).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    units = x[lengths > tol] / lengths[lengths > tol, None]
    u = units.mean(0)
    u = units[0] if np.linalg.norm(u) < tol else u / np.linalg.norm(u)
    for _ in range(max_iter):
        d = np.clip(units @ u, -1, 1)
        angle = np.arccos(d)
        far = angle >= tol
        pull = np.where(far, angle / np.where(far, np.sin(angle), 1), 0) / len(units)
        tangent = (pull[:, None] * (units - d[:, None] * u)).sum(0)
        size = np.linalg.norm(tangent)
        if size < tol:
            break
        u = np.cos(size) * u + np.sin(size) * tangent / size
        u /= np.linalg.norm(u)
    return (lengths.mean() * u).reshape(points.shape[1:])


@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("max_iter", [1, 10])
def test_karcher_on_inner_products_is_karcher_on_vectors(scale: float, max_iter: int) -> None:
    """Nearly parallel models to nearly orthogonal ones."""
    models, base = stack(4, (40, 30), scale)
    want = full_karcher(np.concatenate([models, base[None]]), max_iter, 1e-5)
    np.testing.assert_allclose(spherical.karcher(models, base, max_iter=max_iter).tensor, want, rtol=0, atol=2e-6)


def test_karcher_keeps_a_base_of_more_digits_than_the_models() -> None:
    base = np.full((2, 3), 1.001, np.float32)
    got = spherical.karcher(jnp.asarray(base[None], "bfloat16"), base).tensor
    np.testing.assert_allclose(got, np.full((2, 3), (1.0 + 1.001) / 2), rtol=0, atol=1e-6)


def test_karcher_of_zeros_and_of_opposites() -> None:
    """No direction at all; a zero model counts for the length only; a mean of no direction starts from the first."""
    zero, ones = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(spherical.karcher(np.stack([zero, zero])).tensor, zero)
    np.testing.assert_allclose(spherical.karcher(np.stack([zero, ones])).tensor, ones / 2, rtol=0, atol=1e-6)
    first = spherical.karcher(np.stack([zero, ones, -ones]), max_iter=0).tensor
    np.testing.assert_allclose(first, 2 * ones / 3, rtol=0, atol=1e-6)


def test_other_parameters_do_not_compile_again() -> None:
    models, base = stack(2, (4, 3))
    calls = (
        (spherical._slerp, lambda t: spherical.slerp(models[:1], base, t=t)),
        (spherical._nuslerp, lambda t: spherical.nuslerp(models, base, weight=[t, 1])),
        (spherical._multislerp, lambda t: spherical.multislerp(models, base, weight=[t, 1])),
        (spherical._karcher, lambda t: spherical.karcher(models, base, max_iter=int(10 * t), tol=t)),
    )
    for kernel, call in calls:
        call(0.1)
        compiled = kernel._cache_size()
        call(0.7)
        assert kernel._cache_size() == compiled


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m, b: spherical.slerp(m, b, t=0.5), "models"),
        (lambda m, b: spherical.slerp(m[:1], b, t=float("nan")), "t"),
        (lambda m, b: spherical.nuslerp(m, b, weight=[1, 1]), "models"),
        (lambda m, b: spherical.nuslerp(m[:2], b, weight=[1, 1, 1]), "weight"),
        (lambda m, b: spherical.multislerp(m, b, weight=[1, -2, 1]), "weight"),
        (lambda m, b: spherical.multislerp(m, b, weight=1, eps=float("inf")), "eps"),
        (lambda m, b: spherical.karcher(m, b, tol=float("nan")), "tol"),
        (lambda m, b: spherical.karcher(m, b[0]), "base_model"),
        (lambda m, b: spherical.slerp(m[:1], b[0], t=0.5), "base_model"),
        (lambda m, b: spherical.nuslerp(m[:2], b[0], weight=1), "base_model"),
        (lambda m, b: spherical.multislerp(m, b[0], weight=1), "base_model"),
    ],
)
def test_bad_input_is_named(call: Any, field: str) -> None:
    with pytest.raises(InputError, match=f"field '{field}'"):
        call(*stack(3))
