"""Models with experts are merged by the names of their tensors: every expert belongs to its layer."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.merge.names import layer_path, module_of
from fusion_jax.models.families import config_from_hf, tensors_of
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import abstract_params
from tests.parity.checkpoints import CONFIGS, SMALL

FAMILIES = {"mixtral": "block_sparse_moe", "qwen3-moe-some-plain": "mlp", "deepseek-v2": "mlp"}


def config_of(name):
    family, options = CONFIGS[name]
    return config_from_hf({"model_type": family, **SMALL, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_of_a_layer_is_found_in_it(name):
    tensors = [one for one in tensors_of(config_of(name)) if one.path[0].startswith("layers")]
    assert {layer_path(one.name) for one in tensors} == {f"model.layers.{n}" for n in range(config_of(name).layers)}
    experts = {module_of(one.name).split(".")[-1] for one in tensors if len(one.index) == 2}
    assert experts == {FAMILIES[name]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    config, folder = config_of("deepseek-v2"), tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    for seed in range(2):
        params = jax.tree.map(lambda one: jnp.asarray(rng.normal(size=one.shape), one.dtype), abstract_params(config))
        fj.save(Model(config, params), folder / f"m{seed}")
    return folder


def recipe(folders, **more):
    weights = ([1.0, 0.0], [0.0, 1.0])
    models = [{"model": str(folders / f"m{n}"), "parameters": {"weight": weights[n]}} for n in range(2)]
    return {"merge_method": "linear", "models": models, **more}


def test_weights_that_differ_from_layer_to_layer(folders, tmp_path):
    """Of the first model the first layer, a plain one, of the second the last one, with its experts; between, half."""
    fj.merge.merge(recipe(folders), tmp_path / "out")
    one, other, merged = (fj.load(folder).params for folder in (folders / "m0", folders / "m1", tmp_path / "out"))
    for x, z in zip(*(jax.tree.leaves(p["layers"]) for p in (one, merged)), strict=True):
        np.testing.assert_allclose(z, x, rtol=1e-6, atol=1e-7)
    for x, y, z in zip(*(jax.tree.leaves(p["layers_1"]) for p in (one, other, merged)), strict=True):
        np.testing.assert_allclose(z[0], (x[0] + y[0]) / 2, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(z[1], y[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("field", "value"), [("num_experts_per_tok", 2), ("routed_scaling_factor", 1.0)])
def test_other_routing_between_the_same_experts_is_refused(field, value, folders, tmp_path):
    fj.save(fj.load(folders / "m1"), tmp_path / "m1")
    file = tmp_path / "m1/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    changed = recipe(folders)
    changed["models"][1]["model"] = str(tmp_path / "m1")
    with pytest.raises(InputError, match=rf"field '{field}': is {value}"):
        fj.merge.merge(changed, tmp_path / "out")
