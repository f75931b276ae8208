"""Preference examples packed end to end: the same loss, metrics and gradient as rows of their own."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.data.packing import collate_packed, pack
from fusion_jax.errors import InputError
from fusion_jax.losses.reductions import divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.scores import score
from tests.programs import finished
from tests.small import virtual_devices
from tests.train.test_shared_prompt import PLAIN, WINDOWED, examples

pytestmark = pytest.mark.usefixtures("quick_compiler")

OBJECTIVES = {
    "wrpo": objectives.wrpo(WrpoSettings(beta=1.0, dynamic=False)),
    "dpo with sft": objectives.pair(PairSettings(beta=1.0, sft_weight=0.5)),
}


def uneven(groups: int) -> list[Example]:
    """Examples of many lengths, one of half weight, one that only fills, one without its first response."""
    many = [dataclasses.replace(e, rows=e.rows[:groups], starts=e.starts[:groups], reference=(-20.0,) * groups)
            for e in examples((30, 17, 1, 6, 9, 22, 3))]  # fmt: skip
    many[1] = dataclasses.replace(many[1], weight=0.5)
    many[2] = dataclasses.replace(many[2], weight=0.0)
    rows = (many[3].rows[0][:6], *many[3].rows[1:])
    many[3] = dataclasses.replace(many[3], rows=rows, starts=(6,) * groups)
    return many


def found(config, objective, batch):
    def loss(params):
        total, metrics = objective.loss(score(params, config, batch, Compute()), Progress(jnp.zeros((), jnp.int32), 4))
        return total.total, (total, metrics)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (total, metrics)), gradient = step(init_params(config, jax.random.key(0)))
    return divide(total), {name: divide(mean) for name, mean in metrics.items()}, gradient


@pytest.mark.parametrize(
    "config", [WINDOWED, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=["windows and caps", "plain"]
)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_same_loss_metrics_and_gradient(name, config):
    many = uneven(3 if name == "wrpo" else 2)
    packed = pack(many, 64)
    assert len(packed.rows) < len(many) and packed.segments > 2
    batch = collate_packed(many, packed, rows=len(packed.rows) + 1, segments=packed.segments + 1, first=0)
    value, metrics, gradient = found(config, OBJECTIVES[name], collate(many, buckets_of(many)))
    other = found(config, OBJECTIVES[name], batch)
    np.testing.assert_allclose(other[0], value, rtol=1e-6)
    for key, expected in metrics.items():
        np.testing.assert_allclose(other[1][key], expected, rtol=2e-6, atol=1e-6, err_msg=key)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other[2]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * scale)


def test_no_row_overflows_and_every_example_has_one_place():
    rng = np.random.default_rng(0)
    many = [Example(tuple((1,) * n for n in rng.integers(2, 60, 3)), (1, 1, 1), i) for i in range(50)]
    packed = pack(many, 60)
    assert sorted(i for row in packed.rows for i in row) == list(range(50))
    for row in packed.rows:
        assert (np.sum([[len(r) - 1 for r in many[i].rows] for i in row], 0) <= 60).all()
    needed = np.sum([[len(r) - 1 for r in e.rows] for e in many], 0).max() / 60
    assert len(packed.rows) <= 1.5 * needed


def test_what_cannot_be_packed_is_refused():
    many = examples((30, 17))
    with pytest.raises(InputError, match=f"pack_tokens.*{max(len(r) for e in many for r in e.rows) - 1} tokens"):
        pack(many, 20)
    with pytest.raises(InputError, match="packed already"):
        pack([dataclasses.replace(e, segments=(1,)) for e in many], 64)


def test_packed_training_on_eight_devices_gives_the_metrics_of_plain_rows_on_one():
    """Two optimizer steps of two micro-batches each, in a process of its own with virtual devices."""
    script = Path(__file__).with_name("packed_training.py")
    runs = json.loads(finished([str(script)], os.environ | virtual_devices(8)).splitlines()[-1])
    plain = runs.pop("plain, one device")
    assert set(runs) == {"packed, eight devices"}
    for name, metrics in runs.items():
        for step, expected in zip(metrics, plain, strict=True):
            for key, value in expected.items():
                assert step[key] == pytest.approx(value, rel=2e-5, abs=2e-6), (name, key)
