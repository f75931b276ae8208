"""From what a model writes to corrections: decoding, guards, long inputs, drafts (Alirector spec sections 8 and 12)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from rapidfuzz.distance import Levenshtein

from fusion_jax.correction.inputs import marks_of
from fusion_jax.correction.pairs import Pair, Triple
from fusion_jax.data.documents import AT_ONCE
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMPTY, TOO_LONG = "empty outputs, source returned", "outputs too long, source returned"
RESTORED = "sources with unknown symbols, restored"
GLUED = "sources whose words are glued by taking the spaces out"
UNENDED = "drafts without an end, left out"
CHUNK = 100  # characters
_MARKER = re.compile(r"^Output:", re.MULTILINE)
_WORDS = re.compile(r"[A-Za-z0-9] +[A-Za-z0-9]")
_UNKNOWN = "unknown"  # a unit that is no single character


@dataclass(frozen=True)
class GuardSettings:
    """What is not taken from a model; switch both off to reproduce published numbers."""

    guards: bool = True
    """Return the source for an output that is empty or longer than 2 * source + 20 characters."""
    unk_restore: bool = True
    """Keep characters of the source that the tokenizer does not know, which the model cannot write."""


class Corrections(NamedTuple):
    """texts: one for each source; counts: how often which guard acted."""

    texts: list[str]
    counts: Counter[str]


def decoded_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an encoder-decoder's output: without special tokens (so unknown symbols vanish) and spaces."""
    return _decoded(tokenizer, ids, skip_special_tokens=True).replace(" ", "")


def chat_text(text: str) -> str:
    """The correction in what a decoder alone has written: what follows the first line's beginning "Output:" or, where
    the prompt was left out, all of it; without spaces.

    >>> chat_text("Input: a\\nOutput: b c ")
    'bc'
    """
    return _MARKER.split(text, maxsplit=1)[-1].strip().replace(" ", "")


def corrections(
    sources: Sequence[str],
    outputs: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    settings: GuardSettings | None = None,
) -> Corrections:
    """The corrections of an encoder-decoder: one output, token ids, for each source, in its order.

    Raises:
      InputError: another number of outputs; a tokenizer without the special tokens.
    """
    settings = settings or GuardSettings()
    _check_count(sources, outputs)
    texts = [decoded_text(tokenizer, ids) for ids in outputs]
    counts = Counter[str]()
    for number, spans in enumerate(_unknown_spans(tokenizer, sources) if settings.unk_restore else ()):
        if spans:
            texts[number] = restored(sources[number], spans, _with_unknown(tokenizer, outputs[number]))
            counts[RESTORED] += 1
    found = guarded(sources, texts, settings)
    return Corrections(found.texts, found.counts + counts)


def chat_corrections(
    sources: Sequence[str], outputs: Sequence[str], settings: GuardSettings | None = None
) -> Corrections:
    """The corrections of a decoder alone: one text that it has written, with or without its prompt, for each source."""
    _check_count(sources, outputs)
    return guarded(sources, [chat_text(text) for text in outputs], settings or GuardSettings())


def guarded(sources: Sequence[str], texts: Sequence[str], settings: GuardSettings) -> Corrections:
    """The texts, or sources in the place of those that are empty or too long."""
    counts, out = Counter[str](), []
    for source, text in zip(sources, texts, strict=True):
        counts[GLUED] += _WORDS.search(source) is not None
        reason = None
        if settings.guards:
            reason = EMPTY if not text.strip() else TOO_LONG if len(text) > 2 * len(source) + 20 else None
        if reason is not None:
            counts[reason] += 1
        out.append(text if reason is None else source)
    return Corrections(out, +counts)


def restored(source: str, unknown: Sequence[tuple[int, int]], output: Sequence[str | None]) -> str:
    """An output in which the source's unknown symbols stand as they stood.

    Source and output are aligned by the fewest insertions, deletions and replacements of symbols; what the output makes
    of an unknown symbol of the source is refused, and an unknown symbol of the output that has no counterpart is left
    out.

    Args:
      unknown: where the source's unknown symbols start and end, in order.
      output: its characters; None is a symbol that the tokenizer does not know.

    >>> restored("我爱龘。", [(2, 3)], ["我", "爱", None, "吗", "。"])
    '我爱龘吗。'
    """
    units, texts, end = list[str](), list[str](), 0
    for start, stop in [*unknown, (len(source), len(source))]:
        known = [c for c in source[end:start] if not c.isspace()]
        units += known
        texts += known
        if stop > start:
            units.append(_UNKNOWN)
            texts.append(source[start:stop])
        end = stop
    written = [_UNKNOWN if one is None else one for one in output]
    out = []
    for change in Levenshtein.opcodes(units, written):
        here = range(change.src_start, change.src_end)
        said = ["" if one == _UNKNOWN else one for one in written[change.dest_start : change.dest_end]]
        if change.tag == "insert":
            out += said
        else:  # one symbol of the output for each of the source, or none
            out += [texts[i] if units[i] == _UNKNOWN else one for i, one in zip(here, said or [""] * len(here))]
    return "".join(out)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return text


def _unknown_spans(tokenizer: PreTrainedTokenizerBase, sources: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Where each source's unknown symbols start and end."""
    unk, out = marks_of(tokenizer).unk, []
    for start in range(0, len(sources), AT_ONCE):
        found = tokenizer(
            list(sources[start : start + AT_ONCE]), add_special_tokens=False, split_special_tokens=True,
            return_offsets_mapping=True,
        )  # fmt: skip
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True):
            out.append([(a, b) for i, (a, b) in zip(ids, offsets, strict=True) if i == unk])
    return out


def _with_unknown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str | None]:
    """The characters of an output, None for each symbol that the tokenizer does not know."""
    out = list[str | None]()
    left_out = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    kept = [i for i in ids if i not in left_out]
    pieces = _decoded(tokenizer, kept, skip_special_tokens=False).split(tokenizer.unk_token)
    for number, piece in enumerate(pieces):
        out += [None] if number else []
        out += piece.replace(" ", "")
    return out


def _check_count(sources: Sequence[str], outputs: Sequence[object]) -> None:
    if len(sources) != len(outputs):
        problem = f"there are {len(outputs)} outputs for {len(sources)} sources"
        raise InputError(problem, field="outputs", cure="Give one for each source, in their order")


def chunks(text: str, longest: int = CHUNK) -> list[str]:
    """A text cut every `longest` characters; an empty one is one piece.

    >>> chunks("abcdefg", 3)
    ['abc', 'def', 'g']
    """
    return [text[i : i + longest] for i in range(0, len(text), longest)] or [text]


def corrected_in_chunks(
    sources: Sequence[str],
    correct: Callable[[Sequence[str]], Sequence[str]],
    *,
    longest: int = CHUNK,
    simplified: Callable[[str], str] = str,
) -> list[str]:
    """Long sources corrected piece by piece, and put together again.

    Args:
      correct: corrections of several texts. simplified: from traditional to simplified characters, which the published
        code does in this mode alone; by default nothing is converted.
    """
    pieces = [chunks(source, longest) for source in sources]
    found = list(correct([piece for some in pieces for piece in some]))
    ends = accumulate(map(len, pieces), initial=0)
    return [simplified("".join(found[a:b])) for a, b in pairwise(ends)]


def draft_triples(
    pairs: Sequence[Pair], drafts: Sequence[str], ended: Sequence[bool]
) -> tuple[list[Triple], Counter[str]]:
    """Pairs with the drafts of their sources; those whose draft was cut before its end are left out and counted.

    Args:
      ended: whether each draft has its end token.

    Raises:
      InputError: another number of drafts; nothing left.
    """
    _check_count([pair.source for pair in pairs], drafts)
    both = zip(pairs, drafts, ended, strict=True)
    triples = [Triple(pair.source, pair.target, draft) for pair, draft, whole in both if whole]
    if pairs and not triples:
        raise InputError("no draft has an end", field="drafts", cure="Train the corrector longer, or allow more tokens")
    return triples, +Counter({UNENDED: len(pairs) - len(triples)})
