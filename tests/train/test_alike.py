"""The cosine of two objectives' gradients against one computed by hand, on one device and on meshes."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
import pytest

from fusion_jax import losses
from fusion_jax.data.batches import Data, Example, buckets_of, collate
from fusion_jax.losses import Pair, Quad
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import init_params, place_params
from fusion_jax.sharding import make_mesh
from fusion_jax.train import objectives
from fusion_jax.train.alike import gradient_cosine
from fusion_jax.train.objectives import WrpoSettings
from fusion_jax.train.scores import score
from tests.programs import finished
from tests.small import changed, virtual_devices
from tests.train.test_shared_prompt import PLAIN

pytestmark = pytest.mark.usefixtures("quick_compiler")
CONFIG = changed(PLAIN, stack={"layers": 1})
SETTINGS = WrpoSettings(beta=0.5, alpha=0.6, dynamic=False)
BOTH = objectives.wrpo(WrpoSettings(beta=0.5, alpha=0.0, dynamic=False)), objectives.wrpo(SETTINGS)


def quads(count: int) -> Data:
    rng = np.random.default_rng(0)

    def row(prompt: list[int]) -> tuple[int, ...]:
        return (*prompt, *rng.integers(0, CONFIG.vocab_size, rng.integers(2, 6)).tolist())

    prompts = [rng.integers(0, CONFIG.vocab_size, 3).tolist() for _ in range(count)]
    return Data([Example(tuple(row(p) for _ in range(3)), (3, 3, 3), i) for i, p in enumerate(prompts)])


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG, init_params(CONFIG, jax.random.key(1)), None)


def by_hand(model: Model, data: Data) -> float:
    """From the losses themselves, DPO's among them, and NumPy."""
    batch = collate(data.examples, buckets_of(data.examples))

    def sequences(params):
        return score(params, model.config, batch, Compute()).sequence

    frozen = jax.jit(sequences)(model.params)

    def dpo(params):
        return losses.dpo(Pair(*sequences(params).T[1:]), Pair(*frozen.T[1:]), beta=0.5)[0].mean()

    def wrpo(params):
        return losses.wrpo(Quad(*sequences(params).T), Quad(*frozen.T), alpha=0.6, beta=0.5)[0].mean()

    both = jax.jit(lambda params: (jax.grad(dpo)(params), jax.grad(wrpo)(params)))(model.params)
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(each)]).astype(float) for each in both)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def test_the_cosine_of_dpo_and_wrpo(model):
    """Also with a last batch that is not full."""
    data = quads(7)
    wanted = by_hand(model, data)
    for batch_size in (16, 3):
        assert gradient_cosine(model, data, BOTH, Compute(), batch_size=batch_size) == pytest.approx(wanted, abs=2e-5)
    assert 0.1 < wanted < 0.999


def test_an_objective_is_like_itself(model):
    data = quads(7)  # and batches of 3: programs of the test above
    assert gradient_cosine(model, data, (BOTH[1], BOTH[1]), Compute(), batch_size=3) == pytest.approx(1.0, abs=1e-6)
    twice = objectives.wrpo(WrpoSettings(beta=0.5, alpha=0.6, dynamic=False, sft_weight=1.0))
    assert gradient_cosine(model, data, (BOTH[1], twice), Compute(), batch_size=3) < 0.999


@pytest.mark.slow
def test_on_meshes_of_four_devices():
    """Split over examples, weights and heads, with a last batch that is not full: the cosine of one device."""
    printed = finished([__file__], os.environ | virtual_devices(4))
    alone, *meshes = json.loads(printed.splitlines()[-1])
    assert len(meshes) == 3 and all(cosine == pytest.approx(alone, abs=2e-6) for cosine in meshes)


def on_meshes() -> list[float]:
    """On one device, then on three meshes."""
    model, data = Model(CONFIG, init_params(CONFIG, jax.random.key(1)), None), quads(5)
    found = [gradient_cosine(model, data, BOTH, Compute(), batch_size=4)]
    for axes in ((4, 1, 1), (1, 4, 1), (1, 2, 2)):
        mesh = make_mesh(*axes, devices=jax.devices())
        placed = Model(CONFIG, place_params(model.params, CONFIG, mesh), None)
        found.append(gradient_cosine(placed, data, BOTH, Compute(mesh), batch_size=4))
    return found


if __name__ == "__main__":
    print(json.dumps(on_meshes()))
