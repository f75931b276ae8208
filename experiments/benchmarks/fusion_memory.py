"""The fusion step beside its dense form: memory as the compiler plans it, seconds, first loss, target building.

    python experiments/benchmarks/fusion_memory.py --vocab 8192 32768 131072
    python experiments/benchmarks/fusion_memory.py --vocab 8192 32768 131072 --tpu v5e:2x2     # needs libtpu, no TPU

The dense form is the official one, re-created: per teacher a bfloat16 [B,T,V] target made on the host, float32 logits
[B,T,V] in the step. Model: Llama, 4 layers, D 256, float32 (bfloat16 for the TPU), AdamW included; 4 texts of 512
tokens, pivot and 2 sources of 10 entries, MinCE. Compiled memory is arguments and temporaries of the whole step. On the
CPU both forms also run where `run_up_to` allows, and their first losses agree to 1e-3 (bfloat16 targets) or the program
ends with an error. Time: about 2 minutes on 2 cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax.data.batches import TokenBatch, buckets_of, collate
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import forward, head_kernel
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import init_params
from fusion_jax.settings import run as run_experiment
from fusion_jax.teachers.rows import FusionRow, Opinion
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.teachers.targets import fuse
from fusion_jax.train import objectives
from fusion_jax.train.state import OptimizerSettings, Pace, TrainState, init_state, make_optimizer
from fusion_jax.train.step import make_train_step

Array = jax.Array
MIB = 2**20
FUSION = FusionSettings()
OPTIMIZER = make_optimizer(OptimizerSettings())
PACE = Pace(100, 1e-5)


@dataclass(frozen=True)
class Settings:
    """tpu: a topology to compile for besides the CPU. run_up_to: the largest vocabulary whose steps also run."""

    vocab: tuple[int, ...] = (8192,)
    texts: int = 4
    tokens: int = 512
    k: int = 10
    tpu: str = ""
    run_up_to: int = 32768
    steps: int = 3


def main(s: Settings) -> None:
    table = []
    for vocab in s.vocab:
        rows = made_up(s, vocab)
        fuse(rows, FUSION, mask="all")  # compiles
        began = time.perf_counter()
        examples = fuse(rows, FUSION, mask="all")
        built = time.perf_counter() - began
        batch = jax.tree.map(lambda x: x[None], collate(examples, buckets_of(examples)))
        line: dict[str, Any] = {"V": vocab, "targets, s": f"{built:.3f}"}
        runs = vocab <= s.run_up_to
        began = time.perf_counter()
        dense = dense_targets(rows, vocab) if runs else None
        if runs:
            line["dense targets, s"] = f"{time.perf_counter() - began:.3f}"
        shapes = jax.ShapeDtypeStruct((len(rows[0].opinions), s.texts, batch.tokens.shape[-1], vocab), jnp.bfloat16)
        losses = {}
        for name, extra in (("ours", None), ("dense", dense if runs else shapes)):
            config, step = config_of(vocab), step_of(name, vocab, jnp.float32)
            line[f"{name} CPU, MiB"] = planned(step, config, batch, extra, None)
            if s.tpu:
                line[f"{name} TPU, MiB"] = planned(
                    step_of(name, vocab, jnp.bfloat16), config, batch, extra, tpu_device(s.tpu)
                )
            if runs:
                losses[name], seconds = timed(step, config, batch, extra, s.steps)
                line[f"{name}, s"] = f"{seconds:.2f}"
        if runs and abs(losses["ours"] - losses["dense"]) > 1e-3 * abs(losses["dense"]):
            raise InputError(f"the first losses differ: {losses}", field="vocab")
        table.append(line)
    print(markdown_table([{name: line.get(name, "") for name in max(table, key=len)} for line in table]))


def config_of(vocab: int) -> ModelConfig:
    return config_from_hf({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
        "max_position_embeddings": 2048,
    })  # fmt: skip


def made_up(s: Settings, vocab: int) -> list[FusionRow]:
    """Texts of random tokens with a pivot and two sources that know different things about them."""
    rng = np.random.default_rng(0)

    def opinion(metric: float) -> Opinion:
        ids = np.sort(rng.integers(0, vocab // s.k, (s.tokens, s.k))) + np.arange(s.k) * (vocab // s.k)
        logits = -np.sort(rng.exponential(1.0, (s.tokens, s.k)), -1)
        logprobs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
        counts, rule = np.full(s.tokens, s.k, np.int32), np.zeros(s.tokens, np.uint8)
        return Opinion(ids.astype(np.int32), logprobs, counts, rule, metric)

    def row(index: int) -> FusionRow:
        ids = rng.integers(0, vocab, s.tokens).astype(np.int32)
        metrics = (2.0, 1.0 + 2 * (index % 2), 2.5 - index % 2)  # the first source on even texts, else the second
        return FusionRow(ids, np.arange(s.tokens) > 0, tuple(map(opinion, metrics)), np.ones(s.tokens, np.int32))

    return [row(i) for i in range(s.texts)]


def dense_targets(rows: list[FusionRow], vocab: int) -> np.ndarray:
    """bfloat16[n,B,T,V], a whole distribution for every teacher, text and token."""
    tokens = len(rows[0].ids)
    width = buckets_of(fuse(rows, FUSION, mask="all")).rows[-1]
    out = np.zeros((len(rows[0].opinions), len(rows), width, vocab), jnp.bfloat16)
    for b, row in enumerate(rows):
        for n, view in enumerate(row.opinions):
            probs = np.exp(view.logprobs)
            np.put_along_axis(out[n, b, :tokens], view.ids, probs / probs.sum(-1, keepdims=True), -1)
    return out


def step_of(name: str, vocab: int, dtype: Any) -> Callable[..., Any]:
    """(state, batch, dense targets) -> (state, loss), jitted."""
    config, compute = config_of(vocab), Compute(dtype=jnp.dtype(dtype))
    if name == "ours":
        inner = make_train_step(config, objectives.fusion(FUSION), OPTIMIZER, compute)

        def sparse(state: TrainState, batch: TokenBatch, dense: None) -> tuple[TrainState, Array]:
            state, metrics = inner(state, batch, PACE)
            return state, metrics["loss"]

        return jax.jit(sparse, donate_argnums=0)

    def loss_of(params: Any, batch: TokenBatch, dense: Array) -> Array:
        hidden = forward(params, config, batch.tokens[:, 0], dtype=compute.dtype)
        logits = (hidden @ head_kernel(params, config).astype(hidden.dtype).T).astype(jnp.float32)
        logprobs = jax.nn.log_softmax(logits)
        language = -jnp.take_along_axis(logprobs, batch.labels[:, 0, :, None], -1)[..., 0]
        real = jnp.arange(batch.tokens.shape[-1]) < batch.scored[:, 0].sum(-1, keepdims=True) + 1
        even = (batch.example_ids % 2 == 0)[:, None, None]
        chosen = jnp.where(even, dense[1], dense[2])  # as the metrics of `made_up` say
        fused = -(chosen.astype(jnp.float32) * logprobs).sum(-1)
        mask = batch.scored[:, 0]
        means = (language * mask).sum() / mask.sum(), (fused * real).sum() / real.sum()
        return FUSION.weight * means[0] + (1 - FUSION.weight) * means[1]

    def step(state: TrainState, batch: TokenBatch, dense: Array) -> tuple[TrainState, Array]:
        loss, grads = jax.value_and_grad(loss_of)(state.params, jax.tree.map(lambda x: x[0], batch), dense)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params, pace=PACE)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, state.halted, params, opt_state), loss

    return jax.jit(step, donate_argnums=0)


def planned(step: Callable[..., Any], config: ModelConfig, batch: TokenBatch, extra: Any, device: Any) -> str:
    """MiB of arguments and temporaries of the compiled step, nothing of which is allocated."""
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(lambda: init_state(init_params(config, jax.random.key(0)), OPTIMIZER))
    arguments = jax.tree.map(shape, (state, batch, extra))
    memory = step.lower(*arguments).compile().memory_analysis()  # type: ignore[attr-defined]
    return f"{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / MIB:.0f}"


def tpu_device(topology: str) -> Any:
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


def timed(
    step: Callable[..., Any], config: ModelConfig, batch: TokenBatch, extra: Any, steps: int
) -> tuple[float, float]:
    """First loss and the median seconds of the steps after it."""
    state = init_state(init_params(config, jax.random.key(0)), OPTIMIZER)
    placed = jax.tree.map(jnp.asarray, (batch, extra))
    state, first = step(state, *placed)
    seconds, first = [], float(first)
    for _ in range(steps):
        began = time.perf_counter()
        state, loss = step(state, *placed)
        loss.block_until_ready()
        seconds.append(time.perf_counter() - began)
    return first, float(np.median(seconds))


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
