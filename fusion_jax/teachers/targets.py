"""What several teachers say of a text, fused into the targets that the target model learns.

FuseLLM and FuseChat, sections 8 and 9 of their specification: pure functions from rows to examples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.align.distributions import RowRule
from fusion_jax.data.batches import Example, Targets, bucket_list
from fusion_jax.errors import InputError
from fusion_jax.losses.fusion import Target, filled, fused_targets, rewards, soft_weights, teacher_target
from fusion_jax.paths import as_path
from fusion_jax.store.parts import Arrays, Job, Part, Stored, digest, make_parts
from fusion_jax.teachers.rows import FusionRow, FusionRows
from fusion_jax.teachers.settings import FusionSettings

Array = jax.Array
Mask = Literal["all", "labels"]
ROWS_AT_ONCE = 64
PART_SIZE = 4 * ROWS_AT_ONCE


class _Views(NamedTuple):
    """One teacher on several texts: `Opinion` with a leading axis of texts; metric float32[B]."""

    ids: Array | np.ndarray
    logprobs: Array | np.ndarray
    counts: Array | np.ndarray
    rule: Array | np.ndarray
    metric: Array | np.ndarray


def fused_examples(
    folder: str | os.PathLike[str],
    rows: FusionRows,
    settings: FusionSettings,
    *,
    mask: Mask,
    reset: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Stored[Example]:
    """Training examples with one fused target a token, kept in a folder and read from there when asked for.

    Args: as in `fuse`.

    Raises:
      InputError: settings that do not go together, no teacher, a folder of something else.
    """
    check_teachers(settings, rows.metrics.shape[1])
    job = Job(as_path(folder), identity_of(rows, settings, mask, reset), len(rows), PART_SIZE)

    def items(wanted: range) -> list[Example]:
        fused = fuse(rows[wanted.start : wanted.stop], settings, mask=mask, reset=reset)
        return [replace(e, index=i) for e, i in zip(fused, wanted, strict=True)]

    make_parts(job, _Kept(), items, 0, progress)
    return Stored(job, _read_example)


def identity_of(rows: FusionRows, settings: FusionSettings, mask: Mask, reset: bool) -> dict[str, object]:
    """What the examples of these rows are known by."""
    of_targets = {name: value for name, value in asdict(settings).items() if name != "jsd_beta"}
    return {
        "format": 1, **of_targets, "mask": mask, "reset": reset, "inputs": digest([rows.sizes, rows.metrics]),
        "rows": rows.made_of,
    }  # fmt: skip


class _Kept:
    """Examples as they are."""

    def one(self, item: Example) -> Example:
        return item

    def pack(self, results: Sequence[Example]) -> Arrays:
        targets = [e.targets for e in results if e.targets is not None]
        shapes = np.asarray([t.ids.shape for t in targets], np.int64)
        groups = [e.groups for e in results if e.groups is not None]
        return {
            "lengths": np.asarray([len(e.rows[0]) for e in results], np.int32), "shapes": shapes,
            "index": np.asarray([e.index for e in results], np.int64),
            "starts": np.asarray([e.starts[0] for e in results], np.int32),
            "share": np.asarray([t.share for t in targets], np.float32),
            "tokens": np.concatenate([np.asarray(e.rows[0], np.int32) for e in results]),
            "segments": np.concatenate([np.asarray(e.segments, np.int32) for e in results]),
            "segmented": np.asarray([len(e.segments) for e in results], np.int32),
            "chosen": np.concatenate(groups), "ids": np.concatenate([t.ids.ravel() for t in targets]),
            "probs": np.concatenate([t.probs.ravel() for t in targets]),
        }  # fmt: skip


def _read_example(part: Part, number: int) -> Example:
    shapes = part.whole("shapes")
    tokens, chosen = (part.some(name, part.lengths, number) for name in ("tokens", "chosen"))
    segments = part.some("segments", part.whole("segmented"), number)
    ids, probs = (part.some(name, shapes.prod(1), number).reshape(shapes[number]) for name in ("ids", "probs"))
    return Example(
        (tuple(tokens.tolist()),), (int(part.whole("starts")[number]),), int(part.whole("index")[number]),
        tuple(segments.tolist()), groups=chosen.astype(np.uint8),
        targets=Targets(ids, probs, part.whole("share")[number]),
    )  # fmt: skip


def fuse(rows: Sequence[FusionRow], settings: FusionSettings, *, mask: Mask, reset: bool = False) -> list[Example]:
    """Training examples with one fused target a token.

    Args:
      mask: which tokens are compared with the teachers: "all", the last of the row included (FuseLLM), or those whose
        next token is scored (FuseChat).
      reset: attention and positions start anew with each document of a packed row.

    Raises:
      InputError: settings that do not go together, no teacher.
    """
    check_teachers(settings, len(rows[0].opinions))
    buckets = bucket_list(max(len(r.ids) for r in rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    out: dict[int, Example] = {}
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for start in range(0, len(order), ROWS_AT_ONCE):
            chosen = order[start : start + ROWS_AT_ONCE]
            width = next(b for b in buckets if b >= len(rows[chosen[-1]].ids))
            target, share = _fused(*_stacked([rows[i] for i in chosen], width, reset), s=settings)
            ids, probs, shares = (np.asarray(x) for x in (*target, share))
            for n, i in enumerate(chosen):
                out[i] = example_of(rows[i], i, ids[n], probs[n], float(shares[n]), mask, reset)
    return [out[i] for i in range(len(rows))]


def check_teachers(s: FusionSettings, opinions: int) -> int:
    """How many teachers there are, of whom opinions are at hand, the pivot's among them.

    Raises:
      InputError: none; settings that do not go together.
    """
    if opinions - (not s.pivot) < 1:
        raise InputError("there is no teacher", field="pivot", cure="Give a source, or take the pivot as a teacher")
    if s.keeps_mass and (s.temperature != 1.0 or s.rounding != "none"):
        raise InputError("keeps probabilities as they are", field="tail", cure="Set temperature 1 and no rounding")
    if s.choice == "token" and s.function != "mince":
        raise InputError("goes with mince only", field="choice", cure='Set it to "sample"')
    if s.schedule == "soft" and s.choice == "token":
        raise InputError("takes its weight from a sample's scores", field="schedule", cure='Set choice to "sample"')
    return opinions - (not s.pivot)


def example_of(
    row: FusionRow, index: int, ids: np.ndarray, probs: np.ndarray, share: float, mask: Mask, reset: bool
) -> Example:
    """A row with its fused target, ids and probs [m or more, K]; arguments as of `fuse`."""
    m = len(row.ids)
    tokens, chosen, last = row.ids.tolist(), row.scored, m - 1
    segments = tuple(row.segments.tolist()) if reset else ()
    if mask == "all":  # a token behind the row, never scored, so that the row's last token is compared too
        tokens, chosen, last = [*tokens, 0], np.append(chosen, False), m
        segments = (*segments, segments[-1]) if reset else ()
    kept = np.ones(last, bool) if mask == "all" else chosen[1:]
    targets = Targets(ids[:last], np.where(kept[:, None], probs[:last], 0.0).astype(np.float32), np.float32(share))
    start = int(np.argmax(chosen)) if chosen.any() else len(tokens)
    return Example((tuple(tokens),), (start,), index, segments, groups=chosen.astype(np.uint8), targets=targets)


def _stacked(rows: Sequence[FusionRow], width: int, reset: bool) -> tuple[list[_Views], np.ndarray]:
    """Each teacher on `ROWS_AT_ONCE` padded texts, and the tokens that follow, int32[B,T]: -1 where none does."""
    teachers = []
    for number in range(len(rows[0].opinions)):
        views = [r.opinions[number] for r in rows]
        k = max(v.ids.shape[1] for v in views)
        ids, logprobs = np.zeros((ROWS_AT_ONCE, width, k), np.int32), np.zeros((ROWS_AT_ONCE, width, k), np.float32)
        counts, rule = np.zeros((ROWS_AT_ONCE, width), np.int32), np.full((ROWS_AT_ONCE, width), int(RowRule.EMPTY))
        metric = np.zeros(ROWS_AT_ONCE, np.float32)
        for b, view in enumerate(views):
            m, entries = view.ids.shape
            ids[b, :m, :entries], logprobs[b, :m, :entries] = view.ids, view.logprobs
            counts[b, :m], rule[b, :m], metric[b] = view.counts, view.rule, view.metric
        teachers.append(_Views(ids, logprobs, counts, rule, metric))
    labels = np.full((ROWS_AT_ONCE, width), -1, np.int32)
    for b, row in enumerate(rows):
        same = row.segments[1:] == row.segments[:-1]
        labels[b, : len(row.ids) - 1] = np.where(same, row.ids[1:], -1) if reset else row.ids[1:]
    return teachers, labels


@functools.partial(jax.jit, static_argnames="s")
def _fused(teachers: list[_Views], labels: Array, s: FusionSettings) -> tuple[Target, Array]:
    """One target a token, and the fusion weight of each sample under the soft schedule."""
    own, *sources = (_target(t, s) for t in teachers)
    views = teachers[1:]  # a row that fell back is dropped where it has no entry
    targets = [own, *(filled(t, own, v.rule != RowRule.FALLBACK) for t, v in zip(sources, views, strict=True))]
    if not s.pivot:
        targets, teachers = targets[1:], teachers[1:]
    scores = rewards(jnp.stack([t.metric for t in teachers]), rounding=s.rounding)
    share = soft_weights(scores, s.function, rounding=s.rounding)[1]
    if s.choice == "token":
        beliefs = jnp.stack([_belief(*pair, labels) for pair in zip(targets, teachers, strict=True)])
        scores = jnp.where(labels < 0, scores[..., None], beliefs)  # where no token follows, the text decides
    official = s.rounding != "none" and not s.pivot and len(targets) == 2
    ties: Literal["first", "last"] = "last" if official else "first"
    return fused_targets(targets, scores, function=s.function, rounding=s.rounding, ties=ties), share


def _target(views: _Views, s: FusionSettings) -> Target:
    ids, logprobs, counts = (jnp.asarray(x) for x in views[:3])
    if not s.keeps_mass:
        return teacher_target(ids, logprobs, counts, temperature=s.temperature, rounding=s.rounding)
    exists = jnp.arange(ids.shape[-1]) < counts[..., None]
    certain = (views.rule == RowRule.FALLBACK)[..., None]
    return Target(ids, jnp.where(exists, jnp.where(certain, 1.0, jnp.exp(logprobs)), 0.0))


def _belief(target: Target, views: _Views, labels: Array) -> Array:
    """float[B,T], what a teacher gives the token that follows; -1 where it has no row of its own."""
    found = jnp.where(target.ids == labels[..., None], target.probs, 0.0).sum(-1)
    return jnp.where(views.rule < int(RowRule.FALLBACK), found, -1.0)
