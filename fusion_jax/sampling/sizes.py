"""The few shapes that generation compiles: widths of prompts, sizes of caches, prompts in a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from fusion_jax.data.batches import bucket_list
from fusion_jax.sharding import padded_rows

T = TypeVar("T")

PREFILL_TOKENS = 2048  # of one call: longer prompts are read in smaller groups, which bounds the memory
LEAST_WIDTH = 64
FIRST_CAPACITY = 128  # new tokens that the first cache holds; it doubles while rows go on


def capacities_of(limit: int) -> Iterator[int]:
    """Sizes of the caches of new tokens: few shapes, and memory for what is written, not for the limit."""
    size = min(FIRST_CAPACITY, -(-limit // 16) * 16)
    while size < limit:
        yield size
        size *= 2
    yield size


def read_together(width: int, size: int, ways: int) -> int:
    """How many prompts of a width are read at once: a multiple of `ways`, no more than a batch of `size` needs."""
    return padded_rows(min(max(PREFILL_TOKENS // width, 1), size), ways)


def read_width(length: int) -> int:
    """The length that a prompt is read at."""
    return max(bucket_list(length)[-1], LEAST_WIDTH)


def kept_width(length: int) -> int:
    """The length that its keys and values are kept at: doubling, since the unrolled decoding compiles for each."""
    return max(1 << (length - 1).bit_length(), LEAST_WIDTH)


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last may be shorter."""
    return (items[i : i + size] for i in range(0, len(items), size))


def batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices, short prompts first, of prompts with the same width for decoding; the last of a width may be few."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for _, alike in itertools.groupby(order, lambda i: kept_width(len(prompts[i]))):
        yield from chunks(list(alike), size)
