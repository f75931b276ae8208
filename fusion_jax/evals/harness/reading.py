"""Requests of lm-eval as tokens, put together as its `hf` backend does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from fusion_jax.data.chat import Unfaithful, render_text
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """The tokens of a context, at least one, and of what is to be scored behind it, at least one."""

    context: Ids
    continuation: Ids


@dataclass(frozen=True)
class Reader:
    """How texts become tokens.

    encoder: whether an encoder reads contexts, and a decoder their continuations. add_bos: whether special tokens
    stand around texts; None: as the tokenizer does it. prefix: the token that stands before a text without a context;
    None: BOS or, where there is none, EOS.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: bool = False
    add_bos: bool | None = None
    prefix: int | None = None

    @property
    def first(self) -> int:
        """The token before a text that has no context.

        Raises:
          InputError: the tokenizer has neither BOS nor EOS.
        """
        found = (self.prefix, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        token = next((one for one in found if one is not None), None)
        if token is None:
            raise InputError(
                "the tokenizer has neither a BOS nor an EOS token to stand before a text", field="prefix_token_id",
                cure="Give the id of a token",
            )  # fmt: skip
        return token

    def ids(self, text: str, special: bool | None = None) -> Ids:
        """The tokens of a text. special: whether with the tokenizer's special tokens; None: as `add_bos` says, and
        without where the text begins with BOS already, as the text of a chat template does."""
        if special is None:
            special = self.add_bos
            starts = (self.prefix, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
            if any(one is not None for one in starts) and text.startswith(self.tokenizer.decode([self.first])):
                special = False
        chosen = {} if special is None else {"add_special_tokens": special}
        return tuple(self.tokenizer(text, **chosen)["input_ids"])

    def pairs(self, asked: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations as tokens.

        White space at the end of a context belongs to its continuation; both are encoded together, and what follows as
        many tokens as the context has alone is the continuation (of a model with an encoder each is encoded alone). An
        empty context is `first`, unless the continuation begins with that.

        Raises:
          InputError: a continuation without a token, by its number.
        """
        alone: dict[str, Ids] = {}  # most contexts have several continuations
        out = []
        for number, (context, continuation) in enumerate(asked, 1):
            pair = self._pair(context, continuation, alone)
            if not pair.continuation:
                problem = "holds no token behind its context's"
                raise InputError(problem, record=number, field="continuation", cure="Give a longer text")
            out.append(pair)
        return out

    def _pair(self, context: str, continuation: str, alone: dict[str, Ids]) -> Pair:
        if not context:
            ids = self.ids(continuation, special=False)
            return Pair(ids[:1], ids[1:]) if ids[:1] == (self.first,) else Pair((self.first,), ids)
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if kept not in alone:
            alone[kept] = self.ids(kept)
        if self.encoder:
            return Pair(alone[kept], self.ids(continuation, special=False))
        before = alone[kept] or (self.first,)
        return Pair(before, self.ids(kept + continuation)[len(alone[kept]) :])

    def windows(self, text: str, most: int) -> list[Pair]:
        """The tokens of a text, each scored once, in windows of at most `most` of them; see `windows`."""
        return list(windows(self.ids(text), self.first, most))

    def prompt(self, text: str, most: int) -> Ids:
        """The last `most` tokens of what is to be continued."""
        return (self.ids(text) or (self.first,))[-most:]


def windows(ids: Sequence[int], first: int, most: int) -> Iterator[Pair]:
    """The tokens of a text, each scored once behind as many others as a model of `most` positions reads with it.

    >>> list(windows(range(5), 9, 4))
    [Pair(context=(9,), continuation=(0, 1, 2, 3)), Pair(context=(0, 1, 2, 3), continuation=(4,))]
    """
    if ids:
        yield Pair((first,), tuple(ids[:most]))
    for start in range(most, len(ids), most):
        end = min(start + most, len(ids))
        yield Pair(tuple(ids[end - most - 1 : start]), tuple(ids[start:end]))


def fitted(pair: Pair, most: int, *, encoder: bool = False) -> Pair:
    """The pair with the end of its context, as much as a model of `most` positions reads: of a decoder both have
    most + 1 tokens at the longest, since the last one is not read; of an encoder the context has `most`.

    Raises:
      InputError: a continuation of more than `most` tokens.
    """
    if len(pair.continuation) > most:
        raise InputError(
            f"has {len(pair.continuation)} tokens, more than the model's {most} positions", field="continuation",
            cure="Leave the task out, or take a model of more positions",
        )  # fmt: skip
    return Pair(pair.context[-(most if encoder else most + 1 - len(pair.continuation)) :], pair.continuation)


def with_template(reader: Reader, name: str) -> Reader:
    """The reader with one of several chat templates, by its name.

    Raises:
      InputError: the tokenizer has several, and none of this name.
    """
    templates = reader.tokenizer.chat_template
    if not isinstance(templates, Mapping):
        return reader
    if name not in templates:
        cure = f"Choose one of {', '.join(sorted(templates))}"
        raise InputError(f"the tokenizer has no chat template '{name}'", field="apply_chat_template", cure=cure)
    import copy

    tokenizer = copy.copy(reader.tokenizer)
    tokenizer.chat_template = templates[name]
    return replace(reader, tokenizer=tokenizer)


def chat_text(reader: Reader, messages: Sequence[Mapping[str, str]], *, header: bool) -> str:
    """A conversation through the chat template.

    Args:
      header: whether the header of the assistant's answer stands behind it; else it ends with the last message's text,
        which is going to be continued.

    A template that refuses a system message is given the others, as the `hf` backend does.

    Raises:
      InputError: see `render_text`.
    """
    try:
        text = render_text(reader.tokenizer, messages, header=header)
    except Unfaithful:
        raise
    except InputError:
        others = [one for one in messages if one["role"] != "system"]
        if not reader.tokenizer.chat_template or len(others) == len(messages):
            raise
        log.warning("the chat template refuses the system message, which is left out")
        return chat_text(reader, others, header=header)
    if header or not messages:
        return text
    last = messages[-1]["content"].strip()
    return text[: text.rindex(last) + len(last)]
