"""The few shapes that generation compiles: widths of prompts, sizes of caches, prompts in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from fusion_jax.data.batches import bucket_list
from fusion_jax.sharding import padded_rows

T = TypeVar("T")

PREFILL_TOKENS = 2048  # of one call: longer prompts are read in smaller groups, which bounds the memory
PACKED_TOKENS = 8192  # of one call that scores continuations, over all rows
LEAST_WIDTH = 64
LEAST_PACKED, LEAST_CANDIDATES = 8, 4
BLOCK = 16  # tokens that are written before they move to the cache; the cache holds whole blocks
FIRST_CAPACITY = 128  # new tokens that the first cache holds; it doubles while rows go on


def capacities_of(limit: int) -> Iterator[int]:
    """Sizes of the caches of new tokens: few shapes, and memory for what is written, not for the limit."""
    size = min(FIRST_CAPACITY, -(-limit // BLOCK) * BLOCK)
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


def written_width(limit: int) -> int:
    """The width of the rows of ids that a continuation of so many tokens is written to."""
    return max(1 << (limit - 1).bit_length(), BLOCK)


def packed_width(tokens: int) -> int:
    """The width of a row that this many tokens are packed into."""
    return max(1 << (tokens - 1).bit_length(), LEAST_PACKED)


def candidates_width(count: int) -> int:
    """The width of a row that this many candidates are listed in."""
    return max(1 << (count - 1).bit_length(), LEAST_CANDIDATES)
