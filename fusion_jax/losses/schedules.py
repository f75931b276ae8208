"""What changes with the optimizer step: the fusion coefficient and the learning rate."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
POLYNOMIAL_END = 1e-7  # the learning rate at which transformers' polynomial schedule ends


def alpha_at(step: Array | int, *, alpha_end: float, num_steps: Array | int, dynamic: bool = True) -> Array:
    """Fusion coefficient used during optimizer step `step` (0-based), the weight on the source response.

    Dynamic: alpha_end * step / num_steps, clamped to alpha_end; the first step is DPO on the target's own responses.
    Static: alpha_end. A run of 0 steps has coefficient 0. (WRPO, arXiv 2412.03187, section 3 and Figure 6.)

    >>> print(*(f"{alpha_at(step, alpha_end=0.1, num_steps=4):.3f}" for step in range(5)))
    0.000 0.025 0.050 0.075 0.100
    """
    if not dynamic:
        return jnp.full(jnp.shape(step), alpha_end)
    done = jnp.minimum(jnp.asarray(step), jnp.maximum(num_steps, 1))
    return alpha_end * done / jnp.maximum(num_steps, 1)


def learning_rate(
    peak: float, *, num_steps: int, warmup_ratio: float = 0.1, warmup_steps: int = 0, schedule: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up from 0 over ceil(warmup_ratio * num_steps) steps, then cosine or linear to 0, polynomial (of power
    1) to `POLYNOMIAL_END`, or constant.

    Args:
      warmup_steps: steps of the warm-up, instead of what the ratio gives; 0: the ratio. Where they are more than
        `num_steps` the peak is never reached.

    >>> rate = learning_rate(1.0, num_steps=4, warmup_ratio=0.5, schedule="linear")
    >>> print(*(f"{rate(jnp.asarray(step)):.2f}" for step in range(5)))
    0.00 0.50 1.00 0.50 0.00
    >>> rate = learning_rate(1.0, num_steps=4, warmup_steps=1, schedule="polynomial")
    >>> print(*(f"{rate(jnp.asarray(step)):.7f}" for step in range(5)))
    0.0000000 1.0000000 0.6666667 0.3333334 0.0000001
    """
    warmup = warmup_steps or math.ceil(warmup_ratio * num_steps)
    rest = max(num_steps - warmup, 1)
    falling: optax.Schedule = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "polynomial": optax.linear_schedule(peak, POLYNOMIAL_END, rest),
        "constant": optax.constant_schedule(peak),
    }[schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), falling], [warmup]) if warmup else falling
