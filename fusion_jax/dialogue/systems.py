"""A dialogue system of two models, a generator and a retriever, as one model that is trained and as two folders.

Sections 2.3, 3.1 and 5 of MK-TOD's specification.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from fusion_jax.dialogue.meta import TAGS
from fusion_jax.dialogue.sets import SETS, DataSet
from fusion_jax.errors import InputError
from fusion_jax.models.config import Head
from fusion_jax.models.decoder import Params
from fusion_jax.models.folder import Model
from fusion_jax.models.parameters import ParamSpec, parameter_specs

COMPANION = "companion"


@dataclass(frozen=True)
class System:
    """generator: an encoder-decoder; retriever: an encoder with a projection (`Head.projected`)."""

    generator: Model
    retriever: Model

    @property
    def joined(self) -> Model:
        """The generator with the retriever as its companion, as it is trained."""
        config = replace(self.generator.config, companion=self.retriever.config)
        params = {**self.generator.params, COMPANION: self.retriever.params}
        return replace(self.generator, config=config, params=params, hf_config={}, folder="")

    def parted(self, params: Params) -> System:
        """The system with these weights of `joined`."""
        own = {name: part for name, part in params.items() if name != COMPANION}
        generator = replace(self.generator, params=own, folder="")
        return System(generator, replace(self.retriever, params=params[COMPANION], folder=""))


def as_generator(model: Model, dataset: DataSet, *, tags: bool = True) -> Model:
    """An encoder-decoder that knows the marks of a data set and, with `tags`, those of entities.

    Raises:
      InputError: a model without a decoder behind an encoder, a tokenizer or an end token.
    """
    if not (model.config.encoder and model.config.decoder):
        problem, cure = f"{model.config.model_type} is no encoder-decoder", "Give a T5 folder"
        raise InputError(problem, file=model.folder or None, field="generator", cure=cure)
    if model.tokenizer is None or model.tokenizer.eos_token_id is None:
        raise InputError("has no end token", file=model.folder or None, field="generator", cure="Add a tokenizer")
    return with_tokens(model, (*SETS[dataset].marks, *(TAGS if tags else ())))


def as_retriever(model: Model, dataset: DataSet, *, width: int = 128, seed: int = 0) -> Model:
    """An encoder that knows the marks of a data set, with a projection to `width` numbers, which is random where it has
    none yet (a BERT with its pooler).

    Raises:
      InputError: a model with a decoder, or without a tokenizer.
    """
    config = model.config
    if config.decoder or config.head.labels:
        problem, cure = f"{config.model_type} is no encoder alone", "Give a BERT folder"
        raise InputError(problem, file=model.folder or None, field="retriever", cure=cure)
    if model.tokenizer is None:
        raise InputError("has no tokenizer", file=model.folder or None, field="retriever", cure="Add its files")
    if not config.head.projected:
        config = replace(config, head=Head(projected=width))
        specs: dict[str, ParamSpec] = parameter_specs(config)["projection"]
        keys = jax.random.split(jax.random.key(seed), len(specs))
        new = {name: spec.init(key, spec.shape, jnp.float32) for key, (name, spec) in zip(keys, specs.items())}
        kept = {name: part for name, part in model.params.items() if name != "pooler"}
        model = replace(model, config=config, params=kept | {"projection": new})
    return with_tokens(model, SETS[dataset].marks)


def with_tokens(model: Model, tokens: Sequence[str]) -> Model:
    """A model that has these tokens; the embedding of a new one is the mean of those of the words in its name.

    Rows that the embedding has beyond the tokenizer's entries are used first. The given model stays as it is.
    """
    from transformers import AddedToken

    assert model.tokenizer is not None
    known = model.tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if not new:
        return model
    tokenizer = copy.deepcopy(model.tokenizer)
    plain = [tokenizer(" ".join(_words(token)), add_special_tokens=False)["input_ids"] for token in new]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in new], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(new)
    rows = max(model.config.vocab_size, len(tokenizer))
    params = dict(model.params)
    params["embed"] = {**params["embed"], "embedding": _with_rows(params["embed"]["embedding"], ids, plain, rows)}
    if "head" in params:
        params["head"] = {**params["head"], "kernel": _with_rows(params["head"]["kernel"], ids, plain, rows)}
    config = replace(model.config, vocab_size=rows)
    return replace(model, config=config, params=params, tokenizer=tokenizer, folder="")


def _words(token: str) -> list[str]:
    return token.strip("<>").replace("-", " ").replace("_", " ").split()


def _with_rows(table: jax.Array, ids: Sequence[int], plain: Sequence[Sequence[int]], rows: int) -> jax.Array:
    """A table [V,D] of `rows` rows in which each of `ids` has the mean of its words' rows."""
    wide = jnp.pad(table, ((0, rows - len(table)), (0, 0)))
    mean = table.astype(jnp.float32).mean(0)
    means = [table[jnp.asarray(some)].astype(jnp.float32).mean(0) if some else mean for some in plain]
    return wide.at[jnp.asarray(ids)].set(jnp.stack(means).astype(table.dtype))
