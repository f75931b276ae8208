"""Averaging methods against mergekit's results, and what must hold of any input."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fusion_jax.errors import InputError
from fusion_jax.merge.methods import averaging
from fusion_jax.merge.methods.arithmetic import MathDtype, rounder
from fusion_jax.merge.methods.averaging import METHODS
from fusion_jax.merge.methods.method import Method
from tests.merge.golden import arguments, assert_equal, cases, compared, inputs

NAMES = tuple(METHODS)
DTYPES: tuple[MathDtype, ...] = ("float32", "bfloat16", "float16")


def stack(count: int, shape: tuple[int, ...] = (6, 5), scale: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Models [K,...] around a base."""
    random = np.random.default_rng(count)
    base = random.standard_normal(shape, np.float32)
    return base + scale * random.standard_normal((count, *shape), np.float32), base


def given(method: Method, count: int) -> dict[str, Any]:
    """Some value for each parameter without a default."""
    missing = [p for p in method.parameters if p.default is None]
    return {p.name: [1.0 / count] * count if p.per_model else 0.01 for p in missing}


@pytest.mark.parametrize("case", cases(*NAMES), ids=lambda case: f"{case['id']}-{case['method']}-{case['dtype']}")
def test_golden(case: dict[str, Any]) -> None:
    for name in compared(case):
        models, base = inputs(case, name)
        got = METHODS[case["method"]].function(models, base, **arguments(case)).tensor
        assert_equal(got, case, name, tolerance=1e-6)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("math_dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_identical_models_give_that_model(name: str, math_dtype: MathDtype) -> None:
    """To two roundings: what a product, a sum and a quotient leave."""
    method = METHODS[name]
    count = method.most_models or 3
    _, base = stack(count)
    same = np.broadcast_to(base, (count, *base.shape))
    got = method.function(same, base, math_dtype=math_dtype, **given(method, count)).tensor
    ulp = {"float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}[math_dtype]
    np.testing.assert_allclose(got, rounder(math_dtype)(base), rtol=2 * ulp, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].most_models is None])
def test_the_order_of_models_changes_only_rounding(name: str) -> None:
    method = METHODS[name]
    models, base = stack(3)
    weights = {p.name: np.array([0.2, 0.5, 0.4]) for p in method.parameters if p.per_model}
    order = [2, 0, 1]
    straight = method.function(models, base, **weights).tensor
    turned = method.function(models[order], base, **{key: value[order] for key, value in weights.items()}).tensor
    np.testing.assert_allclose(turned, straight, rtol=0, atol=1e-6)


def test_linear_divides_by_the_sum_of_the_weights() -> None:
    """Quotients half way between two float16 numbers, which a product with 1 / 14 rounds the other way."""
    models = np.stack([np.arange(7, 1023, 14), np.zeros(73)]).astype(np.float32) * np.float32(2.0**-24)
    want = (models[0].astype(np.float16) / np.float16(14)).astype(np.float32)
    got = averaging.linear(models, weight=[1, 13], math_dtype="float16").tensor
    np.testing.assert_array_equal(got, want)


def test_one_model_of_weight_1_is_that_model() -> None:
    models, base = stack(1)
    np.testing.assert_array_equal(averaging.linear(models, weight=1.0).tensor, models[0])
    np.testing.assert_array_equal(averaging.passthrough(models).tensor, models[0])


def test_changes_of_different_elements_are_all_kept() -> None:
    """ram and ramplus_tl with nothing shared: each element is its only owner's, not a mean with the base."""
    _, base = stack(2)
    models = np.stack([base, base])
    models[0, :3] += 0.25
    models[1, 4:] -= 0.5
    want = base.copy()
    want[:3], want[4:] = models[0, :3], models[1, 4:]
    np.testing.assert_allclose(averaging.ram(models, base).tensor, want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(averaging.ramplus_tl(models, base).tensor, want, rtol=0, atol=1e-6)


def test_model_stock_of_opposite_changes_is_the_base() -> None:
    base = np.zeros((4, 3), np.float32)
    models = np.stack([np.full_like(base, 0.5), np.full_like(base, -0.5)])
    merged = averaging.model_stock(models, base)
    np.testing.assert_array_equal(merged.tensor, base)
    assert merged.report["t"] == 0


def test_arcee_fusion_takes_quartiles_of_all_elements() -> None:
    """Against a straightforward rendering of the specification on an odd number of elements."""
    models, base = stack(1, (7, 9), 0.5)
    x, b = models[0].astype(np.float64), base.astype(np.float64)
    p, q = (np.exp(y) / np.exp(y).sum(-1, keepdims=True) + 1e-8 for y in (x, b))
    importance = np.abs(x - b) * (p * np.log(p / q)).sum(-1, keepdims=True)
    low, middle, high = (np.sort(importance.ravel())[int(f * 62)] for f in (0.25, 0.5, 0.75))
    kept = importance >= middle + 1.5 * (high - low)
    assert 0 < kept.sum() < 63
    merged = averaging.arcee_fusion(models, base)
    np.testing.assert_allclose(merged.tensor, np.where(kept, x, b), rtol=0, atol=1e-6)
    assert merged.report["kept"] == pytest.approx(kept.mean())


def test_scalars_and_stored_dtypes() -> None:
    """Tensors without axes merge too, and bfloat16 weights merge in float32."""
    scalars = np.float32([1.0, 3.0])
    assert averaging.linear(scalars, weight=[1, 1]).tensor == 2.0
    assert averaging.arcee_fusion(scalars[:1], scalars[1]).tensor.shape == ()
    assert averaging.model_stock(scalars, np.float32(0.0), filter_wise=True).tensor == 2.0
    models = jax.numpy.asarray(stack(2)[0], "bfloat16")
    want = np.asarray(models, np.float32).mean(0)
    np.testing.assert_allclose(averaging.linear(models, weight=[1, 1]).tensor, want, rtol=1e-6)


def test_other_parameters_do_not_compile_again() -> None:
    models, base = stack(3, (4, 3))
    averaging.linear(models, weight=[1, 2, 3])
    averaging.ramplus_tl(models, base)
    compiled = averaging._linear._cache_size(), averaging._ramplus_tl._cache_size()
    averaging.linear(models, weight=0.7)
    averaging.ramplus_tl(models, base, epsilon=0.01, r=0.5, alpha=0.1)
    assert (averaging._linear._cache_size(), averaging._ramplus_tl._cache_size()) == compiled


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda m, b: averaging.linear(m, weight=[1, -1, 0]), "weight"),
        (lambda m, b: averaging.linear(m, weight=[1, float("nan"), 0]), "weight"),
        (lambda m, b: averaging.linear(m, weight=[1, 2]), "weight"),
        (lambda m, b: averaging.model_stock(m[:1], b), "models"),
        (lambda m, b: averaging.model_stock(m, None), "base_model"),
        (lambda m, b: averaging.nearswap(m, b, t=0.1), "models"),
        (lambda m, b: averaging.nearswap(m[:1], b, t=float("inf")), "t"),
        (lambda m, b: averaging.arcee_fusion(m[:1], None), "base_model"),
        (lambda m, b: averaging.passthrough(m), "models"),
        (lambda m, b: averaging.ram(m, b, epsilon=float("nan")), "epsilon"),
        (lambda m, b: averaging.ramplus_tl(m, b, alpha=float("nan")), "alpha"),
        (lambda m, b: averaging.ram(m, b[0]), "base_model"),
    ],
)
def test_bad_input_is_named(call: Any, field: str) -> None:
    with pytest.raises(InputError, match=f"field '{field}'"):
        call(*stack(3))
