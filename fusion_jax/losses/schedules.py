"""What changes with the optimizer step: the fusion coefficient and the learning rate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def alpha_at(step: Array | int, *, alpha_end: float, num_steps: int, dynamic: bool = True) -> Array:
    """Fusion coefficient used during optimizer step `step` (0-based), the weight on the source response.

    Dynamic: alpha_end * step / num_steps, clamped to alpha_end; the first step is DPO on the target's own responses.
    Static: alpha_end. A run of 0 steps has coefficient 0. (WRPO, arXiv 2412.03187, section 3 and Figure 6.)
    """
    if not dynamic:
        return jnp.full(jnp.shape(step), alpha_end)
    if num_steps == 0:
        return jnp.where(jnp.asarray(step) > 0, alpha_end, 0.0)
    return alpha_end * jnp.minimum(jnp.asarray(step), num_steps) / num_steps


def learning_rate(
    peak: float, *, num_steps: int, warmup_ratio: float = 0.1, schedule: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up over ceil(warmup_ratio * num_steps) steps, then cosine or linear to 0, or constant."""
    warmup = math.ceil(warmup_ratio * num_steps)

    def rate(step: Array) -> Array:
        rising = step / max(warmup, 1)
        progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
        falling = {
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
            "linear": 1.0 - progress,
            "constant": jnp.ones_like(progress),
        }[schedule]
        return peak * jnp.where(step < warmup, rising, falling)

    return rate
