"""Loss and gradients of an SFT step equal those of `transformers` in PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fusion_jax.data.batches import Example, buckets_of, collate
from fusion_jax.models.compute import Compute
from fusion_jax.models.folder import load
from fusion_jax.train import objectives
from fusion_jax.train.state import Pace, init_state
from fusion_jax.train.step import make_train_step
from tests.parity.checkpoints import write_checkpoint
from tests.quick import FAST

TOLERANCE = 1e-5
STARTS = (4, 1, 9)


def rows() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, 96, n).tolist()) for n in (30, 11, 17)]


def theirs_backward(model: torch.nn.Module, router_weight: float) -> tuple[float, float | None]:
    """The mean loss of the scored tokens and the balance of the routers; the gradients stay in the model.

    Rows end one token early, as ours do: the last token predicts nothing.
    """
    given, lengths = torch.zeros(3, 29, dtype=torch.long), [len(row) - 1 for row in rows()]
    for line, row in zip(given, rows(), strict=True):
        line[: len(row) - 1] = torch.tensor(row[:-1])
    mask = torch.arange(29)[None] < torch.tensor(lengths)[:, None]
    routers = {"output_router_logits": True} if router_weight else {}
    out = model(given, attention_mask=mask.long(), **routers)
    logprobs, scored = torch.log_softmax(out.logits, -1), []
    for line, row, start in zip(logprobs, rows(), STARTS, strict=True):
        scored += [line[t - 1, row[t]] for t in range(start, len(row))]
    loss = -torch.stack(scored).mean()
    (loss + router_weight * out.aux_loss if router_weight else loss).backward()
    return loss.item(), out.aux_loss.item() if router_weight else None


@pytest.mark.parametrize(
    ("name", "router_weight"),
    [
        ("mixtral", 0.5),
        pytest.param("deepseek-v2", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_step_of_sft(name, router_weight, tmp_path):
    theirs, ours = write_checkpoint(name, tmp_path / "hf"), load(tmp_path / "hf")
    loss, evenness = theirs_backward(theirs, router_weight)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")  # which puts them in the order of the parameters

    examples = [Example((row,), (start,), i) for i, (row, start) in enumerate(zip(rows(), STARTS, strict=True))]
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], collate(examples, buckets_of(examples)))
    compute, descent = Compute(options=tuple(FAST.items()), remat="full"), optax.sgd(1.0)
    step = make_train_step(ours.config, objectives.sft(), descent, compute, router_weight=router_weight)
    before = jax.tree.map(np.asarray, ours.params)
    state, metrics = step(init_state(ours.params, descent), batch, Pace(1, 1.0))
    assert float(metrics["loss"]) - router_weight * (evenness or 0.0) == pytest.approx(loss, rel=TOLERANCE)
    if evenness is not None:
        assert float(metrics["balance"]) == pytest.approx(evenness, rel=TOLERANCE)
    wanted = load(tmp_path / "gradients").params
    scale = max(float(abs(g).max()) for g in jax.tree.leaves(wanted))
    for after, old, gradient in zip(*map(jax.tree.leaves, (state.params, before, wanted)), strict=True):
        np.testing.assert_allclose(old - after, gradient, atol=TOLERANCE * scale)
