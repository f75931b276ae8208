"""Texts as the scorers read them: without whitespace, targets in simplified script, cut into characters or words."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from fusion_jax.errors import InputError

Tokens = tuple[str, ...]
Segment = Literal["given", "jieba", "characters"]
PLACEHOLDER = "[缺失成分]"  # stands in references for a part that cannot be guessed, and is one token


def characters(text: str) -> Tokens:
    """The characters of a text that are no whitespace; `PLACEHOLDER` is one of them.

    >>> characters("我 有3块\\n")
    ('我', '有', '3', '块')
    """
    whole = "".join(text.split())
    if PLACEHOLDER not in whole:
        return tuple(whole)
    first, *others = whole.split(PLACEHOLDER)
    return (*first, *(token for part in others for token in (PLACEHOLDER, *part)))


def simplified(text: str) -> str:
    """A text in simplified script, by OpenCC's phrases (t2s).

    >>> simplified("圖書館")
    '图书馆'
    """
    return _converter().convert(text)


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


def segment(texts: Sequence[str], how: Segment) -> list[Tokens]:
    """Texts as words.

    Args:
      how: given: words stand apart by spaces. jieba: spaces are removed and jieba looks for words. characters: spaces
        are removed and each character is a word.

    Raises:
      InputError: jieba is asked for and not installed.

    >>> segment(["他 去 学校 。"], "given")
    [('他', '去', '学校', '。')]
    """
    if how == "given":
        return [tuple(text.split()) for text in texts]
    if how == "characters":
        return [characters(text) for text in texts]
    cut = _jieba()
    return [tuple(cut("".join(text.split()))) for text in texts]


@cache
def _jieba() -> Callable[[str], list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own code, which is older than Python's rules for escapes
            import jieba
    except ImportError:
        cure = "Install it with: pip install jieba"
        raise InputError("jieba is not installed", field="segment", cure=cure) from None
    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:  # else it reads a file of a known name that anybody may have written
        words.tmp_dir = folder
        words.initialize()
    return words.lcut
