"""What planning asks of a model folder: its tensors by name and shape, sorted into layers and what stands around them.

Layers are found by name, in any decoder family (see `names`). Merge specification, sections 1.4 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.merge.names import LAYER, ends_of, rows_of

Shape = tuple[int, ...]
BEFORE = re.compile(r"embed|(^|\.)wpe\.")  # of the tensors outside the layers, those that stand before them
RECOMPUTED = "rotary_emb.inv_freq"  # a buffer that old checkpoints hold


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by shape, and whether config.json ties its head to its embedding.

    tied: of a model without a stored head; None where config.json does not say. A head that is stored is the head: one
    that equals the embedding is left out before.
    """

    shapes: Mapping[str, Shape]
    tied: bool | None = None

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True)
class Layout:
    """A checkpoint's names: those of its layers, layer by layer; those before the layers and after them.

    places: what the names of each layer begin with. prefixes: of its stacks of layers, one behind the other; an encoder
      and a decoder have one each, whose layers count on from each other.
    head: None where none is stored. tied: the embedding where it may be the head.
    """

    prefixes: tuple[str, ...]
    places: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    head: str | None
    tied: str | None


def layout_of(model: str, checkpoint: Checkpoint) -> Layout:
    """The layout of a model's tensors.

    Raises:
      InputError: a layer that is missing; names the model.
    """
    stacks: dict[str, dict[int, list[str]]] = {}
    outside = []
    for name in checkpoint.shapes:
        if name.endswith(RECOMPUTED):
            continue
        found = LAYER.match(name)
        if found is None:
            outside.append(name)
        else:
            stacks.setdefault(found[1], {}).setdefault(int(found[2]), []).append(found[3])
    stacks = dict(sorted(stacks.items()))  # not by the order of the files, which differs between models
    for prefix, layers in stacks.items():
        if sorted(layers) != list(range(len(layers))):
            lacking = min(set(range(max(layers))) - set(layers))
            where = f" of {prefix}" if len(stacks) > 1 else ""
            cure = "Restore the checkpoint's missing files"
            raise InputError(f"lacks layer {lacking}{where}", file=model, cure=cure)
    ends = ends_of(outside)
    before = tuple(n for n in outside if rows_of(n) == "input" or (rows_of(n) is None and BEFORE.search(n)))
    return Layout(
        prefixes=tuple(stacks),
        places=tuple(f"{prefix}.{i}" for prefix, layers in stacks.items() for i in range(len(layers))),
        layers=tuple(tuple(layers[i]) for layers in stacks.values() for i in range(len(layers))),
        before=before,
        after=tuple(n for n in outside if n not in before and n != ends.head),
        head=ends.head,
        tied=None if checkpoint.tied is False else ends.embedding,
    )
