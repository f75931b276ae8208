"""Where words begin, for any tokenizer: the boundaries at which models with different vocabularies hand a text on.

White space belongs to the word behind it, so that tokenizers which write " word", "▁word" or "word" agree.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PROBE = "one two three four"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
SPACES = ("▁", "Ġ", "Ċ", "ĉ", " ", "\t", "\n", "<0x20>", "<0x0A>", "<0x09>", "<0x0D>")


class Encoded(NamedTuple):
    """Tokens of a text, and for each the end of its characters."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Words:
    """A tokenizer as Cool-Fusion asks it: no special tokens are added, none is written, nothing is cleaned up."""

    tokenizer: PreTrainedTokenizerBase

    @functools.cached_property
    def backend(self) -> Tokenizer:
        """The fast tokenizer, without what follows the splitting into tokens, which could move their offsets."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        made.post_processor = None
        made.no_truncation()
        made.no_padding()
        return made

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text's tokens."""
        found = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [Encoded(tuple(one.ids), tuple(end for _, end in one.offsets)) for one in found]

    @functools.cached_property
    def adds_space(self) -> bool:
        """Whether a space is put before every text, also where one is there, as Llama 2's tokenizer does."""
        before, both, alone, spaced = (one.ids for one in self.encode(["x", "x one", "one", " one"]))
        return both[len(before) :] == alone != spaced

    def encode_windows(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of the ends of longer texts, which begin with a space each."""
        if not self.adds_space:
            return self.encode(texts)
        out = []
        for ids, ends in self.encode([text[1:] for text in texts]):
            alone = ends[:2] == ends[:1] * 2  # the space that was put there is a token, with the place of the next one
            out.append(Encoded(ids, tuple(end + 1 - (alone and not place) for place, end in enumerate(ends))))
        return out

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Each list of tokens as text."""
        return self.backend.decode_batch([list(one) for one in ids], skip_special_tokens=True)

    def keeps(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text comes back from its tokens as it was: a normalizer or unknown characters change it."""
        found = self.decode([one.ids for one in self.encode(texts)])
        return [old == new for old, new in zip(texts, found, strict=True)]

    def starts(self, text: str) -> list[int]:
        """Places behind 0 where a word begins, its white space included, in ascending order."""
        found = set()
        for place in self._pieces(text):
            while place > 0 and text[place - 1].isspace():
                place -= 1
            found.add(place)
        return sorted(found - {0})

    @functools.cached_property
    def splits(self) -> bool:
        """Whether a pre-tokenizer cuts texts into words. That of Gemma is there and cuts at spaces, of which its
        normalizer has left none."""
        return self.backend.pre_tokenizer is not None and len(list(self._cut(PROBE))) > 1

    def _cut(self, text: str) -> Iterable[int]:
        """Where a piece of the pre-tokenizer begins."""
        from tokenizers import PreTokenizedString

        normalizer, splitter = self.backend.normalizer, self.backend.pre_tokenizer
        if normalizer is None:
            return (start for _, (start, _) in splitter.pre_tokenize_str(text))
        pieces = PreTokenizedString(text)
        pieces.normalize(normalizer.normalize)
        splitter.pre_tokenize(pieces)
        return (start for _, (start, _), _ in pieces.get_splits("original", "char"))

    def _pieces(self, text: str) -> Iterable[int]:
        """Where a piece begins that no token crosses; without a pre-tokenizer, where a token of a space begins; without
        such tokens, where white space ends."""
        if self.splits:
            return self._cut(text)
        found = self.backend.encode(text, add_special_tokens=False)
        spaced = [start for token, (start, _) in zip(found.tokens, found.offsets) if token.startswith(SPACES)]
        return spaced or (match.start() for match in re.finditer(r"\S+", text))

    def continues(self, size: int) -> np.ndarray:
        """bool[V], tokens of a vocabulary of `size` that begin with a letter, and so no word behind another letter."""
        count = min(size, self.backend.get_vocab_size())
        (anchor,) = self.encode(["a"])
        base = self.decode([anchor.ids])[0]
        behind = [text[len(base) :] for text in self.decode([(*anchor.ids, number) for number in range(count)])]
        found = np.zeros(size, bool)
        found[:count] = [text[:1].isalpha() for text in behind]
        return found


def common(starts: Sequence[Sequence[int]]) -> list[int]:
    """The places that all lists have, in ascending order."""
    return sorted(set(starts[0]).intersection(*starts[1:]))


def finished(text: str) -> str:
    """The text without half a character at its end."""
    return text.rstrip(UNFINISHED)
