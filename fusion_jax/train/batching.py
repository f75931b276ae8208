"""The batch of an optimizer step, or the part of it that this host feeds: micro-batches, padded or packed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from fusion_jax.data.batches import Buckets, Data, Example, TokenBatch, collate
from fusion_jax.data.packing import collate_packed, pack
from fusion_jax.sharding import data_ways, local_rows


def step_batch(
    data: Data, micro: np.ndarray, buckets: Buckets, mesh: Mesh | None, pack_tokens: int = 0,
    drawn_from: tuple[int, int] | None = None,
) -> TokenBatch:  # fmt: skip
    """Micro-batches [A,B,...] of padded rows, or of rows of `pack_tokens` that hold several examples.

    Args:
      micro: int[A,B], indices of the examples; every host pads to what the whole step needs.
      drawn_from: (seed, step), from which and from its own number each example's dropout is drawn; None: there is none.
    """
    if pack_tokens:
        return _packed_batch(data.examples, micro, pack_tokens, mesh)
    mine, every = local_rows(micro.shape[1], mesh), micro.reshape(-1)
    if data.taught is None:
        examples = data.some(micro[:, mine].reshape(-1).tolist())
    else:  # a teacher's forward pass is one program over all hosts
        of_all = data.some(every.tolist())
        examples = [of_all[i] for i in np.arange(len(every)).reshape(micro.shape)[:, mine].reshape(-1).tolist()]
    flat = collate(examples, buckets, data.extents[every].max(0), data.shapes)
    if drawn_from is not None:
        numbers = micro[:, mine].reshape(-1).tolist()
        noise = [zlib.crc32(np.asarray([*drawn_from, number], np.int64).tobytes()) for number in numbers]
        flat = flat._replace(noise=np.asarray(noise, np.uint32).view(np.int32))
    return jax.tree.map(lambda x: x.reshape(len(micro), len(mine), *x.shape[1:]), flat)


def _packed_batch(examples: Sequence[Example], micro: np.ndarray, width: int, mesh: Mesh | None) -> TokenBatch:
    """Micro-batches of rows of `width` tokens, which the examples of each shard of a micro-batch fill.

    All shards get as many rows as the fullest. micro: as above.
    """
    ways = data_ways(mesh)
    shards = micro.reshape(len(micro), ways, -1)
    packs = [[pack([examples[i] for i in shard], width) for shard in part] for part in shards]
    rows = max(len(p.rows) for part in packs for p in part)
    segments = 1 << (max(p.segments for part in packs for p in part) - 1).bit_length()

    def part(a: int, w: int) -> TokenBatch:
        chosen = [examples[i] for i in shards[a, w]]
        return collate_packed(chosen, packs[a][w], rows=rows, segments=segments, first=w * shards.shape[2])

    joined = [
        jax.tree.map(lambda *xs: np.concatenate(xs), *(part(a, w) for w in local_rows(ways, mesh)))
        for a in range(len(micro))
    ]
    return jax.tree.map(lambda *xs: np.stack(xs), *joined)
