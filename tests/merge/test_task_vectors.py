"""Task-vector methods against the official merges (tests/golden/merge.json), and what must hold of any of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import InputError
from fusion_jax.merge import sce as sce_methods
from fusion_jax.merge import task_arithmetic as methods
from fusion_jax.merge.arithmetic import Merged, rounder, tensor_key
from fusion_jax.merge.sce import sce
from fusion_jax.merge.sparsify import magprune_plan, rank_weighted, rescaled

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "merge.json").read_text())
ARRAYS = np.load(FOLDER / "merge.npz")
METHODS = {m.name: m for m in methods.METHODS + sce_methods.METHODS}
CASES = {c["id"]: c for c in GOLDEN["cases"] if c["method"] in METHODS}
TOLERANCE = {"float32": 1e-6, "bfloat16": 0.0, "float16": 0.0}  # the file's
UNTOUCHED = "model.norm.weight"


def inputs(case: dict[str, Any], tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """The models [K,...] and the base of a case."""
    base, *models = (ARRAYS[f"input/{case['set']}/{m}/{tensor}"] for m in ["base", *case["model_order"]])
    return np.stack(models), base


def arguments(case: dict[str, Any], tensor: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the case's recipe says to our function."""
    method = METHODS[case["method"]]
    given = dict(case["global_params"])
    for name in case["tensor_params"][0]:
        given[name] = [p[name] for p in case["tensor_params"]]
    if case["impl"] == "fuseai" and given.pop("rescale", False):
        given["rescale"] = "l1" if method.name == "ties" else "inverse_density"
    if method.name == "sce":
        given["sce_variant"] = case["impl"]
    if method.name.startswith("breadcrumbs"):
        given["breadcrumbs_compat"] = True
    if "masks" in case:
        bits = ARRAYS[f"out/{case['id']}/mask/{tensor}"]
        given["masks"] = np.unpackbits(bits, axis=-1, count=int(np.prod(shape[1:]))).astype(bool).reshape(shape)
    return {method.argument(name): value for name, value in given.items()}


def run(case: dict[str, Any], tensor: str) -> Merged:
    models, base = inputs(case, tensor)
    given = arguments(case, tensor, models.shape)
    return METHODS[case["method"]].function(models, base, math_dtype=case["dtype"], **given)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_golden(case):
    assert not case.get("errors")
    for tensor in GOLDEN["tensors"]:
        out = run(case, tensor).tensor
        if tensor in case.get("unexpected_shapes", {}):
            fuseai = sce(
                *inputs(case, tensor), select_topk=case["global_params"]["select_topk"], math_dtype=case["dtype"]
            )
            np.testing.assert_array_equal(out, fuseai.tensor, tensor)  # the selection is empty: see `sce`
        else:
            want = ARRAYS[f"out/{case['id']}/{tensor}"]
            np.testing.assert_allclose(out, want, rtol=0, atol=TOLERANCE[case["dtype"]], err_msg=tensor)
