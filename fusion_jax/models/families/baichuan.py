"""Baichuan 1 and 2 of 7B and 13B: Llama's body with queries, keys and values in one tensor; the 13B models with ALiBi,
Baichuan 2 with a head whose rows have length 1.

All four have one model_type, and config.json has no field for either difference. Of the published files only those of
the 7B models have `max_position_embeddings`: a file without it is one with ALiBi, of up to `model_max_length` tokens.
The head is Baichuan 2's where the vocabulary has its 125,696 entries or the file has `z_loss_weight`, a field of
Baichuan 2's own configuration, which it also writes for vocabularies of other sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import ModelConfig, Positions
from fusion_jax.models.families.common import Defaults, llama_like_from_hf, llama_like_to_hf
from fusion_jax.models.families.tensors import HfTensor, Names, llama_like_tensors

DEFAULTS = Defaults(max_positions=4096)
UNREAD = ("num_key_value_heads", "head_dim")
IGNORED: tuple[str, ...] = ()
SECOND = 125696  # entries of Baichuan 2's vocabulary
OWN = Names(fused={"self_attn.W_pack": ("q", "k", "v")})


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    own = {name: value for name, value in fields.values.items() if name not in UNREAD}
    fields = replace(fields, values=own)
    alibi = own.get("max_position_embeddings") is None
    if alibi:
        fields = fields.renamed({"max_position_embeddings": "model_max_length"})
    model = llama_like_from_hf(fields, DEFAULTS, () if alibi else None)
    if alibi:
        model = replace(model, positions=Positions(model.max_positions, (), "alibi"))
    second = model.vocab_size == SECOND or fields.number("z_loss_weight", None) is not None
    return replace(model, head=replace(model.head, normalised=second))


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    out = llama_like_to_hf(config, "Baichuan") | {"model_max_length": config.max_positions}
    out |= {"z_loss_weight": 0} if config.head.normalised else {}
    unread = (*UNREAD, "max_position_embeddings") if config.positions.kind == "alibi" else UNREAD
    return {name: value for name, value in out.items() if name not in unread}


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    return llama_like_tensors(config, OWN)
