"""From a recipe and the names of the inputs' tensors to the tensors of the output, each with its plain numbers.

Merge specification, sections 1.4, 1.5, 4.9 and 9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.merge.methods.method import Method
from fusion_jax.merge.methods.variation_ratio import check_layers
from fusion_jax.merge.names import Rows, rows_of
from fusion_jax.merge.recipes.checkpoints import Checkpoint, Layout, Shape, layout_of
from fusion_jax.merge.recipes.recipe import Recipe, Source
from fusion_jax.merge.recipes.resolve import resolve

OPTIONAL = (".bias",)  # what a model of the same architecture may lack
MOST_LAYERS = 1000  # of the output
TOKENS_CURE = "Set tokenizer_source to base, union or a model's path, so that rows are aligned by token"


class TensorInput(NamedTuple):
    """A tensor to read. model_index: of the model in `Recipe.models`, for its random key; -1 for the base."""

    model: str
    tensor: str
    model_index: int


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of the output.

    shape: of the output.
    inputs: in the order of the recipe, without models that lack an optional tensor; none: the base is copied.
    parameters: for the method's function, per-model ones a list like `inputs`.
    rows: whether its rows are tokens ("input" embedding or "head"), so that a vocabulary policy rewrites them first.
    lenders: tensors of the other models, which may have rows of tokens that the inputs lack.
    layer: of the output.
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
    """The output: its tensors, embeddings first and head last; its layers; whether its head is the embedding.

    layers: None: there are several stacks, as long as the models' own.
    """

    tensors: tuple[TensorPlan, ...]
    layers: int | None
    tied: bool

    def __repr__(self) -> str:
        return brief(self)


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
    layouts = {model: layout_of(model, checkpoints[model]) for model in recipe.inputs}
    planner = _Planner(recipe, methods[recipe.method], checkpoints, layouts, vocabulary_size)
    counts = [planner.length(part) for part in range(len(recipe.slices))]
    if sum(counts) > MOST_LAYERS:
        problem = f"the slices give {sum(counts)} layers, {MOST_LAYERS} at most are merged"
        raise InputError(problem, file=recipe.file, field="slices", cure="List fewer slices")
    wanted = [*planner.before(), *planner.layers(counts), *planner.after()]
    head = planner.head()
    tensors = tuple(map(planner.tensor, wanted if head is None else [*wanted, head]))
    planner.check_rows(tensors)
    for granularity in {t.parameters["granularity"] for t in tensors if "granularity" in t.parameters}:
        check_layers(granularity, [t.name for t in tensors])
    last = recipe.slices[-1].participants[0]
    depth = None if planner.several() else sum(counts)
    return MergePlan(tensors, depth, head is None and checkpoints[last.model].tied is not False)


class _Wanted(NamedTuple):
    """A tensor of the output, before its inputs are looked up.

    part: the slice that it is merged by. head: whether it is the head, for which an embedding may stand.
    suffix, position, layers: of a tensor in a layer its name there, its layer within the slice, and how many the slice
      has; position None: of no layer. layer: of the output.
    """

    name: str
    part: int
    rows: Rows | None = None
    head: bool = False
    suffix: str = ""
    position: int | None = None
    layers: int = 1
    layer: int | None = None


@dataclass(frozen=True)
class _Planner:
    recipe: Recipe
    method: Method
    checkpoints: Mapping[str, Checkpoint]
    layouts: Mapping[str, Layout]
    vocabulary_size: int | None

    def length(self, part: int) -> int:
        """Layers of a slice, which all its models have."""
        one = self.recipe.slices[part]
        depths = {s.model: len(self.layouts[s.model].layers) for s in one.participants}
        reference = one.sources[0]
        if reference.layers is not None or len(self.recipe.slices) > 1:
            for s in one.participants:
                stacks = self.layouts[s.model].prefixes
                if len(stacks) > 1:
                    problem = f"{s.model} has several stacks of layers ({', '.join(stacks)}), which are merged whole"
                    raise self._error(f"slices[{part}]", problem, "List the models under `models`, without slices")
        if reference.layers is None:
            if len(set(depths.values())) > 1:
                told = ", ".join(f"{model} has {depth}" for model, depth in depths.items())
                problem = f"the models have different numbers of layers: {told}"
                raise self._error("models", problem, "Choose layers under `slices`")
            return depths[reference.model]
        for s in one.participants:
            if s.layers is not None and s.layers[1] > depths[s.model]:
                problem = f"layer_range {list(s.layers)} goes beyond the {depths[s.model]} layers of {s.model}"
                raise self._error(f"slices[{part}]", problem, f"End it at {depths[s.model]} or before")
        return reference.layers[1] - reference.layers[0]

    def several(self) -> bool:
        """Whether the models have several stacks of layers."""
        return any(len(layout.prefixes) > 1 for layout in self.layouts.values())

    def before(self) -> list[_Wanted]:
        """What stands before the layers: of the first slice's models."""
        names = _union(self.layouts[s.model].before for s in self.recipe.slices[0].participants)
        return [_Wanted(name, 0, rows_of(name)) for name in names]

    def after(self) -> list[_Wanted]:
        """What stands behind the layers, but for the head: of the last slice's models."""
        names = _union(self.layouts[s.model].after for s in self.recipe.slices[-1].participants)
        return [_Wanted(name, len(self.recipe.slices) - 1, rows_of(name)) for name in names]

    def layers(self, counts: Sequence[int]) -> list[_Wanted]:
        """The tensors of all layers; counts: layers of each slice."""
        first = self.layouts[self.recipe.slices[0].participants[0].model]
        places = [(part, position) for part, count in enumerate(counts) for position in range(count)]
        found = []
        for layer, (part, position) in enumerate(places):
            one = self.recipe.slices[part]
            for suffix in _union(self.layouts[s.model].layers[s.start + position] for s in one.participants):
                place = first.places[layer] if self.several() else f"{first.prefixes[0]}.{layer}"
                name = f"{place}.{suffix}"
                of_slice = _Wanted(name, part, suffix=suffix, position=position, layers=counts[part], layer=layer)
                found.append(of_slice)
        return found

    def head(self) -> _Wanted | None:
        """The head; None where it is the embedding, or models only embed.

        There is one where some model's head is not its embedding, or where they are, but the output's embedding comes
        from other models. Models without a head whose config.json ties nothing (those that only embed) go together;
        among others such a model has lost its head.
        """
        first, last = ([s.model for s in self.recipe.slices[part].participants] for part in (0, -1))
        layouts = [self.layouts[model] for model in last]
        heads = [layout.head or layout.tied for layout in layouts]
        untied = [m for m, head in zip(last, heads) if head is None and self.checkpoints[m].tied is False]
        if untied and any(heads):
            problem = "is missing, and by config.json (tie_word_embeddings) the embedding does not stand for it"
            cure = "Restore the checkpoint's missing files, or correct its config.json"
            raise InputError(problem, file=untied[0], field="lm_head.weight", cure=cure)
        stored = [layout.head for layout in layouts if layout.head]
        if not stored and not (set(first) != set(last) and any(heads)):
            return None
        return _Wanted(next(iter(stored), "lm_head.weight"), len(self.recipe.slices) - 1, "head", head=True)

    def tensor(self, wanted: _Wanted) -> TensorPlan:
        """A tensor with all that is read for it, and its numbers."""
        one = self.recipe.slices[wanted.part]
        present = [s for s in one.sources if self._has(s, wanted)]
        lacking = [s for s in one.sources if s not in present]
        if lacking and not wanted.name.endswith(OPTIONAL):
            raise self._lacks(lacking[0], wanted)
        if one.base is not None and not self._has(one.base, wanted):
            raise self._lacks(one.base, wanted)
        if len(present) < self.method.least_models:
            if one.base is None:
                raise self._lacks(lacking[0], wanted)
            present = []  # the base is copied
        merged = [*([one.base] if one.base else []), *present]
        aligned = wanted.rows is not None and self.vocabulary_size is not None
        lending = self._lending(merged, wanted) if aligned else []
        shape = self._shape(wanted, merged + lending)
        parameters: dict[str, Any] = {}
        if present:
            name, position, layers, part = wanted.name, wanted.position, wanted.layers, wanted.part
            parameters = resolve(self.recipe, self.method, name, position, layers, part=part, sources=present)
        return TensorPlan(
            name=wanted.name,
            shape=shape,
            inputs=tuple(self._input(s, wanted, self.recipe.models.index(s.model)) for s in present),
            base=self._input(one.base, wanted) if one.base else None,
            parameters=parameters,
            rows=wanted.rows,
            lenders=tuple(self._input(s, wanted) for s in lending),
            layer=wanted.layer,
        )

    def _name_in(self, source: Source, wanted: _Wanted) -> str:
        """The tensor's name in a source's model."""
        layout = self.layouts[source.model]
        if wanted.position is not None:
            return f"{layout.places[source.start + wanted.position]}.{wanted.suffix}"
        return layout.head or layout.tied or wanted.name if wanted.head else wanted.name

    def _has(self, source: Source, wanted: _Wanted) -> bool:
        return self._name_in(source, wanted) in self.checkpoints[source.model].shapes

    def _input(self, source: Source, wanted: _Wanted, index: int = -1) -> TensorInput:
        return TensorInput(source.model, self._name_in(source, wanted), index)

    def _lending(self, merged: Sequence[Source], wanted: _Wanted) -> list[Source]:
        """The recipe's models that a tensor is not merged from, but that have it: they may know a token alone."""
        others = [Source(m) for m in self.recipe.inputs if all(m != s.model for s in merged)]
        return [s for s in others if self._has(s, wanted)]

    def _lacks(self, source: Source, wanted: _Wanted) -> InputError:
        problem, cure = "lacks a tensor that the other models have", "Merge models of one architecture"
        return InputError(problem, file=source.model, field=self._name_in(source, wanted), cure=cure)

    def _shape(self, wanted: _Wanted, sources: Sequence[Source]) -> Shape:
        """The output's shape, which all inputs have, but for rows that a vocabulary policy aligns."""
        shapes = [self.checkpoints[s.model].shapes[self._name_in(s, wanted)] for s in sources]
        rows = self.vocabulary_size if wanted.rows is not None else None
        for source, shape in zip(sources, shapes):
            if shape != shapes[0] and (rows is None or shape[1:] != shapes[0][1:]):
                problem = f"{source.model} has shape {shape} where {sources[0].model} has {shapes[0]}"
                vocabularies = wanted.rows is not None and shape[1:] == shapes[0][1:]
                cure = TOKENS_CURE if vocabularies else "Merge models of one architecture and size"
                raise InputError(problem, file=self.recipe.file, field=wanted.name, cure=cure)
        return shapes[0] if rows is None else (rows, *shapes[0][1:])

    def check_rows(self, tensors: Iterable[TensorPlan]) -> None:
        """Slices of several models: the embedding and the head have the same tokens."""
        found = [t for t in tensors if t.rows]
        for t in found if len(self.recipe.slices) > 1 else ():
            if t.shape[0] != found[0].shape[0]:
                problem = f"has {t.shape[0]} rows where {found[0].name} has {found[0].shape[0]}"
                raise InputError(problem, file=self.recipe.file, field=t.name, cure=TOKENS_CURE)

    def _error(self, field: str, problem: str, cure: str) -> InputError:
        return InputError(problem, file=self.recipe.file, field=field, cure=cure)


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))
