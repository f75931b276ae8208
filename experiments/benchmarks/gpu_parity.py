"""Small random models on this device, against numbers that a CPU gave: logits, and two training steps.

Weights, tokens and targets come from numpy's generators, so that they are the same on every device. All is computed in
float32 with `jax.default_matmul_precision("highest")`: without it a GPU multiplies float32 in TensorFloat-32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.data.batches import Example, Targets, TokenBatch, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.decoder import Params, forward, head_kernel, soft_capped
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import ParamSpec, parameter_specs
from fusion_jax.teachers.settings import FusionSettings
from fusion_jax.train import objectives
from fusion_jax.train.objective import Objective
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
from fusion_jax.train.step import make_score_step, make_train_step

Row = dict[str, Any]
Numbers = dict[str, Any]
FILE = Path(__file__).resolve().parents[2] / "tests/golden/gpu.json"
LOGITS, LOSS, NORM, CHANGE, BFLOAT16 = 1e-4, 1e-5, 1e-4, 1e-3, 0.2
"""Tolerances. Of logits, absolute, which have a standard deviation near 1; of losses and of gradient norms, relative;
of a tensor's change, relative to its norm; of logits computed in bfloat16, absolute."""
VOCAB, TOKENS, ENTRIES, KEPT, STEPS = 199, 24, 5, 3, 2

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
_SCALED = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 3, "rope_scaling": _SCALED, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_hidden_layers": 2, "tie_word_embeddings": False},
    "gemma3": {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 7, "query_pre_attn_scalar": 16},
}
OBJECTIVES: dict[str, Objective] = {
    "llama": objectives.wrpo(WrpoSettings(beta=0.1, alpha=0.3, dynamic=False)),
    "qwen3": objectives.sft(),
    "gemma3": objectives.fusion(FusionSettings(weight=0.5)),
}
OPTIMIZER = OptimizerSettings(learning_rate=0.01, schedule="constant", warmup_ratio=0.0, eps=0.01, weight_decay=0.1)
"""A large eps keeps a step smooth in the gradient, so that its rounding does not turn signs."""


def jobs(small: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    return {name: (lambda name=name: compared(name)) for name in MODELS} | {"store": store}


def config_of(name: str) -> ModelConfig:
    return config_from_hf(_COMMON | MODELS[name])


def weights_of(config: ModelConfig, seed: int) -> Params:
    """Random float32 weights, norms near the identity."""
    rng = np.random.default_rng(seed)
    identity = 0.0 if config.decoder[0].norm.unit_offset else 1.0

    def leaf(path: tuple[Any, ...], spec: ParamSpec) -> jax.Array:
        values = rng.standard_normal(spec.shape, np.float32) * np.float32(0.12)
        return jnp.asarray(values + identity if path[-1].key == "scale" else values)

    specs = parameter_specs(config)
    return jax.tree.map_with_path(leaf, specs, is_leaf=lambda x: isinstance(x, ParamSpec))


def batch_of(name: str, config: ModelConfig) -> TokenBatch:
    """Four examples; of WRPO three responses of different lengths behind a prompt, of distillation with targets."""
    rng = np.random.default_rng(7)
    examples = []
    for index in range(4):
        ids = rng.integers(3, VOCAB, (3, TOKENS))
        if name == "llama":
            ids[:, : 8 + index] = ids[0, : 8 + index]
            lengths = (TOKENS, TOKENS - 2, TOKENS - 5 + index)
            rows = tuple(tuple(map(int, row[:n])) for row, n in zip(ids, lengths, strict=True))
            examples.append(Example(rows, (8 + index,) * 3, index))
            continue
        targets = None
        if name == "gemma3":
            chosen = np.argsort(rng.random((TOKENS - 1, VOCAB)), -1)[:, :ENTRIES].astype(np.int32)
            probs = rng.dirichlet(np.ones(ENTRIES), TOKENS - 1).astype(np.float32)
            targets = Targets(chosen, probs, np.float32(1.0))
        row = tuple(map(int, ids[0, : TOKENS - index]))
        examples.append(Example((row,), (2,), index, targets=_cut(targets, index)))
    return collate(examples, buckets_of(examples))


def _cut(targets: Targets | None, tokens: int) -> Targets | None:
    """Targets of a row that is shorter by so many tokens."""
    if targets is None or not tokens:
        return targets
    return targets._replace(ids=targets.ids[:-tokens], probs=targets.probs[:-tokens])


def logits_of(config: ModelConfig, params: Params, dtype: Any) -> np.ndarray:
    """float32[2,KEPT,V], the logits of the last tokens of two rows."""
    tokens = jnp.asarray(np.random.default_rng(5).integers(3, VOCAB, (2, TOKENS)), jnp.int32)

    @jax.jit
    def last(params: Params, tokens: jax.Array) -> jax.Array:
        hidden = forward(params, config, tokens, dtype=dtype)[:, -KEPT:]
        kernel = head_kernel(params, config).astype(hidden.dtype)
        return soft_capped(jnp.einsum("btd,vd->btv", hidden, kernel, preferred_element_type=jnp.float32), config)

    return np.asarray(last(params, tokens))


def steps_of(name: str, config: ModelConfig) -> Numbers:
    """Loss and gradient norm of each step, and how each tensor has changed after them: the norm of its change and the
    product with a random vector of norm near 1."""
    objective, compute = OBJECTIVES[name], Compute(remat="dots")
    params, before, batch = weights_of(config, 1), weights_of(config, 1), batch_of(name, config)
    if objective.reference:
        reference = make_score_step(config, compute)(weights_of(config, 2), batch)
        batch = batch._replace(reference=np.asarray(reference))
    optimizer = make_optimizer(OPTIMIZER)
    step = make_train_step(config, objective, optimizer, compute)
    state, batches = init_state(params, optimizer), jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
    losses, norms = [], []
    for _ in range(STEPS):
        state, metrics = step(state, batches, Pace(STEPS, OPTIMIZER.learning_rate), None)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    changes = jax.tree.map(lambda new, old: np.asarray(new, np.float64) - np.asarray(old), state.params, before)
    return {"loss": losses, "grad_norm": norms, "changes": _summary(changes)}


def _summary(changes: Params) -> dict[str, list[float]]:
    found = {}
    for path, value in jax.tree.leaves_with_path(changes):
        name = "/".join(part.key for part in path)
        toward = np.random.default_rng(len(name)).standard_normal(value.shape) / math.sqrt(value.size)
        found[name] = [float(np.linalg.norm(value)), float((value * toward).sum())]
    return found


def numbers(name: str) -> Numbers:
    """All that is compared, of one family."""
    config = config_of(name)
    with jax.default_matmul_precision("highest"):
        logits = logits_of(config, weights_of(config, 1), jnp.float32)
        return {"logits": logits.astype(float).tolist()} | steps_of(name, config)


def compared(name: str) -> Iterator[Row]:
    """A row for each number with its difference from the stored one."""
    stored, config = json.loads(FILE.read_text(encoding="utf-8"))["models"][name], config_of(name)
    found = numbers(name)
    wanted = np.asarray(stored["logits"])

    def row(what: str, difference: float, tolerance: float) -> Row:
        return {"what": what, "difference": difference, "tolerance": tolerance, "ok": difference <= tolerance}

    yield row("logits", _largest(found["logits"], wanted), LOGITS)
    yield row("loss", _largest(np.divide(found["loss"], stored["loss"]), 1.0), LOSS)
    yield row("gradient norm", _largest(np.divide(found["grad_norm"], stored["grad_norm"]), 1.0), NORM)
    if found["changes"].keys() != stored["changes"].keys():
        raise ValueError(f"the tensors of {name} are not those of {FILE}: make it anew with --store")
    change = max(
        _largest(np.asarray(found["changes"][tensor]), np.asarray(values)) / values[0]
        for tensor, values in stored["changes"].items()
    )
    yield row("weights after two steps", change, CHANGE)
    half = logits_of(config, weights_of(config, 1), jnp.bfloat16)
    yield row("logits in bfloat16", _largest(half, wanted), BFLOAT16)


def _largest(found: Any, wanted: Any) -> float:
    """The largest absolute difference; infinite where a number is not finite."""
    difference = float(np.abs(np.asarray(found) - wanted).max())
    return difference if math.isfinite(difference) else math.inf


def store() -> Iterator[Row]:
    """Write the numbers of this machine's CPU."""
    if jax.default_backend() != "cpu":
        raise ValueError("the stored numbers are a CPU's: set JAX_PLATFORMS=cpu")
    about = "What experiments/benchmarks/gpu_parity.py gives on a CPU in float32; made by gpu.py --store."
    found = {name: _rounded(numbers(name)) for name in MODELS}
    FILE.write_text(json.dumps({"about": about, "models": found}) + "\n", encoding="utf-8")
    yield {"what": str(FILE)}


def _rounded(value: Any) -> Any:
    """With nine significant digits, which are all that float32 has."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.9g}")
