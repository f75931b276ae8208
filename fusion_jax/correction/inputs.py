"""What an encoder-decoder reads and writes: a sentence, or a sentence and its draft in either order, and the correction
(Alirector spec section 3.1).

    correct         [CLS] source [SEP]
    align_forward   [CLS] source [SEP] pred [SEP]
    align_reverse   [CLS] pred [SEP] source [SEP]
    labels          [CLS] target [SEP]

The decoder begins with [SEP] (`decoder_start_token_id`) and has the labels to predict, [CLS] first. source_source and
pred_pred are controls, in which an alignment model sees one of the two twice. `correction.prompts` has the same for
models that are a decoder alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.data.batches import Example
from fusion_jax.data.documents import AT_ONCE
from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.settings import bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mode = Literal["correct", "align_forward", "align_reverse", "source_source", "pred_pred"]
Ids = tuple[int, ...]

IGNORED = -100
"""The label of what is not learnt."""
SOURCE_CUT, PAIR_CUT, TARGET_CUT = "sources cut", "sources with drafts cut", "targets cut"
UNKNOWN = "targets with characters that the tokenizer does not know"


@dataclass(frozen=True)
class Lengths:
    """Tokens that are kept of each text, its [CLS] and [SEP] among them; the published evaluation takes 256 for all."""

    source: int = 128
    """Of a sentence alone."""
    pair: int = 256
    """Of a sentence and its draft."""
    target: int = 128
    """Of the correction."""

    def __post_init__(self) -> None:
        bounded(self, "source", "pair", "target", least=3)


class Marks(NamedTuple):
    """Ids of the tokens that stand around texts: first, last, padding and unknown."""

    cls: int
    sep: int
    pad: int
    unk: int


@dataclass(frozen=True)
class Encoded:
    """A record as an encoder-decoder reads it. inputs: of each mode asked for; labels: of the target, [CLS] and [SEP]
    around it; index: of the record."""

    inputs: tuple[Ids, ...]
    labels: Ids
    index: int

    def __repr__(self) -> str:
        return brief(self)

    def example(self, start: int, mode: int = 0) -> Example:
        """The row that `train.optimise` reads: an input, the decoder's first token, the labels, which are scored.

        Args:
          start: `config.start`. mode: place among the modes asked for.
        """
        read = self.inputs[mode]
        return Example(((*read, start, *self.labels),), (len(read) + 1,), self.index)


def parts(item: Pair | Triple, mode: Mode) -> tuple[str, ...]:
    """The texts that a mode shows a model, in their order.

    Raises:
      InputError: a mode that needs a draft, of a pair that has none.
    """
    if mode == "correct":
        return (item.source,)
    if mode == "source_source":
        return item.source, item.source
    if not isinstance(item, Triple):
        raise InputError(f"{mode} reads a draft", field="pred", cure='Give triples {"source", "target", "pred"}')
    shown = {"align_forward": (item.source, item.pred), "align_reverse": (item.pred, item.source)}
    return shown.get(mode, (item.pred, item.pred))


def input_text(item: Pair | Triple, mode: Mode, separator: str = "[SEP]") -> str:
    """The published input as one text, for display; `encode_items` never reads a separator out of a sentence."""
    return separator.join(parts(item, mode))


def marks_of(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Ids of [CLS], [SEP], [PAD] and [UNK].

    Raises:
      InputError: the tokenizer lacks one of them; names it.
    """
    found = []
    for name in Marks._fields:
        value = getattr(tokenizer, f"{name}_token_id")
        if value is None:
            cure = "Take a BERT tokenizer, as Chinese BART models have"
            raise InputError("is not set", file=tokenizer.name_or_path, field=f"{name}_token", cure=cure)
        found.append(int(value))
    return Marks(*found)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text, no special tokens among them: a "[SEP]" that is written in a sentence stays text."""
    out = list[Ids]()
    for start in range(0, len(texts), AT_ONCE):
        some = tokenizer(list(texts[start : start + AT_ONCE]), add_special_tokens=False, split_special_tokens=True)
        out += map(tuple, some["input_ids"])
    return out


def framed(texts: Sequence[Ids], marks: Marks, longest: int) -> tuple[Ids, bool]:
    """Texts between [CLS] and [SEP]s, cut on the right to `longest` tokens of which the last is [SEP]; and whether
    something was cut.

    >>> framed([(5, 6, 7), (8,)], Marks(2, 3, 0, 1), 6)
    ((2, 5, 6, 7, 3, 3), True)
    """
    ids = [marks.cls]
    for text in texts:
        ids += [*text, marks.sep]
    return (tuple(ids), False) if len(ids) <= longest else ((*ids[: longest - 1], marks.sep), True)


def encode_sources(tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], longest: int | None = None) -> list[Ids]:
    """What a corrector reads at inference, whole unless `longest` is given."""
    marks = marks_of(tokenizer)
    found = token_ids(tokenizer, sources)
    return [framed([ids], marks, longest or len(ids) + 2)[0] for ids in found]


def encode_items(
    items: Sequence[Pair | Triple],
    tokenizer: PreTrainedTokenizerBase,
    modes: Sequence[Mode] = ("correct",),
    lengths: Lengths | None = None,
) -> tuple[list[Encoded], Counter[str]]:
    """The records in their order, each with its input in every mode, and counts of what was cut or is not known.

    Raises:
      InputError: a tokenizer without the special tokens; a mode that reads a draft, of pairs; names the record.
    """
    lengths, marks, counts, out = lengths or Lengths(), marks_of(tokenizer), Counter[str](), list[Encoded]()
    for start in range(0, len(items), AT_ONCE):
        some = items[start : start + AT_ONCE]
        shown = [[_parts(item, mode, number) for mode in modes] for number, item in enumerate(some, start + 1)]
        texts = list(dict.fromkeys([*(t for of in shown for ts in of for t in ts), *(item.target for item in some)]))
        known = dict(zip(texts, token_ids(tokenizer, texts), strict=True))
        for index, (item, of) in enumerate(zip(some, shown, strict=True), start):
            inputs = tuple(_input([known[t] for t in texts], marks, lengths, counts) for texts in of)
            labels, cut = framed([known[item.target]], marks, lengths.target)
            counts[TARGET_CUT] += cut
            counts[UNKNOWN] += marks.unk in labels
            out.append(Encoded(inputs, labels, index))
    return out, +counts


def _parts(item: Pair | Triple, mode: Mode, number: int) -> tuple[str, ...]:
    try:
        return parts(item, mode)
    except InputError as error:
        raise InputError(error.problem, record=number, field=error.field, cure=error.cure) from None


def _input(texts: Sequence[Ids], marks: Marks, lengths: Lengths, counts: Counter[str]) -> Ids:
    alone = len(texts) == 1
    ids, cut = framed(texts, marks, lengths.source if alone else lengths.pair)
    counts[SOURCE_CUT if alone else PAIR_CUT] += cut
    return ids


def padded(rows: Sequence[Sequence[int]], fill: int, width: int | None = None, *, left: bool = False) -> np.ndarray:
    """int32[B,T] of rows, filled up to the longest or to `width`, on the right or on the left.

    Raises:
      InputError: a row longer than `width`.
    """
    longest = max(map(len, rows), default=0)
    width = longest if width is None else width
    if longest > width:
        raise InputError(f"a row has {longest} tokens, {width} at most", field="width", cure="Cut the rows first")
    out = np.full((len(rows), width), fill, np.int32)
    for b, row in enumerate(rows):
        if len(row):
            out[b, slice(-len(row), None) if left else slice(len(row))] = row
    return out


def shifted(labels: np.ndarray, start: int, pad: int) -> np.ndarray:
    """What the decoder reads where it predicts `labels` int[B,T]: `start`, then the labels but the last; padding of the
    labels (-100) is `pad`.

    >>> shifted(np.array([[2, 5, 3, -100]]), 3, 0).tolist()
    [[3, 2, 5, 3]]
    """
    out = np.roll(labels, 1, 1)
    out[:, 0] = start
    return np.where(out == IGNORED, pad, out)
