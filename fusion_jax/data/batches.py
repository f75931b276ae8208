"""Examples as token rows, and batches of them padded to a few shapes. Masks come from lengths, never from pad ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.display import brief

Array = Any  # numpy on the host, jax on the devices


class Targets(NamedTuple):
    """Teachers' fused next-token distributions: K entries a token, probability 0 where there is none.

    ids: int32[...,T,K], the probable ones of a token different; probs: float32[...,T,K]; a token whose K are all 0 is
    not compared. share: float32[...], the fusion loss's weight under the soft schedule.
    """

    ids: Array
    probs: Array
    share: Array


class TokenBatch(NamedTuple):
    """B examples of a prompt and G rows that continue it; the prompt, which they share, is there once.

    prompts: int32[B,P], of which `prompt_lengths` int32[B] exist (P is 0 where nothing is shared).
    tokens, labels: int32[B,G,T], the rest of each row and the token that follows each; positions: int32[B,G,T].
    segment_ids: int32[B,G,T], the document of each token of packed rows, 0 for padding; None: one document a row.
    groups: uint8[B,G,T], 0 for a label that is not scored, else the number of its group of tokens (`Example.groups`).
    example_ids: int32[B]; reference: float32[B,G]; weights: float32[B], 0 for an example that only fills the batch.
    branch: int32[B], see `Example.branch`.
    targets: what each of `tokens` should predict, ids and probs [B,1,T,K]; None: there are no teachers.
    values: float32[B,G,N], see `Example.values`; None: the examples have none.
    beside: arrays [B,...] by name, see `Example.beside`; None: the examples have none.
    noise: int32[B], what the dropout of each example is drawn from; None: there is none, as where nothing is trained.
    slots: int32[R,M] where rows hold several examples (`data.packing`): the place among B of segment m + 1 of a row, -1
      for none. The arrays of tokens then have R rows instead of B; None: R is B, an example has rows of its own.
    """

    prompts: Array
    prompt_lengths: Array
    tokens: Array
    labels: Array
    positions: Array
    segment_ids: Array | None
    groups: Array
    example_ids: Array
    reference: Array
    weights: Array
    branch: Array
    targets: Targets | None = None
    values: Array | None = None
    beside: dict[str, Array] | None = None
    noise: Array | None = None
    slots: Array | None = None

    @property
    def scored(self) -> Array:
        """bool[B,G,T], which labels count."""
        return self.groups > 0


class Buckets(NamedTuple):
    """The few lengths that prompts and rows are padded to."""

    prompts: Sequence[int]
    rows: Sequence[int]


@dataclass(frozen=True)
class Example:
    """Rows of token ids; from `starts[g]` on the tokens of row g are scored (never the token at position 0).

    segments: for packed rows, the document number of each token; positions restart with it when `reset`.
    A row that scores nothing has start == len(row): an absent response. A row has at least one token.
    groups: uint8[len(row)] of an example with one row: 0 for a token that is not scored, else a number that tells the
      objective which of its sums the token belongs to; None: all tokens from the start on are scored, in group 1.
    branch: tells the objective what kind of row this is, where a method mixes several in a batch.
    values: numbers of each row that the objective knows the meaning of, [G][N]: weights, what other models make of it.
    targets: of an example with one row, what its tokens but the last should predict; ids and probs [len(row) - 1, K].
    beside: further arrays that a method's forward pass reads, by name: texts of other models, candidates. In a batch
      they have the largest shape that the data has, filled up with -1 (integers), 0 (numbers) or False.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    index: int = 0
    segments: tuple[int, ...] = ()
    reference: tuple[float, ...] = ()
    weight: float = 1.0
    branch: int = 0
    values: tuple[tuple[float, ...], ...] = ()
    groups: np.ndarray | None = field(default=None, compare=False)
    targets: Targets | None = field(default=None, compare=False)
    beside: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return brief(self)

    @property
    def scored(self) -> tuple[int, ...]:
        """How many tokens of each row are scored."""
        if self.groups is not None:
            return (int(np.count_nonzero(self.groups[max(self.starts[0], 1) :])),)
        return tuple(max(len(r) - max(s, 1), 0) for r, s in zip(self.rows, self.starts))

    @property
    def shared(self) -> int:
        """Length of the prompt that all rows begin with, short of the token that predicts the first scored one."""
        if self.segments:
            return 0
        most = min(max(s, 1) for s in self.starts) - 1
        if self.targets is not None:
            most = min([most, *np.flatnonzero((self.targets.probs > 0).any(-1))[:1].tolist()])
        different = (i for i in range(most) if any(row[i] != self.rows[0][i] for row in self.rows[1:]))
        return next(different, most)

    @property
    def longest(self) -> int:
        """Tokens that follow the shared prompt in the longest row, its last token, which predicts none, left out."""
        return max(len(row) for row in self.rows) - 1 - self.shared

    @property
    def extent(self) -> tuple[int, int, int, bool]:
        """What it asks of its batch: `shared`, `longest`, entries of a target, whether there are segments."""
        entries = 0 if self.targets is None else self.targets.ids.shape[-1]
        return self.shared, self.longest, entries, bool(self.segments)


def bucket_list(longest: int) -> list[int]:
    """Lengths to pad to: multiples of 16 to 128, then four a doubling, up to what holds `longest`."""
    sizes, step = [16], 16
    while sizes[-1] < longest:
        if sizes[-1] >= 8 * step and sizes[-1] >= 128:
            step *= 2
        sizes.append(sizes[-1] + step)
    return sizes


def extents(examples: Sequence[Example]) -> np.ndarray:
    """int64[n,4], the `extent` of each; that of a batch is the largest of each column."""
    return np.asarray([e.extent for e in examples], np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class Data:
    """The examples of a stage. name: index of an example -> what a user knows its record by.

    batches: the examples of each optimizer step of the run, int[batch], where a method decides them; None: all examples
      in every epoch, shuffled.
    taught: of live teachers, numbers of examples -> these with their targets, which are made for a batch at once; those
    of `examples` then have stand-ins as large.
    """

    examples: Sequence[Example]
    name: Callable[[int], str] = str
    batches: Sequence[np.ndarray] | None = None
    taught: Callable[[Sequence[int]], list[Example]] | None = None

    @cached_property
    def extents(self) -> np.ndarray:
        """int64[n,4], see `extents`."""
        return extents(self.examples)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The largest shape of each array that examples have beside their rows; all have those of the first."""
        found = dict[str, tuple[int, ...]]()
        if not len(self.examples) or not self.examples[0].beside:
            return found
        for example in self.examples:
            for name, array in example.beside.items():
                known = found.get(name, array.shape)
                found[name] = tuple(map(max, known, array.shape))
        return found

    def __len__(self) -> int:
        return len(self.examples)

    def some(self, wanted: Sequence[int]) -> list[Example]:
        """The examples of these numbers as a model is trained on them."""
        return [self.examples[i] for i in wanted] if self.taught is None else self.taught(wanted)

    def referenced(self, values: np.ndarray) -> Data:
        """The examples with reference log-probs float[n,G]; their extents, which these do not change, are kept."""
        pairs = zip(self.examples, values, strict=True)
        new = replace(self, examples=[replace(e, reference=tuple(map(float, v))) for e, v in pairs])
        vars(new)["extents"] = self.extents
        return new

    def valued(self, values: np.ndarray) -> Data:
        """The examples with `Example.values` float[n,G,N]."""
        rows = np.asarray(values, np.float64).tolist()
        examples = [replace(e, values=tuple(map(tuple, v))) for e, v in zip(self.examples, rows, strict=True)]
        new = replace(self, examples=examples)
        vars(new)["extents"] = self.extents
        return new


def buckets_for(needs: np.ndarray) -> Buckets:
    """Buckets that hold all examples of these extents."""
    prompts, rows = needs[:, :2].max(0, initial=0).tolist()
    return Buckets([0, *bucket_list(prompts)], bucket_list(rows))


def buckets_of(examples: Sequence[Example]) -> Buckets:
    """Buckets that hold all of these examples."""
    return buckets_for(extents(examples))


def _bucket(sizes: Sequence[int], length: int) -> int:
    return next(s for s in sizes if s >= length)


def collate(
    examples: Sequence[Example], buckets: Buckets, extent: np.ndarray | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> TokenBatch:  # fmt: skip
    """Right-padded host arrays of examples with the same number of rows.

    Args:
      shapes: of what they have beside their rows, see `Data.shapes`.
      extent: int[4] of the whole batch, where these are the part that one host feeds; None: they are all of it.
    """
    count, groups = len(examples), len(examples[0].rows)
    longest_prompt, longest, entries, segmented = (extents(examples).max(0) if extent is None else extent).tolist()
    width = _bucket(buckets.rows, longest)
    prompts = np.zeros((count, _bucket(buckets.prompts, longest_prompt)), np.int32)
    tokens, labels, positions, segments = (np.zeros((count, groups, width), np.int32) for _ in range(4))
    kinds = np.zeros((count, groups, width), np.uint8)
    lengths = np.asarray([e.shared for e in examples], np.int32)
    positions[:] = lengths[:, None, None] + np.arange(width)
    for b, example in enumerate(examples):
        shared = lengths[b]
        prompts[b, :shared] = example.rows[0][:shared]
        for g, (row, start) in enumerate(zip(example.rows, example.starts)):
            ids = np.asarray(row[shared:], np.int32)
            size = len(ids) - 1
            tokens[b, g, :size], labels[b, g, :size] = ids[:-1], ids[1:]
            first = max(start, 1) - 1 - shared
            kinds[b, g, first:size] = 1 if example.groups is None else example.groups[first + 1 + shared :]
            segments[b, g, :size] = (example.segments or (1,) * len(row))[:size]
            if example.segments:
                positions[b, g, :size] = _restarting(np.asarray(example.segments))[:size]
            positions[b, g, size:] = positions[b, g, size - 1] if size else max(shared - 1, 0)  # nowhere farther
    return TokenBatch(
        prompts=prompts, prompt_lengths=lengths, tokens=tokens, labels=labels, positions=positions,
        segment_ids=segments if segmented else None, groups=kinds,
        example_ids=np.asarray([e.index for e in examples], np.int32),
        reference=np.asarray([e.reference or (0.0,) * groups for e in examples], np.float32),
        weights=np.asarray([e.weight for e in examples], np.float32),
        branch=np.asarray([e.branch for e in examples], np.int32),
        targets=_padded_targets(examples, lengths, width, entries), values=stacked_values(examples),
        beside={name: _filled([e.beside[name] for e in examples], shape) for name, shape in shapes.items()}
        if shapes else None,
    )  # fmt: skip


def _filled(arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Arrays in one of [B, *shape]: int32, float32 or bool."""
    kind = arrays[0].dtype.kind
    dtype, nothing = {"i": (np.int32, -1), "u": (np.int32, -1), "b": (np.bool_, False)}.get(kind, (np.float32, 0))
    out: np.ndarray = np.full((len(arrays), *shape), nothing, dtype)
    for row, array in zip(out, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return out


def stacked_values(examples: Sequence[Example]) -> np.ndarray | None:
    """float32[B,G,N], the values of all examples, or None where they have none."""
    return np.asarray([e.values for e in examples], np.float32) if examples[0].values else None


def _padded_targets(examples: Sequence[Example], shared: np.ndarray, width: int, most: int) -> Targets | None:
    """The targets of all examples, or None where none has any."""
    targets = [e.targets for e in examples if e.targets is not None]
    if not targets:
        return None
    if len(targets) != len(examples):
        raise ValueError("some examples of the batch have targets, others have none")
    shape = (len(targets), 1, width, most)
    ids, probs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for b, (target, start) in enumerate(zip(targets, shared, strict=True)):
        tokens, entries = target.ids[start:].shape
        ids[b, 0, :tokens, :entries], probs[b, 0, :tokens, :entries] = target.ids[start:], target.probs[start:]
    return Targets(ids, probs, np.asarray([t.share for t in targets], np.float32))


def _restarting(segments: np.ndarray) -> np.ndarray:
    """Positions that start anew with every segment."""
    index = np.arange(len(segments))
    first = np.concatenate([[True], segments[1:] != segments[:-1]])
    return index - np.maximum.accumulate(np.where(first, index, 0))
