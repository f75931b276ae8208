"""A layer of routed experts, forward and with its gradients: ours beside a loop over all experts, `jax.lax.ragged_dot`
and transformers.

    python experiments/benchmarks/experts.py

Shapes: 1,024 tokens of width 512 at 8 experts of width 1,024, two for each token as in Mixtral, and at 64 experts of
width 352, six for each as in DeepSeek-V2-Lite; float32. All give the same output to 1e-5. They take turns in one
process; a row gives the median of the seconds and the GFLOPs a second of the chosen experts alone, so that what is
computed beside them counts against a contender. Time: about 5 minutes of 2 cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.config import Experts, Mlp
from fusion_jax.models.experts import choose, one_device
from fusion_jax.settings import run as run_experiment

WIDTH = 512
SHAPES = {
    "8 of 1,024, two": Mlp(1024, experts=Experts(8, 2, True)),
    "64 of 352, six": Mlp(352, experts=Experts(64, 6, True)),
}
Weights = tuple[jax.Array, dict[str, jax.Array], jax.Array]


@dataclass(frozen=True)
class Settings:
    """tokens: of the layer's input; rounds: of all contenders in turn."""

    tokens: int = 1024
    rounds: int = 5


def weights(mlp: Mlp, tokens: int) -> Weights:
    """A router, kernels of the experts, and tokens."""
    rng, count, width = np.random.default_rng(0), experts_of(mlp).count, mlp.width
    shapes = {"gate": (count, WIDTH, width), "up": (count, WIDTH, width), "down": (count, width, WIDTH)}
    kernels = {name: jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    router = jnp.asarray(rng.normal(size=(WIDTH, count)) * WIDTH**-0.5, jnp.float32)
    return router, kernels, jnp.asarray(rng.normal(size=(1, tokens, WIDTH)), jnp.float32)


def experts_of(mlp: Mlp) -> Experts:
    assert mlp.experts is not None
    return mlp.experts


def every_expert(mlp: Mlp, router: jax.Array, kernels: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Every token through every expert, those that it did not choose with a weight of 0."""
    tokens = x.reshape(-1, WIDTH)
    _, chosen, places = choose(experts_of(mlp), router, tokens)
    full = jnp.zeros((len(tokens), experts_of(mlp).count)).at[jnp.arange(len(tokens))[:, None], places].set(chosen)

    def one(total: jax.Array, expert: Any) -> tuple[jax.Array, None]:
        kernel, weight = expert
        hidden = jax.nn.silu(tokens @ kernel["gate"]) * (tokens @ kernel["up"])
        return total + weight[:, None] * (hidden @ kernel["down"]), None

    return jax.lax.scan(one, jnp.zeros_like(tokens), (kernels, full.T))[0].reshape(x.shape)


def ours(mlp: Mlp, router: jax.Array, kernels: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return one_device(mlp, router, kernels, x, None)[0]


def ragged(mlp: Mlp, router: jax.Array, kernels: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Ours with `jax.lax.ragged_dot`, which a CPU computes at every expert."""
    with patch("fusion_jax.models.experts.grouped_matmul", jax.lax.ragged_dot):
        return ours(mlp, router, kernels, x)


def in_jax(layer: Callable[..., jax.Array], given: Weights) -> tuple[Callable[[], np.ndarray], Callable[[], Any]]:
    """The layer, and the gradients of the sum of its squares, compiled."""
    forward = jax.jit(layer)
    backward = jax.jit(jax.grad(lambda *args: jnp.square(layer(*args)).sum(), (0, 1, 2)))
    return lambda: np.asarray(forward(*given)), lambda: jax.block_until_ready(backward(*given))


def in_transformers(mlp: Mlp, how: str, given: Weights) -> tuple[Callable[[], np.ndarray], Callable[[], Any]]:
    """Mixtral's block with the same weights. how: its implementation of the experts."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    router, kernels, x = (jax.tree.map(np.asarray, one) for one in given)
    experts = experts_of(mlp)
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=mlp.width, num_local_experts=experts.count,
        num_experts_per_tok=experts.chosen,
    )  # fmt: skip
    config._experts_implementation = how
    block, tokens = MixtralSparseMoeBlock(config), torch.tensor(x, requires_grad=True)
    with torch.no_grad():
        block.gate.weight.copy_(torch.tensor(router.T.copy()))
        both = np.concatenate([kernels["gate"], kernels["up"]], 2).swapaxes(1, 2)
        block.experts.gate_up_proj.copy_(torch.tensor(both.copy()))
        block.experts.down_proj.copy_(torch.tensor(kernels["down"].swapaxes(1, 2).copy()))

    def backward() -> None:
        block.zero_grad()
        block(tokens).square().sum().backward()

    def forward() -> np.ndarray:
        with torch.no_grad():
            return block(tokens).numpy()

    return forward, backward


def measured(mlp: Mlp, settings: Settings) -> list[dict[str, Any]]:
    """A row a contender.

    Raises:
      InputError: an output differs.
    """
    given = weights(mlp, settings.tokens)
    contenders = {
        "ours": in_jax(partial(ours, mlp), given), "every expert": in_jax(partial(every_expert, mlp), given),
        "ragged_dot": in_jax(partial(ragged, mlp), given),
        "transformers, eager": in_transformers(mlp, "eager", given),
        "transformers, grouped_mm": in_transformers(mlp, "grouped_mm", given),
    }  # fmt: skip
    expected = contenders["ours"][0]()
    for name, (forward, backward) in contenders.items():
        if np.abs(forward() - expected).max() > 1e-5 * np.abs(expected).max():
            raise InputError(f"{name} gives another output")
        backward()
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in contenders}
    for _ in range(settings.rounds):
        for name, jobs in contenders.items():
            for job, taken in zip(jobs, seconds[name], strict=True):
                start = time.perf_counter()
                job()
                taken.append(time.perf_counter() - start)
    flops = 2.0 * 3 * settings.tokens * experts_of(mlp).chosen * WIDTH * mlp.width / 1e9
    rows = []
    for name, found in seconds.items():
        one, both = map(statistics.median, found)
        rows.append({
            "contender": name, "forward, s": f"{one:.3f}", "with gradients, s": f"{both:.3f}",
            "GFLOP/s": f"{flops / one:,.0f}, {3 * flops / both:,.0f}",
        })  # fmt: skip
    return rows


def main(settings: Settings) -> None:
    for name, mlp in SHAPES.items():
        print(markdown_table([{"experts": name} | row for row in measured(mlp, settings)]), "\n")


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
