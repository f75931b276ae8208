"""Every loss against the official implementations' numbers (tests/golden/wrpo.json), values and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import losses
from fusion_jax.losses import Mean, Pair, Quad, divide
from fusion_jax.ops.linear_logprobs import linear_logprobs
from fusion_jax.train import objectives
from fusion_jax.train.objective import Progress
from fusion_jax.train.objectives import PairSettings, WrpoSettings
from fusion_jax.train.scores import Scores
from tests.conftest import golden_cases
from tests.quick import WHOLE

# The golden file states: float64 rtol 1e-8 with atol 1e-9 (its outputs are rounded to 10 digits), float32 2e-5 / 3e-6.
TOLERANCE = {"float64": {"rtol": 1e-8, "atol": 1e-9}, "float32": {"rtol": 2e-5, "atol": 2e-5}}
GRADIENT = {"float64": {"rtol": 1e-8, "atol": 1e-9}, "float32": {"rtol": 2e-5, "atol": 3e-6}}
MOST_ROWS, MOST_TOKENS = 12, 15  # of the logits of a case
COMPILER = {"float64": None, "float32": WHOLE}  # float32 as users compute
DTYPES = ["float64", pytest.param("float32", marks=pytest.mark.slow)]


@pytest.fixture(params=DTYPES)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def close(actual: Any, expected: Any, tolerance: dict[str, float]) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), **tolerance)


@jax.jit
def _score_logits(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    mask = labels[:, 1:] != -100
    logprobs, _ = linear_logprobs(
        logits[:, :-1], jnp.eye(logits.shape[-1], dtype=logits.dtype), jnp.where(mask, labels[:, 1:], 0), chunk=5
    )
    logprobs = jnp.where(mask, logprobs, 0.0)
    return logprobs, logprobs.sum(-1), mask.sum(-1).astype(logits.dtype)


def score_logits(logits: jax.Array, labels: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[R,T,V] logits as hidden states under an identity head: (token log-probs, sums, counts).

    Padded to the most rows and tokens of any case, so that cases of one vocabulary are one compiled program.
    """
    rows, tokens = labels.shape
    more = ((0, MOST_ROWS - rows), (0, MOST_TOKENS - tokens))
    labels = np.pad(labels, more, constant_values=-100)
    logprobs, sums, counts = _score_logits(jnp.pad(logits, (*more, (0, 0))), labels)
    return logprobs[:rows, : tokens - 1], sums[:rows], counts[:rows]


def scores_from(case: dict[str, Any], logits: jax.Array, labels: np.ndarray, groups: int, reference: Any) -> Scores:
    logprobs, sums, counts = score_logits(logits, labels)

    def by_example(x: jax.Array) -> jax.Array:
        return x.reshape(groups, -1, *x.shape[1:]).swapaxes(0, 1)

    mask = by_example(jnp.asarray(labels[:, 1:] != -100, logits.dtype))
    return Scores(
        by_example(logprobs), mask, by_example(sums), by_example(counts), reference, jnp.ones(mask.shape[0], mask.dtype)
    )


def value_and_grad(case: dict[str, Any], objective: Any, groups: int, reference: Any, step: int, dtype: str) -> Any:
    labels = np.asarray(case["inputs"]["concatenated_labels"])

    def loss(logits: jax.Array) -> Any:
        now = Progress(jnp.asarray(step), case["setting"].get("n_steps", 1))
        mean, metrics = objective.loss(scores_from(case, logits, labels, groups, reference), now)
        return divide(mean), {k: divide(v) for k, v in metrics.items()}

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=COMPILER[dtype])
    return compiled(jnp.asarray(case["inputs"]["policy_logits"], dtype))


def _close_gradient(grad: jax.Array, outputs: dict[str, Any], dtype: str) -> None:
    """The whole gradient where the file has it, and always its norm."""
    close(jnp.sqrt((grad**2).sum()), outputs["grad_policy_logits_l2"], GRADIENT[dtype])
    if "grad_policy_logits" in outputs:
        close(grad, outputs["grad_policy_logits"], GRADIENT[dtype])


@pytest.mark.parametrize("case", golden_cases("wrpo", "wrpo_full"), ids=lambda c: c["name"])
def test_wrpo_from_logits(case, dtype):
    setting, outputs = case["setting"], case["outputs"]
    reference = jnp.concatenate(
        [jnp.asarray(case["inputs"][f"reference_{k}_logps"], dtype) for k in ("chosen", "rejected")], 1
    )
    objective = objectives.wrpo(
        WrpoSettings(
            loss="wrpo" if setting["loss_type"] == "wrpo" else "two_positives",
            beta=setting["beta"], alpha=setting.get("alpha", 0.1), dynamic=setting.get("is_dynamic", False),
            label_smoothing=setting.get("label_smoothing", 0.0),
        )
    )  # fmt: skip
    (loss, metrics), grad = value_and_grad(case, objective, 3, reference, setting.get("step", 0), dtype)
    close(loss, outputs["loss"], TOLERANCE[dtype])
    _close_gradient(grad, outputs, dtype)
    for name, expected in outputs["metrics"].items():
        quirk = name == "rewards/pivot_accuracies" or (
            setting["loss_type"] == "sigmoid" and name == "rewards/accuracies"
        )  # the official code broadcasts these over all pairs of examples
        if name.startswith("logits/") or quirk:
            continue
        tolerance = {"rtol": 0, "atol": 1e-6} if name.endswith("accuracies") else TOLERANCE[dtype]
        close(metrics[name], expected, tolerance)
    close(metrics["rewards/pivot_accuracies"], outputs["rowwise_target_accuracy_derived"], {"atol": 1e-6})


@pytest.mark.parametrize("case", golden_cases("wrpo", "wrpo_logps"), ids=lambda c: c["name"])
def test_wrpo_from_sequence_logprobs(case, dtype):
    policy = jnp.asarray(case["inputs"]["policy_logps"], dtype)
    reference = Quad(*jnp.asarray(case["inputs"]["reference_logps"], dtype).T)
    for run in case["runs"]:
        s = run["setting"]

        def loss(policy: jax.Array, s: dict[str, Any] = s) -> Any:
            options = {"beta": s["beta"], "label_smoothing": s.get("label_smoothing", 0.0)}
            if s.get("loss_type") == "sigmoid":
                values, metrics = losses.two_positives(Quad(*policy.T), reference, **options)
            else:
                alpha = losses.alpha_at(
                    s.get("step", 0), alpha_end=s["alpha"], num_steps=s.get("n_steps", 1), dynamic="step" in s
                )
                values, metrics = losses.wrpo(Quad(*policy.T), reference, alpha=alpha, **options)
            return values.mean(), (values, metrics)

        (mean, (values, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(policy)
        out = run["outputs"]
        close(mean, out["loss"], TOLERANCE[dtype])
        close(values, np.ravel(out["losses"]), TOLERANCE[dtype])
        close(grad, out["grad_policy_logps"], GRADIENT[dtype])
        if "weighted_chosen_rewards" in out:
            close(metrics["rewards/chosen"], np.ravel(out["weighted_chosen_rewards"]), TOLERANCE[dtype])


@pytest.mark.parametrize("case", golden_cases("wrpo", "batch_logps"), ids=lambda c: c["name"])
def test_token_scoring(case, dtype):
    labels, outputs = np.asarray(case["inputs"]["labels"]), case["outputs"]
    weights = jnp.asarray(
        next(v for k, v in {**case, **case["inputs"], **outputs}.items() if k == "weights_for_grad"), dtype
    )

    def weighted(logits: jax.Array) -> Any:
        tokens, sums, counts = score_logits(logits, labels)
        return (weights * sums).sum(), (tokens, sums, counts)

    (_, (tokens, sums, counts)), grad = jax.jit(jax.value_and_grad(weighted, has_aux=True))(
        jnp.asarray(case["inputs"]["logits"], dtype)
    )
    close(sums, outputs["sum_logps"], TOLERANCE[dtype])
    close(tokens, outputs["per_token_logps_masked"], TOLERANCE[dtype])
    np.testing.assert_array_equal(counts, outputs["n_scored_tokens"])
    close(grad, next(v for k, v in outputs.items() if k.startswith("grad")), GRADIENT[dtype])


PAIR_LOSS = {
    ("sigmoid", False): "dpo", ("sigmoid", True): "dpo_norm", ("ipo", False): "ipo", ("ipo", True): "ipo_mean",
}  # fmt: skip


@pytest.mark.parametrize("case", golden_cases("wrpo", "dpo_full"), ids=lambda c: c["name"])
def test_pairwise_from_logits(case, dtype):
    s, outputs, inputs = case["setting"], case["outputs"], case["inputs"]
    labels = np.asarray(inputs["concatenated_labels"])
    names = sorted(k for k in inputs if k.startswith("reference") and "chosen" in k) + sorted(
        k for k in inputs if k.startswith("reference") and "rejected" in k
    )
    reference = jnp.stack([jnp.asarray(inputs[k], dtype) for k in names], 1)
    if s.get("avg_logp"):  # the file gives per-token means; the objective takes sums
        counts = (labels[:, 1:] != -100).sum(-1).reshape(2, -1).T
        reference = reference * counts
    settings = PairSettings(
        loss=PAIR_LOSS[s["loss_type"], bool(s.get("avg_logp"))], beta=s["beta"],
        label_smoothing=s.get("label_smoothing", 0.0), sft_weight=s.get("sft_weight", 0.0),
    )  # fmt: skip
    (loss, metrics), grad = value_and_grad(case, objectives.pair(settings), 2, reference, 0, dtype)
    close(loss, outputs["loss"], TOLERANCE[dtype])
    _close_gradient(grad, outputs, dtype)
    close(
        metrics["rewards/margins"],
        np.mean(np.subtract(outputs["chosen_rewards"], outputs["rejected_rewards"])),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("case", golden_cases("wrpo", "dpo_logps"), ids=lambda c: c["name"])
def test_pairwise_from_sequence_logprobs(case, dtype):
    policy = jnp.asarray(case["inputs"]["policy_logps"], dtype)
    reference = Pair(*jnp.asarray(case["inputs"]["reference_logps"], dtype).T)
    for run in case["runs"]:
        s = dict(run["setting"])
        kind, beta = s.pop("loss_type"), s.pop("beta")
        fn = {"sigmoid": losses.dpo, "hinge": losses.hinge, "ipo": losses.ipo}[kind]
        options = {("tau" if kind == "ipo" else "beta"): beta, **s}

        def loss(policy: jax.Array, fn: Any = fn, options: dict[str, Any] = options) -> Any:
            values, metrics = fn(Pair(*policy.T), reference, **options)
            return values.mean(), (values, metrics)

        (_, (values, metrics)), grad = jax.value_and_grad(loss, has_aux=True)(policy)
        out = run["outputs"]
        close(values, out["losses"], TOLERANCE[dtype])
        close(metrics["rewards/chosen"], out["chosen_rewards"], TOLERANCE[dtype])
        close(metrics["rewards/rejected"], out["rejected_rewards"], TOLERANCE[dtype])
        close(grad, out["grad_policy_logps"], GRADIENT[dtype])


@pytest.mark.parametrize("case", golden_cases("wrpo", "simpo_full"), ids=lambda c: c["name"])
def test_simpo_from_logits(case, dtype):
    s, outputs = case["setting"], case["outputs"]
    settings = PairSettings(
        loss="simpo_hinge" if s.get("loss_type") == "hinge" else "simpo", beta=s["beta"],
        gamma=s["gamma_beta_ratio"] * s["beta"], label_smoothing=s.get("label_smoothing", 0.0),
        sft_weight=s.get("sft_weight", 0.0),
    )  # fmt: skip
    count = len(case["inputs"]["concatenated_labels"]) // 2
    (loss, _), grad = value_and_grad(case, objectives.pair(settings), 2, jnp.zeros((count, 2)), 0, dtype)
    close(loss, outputs["loss"], TOLERANCE[dtype])
    _close_gradient(grad, outputs, dtype)


@pytest.mark.parametrize("case", golden_cases("wrpo", "wrpo_variants_from_equations"), ids=lambda c: c["name"])
def test_wrpo_variants(case, dtype):
    policy = jnp.asarray(case["inputs"]["policy_sum_logps"], dtype)
    reference = Quad(*jnp.asarray(case["inputs"]["reference_sum_logps"], dtype).T)
    lengths = Quad(*jnp.asarray(case["inputs"]["lengths"], dtype).T)
    for run in case["runs"]:
        s = dict(run["setting"])
        variant = s.pop("variant")

        def loss(policy: jax.Array, s: dict[str, Any] = s, variant: str = variant) -> Any:
            quad = Quad(*policy.T)
            values, _ = {
                "wrpo_simpo": lambda: losses.wrpo_simpo(quad, lengths=lengths, **s),
                "wrpo_ipo": lambda: losses.wrpo_ipo(quad, reference, **s),
                "wrpo_ln": lambda: losses.wrpo(quad, reference, lengths=lengths, **s),
            }[variant]()
            return values.mean(), values

        (_, values), grad = jax.value_and_grad(loss, has_aux=True)(policy)
        close(values, run["outputs"]["losses"], TOLERANCE[dtype])
        close(grad, run["outputs"]["grad_policy_logps"], GRADIENT[dtype])


def test_schedules(x64):
    (case,) = golden_cases("wrpo", "schedules")
    for s in case["alpha_schedules"]:
        actual = [float(losses.alpha_at(t, alpha_end=s["alpha_end"], num_steps=s["n_steps"])) for t in s["steps"]]
        close(actual, s["alpha"], TOLERANCE["float64"])
    for s in case["lr_schedules"]:
        rate = losses.learning_rate(s["peak_lr"], num_steps=s["n_steps"], warmup_ratio=s["warmup_ratio"])
        close([float(rate(jnp.asarray(t))) for t in s["steps"]], s["lr"], {"rtol": 1e-8, "atol": 1e-18})


def test_sft_is_a_token_mean():
    loss, _ = losses.sft(jnp.asarray([[-1.0, -3.0], [-5.0, jnp.nan]]), jnp.asarray([[1.0, 1.0], [1.0, 0.0]]))
    assert loss == Mean(9.0, 3.0)
