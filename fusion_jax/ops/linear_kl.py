"""Kullback-Leibler divergences between linear heads over a whole vocabulary, without ever holding all logits.

The student's and the teachers' vocabulary is cut into chunks, as in `linear_logprobs`. The forward pass keeps running
maxima, totals, and sums of p (z_teacher - z_student); the backward pass computes each chunk's logits once more, unless
all of them are few enough to be kept. With N rows, V entries, a student of width D and teachers of widths that sum to
E, the forward pass takes 2 N V (D + E) FLOPs, the backward pass 2 N V (3 D + E), or 4 N V D: no gradient of a teacher
is computed.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fusion_jax.ops.linear_logprobs import (
    CHUNK_ELEMENTS,
    accumulator,
    chunk_logits,
    chunk_plan,
    grown,
    join_head,
    picked,
    split_head,
    spread,
    through_head,
)

Array = jax.Array
KEPT = 1 << 25  # logits of student and teachers on a device that are kept for the backward pass (128 MiB in float32)
Heads = tuple[tuple[Array, Array], ...]


class Divergences(NamedTuple):
    """logprobs: float[...], of the labels under the student. forward, reverse: float[...,N], KL(teacher || student) and
    KL(student || teacher) for each of N teachers, in nats."""

    logprobs: Array
    forward: Array
    reverse: Array


class _Plan(NamedTuple):
    """How the vocabulary is walked. caps: the teachers' soft caps. mix: see `linear_kl`. kept: whether the backward
    pass finds the logits of the forward pass."""

    vocab: int
    cap: float | None
    caps: tuple[float | None, ...]
    mix: tuple[float, ...] | None
    shards: int
    chunks: int
    kept: bool


class _Against(NamedTuple):
    """Running sums [N] of one teacher's logits t beside the student's s, both less their running maxima.

    peak, total: of t. forward: the sum of exp(t) (t - s); reverse: of exp(s) (s - t).
    """

    peak: Array
    total: Array
    forward: Array
    reverse: Array


def linear_kl(
    hidden: Array,
    kernel: Array,
    labels: Array,
    teachers: Heads,
    *,
    mix: tuple[float, ...] | None = None,
    soft_cap: float | None = None,
    teacher_caps: tuple[float | None, ...] | None = None,
    vocab_shards: int = 1,
    row_shards: int = 1,
    elements: int = CHUNK_ELEMENTS,
    chunk: int | None = None,
    kept: int = KEPT,
) -> Divergences:
    """The student's log softmax(cap(hidden @ kernel.T)) at the labels, and how far teachers are from it in either
    direction.

    KL(p || q) = sum over the vocabulary of p (log p - log q). Gradients are those of the student's states and head;
    nothing flows to the teachers.

    Args:
      hidden: [..., D] the student's states, any float dtype; kernel: [V, D] its head.
      labels: int[...] in [0, V).
      teachers: their states [..., E] that predict the same labels, and heads [V, E]; E may differ between them.
      mix: one weight a teacher: their logits are then averaged to sum_i mix_i z_i, and the result is compared as one
        teacher (N = 1). The same matmuls as without; states and heads joined along E would give the same numbers, but
        a copy of every head.
      soft_cap: the student's c * tanh(logits / c); teacher_caps: the teachers'. A mix is of capped logits.
      vocab_shards, row_shards, elements, chunk: as in `linear_logprobs`; `elements` counts the logits of student and
        teachers together.
      kept: as many logits on a device, of student and teachers together, are kept for the backward pass.

    Returns:
      `Divergences`, float32 (float64 for float64 states).

    Raises:
      ValueError: no teacher, a head of another vocabulary, or not one cap and one weight for each teacher.
    """
    shape, vocab = hidden.shape[:-1], kernel.shape[0]
    caps = (None,) * len(teachers) if teacher_caps is None else tuple(teacher_caps)
    _check(vocab, teachers, caps, mix)
    rows = hidden.reshape(-1, hidden.shape[-1])
    others = tuple((states.reshape(-1, states.shape[-1]), head) for states, head in lax.stop_gradient(tuple(teachers)))
    count = max(math.prod(shape), 1)
    here, together = -(-count // row_shards), 1 + len(teachers)
    chunks = chunk_plan(vocab, here, vocab_shards, chunk, max(elements // together, 1))
    keeps = together * here * -(-vocab // vocab_shards) <= kept
    plan = _Plan(vocab, soft_cap, caps, None if mix is None else tuple(mix), vocab_shards, chunks, keeps)
    found = _divergences(rows, kernel, labels.reshape(-1, 1), others, plan)
    return Divergences(*(value.reshape(*shape, *value.shape[1:]) for value in found))


def _check(vocab: int, teachers: Heads, caps: tuple[float | None, ...], mix: tuple[float, ...] | None) -> None:
    if not teachers:
        raise ValueError("there is no teacher: give at least one")
    for _, head in teachers:
        if head.shape[0] != vocab:
            raise ValueError(f"a teacher's head has {head.shape[0]} entries, the student's {vocab}: they are not alike")
    for name, values in (("teacher_caps", caps), ("mix", caps if mix is None else mix)):
        if len(values) != len(teachers):
            raise ValueError(f"{name} has {len(values)} values for {len(teachers)} teachers")


def _teacher_logits(others: Heads, parts: tuple[Array, ...], ids: Array, plan: _Plan, dtype: jnp.dtype) -> list[Array]:
    """A chunk's logits [N, shards, Vc] of each teacher, or of the mixed one; -inf where the vocabulary is padded."""
    found = [
        chunk_logits(states, part, ids, plan.vocab, cap).astype(dtype)
        for (states, _), part, cap in zip(others, parts, plan.caps, strict=True)
    ]
    if plan.mix is None:
        return found
    mixed = sum(weight * logits for weight, logits in zip(plan.mix, found, strict=True))
    return [jnp.where(ids < plan.vocab, mixed, -jnp.inf)]


def _chunks(kernel: Array, others: Heads, plan: _Plan) -> tuple[Array, tuple[Array, ...], Array]:
    """The student's and the teachers' heads by chunks, and the ids, for `lax.scan`."""
    part, ids = split_head(kernel, plan.shards, plan.chunks)
    return part, tuple(split_head(head, plan.shards, plan.chunks)[0] for _, head in others), ids


def _rows(values: Array) -> Array:
    return values[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _divergences(hidden: Array, kernel: Array, labels: Array, others: Heads, plan: _Plan) -> tuple[Array, Array, Array]:
    return _forward(hidden, kernel, labels, others, plan)[0]


def _forward(
    hidden: Array, kernel: Array, labels: Array, others: Heads, plan: _Plan
) -> tuple[tuple[Array, Array, Array], tuple]:
    dtype = accumulator(hidden.dtype)

    def body(carry: tuple, chunk: tuple[Array, tuple[Array, ...], Array]) -> tuple[tuple, list[Array] | None]:
        peak, total, label_logit, against = carry
        part, parts, ids = chunk
        logits = chunk_logits(hidden, part, ids, plan.vocab, plan.cap)
        label_logit += picked(logits, labels, ids)[:, 0]
        new_peak, decay, masses = grown(peak, logits)
        teachers = _teacher_logits(others, parts, ids, plan, dtype)
        against = [
            _counted(sums, teacher, logits - _rows(new_peak), masses, (total, decay, peak - new_peak), ids < plan.vocab)
            for sums, teacher in zip(against, teachers, strict=True)
        ]
        sums = (new_peak, total * decay + masses.sum((1, 2)), label_logit, against)
        return sums, [logits, *teachers] if plan.kept else None

    zero = jnp.zeros(hidden.shape[0], dtype)
    lowest = jnp.full_like(zero, jnp.finfo(dtype).min)
    number = len(others) if plan.mix is None else 1
    start = (lowest, zero, zero, [_Against(lowest, zero, zero, zero)] * number)
    (peak, total, label_logit, against), logits = lax.scan(body, start, _chunks(kernel, others, plan))
    logsumexp = peak + jnp.log(total)
    forward = [a.forward / a.total - jnp.log(a.total) + jnp.log(total) for a in against]
    reverse = [a.reverse / total - jnp.log(total) + jnp.log(a.total) for a in against]
    found = label_logit - logsumexp, jnp.stack(forward, -1), jnp.stack(reverse, -1)
    normalisers = [a.peak + jnp.log(a.total) for a in against]
    return found, (hidden, kernel, labels, others, logsumexp, normalisers, found[2], logits)


def _counted(
    sums: _Against, teacher: Array, student: Array, masses: Array, before: tuple[Array, Array, Array], exists: Array
) -> _Against:
    """A teacher's sums with one chunk's logits counted in.

    Args:
      student: the student's logits less its new maxima, and masses: their exponentials.
      before: the student's total up to here, what it decays by, and how far the maxima's change moves its logits.
    """
    total, decay, moved = before
    peak, teacher_decay, teacher_masses = grown(sums.peak, teacher)
    apart = jnp.where(exists, teacher - _rows(peak) - student, 0.0)
    change = (sums.peak - peak) - moved  # of teacher - student where both were counted before
    forward = teacher_decay * (sums.forward + sums.total * change) + (teacher_masses * apart).sum((1, 2))
    reverse = decay * (sums.reverse - total * change) - (masses * apart).sum((1, 2))
    return _Against(peak, sums.total * teacher_decay + teacher_masses.sum((1, 2)), forward, reverse)


def _backward(plan: _Plan, saved: tuple, cotangents: tuple[Array, Array, Array]) -> tuple[Array, Array, None, None]:
    """With p of the student and q of a teacher: d forward = p - q and d reverse = p (log p - log q - reverse)."""
    hidden, kernel, labels, others, logsumexp, normalisers, reverse, kept = saved
    g_logprob, g_forward, g_reverse = cotangents
    dtype = logsumexp.dtype
    g_probs = g_forward.sum(1) - g_logprob

    def body(d_hidden: Array, chunk: tuple) -> tuple[Array, Array]:
        (part, parts, ids), known = chunk
        logits, *teachers = known or (
            chunk_logits(hidden, part, ids, plan.vocab, plan.cap),
            *_teacher_logits(others, parts, ids, plan, dtype),
        )
        logprobs = logits - _rows(logsumexp)
        weights, drawn = _rows(g_probs), jnp.zeros((), dtype)
        for n, teacher in enumerate(teachers):
            taught = teacher - _rows(normalisers[n])
            apart = jnp.where(ids < plan.vocab, logprobs - taught, 0.0)
            weights = weights + _rows(g_reverse[:, n]) * (apart - _rows(reverse[:, n]))
            drawn = drawn + _rows(g_forward[:, n]) * jnp.exp(taught)
        d_logits = spread(jnp.exp(logprobs) * weights - drawn, g_logprob[:, None], labels, ids)
        added, d_part = through_head(d_logits, logits, hidden, part, ids, plan.vocab, plan.cap)
        return d_hidden + added, d_part

    d_hidden, d_chunks = lax.scan(body, jnp.zeros(hidden.shape, dtype), (_chunks(kernel, others, plan), kept))
    return d_hidden.astype(hidden.dtype), join_head(d_chunks, plan.vocab), None, None


_divergences.defvjp(_forward, _backward)
