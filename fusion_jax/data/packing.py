"""Several examples end to end in one row, for batches of uneven lengths: what is padding otherwise, computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.data.batches import Example, TokenBatch, stacked_values
from fusion_jax.errors import InputError


class Packed(NamedTuple):
    """Examples, by their place in a micro-batch, in rows of the same number of tokens. rows: those of each row, in
    order; width: tokens of a row."""

    rows: list[list[int]]
    width: int

    @property
    def segments(self) -> int:
        """Examples of the fullest row."""
        return max(map(len, self.rows))


def pack(examples: Sequence[Example], width: int) -> Packed:
    """First fit, long examples first: an example goes into the first row where each of its G rows finds room.

    Raises:
      InputError: see `check_packable`.
    """
    check_packable(examples, width)
    sizes = np.asarray([[len(row) - 1 for row in e.rows] for e in examples])
    rows: list[list[int]] = []
    room: list[np.ndarray] = []
    for i in np.argsort(-sizes.max(1), kind="stable").tolist():
        place = next((r for r, left in enumerate(room) if (sizes[i] <= left).all()), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(np.full(sizes.shape[1], width))
        rows[place].append(i)
        room[place] = room[place] - sizes[i]
    return Packed(rows, width)


def check_packable(examples: Sequence[Example], width: int) -> None:
    """Refuse what rows of `width` tokens cannot hold.

    Raises:
      InputError: an example is longer than a row, or is packed already, or has teachers' targets.
    """
    if any(e.segments or e.targets is not None for e in examples):
        raise InputError(
            "packs preference examples; these are packed already or have teachers' targets", field="pack_tokens",
            cure="Set it to 0",
        )  # fmt: skip
    longest = max(len(row) - 1 for e in examples for row in e.rows)
    if longest > width:
        raise InputError(
            f"an example has {longest} tokens, a packed row {width}", field="pack_tokens",
            cure=f"Give at least {longest}, or 0 for a row a response",
        )  # fmt: skip


def collate_packed(examples: Sequence[Example], packed: Packed, *, rows: int, segments: int, first: int) -> TokenBatch:
    """Host arrays of packed examples: of the rows `rows`, of the examples one each, as `TokenBatch` says.

    Args:
      rows, segments: to pad to, the same on all shards of a step.
      first: place in the micro-batch of the first of these examples.
    """
    shape = (rows, len(examples[0].rows), packed.width)
    tokens, labels, positions, numbers = (np.zeros(shape, np.int32) for _ in range(4))
    kinds, slots = np.zeros(shape, np.uint8), np.full((rows, segments), -1, np.int32)
    for r, members in enumerate(packed.rows):
        filled = np.zeros(shape[1], np.int64)
        for number, i in enumerate(members):
            slots[r, number] = first + i
            for g, (row, start) in enumerate(zip(examples[i].rows, examples[i].starts)):
                size = len(row) - 1
                here = np.s_[r, g, filled[g] : filled[g] + size]
                tokens[here], labels[here], positions[here] = row[:-1], row[1:], np.arange(size)
                chosen = examples[i].groups
                groups = 1 if chosen is None else chosen[1:]
                numbers[here], kinds[here] = number + 1, np.where(np.arange(size) >= max(start, 1) - 1, groups, 0)
                filled[g] += size
    return TokenBatch(
        prompts=np.zeros((rows, 0), np.int32), prompt_lengths=np.zeros(rows, np.int32), tokens=tokens, labels=labels,
        positions=positions, segment_ids=numbers, groups=kinds,
        example_ids=np.asarray([e.index for e in examples], np.int32),
        reference=np.asarray([e.reference or (0.0,) * shape[1] for e in examples], np.float32),
        weights=np.asarray([e.weight for e in examples], np.float32),
        branch=np.asarray([e.branch for e in examples], np.int32), values=stacked_values(examples), slots=slots,
    )  # fmt: skip
