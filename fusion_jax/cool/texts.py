"""The one text that all models share, and each model's tokens of it.

After every segment each model holds the tokens that it would make of the whole text, whoever wrote the segment, so that
the state is a function of the text alone. Only the last words are encoded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fusion_jax.cool.words import Encoded, Words, common

WORDS_BACK = 4


@dataclass(frozen=True)
class Held:
    """One model's tokens of a prompt and the text behind it.

    prompt: as the model reads it; left: the place in it from which word boundaries are looked for, behind its last
    special token; tokens: of prompt and text, their ends counted from the prompt's start.
    """

    prompt: str
    left: int
    tokens: Encoded


@dataclass
class Text:
    """What is written behind one prompt. shared: whether all models read the same prompt, character by character.

    segments: what was committed; starts: the last places in the text, counted from its own start (negative in a shared
    prompt), where all models begin a word; whole: whether all of it is encoded at every step; stop: why it ended, ""
    while it goes on; ended: whether a model ended it.
    """

    held: list[Held]
    shared: bool
    text: str = ""
    segments: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    whole: bool = False
    stop: str = ""
    ended: bool = False

    @property
    def window(self) -> int | None:
        """The place in the text from which on it is encoded and searched: a space, four words back; None: the whole."""
        found = [] if self.whole else [place for place in self.starts if self._at(place) == " "]
        return found[-WORDS_BACK] if len(found) >= WORDS_BACK else None

    def _at(self, place: int) -> str:
        return self.text[place] if place >= 0 else self.held[0].prompt[place]


def begin(words: Sequence[Words], held: Sequence[Held]) -> Text:
    """A text of which nothing is written yet, behind a prompt."""
    text = Text(list(held), len({one.prompt for one in held}) == 1)
    text.starts = _kept(common_starts(words, text, ""), text)
    text.whole = text.window is not None and _window_differs(words, text)
    return text


def _window_differs(words: Sequence[Words], text: Text) -> bool:
    """Whether a tokenizer makes other tokens of the window than it has made of it in the whole text."""
    again = (encode_behind(one, source, [(text, "")])[0] for source, one in enumerate(words))
    return any(new != old.tokens for new, old in zip(again, text.held, strict=True))


def _kept(starts: Sequence[int], text: Text) -> list[int]:
    return [place for place in starts if text.shared or place >= 0][-3 * WORDS_BACK :]


def encode_behind(words: Words, source: int, asked: Sequence[tuple[Text, str]]) -> list[Encoded]:
    """A model's tokens of prompt, text and a segment behind them, for many texts at once."""
    out = [Encoded((), ())] * len(asked)
    for windowed in (True, False):
        places = [place for place, (text, _) in enumerate(asked) if (text.window is not None) == windowed]
        starts = [_window(asked[place][0], source) for place in places]
        ends = [
            (asked[place][0].held[source].prompt + asked[place][0].text)[start:] + asked[place][1]
            for place, start in zip(places, starts, strict=True)
        ]
        found = words.encode_windows(ends) if windowed else words.encode(ends)
        for place, start, new in zip(places, starts, found, strict=True):
            old = asked[place][0].held[source].tokens
            kept = tokens_before(old, start)
            made = Encoded(old.ids[:kept] + new.ids, old.ends[:kept] + tuple(start + end for end in new.ends))
            out[place] = made
    return out


def _window(text: Text, source: int) -> int:
    """Where the window begins, counted from the prompt's start."""
    return 0 if text.window is None else len(text.held[source].prompt) + text.window


def tokens_before(tokens: Encoded, place: int) -> int:
    """How many tokens end at a place or before it; a token before the text (BOS) ends at 0."""
    count = len(tokens.ends)
    while count and tokens.ends[count - 1] > place:
        count -= 1
    return count


def written(words: Words, source: int, asked: Sequence[tuple[Text, Sequence[int]]]) -> list[str]:
    """What tokens say behind a text: the decoded window with them, less the decoded window."""
    bases = []
    for text, _ in asked:
        tokens = text.held[source].tokens
        bases.append(tokens.ids[tokens_before(tokens, _window(text, source)) :])
    before = words.decode(bases)
    after = words.decode([(*base, *ids) for base, (_, ids) in zip(bases, asked, strict=True)])
    return [whole[len(base) :] for whole, base in zip(after, before, strict=True)]


def common_starts(words: Sequence[Words], text: Text, segment: str) -> list[int]:
    """Places, counted from the text's start, where all these models begin a word in the window and a segment behind it;
    in ascending order."""
    return common([starts_of(one, number, text, segment) for number, one in enumerate(words)])


def starts_of(words: Words, source: int, text: Text, segment: str) -> list[int]:
    """Places where one model begins a word; see `common_starts`."""
    held = text.held[source]
    start = held.left if text.window is None else len(held.prompt) + text.window
    found = words.starts((held.prompt + text.text)[start:] + segment)
    return [place + start - len(held.prompt) for place in found]


def append(words: Sequence[Words], text: Text, segment: str, tokens: Sequence[Encoded]) -> None:
    """A segment committed, with every model's tokens of the whole text."""
    unknown = text.window is None and not text.whole
    found = common_starts(words, text, segment)
    first = found[0] if found else 0
    text.starts = _kept([place for place in text.starts if place < first] + found, text)
    text.text += segment
    text.segments.append(segment)
    text.held = [Held(old.prompt, old.left, new) for old, new in zip(text.held, tokens, strict=True)]
    if unknown and text.window is not None:
        text.whole = _window_differs(words, text)
