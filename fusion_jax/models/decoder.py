"""The body of every model: a Linen module used purely functionally through `forward` and `encode`.

Each stack's blocks run under `nn.scan` over stacked parameters, so that compile time does not grow with depth; what
differs from layer to layer is a scanned input. The result is hidden states: the head is separate, so that no caller
needs the logits of all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.attention import CROSSED, Context, Encoded, Held
from fusion_jax.models.blocks import PARTS, Block, LayerInputs, Rows, layer_inputs, tables_of
from fusion_jax.models.config import ModelConfig, Side, Stack
from fusion_jax.models.experts import ROUTING, total_routing
from fusion_jax.models.layers import FIRST_TAG, Noise, Tables, embedded, normed
from fusion_jax.models.parameters import FINAL_NORMS, parameter_specs
from fusion_jax.ops.kernels import Kernel, Visible
from fusion_jax.ops.remat import Remat, remat_policy
from fusion_jax.sharding import constrain

Array = jax.Array
Params = dict[str, Any]
LEAST_NORM = 1e-12  # what a row of the head is divided by at least


class Body(nn.Module):
    """Tokens to hidden states after the final norm, by the stacks of one side; see `forward`."""

    config: ModelConfig
    side: Side = "decoder"
    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    remat: Remat = "none"
    kernel: Kernel = "xla"
    keep: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        visible: Visible,
        context: tuple[Context, ...] = (),
        encoded: Encoded | None = None,
        layers: tuple[LayerInputs, ...] | None = None,
        types: Array | None = None,
        counted: Array | None = None,
        noise: Noise | None = None,
    ) -> tuple[Array, tuple[Any, ...]]:
        config, specs = self.config, parameter_specs(self.config)
        tables = {name: Tables(specs[name], name=name)() for name in tables_beside(config, self.side)}
        with jax.named_scope("embed"):
            x = embedded(tables, config, self.side, tokens, visible.positions, types, self.dtype, noise)
            x = constrain(x, self.mesh, ("batch", "tokens", None))
        places, buckets = tuple(one[1:] for one in context), buckets_of(tables, self.side)
        kept, tag = list[Any](), FIRST_TAG[self.side] + 1
        for number, (name, stack) in enumerate(stacks_of(config, self.side).items()):
            if stack.empty:
                kept.append(None)
                continue
            inputs = layer_inputs(stack) if layers is None else layers[number]
            if noise is not None:
                inputs = inputs._replace(tag=tag + len(PARTS) * jnp.arange(stack.layers))
                tag += len(PARTS) * stack.layers
            rows = Rows(tables_of(config, stack, visible.positions), visible, places, encoded, buckets, counted, noise)
            held = Held(tuple(one.kept[number] for one in context))
            x, new = self._scanned(stack, name)(x, inputs, held, rows)
            kept.append(new)
        with jax.named_scope("norm"):
            return finally_normed(tables, config, self.side, x, self.dtype), tuple(kept)

    @nn.nowrap
    def _scanned(self, stack: Stack, name: str) -> nn.Module:
        block: Any = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=remat_policy(self.remat), prevent_cse=False)
        scanned = nn.scan(
            block, variable_axes={"params": 0, ROUTING: 0, CROSSED: 0}, split_rngs={"params": True},
            length=stack.layers, in_axes=(0, 0, nn.broadcast), check_constancy_invariants=False,  # one tracing less
        )  # fmt: skip
        return scanned(self.config, stack, self.mesh, self.dtype, self.kernel, self.keep, name=name)


def tables_beside(config: ModelConfig, side: Side) -> list[str]:
    """Names of the parameters that a side reads besides its layers."""
    names = ("embed", f"{side}_embed", f"{side}_buckets", FINAL_NORMS[side])
    return [name for name in names if name in parameter_specs(config)]


def buckets_of(tables: Mapping[str, Any], side: Side) -> Array | None:
    """float[buckets,H], a side's learned bias of scores, if it has one."""
    return tables[f"{side}_buckets"]["table"] if f"{side}_buckets" in tables else None


def finally_normed(tables: Mapping[str, Any], config: ModelConfig, side: Side, x: Array, dtype: Any) -> Array:
    """Hidden states behind the last layer, by the final norm and the scale before the head where there are such."""
    if config.final_norm is not None:
        x = normed(x, tables[FINAL_NORMS[side]], config.final_norm, dtype)
    scale = config.head.scale if side == "decoder" else 1.0
    return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)


def stacks_of(config: ModelConfig, side: Side) -> dict[str, Stack]:
    """The stacks of one side by the names of their parameters."""
    own = config.decoder if side == "decoder" else config.encoder
    names = list(config.stacks)
    names = names[: len(own)] if side == "decoder" else names[len(config.decoder) :]
    return dict(zip(names, own, strict=True))


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Array,
    *,
    positions: Array | None = None,
    segment_ids: Array | None = None,
    context: tuple[Context, ...] = (),
    branches: tuple[int, int] | None = None,
    prompt_lengths: Array | None = None,
    encoded: Encoded | None = None,
    layers: tuple[LayerInputs, ...] | None = None,
    counted: Array | None = None,
    noise: Noise | None = None,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    kernel: Kernel = "xla",
    keep: bool = False,
) -> Any:
    """Hidden states [B,T,D] of the decoder after the final norm, in `dtype`.

    Args:
      params: nested dict as `parameters.parameter_specs` lays it out.
      tokens: int[B,T]. A token sees itself and those before it, of its own segment, within the layer's window.
      positions: int[B,T], absolute, or int[1,T] where those of all rows are the same; default 0..T-1.
      segment_ids: int[B,T], 0 for padding. None is exact for right-padded rows of one segment: causality hides the
        padding.
      context: tokens that all rows attend to besides their own; `kept` is what this function returned of them.
      branches, prompt_lengths: (size, n) and int[B]: a row is a prompt of `size` tokens, of which prompt_lengths
        exist, and n continuations of equal width, each of which sees the prompt and itself. Give the positions.
      encoded: what `encode` gave of C entries, for a decoder with cross-attention; B rows share C = B / repeat entries.
      layers: for each stack, what differs between its layers, in place of what `config` says; windows are among those
        that the stack has. Traced, so that other values compile nothing anew.
      counted: bool[B,T], the tokens whose routing among experts is to be told besides.
      noise: drops numbers, in training; keys int32[B].
      remat: what the backward pass keeps, see `ops.remat`.
      kernel: of attention: "splash" on TPU, where it takes the question (see `ops.splash.takes`), else "xla".

    Returns:
      hidden, or (hidden, kept) when `keep`: for each stack, what its layers' attention keeps of the tokens (a pytree of
      [L,B,...,T,last], see `models.attention`; None where they lack it); with `counted` the sums of all layers stand
      behind them, a `models.experts.Routing`.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    visible = Visible(positions, segment_ids, prompt_lengths, branches=branches)
    body = Body(config, "decoder", mesh, dtype, remat, kernel, keep)
    arguments = tokens, visible, context, encoded, layers
    if counted is None:
        hidden, kept = body.apply({"params": params}, *arguments, noise=noise)
        return (hidden, kept) if keep else hidden
    (hidden, kept), found = body.apply({"params": params}, *arguments, counted=counted, noise=noise, mutable=[ROUTING])
    routing = total_routing(found[ROUTING])
    return (hidden, kept, routing) if keep else (hidden, routing)


def looking(params: Params, config: ModelConfig, tokens: Array, encoded: Encoded, **how: Any) -> tuple[Array, Array]:
    """Hidden states [B,T,D] of a decoder's tokens from place 0 on, and where its last layer's cross-attention looks,
    float[B,T,S], the mean over heads; how: `noise`, `mesh`, `dtype`, `remat` and `kernel` as of `forward`."""
    noise = how.pop("noise", None)
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    body = Body(config, "decoder", **how)
    arguments = tokens, Visible(places), (), encoded
    (hidden, _), found = body.apply({"params": params}, *arguments, noise=noise, mutable=[CROSSED])
    last = list(stacks_of(config, "decoder"))[-1]
    return hidden, found[CROSSED][last]["cross"]["weights"][-1]


def encode(
    params: Params,
    config: ModelConfig,
    tokens: Array,
    lengths: Array,
    *,
    types: Array | None = None,
    noise: Noise | None = None,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    kernel: Kernel = "xla",
) -> Encoded:
    """The encoder: right-padded tokens int[B,S] of which lengths int[B] exist, in `dtype`.

    Args:
      types: int[B,S], of the tokens, for models that tell two texts of a row apart; None: all 0.
      noise: as of `forward`.
    """
    exists = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    hidden = encoded_states(
        params, config, tokens, exists, types=types, noise=noise, mesh=mesh, dtype=dtype, remat=remat, kernel=kernel
    )
    return Encoded(hidden, lengths)


def encoded_states(
    params: Params,
    config: ModelConfig,
    tokens: Array,
    exists: Array,
    *,
    types: Array | None = None,
    noise: Noise | None = None,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    kernel: Kernel = "xla",
) -> Array:
    """Hidden states [B,S,D] of an encoder's tokens int[B,S], of which those that exist, bool[B,S], see each other; the
    others keep their places between them. Arguments besides as of `encode`."""
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    body = Body(config, "encoder", mesh, dtype, remat, kernel)
    seen = Visible(places, exists.astype(jnp.int32))
    hidden, _ = body.apply({"params": params}, tokens, seen, types=types, noise=noise)
    return hidden


def gathered(hidden: Array, exists: Array) -> Encoded:
    """States [C,S,D] of which some exist, bool[C,S], as an encoder's output: those come first, in their order. Cross-
    attention knows no places, so that nothing else changes."""
    order = jnp.argsort(~exists, axis=1, stable=True)
    return Encoded(jnp.take_along_axis(hidden, order[..., None], 1), exists.sum(1))


def projected(params: Params, config: ModelConfig, hidden: Array) -> Array:
    """float[B,n] of length 1, a text's vector by `Head.projected`, from an encoder's hidden states [B,S,D]."""
    part = params["projection"]
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    first = hidden[:, 0].astype(wide) @ part["kernel"].astype(wide) + part["bias"].astype(wide)
    vector = jnp.tanh(first)
    return vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), LEAST_NORM)


def padded_positions(tokens: Array, config: ModelConfig, lengths: Array) -> Array:
    """int[B,T], 0..T-1, of right-padded rows of which lengths int[B] exist and the model can read. Padding stays at the
    row's last position, since `dynamic` and `longrope` scaling go by the greatest position that there is.
    """
    last = jnp.clip(jnp.asarray(lengths) - 1, 0, config.max_positions - 1)
    return jnp.minimum(jnp.arange(tokens.shape[1], dtype=jnp.int32), last[:, None].astype(jnp.int32))


def head_kernel(params: Params, config: ModelConfig) -> Array:
    """The head [V,D]: the embedding where they are tied, its rows of length 1 where the configuration says so."""
    table = params["embed"]["embedding"] if config.head.tied else params["head"]["kernel"]
    if not config.head.normalised:
        return table
    wide = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    squares = jnp.square(wide).sum(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(squares, LEAST_NORM**2))).astype(table.dtype)


def soft_capped(logits: Array, config: ModelConfig) -> Array:
    """Logits with the head's soft cap, if it has one."""
    cap = config.head.soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
