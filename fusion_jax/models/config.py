"""What a decoder is: the structural switches that the families share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base and, where the family scales it, the rule (`rope_parameters` of the files)."""

    theta: float = 10_000.0
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer. Sizes in units, windows in tokens.

    windows: for each layer, how many keys (itself included) a query sees; 0 is no limit.
    num_labels: 0 is a language model; otherwise a sequence-classification head of that many scores.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    windows: tuple[int, ...] = ()
    tied_head: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    query_scale: float | None = None  # None: head_dim ** -0.5
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    post_norms: bool = False
    norm_unit_offset: bool = False  # the norm multiplies by 1 + scale
    embed_scale: float = 1.0
    num_labels: int = 0
    initializer_range: float = 0.02
