"""Aligned embeddings: every model's rows rewritten to one vocabulary before a merge (merge specification, section 9).

A token's row in a model that lacks it: the recipe's rule for the token, else the base's row, else the only owner's row,
else the average over the owners; zeros where nobody has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.merge.recipes.recipe import Recipe, TokenRule
from fusion_jax.merge.vocabulary.tokens import Vocabulary

Array = jax.Array
NONE = -1


@dataclass(frozen=True, eq=False)
class RowPlan:
    """From the rows of the models' embeddings to those of the output.

    models: the K models' names, in the order of the axes.
    own: int32[K,V], the model's own row of each output token, or -1: it takes the default row.
    default: int32[V,K], the rows of the models that the default row averages over, -1 for none; all -1: zeros.
    filler: bool[V], rows that are no token (padding, gaps between ids): the mean of the model's real rows.
    """

    models: tuple[str, ...]
    own: np.ndarray
    default: np.ndarray
    filler: np.ndarray

    @property
    def size(self) -> int:
        return len(self.filler)

    def of(self, models: Iterable[str]) -> RowPlan:
        """The plan for some of the models: rows that only others have are zeros."""
        chosen = tuple(models)
        places = [self.models.index(model) for model in chosen]
        return RowPlan(chosen, self.own[places], self.default[:, places], self.filler)


def row_plan(recipe: Recipe, vocabularies: Mapping[str, Vocabulary], output: Vocabulary) -> RowPlan:
    """Which row each token of the output has in each of `Recipe.inputs`.

    Raises:
      InputError: a rule for a token that is not of the output, or that takes a row which its model lacks.
    """
    models, policy = recipe.inputs, recipe.vocabulary
    places = {model: j for j, model in enumerate(models)}
    step = policy.pad_to_multiple_of or 1
    total = -(-output.size // step) * step
    tokens, ids = list(output.ids), np.fromiter(output.ids.values(), np.int64, len(output.ids))
    has = np.full((len(models), total), NONE, np.int32)
    for model, place in places.items():
        has[place, ids] = [vocabularies[model].ids.get(token, NONE) for token in tokens]
    default = has.T.copy()
    if recipe.base is not None:
        base = places[recipe.base]
        owned = has[base] != NONE
        default[owned] = NONE
        default[owned, base] = has[base, owned]
    own = has.copy()
    for token, rule in policy.tokens.items():
        if token not in output.ids:
            field = f"tokenizer.tokens.{token}"
            cure = "Correct it, or set the tokenizer's source to union or to a model that has it"
            raise InputError("is not a token of the output", file=recipe.file, field=field, cure=cure)
        row = output.ids[token]
        default[row] = NONE
        if rule.model is not None:
            default[row, places[rule.model]] = _row(rule, token, vocabularies[rule.model], recipe.file)
        if rule.force:
            own[:, row] = NONE
    filler = np.ones(total, bool)
    filler[ids] = False
    return RowPlan(models, own, default, filler)


def _row(rule: TokenRule, token: str, vocabulary: Vocabulary, file: str | None) -> int:
    place = f"tokenizer.tokens.{token}.source"
    if isinstance(rule.token, int):
        rows = max(vocabulary.rows, vocabulary.size)
        if rule.token >= rows:
            problem = f"{rule.model} has no row {rule.token}"
            raise InputError(problem, file=file, field=place, cure=f"Give a token_id less than {rows}")
        return rule.token
    assert rule.token is not None  # a rule that names a model names a token
    if rule.token not in vocabulary.ids:
        cure = "Name another model, or a token that it has"
        raise InputError(f"{rule.model} has no token '{rule.token}'", file=file, field=place, cure=cure)
    return vocabulary.ids[rule.token]


def remap(plan: RowPlan, embeddings: Mapping[str, Array]) -> dict[str, Array]:
    """Each model's rows in the order of the output's vocabulary.

    Args:
      embeddings: of each model of the plan, float[V_k,...] with the same trailing dimensions; rows beyond the model's
        vocabulary are not looked at. An embedding, a head, or a head's bias.

    Returns:
      By model float[V,...] of the common dtype; averages are taken in float32.
    """
    given = [embeddings[model] for model in plan.models]
    dtype = jnp.result_type(*given)
    wanted = np.flatnonzero((plan.own == NONE).any(axis=0) & ~plan.filler)
    rows = _default_rows(plan.default[wanted], given).astype(dtype)
    real, fill = np.flatnonzero(~plan.filler), np.flatnonzero(plan.filler)
    out = {}
    for model, own, embedding in zip(plan.models, plan.own, given, strict=True):
        new = embedding[np.maximum(own, 0)].astype(dtype)
        lacking = own[wanted] == NONE
        new = new.at[wanted[lacking]].set(rows[lacking])
        if len(fill):
            new = new.at[fill].set(new[real].astype(jnp.float32).mean(axis=0).astype(dtype))
        out[model] = new
    return out


def _default_rows(sources: np.ndarray, embeddings: Sequence[Array]) -> Array:
    """float32[N,...]: for int[N,K] rows of the K models (-1: none), their mean; zeros where there is none."""
    trailing = embeddings[0].shape[1:]
    total = jnp.zeros((len(sources), *trailing), jnp.float32)
    for column, embedding in zip(sources.T, embeddings):
        there = np.flatnonzero(column != NONE)
        total = total.at[there].add(embedding[column[there]].astype(jnp.float32))
    count = np.maximum((sources != NONE).sum(axis=1), 1).reshape(-1, *[1] * len(trailing))
    return total / count.astype(np.float32)
