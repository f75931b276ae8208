"""BERT: an encoder with learned positions, types of tokens, norms behind each part, and a pooler. The heads of its
training (masked tokens, next sentence) are left out, as transformers' BertModel leaves them.

"projection_dim" in config.json, which is this project's, makes it a retriever: "projection.weight" and
"projection.bias" stand in the place of the pooler (`Head.projected`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fusion_jax.fields import Fields
from fusion_jax.models.config import Attention, Embed, Head, Mlp, ModelConfig, Norm, Positions, Stack
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

IGNORED = (r"^cls\.",)
KNOWN = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForSequenceClassification")
BODY = ("embeddings", "encoder", "pooler")
OLDER = {"gamma": "weight", "beta": "bias"}


def usual_name(name: str, names: Collection[str]) -> str:
    """Files of a model with a head put "bert." before the body, which is kept for a classifier; those of TensorFlow
    call a norm's numbers gamma and beta."""
    body = name.removeprefix("bert.")
    first, dot, last = body.rpartition(".")
    whole = f"{first}{dot}{OLDER.get(last, last)}"
    return _prefix("classifier.weight" in names) + whole if body.split(".")[0] in BODY else whole


def _prefix(classifier: bool) -> str:
    return "bert." if classifier else ""


def from_hf(fields: Fields) -> ModelConfig:
    """config.json to the model's parts."""
    labels = labels_of(fields, KNOWN)
    for name in ("is_decoder", "add_cross_attention"):
        if fields.flag(name, False):
            raise fields.wrong(name, "BERT as a decoder is not supported", "Take the encoder")
    fields.choice("position_embedding_type", ("absolute",), "absolute")
    width = fields.integer("hidden_size", 768, low=1, high=WIDTH)
    heads = fields.integer("num_attention_heads", 12, low=1, high=WIDTH)
    head_dim = share_of_head(fields, heads, width)
    vocabulary = fields.integer("vocab_size", 30522, low=1, high=VOCABULARY)
    check_token_ids(fields, vocabulary)
    norm = Norm("layer", fields.number("layer_norm_eps", 1e-12, low=0, high=1), bias=True)
    inner = fields.integer("intermediate_size", 3072, low=1, high=4 * WIDTH)
    mlp = Mlp(inner, activation_of(fields, "hidden_act", "gelu"), gated=False, bias=True)
    attention = Attention(heads, heads, head_dim, biases="qkvo")
    layers = fields.integer("num_hidden_layers", 12, low=1, high=LAYERS)
    types = fields.integer("type_vocab_size", 2, low=1, high=VOCABULARY)
    most = fields.integer("max_position_embeddings", 512, low=1, high=POSITIONS)
    return ModelConfig(
        model_type="bert", vocab_size=vocabulary, width=width, positions=Positions(most, kind="learned"), decoder=(),
        encoder=(Stack(layers, attention, mlp, norm, residual="post", causal=False),), embed=Embed(1.0, norm, types),
        final_norm=None, head=_head(fields, labels),
        initializer_range=fields.number("initializer_range", 0.02, low=0, high=100),
    )  # fmt: skip


def _head(fields: Fields, labels: int) -> Head:
    """A pooler with or without scores, or a retriever's projection."""
    projected = fields.integer("projection_dim", 0, low=0, high=WIDTH)
    if projected and labels:
        raise fields.wrong("projection_dim", "stands beside the labels of a classifier", "Leave out one of the two")
    return Head(labels=labels, pooled=not projected, projected=projected)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The parts to config.json."""
    (stack,) = config.encoder
    retriever = {"projection_dim": config.head.projected} if config.head.projected else {}
    return {
        "architectures": ["BertForSequenceClassification" if config.head.labels else "BertModel"],
        "model_type": "bert", "vocab_size": config.vocab_size, "hidden_size": config.width,
        "num_attention_heads": stack.attention.heads, "num_hidden_layers": stack.layers,
        "intermediate_size": stack.mlp.width, "hidden_act": activation_to_hf(stack.mlp.activation),
        "layer_norm_eps": stack.norm.eps, "type_vocab_size": config.embed.types,
        "max_position_embeddings": config.max_positions, "initializer_range": config.initializer_range,
        **retriever, **labels_to_hf(config),
    }  # fmt: skip


def tensors(config: ModelConfig) -> list[HfTensor]:
    """Names of the tensors; a classifier's body stands behind "bert."."""
    body = _prefix(bool(config.head.labels))
    inner = {"q": "query", "k": "key", "v": "value"}
    parts = {ours: f"attention.self.{theirs}" for ours, theirs in inner.items()}
    parts |= {"o": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"}
    parts |= {"up": "intermediate.dense", "down": "output.dense", "mlp_norm": "output.LayerNorm"}
    names = {
        "embed.positions": "position_embeddings",
        "embed.types": "token_type_embeddings",
        "embed.norm": "LayerNorm",
    }
    beside = {ours: f"{body}embeddings.{theirs}" for ours, theirs in names.items()}
    out = [HfTensor(f"{body}embeddings.word_embeddings.weight", ("embed", "embedding"))]
    out += side_tensors(config, "encoder", f"{body}encoder.layer.{{}}", parts, beside)
    out += head_tensors(config, f"{body}pooler.dense", "classifier")
    if config.head.projected:
        out.append(HfTensor("projection.weight", ("projection", "kernel"), transpose=True))
        out.append(HfTensor("projection.bias", ("projection", "bias")))
    return out
