"""Prompts that wait, and the slots of a batch that they take as others are finished."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from fusion_jax.arguments import listed
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.sampling.prompts import Read, Ready, read
from fusion_jax.sampling.session import empty_read
from fusion_jax.sampling.sizes import capacities_of, kept_width

_PROMPTS = "Give a list of lists of token ids: tokenizer(texts)['input_ids']"


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig, max_new_tokens: int) -> None:
    """Refuse what cannot be continued by so many tokens.

    Raises:
      InputError: the model writes nothing; an empty prompt; one that with the new tokens exceeds the model's positions;
        an id that the model does not have.
    """
    if not config.decoder:
        raise InputError(f"{config.model_type} is an encoder, which writes nothing", cure="Give a model with a decoder")
    if config.head.labels:
        raise InputError("the model is a classifier, which writes nothing", cure="Give a language model")
    for number, prompt in enumerate(listed(prompts, "prompts", "prompts", _PROMPTS), 1):
        if not len(listed(prompt, f"prompts[{number - 1}]", "token ids", _PROMPTS)):
            raise InputError("has no token", record=number, field="prompt", cure="Give a text or a BOS token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(
                f"holds a token id outside 0..{config.vocab_size - 1}", record=number, field="prompt",
                cure="Use the model's own tokenizer",
            )  # fmt: skip
        both = max(len(prompt), max_new_tokens) if config.encoder else len(prompt) + max_new_tokens
        if both > config.max_positions:
            raise InputError(
                f"{len(prompt)} tokens and {max_new_tokens} new ones exceed "
                f"the model's {config.max_positions} positions",
                record=number, field="prompt", cure="Shorten the prompt or lower max_new_tokens",
            )  # fmt: skip
        for switch in config.positions.switches:
            if len(prompt) <= switch < len(prompt) + max_new_tokens:
                raise InputError(
                    f"{len(prompt)} tokens and {max_new_tokens} new ones cross {switch}, from where on the model turns "
                    "all tokens otherwise: what it keeps of the prompt would not fit",
                    record=number, field="prompt",
                    cure=f"Lower max_new_tokens to {switch - len(prompt)}, or give a longer prompt",
                )  # fmt: skip


def by_width(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
    """Widths that prompts are kept at, and the numbers of those that are, short ones first."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for width, alike in itertools.groupby(order, lambda number: kept_width(len(prompts[number]))):
        yield width, list(alike)


def empty_slots(model: Ready, count: int, width: int) -> Read:
    """Room for `count` prompts of this width."""
    return empty_read(model.how, count, 1, width) if model.how.config.encoder else empty_read(model.how, count, width)


def waiting(
    model: Ready, prompts: Sequence[Sequence[int]], numbers: Sequence[int], rows: int
) -> Iterator[tuple[int, Read, int]]:
    """Prompts in turn, read up to `rows` at once: their numbers, and the group that each was read in, with its place
    there."""
    for places, group in read(model, [prompts[number] for number in numbers], rows):
        for row, place in enumerate(places):
            yield numbers[place], group, row


def filled(waiting: Iterator[tuple[int, Read, int]], slots: list[int]) -> Iterator[tuple[Read, np.ndarray]]:
    """Prompts into the slots that hold none (-1), which are written: groups, and what `admit` takes of each."""
    vacant = [slot for slot, number in enumerate(slots) if number < 0]
    coming = zip(vacant, waiting)
    for _, alike in itertools.groupby(coming, lambda one: id(one[1][1])):
        some, taken = list(alike), np.full(len(slots), -1, np.int32)
        for slot, (number, _, row) in some:
            slots[slot], taken[slot] = number, row
        yield some[0][1][1], taken


def rooms_of(limit: int, block: int) -> list[int]:
    """Sizes of the caches of continuations of so many tokens; 0 where a block holds them."""
    return list(capacities_of(limit)) if limit > block else [0]


def other_room(rooms: Sequence[int], room: int, counts: np.ndarray, block: int) -> int | None:
    """The size that a cache of `room` tokens should have for continuations of int[n] tokens that go on; None: it can
    stay, since it holds another block and is not four times too large."""
    needed = int((np.maximum(counts - 1, 0) // block + 1).max(initial=0)) * block
    least = next(one for one in rooms if one >= needed)
    return None if needed <= room < 4 * least else least
