"""InternLM2 and 2.5: Llama's body under names of its own; queries, keys and values in one tensor that goes by the heads
of keys: of each, its group of queries, the key, the value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Attention, ModelConfig
from fusion_jax.models.families.common import Defaults, llama_like_from_hf, llama_like_to_hf
from fusion_jax.models.families.tensors import HfTensor, Names, by_heads, llama_like_tensors

DEFAULTS = Defaults(max_positions=2048)
IGNORED: tuple[str, ...] = ()
PLAIN = Names(
    norms={"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"},
    parts={"o": "attention.wo", "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"},
    embedding="model.tok_embeddings", head="output",
)  # fmt: skip


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    model = llama_like_from_hf(fields, DEFAULTS)
    stack = model.decoder[0]
    attention = replace(stack.attention, biases="qkvo" if fields.flag("bias", True) else "")
    return replace(model, decoder=(replace(stack, attention=attention),))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json; its own code knows no `head_dim`."""
    out = llama_like_to_hf(config, "InternLM2") | {"bias": bool(config.decoder[0].attention.biases)}
    attention = config.decoder[0].attention
    if attention.heads * attention.head_dim == config.width:
        del out["head_dim"]
    return out


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, PLAIN) + by_heads(config, "model.layers.{}.attention.wqkv", _group)


def _group(attention: Attention) -> tuple[int, dict[str, int | slice]]:
    queries = attention.heads // attention.kv_heads
    return queries + 2, {"q": slice(0, queries), "k": queries, "v": queries + 1}
