"""Greedy decoding behind what an encoder made of texts in some other way than `generate_ids` reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion_jax.models.attention import Encoded
from fusion_jax.models.decoder import Params
from fusion_jax.sampling.drafts import Rules, Writing, begin, empty_draft, go_on, with_room
from fusion_jax.sampling.prompts import How, Read, Ready, behind_encoder, compiled_for
from fusion_jax.sampling.session import on_host
from fusion_jax.sampling.sizes import BLOCK, capacities_of, written_width
from fusion_jax.sharding import placed

_WHOLE = 2**30


@compiled_for
def _begun(how: How, params: Params, encoded: Encoded) -> Read:
    return behind_encoder(how, params, encoded)


def written(model: Ready, encoded: Encoded, limit: int, stop_ids: Sequence[int]) -> list[list[int]]:
    """The most probable tokens behind each of C texts, one after the other, without the stop token.

    Args:
      encoded: hidden [C,S,D], for as many texts as the devices divide. limit: tokens of a continuation, at least 1.
    """
    how, count = model.how, encoded.lengths.shape[0]
    writing, mesh = Writing(written_width(limit)), how.mesh
    rooms = list(capacities_of(limit)) if limit > BLOCK else [0]
    texts, draft = _begun(how)(model.params, encoded), empty_draft(how, writing, count, rooms[0])()
    rules = Rules(
        placed(np.zeros((count, 2), np.uint32), mesh, ("batch", None)),
        placed(np.asarray(list(stop_ids) or [-1], np.int32), mesh, (None,)), np.int32(limit),
    )  # fmt: skip
    every = placed(np.ones(count, bool), mesh, ("batch",))
    draft = begin(how, writing)(model.apart, texts, rules, draft, every)
    for room in rooms:
        if draft.cache is not None:
            draft = with_room(how, room)(draft)
        draft = go_on(how, writing)(model.apart, texts, rules, draft, np.int32(_WHOLE), np.int32(_WHOLE))
    ids, counts = on_host(draft.ids, mesh), on_host(draft.counts, mesh)
    return [ids[row, : counts[row]].tolist() for row in range(count)]
