"""The tokens of the models and of the output, and ids that clash (merge specification, section 9)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from fusion_jax.display import brief
from fusion_jax.errors import InputError, first_line
from fusion_jax.files import regular_file
from fusion_jax.json_files import CURE
from fusion_jax.merge.recipes.recipe import Recipe
from fusion_jax.models.tokenizers import broken_tokenizer


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


class Difference(NamedTuple):
    """An id that means one token in the pivot and another one in a model."""

    id: int
    pivot: str
    other: str


class Clash(NamedTuple):
    """Ids that mean different tokens in a model and in the pivot: `differing` of `shared`, and the first of them."""

    model: str
    differing: int
    shared: int
    first: Difference


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
        pairs = [Difference(i, tokens[i], token) for token, i in vocabularies[model].ids.items() if i in tokens]
        differing = [pair for pair in pairs if pair.pivot != pair.other]
        if 2 * len(differing) > len(pairs):
            first = differing[0]
            example = f"{first.id}: '{first.other}', '{first.pivot}'"
            problem = f"{len(differing)} of {len(pairs)} ids mean other tokens than in {pivot} ({example})"
            cure = "Set tokenizer_source to base, union or a model's path, so that rows are aligned by token"
            raise InputError(problem, file=model, field="tokenizer", cure=cure)
        if differing:
            found.append(Clash(model, len(differing), len(pairs), differing[0]))
    return found
