"""A recipe made ready: its models opened, every tensor planned, and all refused that can be before a weight is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.merge.executor.buffers import BufferCopy, copied_buffers
from fusion_jax.merge.executor.inputs import Input, open_inputs
from fusion_jax.merge.methods import METHODS
from fusion_jax.merge.methods.method import Merged
from fusion_jax.merge.methods.sparsify import tensor_keys
from fusion_jax.merge.recipes.plan import MergePlan, TensorInput, TensorPlan, plan_tensors
from fusion_jax.merge.recipes.reading import read_recipe
from fusion_jax.merge.recipes.recipe import Recipe
from fusion_jax.merge.vocabulary.rows import RowPlan, row_plan
from fusion_jax.merge.vocabulary.tokens import Clash, Vocabulary, clashes, output_vocabulary, read_vocabulary
from fusion_jax.models.families.common import VOCABULARY
from fusion_jax.models.safetensors_io import TensorEntry
from fusion_jax.zoo import model_path

Array = jax.Array


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

    def merged(self, tensor: TensorPlan, models: Array, base: Array | None, **other: Any) -> Merged:
        """The recipe's method on a tensor's stack, with the tensor's numbers but for `other` ones."""
        method, keys = METHODS[self.recipe.method], {}
        if method.random:
            keys["keys"] = tensor_keys(self.recipe.seed, tensor.name, [one.model_index for one in tensor.inputs])
        given = {"math_dtype": self.recipe.math_dtype, **keys, **tensor.parameters, **other}
        return method.function(models, base, **given)


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
    tokens = _tokens(recipe, inputs)
    checkpoints = {model: one.checkpoint for model, one in inputs.items()}
    plan = plan_tensors(recipe, METHODS, checkpoints, None if tokens.rows is None else tokens.rows.size)
    copies = copied_buffers(recipe, {model: one.buffers for model, one in inputs.items()})
    prepared = Prepared(recipe, inputs, plan, tokens.output, tokens.rows, tokens.clashes, copies)
    _check_parameters(prepared)
    if tokens.rows is not None:
        _check_rows(prepared)
    return prepared


class _Tokens(NamedTuple):
    """The output's vocabulary and rows where the recipe has a policy; else ids that clash."""

    output: Vocabulary | None = None
    rows: RowPlan | None = None
    clashes: tuple[Clash, ...] = ()


def _tokens(recipe: Recipe, inputs: Mapping[str, Input]) -> _Tokens:
    """Clashes are looked for where all models have a tokenizer."""
    refuse = recipe.vocabulary.source == "refuse"
    if refuse and not all((one.files / "tokenizer.json").exists() for one in inputs.values()):
        return _Tokens()
    found = {model: read_vocabulary(one.files, _vocabulary_size(one)) for model, one in inputs.items()}
    if refuse:
        return _Tokens(clashes=tuple(clashes(recipe, found)))
    output = output_vocabulary(recipe, found)
    return _Tokens(output, row_plan(recipe, found, output))


def _vocabulary_size(one: Input) -> int:
    fields = replace(one.fields, cure="Write the rows of the embedding")
    size: int = fields.integer("vocab_size", low=1, high=VOCABULARY)
    return size


def _check_rows(prepared: Prepared) -> None:
    """Where rows are rewritten, each token that a model may name has one."""
    for one in (one for tensor in prepared.plan.tensors if tensor.rows for one in tensor.reads):
        model, rows = prepared.inputs[one.model], prepared.entry(one).shape[0]
        if rows < (size := model.fields.values["vocab_size"]):
            problem = f"is {size}, but {one.tensor} has {rows} rows"
            raise model.fields.wrong("vocab_size", problem, "Write the number of rows, or restore the tensor")


def _check_parameters(prepared: Prepared) -> None:
    """Numbers that the method takes one by one but not together are told before a weight is read.

    Raises:
      InputError: names the recipe, the parameter and the first tensor that it is for.
    """
    recipe, seen = prepared.recipe, set()
    for tensor in prepared.plan.tensors:
        count, numbers = len(tensor.inputs), repr(sorted(tensor.parameters.items()))
        if count == 0 or (count, numbers) in seen:
            continue
        seen.add((count, numbers))
        weights: dict[str, Any] = {}
        if recipe.method == "varm":  # it makes them of values otherwise
            weights["weight"] = [1.0] * count
        models = jax.ShapeDtypeStruct((count, *tensor.shape), jnp.float32)
        base = jax.ShapeDtypeStruct(tensor.shape, jnp.float32) if tensor.base else None
        try:
            jax.eval_shape(partial(prepared.merged, tensor, **weights), models, base)
        except InputError as error:
            problem = f"{error.problem} (tensor {tensor.name})"
            raise InputError(problem, file=recipe.file, field=error.field, cure=error.cure) from None
