"""GPT-NeoX and Pythia: layer norms and biases, attention and feed-forward beside each other, a rotary embedding of a
quarter of each head, queries, keys and values in one tensor that goes by heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig, Norm
from fusion_jax.models.families.common import Defaults, llama_like_from_hf, llama_like_to_hf, max_positions_of
from fusion_jax.models.families.rotary import rope_from_hf
from fusion_jax.models.families.tensors import HfTensor, Names, by_heads, llama_like_tensors

DEFAULTS = Defaults(max_positions=2048, activation="gelu", eps=1e-5)
NAMES = {"rms_norm_eps": "layer_norm_eps", "rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
UNREAD = ("num_key_value_heads", "head_dim")
IGNORED: tuple[str, ...] = ()
PLAIN = Names(
    parts={"o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    layers="gpt_neox.layers", embedding="gpt_neox.embed_in", final_norm="gpt_neox.final_layer_norm", head="embed_out",
)  # fmt: skip


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts; all heads have keys and values of their own, whatever else it says."""
    own = {name: value for name, value in fields.values.items() if name not in UNREAD}
    fields = replace(fields, values=own)
    rope = rope_from_hf(fields, max_positions_of(fields, DEFAULTS), share=0.25)
    model = llama_like_from_hf(fields, DEFAULTS, [rope])
    stack, norm = model.decoder[0], Norm("layer", model.decoder[0].norm.eps, bias=True)
    biases = "qkvo" if fields.flag("attention_bias", True) else ""
    stack = replace(
        stack, norm=norm, attention=replace(stack.attention, biases=biases),
        mlp=replace(stack.mlp, gated=False, bias=True),
        residual="parallel_norms" if fields.flag("use_parallel_residual", True) else "pre",
    )  # fmt: skip
    return replace(model, decoder=(stack,), final_norm=norm)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    stack, rope = config.decoder[0], config.positions.ropes[0]
    out = llama_like_to_hf(config, "GPTNeoX") | {"partial_rotary_factor": rope.share}
    out["rope_parameters"] |= {"partial_rotary_factor": rope.share}
    own = {"attention_bias": bool(stack.attention.biases), "use_parallel_residual": stack.residual == "parallel_norms"}
    return {name: value for name, value in out.items() if name not in UNREAD} | own


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; a group of query_key_value is a head's query, key and value."""
    packed = by_heads(
        config, "gpt_neox.layers.{}.attention.query_key_value", lambda attention: (3, {"q": 0, "k": 1, "v": 2})
    )
    return llama_like_tensors(config, PLAIN) + packed
