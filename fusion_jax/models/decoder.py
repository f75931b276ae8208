"""The body of every model: a Linen module used purely functionally through `forward` and `encode`.

Each stack's blocks run under `nn.scan` over stacked parameters, so that compile time does not grow with depth; what
differs from layer to layer is a scanned input. The result is hidden states: the head is separate, so that no caller
needs the logits of all tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.models.attention import Context, Encoded
from fusion_jax.models.blocks import Block, LayerInputs, Rows, layer_inputs, tables_of
from fusion_jax.models.config import ModelConfig, Stack
from fusion_jax.models.layers import NormLayer, Table, embedded
from fusion_jax.models.parameters import parameter_specs
from fusion_jax.ops.kernels import Kernel, Visible
from fusion_jax.ops.remat import Remat, remat_policy
from fusion_jax.sharding import constrain

Array = jax.Array
Params = dict[str, Any]


class Body(nn.Module):
    """Tokens to hidden states after the final norm, by the stacks of one side; see `forward`."""

    config: ModelConfig
    side: Literal["decoder", "encoder"] = "decoder"
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
        context: tuple[Context, ...],
        encoded: Encoded | None,
        layers: tuple[LayerInputs, ...] | None,
    ) -> tuple[Array, tuple[Any, ...]]:
        config, specs = self.config, parameter_specs(self.config)
        with jax.named_scope("embed"):
            x = embedded(Table(specs["embed"], name="embed")().astype(self.dtype)[tokens], config.embed)
            x = constrain(x, self.mesh, ("batch", "tokens", None))
        places = tuple((one.positions, one.lengths) for one in context)
        kept = []
        for number, (name, stack) in enumerate(stacks_of(config, self.side).items()):
            inputs = layer_inputs(stack) if layers is None else layers[number]
            rows = Rows(tables_of(config, stack, visible.positions), visible, places, encoded)
            x, new = self._scanned(stack, name)(x, inputs, tuple(one.kept[number] for one in context), rows)
            kept.append(new)
        name = "final_norm" if self.side == "decoder" else "encoder_norm"
        with jax.named_scope("norm"):
            return NormLayer(specs[name], config.final_norm, self.dtype, name=name)(x), tuple(kept)

    @nn.nowrap
    def _scanned(self, stack: Stack, name: str) -> nn.Module:
        block: Any = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=remat_policy(self.remat), prevent_cse=False)
        scanned = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=stack.layers,
            in_axes=(0, 0, nn.broadcast),
        )  # fmt: skip
        return scanned(self.config, stack, self.mesh, self.dtype, self.kernel, self.keep, name=name)


def stacks_of(config: ModelConfig, side: Literal["decoder", "encoder"]) -> dict[str, Stack]:
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
      positions: int[B,T], absolute; default 0..T-1.
      segment_ids: int[B,T], 0 for padding. None is exact for right-padded rows of one segment: causality hides the
        padding.
      context: tokens that all rows attend to besides their own; `kept` is what this function returned of them.
      branches, prompt_lengths: (size, n) and int[B]: a row is a prompt of `size` tokens, of which prompt_lengths
        exist, and n continuations of equal width, each of which sees the prompt and itself. Give the positions.
      encoded: what `encode` gave, for a decoder with cross-attention.
      layers: for each stack, what differs between its layers, in place of what `config` says; windows are among those
        that the stack has. Traced, so that other values compile nothing anew.
      remat: what the backward pass keeps, see `ops.remat`.
      kernel: of attention: "splash" on TPU, where it takes the question (see `ops.splash.takes`), else "xla".

    Returns:
      hidden, or (hidden, kept) when `keep`: for each stack, what its layers' attention keeps of the tokens (a pytree of
      [L,B,...,T,last], see `models.attention`).
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    visible = Visible(positions, segment_ids, prompt_lengths, branches=branches)
    body = Body(config, "decoder", mesh, dtype, remat, kernel, keep)
    hidden, kept = body.apply({"params": params}, tokens, visible, context, encoded, layers)
    return (hidden, kept) if keep else hidden


def encode(
    params: Params,
    config: ModelConfig,
    tokens: Array,
    lengths: Array,
    *,
    mesh: Mesh | None = None,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    kernel: Kernel = "xla",
) -> Encoded:
    """An encoder-decoder's encoder: right-padded tokens int[B,S] of which lengths int[B] exist."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    body = Body(config, "encoder", mesh, dtype, remat, kernel)
    hidden, _ = body.apply({"params": params}, tokens, Visible(places, segments), (), None, None)
    return Encoded(hidden, lengths)


def padded_positions(tokens: Array, config: ModelConfig, lengths: Array) -> Array:
    """int[B,T], 0..T-1, of right-padded rows of which lengths int[B] exist and the model can read. Padding stays at the
    row's last position, since `dynamic` and `longrope` scaling go by the greatest position that there is.
    """
    last = jnp.clip(jnp.asarray(lengths) - 1, 0, config.max_positions - 1)
    return jnp.minimum(jnp.arange(tokens.shape[1], dtype=jnp.int32), last[:, None].astype(jnp.int32))


def head_kernel(params: Params, config: ModelConfig) -> Array:
    """The head [V,D]: the embedding where they are tied."""
    return params["embed"]["embedding"] if config.head.tied else params["head"]["kernel"]


def soft_capped(logits: Array, config: ModelConfig) -> Array:
    """Logits with the head's soft cap, if it has one."""
    cap = config.head.soft_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)
