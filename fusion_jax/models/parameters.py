"""Shape, initialiser and logical axes of every parameter, in one place.

Kernels are [in, out], so that no matmul transposes at run time; the embedding and the head are [V, D], as in files.
Layers are stacked on a leading axis L and walked by a scan.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.config import DecoderConfig
from fusion_jax.sharding import named

Array = jax.Array
Initializer = Callable[..., Array]
Specs = dict[str, Any]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: shape, logical axis names (see `sharding.RULES`), initialiser."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer


def check_heads(
    config: DecoderConfig, tensor: int, devices: int, option: str, *, model: str | os.PathLike[str] | None = None
) -> None:
    """Refuse a mesh whose tensor axis cuts a head of attention; all other dimensions may be uneven.

    Args:
      tensor: devices of that axis, of all `devices`. option: what sets it, for instance "--train.mesh-tensor". model:
        the folder.

    Raises:
      InputError: the heads or the devices do not divide; names the option and what would do.
    """
    heads, both = config.num_heads, math.gcd(config.num_heads, devices)
    if both % tensor:
        what = f"the model's {heads} attention heads" if heads % tensor else f"{devices} devices"
        fitting = ", ".join(str(n) for n in range(1, both + 1) if both % n == 0)
        raise InputError(f"{what} do not divide by {tensor}", file=model, field=option, cure=f"Give one of {fitting}")


def _norm(config: DecoderConfig) -> Specs:
    one = jax.nn.initializers.zeros if config.norm_unit_offset else jax.nn.initializers.ones
    return {"scale": ParamSpec((config.hidden_size,), ("embed",), one)}


def _linear(config: DecoderConfig, size: tuple[int, int], axes: tuple[str | None, str | None], bias: bool) -> Specs:
    specs = {"kernel": ParamSpec(size, axes, jax.nn.initializers.normal(config.initializer_range))}
    return specs | ({"bias": ParamSpec(size[1:], axes[1:], jax.nn.initializers.zeros)} if bias else {})


def layer_specs(config: DecoderConfig) -> Specs:
    """The parameters of one layer, without the layer axis."""
    c = config
    q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    specs = {
        "attention_norm": _norm(c),
        "q": _linear(c, (c.hidden_size, q_size), ("embed", "heads"), c.qkv_bias),
        "k": _linear(c, (c.hidden_size, kv_size), ("embed", "kv_heads"), c.qkv_bias),
        "v": _linear(c, (c.hidden_size, kv_size), ("embed", "kv_heads"), c.qkv_bias),
        "o": _linear(c, (q_size, c.hidden_size), ("heads", "embed"), c.out_bias),
        "mlp_norm": _norm(c),
        "gate": _linear(c, (c.hidden_size, c.intermediate_size), ("embed", "mlp"), c.mlp_bias),
        "up": _linear(c, (c.hidden_size, c.intermediate_size), ("embed", "mlp"), c.mlp_bias),
        "down": _linear(c, (c.intermediate_size, c.hidden_size), ("mlp", "embed"), c.mlp_bias),
    }
    if c.post_norms:
        specs |= {"attention_post_norm": _norm(c), "mlp_post_norm": _norm(c)}
    return specs


def parameter_specs(config: DecoderConfig) -> Specs:
    """Every parameter of a model as a nested dict of `ParamSpec`, as `forward` takes them."""
    table = jax.nn.initializers.normal(config.initializer_range)
    vocabulary = ParamSpec((config.vocab_size, config.hidden_size), ("vocab", "embed"), table)

    def stack(spec: ParamSpec) -> ParamSpec:
        return ParamSpec((config.num_layers, *spec.shape), ("layers", *spec.axes), spec.init)

    specs: Specs = {
        "embed": {"embedding": vocabulary},
        "layers": jax.tree.map(stack, layer_specs(config)),
        "final_norm": _norm(config),
    }
    if config.num_labels:
        specs["score"] = {"kernel": ParamSpec((config.num_labels, config.hidden_size), ("labels", "embed"), table)}
    elif not config.tied_head:
        specs["head"] = {"kernel": vocabulary}
    return specs


def init_params(config: DecoderConfig, key: Array, dtype: Any = jnp.float32) -> Specs:
    """Random parameters by the initialisers, a nested dict of arrays."""
    leaves, structure = jax.tree.flatten(parameter_specs(config))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [s.init(k, s.shape, dtype) for s, k in zip(leaves, keys)])


def abstract_params(config: DecoderConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Specs:
    """Shapes, dtypes and (with a mesh) shardings of the parameters; nothing is allocated."""

    def abstract(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else named(mesh, spec.axes, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)

    return jax.tree.map(abstract, parameter_specs(config))


def place_params(params: Specs, config: DecoderConfig, mesh: Mesh | None, dtype: Any = None) -> Specs:
    """Parameters sharded over the mesh as the specs say and, the norms' scales left out, in `dtype` where one is given;
    those that lie so already stay."""

    def place(path: tuple[Any, ...], p: Array, spec: ParamSpec) -> Array:
        p = p if dtype is None or path[-1].key == "scale" else p.astype(dtype)
        return p if mesh is None else jax.device_put(p, named(mesh, spec.axes, spec.shape))

    return jax.tree.map_with_path(place, params, parameter_specs(config))
