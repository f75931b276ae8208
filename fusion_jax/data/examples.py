"""Rows of text to examples of tokens: template, tokenisation, truncation, with what happened counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from fusion_jax.data.batches import Example
from fusion_jax.data.chat import ChatSettings, render
from fusion_jax.data.records import Row
from fusion_jax.data.tokenise import TokeniseSettings, pack_documents, tokenise_row
from fusion_jax.errors import InputError


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


def make_examples(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, settings: TextSettings
) -> tuple[list[Example], Counter[str]]:
    """Examples in the order of `rows` (their `index` points into it), and counts of what was cut or absent."""
    if settings.packing != "none":
        return _packed(rows, tokenizer, settings)
    _check_lengths(settings.tokens)
    eos, encoder, counts = _eos(tokenizer), Encoder(tokenizer), Counter[str]()
    rendered = []
    for row in rows:
        present = [r for r in row.responses if r is not None]
        rendered.append([render(tokenizer, row.messages, r, settings.chat) for r in present])
    encoder.warm([t for texts in rendered for prompt, answer in texts for t in (prompt, prompt + answer)])
    examples = []
    for index, (row, texts) in enumerate(zip(rows, rendered)):
        try:
            tokens = tokenise_row(
                encoder, texts[0][0], [answer for _, answer in texts], settings.tokens,
                bos_id=tokenizer.bos_token_id, eos_id=eos,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(
                str(error), record=row.name, cure="Check the tokenizer and the truncation settings"
            ) from None
        counts["truncated"] += tokens.cut
        pieces = list(zip(tokens.prompts, tokens.responses))
        if any(not prompt for prompt, _ in pieces):
            counts["empty prompt: the first response token is not scored"] += 1
        lines = [(tuple(prompt + answer), len(prompt)) for prompt, answer in pieces]
        filled = []
        for response in row.responses:
            if response is None:
                counts["no source response"] += 1
                filled.append((lines[0][0][: max(lines[0][1], 1)], max(lines[0][1], 1)))
            else:
                filled.append(lines.pop(0) if len(lines) > 1 else lines[0])
        example = Example(tuple(r for r, _ in filled), tuple(s for _, s in filled), index)
        counts["no token left to score"] += not any(example.scored)
        examples.append(example)
    return examples, counts


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
    encoder = Encoder(tokenizer)
    documents = [
        encoder("".join(render(tokenizer, row.messages, row.responses[0] or "", settings.chat))) for row in rows
    ]
    blocks, segments = pack_documents(
        documents, block=settings.tokens.max_length, bos_id=tokenizer.bos_token_id, eos_id=_eos(tokenizer)
    )
    reset = settings.packing == "reset"
    examples = [
        Example((tuple(block),), (1,), i, tuple(s) if reset else ())
        for i, (block, s) in enumerate(zip(blocks, segments))
    ]
    return examples, Counter({"documents": len(rows), "blocks": len(blocks)})
