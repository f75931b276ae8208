"""How a forward pass is carried out, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fusion_jax.ops.kernels import Kernel
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS
from fusion_jax.ops.remat import Remat


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out: mesh, dtype of the matmuls, what the backward pass keeps, attention's kernel.

    shared_prompt: the rows of an example attend to one copy of their prompt, else each computes its own; exact both
    ways.
    logits: how many a device holds at once. options: of the compiler. dropout, source_dropout, normal_noise: of
      batches that bring noise, see `train.settings`.
    """

    mesh: Mesh | None = None
    dtype: Any = jnp.float32
    remat: Remat = "none"
    shared_prompt: bool = True
    kernel: Kernel = "xla"
    logits: int = CHUNK_ELEMENTS
    options: tuple[tuple[str, str], ...] = ()
    dropout: float = 0.0
    source_dropout: float = 0.0
    normal_noise: bool = False

    def jit(self, step: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        """`jax.jit` with the compiler's options of these devices."""
        return jax.jit(step, compiler_options=dict(self.options) or None, **how)
