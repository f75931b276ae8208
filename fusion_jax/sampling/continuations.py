"""How probable given continuations of prompts are: log-probabilities of every token, for choices, labels and exams.

    found = continuation_scores(model, ["The sky is"], [[" blue", " a kind of cheese"]])
    max(found[0], key=lambda one: one.logprob)

A prompt is read once, and its continuations side by side in one forward pass behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fusion_jax.arguments import listed, texts
from fusion_jax.data.chat import LostText, render_each
from fusion_jax.data.clip import Clip
from fusion_jax.errors import InputError
from fusion_jax.models.config import ModelConfig
from fusion_jax.models.folder import Model
from fusion_jax.sampling.generate import sampling_dtype
from fusion_jax.sampling.prompts import Ready, ready
from fusion_jax.sampling.session import Candidate, Scored, scored, start
from fusion_jax.sampling.sizes import LEAST_PACKED, PACKED_TOKENS, chunks
from fusion_jax.sharding import data_ways, padded_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Continuation(NamedTuple):
    """ids: the tokens of a continuation; logprobs: float[n], of each given the prompt and those before it; greedy:
    whether each of them is the most probable one."""

    ids: tuple[int, ...]
    logprobs: np.ndarray
    greedy: bool

    @property
    def logprob(self) -> float:
        """Of the whole continuation: the sum."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids)


class Choices(NamedTuple):
    """A prompt and its continuations as token ids. An encoder reads the prompt, and the decoder the continuations."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


def continuation_scores(
    model: Model,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    chat: bool = False,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    dtype: Any = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[Continuation]]:
    """Log-probabilities of continuations of every prompt, in the order in which they are given.

    The tokens are those of lm-eval's harness: prompt and continuation are encoded together, and what follows as many
    tokens as the prompt has alone belongs to the continuation, to which white space at the end of the prompt is moved.
    An empty prompt is the BOS token (or EOS, where there is none).

    Args:
      continuations: a list for each prompt, of texts that each have at least one token.
      chat: each prompt is one user message in the model's chat template, and the continuations are beginnings of its
        answer; the white space that the template writes stays where it is. An encoder reads prompts as they stand.
      batch_size: prompts at once, at least, so that the devices divide them.
      mesh: what to compute on, see `decoding_mesh`.
      dtype: of the computation; None: bfloat16, on a CPU float32 (or wider, if the parameters are).
      progress: called with the number of prompts done, as they are.

    Raises:
      InputError: a single text in place of a list; another number of lists than of prompts; a continuation without a
        token; a model without a tokenizer, a decoder or, for chat, a template; texts that its positions do not hold.
    """
    tokenizer, config = model.reader, model.config
    if not config.decoder or config.head.labels:
        raise InputError(f"{config.model_type} is no language model", cure="Give a model that writes text")
    asked = encoded_choices(tokenizer, config, prompts, continuations, chat=chat)
    out: list[list[Continuation]] = [[] for _ in asked]
    made = ready(model.params, config, dtype or sampling_dtype(model), mesh)
    for done, (number, found) in enumerate(scores_of(made, asked, batch_size), 1):
        if not all(np.isfinite(one.logprob) for one in found):
            cure = "Check the weights and the dtype"
            raise InputError("the model's logits are not finite", record=number + 1, cure=cure)
        out[number] = found
        progress(done)
    return out


def scores_of(model: Ready, asked: Sequence[Choices], batch_size: int = 32) -> Iterator[tuple[int, list[Continuation]]]:
    """The continuations of each prompt scored, with its number; short prompts first, a session for each batch of them.

    A forward pass reads so many tokens that memory is bounded, whatever the number of continuations.
    """
    rows = padded_rows(batch_size, data_ways(model.how.mesh))
    most = max(PACKED_TOKENS // rows, LEAST_PACKED)
    order = sorted(range(len(asked)), key=lambda number: len(asked[number].prompt))
    for numbers in chunks(order, batch_size):
        session = start(model, [asked[number].prompt for number in numbers], rows=rows)
        offered = [
            [Candidate(len(text), ids) for ids in asked[number].continuations]
            for number, text in zip(numbers, session.texts, strict=True)
        ]
        for number, found in zip(numbers, scored(model, session, offered, greedy=True, most=most), strict=True):
            yield number, [_told(*one) for one in zip(asked[number].continuations, found, strict=True)]


def _told(ids: Sequence[int], found: Scored) -> Continuation:
    return Continuation(tuple(ids), found.logprobs, bool(found.greedy.all()))


def encoded_choices(
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    chat: bool = False,
) -> list[Choices]:
    """The token ids that `continuation_scores` scores; see there."""
    prompts = texts(prompts, "prompts")
    given = [texts(one, "continuations") for one in listed(continuations, "continuations", "lists", "Give a list each")]
    if len(given) != len(prompts):
        problem = f"has {len(given)} lists for {len(prompts)} prompts"
        raise InputError(problem, field="continuations", cure="Give one each")
    _check_characters(tokenizer, config, prompts)
    if config.encoder:
        read = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
        own = [[_plain(tokenizer, text) for text in some] for some in given]
        asked = [Choices(*one) for one in zip(read, own, strict=True)]
    elif chat:
        rendered = render_each(tokenizer, [[{"role": "user", "content": p}] for p in prompts], header=True)
        asked = [_behind(tokenizer, _kept(text), some, ()) for text, some in zip(rendered, given, strict=True)]
    else:
        first = before_texts(tokenizer)
        moved = [(prompt.rstrip(), prompt[len(prompt.rstrip()) :]) for prompt in prompts]
        asked = [
            _behind(tokenizer, prompt, [space + text for text in some], first)
            for (prompt, space), some in zip(moved, given, strict=True)
        ]
    for number, one in enumerate(asked, 1):
        _check(config, number, one)
    return asked


def _behind(tokenizer: PreTrainedTokenizerBase, prompt: str, some: Sequence[str], first: tuple[int, ...]) -> Choices:
    """A prompt behind the tokens `first`, and continuations: what follows as many tokens as the prompt has alone."""
    alone = _plain(tokenizer, prompt)
    whole = [_plain(tokenizer, prompt + text) for text in some]
    ids = [*first, *alone] or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    return Choices(ids, [one[len(alone) :] for one in whole])


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def before_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that a tokenizer sets before a text."""
    whole, plain = list(tokenizer("a")["input_ids"]), _plain(tokenizer, "a")
    places = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return tuple(whole[: next(places, 0)])


def _kept(text: str | LostText) -> str:
    if isinstance(text, LostText):
        raise text
    return text


def _check_characters(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, prompts: Sequence[str]) -> None:
    """Before they are tokenised."""
    clip = Clip(tokenizer, config.max_positions)
    for number, prompt in enumerate(prompts, 1):
        if clip.too_long(prompt):
            raise InputError(
                f"has {len(prompt)} characters, more than the model's {config.max_positions} positions hold",
                record=number, field="prompt", cure="Shorten it",
            )  # fmt: skip


def _check(config: ModelConfig, number: int, asked: Choices) -> None:
    if not asked.prompt:
        raise InputError("has no token", record=number, field="prompt", cure="Give a text or a BOS token")
    if not all(asked.continuations):
        problem = "holds a text that has no token behind the prompt's"
        raise InputError(problem, record=number, field="continuations", cure="Give a longer text, or leave it out")
    if max(map(max, [asked.prompt, *asked.continuations])) >= config.vocab_size:
        problem = f"holds a token id outside 0..{config.vocab_size - 1}"
        raise InputError(problem, record=number, field="prompt", cure="Use the model's own tokenizer")
    before, longest = 1 if config.encoder else len(asked.prompt), max(map(len, asked.continuations), default=0)
    both = f"{len(asked.prompt)} tokens and {longest} of a continuation"
    if max(before + longest, len(asked.prompt)) > config.max_positions:
        problem = f"{both} exceed the model's {config.max_positions} positions"
        raise InputError(problem, record=number, field="prompt", cure="Shorten the prompt")
    for switch in config.positions.switches:
        if before <= switch < before + longest:
            raise InputError(
                f"{both} cross {switch}, from where on the model turns all tokens otherwise: what it keeps of the "
                "prompt would not fit", record=number, field="prompt", cure="Give a shorter or a longer prompt",
            )  # fmt: skip
