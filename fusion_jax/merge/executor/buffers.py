"""Buffers of a merged model: what is no weight is copied from one of the models, and what differs is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fusion_jax.merge.names import LAYER
from fusion_jax.merge.recipes.checkpoints import RECOMPUTED
from fusion_jax.merge.recipes.recipe import Recipe
from fusion_jax.models.head import same
from fusion_jax.models.safetensors_io import PlannedTensor, TensorEntry

Entries = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class BufferCopy:
    """A buffer of the output: its name, where it is copied from, and the models where it holds other numbers."""

    name: str
    model: str
    entry: TensorEntry
    differing: tuple[str, ...] = ()

    @property
    def planned(self) -> PlannedTensor:
        """The tensor to write."""
        return PlannedTensor(self.name, self.entry.dtype, self.entry.shape, self.entry.mapped, copied=True)


def copied_buffers(recipe: Recipe, buffers: Mapping[str, Entries]) -> tuple[BufferCopy, ...]:
    """The output's buffers: those of the base, else of the first model; a layer's from the model that gives the layer.

    Rotary frequencies, which every reader computes anew, are left out.

    Args:
      buffers: of each of `Recipe.inputs`, by name.
    """
    found = []
    for place in _places(recipe, buffers):
        entry = buffers[place.model][place.stored]
        others = {m: of[place.stored] for m, of in buffers.items() if m != place.model and place.stored in of}
        differing = tuple(model for model, one in others.items() if not _same(entry, one))
        found.append(BufferCopy(place.name, place.model, entry, differing))
    return tuple(found)


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    return one.stored == other.stored and same(one, other)


class _Place(NamedTuple):
    """A buffer's name in the output, the model that it is copied from, and its name there."""

    name: str
    model: str
    stored: str


def _places(recipe: Recipe, buffers: Mapping[str, Entries]) -> Iterator[_Place]:
    first = recipe.base or recipe.models[0]
    yield from (_Place(name, first, name) for name in _kept(buffers[first]) if not LAYER.match(name))
    at = 0
    for one in recipe.slices:
        source = one.base or one.sources[0]
        names = {name: found for name in _kept(buffers[source.model]) if (found := LAYER.match(name))}
        depth = 1 + max((int(found[2]) for found in names.values()), default=-1)
        layers = source.layers or one.sources[0].layers or (0, depth)
        for name, found in names.items():
            if layers[0] <= int(found[2]) < layers[1]:
                yield _Place(f"{found[1]}.{at + int(found[2]) - layers[0]}.{found[3]}", source.model, name)
        at += layers[1] - layers[0]


def _kept(entries: Entries) -> list[str]:
    return [name for name in entries if not name.endswith(RECOMPUTED)]
