"""The WRPO step with every response in a row of its own, with prompts shared, and packed: seconds beside tokens.

    python experiments/benchmarks/rows.py

Model: Llama, 4 layers, D 256, 8 heads (4 for keys), V 8,192, float32; 4 quadruples. "3:1" is a prompt of 384 tokens and
three responses of 128; "uneven" draws prompts of 16 to 128 and responses of 16 to 512. All three ways do the same steps
on the same examples, turn about in one process; a row gives the median step, its ratio to plain rows, the tokens that
the model computes, padding included, and the useful FLOPs, both as ratios, and the loss, which has to agree to 1e-4
(it compares sums of thousands in float32). Time: about 4 minutes on 2 cores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fusion_jax.data.batches import Data, Example, TokenBatch, buckets_of
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params
from fusion_jax.plan.flops import forward_flops
from fusion_jax.settings import run as run_experiment
from fusion_jax.train import objectives
from fusion_jax.train.batching import step_batch
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
from fusion_jax.train.step import make_train_step

CONFIG = config_from_hf({
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024,
})  # fmt: skip
EXAMPLES, GROUPS, PACKED = 4, 3, 1024


@dataclass(frozen=True)
class Settings:
    """ratios: of prompt to response tokens, of rows of 512."""

    ratios: tuple[str, ...] = ("3:1", "1:1", "1:3")
    steps: int = 5
    seed: int = 0


def of_ratio(ratio: str, rng: np.random.Generator) -> list[Example]:
    prompt, response = map(int, ratio.split(":"))
    size = 512 * prompt // (prompt + response)
    return [example(rng, size, [512 - size] * GROUPS, i) for i in range(EXAMPLES)]


def uneven(rng: np.random.Generator) -> list[Example]:
    return [
        example(rng, int(rng.integers(16, 129)), rng.integers(16, 513, GROUPS).tolist(), i) for i in range(EXAMPLES)
    ]


def example(rng: np.random.Generator, prompt: int, responses: list[int], index: int) -> Example:
    shared = tuple(rng.integers(1, 8192, prompt).tolist())
    rows = tuple(shared + tuple(rng.integers(1, 8192, n).tolist()) for n in responses)
    return Example(rows, (prompt,) * GROUPS, index, reference=(-3000.0,) * GROUPS)


WAYS: dict[str, dict[str, Any]] = {"plain": {"shared_prompt": False}, "shared": {}, "packed": {"pack_tokens": PACKED}}


def stepper(examples: list[Example], way: dict[str, Any]) -> tuple[Callable[[], float], TokenBatch]:
    """One optimizer step on all examples, as a call that gives its loss, and the batch it reads."""
    micro, width = np.arange(EXAMPLES)[None], way.get("pack_tokens", 0)
    batch = step_batch(Data(examples), micro, buckets_of(examples), None, width)
    optimizer = make_optimizer(OptimizerSettings())
    objective = objectives.wrpo(WrpoSettings(beta=0.1, alpha=0.3, dynamic=False))
    compute = Compute(remat="dots", shared_prompt=way.get("shared_prompt", True))
    train = make_train_step(CONFIG, objective, optimizer, compute)
    state = init_state(init_params(CONFIG, jax.random.key(0)), optimizer)

    def once() -> float:
        nonlocal state
        state, metrics = train(state, batch, Pace(100, 1e-6))
        return float(metrics["loss"])

    return once, batch


def computed(batch: TokenBatch, way: dict[str, Any]) -> int:
    """Tokens that the model computes for a batch."""
    prompts = batch.prompts.size * (GROUPS if not way.get("shared_prompt", True) else 1)
    return int(prompts + batch.tokens.size)


def useful(examples: list[Example], *, shared: bool) -> float:
    """FLOPs of the forward pass over the examples as they are, without padding."""
    total = 0.0
    for e in examples:
        prompt = e.starts[0] - 1
        total += sum(forward_flops(CONFIG, prompt, len(row) - 1 - prompt, 1, True) for row in e.rows)
        total -= (GROUPS - 1) * forward_flops(CONFIG, prompt, 0, 1, True) if shared else 0.0
    return total


def measured(name: str, examples: list[Example], steps: int) -> list[dict[str, str]]:
    """A row of the table for every way."""
    ways = {way: stepper(examples, how) for way, how in WAYS.items()}
    losses = {way: once() for way, (once, _) in ways.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4 * abs(losses["plain"]):
        raise InputError(f"the losses differ: {losses}", field=name)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(steps):
        for way, (once, _) in ways.items():
            started = time.perf_counter()
            once()
            seconds[way].append(time.perf_counter() - started)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    plain = computed(ways["plain"][1], WAYS["plain"])
    return [
        {
            "prompt : response": name, "rows": way, "median s": f"{median[way]:.3f}",
            "of plain": f"{median[way] / median['plain']:.2f}",
            "tokens": f"{computed(batch, WAYS[way]) / plain:.2f}",
            "useful FLOPs": f"{useful(examples, shared=way == 'shared') / useful(examples, shared=False):.2f}",
            "loss": f"{losses[way]:.6f}",
        }
        for way, (_, batch) in ways.items()
    ]  # fmt: skip


def main(s: Settings) -> None:
    rng = np.random.default_rng(s.seed)
    jobs = {ratio: of_ratio(ratio, rng) for ratio in s.ratios} | {"uneven": uneven(rng)}
    print(markdown_table([row for name, examples in jobs.items() for row in measured(name, examples, s.steps)]))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
