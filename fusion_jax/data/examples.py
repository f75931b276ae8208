"""Rows of text to examples of tokens: template, tokenisation, truncation, with what happened counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fusion_jax.data.batches import Example
from fusion_jax.data.chat import (
    AT_ONCE,
    ChatSettings,
    LostText,
    in_record,
    reasoning_left_out,
    render,
    turn_end,
    warm,
)  # fmt: skip
from fusion_jax.data.clip import Clip
from fusion_jax.data.records import Message, Row
from fusion_jax.data.tokenise import TokenisedRow, TokeniseSettings, pack_documents, tokenise_row
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_LOST = "text changed or left out by the chat template"
REASONING_CUT = "earlier answers whose reasoning the chat template leaves out"
NOTHING_LEFT = "nothing of an answer left after cutting"
SAME_TOKENS = "chosen equals rejected after rendering and cutting"
EMPTY_PROMPT = "empty prompt: the first response token is not scored"


@dataclass(frozen=True)
class TextSettings:
    """How text becomes tokens."""

    chat: ChatSettings = ChatSettings()
    tokens: TokeniseSettings = TokeniseSettings()
    packing: Literal["none", "official", "reset"] = "none"
    """For SFT alone: score the response only (none); or pack documents into blocks of max_length and score every token,
    with attention across documents (official) or starting anew with each (reset)."""


class Encoder:
    """A tokenizer without special tokens of its own, remembering what it has encoded (prompts recur in every row)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def warm(self, texts: Sequence[str]) -> None:
        """Encode many texts at once, which fast tokenizers do in parallel."""
        new = list(dict.fromkeys(t for t in texts if t not in self._known))
        if new:
            self._known |= zip(new, self._tokenizer(new, add_special_tokens=False)["input_ids"])


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no EOS token", file=tokenizer.name_or_path, field="eos_token", cure="Set one"
        )
    return int(tokenizer.eos_token_id)


@dataclass(frozen=True)
class _Chat:
    """A row as text: its number among the rows, its prompt, and (header, answer) texts of the responses that are there.

    The header is what the template writes between the prompt and what the response says; the answer begins with it.
    """

    index: int
    prompt: str
    answers: tuple[tuple[str, str], ...]
    clipped: bool


def make_examples(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: TextSettings
) -> tuple[list[Example], Counter[str]]:
    """Examples in the order of `rows` (their `index` points into it), and counts of what was cut, absent or dropped.

    A row is dropped if the chat template changes what one of its messages says, if cutting leaves nothing of one of its
    answers, or if its last two answers (chosen and rejected, unless it has values of its own) have become equal.

    Raises:
      InputError: a template that refuses the roles or leaves messages out, and whatever else makes every row unusable.
    """
    if settings.packing != "none":
        return _packed(rows, tokenizer, settings)
    _check_lengths(settings.tokens)
    eos, encoder, counts = _eos(tokenizer), Encoder(tokenizer), Counter[str]()
    ends = {eos, *(i for i in [turn_end(tokenizer)] if i is not None)}
    chats = _chats(rows, tokenizer, settings, counts)
    encoder.warm([t for c in chats for _, answer in c.answers for t in (c.prompt, c.prompt + answer)])
    examples = []
    for chat in chats:
        row = rows[chat.index]
        try:
            tokens = tokenise_row(
                encoder, chat.prompt, [answer for _, answer in chat.answers], settings.tokens,
                bos_id=tokenizer.bos_token_id, eos_id=eos, ends=ends,
                blank=lambda ids: not tokenizer.decode(list(ids)).strip(),
            )  # fmt: skip
        except ValueError as error:
            raise InputError(
                str(error), record=row.name, cure="Check the tokenizer and the truncation settings"
            ) from None
        example, reason = _example(row, chat, tokens), _unusable(chat, tokens, encoder, not row.values)
        counts["truncated"] += tokens.cut or chat.clipped
        if reason or not all(n for n, r in zip(example.scored, row.responses) if r is not None):
            counts[reason or NOTHING_LEFT] += 1
            continue
        counts[EMPTY_PROMPT] += any(not prompt for prompt in tokens.prompts)
        counts["no source response"] += row.responses.count(None)
        examples.append(example)
    return examples, +counts


def _chats(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: TextSettings, counts: Counter[str]
) -> list[_Chat]:
    """The rows rendered; those that cannot be are counted, and refused if they are all there is."""
    clip, out = Clip(tokenizer, settings.tokens.max_length), []
    lost: InputError | None = None
    for start in range(0, len(rows), AT_ONCE):
        some = [_clipped(row, clip) for row in rows[start : start + AT_ONCE]]
        _render_ahead(tokenizer, some, settings.chat)
        for index, row in enumerate(some, start):
            try:
                chat = _chat(index, row, tokenizer, settings.chat, clip)
            except LostText as error:
                lost = in_record(error, row.name)
                counts[TEXT_LOST] += 1
                continue
            except InputError as error:
                raise in_record(error, row.name) from None
            if all(said.strip() for said in row.responses if said is not None):
                counts[REASONING_CUT] += reasoning_left_out(row.messages, chat.prompt)
                out.append(replace(chat, clipped=chat.clipped or row != rows[index]))
            else:
                counts["blank response"] += 1
    if lost and not out:
        raise lost
    return out


def _clipped(row: Row, clip: Clip) -> Row:
    messages = tuple({**m, "content": clip(m["content"])} for m in row.messages)
    return replace(row, messages=messages, responses=tuple(None if r is None else clip(r) for r in row.responses))


def _render_ahead(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], chat: ChatSettings) -> None:
    """What `_chat` is going to ask for, in one exchange."""
    asked: list[tuple[list[Message], bool]] = []
    for row in rows:
        answers = [{"role": "assistant", "content": r} for r in row.responses if r is not None]
        asked.append((list(row.messages), chat.header == "prompt"))
        asked += [([*row.messages, a], False) for a in answers]
    warm(tokenizer, asked, date=chat.date)


def _chat(index: int, row: Row, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, clip: Clip) -> _Chat:
    """One row rendered."""
    answers, prompt = [], ""
    for said in row.responses:
        if said is not None:
            prompt, answer = render(tokenizer, row.messages, said, settings)
            answers.append((answer[: answer.find(said.strip())], answer))
    return _Chat(index, clip(prompt), tuple(answers), clip.too_long(prompt))


def _unusable(chat: _Chat, tokens: TokenisedRow, encoder: Encoder, compared: bool) -> str | None:
    """Why tokens cannot be trained on, or None. compared: whether the last two answers are chosen and rejected."""
    if tokens.cut and any(len(t) <= len(encoder(h)) for t, (h, _) in zip(tokens.responses, chat.answers)):
        return NOTHING_LEFT
    ids = [[*p, *r] for p, r in zip(tokens.prompts, tokens.responses)]
    return SAME_TOKENS if compared and len(ids) > 1 and ids[-2] == ids[-1] else None


def _example(row: Row, chat: _Chat, tokens: TokenisedRow) -> Example:
    """The rows of tokens; in the place of an absent response the prompt stands alone, and scores nothing."""
    lines = [(tuple(p + r), len(p)) for p, r in zip(tokens.prompts, tokens.responses)]
    alone = (lines[0][0][: max(lines[0][1], 1)], max(lines[0][1], 1))
    present = iter(lines)
    filled = [alone if response is None else next(present) for response in row.responses]
    return Example(tuple(r for r, _ in filled), tuple(s for _, s in filled), chat.index, values=row.values)


def _check_lengths(s: TokeniseSettings) -> None:
    if not 0 < s.max_prompt_length < s.max_length:
        raise InputError(
            f"max_prompt_length {s.max_prompt_length} leaves no room in max_length {s.max_length}",
            field="text.tokens.max_prompt_length", cure="Set it between 1 and max_length - 1",
        )  # fmt: skip


def _packed(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: TextSettings
) -> tuple[list[Example], Counter[str]]:
    if any(len(row.responses) != 1 for row in rows):
        raise InputError("packing is for sft only", field="packing", cure="Set it to none")
    encoder, counts, documents = Encoder(tokenizer), Counter[str](), []
    lost: InputError | None = None
    for row in rows:
        try:
            text = "".join(render(tokenizer, row.messages, row.responses[0] or "", settings.chat))
        except LostText as error:
            lost = in_record(error, row.name)
            counts[TEXT_LOST] += 1
            continue
        except InputError as error:
            raise in_record(error, row.name) from None
        documents.append(encoder(text))
    if lost and not documents:
        raise lost
    blocks, segments = pack_documents(
        documents, block=settings.tokens.max_length, bos_id=tokenizer.bos_token_id, eos_id=_eos(tokenizer)
    )
    reset = settings.packing == "reset"
    examples = [
        Example((tuple(block),), (1,), i, tuple(s) if reset else ())
        for i, (block, s) in enumerate(zip(blocks, segments))
    ]
    return examples, counts + Counter({"documents": len(documents), "blocks": len(blocks)})
