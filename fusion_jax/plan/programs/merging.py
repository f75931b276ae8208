"""A merge, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fusion_jax.merge.methods import METHODS
from fusion_jax.plan.programs.program import Program

_TYPICAL = {"weight": 0.5, "t": 0.5, "density": 0.5, "select_topk": 0.1}  # values do not change what is planned


@dataclass(frozen=True)
class MergeTensor(Program):
    """One tensor of several models by a method of `fusion_jax.merge`, split over all chips."""

    method: str
    models: int
    shape: tuple[int, ...]
    needs_model: ClassVar[bool] = False

    def check(self, ways: int) -> None:
        """A tensor that does not divide lies whole on each chip."""

    def trace(self, config: None, mesh: Mesh) -> jax.stages.Traced:
        method = METHODS[self.method]
        values = {one.name: _TYPICAL.get(one.name, one.default) for one in method.parameters}
        parameters = {
            method.argument(one.name): (values[one.name],) * self.models if one.per_model else values[one.name]
            for one in method.parameters
        }

        def kernel(stack: jax.Array, base: jax.Array | None) -> jax.Array:
            keys = {"keys": jax.random.split(jax.random.key(0), self.models)} if method.random else {}
            return method.function(stack, base, **keys, **parameters).tensor.astype(jnp.bfloat16)

        def array(leading: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec(*(None for _ in leading), "fsdp" if self.shape[0] % mesh.size == 0 else None)
            return jax.ShapeDtypeStruct((*leading, *self.shape), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

        base = None if method.base == "none" else array(())
        return jax.jit(kernel, out_shardings=array(()).sharding).trace(array((self.models,)), base)

    def flops(self, config: None) -> float:
        """0: there are no matmuls worth counting."""
        return 0.0

    def tokens_computed(self) -> int:
        return 0
