"""Letters out of replies: as the published code reads them, and as a stricter reader would."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from fusion_jax.evals.socialbench.records import LETTERS

Parser = Callable[[str], tuple[str, ...]]
ParserName = Literal["official", "strict"]

NEAR = "ABCD"  # capitals beside which a letter is read all the same

_JOINED = r"(?:[ \t]{0,2}(?:[,，、;；/&+]|\band\b|\bor\b|[和与及或])[ \t]{0,2}|[ \t]{1,2})"
_CUE = re.compile(
    r"(?i:answer|选择|答案)(?:(?i:is|are|be|would|should|must)\b|应该|应|为|是|[\s:：=*_\"'“”‘’(（\[【])*"
    rf"(?P<letters>[A-H]+(?:{_JOINED}[A-H]+)*)(?![A-Za-z0-9_])"
)
_RUN = re.compile(r"(?<![A-Za-z0-9_])[A-H]+(?![A-Za-z0-9_])")
_ARTICLE = re.compile(r"(?<![A-Za-z0-9_])A(?=[ \t]+(?!and\b|or\b)[a-z])")


def official(text: str) -> tuple[str, ...]:
    """Letters A to H in the order in which they first appear, as the published regular expression finds them.

    A letter counts where nothing that makes words stands beside it: to its left it may have a capital of A to D or a
    Chinese character that no letter before it has used up, to its right a capital of A to D or a Chinese character,
    which uses up all Chinese characters that follow.

    >>> official("The answer is C."), official("选择B和D"), official("EFG"), official("A good one is B")
    (('C',), ('B',), (), ('A', 'B'))
    """
    found: dict[str, None] = {}
    used = 0
    for place, letter in enumerate(text):
        if place < used or letter not in LETTERS:
            continue
        before, after = text[place - 1] if place else "", text[place + 1] if place + 1 < len(text) else ""
        left = not _is_word(before) or before in NEAR or (_is_chinese(before) and place - 1 >= used)
        right = not _is_word(after) or after in NEAR or _is_chinese(after)
        if left and right:
            found[letter] = None
            used = place + 1
            while after and _is_chinese(after) and used < len(text) and _is_chinese(text[used]):
                used += 1
    return tuple(found)


def _is_word(c: str) -> bool:
    """Whether a character makes words, in any script; nothing does not."""
    return bool(c) and (c.isalnum() or c == "_")


def _is_chinese(c: str) -> bool:
    return "\u4e00" <= c <= "\u9fa5"


def strict(text: str) -> tuple[str, ...]:
    """Letters behind a cue (answer, 选择, 答案), else all that stand alone, in runs that rise (ABD) or between Chinese
    characters; an article A before a word in small letters is none.

    Not for numbers to be compared with published ones.

    >>> strict("The answer is C, not A"), strict("选择B和D"), strict("A good one is B"), strict("BAD")
    (('C',), ('B', 'D'), ('B',), ())
    """
    for cue in _CUE.finditer(text):
        if not _ARTICLE.match(text, cue.start("letters")):
            return tuple(dict.fromkeys(c for run in _RUN.findall(cue["letters"]) for c in run))
    runs = [run for run in _RUN.findall(_ARTICLE.sub(" ", text)) if list(run) == sorted(set(run))]
    return tuple(dict.fromkeys(c for run in runs for c in run))


PARSERS: dict[ParserName, Parser] = {"official": official, "strict": strict}
