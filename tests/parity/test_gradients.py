"""An SFT step's loss and gradients within 1e-5 of PyTorch's, for kinds of parts that Llama does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.losses.reductions import divide
from fusion_jax.models.compute import Compute
from fusion_jax.models.families import tensors_of
from fusion_jax.models.folder import Model, load
from fusion_jax.models.weights import planned_tensors
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.scores import score
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_layouts import as_baichuan

pytestmark = pytest.mark.usefixtures("quick_compiler")

STARTS, LENGTHS = (9, 4), (31, 17)


def rows() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(3, 96, n) for n in LENGTHS]


def ours_of(model: Model) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the gradients as tensors of the files."""
    examples = [Example((tuple(row),), (start,), i) for i, (row, start) in enumerate(zip(rows(), STARTS, strict=True))]
    batch, objective = collate(examples, buckets_of(examples)), objectives.sft()

    def loss(params):
        return divide(objective.loss(score(params, model.config, batch, Compute()), Progress(jnp.int32(0), 4))[0])

    value, gradient = jax.jit(jax.value_and_grad(loss))(model.params)
    planned = planned_tensors(model.config, gradient, tensors_of(model.config), np.dtype(np.float32))
    return float(value), {tensor.name: tensor.value() for tensor in planned}


def theirs_of(model: torch.nn.Module) -> tuple[float, dict[str, np.ndarray]]:
    """The same of PyTorch: mean over all tokens behind the prompts."""
    total, count = torch.zeros(()), sum(n - start for n, start in zip(LENGTHS, STARTS, strict=True))
    for row, start in zip(rows(), STARTS, strict=True):
        logits, labels = model(torch.tensor(row)[None]).logits[0], torch.tensor(row[start:])
        total = total + torch.nn.functional.cross_entropy(logits[start - 1 : -1], labels, reduction="sum")
    (total / count).backward()
    return float(total.detach()) / count, {name: p.grad.numpy() for name, p in model.named_parameters()}


def assert_same(ours: tuple[float, dict[str, np.ndarray]], theirs: tuple[float, dict[str, np.ndarray]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(np.abs(g).max() for g in theirs[1].values())
    for name, gradient in theirs[1].items():
        np.testing.assert_allclose(ours[1][name], gradient, atol=1e-5 * scale, err_msg=name)


def test_alibi_and_clipping(tmp_path):
    theirs = write_checkpoint("mpt-clipped-6-heads", tmp_path)
    assert_same(ours_of(load(tmp_path)), theirs_of(theirs))


class Normalised(torch.nn.Module):
    """Rows divided by their L2 norm, for `torch.nn.utils.parametrize`."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(weight)


@pytest.mark.slow
def test_a_normalised_head(tmp_path):
    """Baichuan 2's, of a Llama whose head PyTorch normalises in each forward pass."""
    theirs = write_checkpoint("llama-mha", tmp_path)
    as_baichuan(tmp_path, z_loss_weight=0)
    torch.nn.utils.parametrize.register_parametrization(theirs.lm_head, "weight", Normalised())
    value, gradient = theirs_of(theirs)
    gradient["lm_head.weight"] = gradient.pop("lm_head.parametrizations.weight.original")
    for layer in range(3):
        parts = [gradient.pop(f"model.layers.{layer}.self_attn.{one}_proj.weight") for one in "qkv"]
        gradient[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.concatenate(parts)
    assert_same(ours_of(load(tmp_path)), (value, gradient))
