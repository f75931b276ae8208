"""Pruned models as folders of their own family: logits, perplexity, layers and what per-layer lists become."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.models.config import Norm
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params
from fusion_jax.prune.blocks import Block
from fusion_jax.prune.export import served
from fusion_jax.prune.scoring import Text, perplexity, score
from tests.parity.checkpoints import write_checkpoint
from tests.prune.test_search import MODELS, block, opened, read

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_gives_the_official_logits(name, tmp_path):
    """After the first six removals, and after eleven, of which some layers lose both blocks."""
    model, text, _ = opened(name)
    probe, order = read(name, "logits_probe.json"), [block(b) for b in read(name, "search_mix.json")["removal_order"]]
    assert order[:6] == [block(b) for b in probe["removed"]]
    for count in (6, 11):
        removed = frozenset(order[:count])
        fj.save(served(model, removed), tmp_path / str(count))
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(count), dtype=torch.float32).eval()
        gone = sum({Block("attention", i), Block("mlp", i)} <= removed for i in range(model.config.layers))
        assert again.config.num_hidden_layers == model.config.layers - gone and (gone or count == 6)
        with torch.no_grad():
            logits = again(torch.tensor(text.rows[:1])).logits[0].numpy()
        if count == 6:
            start, end = probe["vocab_slice"]
            np.testing.assert_allclose(logits[probe["positions"], start:end], probe["pruned"], rtol=1e-4, atol=1e-4)
        small = fj.load(tmp_path / str(count))
        whole = score(model.params, model.config, text, removed, ()).base
        np.testing.assert_allclose(score(small.params, small.config, text, (), ()).base, whole, rtol=2e-6)


def test_what_depends_on_a_layers_number_stays_with_it(tmp_path):
    """Gemma-3's windows and bases: a layer without its neighbours keeps its own."""
    config = config_from_hf({
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 60, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12,
        "sliding_window": 5, "initializer_range": 0.3, "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "full_attention"]})  # fmt: skip
    model = Model(config, init_params(config, jax.random.key(0)))
    removed = frozenset({Block("attention", 1), Block("mlp", 1), Block("mlp", 2)})
    fj.save(served(model, removed), tmp_path / "pruned")
    values = json.loads((tmp_path / "pruned/config.json").read_text())
    assert values["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]
    text = Text(np.random.default_rng(0).integers(0, 60, (3, 20)).astype(np.int32))
    small = fj.load(tmp_path / "pruned")
    expected = score(model.params, config, text, removed, ()).base
    found = score(small.params, small.config, text, (), ()).base
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    with torch.no_grad():
        out = again(torch.tensor(text.rows), labels=torch.tensor(text.rows).long()).loss
    assert perplexity(found) == pytest.approx(float(out.exp()), rel=1e-5)


@pytest.mark.parametrize("name", [
    "mixtral", pytest.param("deepseek-v2", marks=pytest.mark.slow), pytest.param("gemma2", marks=pytest.mark.slow),
    pytest.param("olmo2", marks=pytest.mark.slow), pytest.param("glm4", marks=pytest.mark.slow),
])  # fmt: skip
def test_families_with_other_blocks(name, tmp_path):
    """Experts with their router, latents, norms on both sides or behind a block: the pruned folder in transformers has
    the loss that the search saw."""
    write_checkpoint(name, tmp_path / "hf")
    model = fj.load(tmp_path / "hf")
    removed = frozenset({Block("attention", 0), Block("mlp", 1), Block("attention", 2), Block("mlp", 2)})
    text = Text(np.random.default_rng(0).integers(3, 96, (3, 12)).astype(np.int32))
    found = score(model.params, model.config, text, removed, ()).base
    fj.save(served(model, removed), tmp_path / "pruned")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    assert again.config.num_hidden_layers == 2
    with torch.no_grad():
        out = again(torch.tensor(text.rows), labels=torch.tensor(text.rows).long()).loss
    assert found.mean() == pytest.approx(float(out), rel=1e-5)


def test_parallel_blocks_with_a_norm_for_both(tmp_path):
    """GPT-NeoX: both parts read the layer's input; without one of them the other reads it still."""
    config = config_from_hf({
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 60, "hidden_size": 32,
        "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.3,
        "max_position_embeddings": 64})  # fmt: skip
    text = Text(np.random.default_rng(0).integers(0, 60, (3, 20)).astype(np.int32))
    stack = dataclasses.replace(config.decoder[0], residual="parallel")
    for one in (config, dataclasses.replace(config, decoder=(stack,))):
        model = Model(one, init_params(one, jax.random.key(0)))
        removed = frozenset({Block("attention", 0), Block("mlp", 1), Block("attention", 2), Block("mlp", 2)})
        expected = score(model.params, one, text, removed, ()).base
        small = served(model, removed)
        np.testing.assert_allclose(score(small.params, small.config, text, (), ()).base, expected, rtol=2e-6)
        if one is config:
            fj.save(small, tmp_path / "pruned")
            again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
            with torch.no_grad():
                out = again(torch.tensor(text.rows), labels=torch.tensor(text.rows).long()).loss
            assert expected.mean() == pytest.approx(float(out), rel=1e-5)


def test_what_cannot_be_exported_is_refused():
    model = opened("llama-mha-8l")[0]
    every = [Block(part, number) for part in ("attention", "mlp") for number in range(8)]
    with pytest.raises(InputError, match="no layer would be left"):
        served(model, every)
    with pytest.raises(InputError, match="the model has no mlp of layer 8"):
        served(model, [Block("mlp", 8)])
    stack = dataclasses.replace(model.config.decoder[0], norm=Norm("layer", bias=True), residual="after")
    biased = dataclasses.replace(model, config=dataclasses.replace(model.config, decoder=(stack,)))
    with pytest.raises(InputError, match="a norm with a bias behind its blocks"):
        served(biased, [Block("mlp", 1)])
