"""Nemotron-NAS: against layers of transformers' Llama that are put together here, published settings, what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.models.families import config_from_hf, config_to_hf
from fusion_jax.models.families.nemotron_nas import ffn_mult_of, width_of
from fusion_jax.models.parameters import numbers_of, parameter_specs
from fusion_jax.sampling.ids import generate_ids

pytestmark = pytest.mark.usefixtures("quick_compiler")

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
# queries that share a key, and the width; None: the block is not there. Two layers that are alike lie side by side.
LAYERS = [(None, 512), (1, 256), (4, 768), (4, 768), (2, None), (None, None), (2, 256)]


def block(group: int | None, ffn_mult: float | None) -> dict[str, Any]:
    """A layer as published files have it (nvidia/Llama-3_3-Nemotron-Super-49B-v1)."""
    return {
        "attention": {
            "n_heads_in_group": group, "no_op": group is None, "num_sink_tokens": None, "replace_with_linear": False,
            "sparsify": None, "unshifted_sink": False, "use_prefill_window_in_sink_attention": False,
            "window_length": None,
        },
        "ffn": {"ffn_mult": ffn_mult, "no_op": ffn_mult is None, "replace_with_linear": False, "sparsify": None},
    }  # fmt: skip


def values_of(blocks: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "block_configs": blocks,
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 48,
        "initializer_range": 0.02, "intermediate_size": None, "max_position_embeddings": 128, "mlp_bias": False,
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"},
        "num_attention_heads": 8,
        "num_hidden_layers": len(blocks), "num_key_value_heads": None, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3, "rope_theta": 500.0, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 96,
        "bos_token_id": 1, "eos_token_id": [2, 3], **changes,
    }  # fmt: skip


VALUES = values_of([block(group, None if width is None else width / 32) for group, width in LAYERS])


class Reference(nn.Module):
    """The body of Llama, each layer with a configuration of its own, in float64."""

    def __init__(self) -> None:
        super().__init__()
        own = {"vocab_size": 96, "hidden_size": 48, "num_attention_heads": 8, "rms_norm_eps": 1e-5,
               "rope_parameters": {**LLAMA3, "rope_theta": 500.0}, "max_position_embeddings": 128}  # fmt: skip
        self.embed_tokens, self.norm = nn.Embedding(96, 48), LlamaRMSNorm(48, 1e-5)
        self.layers, self.lm_head = nn.ModuleList(), nn.Linear(48, 96, bias=False)
        for number, (group, width) in enumerate(LAYERS):
            config = LlamaConfig(**own, num_key_value_heads=8 // (group or 8), intermediate_size=width or 1)
            config._attn_implementation = "eager"
            self.rotary, layer = LlamaRotaryEmbedding(config), nn.Module()
            if group is not None:
                layer.self_attn, layer.input_layernorm = LlamaAttention(config, number), LlamaRMSNorm(48, 1e-5)
            if width is not None:
                layer.mlp, layer.post_attention_layernorm = LlamaMLP(config), LlamaRMSNorm(48, 1e-5)
            self.layers.append(layer)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, places = self.embed_tokens(tokens), torch.arange(tokens.shape[1])[None]
        angles = self.rotary(x, places)
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)[None, None]
        for layer in self.layers:
            if hasattr(layer, "self_attn"):
                x = x + layer.self_attn(layer.input_layernorm(x), angles, mask)[0]
            if hasattr(layer, "mlp"):
                x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.lm_head(self.norm(x))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Reference, Any]:
    """A model of random weights, norms too, and its folder."""
    torch.manual_seed(0)
    model, folder = Reference(), tmp_path_factory.mktemp("nas")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * 0.3 + ("norm" in name))
    prefixed = {name if name.startswith("lm_head") else f"model.{name}": value.detach().numpy()
                for name, value in model.named_parameters()}  # fmt: skip
    save_file(prefixed, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(VALUES))
    return model.double(), folder


def test_layers_that_differ_are_those_of_transformers(reference):
    """Logits, greedy tokens through caches of different heads, and the folder written again."""
    theirs, folder = reference
    ours = fj.load(folder)
    kinds = [(s.layers, sorted(s.lacks), s.attention.kv_heads, s.mlp.width) for s in ours.config.decoder]
    assert kinds == [
        (1, ["attention"], 8, 512), (1, [], 8, 256), (2, [], 2, 768), (1, ["mlp"], 4, 256),
        (1, ["attention", "mlp"], 8, 256), (1, [], 4, 256),
    ]  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 96, (2, 60))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).numpy()
    np.testing.assert_allclose(fj.logits(ours, tokens), wanted, atol=2e-5 * abs(wanted).max())
    prompt = tokens[0, :40].tolist()
    (((ids, *_),),) = generate_ids(ours.params, ours.config, [prompt], max_new_tokens=12)
    with torch.no_grad():
        again = theirs(torch.tensor([prompt + ids]))[0].argmax(-1)
    assert ids == again[39:-1].tolist()


def test_the_folder_is_written_as_it_was_read(reference, tmp_path):
    _, folder = reference
    ours = fj.load(folder)
    fj.save(ours, tmp_path / "a")
    assert (tmp_path / "a/model.safetensors").stat().st_size and fj.load(tmp_path / "a").config == ours.config
    written = json.loads((tmp_path / "a/config.json").read_text())
    assert written["block_configs"] == VALUES["block_configs"] and written["auto_map"] == VALUES["auto_map"]
    anew = config_to_hf(ours.config)
    assert config_from_hf(anew) == ours.config
    same = VALUES.keys() - {
        "auto_map", "attention_dropout", "pretraining_tp", "use_cache", "bos_token_id", "eos_token_id", "rope_scaling",
        "rope_theta",
    }  # fmt: skip
    assert {key: anew[key] for key in same} == {key: VALUES[key] for key in same}
    for one, other in zip(jax.tree.leaves(fj.load(tmp_path / "a").params), jax.tree.leaves(ours.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("hidden", "ffn_mult", "width"), [
    (8192, 5.25, 28672), (8192, 2.625, 14336), (8192, 1.3125, 7168), (8192, 0.5, 2816), (16384, 4.875, 53248),
    (16384, 39.0, 425984), (16384, 1.95, 21504), (16384, 27.5625, 301056), (4096, 5.25, 14336),
])  # fmt: skip
def test_widths_of_published_layers(hidden, ffn_mult, width):
    """Of the 51B and 49B (8192) and the 253B (16384): 5.25 and 4.875 are the Llamas' that they were made of."""
    assert width_of(ffn_mult, hidden) == width
    assert width_of(ffn_mult_of(width, hidden), hidden) == width


def test_every_width_that_can_be_told_is():
    """Multiples of 256, for widths of models that do not divide by 3, after rounding to 6 digits, as a float."""
    for hidden in (48, 576, 896, 1536, 2048, 3584, 4096, 5120, 8192, 16384):
        for width in range(256, 40_000, 256):
            found = ffn_mult_of(width, hidden)
            assert isinstance(found, float) and round(found, 6) == found and width_of(found, hidden) == width
    with pytest.raises(InputError, match="no ffn_mult gives a feed-forward of width 11000"):
        ffn_mult_of(11000, 4096)


def test_a_model_of_published_size():
    """80 layers of Llama-3.1-70B, all as they were: 70,553,706,496 numbers, as published."""
    whole = values_of(
        [block(8, 5.25)] * 80, hidden_size=8192, num_attention_heads=64, vocab_size=128256, rope_theta=500000.0,
        rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192}, max_position_embeddings=131072,
    )  # fmt: skip
    config = config_from_hf(whole)
    assert len(config.decoder) == 1 and numbers_of(parameter_specs(config)) == 70_553_706_496
    assert config.decoder[0].attention.head_dim == 128 and config.decoder[0].attention.kv_heads == 8


def changed(number: int, part: str, **values: Any) -> list[dict[str, Any]]:
    blocks = json.loads(json.dumps(VALUES["block_configs"]))
    blocks[number][part] |= values
    return blocks


@pytest.mark.parametrize(("blocks", "told"), [
    (changed(1, "attention", replace_with_linear=True), r"'block_configs.1.attention.replace_with_linear': .* not supported"),
    (changed(3, "ffn", replace_with_linear=True), r"'block_configs.3.ffn.replace_with_linear': .* not supported"),
    (changed(1, "attention", window_length=64), r"'block_configs.1.attention.window_length': .* not supported"),
    (changed(2, "ffn", moe={"experts": 3}), r"'block_configs.2.ffn.moe': .* not supported"),
    (changed(1, "attention", n_heads_in_group=3), "is 3, which does not divide num_attention_heads, 8"),
    (changed(1, "attention", n_heads_in_group=None), "'block_configs.1.attention.n_heads_in_group': is missing"),
    (changed(1, "ffn", ffn_mult=None), "'block_configs.1.ffn.ffn_mult': is missing"),
    (changed(1, "ffn", ffn_mult=1e-9), "gives a feed-forward of width 0"),
    (changed(1, "ffn", no_op="yes"), "'block_configs.1.ffn.no_op': is 'yes', not true or false"),
    (VALUES["block_configs"][:3], "'block_configs': describes 3 layers, num_hidden_layers is 7"),
    ([*VALUES["block_configs"][:6], []], "'block_configs.6': is "), (None, "'block_configs': is missing"),
    ([{"attention": {"no_op": True}}] * 7, "'block_configs.0.ffn': is missing"),
])  # fmt: skip
def test_what_is_refused(blocks, told):
    with pytest.raises(InputError, match=told):
        config_from_hf({**VALUES, "block_configs": blocks}, "config.json")


def test_the_name_is_the_published_one():
    with pytest.raises(InputError, match="'nemotron_nas' is not supported"):
        config_from_hf({**VALUES, "model_type": "nemotron_nas"})
    assert dataclasses.replace(config_from_hf(VALUES), model_type="") != config_from_hf(VALUES)
