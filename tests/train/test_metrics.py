"""What metrics.jsonl says of a step does not depend on its micro-batches: counts are added, means divided once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import Data, Example, buckets_of
from fusion_jax.losses import Count, Mean, divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params
from fusion_jax.runs.opening import open_run
from fusion_jax.train import objectives
from fusion_jax.train.batching import step_batch
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.optimise import optimise
from fusion_jax.train.settings import TrainSettings
from fusion_jax.train.state import OptimizerSettings, init_state, make_optimizer, paces
from fusion_jax.train.step import make_train_step
from tests.small import changed, small_model
from tests.train.test_shared_prompt import PLAIN

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = changed(PLAIN, stack={"layers": 1})
FAST = (("xla_backend_optimization_level", 0), ("xla_llvm_disable_expensive_passes", True))  # to compile, not to run
OBJECTIVES = {
    "sft": (1, objectives.sft()),
    "dpo": (2, objectives.pair(PairSettings(beta=1.0))),
    "wrpo": (3, objectives.wrpo(WrpoSettings(beta=1.0))),
}


def uneven(groups: int) -> list[Example]:
    """Eight examples of very different lengths, one of them without its first response."""
    rng = np.random.default_rng(3)
    out = []
    for index, size in enumerate((1, 2, 9, 30, 1, 14, 2, 25)):
        prompt = tuple(rng.integers(1, 256, 4))
        rows = [prompt + tuple(rng.integers(1, 256, size + g)) for g in range(groups)]
        starts = [4] * groups
        if index == 2 and groups > 1:
            rows[0] = prompt
        out.append(Example(tuple(rows), tuple(starts), index, reference=(-9.0,) * groups))
    return out


@pytest.mark.parametrize("name", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "wrpo"))])
def test_micro_batches_change_no_metric(name):
    groups, objective = OBJECTIVES[name]
    many = uneven(groups)
    settings = OptimizerSettings(learning_rate=0.1, warmup_ratio=0.0)
    optimizer, pace = make_optimizer(settings), paces(settings, 4)
    step = make_train_step(CONFIG, objective, optimizer, Compute(options=FAST))
    found = {}
    several = (2, 4) if name == "sft" else (4,)
    for micro in (1, *several):
        state = init_state(init_params(CONFIG, jax.random.key(0)), optimizer, None)
        indices = np.arange(8).reshape(micro, -1)
        batch = jax.tree.map(jnp.asarray, step_batch(Data(many), indices, buckets_of(many), None))
        _, metrics = step(state, batch, pace(0))
        found[micro] = {key: float(value) for key, value in metrics.items() if key != "bad"}
    for micro in several:
        for key, value in found[1].items():
            np.testing.assert_allclose(found[micro][key], value, rtol=2e-5, atol=2e-6, err_msg=f"{key}, {micro}")
    if name == "sft":
        assert found[4]["tokens"] == sum(e.scored[0] for e in many)


def test_the_evaluation_counts_all_held_out_tokens(tmp_path):
    """Five examples in batches of two, the last one filled."""
    settings = TrainSettings(
        OptimizerSettings(warmup_ratio=0.0), batch_size=4, micro_batches=2, log_every=1, remat="none"
    )
    run, held = open_run(tmp_path / "run", {}, resume=False), uneven(1)[:5]
    optimise(small_model(num_hidden_layers=1), Data(uneven(1)[:4]), objectives.sft(), settings, run, held=Data(held))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert f'"eval_tokens": {float(sum(e.scored[0] for e in held))}' in lines[-1]


def test_a_count_is_added_and_not_divided():
    sums = jax.tree.map(jnp.add, {"n": Count(jnp.float32(3)), "m": Mean(jnp.float32(3), jnp.float32(2))},
                        {"n": Count(jnp.float32(4)), "m": Mean(jnp.float32(1), jnp.float32(2))})  # fmt: skip
    assert {name: float(divide(value)) for name, value in sums.items()} == {"n": 7.0, "m": 1.0}
