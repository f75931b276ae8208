"""How much of a source's distributions would reach the pivot, from texts and tokenizers alone: before any training.

Rules: FuseLLM/FuseChat spec section 6; the report that section 17 asks for. No model is needed, since the rule of a
position depends on its tokens. What depends on a model is not seen: a row whose entries all have no image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from fusion_jax.align.classes import CLASSES, token_classes
from fusion_jax.align.distributions import planned_rules
from fusion_jax.align.rules import RowRule, Rules
from fusion_jax.align.sequences import Alignment, Variant, align, byte_offsets
from fusion_jax.align.settings import AlignSettings
from fusion_jax.align.views import Pieces, TokenizerView
from fusion_jax.align.vocabulary import Kind, count_pairs
from fusion_jax.data.windows import split_windows
from fusion_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["dp", "byte_offsets"]
RULE_NAMES = ("exact", "suffix", "one-to-many", "fallback", "empty")  # of RowRule 0 to 4


class NamedTokenizer(NamedTuple):
    """One of the two tokenizers, a fast one, with its view and what it is called."""

    tokenizer: PreTrainedTokenizerBase
    view: TokenizerView
    name: str = ""


class AlignedText(NamedTuple):
    """A text, or a window of one, in both tokenisations: int32[m] and int32[n] ids, and their alignment."""

    pivot_ids: np.ndarray
    source_ids: np.ndarray
    alignment: Alignment


class GroupCoverage(NamedTuple):
    """Coverage of a group of texts.

    rules: share of the pivot's tokens by rule, keys `RULE_NAMES`, sum 1.
    unmapped: share of the source's tokens whose id has no image under the map of the rules; altered: share of those
      whose image is another text; inexact: share of those without a pivot piece of the same text, whatever the map.
    """

    group: str
    texts: int
    pivot_tokens: int
    source_tokens: int
    rules: dict[str, float]
    unmapped: float
    inexact: float
    altered: float = 0.0

    @property
    def taken(self) -> float:
        """Share of the pivot's tokens that get a row of the source."""
        return sum(self.rules[name] for name in RULE_NAMES[:3])


class ClassCoverage(NamedTuple):
    """What reaches the pivot of one class of tokens (`classes.CLASSES`).

    tokens: share of the pivot's tokens that are of it; taken: of those, how many get a row of the source.
    mass: share of the source's mass that stands on tokens of it; kept, altered, unmapped: of that mass, what stands on
      tokens whose image is the same text, another text, none. Their sum is 1, or 0 where there is no mass.
    """

    tokens: float
    taken: float
    mass: float
    kept: float
    altered: float
    unmapped: float


class WorstToken(NamedTuple):
    """A pivot token that falls back: how often, out of how many times it occurs, and what stood across from it.

    example: the source's pieces at the first such place, of the group named; empty where no token was aligned.
    """

    id: int
    piece: str
    fallbacks: int
    occurrences: int
    group: str
    example: tuple[str, ...]


class AlteredPiece(NamedTuple):
    """A source piece whose image is another text: how often it occurs, and the image."""

    id: int
    piece: str
    occurrences: int
    image: int
    image_piece: str


class Images(NamedTuple):
    """What becomes of the source's pieces under a map: shares of the different pieces, and of the tokens of texts.

    unmapped: without an image; altered: whose image is another text.
    examples: of those, by falling number of occurrences, the lowest id first among equals.
    """

    unmapped_types: float
    altered_types: float
    unmapped: float
    altered: float
    examples: tuple[AlteredPiece, ...]


class Coverage(NamedTuple):
    """Groups in their order, then all of them together as "all" where there are several.

    classes: of all groups together, by `classes.CLASSES`; mass is that of a teacher who is sure of each next token.

    unmapped_types, inexact_types: as in `GroupCoverage`, of the source's different pieces.
    worst: by falling number of fallbacks, the lowest id first among equals.
    """

    groups: tuple[GroupCoverage, ...]
    unmapped_types: float
    inexact_types: float
    worst: tuple[WorstToken, ...]
    images: Images
    classes: dict[str, ClassCoverage]


class Direction(NamedTuple):
    """What a source's knowledge of the texts becomes for a pivot. images: of the source's pieces under each map."""

    pivot: str
    source: str
    found: Coverage
    images: Mapping[str, Images]

    @property
    def title(self) -> str:
        return f"{self.pivot} \u2190 {self.source}"


def align_texts(
    texts: Sequence[str],
    pivot: NamedTokenizer,
    source: NamedTokenizer,
    variant: Variant,
    *,
    method: Method = "dp",
    max_length: int = 2048,
    pieces: Pieces = "bytes",
) -> list[AlignedText]:
    """Texts tokenised without special tokens and aligned; long ones in windows, blank ones left out.

    Args:
      method: "dp", the variant's edit-distance alignment, or "byte_offsets", equal ends in the text.
      max_length: tokens of either side in a window.
      pieces: as in `sequences.align`.

    Raises:
      InputError: an unknown method, a slow tokenizer, a text of which a tokenizer keeps nothing.
    """
    if method not in get_args(Method):
        raise InputError(f"'{method}' is unknown", field="align", cure=f"Known: {', '.join(get_args(Method))}")
    tokenizers = [pivot.tokenizer, source.tokenizer]
    windows, _ = split_windows(texts, tokenizers, max_length)
    ours, theirs = (
        t([w.text for w in windows], add_special_tokens=False, return_offsets_mapping=True) if windows else {}
        for t in tokenizers
    )
    out = []
    for i, window in enumerate(windows):
        p, s = (np.asarray(side["input_ids"][i], np.int32) for side in (ours, theirs))
        for ids, name in ((p, "pivot"), (s, "source")):
            if not len(ids):
                problem = f"the {name} tokenizer makes no token of it"
                raise InputError(problem, record=window.text_index + 1, field="text", cure="Leave this text out")
        if method == "dp":
            found = align(p, s, pivot.view, source.view, variant, pieces)
        else:
            found = byte_offsets(*(np.asarray(side["offset_mapping"][i]) for side in (ours, theirs)))
        out.append(AlignedText(p, s, found))
    return out


class _Tally:
    """Counts of one group: tokens by rule, source ids, pivot ids by occurrence and by fallback."""

    def __init__(self, rules: Rules) -> None:
        self.rule = np.zeros(len(RULE_NAMES), np.int64)
        self.source = np.zeros(rules.source.size, np.int64)
        self.texts = 0

    def add(self, rule: np.ndarray, text: AlignedText) -> None:
        self.rule += np.bincount(rule, minlength=len(self.rule))
        self.source += np.bincount(text.source_ids, minlength=len(self.source))
        self.texts += 1

    def result(self, group: str, rules: Rules) -> GroupCoverage:
        tokens, theirs = int(self.rule.sum()), int(self.source.sum())
        shares = dict(zip(RULE_NAMES, (self.rule / tokens).tolist(), strict=True))
        lost = (rules.images < 0, rules.exact < 0, rules.altered)
        unmapped, inexact, astray = (float(self.source[ids].sum() / theirs) for ids in lost)
        return GroupCoverage(group, self.texts, tokens, theirs, shares, unmapped, inexact, astray)


def occurrences_of(texts: Iterable[AlignedText], source: TokenizerView) -> np.ndarray:
    """int64[source size], how often each source id stands in the texts."""
    out = np.zeros(source.size, np.int64)
    for text in texts:
        out += np.bincount(text.source_ids, minlength=len(out))
    return out


def images_of(rules: Rules, occurrences: np.ndarray, most: int = 20) -> Images:
    """What becomes of the source's pieces, and of tokens that occur so often: int64[source size]."""
    source, pivot = rules.source, rules.pivot
    kinds = np.asarray([bool(piece) for piece in source.pieces])
    whole = max(int(occurrences.sum()), 1)
    none, astray = rules.images < 0, rules.altered
    ids = sorted(np.flatnonzero(astray).tolist(), key=lambda i: (-occurrences[i], i))[:most]
    images = [int(rules.images[i]) for i in ids]
    return Images(
        unmapped_types=float(none[kinds].mean()), altered_types=float(astray[kinds].mean()),
        unmapped=float(occurrences[none].sum() / whole), altered=float(occurrences[astray].sum() / whole),
        examples=tuple(
            AlteredPiece(i, source.pieces[i], int(occurrences[i]), image, pivot.pieces[image])
            for i, image in zip(ids, images, strict=True)
        ),
    )  # fmt: skip


def by_class(rules: Rules, occurrences: np.ndarray, taken: np.ndarray, mass: np.ndarray) -> dict[str, ClassCoverage]:
    """The coverage of each class of tokens that occurs on either side.

    Args:
      occurrences, taken: int[pivot size], how often each pivot id stands in the texts, and gets a row there.
      mass: float[source size], the source's mass on each of its ids, summed over positions.
    """
    ours, theirs = token_classes(rules.pivot), token_classes(rules.source)

    def sums(classes: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(classes, values.astype(np.float64), len(CLASSES))

    none, astray = rules.images < 0, rules.altered
    tokens, rows, whole = sums(ours, occurrences), sums(ours, taken), sums(theirs, mass)
    lost, elsewhere = sums(theirs, np.where(none, mass, 0.0)), sums(theirs, np.where(astray & ~none, mass, 0.0))

    def shares(parts: np.ndarray, of: np.ndarray | np.float64) -> np.ndarray:
        return parts / np.where(of > 0, of, 1.0)

    columns = (
        shares(tokens, tokens.sum()), shares(rows, tokens), shares(whole, whole.sum()),
        *(shares(part, whole) for part in (whole - lost - elsewhere, elsewhere, lost)),
    )  # fmt: skip
    found = {name: ClassCoverage(*line) for name, line in zip(CLASSES, np.stack(columns, 1).tolist(), strict=True)}
    return {name: found[name] for name, here in zip(CLASSES, (tokens + whole > 0).tolist(), strict=True) if here}


def coverage(groups: Mapping[str, Iterable[AlignedText]], rules: Rules, *, worst: int = 20) -> Coverage:
    """The coverage of each group of texts, of all together, and the tokens that fall back most.

    Raises:
      InputError: no texts in a group, ids of other tokenizers.
    """
    everything, found = _Tally(rules), []
    occurrences, taken = np.zeros((2, rules.pivot.size), np.int64)
    fallbacks: Counter[int] = Counter()
    examples: dict[int, tuple[str, tuple[str, ...]]] = {}
    for name, texts in groups.items():
        tally = _Tally(rules)
        for text in texts:
            rule = planned_rules(text.alignment, text.pivot_ids, text.source_ids, rules)
            tally.add(rule, text)
            everything.add(rule, text)
            occurrences += np.bincount(text.pivot_ids, minlength=len(occurrences))
            taken += np.bincount(text.pivot_ids[rule < RowRule.FALLBACK], minlength=len(taken))
            places = np.flatnonzero(rule == RowRule.FALLBACK)
            lost = text.pivot_ids[places].tolist()
            fallbacks.update(lost)
            for place, token in zip(places.tolist(), lost):
                if token not in examples:
                    examples[token] = name, _across(text, place, rules.source)
        if not tally.texts:
            raise InputError("holds no text that is not blank", field=name, cure="Leave the group out")
        found.append(tally.result(name, rules))
    if not found:
        raise InputError("there is no group of texts", field="groups")
    most = sorted(fallbacks, key=lambda token: (-fallbacks[token], token))[:worst]
    kinds = np.asarray([bool(piece) for piece in rules.source.pieces])
    return Coverage(
        groups=(*found, *([everything.result("all", rules)] if len(found) > 1 else [])),
        unmapped_types=float((rules.images < 0)[kinds].mean()), inexact_types=float((rules.exact < 0)[kinds].mean()),
        worst=tuple(
            WorstToken(t, rules.pivot.pieces[t], fallbacks[t], int(occurrences[t]), *examples[t]) for t in most
        ),
        images=images_of(rules, everything.source, worst),
        classes=by_class(rules, occurrences, taken, everything.source),
    )  # fmt: skip


def _across(text: AlignedText, place: int, source: TokenizerView) -> tuple[str, ...]:
    """The source's pieces that a pivot position is aligned with."""
    first, last = int(text.alignment.first[place]), int(text.alignment.last[place])
    return tuple(source.pieces[i] for i in text.source_ids[first : last + 1].tolist()) if first >= 0 else ()


def direction_of(
    how: AlignSettings,
    maps: Iterable[Kind],
    pivot: NamedTokenizer,
    source: NamedTokenizer,
    groups: Mapping[str, Sequence[str]],
    *,
    max_length: int,
    worst: int,
) -> Direction:
    """The coverage of groups of texts, and what becomes of the source's pieces under each map.

    Args:
      how: the rules, with the map of the coverage. The exact mode (`hard`) is for the exact map alone.
      maps: whose images are told besides. max_length: tokens of a window; worst: tokens shown of those that fall back.
    """
    method: Method = "dp" if how.tokens == "dp" else "byte_offsets"
    aligned = {
        name: align_texts(texts, pivot, source, how.rules, method=method, max_length=max_length, pieces=how.pieces)
        for name, texts in groups.items()
    }
    every = [text for texts in aligned.values() for text in texts]
    views = pivot.view, source.view
    counts = count_pairs(every, *views)

    def rules(kind: Kind) -> Rules:
        own = replace(how, vocabulary=kind, hard=how.hard and kind == "exact")
        return own.rules_of(views, own.make_map(views, counts), counts)

    found, occurrences = coverage(aligned, rules(how.vocabulary), worst=worst), occurrences_of(every, source.view)
    images: dict[str, Images] = {
        kind: found.images if kind == how.vocabulary else images_of(rules(kind), occurrences, worst)
        for kind in dict.fromkeys((*maps, how.vocabulary))
    }
    return Direction(pivot.name, source.name, found, images)
