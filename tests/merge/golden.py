"""The golden merges (tests/golden/merge.json, merge.npz): cases, their inputs and outputs."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from tests.conftest import GOLDEN

FILE = json.loads((GOLDEN / "merge.json").read_text())
TENSORS = tuple(FILE["tensors"])


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "merge.npz") as file:
        return dict(file)


def cases(*methods: str, impl: str = "mergekit") -> list[dict[str, Any]]:
    """The cases of these methods from one official code; each method has some."""
    found = [case for case in FILE["cases"] if case["method"] in methods and case["impl"] == impl]
    assert {case["method"] for case in found} == set(methods)
    return found


def inputs(case: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The stack [K,...] of a case's models, and the base."""
    models = np.stack([arrays()[f"input/{case['set']}/{model}/{name}"] for model in case["model_order"]])
    return models, arrays()[f"input/{case['set']}/base/{name}"]


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    """A case's parameters, per-model ones as lists, and its math dtype."""
    per_model = {key: [given[key] for given in case["tensor_params"]] for key in case["tensor_params"][0]}
    return {**case["global_params"], **per_model, "math_dtype": case["dtype"]}


def compared(case: dict[str, Any]) -> list[str]:
    """The tensors whose official result is there and well defined."""
    return [name for name in TENSORS if name not in case.get("fragile", {}) and name not in case.get("errors", {})]


def assert_equal(got: Any, case: dict[str, Any], name: str, *, tolerance: float) -> None:
    """Float32 within a tolerance, other dtypes bit for bit."""
    want = arrays()[f"out/{case['id']}/{name}"]
    exact = case["dtype"] != "float32"
    np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact else tolerance, err_msg=f"{case['id']} {name}")
