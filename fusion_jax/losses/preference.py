"""Preference losses: on sequence log-probabilities DPO and its kin, and WRPO; on rewards Bradley and Terry's.

Every function takes log-probs or rewards [B] and returns (loss[B], metrics of arrays [B]); nothing is averaged here.
Metrics carry no gradient. Sources: WRPO arXiv 2412.03187; DPO arXiv 2305.18290; IPO arXiv 2310.12036; SimPO arXiv
2405.14734; reward models arXiv 2203.02155, their centering arXiv 2312.09244.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.errors import InputError

Array = jax.Array
Metrics = dict[str, Array]


class Pair(NamedTuple):
    """One value for each of (chosen, rejected): float[B]."""

    chosen: Array
    rejected: Array


class Quad(NamedTuple):
    """One value for each of (source's chosen, target's chosen, target's rejected): float[B]."""

    source_chosen: Array
    target_chosen: Array
    rejected: Array


def _log_sigmoid_loss(logits: Array, smoothing: float) -> Array:
    """-(1 - e) log sigma(logits) - e log sigma(-logits), stable for any margin."""
    return (1.0 - smoothing) * jax.nn.softplus(-logits) + smoothing * jax.nn.softplus(logits)


def _per_token(values: tuple[Array, ...], lengths: tuple[Array, ...] | None) -> tuple[Array, ...]:
    """Sums to per-token means; a response without scored tokens counts as one token."""
    if lengths is None:
        return values
    return tuple(v / jnp.maximum(n, 1) for v, n in zip(values, lengths, strict=True))


def _check_sides(**sides: Pair | Quad | None) -> None:
    """An array in the place of a `Pair` or `Quad` would be taken apart along its batch."""
    for name, side in sides.items():
        if side is not None and not isinstance(side, tuple):
            problem = f"is of type {type(side).__name__}, not a Pair or Quad of arrays [B]"
            raise InputError(problem, field=name, cure="Give fj.losses.Pair(...) or fj.losses.Quad(...)")


def _log_ratios(policy: Pair | Quad, reference: Pair | Quad, lengths: Pair | Quad | None) -> tuple[Array, ...]:
    _check_sides(policy=policy, reference=reference, lengths=lengths)
    ratios = tuple(p - jax.lax.stop_gradient(r) for p, r in zip(policy, reference, strict=True))
    return _per_token(ratios, lengths)


def _pair_metrics(chosen_reward: Array, rejected_reward: Array, policy: Pair) -> Metrics:
    metrics = {
        "rewards/chosen": chosen_reward,
        "rewards/rejected": rejected_reward,
        "rewards/margins": chosen_reward - rejected_reward,
        "rewards/accuracies": (chosen_reward > rejected_reward).astype(chosen_reward.dtype),
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
    }
    return jax.lax.stop_gradient(metrics)


def _quad_metrics(rewards: Quad, mixed: Array, policy: Quad) -> Metrics:
    """Row-wise metrics of spec section 9; `mixed` is the reward of the compound preferred response."""

    def wins(reward: Array) -> Array:
        return (reward > rewards.rejected).astype(reward.dtype)

    metrics = {
        "rewards/chosen": mixed,
        "rewards/source_chosen": rewards.source_chosen,
        "rewards/target_chosen": rewards.target_chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/margins": mixed - rewards.rejected,
        "rewards/accuracies": wins(mixed),
        "rewards/source_accuracies": wins(rewards.source_chosen),
        "rewards/pivot_accuracies": wins(rewards.target_chosen),
        "logps/chosen": (policy.source_chosen + policy.target_chosen) / 2,
        "logps/source_chosen": policy.source_chosen,
        "logps/target_chosen": policy.target_chosen,
        "logps/rejected": policy.rejected,
    }
    return jax.lax.stop_gradient(metrics)


def dpo(
    policy: Pair,
    reference: Pair,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    lengths: Pair | None = None,
    reference_free: bool = False,
) -> tuple[Array, Metrics]:
    """-log sigma(beta (D(chosen) - D(rejected))) with D the log-ratio to the reference.

    Args:
      policy, reference: sums of response log-probs, float[B] each.
      beta: 0.01 in WRPO's runs; 5 to 10 for the length-normalised form.
      label_smoothing: weight of the flipped preference.
      lengths: scored tokens of each response; given, log-ratios are per-token means (length-normalised DPO).
      reference_free: leave the reference out of the loss (it stays in the reported rewards).

    >>> policy = Pair(chosen=jnp.asarray([-3.0]), rejected=jnp.asarray([-6.0]))
    >>> reference = Pair(chosen=jnp.asarray([-4.0]), rejected=jnp.asarray([-5.0]))
    >>> loss, metrics = dpo(policy, reference, beta=0.5)
    >>> print(f"{loss[0]:.4f} {metrics['rewards/margins'][0]:.4f}")
    0.3133 1.0000
    """
    ratios = _log_ratios(policy, reference, lengths)
    scored = _per_token(policy, lengths) if reference_free else ratios
    loss = _log_sigmoid_loss(beta * (scored[0] - scored[1]), label_smoothing)
    return loss, _pair_metrics(beta * ratios[0], beta * ratios[1], policy)


def hinge(policy: Pair, reference: Pair, *, beta: float, lengths: Pair | None = None) -> tuple[Array, Metrics]:
    """max(0, 1 - beta (D(chosen) - D(rejected))) (SLiC-HF, arXiv 2305.10425).

    >>> policy = Pair(chosen=jnp.asarray([-3.0]), rejected=jnp.asarray([-6.0]))
    >>> reference = Pair(chosen=jnp.asarray([-4.0]), rejected=jnp.asarray([-5.0]))
    >>> print(f"{hinge(policy, reference, beta=0.25)[0][0]:.4f}")
    0.5000
    """
    chosen, rejected = _log_ratios(policy, reference, lengths)
    loss = jax.nn.relu(1.0 - beta * (chosen - rejected))
    return loss, _pair_metrics(beta * chosen, beta * rejected, policy)


def ipo(
    policy: Pair, reference: Pair, *, tau: float, lengths: Pair | None = None, reference_free: bool = False
) -> tuple[Array, Metrics]:
    """(D(chosen) - D(rejected) - 1/(2 tau))^2; with `lengths` D is a per-token mean, as in `trl`, else the sum.

    >>> policy = Pair(chosen=jnp.asarray([-3.0]), rejected=jnp.asarray([-6.0]))
    >>> reference = Pair(chosen=jnp.asarray([-4.0]), rejected=jnp.asarray([-5.0]))
    >>> print(f"{ipo(policy, reference, tau=0.5)[0][0]:.4f}")
    1.0000
    """
    ratios = _log_ratios(policy, reference, lengths)
    scored = _per_token(policy, lengths) if reference_free else ratios
    loss = (scored[0] - scored[1] - 1.0 / (2.0 * tau)) ** 2
    return loss, _pair_metrics(tau * ratios[0], tau * ratios[1], policy)


def simpo(
    policy: Pair,
    *,
    lengths: Pair,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> tuple[Array, Metrics]:
    """-log sigma(beta (m(chosen) - m(rejected)) - gamma), m the per-token mean log-prob; no reference.

    `gamma` is the paper's margin (SimPO's configs give gamma / beta). `loss_type` "hinge" is
    max(0, 1 - (beta (m(chosen) - m(rejected)) - gamma)). Reported rewards leave the margin out.

    >>> policy, lengths = (Pair(*(jnp.asarray([x]) for x in values)) for values in ((-3.0, -6.0), (2.0, 3.0)))
    >>> print(f"{simpo(policy, lengths=lengths, beta=2.0, gamma=0.5)[0][0]:.4f}")
    0.4741
    """
    _check_sides(policy=policy, lengths=lengths)
    chosen, rejected = _per_token(policy, lengths)
    logits = beta * (chosen - rejected) - gamma
    loss = jax.nn.relu(1.0 - logits) if loss_type == "hinge" else _log_sigmoid_loss(logits, label_smoothing)
    return loss, _pair_metrics(beta * chosen, beta * rejected, policy)


def orpo(policy: Pair, *, lengths: Pair, beta: float) -> tuple[Array, Metrics]:
    """-beta log sigma(log odds(chosen) - log odds(rejected)), odds of p = exp(m), m the per-token mean log-prob.

    The part of ORPO (arXiv 2403.07691, Eq. 6 and 7) beside the cross-entropy of the chosen response, which is added to
    it; no reference.

    >>> policy, lengths = (Pair(*(jnp.asarray([x]) for x in values)) for values in ((-2.0, -6.0), (2.0, 3.0)))
    >>> print(f"{orpo(policy, lengths=lengths, beta=0.5)[0][0]:.4f}")
    0.1191
    """
    _check_sides(policy=policy, lengths=lengths)
    chosen, rejected = _per_token(policy, lengths)
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return _log_sigmoid_loss(odds, 0.0) * beta, _pair_metrics(beta * chosen, beta * rejected, policy)


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) of x < 0, exact on both sides of -log 2; a certain response (x = 0) counts as almost certain."""
    x = jnp.minimum(x, -jnp.finfo(x.dtype).eps)
    small = x > -0.6931471805599453
    return jnp.where(
        small, jnp.log(-jnp.expm1(jnp.where(small, x, -1.0))), jnp.log1p(-jnp.exp(jnp.where(small, -1.0, x)))
    )


def _mix(values: tuple[Array, ...], alpha: Array | float) -> Array:
    return alpha * values[0] + (1.0 - alpha) * values[1]


def wrpo(
    policy: Quad,
    reference: Quad,
    *,
    alpha: Array | float,
    beta: float,
    label_smoothing: float = 0.0,
    lengths: Quad | None = None,
) -> tuple[Array, Metrics]:
    """-log sigma(beta d), d = alpha D(source) + (1 - alpha) D(target) - D(rejected) (WRPO section 3).

    Args:
      policy, reference: sums of response log-probs, float[B] each.
      alpha: fusion coefficient, scalar or [B] (0 for an example without a source response: exactly DPO).
      beta: reward scale, 0.01 as published.
      lengths: given, log-ratios are per-token means (an extension, not published).

    >>> policy = Quad(*(jnp.asarray([x]) for x in (-3.0, -4.0, -6.0)))
    >>> reference = Quad(*(jnp.asarray([x]) for x in (-5.0, -4.5, -5.0)))
    >>> loss, metrics = wrpo(policy, reference, alpha=0.1, beta=0.5)
    >>> print(f"{loss[0]:.4f} {metrics['rewards/chosen'][0]:.4f}")
    0.3634 0.3250
    """
    ratios = _log_ratios(policy, reference, lengths)
    loss = _log_sigmoid_loss(beta * (_mix(ratios, alpha) - ratios[2]), label_smoothing)
    rewards = Quad(*(beta * r for r in ratios))
    return loss, _quad_metrics(rewards, _mix(rewards, alpha), policy)


def wrpo_ipo(
    policy: Quad, reference: Quad, *, alpha: Array | float, tau: float, lengths: Quad | None = None
) -> tuple[Array, Metrics]:
    """(alpha D(source) + (1 - alpha) D(target) - D(rejected) - 1/(2 tau))^2 (WRPO Table 5).

    >>> policy = Quad(*(jnp.asarray([x]) for x in (-3.0, -4.0, -6.0)))
    >>> reference = Quad(*(jnp.asarray([x]) for x in (-5.0, -4.5, -5.0)))
    >>> print(f"{wrpo_ipo(policy, reference, alpha=0.1, tau=0.5)[0][0]:.4f}")
    0.4225
    """
    ratios = _log_ratios(policy, reference, lengths)
    loss = (_mix(ratios, alpha) - ratios[2] - 1.0 / (2.0 * tau)) ** 2
    rewards = Quad(*(tau * r for r in ratios))
    return loss, _quad_metrics(rewards, _mix(rewards, alpha), policy)


def wrpo_simpo(
    policy: Quad, *, lengths: Quad, alpha: Array | float, beta: float, gamma: float
) -> tuple[Array, Metrics]:
    """-log sigma(beta (alpha m(source) + (1 - alpha) m(target) - m(rejected)) - gamma) (WRPO Table 5).

    >>> policy = Quad(*(jnp.asarray([x]) for x in (-3.0, -4.0, -6.0)))
    >>> lengths = Quad(*(jnp.asarray([4.0]) for _ in range(3)))
    >>> print(f"{wrpo_simpo(policy, lengths=lengths, alpha=0.1, beta=2.0, gamma=0.5)[0][0]:.4f}")
    0.4555
    """
    _check_sides(policy=policy, lengths=lengths)
    means = _per_token(policy, lengths)
    loss = _log_sigmoid_loss(beta * (_mix(means, alpha) - means[2]) - gamma, 0.0)
    rewards = Quad(*(beta * m for m in means))
    return loss, _quad_metrics(rewards, _mix(rewards, alpha), policy)


def two_positives(
    policy: Quad,
    reference: Quad,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    has_source: Array | float = 1.0,
) -> tuple[Array, Metrics]:
    """The control with the mixture outside the log-sigmoid: mean of DPO(source, rejected) and DPO(target, rejected).

    An example without a source response (`has_source` 0) is DPO(target, rejected) alone.

    >>> policy = Quad(*(jnp.asarray([x]) for x in (-3.0, -4.0, -6.0)))
    >>> reference = Quad(*(jnp.asarray([x]) for x in (-5.0, -4.5, -5.0)))
    >>> print(f"{two_positives(policy, reference, beta=0.5)[0][0]:.4f}")
    0.2941
    """
    ratios = _log_ratios(policy, reference, None)
    source = _log_sigmoid_loss(beta * (ratios[0] - ratios[2]), label_smoothing)
    target = _log_sigmoid_loss(beta * (ratios[1] - ratios[2]), label_smoothing)
    share = 0.5 * has_source
    rewards = Quad(*(beta * r for r in ratios))
    return _mix((source, target), share), _quad_metrics(rewards, _mix(rewards, share), policy)


def bradley_terry(rewards: Pair, *, center: float = 0.0) -> tuple[Array, Metrics]:
    """-log sigma(r(chosen) - r(rejected)) + center (r(chosen) + r(rejected))^2, of a reward model's scores float[B].

    Args:
      center: holds rewards near zero, which the comparison leaves open; 0.01 is usual, 0 leaves it out.

    >>> rewards = Pair(chosen=jnp.asarray([1.5]), rejected=jnp.asarray([0.5]))
    >>> print(f"{bradley_terry(rewards)[0][0]:.4f} {bradley_terry(rewards, center=0.01)[0][0]:.4f}")
    0.3133 0.3533
    """
    _check_sides(rewards=rewards)
    margin = rewards.chosen - rewards.rejected
    loss = _log_sigmoid_loss(margin, 0.0) + center * (rewards.chosen + rewards.rejected) ** 2
    metrics = {
        "rewards/chosen": rewards.chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).astype(margin.dtype),
    }
    return loss, jax.lax.stop_gradient(metrics)
