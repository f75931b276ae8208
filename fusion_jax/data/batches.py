"""Examples as token rows, and batches of them padded to a few shapes. Masks come from lengths, never from pad ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax on the devices


class TokenBatch(NamedTuple):
    """B examples of a prompt and G rows that continue it; the prompt, which they share, is there once.

    prompts: int32[B,P], of which `prompt_lengths` int32[B] exist (P is 0 where nothing is shared).
    tokens, labels: int32[B,G,T], the rest of each row and the token that follows each; positions: int32[B,G,T].
    segment_ids: int32[B,G,T], the document of each token of packed rows, 0 for padding; None: one document a row.
    starts, counts: int32[B,G]: labels[starts : starts + counts] are scored.
    example_ids: int32[B]; reference: float32[B,G]; weights: float32[B], 0 for an example that only fills the batch.
    """

    prompts: Array
    prompt_lengths: Array
    tokens: Array
    labels: Array
    positions: Array
    segment_ids: Array | None
    starts: Array
    counts: Array
    example_ids: Array
    reference: Array
    weights: Array


class Buckets(NamedTuple):
    """The few lengths that prompts and rows are padded to."""

    prompts: Sequence[int]
    rows: Sequence[int]


@dataclass(frozen=True)
class Example:
    """Rows of token ids; from `starts[g]` on the tokens of row g are scored (never the token at position 0).

    segments: for packed rows, the document number of each token; positions restart with it when `reset`.
    A row that scores nothing has start == len(row): an absent response. A row has at least one token.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    index: int = 0
    segments: tuple[int, ...] = ()
    reference: tuple[float, ...] = ()
    weight: float = 1.0

    @property
    def scored(self) -> tuple[int, ...]:
        """How many tokens of each row are scored."""
        return tuple(max(len(r) - max(s, 1), 0) for r, s in zip(self.rows, self.starts))

    @property
    def shared(self) -> int:
        """Length of the prompt that all rows begin with, short of the token that predicts the first scored one."""
        if self.segments:
            return 0
        most = min(max(s, 1) for s in self.starts) - 1
        different = (i for i in range(most) if any(row[i] != self.rows[0][i] for row in self.rows[1:]))
        return next(different, most)

    @property
    def longest(self) -> int:
        """Tokens that follow the shared prompt in the longest row, its last token, which predicts none, left out."""
        return max(len(row) for row in self.rows) - 1 - self.shared


def bucket_list(longest: int) -> list[int]:
    """Lengths to pad to: multiples of 16 to 128, then four a doubling, up to what holds `longest`."""
    sizes, step = [16], 16
    while sizes[-1] < longest:
        if sizes[-1] >= 8 * step and sizes[-1] >= 128:
            step *= 2
        sizes.append(sizes[-1] + step)
    return sizes


def buckets_of(examples: Sequence[Example]) -> Buckets:
    """Buckets that hold all of these examples."""
    prompts = max((e.shared for e in examples), default=0)
    return Buckets([0, *bucket_list(prompts)], bucket_list(max((e.longest for e in examples), default=1)))


def _bucket(sizes: Sequence[int], length: int) -> int:
    return next(s for s in sizes if s >= length)


def collate(examples: Sequence[Example], buckets: Buckets) -> TokenBatch:
    """Right-padded host arrays of examples with the same number of rows."""
    count, groups = len(examples), len(examples[0].rows)
    width = _bucket(buckets.rows, max(e.longest for e in examples))
    prompts = np.zeros((count, _bucket(buckets.prompts, max(e.shared for e in examples))), np.int32)
    tokens, labels, positions, segments = (np.zeros((count, groups, width), np.int32) for _ in range(4))
    starts, counts = (np.zeros((count, groups), np.int32) for _ in range(2))
    lengths = np.asarray([e.shared for e in examples], np.int32)
    positions[:] = lengths[:, None, None] + np.arange(width)
    for b, example in enumerate(examples):
        shared = lengths[b]
        prompts[b, :shared] = example.rows[0][:shared]
        for g, (row, start) in enumerate(zip(example.rows, example.starts)):
            ids = np.asarray(row[shared:], np.int32)
            size = len(ids) - 1
            tokens[b, g, :size], labels[b, g, :size] = ids[:-1], ids[1:]
            starts[b, g], counts[b, g] = max(start, 1) - 1 - shared, example.scored[g]
            segments[b, g, :size] = (example.segments or (1,) * len(row))[:size]
            if example.segments:
                positions[b, g, :size] = _restarting(np.asarray(example.segments))[:size]
    return TokenBatch(
        prompts=prompts, prompt_lengths=lengths, tokens=tokens, labels=labels, positions=positions,
        segment_ids=segments if any(e.segments for e in examples) else None, starts=starts, counts=counts,
        example_ids=np.asarray([e.index for e in examples], np.int32),
        reference=np.asarray([e.reference or (0.0,) * groups for e in examples], np.float32),
        weights=np.asarray([e.weight for e in examples], np.float32),
    )  # fmt: skip


def _restarting(segments: np.ndarray) -> np.ndarray:
    """Positions that start anew with every segment."""
    index = np.arange(len(segments))
    first = np.concatenate([[True], segments[1:] != segments[:-1]])
    return index - np.maximum.accumulate(np.where(first, index, 0))
