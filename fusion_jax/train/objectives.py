"""The objectives: losses of `fusion_jax.losses` bound to their settings, with the rows and the reference they need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import losses
from fusion_jax.align.classes import CLASSES
from fusion_jax.errors import InputError
from fusion_jax.keeping import kept
from fusion_jax.losses import Mean, Pair, Quad, weighted
from fusion_jax.losses.fusion import (
    Kind,
    Order,
    Tail,
    Target,
    complement,
    divergence,
    fused_loss,
    progressive_weights,
    scheduled_weights,
)
from fusion_jax.settings import bounded
from fusion_jax.teachers.settings import FusionSettings, check_divergence
from fusion_jax.train.objective import Metrics, Objective, Progress
from fusion_jax.train.scores import Scores, compared_tokens, reward

Array = jax.Array


@dataclass(frozen=True)
class PairSettings:
    """A pairwise loss."""

    loss: Literal["dpo", "dpo_norm", "ipo", "ipo_mean", "simpo", "hinge", "simpo_hinge", "orpo"] = "dpo"
    """The loss of a (chosen, rejected) pair."""
    beta: float = 0.01
    """How strongly the model is held to its reference; tau of ipo, the scale of simpo, lambda of orpo."""
    gamma: float = 1.0
    """SimPO's target margin."""
    label_smoothing: float = 0.0
    """Share of the pairs that are assumed to be labelled the wrong way round."""
    sft_weight: float = 0.0
    """Adds so many times the cross-entropy of the chosen responses, its mean taken over the tokens of each micro-batch;
    orpo always adds it once."""

    def __post_init__(self) -> None:
        bounded(self, "beta", above=0)
        bounded(self, "gamma", "sft_weight", least=0)
        bounded(self, "label_smoothing", least=0, most=0.5)


@dataclass(frozen=True)
class WrpoSettings:
    """WRPO and its variants."""

    loss: Literal["wrpo", "wrpo_ipo", "wrpo_simpo", "two_positives"] = "wrpo"
    """The loss of a (source chosen, target chosen, rejected) quadruple."""
    beta: float = 0.01
    """How strongly the model is held to its reference; tau of wrpo_ipo."""
    alpha: float = 0.1
    """Final weight of the source's response; the target's own has the rest."""
    dynamic: bool = True
    """Whether alpha rises linearly from 0; else it is constant."""
    gamma: float = 0.0
    """Target margin of wrpo_simpo."""
    label_smoothing: float = 0.0
    """Share of the preferences that are assumed to be labelled the wrong way round."""
    sft_weight: float = 0.0
    """Adds so many times the cross-entropy of a preferred response, its mean taken over the tokens of each
    micro-batch."""
    sft_on: Literal["target", "source"] = "target"
    """Of whose preferred response: the target's own, as DPO has it, or the source's."""

    def __post_init__(self) -> None:
        bounded(self, "beta", above=0)
        bounded(self, "alpha", least=0, most=1)
        bounded(self, "gamma", "sft_weight", least=0)
        bounded(self, "label_smoothing", least=0, most=0.5)


@dataclass(frozen=True)
class RewardSettings:
    """How a reward model learns from pairs."""

    center: float = 0.01
    """Weight of the squared sum of a pair's rewards, which holds them near zero."""

    def __post_init__(self) -> None:
        bounded(self, "center", least=0)


@dataclass(frozen=True)
class ProfuserSettings:
    """ProFuser (arXiv 2408.04998): cross-entropy of a text plus the divergence from its best teacher, in two modes."""

    beta: float = 0.1
    """Weight of the divergence beside the cross-entropy."""
    kind: Kind = "kl"
    """The divergence of the student from the teacher."""
    jsd_beta: float = 0.5
    """The teacher's weight in jsd."""
    tail: Tail = "none"
    """A teacher's mass outside its k entries, as for other fusions."""
    order: Order = "progressive"
    """First inference mode, then mainly training mode (progressive), the other way round (reverse), both (simul)."""
    kept: float = 0.1
    """Weight of the first stage's mode in the second one."""

    def __post_init__(self) -> None:
        bounded(self, "beta", "kept", least=0)
        check_divergence(self.kind, self.tail, self.jsd_beta)


WITHOUT_REFERENCE = ("simpo", "simpo_hinge", "wrpo_simpo", "orpo")


def _unknown(loss: str) -> InputError:
    return InputError(f"'{loss}' is not a loss of this kind", field="loss", cure="See --help for the choices")


@kept
def sft() -> Objective:
    """Token-mean cross-entropy over all scored tokens of the optimizer step."""

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        return losses.sft(scores.logprobs, scores.mask)

    return Objective("sft", ("response",), loss)


def fusion(settings: FusionSettings, classes: np.ndarray | None = None) -> Objective:
    """lambda * L_LM + (1 - lambda) * L_fuse of examples with targets; the means are those of each micro-batch.

    Args:
      classes: uint8[vocabulary], `align.classes.token_classes`; then the metrics tell how much probability the targets
        of scored tokens hold, by class of token. Without renormalising, the rest is unlisted or had no image.
    """
    told = classes is not None and settings.keeps_mass
    return _fusion(settings, np.asarray(classes, np.uint8).tobytes() if told else None)


@kept
def _fusion(s: FusionSettings, classes: bytes | None) -> Objective:
    kinds = None if classes is None else np.frombuffer(classes, np.uint8)
    apart = partial(divergence, kind=s.kind, tail=s.tail, beta=s.jsd_beta, rounding=s.rounding)

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.targets is not None and scores.target_logprobs is not None
        target = Target(scores.targets.ids, scores.targets.probs)
        mask = (target.probs > 0).any(-1) * scores.weights[:, None, None]
        language, metrics = losses.sft(scores.logprobs, scores.mask)
        if kinds is not None:
            metrics |= _mass_by_class(scores, target, jnp.asarray(kinds))
        if s.schedule == "soft":
            each = losses.divide(jax.vmap(apart)(scores.target_logprobs, target, mask))
            return _soft_loss(s, scores, each), metrics
        fused = apart(scores.target_logprobs, target, mask)
        now = scheduled_weights(progress.step, weight=s.weight, num_steps=progress.total, schedule=s.schedule)
        one = jnp.ones(())
        metrics |= {"loss/language": language, "loss/fusion": fused, "lambda": Mean(now[0] * one, one)}
        return fused_loss(language, fused, now), metrics

    return Objective("fusion", ("text",), loss, targets=True)


def _mass_by_class(scores: Scores, target: Target, classes: Array) -> Metrics:
    """What the targets of scored tokens sum to, of all and by class of the token that is to be predicted."""
    assert scores.labels is not None
    mass, kinds = target.probs.sum(-1), classes[scores.labels]
    found: Metrics = {"mass": weighted(mass, scores.mask)}
    return found | {f"mass/{n}": weighted(mass, scores.mask * (kinds == c)) for c, n in enumerate(CLASSES)}


def _soft_loss(s: FusionSettings, scores: Scores, fused: Array) -> Mean:
    """Mean over examples of (1 - m) L_LM + m L_fuse, each example with its own m and means. fused: float[B], L_fuse."""
    assert scores.targets is not None
    language = losses.divide(jax.vmap(weighted)(-scores.logprobs, scores.mask))
    share = scores.targets.share
    return weighted(complement(share, s.rounding) * language + share * fused, scores.weights)


INFERENCE, TRAINING = 0, 1  # `Example.branch` of ProFuser's rows


@kept
def profuser(settings: ProfuserSettings, first_steps: int) -> Objective:
    """w1 L_Infer + w2 L_Train, each L = cross-entropy + beta KL of the rows of one branch.

    The four means are over the whole optimizer step, however it falls into micro-batches, so that short rows count no
    more than their tokens; one without tokens is 0. A branch whose weight is 0 gets a gradient of exactly 0. KL is over
    the scored tokens that have a target.

    Args:
      first_steps: optimizer steps of the first stage; the weights of a step are computed from its number, so both
        stages are one program.
    """
    s = settings

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        assert scores.targets is not None and scores.target_logprobs is not None
        assert scores.branch is not None and progress.tokens is not None
        target, sizes = Target(scores.targets.ids, scores.targets.probs), progress.tokens
        weights = progressive_weights(progress.step, first_steps=first_steps, order=s.order, kept=s.kept)
        total, metrics = jnp.zeros((), scores.logprobs.dtype), dict[str, Mean | losses.Count]()
        for branch, name in ((INFERENCE, "infer"), (TRAINING, "train")):
            mask = scores.mask * (scores.branch == branch)[:, None, None]
            taught = mask * (target.probs > 0).any(-1)
            language = weighted(-scores.logprobs, mask)
            apart = divergence(scores.target_logprobs, target, taught, kind=s.kind, tail=s.tail, beta=s.jsd_beta)
            scored, compared = (jnp.maximum(size, 1) for size in (sizes[2 * branch], sizes[2 * branch + 1]))
            total += weights[branch] * (language.total / scored + s.beta * apart.total / compared)
            metrics |= {f"nll/{name}": language, f"{s.kind}/{name}": apart}
            metrics[f"weight/{name}"] = Mean(weights[branch] * jnp.ones(()), jnp.ones(()))
        share = scores.mask.sum() / jnp.maximum(sizes[0] + sizes[2], 1)
        return Mean(total, share), metrics

    return Objective("profuser", ("text",), loss, targets=True, counts=partial(compared_tokens, branches=2))


def means_of(metrics: dict[str, Array], weights: Array) -> Metrics:
    """Values of examples, float[B] each, as (sum, weight)."""
    return {name: weighted(value, weights) for name, value in metrics.items()}


def _columns(values: Array, count: int) -> tuple[Array, ...]:
    return tuple(values[:, g] for g in range(count))


def with_sft(mean: Mean, scores: Scores, slot: int, weight: float) -> tuple[Mean, Mean]:
    """A preference loss plus `weight` times the cross-entropy of one of the responses, and that cross-entropy.

    Its token mean is of the micro-batch, as in the official trainer, and counts once for each example.
    """
    nll, _ = losses.sft(scores.logprobs[:, slot], scores.mask[:, slot])
    return Mean(mean.total + weight * losses.divide(nll) * mean.weight, mean.weight), nll


@kept
def pair(settings: PairSettings) -> Objective:
    """A loss on (chosen, rejected) rows."""
    s = settings
    sft_weight = 1.0 if s.loss == "orpo" else s.sft_weight

    def loss_of(policy: Pair, reference: Pair, lengths: Pair) -> tuple[Array, dict[str, Array]]:
        match s.loss:
            case "dpo":
                return losses.dpo(policy, reference, beta=s.beta, label_smoothing=s.label_smoothing)
            case "dpo_norm":
                return losses.dpo(policy, reference, beta=s.beta, label_smoothing=s.label_smoothing, lengths=lengths)
            case "ipo":
                return losses.ipo(policy, reference, tau=s.beta)
            case "ipo_mean":
                return losses.ipo(policy, reference, tau=s.beta, lengths=lengths)
            case "hinge":
                return losses.hinge(policy, reference, beta=s.beta)
            case "orpo":
                return losses.orpo(policy, lengths=lengths, beta=s.beta)
            case "simpo" | "simpo_hinge":
                form = "sigmoid" if s.loss == "simpo" else "hinge"
                return losses.simpo(
                    policy, lengths=lengths, beta=s.beta, gamma=s.gamma,
                    label_smoothing=s.label_smoothing, loss_type=form,
                )  # fmt: skip
        raise _unknown(s.loss)

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        policy, reference, lengths = (
            Pair(*_columns(x, 2)) for x in (scores.sequence, scores.reference, scores.lengths)
        )
        per_example, metrics = loss_of(policy, reference, lengths)
        metrics |= {"length/chosen": lengths.chosen, "length/rejected": lengths.rejected}
        mean, means = weighted(per_example, scores.weights), means_of(metrics, scores.weights)
        if sft_weight:
            mean, means["nll"] = with_sft(mean, scores, 0, sft_weight)
        return mean, means

    return Objective(s.loss, Pair._fields, loss, reference=s.loss not in WITHOUT_REFERENCE)


@kept
def wrpo(settings: WrpoSettings) -> Objective:
    """A loss on (source chosen, target chosen, rejected) rows; a source row without scored tokens has alpha 0."""
    s = settings

    def loss_of(
        policy: Quad, reference: Quad, lengths: Quad, alpha: Array, has_source: Array
    ) -> tuple[Array, dict[str, Array]]:
        match s.loss:
            case "wrpo":
                return losses.wrpo(policy, reference, alpha=alpha, beta=s.beta, label_smoothing=s.label_smoothing)
            case "wrpo_ipo":
                return losses.wrpo_ipo(policy, reference, alpha=alpha, tau=s.beta)
            case "wrpo_simpo":
                return losses.wrpo_simpo(policy, lengths=lengths, alpha=alpha, beta=s.beta, gamma=s.gamma)
            case "two_positives":
                return losses.two_positives(
                    policy, reference, beta=s.beta, label_smoothing=s.label_smoothing, has_source=has_source
                )
        raise _unknown(s.loss)

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        policy, reference, lengths = (
            Quad(*_columns(x, 3)) for x in (scores.sequence, scores.reference, scores.lengths)
        )
        has_source = (lengths.source_chosen > 0).astype(policy.rejected.dtype)
        now = losses.alpha_at(progress.step, alpha_end=s.alpha, num_steps=progress.total, dynamic=s.dynamic)
        per_example, metrics = loss_of(policy, reference, lengths, now * has_source, has_source)
        fixed, _ = loss_of(policy, reference, lengths, s.alpha * has_source, has_source)
        for slot in Quad._fields:
            metrics[f"length/{slot}"] = getattr(lengths, slot)
        metrics["loss_at_fixed_alpha"] = jax.lax.stop_gradient(fixed)
        means = means_of(metrics, scores.weights)
        for name in ("source_chosen", "source_accuracies"):
            means[f"rewards/{name}"] = weighted(metrics[f"rewards/{name}"], scores.weights * has_source)
        means["cur_alpha"] = Mean(now * jnp.ones(()), jnp.ones(()))
        mean = weighted(per_example, scores.weights)
        if s.sft_weight:
            taught = Quad._fields.index(f"{s.sft_on}_chosen")
            mean, means["nll"] = with_sft(mean, scores, taught, s.sft_weight)
        return mean, means

    return Objective(s.loss, Quad._fields, loss, reference=s.loss not in WITHOUT_REFERENCE)


@kept
def rewards(settings: RewardSettings) -> Objective:
    """Bradley and Terry's loss on the scores of (chosen, rejected) rows."""

    def loss(scores: Scores, progress: Progress) -> tuple[Mean, Metrics]:
        per_example, metrics = losses.bradley_terry(Pair(*_columns(scores.sequence, 2)), center=settings.center)
        return weighted(per_example, scores.weights), means_of(metrics, scores.weights)

    return Objective("reward", Pair._fields, loss, head="reward", scores=reward)
