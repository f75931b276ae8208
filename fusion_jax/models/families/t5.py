"""T5 v1.0 and v1.1, Flan-T5: an encoder and a decoder without positions of their own, whose scores are not scaled and
have a learned bias by ranges of distances."""

from __future__ import annotations

from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Activation, Attention, Head, Mlp, ModelConfig, Norm, Positions, Stack
from fusion_jax.models.families.common import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    check_token_ids,
    labels_of,
    labels_to_hf,
)
from fusion_jax.models.families.rotary import POSITIONS
from fusion_jax.models.families.tensors import HfTensor, head_tensors, side_tensors

IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)
COPIES = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}
COPIES |= {f"transformer.{copy}": "transformer.shared.weight" for copy in tuple(COPIES)}
KNOWN = ("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model", "T5ForSequenceClassification")
KINDS: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False), "gelu": ("gelu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True),
}  # fmt: skip
"""`feed_forward_proj`: the activation, and whether it gates."""


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts. A head of its own and unscaled hidden states are what
    `tie_word_embeddings: false` says, as transformers reads it, unless `scale_decoder_outputs` stands beside it."""
    labels = labels_of(fields, KNOWN)
    width = fields.integer("d_model", 512, low=1, high=WIDTH)
    heads = fields.integer("num_heads", 8, low=1, high=WIDTH)
    attention = Attention(heads, heads, fields.integer("d_kv", 64, low=1, high=WIDTH), scale=1.0)
    activation, gated = KINDS[fields.choice("feed_forward_proj", tuple(KINDS), "relu")]
    mlp = Mlp(fields.integer("d_ff", 2048, low=1, high=4 * WIDTH), activation, gated)
    norm = Norm(eps=fields.number("layer_norm_epsilon", 1e-6, low=0, high=1))
    layers = fields.integer("num_layers", 6, low=1, high=LAYERS)
    behind = fields.integer("num_decoder_layers", layers, low=1, high=LAYERS)
    buckets = fields.integer("relative_attention_num_buckets", 32, low=4, high=2**16)
    distance = fields.integer("relative_attention_max_distance", 128, low=buckets, high=POSITIONS)
    if buckets % 4:
        raise fields.wrong("relative_attention_num_buckets", f"is {buckets}, which 4 does not divide")
    vocabulary = fields.integer("vocab_size", 32128, low=1, high=VOCABULARY)
    check_token_ids(fields, vocabulary)
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied) and not labels
    padding = fields.integer("pad_token_id", 0, low=0, high=vocabulary - 1)
    return ModelConfig(
        model_type="t5", vocab_size=vocabulary, width=width,
        positions=Positions(POSITIONS, kind="buckets", buckets=buckets, distance=distance),
        decoder=(Stack(behind, attention, mlp, norm, cross=True),),
        encoder=(Stack(layers, attention, mlp, norm, causal=False),),
        final_norm=norm, head=Head(tied, labels=labels, scale=width**-0.5 if scaled else 1.0, pooled=bool(labels)),
        start=fields.integer("decoder_start_token_id", padding, low=0, high=vocabulary - 1),
    )  # fmt: skip


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    (decoder,), (encoder,) = config.decoder, config.encoder
    names = {kind: name for name, kind in KINDS.items()}
    return {
        "architectures": ["T5ForSequenceClassification" if config.head.labels else "T5ForConditionalGeneration"],
        "model_type": "t5", "is_encoder_decoder": True,
        "vocab_size": config.vocab_size, "d_model": config.width, "d_kv": decoder.attention.head_dim,
        "d_ff": decoder.mlp.width, "num_layers": encoder.layers, "num_decoder_layers": decoder.layers,
        "num_heads": decoder.attention.heads, "feed_forward_proj": names[decoder.mlp.activation, decoder.mlp.gated],
        "relative_attention_num_buckets": config.positions.buckets,
        "relative_attention_max_distance": config.positions.distance, "layer_norm_epsilon": decoder.norm.eps,
        "tie_word_embeddings": config.head.tied, "scale_decoder_outputs": config.head.scale != 1.0,
        "decoder_start_token_id": config.start, **labels_to_hf(config),
    }  # fmt: skip


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; a classifier's body stands behind "transformer."."""
    body = "transformer." if config.head.labels else ""
    out = [HfTensor(f"{body}shared.weight", ("embed", "embedding"))]
    for side in config.sides:
        last = 2 if side == "decoder" else 1
        inner = {"up": "wi_1" if config.decoder[0].mlp.gated else "wi", "gate": "wi_0", "down": "wo"}
        parts = {name: f"layer.0.SelfAttention.{name}" for name in "qkvo"}
        parts |= {f"cross.{name}": f"layer.1.EncDecAttention.{name}" for name in "qkvo"}
        parts |= {name: f"layer.{last}.DenseReluDense.{theirs}" for name, theirs in inner.items()}
        parts |= {"attention_norm": "layer.0.layer_norm", "cross_norm": "layer.1.layer_norm"}
        parts["mlp_norm"] = f"layer.{last}.layer_norm"
        table = f"{body}{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        beside = {"buckets.table": table, "final_norm": f"{body}{side}.final_layer_norm"}
        out += side_tensors(config, side, f"{body}{side}.block.{{}}", parts, beside)
    return out + head_tensors(config, "classification_head.dense", "classification_head.out_proj")
