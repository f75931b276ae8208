"""Pruned models as Nemotron-NAS: what vLLM's and llama.cpp's readers make of the folder, and that it computes the same."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.prune.blocks import Block
from fusion_jax.prune.export import served
from fusion_jax.sampling.ids import generate_ids
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_generation import NEW

pytestmark = pytest.mark.usefixtures("quick_compiler")

BOTH = {Block("attention", 1), Block("mlp", 1)}
REMOVED = {Block("attention", 0), *BOTH, Block("mlp", 2), Block("attention", 4)}
PUBLISHED = {  # fields of the dataclasses AttentionConfig and FFNConfig, in block_config.py beside the published weights
    "attention": {"no_op", "replace_with_linear", "sparsify", "n_heads_in_group", "window_length", "num_sink_tokens",
                  "use_prefill_window_in_sink_attention", "unshifted_sink"},
    "ffn": {"no_op", "replace_with_linear", "sparsify", "ffn_mult"},
}  # fmt: skip


def width(ffn_mult: float, hidden: int) -> int:
    """As all readers have it (`_ffn_mult_to_intermediate_size`)."""
    size = int(2 * ffn_mult * hidden / 3)
    return size if size % 256 == 0 else size + 256 - size % 256


def of_vllm(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of the files that vLLM's DeciLMForCausalLM has places for, and their shapes."""
    hidden, heads, head = values["hidden_size"], values["num_attention_heads"], values["head_dim"]
    out = {"model.embed_tokens.weight": (values["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not values["tie_word_embeddings"]:
        out["lm_head.weight"] = (values["vocab_size"], hidden)
    for number, layer in enumerate(values["block_configs"][: values["num_hidden_layers"]]):
        linear = {}
        if not layer["attention"]["no_op"]:
            keys = heads // layer["attention"]["n_heads_in_group"]
            sizes = {"q": (heads * head, hidden), "k": (keys * head, hidden), "v": (keys * head, hidden)}
            linear |= {
                f"self_attn.{name}_proj": shape for name, shape in {**sizes, "o": (hidden, heads * head)}.items()
            }
            out[f"model.layers.{number}.input_layernorm.weight"] = (hidden,)
        if not layer["ffn"]["no_op"]:
            wide = width(layer["ffn"]["ffn_mult"], hidden)
            linear |= {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
            out[f"model.layers.{number}.post_attention_layernorm.weight"] = (hidden,)
        for name, shape in linear.items():
            out[f"model.layers.{number}.{name}.weight"] = shape
            if values["attention_bias" if "attn" in name else "mlp_bias"]:
                out[f"model.layers.{number}.{name}.bias"] = shape[:1]
    return out


def of_llama_cpp(values: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(queries, keys, width) of each layer, by what class DeciModel asks of config.json; 0 is a block that is gone."""
    assert len(values["block_configs"]) == values["num_hidden_layers"]
    out = []
    for layer in values["block_configs"]:
        attention, ffn_mult = layer["attention"], layer["ffn"]["ffn_mult"]
        heads = keys = 0
        if attention["n_heads_in_group"] is None:
            assert attention["replace_with_linear"] is False
        else:
            heads, keys = values["num_attention_heads"], values["num_attention_heads"] // attention["n_heads_in_group"]
        assert ffn_mult is None or isinstance(ffn_mult, float)
        out.append((heads, keys, 0 if ffn_mult is None else width(ffn_mult, values["hidden_size"])))
    return out


@pytest.mark.parametrize(("name", "changes"), [
    ("llama-gqa-tied", {}), ("llama-3.1", {}),
    pytest.param("llama-mqa-bias-wide-heads", {"num_hidden_layers": 5}, marks=pytest.mark.slow),
    pytest.param("qwen2", {"tie_word_embeddings": False}, marks=pytest.mark.slow),
    pytest.param("mistral-no-window", {}, marks=pytest.mark.slow),
])  # fmt: skip
def test_readers_find_what_they_ask_for(name, changes, tmp_path, caplog):
    """Fields, names and shapes; the same logits as of the zeroed model in transformers' class, and read back here."""
    write_checkpoint(name, tmp_path / "hf", **{"intermediate_size": 512, "num_hidden_layers": 5, **changes})
    whole, tokens = fj.load(tmp_path / "hf"), np.random.default_rng(0).integers(3, 96, (2, 20))
    heads, keys = whole.config.decoder[0].attention.heads, whole.config.decoder[0].attention.kv_heads
    with caplog.at_level(logging.WARNING, "fusion_jax"):
        small = served(whole, REMOVED, "nemotron-nas")
    assert "llama.cpp misreads layers 1 without a block" in caplog.text and "vLLM misreads layers 0" in caplog.text
    fj.save(small, tmp_path / "nas")
    values, files = read(tmp_path / "nas")
    assert (values["model_type"], values["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert values["eos_token_id"] == 2 and values["intermediate_size"] is None
    assert of_llama_cpp(values) == [(0, 0, 512), (heads, keys, 0), (heads, keys, 512), (0, 0, 512)]
    assert {key: value.shape for key, value in files.items()} == of_vllm(values)
    for layer in values["block_configs"]:
        assert {part: set(own) for part, own in layer.items()} == PUBLISHED
        assert layer["attention"]["no_op"] == (layer["attention"]["n_heads_in_group"] is None)
        assert layer["ffn"]["no_op"] == (layer["ffn"]["ffn_mult"] is None)
    again = fj.load(tmp_path / "nas")
    assert again.config == small.config
    wanted = np.asarray(fj.logits(served(whole, REMOVED), tokens))
    np.testing.assert_allclose(fj.logits(again, tokens), wanted, rtol=1e-6, atol=2e-6)


def test_zeros_where_a_reader_would_stumble(tmp_path, caplog):
    """No layer has attention alone (llama.cpp), the first one has some (vLLM); the logits are the same."""
    write_checkpoint("qwen2", tmp_path / "hf", intermediate_size=512, num_hidden_layers=5)
    whole, tokens = fj.load(tmp_path / "hf"), np.random.default_rng(0).integers(3, 96, (2, 20))
    fj.save(served(whole, REMOVED, "native"), tmp_path / "native")
    fj.save(served(fj.load(tmp_path / "native"), (), "nemotron-nas-filled"), tmp_path / "nas")
    assert "misreads" not in caplog.text
    values, files = read(tmp_path / "nas")
    assert of_llama_cpp(values) == [(4, 2, 512), (4, 2, 256), (4, 2, 512), (0, 0, 512)]
    assert {key: value.shape for key, value in files.items()} == of_vllm(values)
    zero = {key for key, value in files.items() if not value.any()}
    assert {re.sub(r"\.(weight|bias)$", "", key) for key in zero} == {
        *(f"model.layers.0.self_attn.{one}_proj" for one in "qkvo"), "model.layers.0.input_layernorm",
        *(f"model.layers.1.mlp.{one}_proj" for one in ("gate", "up", "down")), "model.layers.1.post_attention_layernorm",
        *(f"model.layers.{layer}.self_attn.o_proj" for layer in (1, 2)),  # biases, which Qwen2 does not have there
    }  # fmt: skip
    wanted = np.asarray(fj.logits(served(whole, REMOVED), tokens))
    np.testing.assert_allclose(fj.logits(fj.load(tmp_path / "nas"), tokens), wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "changes", "told"), [
    ("llama-mha", {}, "no ffn_mult gives a feed-forward of width 80, which is no multiple of 256"),
    ("mistral-window", {}, "no words for windows"), ("qwen3", {}, "no words for qk_norm"),
    ("gemma2", {}, "no words for"), ("mixtral", {}, "no words for experts"), ("olmo2", {}, "no words for"),
    ("gpt-neox", {}, "no words for heads that are rotated in part"), ("deepseek-v2", {}, "no words for"),
    ("llama-yarn", {"intermediate_size": 256}, "reads nemotron-nas without rotary scaling yarn"),
    ("llama-mha", {"intermediate_size": 256, "hidden_act": "gelu"}, "llama.cpp reads nemotron-nas with silu"),
])  # fmt: skip
def test_what_the_form_cannot_hold_is_refused(name, changes, told, tmp_path):
    write_checkpoint(name, tmp_path / "hf", **changes)
    with pytest.raises(InputError, match=told):
        served(fj.load(tmp_path / "hf"), {Block("mlp", 1)}, "nemotron-nas")


def test_transformers_loads_it_with_the_folder_s_own_code(tmp_path):
    """Logits; greedy tokens with and without its cache, where the first and the last layer have no attention; and saved
    again by it."""
    write_checkpoint("llama-3.1", tmp_path / "hf", intermediate_size=512, num_hidden_layers=5)
    fj.save(served(fj.load(tmp_path / "hf"), REMOVED, "nemotron-nas"), tmp_path / "nas")
    ours, theirs = fj.load(tmp_path / "nas"), of_transformers(tmp_path / "nas")
    assert theirs.config.block_configs[0].attention.no_op and not theirs.config.block_configs[1].attention.no_op
    tokens = np.random.default_rng(0).integers(3, 96, (2, 20))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(fj.logits(ours, tokens), wanted, atol=1e-5 * abs(wanted).max())
    assert sum(x.size for x in jax.tree.leaves(ours.params)) == sum(x.numel() for x in theirs.parameters())
    prompt = tokens[0].tolist()
    (((ids, *_),),) = generate_ids(ours.params, ours.config, [prompt], max_new_tokens=NEW)
    for cached in (True, False):
        how = {"max_new_tokens": NEW, "do_sample": False, "use_cache": cached, "eos_token_id": None, "pad_token_id": 0}
        assert theirs.generate(torch.tensor([prompt]), **how)[0, 20:].tolist() == ids
    theirs.save_pretrained(tmp_path / "again")
    again = fj.load(tmp_path / "again")
    assert again.config == ours.config
    np.testing.assert_array_equal(fj.logits(again, tokens), fj.logits(ours, tokens))


def of_transformers(folder) -> Any:
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    given = {"trust_remote_code": True, "dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **given).eval()


def read(folder) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
