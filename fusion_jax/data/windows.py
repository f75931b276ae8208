"""Texts cut so that no tokenizer needs more tokens than a limit (FuseLLM/FuseChat spec section 2.1, stage 1).

Pieces are slices of the text at token boundaries of the tokenizer that needs most: nothing is decoded, so the pieces
put together are the text again, whatever the tokenizer does to spaces or to characters it does not know.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax import arguments
from fusion_jax.data.documents import AT_ONCE, Document, text_documents
from fusion_jax.display import brief
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Window(NamedTuple):
    """A piece of a text: which text, where in it (characters), and the piece itself."""

    text_index: int
    start: int
    end: int
    text: str

    def __repr__(self) -> str:
        return brief(self)


def split_windows(
    texts: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase], limit: int
) -> tuple[list[Window], int]:
    """The texts in windows of at most `limit` tokens of each tokenizer, and how many blank texts were left out.

    Raises:
      InputError: a limit below 1; a single character that needs more tokens than the limit; a slow tokenizer.
    """
    if limit < 1:
        raise InputError(f"{limit} leaves no token", field="limit", cure="Give at least 1")
    for tokenizer in tokenizers:
        if not tokenizer.is_fast:
            raise InputError("is slow and gives no offsets", field="tokenizer", cure="Use a folder with tokenizer.json")
    kept = [Window(i, 0, len(text), text) for i, text in enumerate(arguments.texts(texts, "texts")) if text.strip()]
    done: list[Window] = []
    waiting = kept
    while waiting:
        cuts = _cuts([w.text for w in waiting], tokenizers, limit)
        again: list[Window] = []
        for window, places in zip(waiting, cuts, strict=True):
            if not places:
                done.append(window)
            bounds = [0, *places, len(window.text)] if places else []
            if bounds and min(np.diff(bounds)) < 1:
                problem = f"one character needs more than {limit} tokens"
                raise InputError(problem, record=window.text_index + 1, field="text", cure="Raise the limit")
            again += [
                Window(window.text_index, window.start + a, window.start + b, window.text[a:b])
                for a, b in pairwise(bounds)
            ]
        waiting = again
    return sorted(done, key=lambda w: (w.text_index, w.start)), len(texts) - len(kept)


def window_documents(
    texts: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase], limit: int
) -> tuple[list[Document], Counter[str]]:
    """The windows of `split_windows` as documents, and how many texts, windows and blank texts there are."""
    windows, blank = split_windows(texts, tokenizers, limit)
    counts = Counter({"texts": len(texts), "windows": len(windows), "blank texts": blank})
    return text_documents([window.text for window in windows]), counts


def _cuts(texts: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase], limit: int) -> list[list[int]]:
    """Where each text is cut: before every `limit`-th token of the tokenizer that needs most (the first such)."""
    most = np.zeros(len(texts), np.int64)
    out: list[list[int]] = [[] for _ in texts]
    for tokenizer, start in itertools.product(tokenizers, range(0, len(texts), AT_ONCE)):
        some = list(texts[start : start + AT_ONCE])
        encoded = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True)
        for i, offsets in enumerate(encoded["offset_mapping"], start):
            if len(offsets) > max(most[i], limit):
                most[i] = len(offsets)
                out[i] = [offsets[k][0] for k in range(limit, len(offsets), limit)]
    return out
