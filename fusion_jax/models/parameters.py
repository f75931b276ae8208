"""Shape, initialiser and logical axes of every parameter, in one place.

Kernels are [in, out], so that no matmul transposes at run time; the embedding and the head are [V, D], as in files.
The layers of a stack lie on a leading axis L, which a scan walks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.errors import InputError
from fusion_jax.models.config import Attention, Latent, Mlp, ModelConfig, Norm, Side, Stack
from fusion_jax.ops.int8 import Int8, holds_int8, is_int8
from fusion_jax.sharding import named

Array = jax.Array
Initializer = Callable[..., Array]
Specs = dict[str, Any]
LORA = ("lora_a", "lora_b")  # of a low-rank adapter, beside the kernel that it is added to; see `models.lora`


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: shape, logical axis names (see `sharding.RULES`), initialiser.

    used: the share of its numbers that a token is multiplied with, 0 for what is no matmul.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    used: float = 0.0


def numbers_of(specs: Any) -> int:
    """How many numbers the parameters of a tree of `ParamSpec` have."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs))


def lora_specs(kernel: ParamSpec, rank: int) -> Specs:
    """A and B of an adapter of a kernel [.., in, out]: [.., in, r] and [.., r, out]."""
    *stacked, size, out = kernel.shape
    *axes, first, last = kernel.axes
    bound = 1 / math.sqrt(size)

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    a = ParamSpec((*stacked, size, rank), (*axes, first, None), uniform, 1.0)
    return dict(zip(LORA, (a, ParamSpec((*stacked, rank, out), (*axes, None, last), jax.nn.initializers.zeros, 1.0))))


def check_heads(
    config: ModelConfig, tensor: int, devices: int, option: str, *, model: str | os.PathLike[str] | None = None
) -> None:
    """Refuse a mesh whose tensor axis cuts a head of attention; all other dimensions may be uneven.

    Args:
      tensor: devices of that axis, of all `devices`. option: what sets it, for instance "--train.mesh-tensor". model:
        the folder.

    Raises:
      InputError: the heads or the devices do not divide; names the option and what would do.
    """
    heads = math.gcd(*(stack.attention.heads for stack in config.stacks.values() if stack.attends))
    both = math.gcd(heads, devices)
    if both % tensor:
        what = f"the model's {heads} attention heads" if heads % tensor else f"{devices} devices"
        fitting = ", ".join(str(n) for n in range(1, both + 1) if both % n == 0)
        raise InputError(f"{what} do not divide by {tensor}", file=model, field=option, cure=f"Give one of {fitting}")


def key_heads(config: ModelConfig) -> int:
    """The most devices that the heads which decoding reads caches by divide over, in all layers: those of keys and
    values; of latents, which every device keeps whole, those of queries."""
    return math.gcd(*(stack.attention.kv_heads for stack in config.decoder or config.encoder if stack.attends))


def norm_specs(norm: Norm, size: int, axis: str | None = "embed") -> Specs:
    """The parameters of a norm over `size` numbers."""
    one = jax.nn.initializers.zeros if norm.unit_offset else jax.nn.initializers.ones
    bias = {"bias": ParamSpec((size,), (axis,), jax.nn.initializers.zeros)} if norm.bias else {}
    return {"scale": ParamSpec((size,), (axis,), one)} | bias


def _linear(config: ModelConfig, size: tuple[int, int], axes: tuple[str | None, str | None], bias: bool) -> Specs:
    specs = {"kernel": ParamSpec(size, axes, jax.nn.initializers.normal(config.initializer_range), 1.0)}
    return specs | ({"bias": ParamSpec(size[1:], axes[1:], jax.nn.initializers.zeros)} if bias else {})


def attention_specs(config: ModelConfig, attention: Attention) -> Specs:
    """The parameters of one layer's attention."""
    if attention.latent is not None:
        return _latent_specs(config, attention, attention.latent)
    q_size, kv_size = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    biases, width = attention.biases, config.width
    specs = {
        "q": _linear(config, (width, q_size), ("embed", "heads"), "q" in biases),
        "k": _linear(config, (width, kv_size), ("embed", "kv_heads"), "k" in biases),
        "v": _linear(config, (width, kv_size), ("embed", "kv_heads"), "v" in biases),
        "o": _linear(config, (q_size, width), ("heads", "embed"), "o" in biases),
    }
    if attention.qk_norm is not None:
        whole = (q_size, kv_size) if attention.norms_all else (attention.head_dim,) * 2
        specs |= {f"{name}_norm": norm_specs(attention.qk_norm, size, "head_dim") for name, size in zip("qk", whole)}
    return specs


def _latent_specs(config: ModelConfig, attention: Attention, latent: Latent) -> Specs:
    """Down to the latents and up to the heads; kv_up [kv_rank, H * (nope_dim + value_dim)] goes by heads."""
    heads, width, biases = attention.heads, config.width, attention.biases
    made = heads * (latent.nope_dim + latent.value_dim)
    specs = {
        "kv_down": _linear(config, (width, latent.kv_rank + latent.rope_dim), ("embed", None), "k" in biases),
        "kv_down_norm": norm_specs(latent.norm, latent.kv_rank, None),
        "kv_up": _linear(config, (latent.kv_rank, made), ("rank", "heads"), False),
        "o": _linear(config, (heads * latent.value_dim, width), ("heads", "embed"), "o" in biases),
    }
    queries = heads * attention.head_dim
    if latent.q_rank is None:
        return specs | {"q": _linear(config, (width, queries), ("embed", "heads"), False)}
    return specs | {
        "q_down": _linear(config, (width, latent.q_rank), ("embed", None), "q" in biases),
        "q_down_norm": norm_specs(latent.norm, latent.q_rank, None),
        "q_up": _linear(config, (latent.q_rank, queries), ("rank", "heads"), False),
    }


def mlp_specs(config: ModelConfig, mlp: Mlp) -> Specs:
    """The parameters of one layer's feed-forward; of experts the kernels [E,D,F] and [E,F,D], the router's [D,E], and
    `shared_gate`, `shared_up` and `shared_down` of those that all tokens share."""
    if mlp.experts is None:
        return _feed_forward(config, mlp, mlp.width)
    experts, router = mlp.experts, ("embed", None)
    specs = {"router": _linear(config, (config.width, experts.count), router, False)}
    for name, part in _feed_forward(config, replace(mlp, bias=False), mlp.width).items():
        one, used = part["kernel"], experts.chosen / experts.count
        specs[name] = {
            "kernel": replace(one, shape=(experts.count, *one.shape), axes=("experts", *one.axes), used=used)
        }
    shared = _feed_forward(config, mlp, mlp.width * experts.shared) if experts.shared else {}
    return specs | {f"shared_{name}": part for name, part in shared.items()}


def _feed_forward(config: ModelConfig, mlp: Mlp, width: int) -> Specs:
    wide = _linear(config, (config.width, width), ("embed", "mlp"), mlp.bias)
    specs = {"up": wide, "down": _linear(config, (width, config.width), ("mlp", "embed"), mlp.bias)}
    return specs | ({"gate": wide} if mlp.gated else {})


def layer_specs(config: ModelConfig, stack: Stack) -> Specs:
    """The parameters of one layer, without the layer axis."""
    norm, specs = norm_specs(stack.norm, config.width), Specs()
    if "attention" not in stack.lacks:
        specs |= attention_specs(config, stack.attention)
    if "mlp" not in stack.lacks:
        specs |= mlp_specs(config, stack.mlp)
    own = {"attention", "mlp"} - stack.lacks
    if stack.residual == "parallel":  # one norm for both
        own = {"attention"} if own else own
    specs |= {f"{part}_norm": norm for part in sorted(own)}
    if stack.cross:
        specs |= {"cross": attention_specs(config, stack.attention), "cross_norm": norm}
    if stack.residual == "sandwich":
        specs |= {name.replace("_norm", "_post_norm"): norm for name in _part_norms(specs)}
    return specs


def _part_norms(specs: Specs) -> list[str]:
    return [name for name in ("attention_norm", "cross_norm", "mlp_norm") if name in specs]


def parameter_specs(config: ModelConfig) -> Specs:
    """Every parameter of a model as a nested dict of `ParamSpec`, as `forward` takes them."""
    table = jax.nn.initializers.normal(config.initializer_range)
    vocabulary = ParamSpec((config.vocab_size, config.width), ("vocab", "embed"), table)
    specs: Specs = {"embed": {"embedding": vocabulary}}
    for side in config.sides:
        specs |= _side_specs(config, side)
    for name, stack in config.stacks.items():
        specs[name] = jax.tree.map(lambda spec, n=stack.layers: _stacked(spec, n), layer_specs(config, stack))
    head = config.head
    if head.pooled:
        specs["pooler"] = _linear(config, (config.width, config.width), ("embed", None), True)
    if head.labels:
        specs["score"] = {"kernel": ParamSpec((head.labels, config.width), ("labels", "embed"), table, 1.0)}
        if head.pooled:
            specs["score"] |= {"bias": ParamSpec((head.labels,), ("labels",), jax.nn.initializers.zeros)}
    elif config.decoder and not head.tied:
        specs["head"] = {"kernel": replace(vocabulary, used=1.0)}
    if head.projected:
        specs["projection"] = _linear(config, (config.width, head.projected), ("embed", None), True)
    if head.copying:
        gate = ParamSpec((2 * config.width,), (None,), jax.nn.initializers.normal(config.initializer_range))
        specs["copy"] = {"kernel": gate, "bias": ParamSpec((1,), (None,), jax.nn.initializers.zeros)}
    if config.companion is not None:
        specs["companion"] = parameter_specs(config.companion)
    return specs


FINAL_NORMS: dict[Side, str] = {"decoder": "final_norm", "encoder": "encoder_norm"}


def _side_specs(config: ModelConfig, side: Side) -> Specs:
    """What a side has besides its layers: the tables that it adds to the tokens' vectors and to its scores, norms."""
    positions, table = config.positions, jax.nn.initializers.normal(config.initializer_range)

    def rows(count: int, width: int, axis: str) -> ParamSpec:
        return ParamSpec((count, width), (None, axis), table)

    specs, added = Specs(), Specs()
    if positions.kind == "learned":
        added["positions"] = rows(positions.max_positions + positions.offset, config.width, "embed")
    if config.embed.types:
        added["types"] = rows(config.embed.types, config.width, "embed")
    if config.embed.norm is not None:
        added["norm"] = norm_specs(config.embed.norm, config.width)
    if added:
        specs[f"{side}_embed"] = added
    if positions.kind == "buckets":
        heads = (config.decoder if side == "decoder" else config.encoder)[0].attention.heads
        specs[f"{side}_buckets"] = {"table": rows(positions.buckets, heads, "heads")}
    if config.final_norm is not None:
        specs[FINAL_NORMS[side]] = norm_specs(config.final_norm, config.width)
    return specs


def _stacked(spec: ParamSpec, layers: int) -> ParamSpec:
    return replace(spec, shape=(layers, *spec.shape), axes=("layers", *spec.axes))


def init_params(config: ModelConfig, key: Array, dtype: Any = jnp.float32) -> Specs:
    """Random parameters by the initialisers, a nested dict of arrays."""
    leaves, structure = jax.tree.flatten(parameter_specs(config))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [s.init(k, s.shape, dtype) for s, k in zip(leaves, keys)])


def abstract_params(
    config: ModelConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None, *, int8: bool = False
) -> Specs:
    """Shapes, dtypes and (with a mesh) shardings of the parameters; nothing is allocated. int8: see `int8_specs`."""
    specs = parameter_specs(config)
    return abstract_of(int8_specs(specs, config) if int8 else specs, dtype, mesh)


def abstract_of(specs: Specs, dtype: Any, mesh: Mesh | None) -> Specs:
    """The same of a tree of `ParamSpec`, in which kernels may be an `Int8` of them."""

    def abstract(spec: ParamSpec, kind: Any = dtype) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else named(mesh, spec.axes, spec.shape)
        return jax.ShapeDtypeStruct(spec.shape, kind, sharding=sharding)

    def one(spec: ParamSpec | Int8) -> Any:
        if isinstance(spec, Int8):
            return Int8(abstract(spec.values, jnp.int8), abstract(spec.scale, jnp.float32))
        return abstract(spec)

    return jax.tree.map(one, specs, is_leaf=is_int8)


def int8_specs(specs: Specs, config: ModelConfig) -> Specs:
    """Parameters' specs with an `Int8` of specs in the place of every kernel of the layers, routers' left out: what
    chooses between experts is small, and a wrong choice is no small error."""

    def one(path: tuple[Any, ...], spec: ParamSpec) -> ParamSpec | Int8:
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[0] not in config.stacks or "router" in names:
            return spec
        scale = replace(spec, shape=(*spec.shape[:-2], 1, spec.shape[-1]), axes=(*spec.axes[:-2], None, spec.axes[-1]))
        return Int8(spec, scale)

    return jax.tree.map_with_path(one, specs)


def place_params(params: Specs, config: ModelConfig, mesh: Mesh | None, dtype: Any = None) -> Specs:
    """Parameters sharded over the mesh as the specs say and, the norms' scales and kernels in int8 left out, in `dtype`
    where one is given; those that lie so already stay."""

    def spread(p: Array, spec: ParamSpec) -> Array:
        return p if mesh is None else jax.device_put(p, named(mesh, spec.axes, spec.shape))

    def place(path: tuple[Any, ...], p: Array | Int8, spec: Any) -> Array | Int8:
        if isinstance(p, Int8):
            return Int8(spread(p.values, spec.values), spread(p.scale, spec.scale))
        return spread(p if dtype is None or path[-1].key == "scale" else p.astype(dtype), spec)

    specs = _with_lora(parameter_specs(config), params)
    specs = int8_specs(specs, config) if holds_int8(params) else specs
    return jax.tree.map_with_path(place, params, specs, is_leaf=is_int8)


def _with_lora(specs: Specs, params: Specs) -> Specs:
    """The specs with those of the adapters that stand beside kernels of `params`."""
    out = {name: _with_lora(spec, params[name]) if isinstance(spec, dict) else spec for name, spec in specs.items()}
    return out | (lora_specs(specs["kernel"], params[LORA[0]].shape[-1]) if LORA[0] in params else {})
