"""MPT: ALiBi, layer norms without biases, queries, keys and values in one tensor and clipped, a plain feed-forward, the
embedding as head.

transformers reads few of the switches of the published code and computes the usual model whatever the others say. Here
those that would change what is computed are refused by name; `expansion_ratio` is obeyed, which transformers takes for
4. What concerns training alone is not read: dropout, `attn_uses_sequence_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import Attention, ModelConfig, Norm, Positions
from fusion_jax.models.families.common import WIDTH, Defaults, llama_like_from_hf, llama_like_to_hf
from fusion_jax.models.families.tensors import HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=2048, tied=True, activation="gelu", eps=1e-5)
NAMES = {
    "hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len", "rms_norm_eps": "layer_norm_epsilon",
}  # fmt: skip
UNREAD = ("num_key_value_heads", "head_dim", "hidden_act", "intermediate_size")
IGNORED: tuple[str, ...] = ()
OWN = Names(
    norms={"attention_norm": "norm_1", "mlp_norm": "norm_2"},
    parts={"o": "attn.out_proj", "up": "ffn.up_proj", "down": "ffn.down_proj"}, fused={"attn.Wqkv": ("q", "k", "v")},
    layers="transformer.blocks", embedding="transformer.wte", final_norm="transformer.norm_f",
)  # fmt: skip
MULTIHEAD, NORMS = "multihead_attention", ("low_precision_layernorm", "layernorm")
FLAGS = {"alibi": True, "prefix_lm": False, "qk_ln": False}  # of the attention


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    _fixed(fields, {"no_bias": True, "embedding_fraction": 1.0, "logit_scale": None})
    fields.choice("norm_type", NORMS, NORMS[0])
    width = fields.integer("hidden_size", low=1, high=WIDTH)
    ratio = fields.integer("expansion_ratio", 4, low=1, high=4 * WIDTH // width)
    own = {name: value for name, value in fields.values.items() if name not in UNREAD}
    fields = replace(fields, values=own | {"intermediate_size": ratio * width})
    model = llama_like_from_hf(fields, DEFAULTS, ())
    stack, norm = model.decoder[0], Norm("layer", model.decoder[0].norm.eps)
    attention = _attention(fields.object("attn_config", None) or Fields({}), stack.attention)
    stack = replace(stack, norm=norm, attention=attention, mlp=replace(stack.mlp, gated=False))
    positions = Positions(model.max_positions, (), "alibi")
    return replace(model, decoder=(stack,), final_norm=norm, positions=positions)


def _attention(fields: Fields, plain: Attention) -> Attention:
    """The attention that `attn_config` describes."""
    fields.choice("attn_type", (MULTIHEAD,), MULTIHEAD)
    _fixed(fields, {**FLAGS, "alibi_bias_max": 8})
    clip = fields.number("clip_qkv", None, low=0, high=1e6) or None
    return replace(plain, clip=clip, scale=fields.number("softmax_scale", None, above=0, high=1e6))


def _fixed(fields: Fields, values: Mapping[str, bool | float | None]) -> None:
    """Refuse fields that are there and have another value than they may have here."""
    for name, wanted in values.items():
        given = fields.values.get(name)
        if given is not None and (given != wanted or isinstance(given, bool) != isinstance(wanted, bool)):
            raise fields.wrong(name, f"{quoted(given)} is not supported", f"Known: {json.dumps(wanted)}")


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    (stack,), attention = config.decoder, config.decoder[0].attention
    out = {name: value for name, value in llama_like_to_hf(config, "Mpt").items() if name not in UNREAD}
    attn = {"attn_type": MULTIHEAD, "clip_qkv": attention.clip, "softmax_scale": attention.scale, **FLAGS}
    return out | {"expansion_ratio": stack.mlp.width // config.width, "attn_config": attn, "no_bias": True}


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, OWN)
