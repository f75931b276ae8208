"""Cases of attention, each against a softmax written out over an explicit mask; run as a program, on 8 virtual devices.

What a query sees is said here once more, token by token, from what each token is: which prompt or continuation or
document it belongs to, its position there, and whether it exists.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fusion_jax.ops.kernels import Visible, attend
from fusion_jax.sharding import make_mesh, named
from tests.quick import FAST

ROWS, PROMPT, BRANCHES, REST = 4, 24, 3, 16
WIDTH = PROMPT + BRANCHES * REST
LENGTHS = np.asarray([24, 20, 1, 11])  # of the prompts, which are padded to PROMPT
ENDS = np.asarray([[16, 17, 50, 66], [34, 60, 65, 72], [72, 72, 72, 72], [1, 2, 3, 64]])  # of packed documents
LAYOUTS = ("one text", "packed", "shared prompt", "prompt of its own")
WINDOWS = {
    "none": (),
    "narrower than the prompt": (7,),
    "between prompt and branch": (30,),
    "between branch and row": (50,),  # a branch and its prompt have 40 tokens, a row 72
    "wider than the row": (300,),
    "by layer": (7, 0, 50),
}
HEADS = {"MHA": (4, 4, 16), "GQA": (4, 2, 128), "MQA": (4, 1, 80), "12 over 4": (12, 4, 8)}
EVERY_HEADS = HEADS | {"uneven": (6, 3, 16), "narrow values": (4, 4, 136, 24), "wide values": (4, 2, 16, 136)}
MESHES = {"2 x 2 x 2": (2, 2, 2), "fsdp 4, tensor 2": (1, 4, 2), "fsdp 2, tensor 4": (1, 2, 4)}


class Tokens(NamedTuple):
    """What each token of [B,T] is: its document (-1: it does not exist), its branch (0: the prompt), its position."""

    document: np.ndarray
    branch: np.ndarray
    position: np.ndarray


def tokens_of(layout: str) -> Tokens:
    place = np.broadcast_to(np.arange(WIDTH), (ROWS, WIDTH))
    if layout == "one text":
        return Tokens(np.zeros_like(place), np.zeros_like(place), place)
    if layout == "packed":
        document = (place[..., None] >= ENDS[:, None]).sum(-1)
        first = (document[..., None] == document[:, None]).argmax(-1)
        return Tokens(np.where(place < ENDS[:, -1:], document, -1), np.zeros_like(place), place - first)
    count = BRANCHES if layout == "shared prompt" else 1
    branch = np.concatenate([np.zeros(PROMPT, int), np.repeat(np.arange(1, count + 1), REST)])
    inside = np.concatenate([np.arange(PROMPT), np.tile(np.arange(REST), count)])
    position = inside + np.where(branch > 0, LENGTHS[:, None], 0)
    exists = (branch > 0) | (inside < LENGTHS[:, None])
    return Tokens(np.where(exists, 0, -1), np.broadcast_to(branch, position.shape), position)


def mask_of(tokens: Tokens, window: int) -> np.ndarray:
    """bool[B,T,T]; a token that does not exist sees itself, so that its softmax is defined."""
    query, key = (np.stack(tokens)[:, :, :, None], np.stack(tokens)[:, :, None, :])
    behind = query[2] - key[2]
    on_the_way = (query[1] == key[1]) | (key[1] == 0)
    seen = (query[0] == key[0]) & (query[0] >= 0) & on_the_way & (behind >= 0) & ((behind < window) | (window == 0))
    return seen | ((query[0] < 0) & np.eye(query.shape[2], dtype=bool))


def plain(qkv: list[np.ndarray], mask: np.ndarray, soft_cap: float | None, toward: np.ndarray) -> list[np.ndarray]:
    """One softmax over the keys that the mask shows, and the gradients of sum(out * toward); float64."""
    q, k, v = (x.astype(np.float64) for x in qkv)
    heads, kv_heads, scale = q.shape[2], k.shape[2], q.shape[3] ** -0.5
    k, v = (np.repeat(x, heads // kv_heads, 2) for x in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) * scale
    bent = np.ones_like(scores)
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
        bent = 1 - (scores / soft_cap) ** 2
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("bthd,bshd->bhts", toward, v)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) * bent * scale

    def of_groups(gradient: np.ndarray) -> np.ndarray:
        return gradient.reshape(*gradient.shape[:2], kv_heads, -1, gradient.shape[3]).sum(3)

    return [
        np.einsum("bhts,bshd->bthd", weights, v), np.einsum("bhts,bshd->bthd", d_scores, k),
        of_groups(np.einsum("bhts,bthd->bshd", d_scores, q)), of_groups(np.einsum("bhts,bthd->bshd", weights, toward)),
    ]  # fmt: skip


def visible_of(layout: str, tokens: Tokens, windows: tuple[int, ...]) -> Visible:
    """The same as the decoder says it."""
    position = jnp.asarray(tokens.position, jnp.int32)
    if layout in ("one text", "packed"):
        segments = jnp.asarray(tokens.document + 1, jnp.int32) if layout == "packed" else None
        return Visible(position, segments, windows=windows)
    count = BRANCHES if layout == "shared prompt" else 1
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    return Visible(position, prompt_lengths=lengths, windows=windows, branches=(PROMPT, count))


def apart(kernel: Any, layout: str, windows: tuple[int, ...], heads: tuple[int, ...], mesh: Mesh | None) -> float:
    """The largest difference of a value or of a gradient of q, k or v from plain attention, over all layers.

    heads: of queries, of keys and values, the size of keys and, where it is another, that of values.
    """
    tokens, (query_heads, kv_heads, dim) = tokens_of(layout), heads[:3]
    rng, shape = np.random.default_rng(0), (*tokens.position.shape,)
    sizes = ((query_heads, dim), (kv_heads, dim), (kv_heads, heads[-1]))
    qkv = [rng.normal(size=(*shape, *size)).astype(np.float32) for size in sizes]
    exists = (tokens.document >= 0)[..., None, None]
    toward = (rng.normal(size=(*shape, query_heads, heads[-1])) * exists).astype(np.float32)
    soft_cap = 5.0 if len(windows) > 1 else None  # as in Gemma-2

    def ours(window: Any, *qkv: Any) -> tuple[Any, ...]:
        visible = visible_of(layout, tokens, windows).of_layer(window, windows, True)
        how = partial(attend, visible=visible, scale=dim**-0.5, soft_cap=soft_cap)
        out, pull = jax.vjp(partial(how, kernel=kernel, mesh=mesh), *qkv)
        return out, *pull(jnp.asarray(toward))

    placed = [
        x if mesh is None else jax.device_put(x, named(mesh, ("batch", None, "heads", None), x.shape)) for x in qkv
    ]
    found, worst = jax.jit(ours, compiler_options=FAST), 0.0
    for window in dict.fromkeys(windows or (0,)):
        wanted = plain(qkv, mask_of(tokens, window), soft_cap, toward)
        out, *gradients = map(np.asarray, found(jnp.int32(window), *placed))
        pairs = zip((out * exists, *gradients), (wanted[0] * exists, *wanted[1:]), strict=True)
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in pairs))
    return worst


def cases() -> list[tuple[str, str, str, str]]:
    """(kernel, layout, window, heads): every window in every layout by splash, those that limit something by XLA, too;
    heads in turn."""
    out, heads = [], list(HEADS)
    for number, (layout, window) in enumerate((x, y) for x in LAYOUTS for y in WINDOWS):
        out.append(("splash-interpreted", layout, window, heads[number % len(heads)]))
        if window in ("narrower than the prompt", "between branch and row", "by layer"):
            out.append(("xla", layout, window, heads[(number + 1) % len(heads)]))
    out += [("splash-interpreted", "shared prompt", "none", "narrow values"), ("xla", "packed", "none", "wide values")]
    return [*out, ("xla", "shared prompt", "none", "narrow values")]


def cases_on_meshes() -> list[tuple[str, str, str, str, str]]:
    """A third of the cases, on each mesh in turn, and heads that the mesh does not divide."""
    meshes = list(MESHES)
    out = [(*case, meshes[number % len(meshes)]) for number, case in enumerate(cases()[::3])]
    return [*out, ("splash-interpreted", "packed", "by layer", "uneven", "fsdp 2, tensor 4")]


def main() -> None:
    meshes = {name: make_mesh(*sizes) for name, sizes in MESHES.items()}
    found = {
        " | ".join(case): apart(case[0], case[1], WINDOWS[case[2]], EVERY_HEADS[case[3]], meshes[case[4]])
        for case in cases_on_meshes()
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
