"""What a model is made of: records that the blocks obey. Sizes in units, windows in tokens.

A family turns a config.json into these records (`models/families/`); nothing behind it asks for the family's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fusion_jax.ops.rotary import Rope

Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]
Side = Literal["decoder", "encoder"]
Part = Literal["attention", "mlp"]
Residual = Literal["pre", "post", "after", "parallel", "parallel_norms", "sandwich"]


@dataclass(frozen=True)
class Norm:
    """x / rms(x) * scale, or (x - mean(x)) / std(x) * scale (+ bias). unit_offset: times 1 + scale instead."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    unit_offset: bool = False
    bias: bool = False


@dataclass(frozen=True)
class Positions:
    """How the place of a token enters, for up to `max_positions` tokens.

    kind: rotary embeddings of queries and keys; alibi, a bias of the scores that grows with the distance (arXiv
      2108.12409); learned, a vector for each place that is added to the token's; buckets, a learned bias of the scores
      by ranges of distances (T5, arXiv 1910.10683); none.
    ropes: the settings that the layers choose from (`Stack.ropes`); most models have one.
    offset: rows of a learned table before that of place 0. buckets, distance: how many ranges there are, and the
      distance from which on all places share the last one.
    """

    max_positions: int
    ropes: tuple[Rope, ...] = field(default_factory=lambda: (Rope(),))
    kind: Literal["rotary", "alibi", "learned", "buckets", "none"] = "rotary"
    offset: int = 0
    buckets: int = 32
    distance: int = 128

    @property
    def switches(self) -> tuple[int, ...]:
        """Lengths beyond which all tokens of a text are turned otherwise than in shorter texts."""
        if self.kind != "rotary":
            return ()
        return tuple({rope.original_max_positions for rope in self.ropes if rope.kind == "longrope"})


@dataclass(frozen=True)
class Latent:
    """Keys and values by way of a short vector, the only one that is kept of a token (DeepSeek-V2, arXiv 2405.04434).

    A token x has the latent c = norm(x W), of `kv_rank` numbers. Each head's value is `value_dim` numbers made of c; of
    its key `nope_dim` are made of c, and `rope_dim` more, made of x and rotated, are the same for all heads.
    q_rank: queries are made of norm(x W) of so many numbers; None: of x.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None
    norm: Norm = field(default_factory=Norm)


@dataclass(frozen=True)
class Attention:
    """Softmax attention of `heads` queries over `kv_heads` keys and values, all of `head_dim` numbers.

    scale: of the scores; None: head_dim ** -0.5. biases: which of q, k, v and o have one. qk_norm: of queries and
    keys before the rotary embedding, of each head's or, with `norms_all`, of those of all heads together.
    rotary_pairs: see `ops.rotary.apply_rotary`. clip: queries, keys and values are clipped to [-clip, clip] as they are
      projected.
    latent: how keys and values are made, for as many heads of them as of queries, `head_dim` the numbers of a key; the
      biases are then those of the projections to c (k) and to the queries' latent (q), and of o. None: of x.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float | None = None
    soft_cap: float | None = None
    biases: str = ""
    qk_norm: Norm | None = None
    norms_all: bool = False
    rotary_pairs: bool = False
    clip: float | None = None
    latent: Latent | None = None

    @property
    def rotary_dim(self) -> int:
        """Numbers of a head that a rotary embedding takes a share of."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def value_dim(self) -> int:
        """Numbers of a head's value."""
        return self.head_dim if self.latent is None else self.latent.value_dim


@dataclass(frozen=True)
class Experts:
    """Feed-forwards of which each token goes through those that a router chooses for it (arXiv 2101.03961).

    A token x has the probabilities p = softmax(router(x)) over the `count` experts; it takes the `chosen` most probable
    ones and the sum of p_e * expert_e(x) over them, times `scale`.

    normalised: the probabilities of the chosen are divided by their sum. shared: so many experts more that every token
    goes through unweighted; they are one feed-forward of their summed width.
    groups, top_groups: experts lie in `groups` groups of equal size, one behind the other, and a token chooses among
      those of its best `top_groups`, by the most probable expert of each.
    """

    count: int
    chosen: int
    normalised: bool = False
    scale: float = 1.0
    shared: int = 0
    groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True)
class Mlp:
    """down(activation(gate(x)) * up(x)), or without gate down(activation(up(x))).

    experts: how many of this width there are and which a token takes; None: one. Their linear layers have no bias but
    for the shared ones'.
    """

    width: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    experts: Experts | None = None


@dataclass(frozen=True)
class Stack:
    """Layers of the same parts, which run under one scan.

    residual: where a part f and its norm stand. pre: x + f(norm(x)); post: norm(x + f(x)); after: x + norm(f(x));
      sandwich, with two norms: x + norm(f(norm(x))); parallel, with one norm for both parts: x + attention(norm(x)) +
      mlp(norm(x)); parallel_norms: the same with a norm for each.
    windows: for each layer, how many keys (itself included) a query sees; 0 is no limit; empty: no limit anywhere.
    ropes: for each layer, which of `Positions.ropes` it uses; empty: the first everywhere.
    causal: whether queries see only themselves and the keys before them.
    cross: whether each layer, behind its own attention, attends to an encoder's output.
    lacks: parts that pruning has taken from all layers of the stack, with their norms; see `prune.blocks`.
    """

    layers: int
    attention: Attention
    mlp: Mlp
    norm: Norm = field(default_factory=Norm)
    residual: Residual = "pre"
    windows: tuple[int, ...] = ()
    ropes: tuple[int, ...] = ()
    causal: bool = True
    cross: bool = False
    lacks: frozenset[Part] = frozenset()

    def __post_init__(self) -> None:
        for name, values in (("windows", self.windows), ("ropes", self.ropes)):
            if len(values) not in (0, self.layers):
                raise ValueError(f"{len(values)} {name} for {self.layers} layers")

    @property
    def attends(self) -> bool:
        """Whether its layers have attention, which keeps something of each token."""
        return "attention" not in self.lacks

    @property
    def empty(self) -> bool:
        """Whether nothing is left of its layers but their numbers, which name the tensors of those behind them."""
        return len(self.lacks) == 2


@dataclass(frozen=True)
class Embed:
    """Tokens to vectors of the model's width, times `scale`; learned positions and, where there are `types` of tokens,
    a vector of each are added to them. norm: of the sum."""

    scale: float = 1.0
    norm: Norm | None = None
    types: int = 0


@dataclass(frozen=True)
class Head:
    """Hidden states to logits: by the embedding's table where `tied`. soft_cap: cap * tanh(logits / cap).

    labels: 0 is a language model; otherwise a sequence-classification head of that many scores.
    scale: of the hidden states before a language model's head.
    pooled: whether the scores are made of tanh(linear(hidden state)) of the first token of an encoder, or of the last
      of a decoder behind one; an encoder has this part without scores, too.
    normalised: the table's rows are divided by their L2 norm before they are used.
    projected: of an encoder alone, numbers of the vector that tanh(linear(hidden state)) of its first token makes of a
      text, divided by its L2 norm; 0: none. Dot products of such vectors are cosines.
    copying: of a decoder behind an encoder, whether the encoder's tokens may be copied (`ops.copying`), by a gate.
    """

    tied: bool = False
    soft_cap: float | None = None
    labels: int = 0
    scale: float = 1.0
    pooled: bool = False
    normalised: bool = False
    projected: int = 0
    copying: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """A transformer. decoder, encoder: stacks, one after the other; width: of the residual stream.

    final_norm: of the hidden states behind the stacks of each side; None where the last layer norms them.
    start: the token that a decoder with an encoder begins with.
    companion: a second model that is trained together with this one; its parameters lie under "companion".
    """

    model_type: str
    vocab_size: int
    width: int
    positions: Positions
    decoder: tuple[Stack, ...]
    encoder: tuple[Stack, ...] = ()
    embed: Embed = field(default_factory=Embed)
    final_norm: Norm | None = field(default_factory=Norm)
    head: Head = field(default_factory=Head)
    initializer_range: float = 0.02
    start: int = 0
    companion: ModelConfig | None = None

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return sum(stack.layers for stack in self.decoder)

    @property
    def sides(self) -> tuple[Side, ...]:
        """Which of decoder and encoder there are."""
        sides: tuple[tuple[Side, tuple[Stack, ...]], ...] = (("decoder", self.decoder), ("encoder", self.encoder))
        return tuple(side for side, stacks in sides if stacks)

    @property
    def experts(self) -> Experts | None:
        """Those of the decoder's first layer that has some; all have as many."""
        having = (stack.mlp.experts for stack in self.decoder if "mlp" not in stack.lacks)
        return next((experts for experts in having if experts is not None), None)

    @property
    def max_positions(self) -> int:
        """Tokens that a row may have."""
        return self.positions.max_positions

    @property
    def stacks(self) -> dict[str, Stack]:
        """Every stack by the name that its parameters have: "layers", "layers_1", ..., "encoder", "encoder_1", ..."""
        named = {_name("layers", i): stack for i, stack in enumerate(self.decoder)}
        return named | {_name("encoder", i): stack for i, stack in enumerate(self.encoder)}


def rewarding(config: ModelConfig) -> ModelConfig:
    """The same body with a reward model's head: one score."""
    return replace(config, head=replace(config.head, labels=1))


def _name(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind
