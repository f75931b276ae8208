"""Classes of tokens: what kind of text each piece of a vocabulary spells, for reports of what gets lost where."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from fusion_jax.align.views import SPECIALS, TokenizerView

CLASSES = ("letters", "digits", "punctuation", "newline", "code", "other scripts", "specials")
CODE_CHARACTERS = frozenset("{}[]<>\\_|~^`")
CODE_PAIRS = re.compile(
    r"==|!=|[-+*/%&]=|->|::|//|/\*|\*/|\*\*|&&|\+\+|\(\)|\)[;:{]|\([\"']|[\"']\)|=[\"']|##|#!|\$\(|;;"
)
INNER_CAPITAL = re.compile("[a-z][A-Z]")
LATIN_SIGNS = (range(0x80, 0x300), range(0x2000, 0x2100))  # of Latin texts: quotes, dashes, superscripts, currencies


def class_of(text: str) -> str:
    """The class of a text, by the first of these rules that holds.

    * newline: white space alone that breaks a line.
    * other scripts: a letter or mark that is not Latin, a digit or sign of other scripts, an emoji, or part of
      a character that the piece does not hold whole (U+FFFD).
    * code: one of ``{}[]<>\\_|~^` ``, a pair of signs that prose hardly has (`==`, `->`, `();`, `//`), a capital inside
      a word (`getName`), or indentation: tabs or several spaces alone.
    * letters: any Latin letter, accented or not.
    * digits: any digit, whatever signs stand beside it.
    * punctuation: everything else, one space alone, too.

    >>> [class_of(t) for t in (" the", "naïve", "12", "3.", ".", " (", "\\n\\n", "();", "my_name", "的", "🙂")]
    ['letters', 'letters', 'digits', 'digits', 'punctuation', 'punctuation', 'newline', 'code', 'code', \
'other scripts', 'other scripts']
    """
    if not text.strip():
        broken = len(text.splitlines()) > 1 or text != text.rstrip("\r\n")
        return "newline" if broken else "code" if len(text) > 1 or text == "\t" else "punctuation"
    kinds = {_kind(character) for character in text if not character.isspace()}
    if "other scripts" in kinds:
        return "other scripts"
    if CODE_CHARACTERS & set(text) or CODE_PAIRS.search(text) or INNER_CAPITAL.search(text):
        return "code"
    return next(name for name in ("letters", "digits", "punctuation") if name in kinds)


def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if character.isascii():
        return {"L": "letters", "N": "digits"}.get(category[0], "punctuation")
    if category[0] == "L" and unicodedata.name(character, "").startswith(("LATIN", "FULLWIDTH LATIN")):
        return "letters"
    plain = category[0] in "PSNC" and any(ord(character) in signs for signs in LATIN_SIGNS)
    return "punctuation" if plain else "other scripts"


def token_classes(view: TokenizerView) -> np.ndarray:
    """uint8[size], the index in `CLASSES` of every id.

    specials are control tokens and ids without a piece; added tokens that are literal text have its class. A view that
    does not know what its pieces spell has them read as strings, with spaces for marks.
    """
    named = {getattr(view, name) for name in SPECIALS}
    out = np.empty(view.size, np.uint8)
    for number, piece in enumerate(view.pieces):
        spelled = piece.replace(view.mark, " ").encode() if view.piece_bytes is None else view.piece_bytes[number]
        special = spelled is None or not piece or (view.piece_bytes is None and number in named)
        found = "specials" if special else class_of((spelled or b"").decode("utf-8", "replace"))
        out[number] = CLASSES.index(found)
    return out
