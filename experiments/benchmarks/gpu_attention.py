"""Causal attention alone, forward and backward: XLA's, as the models use it, beside cuDNN's through `jax.nn`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.ops.kernels import Visible, attend

Array = jax.Array
Row = dict[str, Any]
ROWS, HEADS, KV_HEADS, TIMES, CALLS = 8, 32, 8, 5, 10
CASES = {"causal 2048 x 64": (2048, 64), "causal 4096 x 128": (4096, 128)}
"""(tokens, head size), as in 1B and 8B models."""


def jobs(small: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    rows, heads = (1, (4, 2)) if small else (ROWS, (HEADS, KV_HEADS))
    return {
        name: partial(compared, rows, 64 if small else tokens, heads, size) for name, (tokens, size) in CASES.items()
    }


def xla(q: Array, k: Array, v: Array) -> Array:
    """The models' own."""
    positions = jnp.broadcast_to(jnp.arange(q.shape[1], dtype=jnp.int32), q.shape[:2])
    return attend(q, k, v, Visible(positions), scale=q.shape[-1] ** -0.5)


def from_jax(kind: Any, q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)


KERNELS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "ours, XLA": xla, "jax.nn, XLA": partial(from_jax, "xla"), "jax.nn, cuDNN": partial(from_jax, "cudnn"),
}  # fmt: skip


def compared(rows: int, tokens: int, heads: tuple[int, int], size: int) -> Iterator[Row]:
    """A row for each kernel; one that cannot be had here is left out with what it said."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rng = np.random.default_rng(0)
    counts = (heads[0], heads[1], heads[1], heads[0])
    q, k, v, toward = (jnp.asarray(rng.standard_normal((rows, tokens, n, size), np.float32), dtype) for n in counts)
    wanted: tuple[Array, ...] = ()
    for name, kernel in KERNELS.items():
        forward = jax.jit(kernel)

        @jax.jit
        def both(q: Array, k: Array, v: Array, toward: Array, kernel: Any = kernel) -> tuple[Array, ...]:
            out, pull = jax.vjp(kernel, q, k, v)
            return out, *pull(toward)

        try:
            found = jax.block_until_ready(both(q, k, v, toward))
        except (RuntimeError, NotImplementedError) as error:
            yield {"kernel": name, "skipped": f"{type(error).__name__}: {error}"[:300]}
            continue
        wanted = wanted or found
        apart = max(float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max()) for a, b in zip(found, wanted))
        yield {
            "kernel": name, "forward": seconds(forward, q, k, v), "both": seconds(both, q, k, v, toward),
            "apart": apart, "device": jax.local_devices()[0].device_kind, "versions": f"jax {jax.__version__}",
        }  # fmt: skip


def seconds(function: Callable[..., Any], *arguments: Array) -> float:
    """Of one call: the median over `TIMES` of `CALLS` calls that are waited for together."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(TIMES):
        started = time.perf_counter()
        for _ in range(CALLS):
            out = function(*arguments)
        jax.block_until_ready(out)
        found.append((time.perf_counter() - started) / CALLS)
    return float(np.median(found))
