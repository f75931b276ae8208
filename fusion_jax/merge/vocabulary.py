"""Output vocabularies and aligned embeddings: every model's rows rewritten to one vocabulary before a merge.

Merge specification, section 9. A token's row in a model that lacks it: the recipe's rule for the token, else the base's
row, else the only owner's row, else the average over the owners; zeros where nobody has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from fusion_jax.display import brief
from fusion_jax.errors import InputError, first_line
from fusion_jax.files import regular_file
from fusion_jax.json_files import CURE
from fusion_jax.merge.recipe import Recipe, TokenRule
from fusion_jax.models.tokenizers import broken_tokenizer

Array = jax.Array
NONE = -1


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens and their ids, in order of the ids.

    added: those that are added tokens, special ones among them. rows: of the embedding, which may have more than ids.
    """

    ids: Mapping[str, int]
    added: frozenset[str] = frozenset()
    rows: int = 0

    def __repr__(self) -> str:
        return brief(self)

    @property
    def size(self) -> int:
        """Rows that its ids need."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True, eq=False)
class RowPlan:
    """From the rows of the models' embeddings to those of the output.

    own: int32[K,V], the model's own row of each output token, or -1: it takes the default row. default: int32[V,K], the
      rows of the models that the default row averages over, -1 for none; all -1: zeros.
    filler: bool[V], rows that are no token (padding, gaps between ids): the mean of the model's real rows.
    """

    own: np.ndarray
    default: np.ndarray
    filler: np.ndarray

    @property
    def size(self) -> int:
        return len(self.filler)

    def of(self, models: Sequence[int]) -> RowPlan:
        """The plan for some of the models: rows that only others have are zeros."""
        return RowPlan(self.own[models], self.default[:, models], self.filler)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a model folder, from its tokenizer.json.

    Args:
      size: rows of the model's embedding (config.json's vocab_size); tokens with an id beyond do not exist.

    Raises:
      InputError: no tokenizer.json, or a broken one.
    """
    tokenizer = open_tokenizer(folder)
    ids = {token: i for token, i in tokenizer.get_vocab(with_added_tokens=True).items() if i < size}
    added = {str(token.content) for token in tokenizer.get_added_tokens_decoder().values()}
    return Vocabulary(dict(sorted(ids.items(), key=lambda item: item[1])), frozenset(added & ids.keys()), size)


def open_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder.

    Raises:
      InputError: no tokenizer.json, or a broken one.
    """
    file = folder / "tokenizer.json"
    if not os.path.lexists(file):
        cure = "Save the model's tokenizer as a fast one (save_pretrained of transformers writes tokenizer.json)"
        raise InputError("holds no tokenizer.json, which a vocabulary policy reads", file=folder, cure=cure)
    regular_file(file)
    try:
        return Tokenizer.from_file(str(file))
    except BaseException as error:
        if not broken_tokenizer(error):
            raise
        raise InputError(f"is no tokenizer ({first_line(error)})", file=file, cure=CURE) from None


def output_vocabulary(recipe: Recipe, vocabularies: Mapping[str, Vocabulary]) -> Vocabulary:
    """The output's tokens: those of the pivot with its ids; for a union then those of the others, added tokens last.

    The pivot is the base, else the first model, else the model that the policy names.

    Args:
      vocabularies: of each of `Recipe.inputs`.
    """
    pivot = pivot_model(recipe)
    first = vocabularies[pivot]
    if recipe.vocabulary.source != "union":
        return first
    ids, added = dict(first.ids), set(first.added)
    others = [vocabularies[model] for model in recipe.inputs if model != pivot]
    late = frozenset(token for one in others for token in one.added)
    further = [token for one in others for token in one.ids if token not in late]
    further += [token for one in others for token in one.ids if token in one.added]
    for token in dict.fromkeys(further):
        if token not in ids:
            ids[token] = first.size + len(ids) - len(first.ids)
            added |= {token} & late
    return Vocabulary(ids, frozenset(added))


def pivot_model(recipe: Recipe) -> str:
    """The model whose tokenizer the output has, or extends."""
    if recipe.vocabulary.model is not None:
        return recipe.vocabulary.model
    return recipe.base if recipe.base is not None else recipe.models[0]


def row_plan(recipe: Recipe, vocabularies: Mapping[str, Vocabulary], output: Vocabulary) -> RowPlan:
    """Which row each token of the output has in each of `Recipe.inputs` (the order of the models everywhere here).

    Raises:
      InputError: a rule for a token that is not of the output, or that takes a row which its model lacks.
    """
    return align_rows(
        [vocabularies[model] for model in recipe.inputs], output,
        base=None if recipe.base is None else recipe.inputs.index(recipe.base),
        rules=recipe.vocabulary.tokens, models=recipe.inputs, pad_to_multiple_of=recipe.vocabulary.pad_to_multiple_of,
        file=recipe.file,
    )  # fmt: skip


def align_rows(
    vocabularies: Sequence[Vocabulary], output: Vocabulary, *, base: int | None, rules: Mapping[str, TokenRule],
    models: Sequence[str], pad_to_multiple_of: int | None = None, file: str | None = None,
) -> RowPlan:  # fmt: skip
    """`row_plan` without a recipe: base is the base's place among the K vocabularies, models are their names."""
    step = pad_to_multiple_of or 1
    total = -(-output.size // step) * step
    has = np.full((len(vocabularies), total), NONE, np.int32)
    tokens, ids = list(output.ids), np.fromiter(output.ids.values(), np.int64, len(output.ids))
    for j, one in enumerate(vocabularies):
        has[j, ids] = [one.ids.get(token, NONE) for token in tokens]
    default = has.T.copy()
    if base is not None:
        owned = has[base] != NONE
        default[owned] = NONE
        default[owned, base] = has[base, owned]
    own = has.copy()
    for token, rule in rules.items():
        if token not in output.ids:
            cure = "Correct it, or set the tokenizer's source to union or to a model that has it"
            raise InputError("is not a token of the output", file=file, field=f"tokenizer.tokens.{token}", cure=cure)
        row = output.ids[token]
        default[row] = NONE
        if rule.model is not None:
            j = models.index(rule.model)
            default[row, j] = _row(rule, token, vocabularies[j], file)
        if rule.force:
            own[:, row] = NONE
    filler = np.ones(total, bool)
    filler[ids] = False
    return RowPlan(own, default, filler)


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


def remap(plan: RowPlan, embeddings: Sequence[Array]) -> list[Array]:
    """Each model's rows in the order of the output's vocabulary.

    Args:
      embeddings: of each of the K models, float[V_k,...] with the same trailing dimensions; rows beyond the model's
        vocabulary are not looked at. An embedding, a head, or a head's bias.

    Returns:
      K arrays float[V,...] of the common dtype; averages are taken in float32.
    """
    dtype = jnp.result_type(*embeddings)
    wanted = np.flatnonzero((plan.own == NONE).any(axis=0) & ~plan.filler)
    rows = _default_rows(plan.default[wanted], embeddings).astype(dtype)
    real, fill = np.flatnonzero(~plan.filler), np.flatnonzero(plan.filler)
    out = []
    for own, embedding in zip(plan.own, embeddings):
        new = embedding[np.maximum(own, 0)].astype(dtype)
        lacking = own[wanted] == NONE
        new = new.at[wanted[lacking]].set(rows[lacking])
        if len(fill):
            new = new.at[fill].set(new[real].astype(jnp.float32).mean(axis=0).astype(dtype))
        out.append(new)
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


class Clash(NamedTuple):
    """Ids that mean different tokens in a model and in the pivot: `differing` of `shared`, and the first of them."""

    model: str
    differing: int
    shared: int
    first: tuple[int, str, str]


def clashes(recipe: Recipe, vocabularies: Mapping[str, Vocabulary]) -> list[Clash]:
    """Where rows of one number stand for different tokens: for a merge without a vocabulary policy.

    A few are common (reserved tokens that a model renamed); a report should show them.

    Raises:
      InputError: most ids of a model mean other tokens than the pivot's: their average would mean nothing.
    """
    pivot = pivot_model(recipe)
    tokens = {i: token for token, i in vocabularies[pivot].ids.items()}
    found = []
    for model in recipe.inputs:
        pairs = [(i, tokens[i], token) for token, i in vocabularies[model].ids.items() if i in tokens]
        differing = [pair for pair in pairs if pair[1] != pair[2]]
        if 2 * len(differing) > len(pairs):
            i, one, other = differing[0]
            problem = (
                f"{len(differing)} of {len(pairs)} ids mean other tokens than in {pivot} ({i}: '{other}', '{one}')"
            )
            cure = "Set tokenizer_source to base, union or a model's path, so that rows are aligned by token"
            raise InputError(problem, file=model, field="tokenizer", cure=cure)
        if differing:
            found.append(Clash(model, len(differing), len(pairs), differing[0]))
    return found
