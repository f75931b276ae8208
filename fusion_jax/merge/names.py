"""What a tensor's name tells: its layer, its module, whether its rows are tokens; in any decoder family.

Layers are found by the first number after `layers`, `layer`, `h`, `blocks` or `block`, as Llama (`model.layers.3.mlp`),
GPT-2 (`transformer.h.3.attn`), GPT-NeoX (`gpt_neox.layers.3.attention`), MPT (`transformer.blocks.3.ffn`) and BERT
(`encoder.layer.3.output`) name them.
"""

from __future__ import annotations

import re
from typing import Literal

Rows = Literal["input", "head"]
LAYER = re.compile(r"^((?:.*?\.)?(?:layers?|h|blocks?))\.(\d+)\.(.+)$")
INPUTS = {"embed_tokens", "tok_embeddings", "wte", "word_embeddings", "embed_in", "embeddings"}
HEADS = {"lm_head", "embed_out", "output", "output_layer"}


def rows_of(name: str) -> Rows | None:
    """Whether a tensor's rows are tokens: by its module's name."""
    module = name.split(".")[-2:][0]
    return "input" if module in INPUTS else "head" if module in HEADS else None


def layer_of(name: str) -> str | None:
    """The number of a tensor's layer; None of embeddings, the final norm and the head.

    >>> layer_of("transformer.blocks.3.ffn.up_proj.weight")
    '3'
    """
    found = LAYER.match(name)
    return found[2] if found else None


def layer_path(name: str) -> str | None:
    """The layer with the stack it stands in, `model.layers.3`, which tells an encoder's layers from a decoder's."""
    found = LAYER.match(name)
    return f"{found[1]}.{found[2]}" if found else None


def module_of(name: str) -> str:
    """A tensor's module, `model.layers.3.mlp`; outside the layers each tensor is its own."""
    found = LAYER.match(name)
    return f"{found[1]}.{found[2]}.{found[3].split('.')[0]}" if found else name
