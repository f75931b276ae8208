"""From a recipe and the names of the inputs' tensors to the tensors of the output, each with its plain numbers.

Merge specification, sections 1.4, 1.5, 4.9 and 9. Layers are found by name, in any decoder family: the first number
after `layers`, `layer`, `h`, `blocks` or `block`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.merge.arithmetic import Method
from fusion_jax.merge.names import LAYER, Rows, rows_of
from fusion_jax.merge.parameters import Place, layer_position, lookup
from fusion_jax.merge.recipe import Recipe, Slice, Source, missing
from fusion_jax.merge.varm import check_layers

Shape = tuple[int, ...]
OPTIONAL = (".bias",)  # what a model of the same architecture may lack
BEFORE = re.compile(r"embed|(^|\.)wpe\.")  # of the tensors outside the layers, those that stand before them
MOST_LAYERS = 1000  # of the output
RECOMPUTED = "rotary_emb.inv_freq"  # a buffer that old checkpoints hold
TOKENS_CURE = "Set tokenizer_source to base, union or a model's path, so that rows are aligned by token"


@dataclass(frozen=True)
class Checkpoint:
    """What planning asks of an input: its tensors' shapes, and whether config.json ties the head to the embedding.

    tied: None where it does not say; then a stored head is the head, and without one the embedding is.
    """

    shapes: Mapping[str, Shape]
    tied: bool | None = None

    def __repr__(self) -> str:
        return brief(self)


class TensorInput(NamedTuple):
    """A tensor to read. model_index: of the model in `Recipe.models`, for its random key; -1 for the base."""

    model: str
    tensor: str
    model_index: int


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of the output.

    shape: of the output. inputs: in the order of the recipe, without models that lack an optional tensor; none: the
    base is copied. parameters: for the method's function, per-model ones a list like `inputs`. rows: whether its rows
    are tokens ("input" embedding or "head"), so that a vocabulary policy rewrites them first. lenders: tensors of the
    other models, which may have rows of tokens that the inputs lack. layer: of the output.
    """

    name: str
    shape: Shape
    inputs: tuple[TensorInput, ...]
    base: TensorInput | None
    parameters: Mapping[str, Any]
    rows: Rows | None = None
    lenders: tuple[TensorInput, ...] = ()
    layer: int | None = None

    @property
    def reads(self) -> tuple[TensorInput, ...]:
        """All that is read for it: the models' tensors, then the base's, then those that lend rows."""
        return (*self.inputs, *(() if self.base is None else (self.base,)), *self.lenders)


@dataclass(frozen=True)
class MergePlan:
    """The output: its tensors, embeddings first and head last; its layers; whether its head is the embedding."""

    tensors: tuple[TensorPlan, ...]
    layers: int
    tied: bool

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True)
class _Names:
    """A checkpoint's names: those of layers under one prefix, by layer; those before the layers and after them.

    head: None where it is the embedding. tied: the embedding where it may be the head.
    """

    prefix: str
    layers: tuple[tuple[str, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    head: str | None
    tied: str | None


def resolve(
    recipe: Recipe, method: Method, tensor: str, layer: int | None, layers: int, *, part: int = 0,
    sources: Sequence[Source] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The parameters of one tensor as the method's function takes them: plain values, lists for per-model ones.

    A gradient runs over the layers of a slice (of the whole model where the recipe lists models).

    Args:
      tensor: its name in the output, which filters look at.
      layer: 0-based within its slice; None: of no layer, which takes the first entry of a gradient.
      layers: of its slice.
      part: which slice of the recipe.
      sources: the models to give values for; None: all of the slice.

    Raises:
      InputError: no rule gives a required parameter for this tensor; names the model and the tensor.
    """
    one, position = recipe.slices[part], layer_position(layer, layers)
    chosen = one.sources if sources is None else sources
    out: dict[str, Any] = {}
    for parameter in method.parameters:
        values = []
        for source in chosen if parameter.per_model else one.sources[:1]:
            own = source.parameters if parameter.per_model else {}
            value = lookup((own, one.parameters, recipe.parameters), parameter.name, tensor, position)
            if value is None and parameter.default is None:
                raise missing(method, parameter, source, Place(recipe.file), tensor)
            values.append(parameter.default if value is None else value)
        out[method.argument(parameter.name)] = values if parameter.per_model else values[0]
    return out


def plan_tensors(
    recipe: Recipe,
    methods: Mapping[str, Method],
    checkpoints: Mapping[str, Checkpoint],
    vocabulary_size: int | None = None,
) -> MergePlan:
    """Every tensor of the output.

    Embeddings come from the first slice's models, the final norm and the head from the last slice's. A base that a
    slice does not list gives the layers of the slice's first source.

    Args:
      checkpoints: of each of `Recipe.inputs`.
      vocabulary_size: rows of the output's embedding; needed where the recipe has a vocabulary policy.

    Raises:
      InputError: inputs with different numbers of layers, a layer range beyond a model's layers, a tensor that a model
        lacks, shapes that do not agree; names the model, the tensor and the cure.
    """
    if recipe.vocabulary.source != "refuse" and vocabulary_size is None:
        raise ValueError("a recipe with a vocabulary policy is planned for a vocabulary_size")
    names = {model: _names(model, checkpoints[model]) for model in recipe.inputs}
    planner = _Planner(recipe, methods[recipe.method], checkpoints, names, vocabulary_size)
    first, last = recipe.slices[0], recipe.slices[-1]
    prefix = names[_participants(first)[0].model].prefix
    tensors = [planner.outside(0, name) for name in _union(names[s.model].before for s in _participants(first))]
    counts = [planner.length(part) for part in range(len(recipe.slices))]
    if sum(counts) > MOST_LAYERS:
        problem = f"the slices give {sum(counts)} layers, {MOST_LAYERS} at most are merged"
        raise InputError(problem, file=recipe.file, field="slices", cure="List fewer slices")
    layers = 0
    for part, (one, count) in enumerate(zip(recipe.slices, counts, strict=True)):
        for i in range(count):
            stacks = (names[s.model].layers[_start(s) + i] for s in _participants(one))
            for suffix in _union(stacks):
                tensors.append(planner.in_layer(part, suffix, i, count, f"{prefix}.{layers + i}.{suffix}", layers + i))
        layers += count
    part = len(recipe.slices) - 1
    tensors += [planner.outside(part, name) for name in _union(names[s.model].after for s in _participants(last))]
    needs_head = planner.needs_head()
    if needs_head:
        tensors.append(planner.head())
    planner.check_rows(tensors)
    for granularity in {t.parameters["granularity"] for t in tensors if "granularity" in t.parameters}:
        check_layers(granularity, [t.name for t in tensors])
    tied = not needs_head and checkpoints[_participants(last)[0].model].tied is not False
    return MergePlan(tuple(tensors), layers, tied)


def idle_filters(recipe: Recipe, tensors: Iterable[TensorPlan]) -> list[str]:
    """Filters of the recipe that no tensor's name contains: a wrong word, or one for another architecture."""
    names = [t.name for t in tensors]
    levels = [recipe.parameters]
    for one in recipe.slices:
        levels += [one.parameters, *(source.parameters for source in one.sources)]
    patterns = [rule.pattern for level in levels for rules in level.values() for rule in rules]
    return [p for p in dict.fromkeys(patterns) if p is not None and not any(p in name for name in names)]


def _participants(one: Slice) -> tuple[Source, ...]:
    """The base first: its names and shapes are the output's."""
    return (one.base, *one.sources) if one.base else one.sources


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _start(source: Source) -> int:
    return source.layers[0] if source.layers else 0


def _names(model: str, checkpoint: Checkpoint) -> _Names:
    layers: dict[int, list[str]] = {}
    prefixes: dict[str, None] = {}
    outside = []
    for name in checkpoint.shapes:
        if name.endswith(RECOMPUTED):
            continue
        found = LAYER.match(name)
        if found is None:
            outside.append(name)
        else:
            prefixes[found[1]] = None
            layers.setdefault(int(found[2]), []).append(found[3])
    if len(prefixes) > 1:
        stacks = ", ".join(prefixes)
        raise InputError(f"has several stacks of layers ({stacks})", file=model, cure="Merge models with one decoder")
    if sorted(layers) != list(range(len(layers))):
        lacking = min(set(range(max(layers))) - set(layers))
        raise InputError(f"lacks layer {lacking}", file=model, cure="Restore the checkpoint's missing files")
    head = next((n for n in outside if rows_of(n) == "head" and n.endswith(".weight")), None)
    before = tuple(n for n in outside if rows_of(n) == "input" or (rows_of(n) is None and BEFORE.search(n)))
    after = tuple(n for n in outside if n not in before and n != head)
    embedding = next((n for n in before if rows_of(n) == "input"), None)
    stack = tuple(tuple(layers[i]) for i in range(len(layers)))
    own_head = None if checkpoint.tied and embedding else head
    tied = None if checkpoint.tied is False else embedding
    return _Names(next(iter(prefixes), ""), stack, before, after, own_head, tied)


@dataclass(frozen=True)
class _Planner:
    recipe: Recipe
    method: Method
    checkpoints: Mapping[str, Checkpoint]
    names: Mapping[str, _Names]
    vocabulary_size: int | None

    def length(self, part: int) -> int:
        """Layers of a slice, which all its models have."""
        one = self.recipe.slices[part]
        depths = {s.model: len(self.names[s.model].layers) for s in _participants(one)}
        reference = one.sources[0]
        if reference.layers is None:
            if len(set(depths.values())) > 1:
                told = ", ".join(f"{model} has {depth}" for model, depth in depths.items())
                raise self._error(
                    "models", f"the models have different numbers of layers: {told}", "Choose layers under `slices`"
                )
            return depths[reference.model]
        for s in _participants(one):
            if s.layers is not None and s.layers[1] > depths[s.model]:
                problem = f"layer_range {list(s.layers)} goes beyond the {depths[s.model]} layers of {s.model}"
                raise self._error(f"slices[{part}]", problem, f"End it at {depths[s.model]} or before")
        return reference.layers[1] - reference.layers[0]

    def in_layer(self, part: int, suffix: str, i: int, count: int, name: str, layer: int) -> TensorPlan:
        """A tensor of the i-th layer of a slice."""

        def tensor_of(source: Source) -> str:
            return f"{self.names[source.model].prefix}.{_start(source) + i}.{suffix}"

        return self._tensor(part, name, tensor_of, (i, count), None, layer)

    def outside(self, part: int, name: str) -> TensorPlan:
        """A tensor of no layer."""
        return self._tensor(part, name, lambda source: name, (None, 1), rows_of(name), None)

    def needs_head(self) -> bool:
        """Some model's head is not its embedding; or they are, but the output's embedding comes from other models.

        Models without a head whose config.json ties nothing (those that only embed) go together; among others such a
        model has lost its head.
        """
        first, last = ([s.model for s in _participants(self.recipe.slices[i])] for i in (0, -1))
        heads = [self.names[model].head or self.names[model].tied for model in last]
        untied = [m for m, head in zip(last, heads) if head is None and self.checkpoints[m].tied is False]
        if untied and any(heads):
            problem = "is missing, and by config.json (tie_word_embeddings) the embedding does not stand for it"
            cure = "Restore the checkpoint's missing files, or correct its config.json"
            raise InputError(problem, file=untied[0], field="lm_head.weight", cure=cure)
        if any(self.names[model].head for model in last):
            return True
        return set(first) != set(last) and any(heads)

    def head(self) -> TensorPlan:
        """The head; a model without one gives the embedding that it is tied to."""
        part = len(self.recipe.slices) - 1
        sources = _participants(self.recipe.slices[part])
        name = next((head for s in sources if (head := self.names[s.model].head)), "lm_head.weight")

        def tensor_of(source: Source) -> str:
            names = self.names[source.model]
            return names.head or names.tied or name

        return self._tensor(part, name, tensor_of, (None, 1), "head", None)

    def _tensor(
        self, part: int, name: str, tensor_of: Callable[[Source], str], position: tuple[int | None, int],
        rows: Rows | None, layer: int | None,
    ) -> TensorPlan:  # fmt: skip
        one = self.recipe.slices[part]
        present = [s for s in one.sources if self._has(s, tensor_of(s), name)]
        base = one.base
        if base is not None and not self._has(base, tensor_of(base), None):
            raise self._lacks(base, tensor_of(base))
        if len(present) < self.method.least_models:
            if base is None:
                lacking = next(s for s in one.sources if s not in present)
                raise self._lacks(lacking, tensor_of(lacking))
            present = []
        merged = ([base] if base else []) + present
        lending = self._lending(merged, tensor_of) if rows is not None and self.vocabulary_size is not None else []
        shape = self._shape(name, [(s, tensor_of(s)) for s in merged + lending], rows)
        parameters = resolve(self.recipe, self.method, name, *position, part=part, sources=present) if present else {}
        index = {model: i for i, model in enumerate(self.recipe.models)}
        inputs = tuple(TensorInput(s.model, tensor_of(s), index[s.model]) for s in present)
        pivot = TensorInput(base.model, tensor_of(base), -1) if base else None
        lenders = tuple(TensorInput(s.model, tensor_of(s), -1) for s in lending)
        return TensorPlan(name, shape, inputs, pivot, parameters, rows, lenders, layer)

    def _lending(self, merged: Sequence[Source], tensor_of: Callable[[Source], str]) -> list[Source]:
        """The recipe's models that a tensor is not merged from, but that have it: they may know a token alone."""
        others = [Source(m) for m in self.recipe.inputs if all(m != s.model for s in merged)]
        return [s for s in others if tensor_of(s) in self.checkpoints[s.model].shapes]

    def _has(self, source: Source, tensor: str, name: str | None) -> bool:
        if tensor in self.checkpoints[source.model].shapes:
            return True
        if name is not None and name.endswith(OPTIONAL):
            return False
        raise self._lacks(source, tensor)

    def _lacks(self, source: Source, tensor: str) -> InputError:
        cure = "Merge models of one architecture"
        return InputError("lacks a tensor that the other models have", file=source.model, field=tensor, cure=cure)

    def _shape(self, name: str, given: Sequence[tuple[Source, str]], rows: Rows | None) -> Shape:
        """The output's shape, which all inputs have, but for rows that a vocabulary policy aligns."""
        shapes = [self.checkpoints[source.model].shapes[tensor] for source, tensor in given]
        aligned = rows is not None and self.vocabulary_size is not None
        compared = [shape[1:] for shape in shapes] if aligned else shapes
        for (source, _), shape, one in zip(given, shapes, compared):
            if one != compared[0]:
                problem = f"{source.model} has shape {shape} where {given[0][0].model} has {shapes[0]}"
                vocabularies = rows is not None and shape[1:] == shapes[0][1:]
                cure = TOKENS_CURE if vocabularies else "Merge models of one architecture and size"
                raise InputError(problem, file=self.recipe.file, field=name, cure=cure)
        return (self.vocabulary_size, *shapes[0][1:]) if aligned and self.vocabulary_size else shapes[0]

    def check_rows(self, tensors: Iterable[TensorPlan]) -> None:
        """Slices of several models: the embedding and the head have the same tokens."""
        found = [t for t in tensors if t.rows]
        for t in found if len(self.recipe.slices) > 1 else ():
            if t.shape[0] != found[0].shape[0]:
                problem = f"has {t.shape[0]} rows where {found[0].name} has {found[0].shape[0]}"
                raise InputError(problem, file=self.recipe.file, field=t.name, cure=TOKENS_CURE)

    def _error(self, field: str, problem: str, cure: str) -> InputError:
        return InputError(problem, file=self.recipe.file, field=field, cure=cure)
