"""Texts cut to what a number of tokens can hold before they are tokenised, so that 100 MB cost no more than 1 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 64  # tokens beside those that are kept: a cut changes the tokens next to it
LONGEST = 512  # characters that a piece is believed to hold at most
NEVER = 32  # characters a token up to which no text is cut


class Clip:
    """Cuts the middle out of texts too long for `tokens` tokens, of which the start or the end is going to be kept.

    Each side keeps tokens + MARGIN times the tokenizer's longest piece of characters. So both sides alone have more
    than `tokens` tokens, the whole is too long where the original is, and its first and last `tokens` tokens are those
    of the original, as far as a token depends on no character further away than the margin (the words of byte-level
    BPE do not; one unbroken word of megabytes might). Not so for tokenizers that make one token of any number of
    characters (runs of unknown characters, or white space that is dropped).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._side = 0

    def __call__(self, text: str) -> str:
        """The text, or its two ends."""
        if len(text) <= NEVER * self._tokens or len(text) <= 2 * self.side:
            return text
        return text[: self.side] + text[-self.side :]

    @property
    def side(self) -> int:
        """Characters that are kept at each end of a text."""
        if not self._side:
            longest = max(map(len, self._tokenizer.get_vocab()), default=1)
            self._side = (self._tokens + MARGIN) * min(longest, LONGEST)
        return self._side

    def too_long(self, text: str) -> bool:
        """Whether the text surely has more than `tokens` tokens (without tokenising it)."""
        return len(text) > NEVER * self._tokens and len(text) > 2 * self.side
