"""Texts and chats as several models read them: what each tokenizer makes of them, and which characters count.

Plain texts are the same for all models. A chat goes through a template, the pivot's for all models as published
(FuseLLM/FuseChat spec sections 2.2 and 7), or each model's own; masks come from character offsets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fusion_jax import arguments
from fusion_jax.data.batches import Example
from fusion_jax.data.chat import ChatSettings, Unfaithful, in_record, render_text
from fusion_jax.data.clip import Clip
from fusion_jax.data.records import Row
from fusion_jax.display import brief
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
UNFAITHFUL = "the template renders a turn differently when others follow, or changes its words"
AT_ONCE = 1024  # texts tokenised in one call: a tokenizer's own results take some 300 bytes a token


class Document(NamedTuple):
    """A text as one model reads it.

    scored: character spans whose tokens the model is to predict. contents: the spans that are the same string for
    every model, whatever the template around them. eos: whether the model's EOS follows the text (and is scored).
    """

    name: str
    text: str
    scored: tuple[Span, ...]
    contents: tuple[Span, ...]
    eos: bool

    def __repr__(self) -> str:
        return brief(self)


class TeacherText(NamedTuple):
    """A document in a model's tokens: ids int32[T]; offsets int32[T,2], their characters; scored bool[T], which tokens
    the model is to predict (never the first, which nothing predicts)."""

    ids: np.ndarray
    offsets: np.ndarray
    scored: np.ndarray


class TeacherRow(NamedTuple):
    """What one teacher says of one text.

    ids: int32[T], the teacher's own tokens; offsets: int32[T,2], their characters in the text.
    topk_ids: int32[T,K]; topk_logprobs: float16[T,K], falling, of the token that follows; logsumexp: float32[T], of
    its logits; tail: float32[T], the probability outside the K entries.
    metric: float32[2], the sum of -log p over the scored tokens, in nats, and their number.
    """

    ids: np.ndarray
    offsets: np.ndarray
    topk_ids: np.ndarray
    topk_logprobs: np.ndarray
    logsumexp: np.ndarray
    tail: np.ndarray
    metric: np.ndarray


def text_documents(texts: Sequence[str]) -> list[Document]:
    """Every character scored, EOS at the end (section 2.1, stage 2)."""
    known = enumerate(arguments.texts(texts, "texts"), 1)
    return [Document(str(i), text, ((0, len(text)),), ((0, len(text)),), True) for i, text in known]


def chat_documents(
    rows: Sequence[Row],
    template: PreTrainedTokenizerBase,
    reader: PreTrainedTokenizerBase,
    settings: ChatSettings = ChatSettings(header="prompt"),
) -> list[Document]:
    """Conversations through one tokenizer's template for another one to read; every assistant turn is scored.

    Args:
      rows: conversations with one response each (kind "sft").
      template: whose chat template; the BOS and EOS strings in it are the reader's (section 2.2).

    Raises:
      InputError: a template that refuses the roles, renders a turn differently when others follow, or changes the
        words of an answer.
    """
    out = []
    special = {"bos_token": reader.bos_token or "", "eos_token": reader.eos_token or ""}
    for row in rows:
        try:
            out.append(_chat_document(row, template, date=settings.date, special=special))
        except Unfaithful as error:
            problem = f"{UNFAITHFUL} ({error.problem})"
            raise InputError(problem, file=error.file, record=row.name, field=error.field, cure=error.cure) from None
        except InputError as error:
            raise in_record(error, row.name) from None
    return out


def _chat_document(row: Row, template: PreTrainedTokenizerBase, *, date: str, special: Mapping[str, str]) -> Document:
    """One conversation; the template has to keep the text of every answer, for all are scored."""
    messages = [*row.messages, {"role": "assistant", "content": row.responses[0] or ""}]
    whole = render_text(template, messages, header=False, date=date, special=special)
    scored, contents = [], []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        opening = render_text(template, messages[:i], header=True, date=date, special=special)
        turn = render_text(template, messages[: i + 1], header=False, date=date, special=special)
        content = message["content"].strip()
        at = turn.find(content, max(len(opening) - 1, 0))
        if not whole.startswith(turn) or not turn.startswith(opening[:-1]) or at < 0:
            cure = "Use a template that renders each message by itself and keeps its text"
            raise InputError(UNFAITHFUL, file=template.name_or_path, field="chat_template", cure=cure)
        scored.append((len(opening), len(turn)))
        contents.append((at, at + len(content)))
    return Document(row.name, whole, tuple(scored), tuple(contents), False)


def encode_documents(
    tokenizer: PreTrainedTokenizerBase | None, documents: Sequence[Document], *, max_length: int
) -> list[TeacherText]:
    """Documents in a model's tokens, without special tokens but those that the text holds and, when asked, EOS.

    Raises:
      InputError: no fast tokenizer or no EOS; a text without a token or with more than `max_length`.
    """
    if tokenizer is None or not tokenizer.is_fast:
        raise InputError("the model needs a fast tokenizer", field="tokenizer", cure="Add tokenizer.json to its folder")
    if tokenizer.eos_token_id is None and any(d.eos for d in documents):
        raise InputError("the tokenizer has no EOS token", field="eos_token", cure="Set one")
    out, clip = [], Clip(tokenizer, max_length)
    for number, document in enumerate(documents):
        at = number % AT_ONCE
        if clip.too_long(document.text):
            problem = f"the text has {len(document.text)} characters, the limit is {max_length} tokens"
            raise InputError(problem, record=document.name, field="text", cure="Split it into windows")
        if at == 0:
            texts = [d.text for d in documents[number : number + AT_ONCE]]
            encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"][at])
        if not ids:
            raise InputError("the text has no token", record=document.name, field="text", cure="Leave out empty texts")
        offsets = np.asarray(encoded["offset_mapping"][at], np.int32)
        scored = np.zeros(len(ids), bool)
        for span in document.scored:
            scored |= inside(offsets, span)
        if document.eos:
            ids.append(tokenizer.eos_token_id)
            offsets = np.append(offsets, np.full((1, 2), len(document.text), np.int32), 0)
            scored = np.append(scored, True)
        if len(ids) > max_length:
            problem = f"the text has {len(ids)} tokens, the limit is {max_length}"
            raise InputError(problem, record=document.name, field="text", cure="Split it into windows")
        scored[0] = False
        out.append(TeacherText(np.asarray(ids, np.int32), offsets, scored))
    return out


def leading_token(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> int | None:
    """The BOS token, where these are plain texts and the tokenizer puts it before one: a model that was trained behind
    it predicts little without. None for chats, whose templates write it."""
    bos = tokenizer.bos_token_id
    if bos is None or not any(document.eos for document in documents):
        return None
    return int(bos) if list(tokenizer("a")["input_ids"][:1]) == [bos] else None


def token_counts(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[int]:
    """How many tokens each document needs, EOS included."""
    out = []
    for start in range(0, len(documents), AT_ONCE):
        some = documents[start : start + AT_ONCE]
        encoded = tokenizer([d.text for d in some], add_special_tokens=False)["input_ids"]
        out += [len(ids) + d.eos for ids, d in zip(encoded, some, strict=True)]
    return out


def read_before(text: TeacherText, bos: int | None, positions: int | None = None) -> list[int]:
    """What a model reads before a text: BOS (see `leading_token`), unless the text begins with it or leaves it no
    room."""
    alone = bos is None or int(text.ids[0]) == bos or (positions is not None and len(text.ids) >= positions)
    return [] if alone or bos is None else [bos]


def plain_examples(
    texts: Sequence[TeacherText], bos: int | None = None, positions: int | None = None
) -> list[Example]:
    """Training and scoring examples without teachers; a text of one token, which predicts nothing, is left out.

    bos, positions: as of `read_before`.
    """
    out = []
    for i, text in enumerate(texts):
        before = read_before(text, bos, positions)
        groups = np.append(np.zeros(len(before), np.uint8), text.scored.astype(np.uint8))
        if len(text.ids) > 1:
            out.append(Example(((*before, *text.ids.tolist()),), (1,), i, groups=groups))
    return out


def inside(offsets: np.ndarray, span: Span) -> np.ndarray:
    """bool[T], the tokens that share a character with a span, or are empty and stand in it."""
    (starts, ends), (first, last) = offsets.T, span
    return ((starts < last) & (ends > first)) | ((starts == ends) & (first <= starts) & (starts < last))


def token_range(offsets: np.ndarray, span: Span) -> tuple[int, int]:
    """First token inside a span and the one behind the last; (0, 0) where there is none."""
    places = np.flatnonzero(inside(offsets, span))
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def scored_bytes(document: Document, offsets: np.ndarray) -> int:
    """UTF-8 bytes of what is scored: the unit that makes tokenizers comparable.

    offsets: int[T,2], the characters of the model's tokens; nothing predicts the first one, so it does not count.
    """
    first = int(offsets[0, 1])
    return sum(len(document.text[max(a, first) : b].encode()) for a, b in document.scored)


def all_scored_bytes(documents: Sequence[Document], offsets: Iterable[np.ndarray]) -> int:
    """`scored_bytes` of all documents together, which is more than 0.

    Raises:
      InputError: no text has a byte that anything predicts.
    """
    size = sum(scored_bytes(d, o) for d, o in zip(documents, offsets, strict=True))
    if not size:
        problem = "no text has more than one token, so nothing is predicted"
        raise InputError(problem, field="texts", cure="Give longer texts")
    return size


def documents_fingerprint(documents: Sequence[Document]) -> str:
    """sha256 of documents in their order, the same in every process."""
    digest = hashlib.sha256()
    for document in documents:
        raw = json.dumps(document).encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
