"""Drafts in a reviser's window: of what is too long the conversation is cut from the left, never draft or answer."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fusion_jax.data.batches import Example
from fusion_jax.data.chat import LostText
from fusion_jax.data.examples import TEXT_LOST, TextSettings, make_examples
from fusion_jax.data.records import Conversation, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "draft and answer longer than the reviser reads"
UNCUT = 2**30  # tokens that no text has


class Asked(NamedTuple):
    """A draft that answers the last message of a conversation."""

    messages: Conversation
    draft: str


def readable(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, text: TextSettings
) -> tuple[list[Example], Counter[str]]:
    """`make_examples`, also where there are no rows or the template changes the text of every one: then no examples."""
    try:
        return make_examples(rows, tokenizer, text) if rows else ([], Counter())
    except LostText:
        return [], Counter({TEXT_LOST: len(rows)})


def fitted(
    message: Callable[[Asked], Conversation],
    asked: Sequence[Asked],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text: TextSettings,
) -> tuple[list[Asked | None], dict[int, Example]]:
    """Drafts whose conversations are as short as max_length demands, and number -> example of draft and answer.

    A draft is None where it does not fit even without the conversation; one whose text the template changes stays as it
    is, and has no example.

    Args:
      message: what the reviser reads about a draft. answers: what it answers to each.
    """
    tokens = dataclasses.replace(text.tokens, max_length=UNCUT, max_prompt_length=UNCUT - 1)
    limit, uncut = text.tokens.max_length, dataclasses.replace(text, tokens=tokens)
    fitting, examples = dict(enumerate(asked)), dict[int, Example]()
    left = list(fitting)
    while left:
        rows = [Row(str(i), message(fitting[i]), (answers[i],)) for i in left]
        numbers, left = left, []
        for example in readable(rows, tokenizer, uncut)[0]:
            i, over = numbers[example.index], len(example.rows[0]) - limit
            if over <= 0:
                examples[i] = dataclasses.replace(example, index=i)
            elif shorter := _shorter(fitting.pop(i), over, tokenizer):
                fitting[i] = shorter
                left.append(i)
    return [fitting.get(i) for i in range(len(asked))], examples


def _shorter(asked: Asked, over: int, tokenizer: PreTrainedTokenizerBase) -> Asked | None:
    """A conversation without `over` tokens at its beginning; None where that would leave nothing of it.

    Whole exchanges go first, so that a user still begins; of the next message the end stays. The last message loses but
    half of `over`, because a reviser may read it twice: where it stands once, the rest is cut when this is asked again.
    """

    def size(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    messages = list(asked.messages)
    while len(messages) > 1 and size(messages[0]["content"]) <= over:
        over -= size(messages.pop(0)["content"])
        while messages[0]["role"] != "user" and len(messages) > 1:
            over -= size(messages.pop(0)["content"])
    if over > 0:
        first, cut = messages[0]["content"], over if len(messages) > 1 else (over + 1) // 2
        start = bisect.bisect_left(range(len(first)), cut - size(first), key=lambda i: -size(first[i:]))
        if not first[start:].strip():
            return None
        messages[0] = {**messages[0], "content": first[start:].strip()}
    return Asked(tuple(messages), asked.draft)
