"""Texts that end an answer. They are looked for in what the tokens say, since a tokenizer may join them with what
stands beside them, or spell them in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_jax.arguments import texts
from fusion_jax.errors import InputError
from fusion_jax.sampling.sizes import BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARGIN = 8  # tokens before those that are looked at, whose first may say something else where nothing is before it


def stop_strings(given: Sequence[str], field: str = "stop") -> tuple[str, ...]:
    """Texts that can end an answer; raises InputError for an empty one, and for a single text in place of the list."""
    found = tuple(texts(given, field))
    if "" in found:
        raise InputError("holds an empty text, which is everywhere", field=field, cure="Leave it out")
    return found


def until(text: str, strings: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of these strings, and whether one was there.

    >>> until("yes. Q: next", ["\\n", "Q:"])
    ('yes. ', True)
    """
    found = [place for place in map(text.find, strings) if place >= 0]
    return (text[: min(found)], True) if found else (text, False)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens that are no text, by what they are: those with a name, and those that are marked as special."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return named | {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


@dataclass(frozen=True)
class Stops:
    """What ends the answers of a model with this tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """Those that are special tokens, which answers are decoded without."""
        special = special_tokens(self.tokenizer)
        return tuple(special[one] for one in self.strings if one in special)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the last tokens of an answer say one of the strings: for `ended` of `generate_ids`, which asks once a
        block."""
        longest = max((len(one.encode()) for one in self.strings), default=0)
        last = self.tokenizer.decode(ids[-(longest + BLOCK + _MARGIN) :], skip_special_tokens=True)
        return until(last, self.strings)[1] and self.said(ids)[1]

    def said(self, ids: Sequence[int]) -> tuple[str, bool]:
        """An answer as a text, cut before the first of the strings, and whether one was there."""
        return until(self.tokenizer.decode(ids, skip_special_tokens=True), self.strings)
