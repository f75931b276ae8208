"""Models with several stacks of layers are merged whole, tensor by tensor, and keep the lengths of their stacks."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params

BART = {
    "model_type": "bart", "architectures": ["BartForConditionalGeneration"], "vocab_size": 30, "d_model": 16,
    "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 24, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "max_position_embeddings": 12, "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    config, folder = config_from_hf(BART), tmp_path_factory.mktemp("models")
    for seed in range(2):
        params = init_params(config, jax.random.key(seed))
        fj.save(Model(config, params, hf_config=BART), folder / f"m{seed}")
    return folder


def test_a_linear_merge_of_two(folders, tmp_path):
    models = [{"model": str(folders / f"m{seed}"), "parameters": {"weight": 0.5}} for seed in range(2)]
    fj.merge.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    one, other, merged = (fj.load(folder) for folder in (folders / "m0", folders / "m1", tmp_path / "out"))
    assert merged.config == one.config and merged.hf_config["num_hidden_layers"] == 1
    for x, y, z in zip(*(jax.tree.leaves(m.params) for m in (one, other, merged)), strict=True):
        np.testing.assert_allclose(z, (x + y) / 2, rtol=1e-6, atol=1e-7)


def test_files_of_transformers_and_ours_go_together(folders, tmp_path):
    """Zeros that transformers saves and we do not, and names of the bare model."""
    values = load_file(folders / "m1/model.safetensors")
    other = {name.removeprefix("model."): value for name, value in reversed(values.items())}
    (tmp_path / "bare").mkdir()
    save_file(other | {"final_logits_bias": np.zeros((1, 30), np.float32)}, tmp_path / "bare/model.safetensors")
    shutil.copy(folders / "m1/config.json", tmp_path / "bare/config.json")
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (folders / "m0", tmp_path / "bare")]
    fj.merge.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    one, other, merged = (fj.load(folder) for folder in (folders / "m0", folders / "m1", tmp_path / "out"))
    for x, y, z in zip(*(jax.tree.leaves(m.params) for m in (one, other, merged)), strict=True):
        np.testing.assert_allclose(z, (x + y) / 2, rtol=1e-6, atol=1e-7)


def test_layers_of_several_stacks_cannot_be_chosen(folders, tmp_path):
    sources = [{"model": str(folders / f"m{seed}"), "layer_range": [0, 2]} for seed in range(2)]
    recipe = {"merge_method": "linear", "slices": [{"sources": sources}], "parameters": {"weight": 1.0}}
    with pytest.raises(InputError, match=r"several stacks of layers \(model.*\), which are merged whole"):
        fj.merge.merge(recipe, tmp_path / "out")
