"""Examples as token rows, and batches of them padded to a few shapes. Masks come from lengths, never from pad ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax on the devices


class TokenBatch(NamedTuple):
    """B examples of G rows. S: scored positions a row, of which `score_counts` exist.

    tokens, segment_ids (0: padding), positions: int32[B,G,T]; score_positions (whose hidden state predicts the
    label), score_labels: int32[B,G,S]; score_counts: int32[B,G]; example_ids: int32[B]; reference: float32[B,G];
    weights: float32[B], 0 for an example that only fills the batch.
    """

    tokens: Array
    segment_ids: Array
    positions: Array
    score_positions: Array
    score_labels: Array
    score_counts: Array
    example_ids: Array
    reference: Array
    weights: Array


@dataclass(frozen=True)
class Example:
    """Rows of token ids; from `starts[g]` on the tokens of row g are scored (never the token at position 0).

    segments: for packed rows, the document number of each token; positions restart with it when `reset`.
    A row that scores nothing has start == len(row): an absent response.
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


def bucket_list(longest: int) -> list[int]:
    """Lengths to pad to: multiples of 16 to 128, then four a doubling, up to what holds `longest`."""
    sizes, step = [16], 16
    while sizes[-1] < longest:
        if sizes[-1] >= 8 * step and sizes[-1] >= 128:
            step *= 2
        sizes.append(sizes[-1] + step)
    return sizes


def _bucket(sizes: Sequence[int], length: int) -> int:
    return next(s for s in sizes if s >= length)


def collate(examples: Sequence[Example], *, tokens_buckets: Sequence[int], score_buckets: Sequence[int]) -> TokenBatch:
    """Right-padded host arrays of examples with the same number of rows (hidden state t scores token t+1)."""
    groups = len(examples[0].rows)
    longest = max(len(row) for e in examples for row in e.rows)
    most = max(max(n for e in examples for n in e.scored), 1)
    shape = (len(examples), groups, _bucket(tokens_buckets, longest))
    scored_shape = (len(examples), groups, _bucket(score_buckets, most))
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    score_positions, labels = np.zeros(scored_shape, np.int32), np.zeros(scored_shape, np.int32)
    counts = np.zeros(shape[:2], np.int32)
    positions[:] = np.arange(shape[2])
    for b, example in enumerate(examples):
        for g, (row, start) in enumerate(zip(example.rows, example.starts)):
            ids, first, n = np.asarray(row, np.int32), max(start, 1), example.scored[g]
            tokens[b, g, : len(row)] = ids
            segments[b, g, : len(row)] = example.segments or 1
            if example.segments:
                positions[b, g, : len(row)] = _restarting(np.asarray(example.segments))
            score_positions[b, g, :n] = np.arange(first - 1, first - 1 + n)
            labels[b, g, :n] = ids[first : first + n]
            counts[b, g] = n
    return TokenBatch(
        tokens=tokens, segment_ids=segments, positions=positions,
        score_positions=score_positions, score_labels=labels, score_counts=counts,
        example_ids=np.asarray([e.index for e in examples], np.int32),
        reference=np.asarray([e.reference or (0.0,) * groups for e in examples], np.float32),
        weights=np.asarray([e.weight for e in examples], np.float32),
    )  # fmt: skip


def _restarting(segments: np.ndarray) -> np.ndarray:
    """Positions that start anew with every segment."""
    index = np.arange(len(segments))
    first = np.concatenate([[True], segments[1:] != segments[:-1]])
    return index - np.maximum.accumulate(np.where(first, index, 0))
