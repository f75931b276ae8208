"""The dry run: what it says of bytes and memory is what the merge then takes, for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion_jax.merge import METHODS, merge, prepare
from fusion_jax.merge.executor.estimate import estimate, rules
from tests.merge.folders import make_models, recipe_of, tensors, write_model

VARM = [("varm", {"granularity": g}) for g in ("avg_module", "avg_layer", "avg_model", "avg_weight", "avg_item")]
MIB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models with one tensor of 36 MiB: more than malloc keeps once it is freed."""
    folder = tmp_path_factory.mktemp("large")
    for name in ("base", "m1", "m2", "m3"):
        noise = np.random.default_rng(len(list(folder.iterdir())))
        rows = {n: noise.standard_normal((r, 1024), np.float32) for n, r in (("embed_tokens", 9216), ("norm", 4))}
        write_model(folder / name, {f"model.{n}.weight": value for n, value in rows.items()}, tie_word_embeddings=True)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is asked of Linux")
@pytest.mark.parametrize(
    "method", ["ties", *(pytest.param(m, marks=pytest.mark.slow) for m in ("linear", "slerp", "sce", "varm"))]
)
def test_the_peak_is_what_a_merge_takes(large: Path, tmp_path: Path, method: str) -> None:
    """The compiler's figure is an upper one: buffers do not all live at once."""
    prepared = prepare(recipe_of(method, large))
    said = float(estimate(prepared)["peak GB"]) * 1e9
    merge(prepared, tmp_path / "compiled")
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    merge(prepared, tmp_path / "out")
    assert 0.45 * said < _memory("VmHWM") - before < said + 16 * MIB


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, 3)
    return folder


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(("method", "parameters"), [*((m, {}) for m in METHODS), *VARM])
def test_every_method_has_a_dry_run(models: Path, method: str, parameters: dict[str, Any]) -> None:
    """Bytes are those of the files; the peak holds the largest tensor of every input and of the output."""
    recipe = recipe_of(method, models, **parameters)
    found = estimate(prepare(recipe))
    inputs = len(recipe["models"]) + ("base_model" in recipe)
    size, largest = sum(v.nbytes for v in tensors(0).values()), max(v.nbytes for v in tensors(0).values())
    passes = 2 if parameters and parameters["granularity"] != "avg_item" else 1
    assert float(found["GB read"]) * 1e9 == pytest.approx(passes * inputs * size, rel=0.01)
    assert float(found["GB written"]) * 1e9 == pytest.approx(size, rel=0.01)
    assert inputs + 1 <= float(found["peak GB"]) * 1e9 / largest * 1.01 < 8 * (inputs + 1)
    assert found["tensors"] == len(tensors(0)) and float(found["s of arithmetic"]) > 0
    assert not {p.name for p in models.iterdir()} - {"base", "m1", "m2", "m3"}


def test_rules_of_each_tensor(models: Path) -> None:
    table = rules(prepare(recipe_of("ties", models, density=[0.2, 0.8])))
    assert [row["tensor"] for row in table] == list(tensors(0)) and {row["models"] for row in table} == {3}
    density = {row["tensor"]: row["parameters"].split("density=")[1].split("]")[0] for row in table}
    assert density["model.embed_tokens.weight"] == "[0.2 0.2 0.2"
    assert density["model.layers.1.mlp.up_proj.weight"] == "[0.5 0.5 0.5"
