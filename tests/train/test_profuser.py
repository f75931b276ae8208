"""ProFuser's objective: the golden numbers, means that no split and no padding changes, one program for both stages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.data.batches import Data, Example, Targets, buckets_of
from fusion_jax.errors import InputError
from fusion_jax.losses.fusion import progressive_weights
from fusion_jax.models.compute import Compute
from fusion_jax.models.parameters import init_params
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.train import objectives
from fusion_jax.train.batching import step_batch
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import INFERENCE, TRAINING, ProfuserSettings
from fusion_jax.train.scores import Scores
from fusion_jax.train.state import Pace, init_state
from fusion_jax.train.step import make_train_step
from tests.conftest import GOLDEN
from tests.small import changed
from tests.train.test_shared_prompt import PLAIN

CONFIG = changed(PLAIN, stack={"layers": 1})
CASES = json.loads((GOLDEN / "profuser.json").read_text())
CLOSE = {"float64": {"rtol": 1e-10, "atol": 1e-10}, "float32": {"rtol": 2e-5, "atol": 2e-6}}  # as the file states


def read(part: dict[str, Any], fallback: str, width: int) -> dict[str, np.ndarray]:
    """A branch's arrays, padded to `width` positions; where no target is valid, the label's or none."""
    labels, valid = np.asarray(part["labels"]), np.asarray(part["kd_valid"]) > 0
    ids, probs = np.maximum(part["teacher_ids"], 0), np.where(valid[..., None], part["teacher_probs"], 0.0)
    if fallback == "label":
        ids[..., 0] = np.where(valid, ids[..., 0], labels)
        probs[..., 0] = np.where(valid, probs[..., 0], 1.0)
    arrays = {"logits": np.asarray(part["student_logits"]), "labels": labels, "ids": ids, "probs": probs,
              "mask": np.asarray(part["response_mask"], float)}  # fmt: skip
    return {name: np.pad(x, [(0, 0), (0, width - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for name, x in arrays.items()}


def loss_of(
    case: dict[str, Any], parts: list[dict[str, Any]], settings: ProfuserSettings, step: int, dtype: str
) -> Any:
    """The objective's value and gradient by the logits of the parts, which are the branches in their order."""
    width = max(len(part["labels"][0]) for part in parts) + 2
    arrays = [read(part, case["fallback"], width) for part in parts]
    joined = {name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]}
    branch = np.repeat(np.arange(len(parts)), [len(a["mask"]) for a in arrays])
    mask, probs = jnp.asarray(joined["mask"], dtype)[:, None], jnp.asarray(joined["probs"], dtype)[:, None]
    taught = joined["mask"] * (joined["probs"] > 0).any(-1)
    sizes = [x[branch == b].sum() for b in (INFERENCE, TRAINING) for x in (joined["mask"], taught)]
    targets = Targets(jnp.asarray(joined["ids"])[:, None], probs, jnp.zeros(len(branch)))
    labels = np.concatenate([joined["labels"][..., None], joined["ids"]], -1)

    def loss(logits: jax.Array) -> tuple[jax.Array, Any]:
        logprobs, _ = linear_logprobs(logits, jnp.eye(logits.shape[-1], dtype=logits.dtype), jnp.asarray(labels))
        own = logprobs[:, None, :, 0] * mask
        scores = Scores(
            own, mask, own.sum(-1), mask.sum(-1), jnp.zeros((len(branch), 1)), jnp.ones(len(branch)), targets,
            logprobs[:, None, :, 1:], branch=jnp.asarray(branch),
        )  # fmt: skip
        progress = Progress(jnp.asarray(step), 2, jnp.asarray(sizes, dtype))
        mean, metrics = objectives.profuser(settings, first_steps=1).loss(scores, progress)
        return mean.total / mean.weight, metrics

    (value, metrics), slopes = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(joined["logits"], dtype))
    gradients = [np.asarray(slopes)[branch == b][:, : len(part["labels"][0])] for b, part in enumerate(parts)]
    return value, {name: mean.total / max(mean.weight, 1e-30) for name, mean in metrics.items()}, gradients


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("index", range(len(CASES["fuse"])))
def test_one_branch(index, dtype):
    case = CASES["fuse"][index]
    with jax.enable_x64(dtype == "float64"):
        value, metrics, (gradient,) = loss_of(case, [case], ProfuserSettings(beta=case["beta"]), 0, dtype)
        np.testing.assert_allclose(value, case["L_fuse"], **CLOSE[dtype])
        np.testing.assert_allclose(metrics["nll/infer"], case["L_SFT"], **CLOSE[dtype])
        np.testing.assert_allclose(metrics["kl/infer"], case["KL"], **CLOSE[dtype])
        np.testing.assert_allclose(gradient, case["grad_student_logits"], **CLOSE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("index", range(len(CASES["total"])))
def test_both_branches(index, dtype):
    case = CASES["total"][index]
    order, step = {(1.0, 0.0): ("progressive", 0), (0.1, 1.0): ("progressive", 1), (1.0, 1.0): ("simul", 0)}[
        case["w1"], case["w2"]
    ]
    with jax.enable_x64(dtype == "float64"):
        settings = ProfuserSettings(beta=case["beta"], order=order)
        value, metrics, gradients = loss_of(case, [case["infer"], case["train"]], settings, step, dtype)
        np.testing.assert_allclose(value, case["L_total"], **CLOSE[dtype])
        for name, gradient in zip(("infer", "train"), gradients, strict=True):
            np.testing.assert_allclose(gradient, case[f"grad_{name}"], **CLOSE[dtype])
            np.testing.assert_allclose(metrics[f"nll/{name}"], case[f"{name}_terms"]["L_SFT"], **CLOSE[dtype])
            np.testing.assert_allclose(metrics[f"kl/{name}"], case[f"{name}_terms"]["KL"], **CLOSE[dtype])
        if case["w2"] == 0:
            assert not gradients[1].any() and gradients[0].any()


@pytest.mark.parametrize("case", CASES["schedule"], ids=lambda case: case["order"])
def test_weights_of_every_step(case, x64):
    steps = jnp.arange(case["stage1_steps"] + case["stage2_steps"])
    found = progressive_weights(steps, first_steps=case["stage1_steps"], order=case["order"])
    np.testing.assert_allclose(np.stack(found, -1), case["weights"], rtol=1e-12)


def rows(*, longer: int = 0) -> list[Example]:
    """Eight rows of both branches, of unequal lengths, with three entries at most positions and none at some."""
    rng, out = np.random.default_rng(3), []
    for index, size in enumerate((2, 9, 4, 1, 7, 3, 12, 5)):
        tokens = tuple(rng.integers(1, 256, 4 + size).tolist())
        ids = np.argsort(rng.random((3 + size, 256)), -1)[:, :3].astype(np.int32)
        probs = rng.dirichlet(np.ones(3), 3 + size).astype(np.float32)
        probs[:3] = 0.0
        probs[3 + size // 2 : 4 + size // 2] = 0.0
        groups = np.asarray([0] * 4 + [1] * size, np.uint8)
        out.append(Example((tokens,), (4,), index, branch=index % 2, groups=groups,
                           targets=Targets(ids, probs, np.float32(0))))  # fmt: skip
    if longer:  # of no weight: everything else is padded to its length
        tokens, ids = tuple(range(1, longer + 1)), np.zeros((longer - 1, 3), np.int32)
        filler = Targets(ids, np.full((longer - 1, 3), 0.25, np.float32), np.float32(0))
        out += [replace(out[i], rows=(tokens,), groups=None, targets=filler, weight=0.0, index=8 + i) for i in range(8)]
    return out


def trained(examples: list[Example], micro: int, steps: int = 1, first_steps: int = 1, seen: int = 0) -> Any:
    """Parameters after some steps of SGD, whose first is the gradient, the last metrics, the compiled step."""
    optimizer = optax.sgd(1.0)
    objective = objectives.profuser(ProfuserSettings(beta=0.5), first_steps)
    step = make_train_step(CONFIG, objective, optimizer, Compute())
    state = init_state(init_params(CONFIG, jax.random.key(0)), optimizer, None)
    state = state._replace(step=state.step + seen)
    for _ in range(steps):
        batch = step_batch(Data(examples), np.arange(len(examples)).reshape(micro, -1), buckets_of(examples), None)
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch), Pace(4, 1.0))
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    return flat, {name: float(x) for name, x in metrics.items() if name != "bad"}, step


@pytest.mark.usefixtures("quick_compiler")
def test_the_means_depend_on_no_split_and_on_no_padding():
    whole, metrics, _ = trained(rows(), 1, seen=1)
    expected = 0.1 * (metrics["nll/infer"] + 0.5 * metrics["kl/infer"])
    expected += metrics["nll/train"] + 0.5 * metrics["kl/train"]
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert (metrics["weight/infer"], metrics["weight/train"]) == pytest.approx((0.1, 1.0))
    for examples, micro in ((rows(), 4), (rows(longer=60), 2)):
        found, again, _ = trained(examples, micro, seen=1)
        for name in ("loss", "nll/infer", "kl/infer", "nll/train", "kl/train"):
            assert again[name] == pytest.approx(metrics[name], rel=2e-5)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("quick_compiler")
def test_the_first_stage_learns_nothing_from_training_rows():
    """The step has the same bits whatever they say, and both stages are one program."""
    others = [e if e.branch == INFERENCE else replace(e, rows=((7,) * len(e.rows[0]),)) for e in rows()]
    (one, first, _), (two, *_) = trained(rows(), 2), trained(others, 2)
    np.testing.assert_array_equal(one, two)
    assert first["weight/train"] == 0 and first["nll/train"] > 0
    _, later, step = trained(rows(), 2, steps=3)
    assert later["weight/train"] == 1 and step._cache_size() == 1


def test_reverse_kl_needs_another_tail():
    with pytest.raises(InputError, match="field 'kind': is infinite"):
        ProfuserSettings(kind="reverse_kl")
    assert ProfuserSettings(kind="reverse_kl", tail="bucket").tail == "bucket"
