"""What a decoder alone reads and writes: an instruction, a sentence with or without its draft, and the correction
(Alirector spec section 3.2).

A text is bos, prompt, target, eos. The prompt is an instruction, "Input:" with the sentence on the next line, and
"Output:" on the last; sentence and draft are separated by a tab. Prompt and target are tokenised apart, so that no
token stands on both sides; whole texts are tokenised as well, as the published code does, to count where that differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax.correction.inputs import IGNORED, Ids, Mode, input_text, token_ids
from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.data.batches import Example
from fusion_jax.data.documents import AT_ONCE
from fusion_jax.display import brief
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING_LEFT = "no token of the target within the cut-off"
CUT = "targets cut"
DIFFERENT = "other tokens where prompt and target are tokenised as one text"


@dataclass(frozen=True)
class Templates:
    """The instructions: of a sentence alone, and of two texts with a tab between them."""

    correct: str = "请修改下面句子中的语法错误，只输出改正后的句子。"
    align: str = "Input里有两个用\t隔开的句子，请对照两者，写出没有语法错误的句子。"

    def prompt(self, item: Pair | Triple, mode: Mode) -> str:
        """The text that the model goes on from."""
        instruction = self.correct if mode == "correct" else self.align
        return f"{instruction}\nInput:{input_text(item, mode, TAB)}\nOutput:"


TAB = "\t"
TEMPLATES = Templates()


class Framing(NamedTuple):
    """Tokens around a text, as text and ids; there may be none before it. pad: may be the same as eos, so that padding
    is told by lengths alone."""

    bos: str
    eos: str
    bos_ids: Ids
    eos_id: int
    pad: int


@dataclass(frozen=True)
class Prompted:
    """A record as a decoder reads it. rows: bos, prompt, target and eos in each mode asked for; starts: where the
    target begins in each; index: of the record."""

    rows: tuple[Ids, ...]
    starts: tuple[int, ...]
    index: int

    def __repr__(self) -> str:
        return brief(self)

    def example(self, mode: int = 0) -> Example:
        """The row that `train.optimise` reads, of which target and eos are scored."""
        return Example((self.rows[mode],), (self.starts[mode],), self.index)


def framing_of(tokenizer: PreTrainedTokenizerBase) -> Framing:
    """bos (which a tokenizer may lack), eos and what pads.

    Raises:
      InputError: the tokenizer has no eos.
    """
    if tokenizer.eos_token_id is None:
        cure = "Take a tokenizer that ends its texts"
        raise InputError("is not set", file=tokenizer.name_or_path, field="eos_token", cure=cure)
    eos = int(tokenizer.eos_token_id)
    bos_ids = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
    pad = eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    return Framing(tokenizer.bos_token or "", tokenizer.eos_token, bos_ids, eos, pad)


def whole_text(item: Pair | Triple, mode: Mode, framing: Framing, templates: Templates = TEMPLATES) -> str:
    """The training text as the published code writes it."""
    return f"{framing.bos}{templates.prompt(item, mode)}{item.target}{framing.eos}"


def encode_prompts(
    items: Sequence[Pair | Triple], tokenizer: PreTrainedTokenizerBase, mode: Mode, templates: Templates = TEMPLATES
) -> list[Ids]:
    """What a model goes on from at inference: bos and prompt."""
    framing = framing_of(tokenizer)
    return [(*framing.bos_ids, *ids) for ids in token_ids(tokenizer, [templates.prompt(i, mode) for i in items])]


def encode_texts(
    items: Sequence[Pair | Triple],
    tokenizer: PreTrainedTokenizerBase,
    modes: Sequence[Mode],
    cutoff: int,
    templates: Templates = TEMPLATES,
) -> tuple[list[Prompted], Counter[str]]:
    """The records in their order, each in every mode, cut on the right to `cutoff` tokens.

    A record of which a mode keeps no token of the target is left out of all.

    Returns:
      (records, counts of those that were cut or left out, and of texts that are other tokens as a whole).

    Raises:
      InputError: a tokenizer without eos; a mode that reads a draft, of pairs; nothing left.
    """
    framing, counts, out = framing_of(tokenizer), Counter[str](), list[Prompted]()
    for start in range(0, len(items), AT_ONCE):
        some = items[start : start + AT_ONCE]
        targets = token_ids(tokenizer, [item.target for item in some])
        rows, starts = list[list[Ids]](), list[list[int]]()
        for mode in modes:
            prompts = token_ids(tokenizer, [templates.prompt(item, mode) for item in some])
            rows.append([(*framing.bos_ids, *p, *t, framing.eos_id) for p, t in zip(prompts, targets, strict=True)])
            starts.append([len(framing.bos_ids) + len(prompt) for prompt in prompts])
            whole = tokenizer([whole_text(i, mode, framing, templates) for i in some], add_special_tokens=False)
            counts[DIFFERENT] += sum(tuple(a) != b for a, b in zip(whole["input_ids"], rows[-1], strict=True))
        for index, (of, begins) in enumerate(zip(zip(*rows), zip(*starts), strict=True), start):
            if max(begins) >= cutoff:
                counts[NOTHING_LEFT] += 1
                continue
            counts[CUT] += any(len(row) > cutoff for row in of)
            out.append(Prompted(tuple(row[:cutoff] for row in of), begins, index))
    if items and not out:
        raise InputError(f"{cutoff} tokens hold no prompt", field="cutoff", cure="Raise it")
    return out, +counts


def masked_row(ids: Sequence[int], start: int, cutoff: int, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A text cut or filled up on the right to `cutoff` tokens: its ids, labels and attention mask, int32[cutoff] each.

    Args:
      start: where the target begins; what is before it, and padding, has the label -100.

    >>> [x.tolist() for x in masked_row([1, 8, 5, 2], 2, 5, 0)]
    [[1, 8, 5, 2, 0], [-100, -100, 5, 2, -100], [1, 1, 1, 1, 0]]
    """
    size = min(len(ids), cutoff)
    tokens, labels = np.full(cutoff, pad, np.int32), np.full(cutoff, IGNORED, np.int32)
    tokens[:size] = ids[:size]
    labels[start:size] = ids[start:size]
    return tokens, labels, (np.arange(cutoff) < size).astype(np.int32)
