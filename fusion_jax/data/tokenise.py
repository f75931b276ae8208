"""From (prompt text, response texts) to token ids, by the official rules (WRPO spec section 4.2) or by better ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from fusion_jax.display import brief
from fusion_jax.errors import InputError
from fusion_jax.settings import bounded

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class TokeniseSettings:
    """Lengths in tokens, and special tokens.

    A response that ends its turn with EOS needs none, also where the template writes white space behind it,
    which is left out.
    """

    max_length: int = 2048
    """Longest example: prompt and response together."""
    max_prompt_length: int = 1800
    """Longest prompt, where something has to be cut."""
    truncation_mode: Literal["keep_end", "keep_start"] = "keep_end"
    """Which end of a prompt that is too long is kept."""
    truncation: Literal["official", "fit"] = "fit"
    """Cut only what does not fit: prompts to max_prompt_length, then each response to the room that is left (fit); or
    prompts to max_prompt_length and then every response to max_length - max_prompt_length, as the published code does
    (official)."""
    eos: Literal["always", "if_missing"] = "always"
    """Append EOS to every response, as WRPO does, or only where it is missing."""
    bos: Literal["template", "if_missing"] = "template"
    """Add no BOS to what the template writes, or put one before a prompt that lacks it (as pairwise trainers do)."""

    def __post_init__(self) -> None:
        bounded(self, "max_length", "max_prompt_length", least=1)


@dataclass(frozen=True)
class TokenisedRow:
    """prompts[g] + responses[g] is row g; `cut` says whether anything was shortened."""

    prompts: tuple[list[int], ...]
    responses: tuple[list[int], ...]
    cut: bool

    def __repr__(self) -> str:
        return brief(self)


def split_ids(prompt: Sequence[int], joint: Sequence[int]) -> int:
    """Where the response starts in the joint ids: behind the prompt, one earlier if a token merged across it."""
    return len(prompt) if list(joint[: len(prompt)]) == list(prompt) else max(len(prompt) - 1, 0)


def tokenise_row(
    encode: Encode,
    prompt: str,
    responses: Sequence[str],
    settings: TokeniseSettings,
    *,
    bos_id: int | None,
    eos_id: int,
    prompt_ids: Sequence[int] | None = None,
    ends: Collection[int] = (),
    blank: Callable[[Sequence[int]], bool] = lambda ids: False,
) -> TokenisedRow:
    """Tokenise one prompt with its responses.

    Args:
      encode: text to ids, adding no special tokens.
      prompt_ids: `encode(prompt)` where it is known already.
      ends: ids that end a turn beside EOS: a response that closes with one of them misses no EOS.
      blank: whether ids are white space only; such ids behind the end of a turn are left out (eos "if_missing").

    Raises:
      ValueError: the rows' prompts differ by more than one token (as in the official code), an unknown
        truncation mode when a cut is needed.
    """
    alone = list(encode(prompt) if prompt_ids is None else prompt_ids)
    prompts, answers = [], []
    for response in responses:
        joint = encode(prompt + response)
        start = split_ids(alone, joint)
        prompts.append(list(joint[:start]))
        answers.append(list(joint[start:]))
    _check_prompts(prompts)
    if settings.bos == "if_missing" and bos_id is not None:
        prompts = [p if p[:1] == [bos_id] else [bos_id, *p] for p in prompts]
    if settings.eos == "if_missing":
        answers = [_ended(a, {eos_id, *ends}, blank) or [*a, eos_id] for a in answers]
    else:
        answers = [[*a, eos_id] for a in answers]
    if settings.truncation == "official":
        kept_prompts, kept_answers = _official_cut(prompts, answers, settings)
    else:
        kept_prompts, kept_answers = _fit_cut(prompts, answers, settings, bos_id)
    shortened = kept_prompts != prompts or kept_answers != answers
    return TokenisedRow(tuple(kept_prompts), tuple(kept_answers), shortened)


def _ended(ids: list[int], ends: Collection[int], blank: Callable[[Sequence[int]], bool]) -> list[int]:
    """The ids up to the end of their turn if nothing but white space follows it, else []."""
    last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in ends), -1)
    return ids[: last + 1] if last + 1 == len(ids) or (last >= 0 and blank(ids[last + 1 :])) else []


def _check_prompts(prompts: list[list[int]]) -> None:
    """The rows of one example share their prompt, up to one token merged into a response."""
    lengths = [len(p) for p in prompts]
    shortest = min(lengths)
    differing = max(
        sum(a != b for a, b in zip(first[:shortest], other[:shortest])) for first in prompts for other in prompts
    )
    if differing > 1 or max(lengths) - shortest > 1:
        raise ValueError("the prompts of an example's rows differ by more than one token")


def _keep(ids: list[int], count: int, mode: str) -> list[int]:
    if mode == "keep_start":
        return ids[:count]
    if mode == "keep_end":
        return ids[-count:] if count else []
    raise ValueError(f"Unknown truncation mode: {mode}")


def _official_cut(
    prompts: list[list[int]], answers: list[list[int]], s: TokeniseSettings
) -> tuple[list[list[int]], list[list[int]]]:
    longest = max(map(len, answers))
    prompts = [
        _keep(p, s.max_prompt_length, s.truncation_mode) if len(p) + longest > s.max_length else p for p in prompts
    ]
    limit = s.max_length - s.max_prompt_length
    answers = [a[:limit] if len(p) + longest > s.max_length else a for p, a in zip(prompts, answers)]
    return prompts, answers


def _fit_cut(
    prompts: list[list[int]], answers: list[list[int]], s: TokeniseSettings, bos_id: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts give way down to max_prompt_length, the same in every row; then responses still too long."""
    longest = max(map(len, answers))
    room = max(s.max_length - longest, s.max_prompt_length)
    first = [bos_id] if bos_id is not None and room > 1 and all(p[:1] == [bos_id] for p in prompts) else []
    kept = room - len(first)
    prompts = [[*first, *_keep(p[len(first) :], kept, s.truncation_mode)] if len(p) > room else p for p in prompts]
    answers = [a[: s.max_length - len(p)] for p, a in zip(prompts, answers)]
    return prompts, answers


def pack_documents(
    documents: Sequence[Sequence[int]],
    *,
    block: int,
    bos_id: int | None,
    eos_id: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """The official SFT packing: documents end to end, cut into blocks, the last partial one dropped (spec 6.1).

    Each document gets one EOS behind it and, where the tokenizer has a BOS, one more in front (the template put the
    first one there).

    Returns:
      (blocks of token ids, blocks of document numbers from 1).
    """
    ids: list[int] = []
    segments: list[int] = []
    for number, document in enumerate(documents, 1):
        packed = ([] if bos_id is None else [bos_id]) + list(document) + [eos_id]
        ids += packed
        segments += [number] * len(packed)
    count = len(ids) // block
    if count == 0:
        raise InputError(
            f"all documents together have {len(ids)} tokens, less than one block of {block}", field="max_length",
            cure="Give more data or a smaller block",
        )  # fmt: skip
    return (
        [ids[i * block : (i + 1) * block] for i in range(count)],
        [segments[i * block : (i + 1) * block] for i in range(count)],
    )
