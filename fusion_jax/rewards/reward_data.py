"""What a reward model learns from: pairs of answers, read exactly as `rewards.reward_model` reads what it scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_jax.data.batches import Example
from fusion_jax.data.chat import LostText, render_each
from fusion_jax.data.clip import Clip
from fusion_jax.data.examples import TEXT_LOST
from fusion_jax.data.records import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than the reward model reads"
ALIKE = "chosen equals rejected after rendering"


def reward_examples(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[list[Example], Counter[str]]:
    """Examples whose rows are whole rendered conversations, each scored once: where its last token is read.

    Each row ends with its last token twice: the model reads a row up to its last token but one.

    Args:
      most: tokens of a conversation; a pair with a longer one is left out and counted, as is one whose text the
        template changes and one whose answers become equal.

    Raises:
      InputError: the template refuses a conversation or changes the text of all of them; names the record.
    """
    clip, counts, examples, lost = Clip(tokenizer, most), Counter[str](), list[Example](), list[LostText]()
    kept = []
    for index, row in enumerate(rows):
        if any(clip.too_long(text) for text in (*(m["content"] for m in row.messages), *map(str, row.responses))):
            counts[TOO_LONG] += 1
        else:
            kept.append((index, row))
    chats = [[*row.messages, {"role": "assistant", "content": said or ""}] for _, row in kept for said in row.responses]
    names = [row.name for _, row in kept for _ in row.responses]
    texts = render_each(tokenizer, chats, header=False, names=names)
    for index, row in kept:
        found = [next(texts) for _ in row.responses]
        if failed := [text for text in found if isinstance(text, LostText)]:
            lost += failed
            counts[TEXT_LOST] += 1
            continue
        ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in found]
        if max(map(len, ids)) > most:
            counts[TOO_LONG] += 1
        elif ids[0] == ids[-1]:
            counts[ALIKE] += 1
        else:
            examples.append(Example(tuple((*i, i[-1]) for i in ids), tuple(map(len, ids)), index))
    if lost and not examples:
        raise lost[0]
    return examples, counts
