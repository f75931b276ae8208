"""The model folders that a merge reads, and all that can be wrong with them before a weight is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.display import brief
from fusion_jax.errors import InputError, quoted
from fusion_jax.fields import Fields
from fusion_jax.merge.buffers import BufferCopy, copied_buffers
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.plan import Checkpoint, MergePlan, TensorInput, TensorPlan, plan_tensors, rows_of
from fusion_jax.merge.recipe import Recipe, read_recipe
from fusion_jax.merge.vocabulary import (
    Clash,
    RowPlan,
    Vocabulary,
    clashes,
    output_vocabulary,
    read_vocabulary,
    row_plan,
)
from fusion_jax.models.buffers import is_buffer
from fusion_jax.models.families import FAMILIES
from fusion_jax.models.families.common import VOCABULARY
from fusion_jax.models.head import EMBEDDING, HEAD, with_head
from fusion_jax.models.json_files import read_config
from fusion_jax.models.safetensors_io import TensorEntry, open_folder
from fusion_jax.zoo import model_path

# What may not differ between models, also where the shapes of their tensors agree.
SAME = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")


@dataclass(frozen=True)
class Input:
    """An opened folder: config.json as read, where each weight and each buffer lies.

    tied: whether the head is the embedding; None where config.json does not say.
    """

    folder: Path
    config: Mapping[str, Any]
    entries: Mapping[str, TensorEntry]
    buffers: Mapping[str, TensorEntry] = field(default_factory=dict)
    tied: bool | None = None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def checkpoint(self) -> Checkpoint:
        """What planning asks for."""
        return Checkpoint({name: e.shape for name, e in self.entries.items()}, self.tied)

    @property
    def resolved(self) -> dict[str, Any]:
        """What may not differ between models; a number of heads or a width that config.json leaves out follows."""
        found = {name: self.config.get(name) for name in SAME}
        heads, width = found["num_attention_heads"], self.config.get("hidden_size")
        if found["num_key_value_heads"] is None:
            found["num_key_value_heads"] = heads
        if found["head_dim"] is None and isinstance(heads, int) and heads > 0 and isinstance(width, int):
            found["head_dim"] = width // heads
        return found


@dataclass(frozen=True)
class Prepared:
    """A recipe with its inputs opened and its tensors planned; nothing is written yet.

    rows: how every model's embeddings come to the output's vocabulary; None where they are merged as they are.
    clashes: ids that mean different tokens in the models, where rows are not rewritten.
    copies: buffers, which are not merged.
    """

    recipe: Recipe
    inputs: Mapping[str, Input]
    plan: MergePlan
    vocabulary: Vocabulary | None
    rows: RowPlan | None
    clashes: tuple[Clash, ...]
    copies: tuple[BufferCopy, ...] = ()

    def __repr__(self) -> str:
        return brief(self)

    def entry(self, tensor: TensorInput) -> TensorEntry:
        """Where an input of a tensor lies."""
        return self.inputs[tensor.model].entries[tensor.tensor]

    def dtype(self, tensor: TensorPlan) -> np.dtype:
        """Of the saved tensor: the recipe's, else as it is stored in the base or the first model; float64 becomes
        float32."""
        if self.recipe.out_dtype is not None:
            return np.dtype(jnp.dtype(self.recipe.out_dtype))
        stored = self.entry(tensor.base or tensor.inputs[0]).dtype
        return np.dtype(np.float32) if stored == np.float64 else stored

    def held(self, tensor: TensorPlan) -> int:
        """Bytes that the inputs of a tensor take."""
        return sum(int(np.prod(tensor.shape)) * self.entry(one).dtype.itemsize for one in tensor.reads)


def prepare(source: str | os.PathLike[str] | Mapping[str, Any], locate: Callable[[str], Path] = model_path) -> Prepared:
    """Read a recipe, open its models, plan every tensor.

    Args:
      source: a YAML file in mergekit's form, or an equal dict.
      locate: a model's name in the recipe -> its folder; zoo:NAME is known.

    Raises:
      InputError: anything in the recipe, in a folder's files or between them that does not fit.
    """
    recipe = read_recipe(source, METHODS)
    inputs = open_inputs(recipe, locate)
    vocabulary, rows, differing = _vocabulary(recipe, inputs)
    checkpoints = {model: one.checkpoint for model, one in inputs.items()}
    plan = plan_tensors(recipe, METHODS, checkpoints, None if rows is None else rows.size)
    _check_parameters(recipe, plan)
    copies = copied_buffers(recipe, {model: one.buffers for model, one in inputs.items()})
    prepared = Prepared(recipe, inputs, plan, vocabulary, rows, differing, copies)
    if rows is not None:
        _check_rows(prepared)
    return prepared


def open_inputs(recipe: Recipe, locate: Callable[[str], Path]) -> dict[str, Input]:
    """The folders of a recipe by the names it uses; no weight is read.

    Raises:
      InputError: a folder that is missing or broken, or of another architecture than the base (else the first model).
    """
    found: dict[str, Input] = {}
    for model in recipe.inputs:
        found[model] = open_input(locate(model))
    first = recipe.base or recipe.models[0]
    for other in found.values():
        for name in SAME:
            ours, theirs = found[first].resolved[name], other.resolved[name]
            if ours != theirs:
                problem = f"is {quoted(theirs)}, but {quoted(ours)} in {first}"
                cure = "Merge models of one architecture; fuse others with experiments/fusechat.py first"
                raise InputError(problem, file=other.folder / "config.json", field=name, cure=cure)
    return found


def open_input(folder: Path) -> Input:
    """One folder, of any decoder family; no weight is read but a head that may equal its embedding.

    Raises:
      InputError: a file that is missing or broken, a weight of a dtype that is not read; names file and tensor.
    """
    config, entries = read_config(folder), open_folder(folder)
    buffers = {name: entry for name, entry in entries.items() if is_buffer(name, entry)}
    weights = {name: entry for name, entry in entries.items() if name not in buffers}
    for name, entry in weights.items():
        entry.check_weight(name)
    tied: bool | None = Fields(config, folder / "config.json").flag("tie_word_embeddings", None)
    head = next((name for name in weights if rows_of(name) == "head" and name.endswith(".weight")), HEAD)
    embedding = next((name for name in weights if rows_of(name) == "input"), EMBEDDING)
    if tied and (embedding in weights or config.get("model_type") in FAMILIES):
        weights, tied = with_head(weights, tied, embedding=embedding, head=head)
    return Input(folder, config, weights, buffers, tied)


def _vocabulary(
    recipe: Recipe, inputs: Mapping[str, Input]
) -> tuple[Vocabulary | None, RowPlan | None, tuple[Clash, ...]]:
    """The output's vocabulary where the recipe has a policy; else where ids clash, of models that have a tokenizer."""
    refuse = recipe.vocabulary.source == "refuse"
    if refuse and not all((one.folder / "tokenizer.json").exists() for one in inputs.values()):
        return None, None, ()
    found = {model: read_vocabulary(one.folder, _vocabulary_size(one)) for model, one in inputs.items()}
    if refuse:
        return None, None, tuple(clashes(recipe, found))
    output = output_vocabulary(recipe, found)
    return output, row_plan(recipe, found, output), ()


def _vocabulary_size(one: Input) -> int:
    fields = Fields(one.config, one.folder / "config.json", cure="Write the rows of the embedding")
    size: int = fields.integer("vocab_size", low=1, high=VOCABULARY)
    return size


def _check_rows(prepared: Prepared) -> None:
    """Where rows are rewritten, each token that a model may name has one."""
    for one in (one for tensor in prepared.plan.tensors if tensor.rows for one in tensor.reads):
        model, rows = prepared.inputs[one.model], prepared.entry(one).shape[0]
        if rows < model.config["vocab_size"]:
            problem = f"is {model.config['vocab_size']}, but {one.tensor} has {rows} rows"
            cure = "Write the number of rows, or restore the tensor"
            raise InputError(problem, file=model.folder / "config.json", field="vocab_size", cure=cure)


def _check_parameters(recipe: Recipe, plan: MergePlan) -> None:
    """Numbers that the method takes one by one but not together are told before a weight is read.

    Raises:
      InputError: names the recipe, the parameter and the first tensor that it is for.
    """
    method, seen = METHODS[recipe.method], set()

    def merged(parameters: Mapping[str, Any], models: jax.Array, base: jax.Array | None) -> jax.Array:
        keys = {"keys": jax.random.split(jax.random.key(0), len(models))} if method.random else {}
        return method.function(models, base, math_dtype=recipe.math_dtype, **keys, **parameters).tensor

    for tensor in plan.tensors:
        count, numbers = len(tensor.inputs), repr(sorted(tensor.parameters.items()))
        if count == 0 or (count, numbers) in seen:
            continue
        seen.add((count, numbers))
        weights = {"weight": [1.0] * count} if recipe.method == "varm" else {}  # it makes them of values otherwise
        models, base = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((count, *tensor.shape), tensor.shape))
        try:
            jax.eval_shape(partial(merged, {**tensor.parameters, **weights}), models, base if tensor.base else None)
        except InputError as error:
            problem = f"{error.problem} (tensor {tensor.name})"
            raise InputError(problem, file=recipe.file, field=error.field, cure=error.cure) from None
