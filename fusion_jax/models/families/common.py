"""What the Llama-like families share: fields of config.json and the parts they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusion_jax.errors import quoted
from fusion_jax.fields import Fields
from fusion_jax.models.config import Activation, Attention, Experts, Head, Mlp, ModelConfig, Norm, Positions, Stack
from fusion_jax.models.families.rotary import POSITIONS, check_rotated, rope_fields, rope_from_hf
from fusion_jax.ops.rotary import Rope

# What is beyond any model: a file that gives more is broken.
WIDTH, LAYERS, VOCABULARY, LABELS, EXPERTS = 2**20, 1000, 2**24, 2**20, 2**12
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
"""By their names in config.json; of several for one the last is written."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Defaults:
    """What transformers takes for fields that a family's config.json leaves out; None follows from other fields."""

    max_positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    activation_field: str = "hidden_act"
    activation: str = "silu"
    eps: float = 1e-6


def default_of(fields: Fields, name: str, absent: Any) -> Any:
    """The default of a field: `absent` where it is not there, None where it is null."""
    return None if name in fields.values else absent


def llama_like_from_hf(
    fields: Fields, defaults: Defaults, ropes: Sequence[Rope] | None = None, attention: Attention | None = None
) -> ModelConfig:
    """The model that the fields give which every Llama-like config.json has: one stack of plain layers, without biases.

    Args:
      ropes: the rotary settings; None: the one that the file gives; empty: no rotary embedding.
      attention: None: that of the usual fields.
    """
    width = fields.integer("hidden_size", low=1, high=WIDTH)
    attention = _attention(fields, defaults, width) if attention is None else attention
    activation = activation_of(fields, defaults.activation_field, defaults.activation)
    most = max_positions_of(fields, defaults)
    ropes = (rope_from_hf(fields, most),) if ropes is None else tuple(ropes)
    if ropes and attention.rotary_dim % 2:
        raise fields.wrong("head_dim", f"is {attention.head_dim}; a rotary embedding needs an even number")
    if any(rope.kind == "dynamic" and rope.rotated(attention.rotary_dim) < 4 for rope in ropes):
        raise fields.wrong("head_dim", f"is {attention.head_dim}; dynamic rotary scaling needs 4 or more")
    for rope in ropes:
        check_rotated(fields, rope, attention.rotary_dim)
    vocabulary = fields.integer("vocab_size", low=1, high=VOCABULARY)
    check_token_ids(fields, vocabulary)
    norm = Norm(eps=fields.number("rms_norm_eps", defaults.eps, low=0, high=1))
    mlp = Mlp(fields.integer("intermediate_size", low=1, high=4 * WIDTH), activation)
    layers = fields.integer("num_hidden_layers", low=1, high=LAYERS)
    return ModelConfig(
        model_type=fields.text("model_type"),
        vocab_size=vocabulary,
        width=width,
        positions=Positions(most, ropes, "rotary" if ropes else "none"),
        decoder=(Stack(layers, attention, mlp, norm),),
        final_norm=norm,
        head=Head(fields.flag("tie_word_embeddings", defaults.tied), labels=labels_of(fields)),
        initializer_range=fields.number("initializer_range", 0.02, low=0, high=100),
    )


def activation_of(fields: Fields, name: str, default: str) -> Activation:
    """The activation that a field names."""
    return ACTIVATIONS[fields.choice(name, tuple(ACTIVATIONS), default)]


def max_positions_of(fields: Fields, defaults: Defaults) -> int:
    """`max_position_embeddings`."""
    most: int = fields.integer("max_position_embeddings", defaults.max_positions, low=1, high=POSITIONS)
    return most


def _attention(fields: Fields, defaults: Defaults, width: int) -> Attention:
    heads = fields.integer("num_attention_heads", low=1, high=WIDTH)
    absent = default_of(fields, "num_key_value_heads", defaults.kv_heads)
    kv_heads = fields.integer("num_key_value_heads", absent, low=1)
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        problem = f"is {kv_heads}, which does not divide {fields.called('num_attention_heads')}, {heads}"
        raise fields.wrong("num_key_value_heads", problem)
    head_dim = fields.integer("head_dim", default_of(fields, "head_dim", defaults.head_dim), low=1, high=WIDTH)
    return Attention(heads, kv_heads, share_of_head(fields, heads, width) if head_dim is None else head_dim)


def share_of_head(
    fields: Fields, heads: int, width: int, *, name: str = "num_attention_heads", of: str = "hidden_size"
) -> int:
    """A head's numbers where all heads together have the model's width; name, of: the fields of the two."""
    if width % heads:
        raise fields.wrong(name, f"is {heads}, which does not divide {fields.called(of)}, {width}")
    return width // heads


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


def experts_from_hf(fields: Fields, count: str, chosen: Any = None, absent: Any = None) -> Experts | None:
    """The experts of a config.json; None where there are 0 of them.

    Args:
      count: the field that says how many there are. absent, chosen: how many, and how many a token chooses, where the
        file does not say; None: it has to.
    """
    have = fields.integer(count, absent, low=0, high=EXPERTS) if absent else fields.integer(count, low=0, high=EXPERTS)
    if not have:
        return None
    bounds = {"low": 1, "high": have}
    name = "num_experts_per_tok"
    return Experts(have, fields.integer(name, chosen, **bounds) if chosen else fields.integer(name, **bounds))


def labels_of(
    fields: Fields, known: Sequence[str] = ("ForCausalLM", "ForSequenceClassification"), absent: int = 2
) -> int:
    """Scores of a sequence classifier; 0 for a language model.

    Args:
      known: how the names of the architectures that are supported end. absent: scores where the file tells none.
    """
    architectures = fields.items("architectures", [])
    for name in architectures:
        if not isinstance(name, str) or not name.endswith(tuple(known)):
            cure = f"Known: {', '.join(f'...{one}' for one in known)}"
            raise fields.wrong("architectures", f"{quoted(name)} is not supported", cure)
    if not any("SequenceClassification" in name for name in architectures):
        return 0
    names = fields.object("id2label", None)
    count: int = fields.integer("num_labels", absent, low=1, high=LABELS)
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
        problem = f"lists {len(kinds)} layers, {fields.called('num_hidden_layers')} is {layers}"
        raise fields.wrong("layer_types", problem)
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            cure = "Known: full_attention, sliding_attention"
            raise fields.wrong("layer_types", f"attention {quoted(kind)} is not supported", cure)
    return kinds


def window_of(fields: Fields) -> int:
    """`sliding_window`: how many keys a query sees; 0 for no limit."""
    window: int | None = fields.integer("sliding_window", default_of(fields, "sliding_window", 4096), low=0)
    return window or 0


def windows_of(kinds: Sequence[str], window: int) -> tuple[int, ...]:
    """The window of each layer by its kind of attention; empty where nothing is limited."""
    windows = tuple(window if kind == SLIDING else 0 for kind in kinds)
    return windows if any(windows) else ()


def upper_windows_of(fields: Fields, layers: int) -> tuple[int, ...]:
    """Qwen's windows: of the layers that `layer_types` names, or in older files of those from `max_window_layers` on;
    none unless `use_sliding_window`."""
    window = window_of(fields) if fields.flag("use_sliding_window", False) else 0
    first = fields.integer("max_window_layers", 28)
    kinds = layer_kinds(fields, layers) or [SLIDING if i >= first else FULL for i in range(layers)]
    return windows_of(kinds, window)


def kinds_to_hf(stack: Stack) -> dict[str, Any]:
    """`layer_types` and `sliding_window` of a stack."""
    windows = stack.windows or (0,) * stack.layers
    return {"sliding_window": max(windows) or None, "layer_types": [SLIDING if w else FULL for w in windows]}


def activation_to_hf(activation: Activation) -> str:
    """What config.json calls it."""
    return {ours: theirs for theirs, ours in ACTIVATIONS.items()}[activation]


NO_PADDING = {"pad_token_id": None}
"""For families for which transformers takes another default, which a small vocabulary does not have."""


def llama_like_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """A config.json in the forms of transformers 4 and 5; `architecture` without its task, e.g. "Llama"."""
    stack, attention = config.decoder[0], config.decoder[0].attention
    activation = activation_to_hf(stack.mlp.activation)
    ropes = config.positions.ropes[:1]
    out: dict[str, Any] = {
        "architectures": [architecture + ("ForSequenceClassification" if config.head.labels else "ForCausalLM")],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": stack.mlp.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": stack.norm.eps,
        **(rope_fields(ropes[0], config.max_positions) if ropes else {}),
        "tie_word_embeddings": config.head.tied,
        "hidden_act": activation,
        "initializer_range": config.initializer_range,
    }
    return out | labels_to_hf(config)


def labels_to_hf(config: ModelConfig) -> dict[str, Any]:
    """`id2label` of a sequence classifier."""
    labels = config.head.labels
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}} if labels else {}
