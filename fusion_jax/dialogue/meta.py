"""What the generator is told of a retrieved entity: its rank, the retriever's confidence, and whether it was spoken of.

Section 4 of MK-TOD's specification (arXiv 2310.08877, tables 10 to 12), in three forms: added tokens before the
entity (prefix), phrases before it (prompt), and sentences for a chat model (chat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

from fusion_jax.dialogue.serialise import normalised, occurs
from fusion_jax.errors import InputError, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["prefix", "prompt", "chat", "none"]
Thresholds = Literal["table10", "footnote"]
Confidence = Literal["high", "mid", "low"]
RANKS = 5
"""Ranks with a class of their own; lower ones share a class with negative entities."""
OTHER = 0
LEVELS: dict[Confidence, tuple[str, str]] = {
    "high": ("high", "high"),
    "mid": ("middle", "medium"),
    "low": ("low", "low"),
}
"""Class -> its word in the forms prompt and chat."""
TAGS = (
    "<old-entity>", "<new-entity>", "<high-confidence>", "<mid-confidence>", "<low-confidence>",
    *(f"<{rank}th-entity>" for rank in range(1, RANKS + 1)), "<other-entity>",
)  # fmt: skip
"""The tokens that are added to the generator's tokenizer for the form prefix."""


@dataclass(frozen=True)
class TagSettings:
    """How entities are tagged."""

    form: Form = "prefix"
    """Added tokens, phrases, sentences for a chat model, or nothing (the variant with the contrastive loss)."""
    order: bool = True
    """Tell the rank."""
    confidence: bool = True
    """Tell the retriever's confidence."""
    cooccurrence: bool = True
    """Tell whether the entity's name stands in the context."""
    thresholds: Thresholds = "table10"
    """Confidence is high from 0.75 and low below 0.25; or, by the footnote, high above 0.75 and low up to 0.4."""


class Meta(NamedTuple):
    """The classes of an entity. rank: 1 to `RANKS`, else `OTHER`; old: its name stands in the context."""

    rank: int
    confidence: Confidence
    old: bool


def confidence_of(score: float, thresholds: Thresholds = "table10") -> Confidence:
    """The class of a retrieval score, a cosine.

    >>> confidence_of(0.75), confidence_of(0.75, "footnote"), confidence_of(-0.2)
    ('high', 'mid', 'low')
    """
    if thresholds == "table10":
        return "high" if score >= 0.75 else "mid" if score >= 0.25 else "low"
    return "high" if score > 0.75 else "mid" if score > 0.4 else "low"


def metas(
    scores: Sequence[float], names: Sequence[str | None], context: str, *, negative: bool = False,
    thresholds: Thresholds = "table10",
) -> list[Meta]:  # fmt: skip
    """The classes of a turn's entities, which stand in the order of their ranks.

    Args:
      names: None for an entity without one, which counts as new.
      context: the whole history, uncut.
      negative: whether the last entity is the negative one, of which nothing is told: other, low, new.

    Raises:
      InputError: not as many scores as names.
    """
    if len(scores) != len(names):
        problem = f"there are {len(scores)} of them for {len(names)} names"
        raise InputError(problem, field="scores", cure="Give one for each entity")
    words, out = normalised(context), []
    for number, (score, name) in enumerate(zip(scores, names), 1):
        rank = number if number <= RANKS else OTHER
        out.append(Meta(rank, confidence_of(score, thresholds), name is not None and occurs(name, words)))
    return [*out[:-1], Meta(OTHER, "low", False)] if negative and out else out


def tag(meta: Meta, settings: TagSettings) -> str:
    """What stands before the text of an entity; empty where nothing is told.

    >>> tag(Meta(1, "high", True), TagSettings())
    '<old-entity> <high-confidence> <1th-entity>'
    >>> tag(Meta(2, "mid", False), TagSettings("prompt", cooccurrence=False))
    'The top-2 recalled: with middle confidence:'
    """
    match settings.form:
        case "prefix":
            return _joined(_prefix(meta), settings)
        case "prompt":
            return _joined(_prompt(meta), settings)
        case "chat":
            return _chat(meta, settings)
        case "none":
            return ""
    raise InputError(f"{quoted(settings.form)} is none", field="form", cure="Give prefix, prompt, chat or none")


def _prefix(meta: Meta) -> dict[str, str]:
    """The tokens by kind, in their order."""
    return {
        "cooccurrence": "<old-entity>" if meta.old else "<new-entity>",
        "confidence": f"<{meta.confidence}-confidence>",
        "order": "<other-entity>" if meta.rank == OTHER else f"<{meta.rank}th-entity>",
    }


def _prompt(meta: Meta) -> dict[str, str]:
    """The phrases by kind, in their order."""
    return {
        "order": f"The {'negative entity' if meta.rank == OTHER else f'top-{meta.rank}'} recalled:",
        "confidence": f"with {LEVELS[meta.confidence][0]} confidence:",
        "cooccurrence": "existed in history:" if meta.old else "newly recalled:",
    }


def _joined(pieces: dict[str, str], settings: TagSettings) -> str:
    return " ".join(piece for kind, piece in pieces.items() if getattr(settings, kind))


def _chat(meta: Meta, settings: TagSettings) -> str:
    """Sentences; rank and confidence share one, which is cut to what is told."""
    entity = "entity is not important" if meta.rank == OTHER else f"entity is top-{meta.rank} important"
    level = f"It has {LEVELS[meta.confidence][1]} possibility"
    second = {
        (True, True): f"{level} that this {entity}.",
        (True, False): f"This {entity}.",
        (False, True): f"{level}.",
        (False, False): "",
    }[settings.order, settings.confidence]
    first = "This entity has appeared before." if meta.old else "This is a new entity."
    return " ".join(filter(None, (first if settings.cooccurrence else "", second)))


def decorated(texts: Sequence[str], classes: Sequence[Meta], settings: TagSettings) -> list[str]:
    """The texts of entities, each behind its tag."""
    return [f"{tag(meta, settings)} {text}".lstrip() for text, meta in zip(texts, classes, strict=True)]


def every_meta() -> list[Meta]:
    """All combinations of classes."""
    return [Meta(*classes) for classes in product((*range(1, RANKS + 1), OTHER), LEVELS, (True, False))]


def tag_ids(tokenizer: PreTrainedTokenizerBase, settings: TagSettings) -> dict[Meta, list[int]]:
    """The tokens of every tag. Their numbers differ where phrases do: a batch pads tags to the longest.

    Raises:
      InputError: the form is prefix, and one of `TAGS` is not a token of its own.
    """
    if settings.form == "prefix":
        for token in TAGS:
            if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
                problem = f"the tokenizer cuts {token} into pieces"
                raise InputError(problem, field="form", cure="Add the tags to the tokenizer and rows to the model")
    tags = {meta: tag(meta, settings) for meta in every_meta()}
    return {meta: tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for meta, text in tags.items()}
