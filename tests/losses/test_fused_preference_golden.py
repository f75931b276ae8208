"""InfiFPO and FuseRL against an independent implementation's numbers (tests/golden/infifpo.json), values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import losses
from fusion_jax.losses import Pair, Quad, divide
from fusion_jax.losses.fuserl import leave_one_out, over_sources, weighted_sft
from fusion_jax.losses.infifpo import fused_reference
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.rewards.weights import advantages, selected, softmax, source_weights
from tests.conftest import golden_cases
from tests.quick import WHOLE

# As the golden file states: float64 rtol 1e-9, atol 1e-10; float32 2e-5, gradients atol 3e-6; indices exact.
COMPILER = {"float64": None, "float32": WHOLE}  # float32 as users compute
TOLERANCE = {"float64": {"rtol": 1e-9, "atol": 1e-10}, "float32": {"rtol": 2e-5, "atol": 2e-5}}
GRADIENT = {"float64": {"rtol": 1e-9, "atol": 1e-10}, "float32": {"rtol": 2e-5, "atol": 3e-6}}
FULL, BY_SUMS = golden_cases("infifpo", "infifpo_full"), golden_cases("infifpo", "infifpo_logps")
FUSERL = golden_cases("infifpo", "fuserl")


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def close(actual: Any, expected: Any, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), **tolerance)


def sums(logits: Any, labels: Any, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Sums and counts [B,S] of rows that stand slot by slot."""
    return _sums(jnp.asarray(logits, dtype), jnp.asarray(labels))


@jax.jit
def _sums(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    mask, entries = labels[:, 1:] != -100, jnp.maximum(labels[:, 1:], 0)
    logprobs, _ = linear_logprobs(logits[:, :-1], jnp.eye(logits.shape[-1], dtype=logits.dtype), entries)
    return jnp.where(mask, logprobs, 0).sum(-1), mask.sum(-1).astype(logits.dtype)


def values(total: jax.Array, count: jax.Array, setting: dict[str, Any]) -> jax.Array:
    return total / count if setting["length_norm"] else total


def loss_of(setting: dict[str, Any], policy: jax.Array, initial: jax.Array, sources: jax.Array) -> Any:
    fused = fused_reference(
        initial, sources, fusion=setting["fusion"], clip=setting["clip"], distance=setting["distance_space"],
        beside=policy if setting["distance_to"] == "current" else None, eps=setting["eps"],
    )  # fmt: skip
    slots, beta, smoothing = policy.shape[1], setting["beta"], setting["label_smoothing"]
    form = Pair if slots == 2 else Quad
    ours, theirs = (form(*(x[:, g] for g in range(slots))) for x in (policy, fused.values))
    if slots == 3:
        loss = losses.wrpo(ours, theirs, alpha=setting["alpha"], beta=beta, label_smoothing=smoothing)
    elif setting["loss_type"] == "ipo":
        loss = losses.ipo(ours, theirs, tau=beta)
    else:
        loss = losses.dpo(ours, theirs, beta=beta, label_smoothing=smoothing)
    return loss, fused


@pytest.mark.parametrize("case", BY_SUMS, ids=lambda c: c["name"])
def test_infifpo_from_sums(case, dtype):
    setting, given, outputs = case["setting"], case["inputs"], case["outputs"]
    array = {name: jnp.asarray(value, dtype) for name, value in given.items()}
    initial = values(array["initial_sum_logps"], array["policy_counts"], setting)
    sources = values(array["source_sum_logps"], array["source_counts"], setting)

    def mean(policy: jax.Array) -> Any:
        (loss, metrics), fused = loss_of(setting, values(policy, array["policy_counts"], setting), initial, sources)
        return loss.mean(), (loss, metrics, fused)

    compiled = jax.jit(jax.value_and_grad(mean, has_aux=True), compiler_options=COMPILER[dtype])
    (total, (loss, metrics, fused)), grad = compiled(array["policy_sum_logps"])
    tolerance = TOLERANCE[dtype]
    for actual, name in (
        (total, "loss"), (loss, "losses"), (fused.values, "fused_reference"), (fused.weights, "weights"),
        (fused.clipped, "clipped_source_values"), (metrics["rewards/chosen"], "rewards_chosen"),
        (metrics["rewards/rejected"], "rewards_rejected"),
    ):  # fmt: skip
        close(actual, outputs[name], tolerance)
    close(grad, outputs["grad_policy_sum_logps"], GRADIENT[dtype])
    close(metrics["rewards/accuracies"].mean(), outputs["metrics"]["accuracy"], tolerance)
    close(np.mean(np.asarray(fused.clipped != sources)), outputs["metrics"]["clip_rate"], tolerance)
    if "selected_source" in outputs:
        np.testing.assert_array_equal(fused.weights.argmax(-1), outputs["selected_source"])


@pytest.mark.parametrize("case", FULL, ids=lambda c: c["name"])
def test_infifpo_from_logits_of_models_with_other_vocabularies(case, dtype):
    setting, given, outputs = case["setting"], case["inputs"], case["outputs"]
    labels = np.asarray(given["policy_labels"])
    slots = len(labels) // len(outputs["losses"])

    def by_example(x: jax.Array) -> jax.Array:
        return x.reshape(slots, -1).T

    initial = by_example(values(*sums(given["initial_logits"], labels, dtype), setting))
    each = [sums(*one, dtype) for one in zip(given["source_logits"], given["source_labels"], strict=True)]
    sources = jnp.stack([by_example(values(*one, setting)) for one in each], -1)

    def mean(logits: jax.Array) -> Any:
        total, count = sums(logits, labels, dtype)
        (loss, _), fused = loss_of(setting, by_example(values(total, count, setting)), initial, sources)
        return loss.mean(), (total, fused)

    (loss, (total, fused)), grad = jax.jit(jax.value_and_grad(mean, has_aux=True))(
        jnp.asarray(given["policy_logits"], dtype)
    )
    close(loss, outputs["loss"], TOLERANCE[dtype])
    close(by_example(total), outputs["policy_sum_logps"], TOLERANCE[dtype])
    close(fused.values, outputs["fused_reference"], TOLERANCE[dtype])
    if "grad_policy_logits" in outputs:
        close(grad, outputs["grad_policy_logits"], GRADIENT[dtype])


def sft_stage(setting: dict[str, Any], rewards: np.ndarray, lengths: jax.Array, outputs: Any) -> Any:
    """The loss of FuseSFT as a function of the policy's sums; its selection and weights are checked."""
    prompts, sources, samples = rewards.shape
    texts = [[f"{k} {j}" for j in range(samples)] for k in range(sources)]
    chosen = np.asarray([selected(r, texts, select=setting["select"], count=setting["top_k"]) for r in rewards])
    np.testing.assert_array_equal(chosen, outputs["selected_flat_index"])
    shares = softmax(np.take_along_axis(rewards.reshape(prompts, -1), chosen, 1), setting["temperature"])
    close(shares, outputs["weights"], TOLERANCE["float64"])

    def loss(policy: jax.Array) -> jax.Array:
        picked, counts = (jnp.take_along_axis(x.reshape(prompts, -1), chosen, 1) for x in (policy, lengths))
        ones = jnp.ones(prompts, policy.dtype)
        norm = setting["length_norm"]
        return divide(weighted_sft(picked, counts, jnp.asarray(shares, policy.dtype), ones, length_norm=norm))

    return loss


def preference_stage(setting: dict[str, Any], rewards: np.ndarray, given: Any, outputs: Any, dtype: str) -> Any:
    """The loss of FusePO as a function of the policy's sums; its weights are checked."""
    shares = np.stack([source_weights(r, setting["temperature"], min_gap=setting["min_gap"]) for r in rewards])
    close(shares, outputs["source_weights"], TOLERANCE["float64"])
    best, worst = rewards.argmax(-1), rewards.argmin(-1)
    reference, counts = (jnp.asarray(given[name], dtype) for name in ("reference_sum_logps", "counts"))

    def pair(values: jax.Array) -> Pair:
        return Pair(*(jnp.take_along_axis(values, at[..., None], -1)[..., 0].ravel() for at in (best, worst)))

    def loss(policy: jax.Array) -> jax.Array:
        if setting["objective"] == "rloo":
            each = leave_one_out(policy, jnp.asarray(advantages(rewards), dtype))
        elif setting["objective"] == "simpo":
            beta, gamma = setting["beta"], setting["gamma"]
            each = losses.simpo(pair(policy), lengths=pair(counts), beta=beta, gamma=gamma)[0].reshape(best.shape)
        else:
            each = losses.dpo(pair(policy), pair(reference), beta=setting["beta"])[0].reshape(best.shape)
        return over_sources(each, jnp.asarray(shares, dtype)).mean()

    if setting["objective"] == "rloo":
        close(advantages(rewards), outputs["advantages"], TOLERANCE["float64"])
    else:
        np.testing.assert_array_equal(best, outputs["chosen_index"])
        np.testing.assert_array_equal(worst, outputs["rejected_index"])
    return loss


@pytest.mark.parametrize("case", FUSERL, ids=lambda c: c["name"])
def test_fuserl(case, dtype):
    setting, given, outputs = case["setting"], case["inputs"], case["outputs"]
    rewards = np.asarray(given["rewards"], np.float64)
    if setting["stage"] == "sft":
        loss = sft_stage(setting, rewards, jnp.asarray(given["counts"], dtype), outputs)
    else:
        loss = preference_stage(setting, rewards, given, outputs, dtype)
    compiled = jax.jit(jax.value_and_grad(loss), compiler_options=COMPILER[dtype])
    total, grad = compiled(jnp.asarray(given["policy_sum_logps"], dtype))
    close(total, outputs["loss"], TOLERANCE[dtype])
    close(grad, outputs["grad_policy_sum_logps"], GRADIENT[dtype])


def test_weights_follow_the_design():
    rewards = np.asarray([[0.1, 0.3], [0.2, 0.2], [0.0, 0.25]])
    found = source_weights(rewards, 0.1)
    assert found[1] == 0 and found.sum() == pytest.approx(1.0)  # its samples are equally good: no preference
    np.testing.assert_allclose(source_weights(rewards + 5.0, 0.1), found)
    assert not source_weights(np.ones((2, 3)), 0.1).any()
    np.testing.assert_allclose(advantages(rewards).sum(-1), 0.0, atol=1e-15)
    assert selected(rewards, [["a", "b"], ["b", "c"], ["d", "e"]]) == [1, 5, 3, 0]  # the second "b" is left out


@pytest.mark.parametrize("fusion", ["max_margin", "average", "confidence"])
def test_a_source_without_a_value_is_not_there(fusion):
    initial = jnp.asarray([[-0.5, -1.0], [-0.5, -1.0]])
    sources = jnp.asarray([[[-0.25, -0.75, -0.9], [-0.5, -2.0, -1.5]], [[-0.25, jnp.nan, -0.9], [-0.5, jnp.nan, -1.5]]])
    found = fused_reference(initial, sources, fusion=fusion)
    with_all = fused_reference(initial, sources[:1], fusion=fusion)
    without = fused_reference(initial[1:], sources[1:, :, jnp.asarray([0, 2])], fusion=fusion)
    np.testing.assert_allclose(found.values[0], with_all.values[0], rtol=1e-6)
    np.testing.assert_allclose(found.values[1], without.values[0], rtol=1e-6)
    assert not found.weights[1, :, 1].any() and not found.changed[1, :, 1].any()


def test_one_source_that_is_the_initial_model_is_length_normalised_dpo():
    policy, initial = jnp.asarray([[-1.0, -2.0]]), jnp.asarray([[-1.5, -1.75]])
    fused = fused_reference(initial, initial[..., None], clip=False)
    np.testing.assert_array_equal(fused.values, initial)
    far = fused_reference(initial, jnp.asarray([[[-9.0, -8.0], [-0.5, -0.25]]]))  # wrong on both: all are clipped
    np.testing.assert_array_equal(far.values, initial)
    start = losses.dpo(Pair(*policy.T), Pair(*fused_reference(policy, policy[..., None] - 1.0).values.T), beta=2.0)
    assert float(start[0][0]) >= np.log(2.0)
