"""What the Llama-like families share: config fields, rotary settings, tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion_jax.errors import InputError
from fusion_jax.models.config import DecoderConfig, RopeConfig


@dataclass(frozen=True)
class HfTensor:
    """One tensor of the files: its name, the parameter it fills, which layer of it, and whether it lies transposed."""

    name: str
    path: tuple[str, ...]
    layer: int | None = None
    transpose: bool = False


def required(values: Mapping[str, Any], name: str) -> Any:
    """A field that config.json must have."""
    if values.get(name) is None:
        raise InputError("is missing from config.json", field=name, cure="Restore the model's own config.json")
    return values[name]


def rope_from_hf(values: Mapping[str, Any]) -> RopeConfig:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    scaling = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(scaling.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    kind: Any = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise InputError(
            f"rotary scaling '{kind}' is not supported", field="rope_parameters",
            cure="Known: default, linear, dynamic, llama3, yarn",
        )  # fmt: skip
    if float(scaling.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise InputError("a partial rotary embedding is not supported", field="partial_rotary_factor")
    for name in ("mscale", "mscale_all_dim"):
        if scaling.get(name):
            raise InputError("this form of yarn is not supported", field=f"rope_parameters.{name}")
    attention_factor = scaling.get("attention_factor")
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=float(scaling.get("factor") or 1.0),
        original_max_positions=int(scaling.get("original_max_position_embeddings") or 0),
        low_freq_factor=float(scaling.get("low_freq_factor") or 1.0),
        high_freq_factor=float(scaling.get("high_freq_factor") or 4.0),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
    )


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """`rope_parameters` of transformers 5."""
    out: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": rope.kind}
    if rope.kind != "default":
        out["factor"] = rope.factor
    if rope.original_max_positions:
        out["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        out |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        out |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        out |= {} if rope.attention_factor is None else {"attention_factor": rope.attention_factor}
    return out


def common_from_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DecoderConfig` that every Llama-like config.json gives in the same way."""
    heads, width = int(required(values, "num_attention_heads")), int(required(values, "hidden_size"))
    activation = values.get("hidden_act") or values.get("hidden_activation") or "silu"
    known = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
    if activation not in known:
        raise InputError(
            f"activation '{activation}' is not supported", field="hidden_act", cure=f"Known: {', '.join(known)}"
        )
    architectures = values.get("architectures") or ()
    if not all(name.endswith(("ForCausalLM", "ForSequenceClassification")) for name in architectures):
        raise InputError(
            f"{', '.join(architectures)} is not supported", field="architectures",
            cure="Known: ...ForCausalLM, ...ForSequenceClassification",
        )  # fmt: skip
    classifier = any("SequenceClassification" in name for name in architectures)
    labels = len(values["id2label"]) if values.get("id2label") else int(values.get("num_labels") or 2)
    return {
        "model_type": values["model_type"],
        "vocab_size": int(required(values, "vocab_size")),
        "hidden_size": width,
        "intermediate_size": int(required(values, "intermediate_size")),
        "num_layers": int(required(values, "num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": int(values.get("num_key_value_heads") or heads),
        "head_dim": int(values.get("head_dim") or width // heads),
        "max_positions": int(values.get("max_position_embeddings") or 2048),
        "norm_eps": float(values.get("rms_norm_eps", 1e-6)),
        "rope": rope_from_hf(values),
        "tied_head": bool(values.get("tie_word_embeddings", False)),
        "activation": known[activation],
        "num_labels": labels if classifier else 0,
        "initializer_range": float(values.get("initializer_range", 0.02)),
    }


def common_to_hf(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """A config.json in transformers 5's form; `architecture` without its task, e.g. "Llama"."""
    c = config
    activation = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[c.activation]
    out: dict[str, Any] = {
        "architectures": [architecture + ("ForSequenceClassification" if c.num_labels else "ForCausalLM")],
        "model_type": c.model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope_to_hf(c.rope),
        "tie_word_embeddings": c.tied_head,
        "hidden_act": activation,
        "initializer_range": c.initializer_range,
    }
    if c.num_labels:
        out["id2label"] = {str(i): f"LABEL_{i}" for i in range(c.num_labels)}
    return out


NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
LINEARS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def llama_like_names(config: DecoderConfig, norms: Mapping[str, str] | None = None) -> list[HfTensor]:
    """Tensor names of a Llama-like family; `norms` maps our norms of a layer to the family's names."""
    c, out = config, [HfTensor("model.embed_tokens.weight", ("embed", "embedding"))]
    for i in range(c.num_layers):
        prefix = f"model.layers.{i}"
        for ours, theirs in (norms or NORMS).items():
            out.append(HfTensor(f"{prefix}.{theirs}.weight", ("layers", ours, "scale"), i))
        for ours, theirs in LINEARS.items():
            out.append(HfTensor(f"{prefix}.{theirs}.weight", ("layers", ours, "kernel"), i, True))
            biased = c.qkv_bias if ours in "qkv" else c.out_bias if ours == "o" else c.mlp_bias
            if biased:
                out.append(HfTensor(f"{prefix}.{theirs}.bias", ("layers", ours, "bias"), i))
    out.append(HfTensor("model.norm.weight", ("final_norm", "scale")))
    if c.num_labels:
        out.append(HfTensor("score.weight", ("score", "kernel")))
    elif not c.tied_head:
        out.append(HfTensor("lm_head.weight", ("head", "kernel")))
    return out
