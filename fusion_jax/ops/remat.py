"""What the backward pass of a layer keeps of the forward pass, by the names that tensors carry in the layers."""

from __future__ import annotations

from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

BLOCK_INPUT, QKV, ATTENDED, RESIDUAL, GATED = "block_input", "qkv", "attended", "residual", "gated"
Remat = Literal["none", "full", "attention", "qkv", "gated", "dots", "offload"]
"""none: keep everything. full: the residual stream between layers alone. attention: besides, what attention gave. qkv:
besides, what it read. gated: the residual stream and the two factors of the feed-forward, half of a layer's matmuls.
dots: the results of all wide matmuls, from which the rest is cheap to compute again. offload: full, with the residual
stream in the host's memory."""

_KEPT: dict[Remat, tuple[str, ...]] = {
    "full": (),
    "attention": (ATTENDED,),
    "qkv": (ATTENDED, QKV),
    "gated": (GATED,),
    "dots": (ATTENDED, QKV, RESIDUAL, GATED),
}


def remat_policy(remat: Remat) -> Any:
    """The policy of `jax.checkpoint` for every choice but "none"."""
    if remat == "offload":
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
    return jax.checkpoint_policies.save_only_these_names(*_KEPT[remat])


def named(x: jax.Array, name: str) -> jax.Array:
    """x, known to the policies by one of the names above."""
    return checkpoint_name(x, name)
