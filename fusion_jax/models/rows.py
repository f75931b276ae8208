"""Rows of token ids as a user gives them: lists, NumPy, JAX or PyTorch arrays, checked before a model reads them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig

Array = jax.Array


def text_rows(
    config: ModelConfig, tokens: Any, lengths: Any = None, *, field: str = "tokens", count: int = 0
) -> tuple[Array, Array | None]:
    """int[B,T] and int32[B], the real tokens of each row, or None where all are. What is traced is not looked into.

    Args:
      field: what the tokens are called. count: how many rows there have to be; 0: any number.

    Raises:
      InputError: no rows of whole numbers of one length; ids that the model does not have; rows longer than a learned
        table of positions; lengths of another shape or beyond the rows.
    """
    cure = "Give tokenizer(texts, padding=True)['input_ids'], rows of one length"
    rows = _whole_numbers(tokens, field, "rows of token ids int[B,T]", 2, cure)
    if count and len(rows) != count:
        raise InputError(f"has {len(rows)} rows, there are {count} texts", field=field, cure="Give a row for each")
    _check_range(rows, config.vocab_size, field, "Use the model's own tokenizer")
    if lengths is not None:
        cure = "Give the number of real tokens of each row: attention_mask.sum(1)"
        lengths = _whole_numbers(lengths, "lengths", "one number a row, int[B]", 1, cure)
        if lengths.shape[0] != rows.shape[0]:
            raise InputError(f"has {lengths.shape[0]} numbers for {rows.shape[0]} rows", field="lengths", cure=cure)
        _check_range(lengths, rows.shape[1] + 1, "lengths", cure)
        lengths = lengths.astype(jnp.int32)
    if config.positions.kind == "learned" and not isinstance(lengths, jax.core.Tracer):
        longest = rows.shape[1] if lengths is None else int(np.max(lengths, initial=0))
        if longest > config.max_positions:
            problem = f"a row has {longest} tokens, {config.model_type} reads {config.max_positions}"
            raise InputError(problem, field=field, cure="Shorten it")
    return rows, lengths


def type_rows(config: ModelConfig, types: Any, tokens: Array) -> Array | None:
    """int[B,T], of which of a row's texts each token is; None: all of the first.

    Raises:
      InputError: another shape than the tokens'; types that the model does not know.
    """
    if types is None:
        return None
    cure = "Give what the tokenizer gives as token_type_ids" if config.embed.types else "Leave it out"
    found = _whole_numbers(types, "types", "rows int[B,T]", 2, cure)
    if found.shape != tokens.shape:
        raise InputError(f"has the shape {found.shape}, tokens have {tokens.shape}", field="types", cure=cure)
    _check_range(found, config.embed.types, "types", cure)
    return found


def whole(tokens: Array, lengths: Array | None) -> Array:
    """The lengths, or those of rows without padding."""
    return jnp.full(tokens.shape[0], tokens.shape[1]) if lengths is None else lengths


def _whole_numbers(values: Any, field: str, wanted: str, axes: int, cure: str) -> Array:
    if not isinstance(values, Array):
        try:
            values = np.asarray(values)
        except ValueError:  # rows of several lengths
            raise InputError(f"has rows of several lengths, not {wanted}", field=field, cure=cure) from None
    if values.ndim != axes or values.dtype.kind not in "iu":
        problem = f"is {values.dtype.name}{list(values.shape)}, not {wanted}"
        raise InputError(problem, field=field, cure=cure)
    return jnp.asarray(values)


def _check_range(values: Array, end: int, field: str, cure: str) -> None:
    if isinstance(values, jax.core.Tracer) or not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        odd = low if low < 0 else high
        raise InputError(f"holds {odd}, out of the range from 0 to {end - 1}", field=field, cure=cure)
