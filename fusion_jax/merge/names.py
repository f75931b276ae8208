"""What a tensor's name tells: its layer, its module, whether its rows are tokens; in any decoder family.

Layers are found by the first number after `layers`, `layer`, `h`, `blocks` or `block`, as Llama (`model.layers.3.mlp`),
GPT-2 (`transformer.h.3.attn`), GPT-NeoX (`gpt_neox.layers.3.attention`), MPT (`transformer.blocks.3.ffn`) and BERT
(`encoder.layer.3.output`) name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Rows = Literal["input", "head"]
LAYER = re.compile(r"^((?:.*?\.)?(?:layers?|h|blocks?))\.(\d+)\.(.+)$")
INPUTS = {"embed_tokens", "shared", "tok_embeddings", "wte", "word_embeddings", "embed_in", "embeddings"}
HEADS = {"lm_head", "embed_out", "output", "output_layer"}


def rows_of(name: str) -> Rows | None:
    """Whether a tensor's rows are tokens: by its module's name."""
    module = name.split(".")[-2:][0]
    return "input" if module in INPUTS else "head" if module in HEADS else None


class Ends(NamedTuple):
    """The names of a checkpoint's embedding and of its head; None where it has none."""

    embedding: str | None
    head: str | None


def ends_of(names: Iterable[str]) -> Ends:
    """The first tensors outside the layers whose modules are called as an embedding and as a head are.

    >>> ends_of(["wte.weight", "h.0.attn.output.weight", "output.weight"])
    Ends(embedding='wte.weight', head='output.weight')
    """
    rows = {name: rows_of(name) for name in names if not LAYER.match(name)}
    embedding = next((name for name, kind in rows.items() if kind == "input"), None)
    head = next((name for name, kind in rows.items() if kind == "head" and name.endswith(".weight")), None)
    return Ends(embedding, head)


def layer_path(name: str) -> str | None:
    """The layer with the stack it stands in, which tells an encoder's layers from a decoder's; None outside layers.

    >>> layer_path("transformer.blocks.3.ffn.up_proj.weight")
    'transformer.blocks.3'
    """
    found = LAYER.match(name)
    return f"{found[1]}.{found[2]}" if found else None


def module_of(name: str) -> str:
    """A tensor's module; outside the layers each tensor is its own.

    >>> module_of("model.layers.3.mlp.up_proj.weight"), module_of("lm_head.weight")
    ('model.layers.3.mlp', 'lm_head.weight')
    """
    found = LAYER.match(name)
    return f"{found[1]}.{found[2]}.{found[3].split('.')[0]}" if found else name
