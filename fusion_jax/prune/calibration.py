"""The text that blocks are judged by: documents joined, tokenised once and cut into rows (arXiv 2406.10594, official
code)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusion_jax.data.batches import Example
from fusion_jax.errors import InputError
from fusion_jax.prune.scoring import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA_ROWS = 52_002  # of tatsu-lab/alpaca


def calibration_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> np.ndarray:
    """int32[R,T], the documents joined by an empty line, in one call of the tokenizer (so that at most one BOS stands,
    at the front), cut into rows of `length` tokens; what is left over is dropped.

    Raises:
      InputError: less text than one row.
    """
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    count = len(ids) // length
    if not count:
        problem = f"the {len(texts)} documents have {len(ids)} tokens, a row has {length}"
        raise InputError(problem, field="calibration", cure="Give more documents, or lower --length")
    return np.asarray(ids[: count * length], np.int32).reshape(count, length)


def chat_text(examples: Sequence[Example]) -> Text:
    """A row for each example of one response, padded on the right, of which the response is scored."""
    width = max(len(example.rows[0]) for example in examples)
    rows = np.zeros((len(examples), width), np.int32)
    scored = np.zeros((len(examples), width), bool)
    for number, example in enumerate(examples):
        (ids,), (start,) = example.rows, example.starts
        rows[number, : len(ids)] = ids
        scored[number, max(start, 1) : len(ids)] = True
    return Text(rows, scored=scored, lengths=np.asarray([len(example.rows[0]) for example in examples]))


def cut(text: Text, tokens: int) -> Text:
    """The first rows, of which so many labels are scored in all; 0: all rows.

    Raises:
      InputError: the first row alone has more.
    """
    if not tokens:
        return text
    each = _scored(text)
    count = int((np.cumsum(each) <= tokens).sum())
    if not count:
        problem = f"{tokens} are fewer than the {each[0]} that are scored of the first row"
        raise InputError(problem, field="calibration_tokens", cure="Raise it, or take shorter rows")
    return text.first(count)


def scored_tokens(text: Text) -> int:
    """How many labels of a text are scored, those that are ignored among them."""
    return int(_scored(text).sum())


def _scored(text: Text) -> np.ndarray:
    return np.full(len(text.rows), text.rows.shape[1] - 1) if text.scored is None else text.scored.sum(1)


def drawn(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` documents, drawn by a seed; of the 52,002 of Alpaca those that the published searches take (seed 42); 0:
    all, in their order.

    Raises:
      InputError: there are not so many.
    """
    if not count:
        return list(texts)
    if len(texts) == ALPACA_ROWS:
        return [texts[row] for row in alpaca_sample(count, seed=seed)]
    if count > len(texts):
        raise InputError(f"{count} are more than the {len(texts)} that there are", field="documents", cure="Lower it")
    return [texts[place] for place in random.Random(seed).sample(range(len(texts)), count)]


def alpaca_sample(documents: int, rows: int = ALPACA_ROWS, seed: int = 42) -> list[int]:
    """Numbers of the rows of tatsu-lab/alpaca that the published searches take: a fifth of the rows is split off, half
    of it split again, and documents drawn from the first half; all with one seed.

    Raises:
      InputError: more documents than that half has.
    """
    from datasets import Dataset

    every = Dataset.from_dict({"row": range(rows)})
    held = every.train_test_split(test_size=0.2, seed=seed)["test"]
    test = held.train_test_split(test_size=0.5, seed=seed)["train"]["row"]
    if documents > len(test):
        raise InputError(f"{documents} documents are more than the {len(test)} to draw from", field="documents")
    return [test[place] for place in random.Random(seed).sample(range(len(test)), documents)]
