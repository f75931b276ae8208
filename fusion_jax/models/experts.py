"""Routed experts: a router chooses for each token which feed-forwards it goes through. No token is dropped.

The pairs of a token and an expert that it chose are sorted by expert and multiplied group by group, so that no array
[tokens, experts, width] exists. On a mesh the tokens of a device stay on it: the kernels come to them, gathered over
fsdp as those of any layer are, and `tensor` splits the width of every expert. All devices then have the same work
however the router chooses, and no expert has a capacity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fusion_jax.models.config import Experts, Mlp
from fusion_jax.models.layers import ACTIVATIONS, Tables, feed_forward
from fusion_jax.models.parameters import Specs
from fusion_jax.ops.grouped import grouped_matmul
from fusion_jax.ops.remat import GATED, named
from fusion_jax.sharding import data_ways, partition_spec, tensor_shards

Array = jax.Array
ROUTING = "routing"  # the collection of Flax variables that layers put their `Routing` in


class Routing(NamedTuple):
    """What routers did, as sums that add up over layers and devices.

    choices: float[E], how often each expert was chosen; probabilities: float[E], those that the tokens gave it; tokens:
    how many there were, once for each layer.
    """

    choices: Array
    probabilities: Array
    tokens: Array


def balance(routing: Routing) -> Array:
    """E * sum_e share_e * mean probability_e, where shares are choices a token: `chosen` where all experts are chosen
    alike, more where some are preferred (Switch Transformers, arXiv 2101.03961, equations 4 to 6, over all layers
    together as in transformers)."""
    tokens = jnp.maximum(routing.tokens, 1.0)
    return len(routing.choices) * (routing.choices / tokens * (routing.probabilities / tokens)).sum()


def total_routing(found: Mapping[str, Any]) -> Routing:
    """The sums over all layers of what `decoder.forward` found; stack -> "sums" -> `Routing` with a leading axis L."""
    stacks = [jax.tree.map(lambda x: x.sum(0), one["sums"]) for one in found.values()]
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *stacks)


def routed(
    mlp: Mlp, specs: Specs, x: Array, dtype: Any, mesh: Mesh | None, counted: Array | None
) -> tuple[Array, Routing | None]:
    """[B,T,D] -> [B,T,D] through the experts, in the scope of the module that calls it.

    Args:
      counted: bool[B,T], the tokens that the second result counts; None: there is none.
    """
    assert mlp.experts is not None
    names = [name for name in ("gate", "up", "down") if name in specs]
    kernels: dict[str, Array] = {name: Tables(specs[name], name=name)()["kernel"].astype(dtype) for name in names}
    router = Tables(specs["router"], name="router")()["kernel"]
    out, routing = _over_devices(mlp, router, kernels, x, counted, mesh)
    if mlp.experts.shared:
        out += feed_forward(mlp, specs, x, dtype, mesh, prefix="shared_")
    return out, routing


def _over_devices(
    mlp: Mlp, router: Array, kernels: dict[str, Array], x: Array, counted: Array | None, mesh: Mesh | None
) -> tuple[Array, Routing | None]:
    """`one_device` on each device's rows and its part of every expert's width, added up."""
    if mesh is None:
        return one_device(mlp, router, kernels, x, counted)
    rows = partition_spec(("batch",))[0] if x.shape[0] % data_ways(mesh) == 0 else None
    width = "tensor" if mlp.width % tensor_shards(mesh) == 0 else None
    inward, outward = PartitionSpec(None, None, width), PartitionSpec(None, width, None)
    placed = {name: outward if name == "down" else inward for name in kernels}

    def on_device(*arguments: Any) -> Any:
        return jax.tree.map(lambda y: y[None], one_device(mlp, *arguments))

    parts, sums = jax.shard_map(
        on_device, mesh=mesh, in_specs=(PartitionSpec(), placed, PartitionSpec(rows), PartitionSpec(rows)),
        out_specs=(PartitionSpec(width, rows), PartitionSpec(rows)), check_vma=False,
    )(router, kernels, x, counted)  # fmt: skip
    return parts.sum(0), jax.tree.map(lambda y: y.sum(0), sums)


def one_device(
    mlp: Mlp, router: Array, kernels: dict[str, Array], x: Array, counted: Array | None
) -> tuple[Array, Routing | None]:
    """`routed` where there is no mesh and without shared experts. router: [D,E]; kernels: gate and up [E,D,F], down
    [E,F,D]."""
    experts, tokens = mlp.experts, x.reshape(-1, x.shape[-1])
    assert experts is not None
    with jax.named_scope("router"):
        probabilities, weights, chosen = choose(experts, router, tokens)
        order = jnp.argsort(chosen.T.reshape(-1), stable=True)  # the pairs of all first choices, then of all second
        places = jnp.argsort(order)
        each = jax.nn.one_hot(chosen, experts.count, dtype=jnp.int32).sum(1)
    out = grouped_feed_forward(mlp, kernels, _spread(tokens, order, places), each.sum(0))
    with jax.named_scope("weighted"):
        out = _in_order(out, order, places).reshape(experts.chosen, *tokens.shape)
        out = (out * weights.T[..., None].astype(out.dtype)).sum(0).reshape(x.shape)
    if counted is None:
        return out, None
    seen = counted.reshape(-1, 1).astype(probabilities.dtype)
    return out, Routing((each * seen).sum(0), (probabilities * seen).sum(0), seen.sum())


def choose(experts: Experts, router: Array, x: Array) -> tuple[Array, Array, Array]:
    """Probabilities [N,E] of tokens [N,D], and of those that they choose weights [N,k] and experts int[N,k], the most
    probable first, of equal ones the first in order. All in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.matmul(x.astype(wide), router.astype(wide), precision="highest")
    probabilities = jax.nn.softmax(logits, -1)
    open_to_all = probabilities
    if experts.groups > 1:
        grouped = probabilities.reshape(-1, experts.groups, experts.count // experts.groups)
        _, best = jax.lax.top_k(grouped.max(-1), experts.top_groups)
        mask = jax.nn.one_hot(best, experts.groups, dtype=bool).any(1)
        open_to_all = jnp.where(mask[..., None], grouped, 0.0).reshape(probabilities.shape)
    weights, chosen = jax.lax.top_k(open_to_all, experts.chosen)
    if experts.normalised:
        weights /= weights.sum(-1, keepdims=True)
    return probabilities, weights * experts.scale, chosen


def grouped_feed_forward(mlp: Mlp, kernels: dict[str, Array], x: Array, sizes: Array) -> Array:
    """[M,D] -> [M,D], rows sorted by expert, of which the experts have int[E]."""
    activation = ACTIVATIONS[mlp.activation]
    up = named(grouped_matmul(x, kernels["up"], sizes), GATED)
    if mlp.gated:
        up *= activation(named(grouped_matmul(x, kernels["gate"], sizes), GATED))
    else:
        up = activation(up)
    return grouped_matmul(up, kernels["down"], sizes)


@jax.custom_vjp
def _spread(x: Array, order: Array, places: Array) -> Array:
    """Tokens [N,D] to the pairs [k*N,D] that they are in, pair i at places[i]; backward without a scatter."""
    return x[order % len(x)]


def _spread_back(saved: tuple[Array, int], gradient: Array) -> tuple[Array, None, None]:
    places, tokens = saved
    return gradient[places].reshape(-1, tokens, gradient.shape[-1]).sum(0), None, None


_spread.defvjp(lambda x, order, places: (_spread(x, order, places), (places, len(x))), _spread_back)


@jax.custom_vjp
def _in_order(y: Array, order: Array, places: Array) -> Array:
    """Pairs [k*N,D] back in the order of the tokens."""
    return y[places]


_in_order.defvjp(
    lambda y, order, places: (_in_order(y, order, places), order), lambda order, gradient: (gradient[order], None, None)
)
