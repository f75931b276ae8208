"""Texts and tokens of dialogues: when a value occurs in a text, how an entity is written, where tokens are cut.

Sections 2.3 and 3.3 of MK-TOD's specification (arXiv 2310.08877).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from fusion_jax.dialogue.sets import DATABASE, MISSING, SEPARATOR
from fusion_jax.errors import InputError

Entity = Mapping[str, str]
"""Attribute -> value, in order."""
_SPACED = str.maketrans({mark: f" {mark} " for mark in string.punctuation})


def spaced(text: str) -> str:
    """Lower case, a space on both sides of every ASCII punctuation character, single spaces.

    >>> spaced("It's 01223-111.")
    "it ' s 01223 - 111 ."
    """
    return " ".join(text.lower().translate(_SPACED).split())


def normalised(text: str) -> str:
    """`spaced`, with spaces for underscores.

    >>> normalised("<user> the River_Inn")
    '< user > the river inn'
    """
    return spaced(text.replace("_", " "))


def occurs(value: str, text: str) -> bool:
    """Whether a value stands in a text as whole words; an empty value and `dontknow` never do.

    Args:
      text: as `normalised` gives it, so that many values can be looked up in it.

    >>> occurs("river_inn", normalised("Book the River Inn!")), occurs("inn", normalised("dinner"))
    (True, False)
    """
    words = normalised(value)
    return bool(words) and words != MISSING and f" {words} " in f" {text} "


def entity_text(entity: Entity, *, keep_missing: bool = True) -> str:
    """ "<database>" and, for each attribute, its key, its value and "<sep_attributes>", in lower case.

    Args:
      keep_missing: whether attributes with the value `dontknow` are written.

    >>> entity_text({"name": "River Inn", "area": "dontknow"}, keep_missing=False)
    '<database> name river inn <sep_attributes>'
    """
    parts = [DATABASE]
    for key, value in entity.items():
        if keep_missing or value.lower() != MISSING:
            parts.append(f"{key} {value} {SEPARATOR}".lower())
    return " ".join(parts)


def newest(ids: Sequence[int], most: int, *, keep_first: bool = False) -> list[int]:
    """The last `most` tokens of a context.

    Args:
      keep_first: the first token stays, and the oldest ones behind it go: the retriever reads its [CLS].

    >>> newest([101, 1, 2, 3, 102], 3), newest([101, 1, 2, 3, 102], 3, keep_first=True)
    ([2, 3, 102], [101, 3, 102])
    """
    _check_most(most)
    if len(ids) <= most:
        return list(ids)
    return [ids[0], *ids[len(ids) - most + 1 :]] if keep_first else list(ids[-most:])


def beginning(ids: Sequence[int], most: int) -> list[int]:
    """The first `most` tokens of an entity, behind whose tags and name the rest is cut."""
    _check_most(most)
    return list(ids[:most])


def response_ids(ids: Sequence[int], most: int, end: int) -> list[int]:
    """A response's tokens with one end token, together at most `most`; where it is longer, its beginning without one.

    Args:
      ids: without an end token.

    >>> response_ids([7, 8], 3, 1), response_ids([7, 8, 9], 3, 1), response_ids([7, 8, 9, 9], 3, 1)
    ([7, 8, 1], [7, 8, 9], [7, 8, 9])
    """
    _check_most(most)
    return [*ids, end] if len(ids) < most else list(ids[:most])


def padded(rows: Sequence[Sequence[int]], length: int, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32[rows,length], `pad` behind each row, and the mask bool[rows,length] of what is no padding.

    Raises:
      InputError: a row is longer.
    """
    ids, mask = np.full((len(rows), length), pad, np.int32), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        if len(row) > length:
            problem = f"has {len(row)} tokens, {length} at most"
            raise InputError(problem, record=number + 1, field="rows", cure="Cut it first")
        ids[number, : len(row)], mask[number, : len(row)] = row, True
    return ids, mask


def _check_most(most: int) -> None:
    if most < 1:
        raise InputError(f"{most} is out of range", field="most", cure="Give 1 or more")
