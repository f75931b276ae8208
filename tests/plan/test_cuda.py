"""Every program of the experiments is lowered for NVIDIA GPUs, on a machine that has none."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.merge.methods import METHODS
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import config_from_hf
from fusion_jax.models.parameters import abstract_params
from fusion_jax.ops.kernels import Visible, attend
from fusion_jax.ops.linear_logprobs import CHUNK_ELEMENTS_ACCELERATOR
from fusion_jax.plan.programs import (
    OBJECTIVES,
    BeamDecode,
    Decode,
    DistilStep,
    MergeTensor,
    Prefill,
    ScoreStep,
    SearchLayer,
    SearchLoss,
    TeacherStep,
    TrainStep,
)
from fusion_jax.sampling.samplers import Sampler
from fusion_jax.sharding import make_mesh
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.state import OptimizerSettings, Pace, init_state, make_optimizer
from fusion_jax.train.step import make_eval_step, make_train_step

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
MODELS = {
    "llama": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {"model_type": "gemma2", "sliding_window": 16, "attn_logit_softcapping": 50.0},
    "judge": {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "num_labels": 1},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 16, "sliding_window_pattern": 2},
}
TRAINED = [
    (model, TrainStep("wrpo", 2, 16, prompt=16, reference="stored", attention="xla"))
    for model in MODELS if model != "judge"
] + [
    ("llama", TrainStep("sft", 2, 32, attention="xla", remat="none")),
    ("llama", TrainStep("sft", 2, 32, attention="xla", remat="dots", dtype="float32")),
    ("llama", TrainStep("sft", 2, 32, attention="xla", remat="offload", micro_batches=2)),
    ("llama", TrainStep("dpo", 2, 16, prompt=16, reference="in-step", attention="xla", shared_prompt=False)),
    ("llama", TrainStep("fusion", 2, 32, attention="xla", k=20)),
    ("judge", TrainStep("reward", 2, 16, prompt=16, attention="xla")),
]
READ = [
    ("gemma2", ScoreStep(2, 16, 3, prompt=16, attention="xla")), ("gemma3", TeacherStep(2, 32, attention="xla")),
    ("gemma3", Prefill(2, 32, attention="xla")), ("qwen3", Prefill(2, 32, attention="xla")),
    ("gemma2", Decode(2, 32, 16)), ("qwen3", BeamDecode(2, 32, 16, 3)), ("gemma3", Decode(2, 32, 16, weights="int8")),
    ("gemma2", SearchLayer(2, 32, 3, attention="xla")), ("llama", SearchLoss(2, 32, 3)),
    ("llama", DistilStep(TrainStep("sft", 2, 32, attention="xla"), 32)),
    ("llama", TeacherStep(2, 32, attention="xla", weights="int8")), ("llama", Decode(2, 32, 16, 2, Sampler(0.8, 0.95, 5, 1.05))),
]  # fmt: skip
MERGED = [
    ("", MergeTensor(name, min(max(method.least_models, 2), method.most_models or 2), (8, 6)))
    for name, method in METHODS.items()
    if name != "varm"  # no one program: its weights come from statistics on the host
]


def named(case):
    model, program = case
    what = [getattr(program, field, "") for field in ("objective", "method", "remat", "reference")]
    what += ["int8"] * (getattr(program, "weights", "") == "int8")
    return " ".join(filter(None, [model, type(program).__name__, *what]))


def for_cuda(traced) -> str:
    """The program's text. Where an operation has no rule for CUDA, lowering fails."""
    lowered = traced.lower(lowering_platforms=("cuda",))
    assert lowered.out_info is not None
    return lowered.as_text()


def test_every_objective_is_there():
    assert {program.objective for _, program in TRAINED} == set(OBJECTIVES)


@pytest.mark.parametrize("case", [*TRAINED, *READ, *MERGED], ids=named)
def test_programs_of_the_plan(case):
    model, program = case
    config = config_from_hf(SIZES | MODELS[model]) if model else None
    assert "module @jit_" in for_cuda(program.trace(config, make_mesh(devices=jax.devices()[:1])))


LOSSES = [objectives.sft()]
LOSSES += [
    objectives.pair(objectives.PairSettings(loss=one)) for one in ("dpo_norm", "ipo", "ipo_mean", "simpo", "hinge")
]
LOSSES += [
    objectives.wrpo(objectives.WrpoSettings(loss=one)) for one in ("wrpo", "wrpo_ipo", "wrpo_simpo", "two_positives")
]


@pytest.mark.parametrize("objective", LOSSES, ids=lambda objective: objective.name)
def test_losses_without_a_mesh(objective):
    """As on one GPU; of an example with packed documents, where the objective has one row."""
    config = config_from_hf(SIZES | MODELS["llama"])
    row = tuple(range(3, 23))
    packed = {"segments": (1,) * 8 + (2,) * 12} if len(objective.slots) == 1 else {}
    examples = [Example((row,) * len(objective.slots), (5,) * len(objective.slots), i, **packed) for i in range(2)]
    batch = collate(examples, buckets_of(examples))
    compute = Compute(dtype=jnp.bfloat16, remat="full", logits=CHUNK_ELEMENTS_ACCELERATOR)
    optimizer = make_optimizer(OptimizerSettings())
    params = abstract_params(config, jnp.float32)
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), params)
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    step = make_train_step(config, objective, optimizer, compute)
    assert "module @jit_" in for_cuda(step.trace(state, batches, Pace(10, 1e-3), None))
    evaluate = make_eval_step(config, objective, compute)
    assert "module @jit_" in for_cuda(evaluate.trace(params, batch, Progress(0, 10)))


def attention(kernel):
    """Forward and backward over rows of 128 tokens."""
    q, k = (jax.ShapeDtypeStruct((2, 128, heads, 64), jnp.bfloat16) for heads in (4, 2))
    positions = jnp.broadcast_to(jnp.arange(128), (2, 128))

    def total(q, k, v):
        return attend(q, k, v, Visible(positions), scale=0.125, kernel=kernel).astype(jnp.float32).sum()

    return jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)


def test_attention_of_each_kernel():
    """Splash attention is for TPU alone, which lowering notices: so would it notice anything else."""
    assert "module @jit_" in for_cuda(attention("xla"))
    with pytest.raises((ValueError, AssertionError)):  # the latter by jax 0.11, without a word
        for_cuda(attention("splash"))
