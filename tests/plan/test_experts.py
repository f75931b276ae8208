"""The real TPU compiler on small models with experts: it computes the chosen ones, and latents alone are kept."""

from __future__ import annotations

import importlib.util

import pytest

from fusion_jax.models.families import config_from_hf
from fusion_jax.plan.flops import parameter_count
from fusion_jax.plan.hlo import parse
from fusion_jax.plan.models import PUBLIC
from fusion_jax.plan.programs import Decode, TrainStep
from fusion_jax.plan.report import plan
from fusion_jax.plan.requests import Request, useful_flops
from fusion_jax.plan.runs import Planned
from fusion_jax.plan.work import kernel_cost

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = {
    "mixtral": PUBLIC["mixtral-8x7b"] | {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3, "num_attention_heads": 8,
    },
    "deepseek": PUBLIC["deepseek-v2-lite"] | {
        "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 384,
        "num_hidden_layers": 3, "num_attention_heads": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("mixtral", (1, 4, 2)), pytest.param("deepseek", (1, 8, 1), marks=pytest.mark.slow)],
)
def test_a_step_computes_the_chosen_experts(name, mesh):
    """Masked, the matmuls of every expert would be at least four times those of the chosen; none is."""
    step = TrainStep("sft", examples=16, tokens=1024)
    request = Request("v5e-8", SMALL[name], step, mesh)
    found = plan(Planned(name, request))
    assert found.fits and not found.times.unknown
    config = request.config
    assert config is not None and config.experts is not None
    pairs = 16 * 1024 * config.experts.chosen // mesh[1]
    chosen = 2.0 * pairs * config.width * config.decoder[-1].mlp.width / mesh[2]
    instructions = [i for c in parse(found.compiled.text).computations.values() for i in c.instructions]
    stated = [cost[0] for i in instructions if i.opcode == "custom-call" and (cost := kernel_cost(i))]
    assert len(stated) >= 11  # three forward, two or three to compute again, three each for rows and kernels
    assert all(chosen <= flops < 1.1 * chosen for flops in stated)
    again = 4 / 3  # the forward pass, to compute again what is not kept
    assert 0.9 < found.times.flops * 8 / (again * useful_flops(request)) < 1.15  # attention, filled up to whole tiles
    rows = [s.dims[0] for i in instructions for s in i.shapes if len(s.dims) == 2 and s.dims[1] == config.width]
    assert pairs in rows and max(rows) <= pairs


@pytest.mark.slow
def test_decoding_holds_latents_alone():
    """Arguments of a chip: the weights, the latents of prompts and of new tokens, and little more."""
    decode = Decode(rows=16, prompt=1024, capacity=512)
    found = plan(Planned("decode", Request("v5e-8", SMALL["deepseek"], decode, (8, 1, 1))))
    config = config_from_hf(SMALL["deepseek"])
    tokens, layers, rows = 1024 + 512, 3, 2
    latents = 2 * layers * rows * tokens * 576
    expanded = 2 * layers * rows * tokens * 8 * (192 + 128)
    weights = 2 * parameter_count(config)
    assert latents < found.compiled.memory.arguments - weights < 1.3 * latents < expanded
