"""Loss and gradients of an SFT step equal those of `transformers` in PyTorch to 1e-5 of the largest, for one
configuration of each kind of architecture; every gradient is compared under the name of its tensor in the files."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fusion_jax as fj
from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.decoder import encode
from fusion_jax.models.families import tensors_of
from fusion_jax.models.folder import Model, pooled
from fusion_jax.models.weights import planned_tensors
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.scores import score
from tests.parity.checkpoints import write_checkpoint
from tests.parity.test_encoders import write_model
from tests.parity.test_layouts import as_baichuan
from tests.quick import FAST

RENAMED = {"lm_head.weight": "embed_out.weight"}  # by transformers, when it writes GPT-NeoX
PROMPTS, RESPONSES = (9, 4, 14), (6, 11, 3)
DECODERS = ["gpt-neox", "mpt-clipped-6-heads", pytest.param("olmo2-gqa-tied-bias", marks=pytest.mark.slow)]
SEQ2SEQ = ["t5-1.1", pytest.param("t5", marks=pytest.mark.slow), pytest.param("bart-scaled", marks=pytest.mark.slow)]


def texts() -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(4)
    return [(rng.integers(3, 96, p).tolist(), rng.integers(3, 96, r).tolist()) for p, r in zip(PROMPTS, RESPONSES)]


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def sft(model: Model, examples: list[Example]) -> tuple[float, Any]:
    """Mean negative log-probability of the scored tokens and its gradient, as the training step computes them."""
    objective, batch = objectives.sft(), collate(examples, buckets_of(examples))

    def loss(params: Any) -> Any:
        total, _ = objective.loss(score(params, model.config, batch, Compute()), Progress(jnp.zeros((), int), 1))
        return total.total / total.weight

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(model.params)
    return float(value), gradient


def gradients_of(theirs: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}


def assert_same(model: Model, gradient: Any, expected: dict[str, np.ndarray]) -> None:
    own = planned_tensors(model.config, gradient, tensors_of(model.config), np.dtype(np.float32))
    found = {tensor.name: tensor.value() for tensor in own}
    for inside, in_files in RENAMED.items():
        if in_files in found:
            expected[in_files] = expected.pop(inside)
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 1e-5 * largest, name


def theirs_and_ours(theirs: torch.nn.Module, ours: Model) -> tuple[float, float, Any]:
    """The loss of both on the texts, the gradient of ours; theirs is left in the module."""
    rows = [prompt + response for prompt, response in texts()]
    labels = [[-100] * len(prompt) + response for prompt, response in texts()]
    mask = padded([[1] * len(row) for row in rows], 0)
    out = theirs(padded(rows, 0), attention_mask=mask, labels=padded(labels, -100))
    out.loss.backward()
    examples = [Example((tuple(row),), (len(prompt),), i) for i, (row, (prompt, _)) in enumerate(zip(rows, texts()))]
    return float(out.loss.detach()), *sft(ours, examples)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name, tmp_path):
    """Where a value lies on MPT's limit but for rounding, its gradient is there on one side and not on the other: with
    the limit of this configuration none does."""
    theirs = write_checkpoint(name, tmp_path)
    ours = fj.load(tmp_path)
    wanted, value, gradient = theirs_and_ours(theirs, ours)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert_same(ours, gradient, gradients_of(theirs))


class Normalised(torch.nn.Module):
    """Rows divided by their L2 norm, for `torch.nn.utils.parametrize`."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(weight)


@pytest.mark.slow
def test_a_normalised_head(tmp_path):
    """Baichuan 2's, of a Llama whose head PyTorch normalises in each forward pass."""
    theirs = write_checkpoint("llama-mha", tmp_path)
    as_baichuan(tmp_path, z_loss_weight=0)
    ours = fj.load(tmp_path)
    torch.nn.utils.parametrize.register_parametrization(theirs.lm_head, "weight", Normalised())
    wanted, value, gradient = theirs_and_ours(theirs, ours)
    assert value == pytest.approx(wanted, rel=1e-5)
    expected = gradients_of(theirs)
    expected["lm_head.weight"] = expected.pop("lm_head.parametrizations.weight.original")
    for layer in range(3):
        parts = [expected.pop(f"model.layers.{layer}.self_attn.{one}_proj.weight") for one in "qkv"]
        expected[f"model.layers.{layer}.self_attn.W_pack.weight"] = np.concatenate(parts)
    assert_same(ours, gradient, expected)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders(name, tmp_path):
    """A row is the encoder's tokens, the decoder's first one and the response."""
    theirs = write_model(name, tmp_path)
    prompts, responses = (list(each) for each in zip(*texts()))
    mask = padded([[1] * len(row) for row in prompts], 0)
    out = theirs(input_ids=padded(prompts, 0), attention_mask=mask, labels=padded(responses, -100))
    out.loss.backward()
    ours = fj.load(tmp_path)
    rows = [(*prompt, ours.config.start, *response) for prompt, response in texts()]
    examples = [Example((row,), (len(prompt) + 1,), i) for i, (row, prompt) in enumerate(zip(rows, prompts))]
    value, gradient = sft(ours, examples)
    assert value == pytest.approx(float(out.loss.detach()), rel=1e-5)
    assert_same(ours, gradient, gradients_of(theirs))


def test_an_encoder(tmp_path):
    """BERT by a loss on its hidden states and its pooled ones, as a retriever is trained."""
    theirs = write_model("bert-types", tmp_path)
    prompts, _ = (list(each) for each in zip(*texts()))
    rows, mask = padded(prompts, 0), padded([[1] * len(row) for row in prompts], 0)
    weights = np.random.default_rng(1).normal(size=(*rows.shape, 48)).astype(np.float32) * mask.numpy()[..., None]
    out = theirs(rows, attention_mask=mask)
    wanted = (out.last_hidden_state * torch.tensor(weights)).sum() + out.pooler_output.square().sum()
    wanted.backward()
    ours = fj.load(tmp_path)

    def loss(params: Any) -> Any:
        encoded = encode(params, ours.config, jnp.asarray(rows.numpy()), jnp.asarray(PROMPTS))
        return (encoded.hidden * weights).sum() + jnp.square(pooled(encoded.hidden[:, 0], params["pooler"])).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(ours.params)
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert_same(ours, gradient, gradients_of(theirs))
