"""What the Llama-like families share: config fields, rotary settings, tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import DecoderConfig, RopeConfig

# What is beyond any model: a file that gives more is broken.
WIDTH, LAYERS, VOCABULARY, LABELS, POSITIONS = 2**20, 1000, 2**24, 2**20, 2**31 - 1
ACTIVATIONS: dict[str, Any] = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class HfTensor:
    """One tensor of the files: its name, the parameter it fills, which layer of it, and whether it lies transposed."""

    name: str
    path: tuple[str, ...]
    layer: int | None = None
    transpose: bool = False


@dataclass(frozen=True)
class Defaults:
    """What transformers takes for fields that a family's config.json leaves out; None follows from other fields."""

    max_positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    activation_field: str = "hidden_act"
    activation: str = "silu"


def default_of(fields: Fields, name: str, absent: Any) -> Any:
    """The default of a field: `absent` where it is not there, None where it is null."""
    return None if name in fields.values else absent


def rope_from_hf(fields: Fields, max_positions: int) -> RopeConfig:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Where a file has both forms, `rope_scaling` and `rope_theta` give what they hold, as in transformers.
    """
    name = "rope_scaling" if fields.object("rope_scaling", None) else "rope_parameters"
    scaling = fields.object(name, None) or Fields({}, fields.file)
    theta = scaling.number("rope_theta", None, above=1, high=1e15)
    kind: Any = scaling.text("rope_type", None) or scaling.text("type", "default")
    if kind not in ROPE_KINDS:
        problem = f"rotary scaling {quoted(kind)} is not supported"
        raise fields.wrong(name, problem, f"Known: {', '.join(ROPE_KINDS)}")
    layered = next((key for key, value in scaling.values.items() if isinstance(value, dict)), None)
    if layered is not None:
        raise scaling.wrong(layered, "a rotary embedding for each kind of layer is not supported")
    for one in (scaling, fields):
        if one.number("partial_rotary_factor", 1.0) != 1.0:
            raise one.wrong("partial_rotary_factor", "a partial rotary embedding is not supported")
    unknown = [key for key in ("mscale", "mscale_all_dim") if scaling.number(key, 0.0)]
    unknown += [] if scaling.flag("truncate", True) else ["truncate"]
    if unknown:
        raise scaling.wrong(unknown[0], "this form of yarn is not supported")
    original = scaling.integer("original_max_position_embeddings", None, low=1, high=POSITIONS)
    scaled = kind in ("llama3", "yarn")
    low = scaling.number("low_freq_factor", 1.0, above=0, high=1e6)
    high = scaling.number("high_freq_factor", 4.0, above=0, high=1e6)
    if kind == "llama3" and high <= low:
        raise scaling.wrong("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
    return RopeConfig(
        theta=theta if theta is not None else fields.number("rope_theta", 10_000.0, above=1, high=1e15),
        kind=kind,
        factor=_rope_factor(scaling, kind, original, max_positions),
        original_max_positions=original or (max_positions if scaled else 0),
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=scaling.number("beta_fast", 32.0, above=0, high=1e6),
        beta_slow=scaling.number("beta_slow", 1.0, above=0, high=1e6),
        attention_factor=scaling.number("attention_factor", None, above=0, high=1e6),
    )


def _rope_factor(scaling: Fields, kind: str, original: int | None, max_positions: int) -> float:
    if kind == "default":
        return 1.0
    ratio = max_positions / original if kind == "yarn" and original else None
    factor: float | None = scaling.number("factor", ratio, above=0, high=1e6)
    if factor is None:
        raise scaling.wrong("factor", f"is missing, which {kind} needs")
    return factor


def with_both_forms(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of any family whose rotary settings stand in the forms of transformers 4 and 5, if they stand in
    one of them: a version that does not know the other one would take its defaults without a word."""
    scaling, rope = values.get("rope_scaling") or {}, values.get("rope_parameters")
    if not isinstance(scaling, dict) or (rope is not None and not isinstance(rope, dict)):
        return dict(values)
    if scaling or not rope:  # as transformers 5 reads a file that has both
        if "rope_theta" not in values:
            return dict(values)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        new = {"rope_theta": values["rope_theta"], **scaling, "rope_type": kind}
        return {**values, "rope_parameters": {key: value for key, value in new.items() if key != "type"}}
    if "rope_theta" not in rope or any(isinstance(value, dict) for value in rope.values()):
        return dict(values)
    top = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    old = {key: value for key, value in rope.items() if key not in top}
    plain = old.keys() <= {"rope_type", "type"} and "default" in old.values()
    return {**values, **top, "rope_scaling": None if plain or not old else old}


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


def common_from_hf(fields: Fields, defaults: Defaults) -> dict[str, Any]:
    """The fields of `DecoderConfig` that every Llama-like config.json gives in the same way."""
    width = fields.integer("hidden_size", low=1, high=WIDTH)
    heads = fields.integer("num_attention_heads", low=1, high=WIDTH)
    absent = default_of(fields, "num_key_value_heads", defaults.kv_heads)
    kv_heads = fields.integer("num_key_value_heads", absent, low=1)
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads, {heads}")
    head_dim = fields.integer("head_dim", default_of(fields, "head_dim", defaults.head_dim), low=1, high=WIDTH)
    if head_dim is None and width % heads:
        raise fields.wrong("num_attention_heads", f"is {heads}, which does not divide hidden_size, {width}")
    head_dim = width // heads if head_dim is None else head_dim
    if head_dim % 2:
        raise fields.wrong("head_dim", f"is {head_dim}; a rotary embedding needs an even number")
    activation = fields.text(defaults.activation_field, defaults.activation)
    if activation not in ACTIVATIONS:
        problem = f"activation {quoted(activation)} is not supported"
        raise fields.wrong(defaults.activation_field, problem, f"Known: {', '.join(ACTIVATIONS)}")
    max_positions = fields.integer("max_position_embeddings", defaults.max_positions, low=1, high=POSITIONS)
    rope = rope_from_hf(fields, max_positions)
    if rope.kind == "dynamic" and head_dim < 4:
        raise fields.wrong("head_dim", f"is {head_dim}; dynamic rotary scaling needs 4 or more")
    vocabulary = fields.integer("vocab_size", low=1, high=VOCABULARY)
    check_token_ids(fields, vocabulary)
    return {
        "model_type": fields.text("model_type"),
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": fields.integer("intermediate_size", low=1, high=4 * WIDTH),
        "num_layers": fields.integer("num_hidden_layers", low=1, high=LAYERS),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": max_positions,
        "norm_eps": fields.number("rms_norm_eps", 1e-6, low=0, high=1),
        "rope": rope,
        "tied_head": fields.flag("tie_word_embeddings", defaults.tied),
        "activation": ACTIVATIONS[activation],
        "num_labels": _labels(fields),
        "initializer_range": fields.number("initializer_range", 0.02, low=0, high=100),
    }


def check_token_ids(fields: Fields, vocabulary: int, *, ends: bool = False) -> None:
    """Ids of tokens are whole numbers, a list of them for the end of text, or null.

    ends: whether an end of text is one of the vocabulary; other ids may be -1 or beyond it, as in published files.

    Raises:
      InputError: names the field.
    """
    for name in TOKEN_IDS:
        value = fields.values.get(name)
        low, high = (0, vocabulary - 1) if ends and name == "eos_token_id" else (-1, 2**31 - 1)
        for one in value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]:
            replace(fields, values={name: one}).integer(name, low=low, high=high)


def _labels(fields: Fields) -> int:
    """Scores of a sequence classifier; 0 for a language model."""
    architectures = fields.items("architectures", [])
    for name in architectures:
        if not isinstance(name, str) or not name.endswith(("ForCausalLM", "ForSequenceClassification")):
            cure = "Known: ...ForCausalLM, ...ForSequenceClassification"
            raise fields.wrong("architectures", f"{quoted(name)} is not supported", cure)
    if not any("SequenceClassification" in name for name in architectures):
        return 0
    names = fields.object("id2label", None)
    count: int = fields.integer("num_labels", 2, low=1, high=LABELS)
    if names is None or not names.values:
        return count
    if len(names.values) > LABELS:
        raise fields.wrong("id2label", f"has {len(names.values)} entries, {LABELS} at most")
    return len(names.values)


def layer_kinds(fields: Fields, layers: int) -> list[str] | None:
    """`layer_types`: the kind of each layer's attention; None where config.json does not list them."""
    kinds: list[Any] | None = fields.items("layer_types", None)
    if kinds is None:
        return None
    if len(kinds) != layers:
        raise fields.wrong("layer_types", f"lists {len(kinds)} layers, num_hidden_layers is {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            cure = "Known: full_attention, sliding_attention"
            raise fields.wrong("layer_types", f"attention {quoted(kind)} is not supported", cure)
    return kinds


def window_of(fields: Fields) -> int:
    """`sliding_window`: how many keys a query sees; 0 for no limit."""
    window: int | None = fields.integer("sliding_window", default_of(fields, "sliding_window", 4096), low=0)
    return window or 0


def common_to_hf(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """A config.json in the forms of transformers 4 and 5; `architecture` without its task, e.g. "Llama"."""
    c = config
    activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[c.activation]
    scaled = c.rope.kind != "default"
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
        "rope_theta": c.rope.theta,
        "rope_scaling": {k: v for k, v in rope_to_hf(c.rope).items() if k != "rope_theta"} if scaled else None,
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
