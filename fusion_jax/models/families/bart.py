"""BART, also the Chinese ones: an encoder and a decoder with learned positions, biases, and norms behind each part and
behind the embedding."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Attention, Embed, Head, Mlp, ModelConfig, Norm, Positions, Side, Stack
from fusion_jax.models.families.common import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    activation_of,
    activation_to_hf,
    check_token_ids,
    labels_of,
    labels_to_hf,
    share_of_head,
)
from fusion_jax.models.families.rotary import POSITIONS
from fusion_jax.models.families.tensors import HfTensor, head_tensors, side_tensors

IGNORED: tuple[str, ...] = ()
COPIES = {f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")}
ZEROS = ("final_logits_bias",)
KNOWN = ("BartForConditionalGeneration", "BartModel", "BartForSequenceClassification")
NORM, OFFSET = Norm("layer", eps=1e-5, bias=True), 2


def usual_name(name: str, names: Collection[str]) -> str:
    """Files of the bare model leave "model." out."""
    return f"model.{name}" if name.split(".")[0] in ("shared", "encoder", "decoder") else name


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    labels = labels_of(fields, KNOWN, absent=3)
    for name in ("normalize_before", "add_final_layer_norm"):
        if fields.flag(name, False):
            raise fields.wrong(name, "norms before the parts are not BART's", "Take a model that transformers reads")
    width = fields.integer("d_model", 1024, low=1, high=WIDTH)
    vocabulary = fields.integer("vocab_size", 50265, low=1, high=VOCABULARY)
    check_token_ids(fields, vocabulary)
    most = fields.integer("max_position_embeddings", 1024, low=1, high=POSITIONS)
    scale = math.sqrt(width) if fields.flag("scale_embedding", False) else 1.0
    return ModelConfig(
        model_type="bart", vocab_size=vocabulary, width=width,
        positions=Positions(most, kind="learned", offset=OFFSET), embed=Embed(scale, NORM),
        decoder=(_stack(fields, "decoder", width),), encoder=(_stack(fields, "encoder", width),), final_norm=None,
        head=Head(
            fields.flag("tie_word_embeddings", True), labels=labels, pooled=bool(labels),
            copying=fields.flag("copy_gate", False) and not labels,
        ),
        initializer_range=fields.number("init_std", 0.02, low=0, high=100),
        start=fields.integer("decoder_start_token_id", min(2, vocabulary - 1), low=0, high=vocabulary - 1),
    )  # fmt: skip


def _stack(fields: Fields, side: Side, width: int) -> Stack:
    heads = fields.integer(f"{side}_attention_heads", 16, low=1, high=WIDTH)
    head_dim = share_of_head(fields, heads, width, name=f"{side}_attention_heads", of="d_model")
    activation = activation_of(fields, "activation_function", "gelu")
    inner = fields.integer(f"{side}_ffn_dim", 4096, low=1, high=4 * WIDTH)
    return Stack(
        fields.integer(f"{side}_layers", 12, low=1, high=LAYERS),
        Attention(heads, heads, head_dim, biases="qkvo"),
        Mlp(inner, activation, gated=False, bias=True), NORM, residual="post",
        causal=side == "decoder", cross=side == "decoder",
    )  # fmt: skip


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    out = {
        "architectures": ["BartForSequenceClassification" if config.head.labels else "BartForConditionalGeneration"],
        "model_type": "bart", "is_encoder_decoder": True, **labels_to_hf(config),
        "vocab_size": config.vocab_size, "d_model": config.width, "max_position_embeddings": config.max_positions,
        "activation_function": activation_to_hf(config.decoder[0].mlp.activation),
        "scale_embedding": config.embed.scale != 1.0, "tie_word_embeddings": config.head.tied,
        "init_std": config.initializer_range, "decoder_start_token_id": config.start,
    }  # fmt: skip
    out |= {"copy_gate": True} if config.head.copying else {}
    for side, (stack,) in (("decoder", config.decoder), ("encoder", config.encoder)):
        out |= {f"{side}_layers": stack.layers, f"{side}_ffn_dim": stack.mlp.width}
        out[f"{side}_attention_heads"] = stack.attention.heads
    return out


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors."""
    out = [HfTensor("model.shared.weight", ("embed", "embedding"))]
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    parts = {ours: f"self_attn.{theirs}" for ours, theirs in names.items()}
    parts |= {f"cross.{ours}": f"encoder_attn.{theirs}" for ours, theirs in names.items()}
    parts |= {"attention_norm": "self_attn_layer_norm", "cross_norm": "encoder_attn_layer_norm"}
    parts |= {"up": "fc1", "down": "fc2", "mlp_norm": "final_layer_norm"}
    for side in config.sides:
        beside = {"embed.positions": f"model.{side}.embed_positions", "embed.norm": f"model.{side}.layernorm_embedding"}
        out += side_tensors(config, side, f"model.{side}.layers.{{}}", parts, beside)
    if config.head.copying:  # of this project, see `ops.copying`; transformers leaves the gate out
        out += [HfTensor("copy_gate.weight", ("copy", "kernel")), HfTensor("copy_gate.bias", ("copy", "bias"))]
    return out + head_tensors(config, "classification_head.dense", "classification_head.out_proj")
