"""ChERRANT's character-level edits of Chinese corrections, and the score of hypotheses by them.

Source: MuCGEC and ChERRANT, arXiv 2204.10994.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from fusion_jax.arguments import listed, texts
from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.cgec.alignment import check_size, minimal_paths
from fusion_jax.evals.cgec.costs import Dictionaries
from fusion_jax.evals.cgec.edits import NA, NOOP, Edit, as_edits, merged
from fusion_jax.evals.cgec.m2_files import Annotated
from fusion_jax.evals.cgec.report import Head, Report, by_rounded_f, compare, reported
from fusion_jax.evals.cgec.text import PLACEHOLDER, Tokens, characters, simplified

Mode = Literal["official_all", "first_path", "no_dict"]
NO_ERROR, NOT_ANNOTATABLE = tuple("没有错误"), tuple("无法标注")


class Edited(NamedTuple):
    """The edits of a pair. cut: it has too many minimal paths, and they are those of the first one."""

    edits: tuple[Edit, ...]
    cut: bool = False


def edits(
    source: str, target: str, mode: Mode = "no_dict", dictionaries: Dictionaries | None = None
) -> tuple[Edit, ...]:
    """The edits that turn a source into a target, in characters without whitespace.

    Args:
      target: is converted to simplified script. As the source, or "没有错误" (no error), it gives `NOOP`; "无法标注"
        (cannot be corrected) gives `NA`.
      mode: see `all_edits`.

    Raises:
      InputError: see `all_edits`.

    >>> edits("我昨天在商店买一本词典。", "我昨天在商店买了一本词典。")
    (Edit(start=7, end=7, type='M', correction='了'),)
    >>> edits("我学习每天中文", "我每天学习中文")
    (Edit(start=1, end=5, type='W', correction='每天学习'),)
    """
    [found] = all_edits([(characters(source), target)], mode, dictionaries)
    return found.edits


def all_edits(
    pairs: Sequence[tuple[Tokens, str]],
    mode: Mode = "no_dict",
    dictionaries: Dictionaries | None = None,
    numbers: Sequence[int] = (),
) -> list[Edited]:
    """`edits` of many pairs (characters of the source, target), aligned together.

    Args:
      mode: official_all: dictionaries, and the edits of all minimal paths are pooled, each as often as sets of edits
        have it. first_path: the first path alone, with dictionaries where they are given. no_dict: no dictionaries,
        all paths. A pair of more than 1,024 minimal paths has the edits of the first one.
      numbers: what a pair that is too long is called in the error; from 1 where they are not given.

    Raises:
      InputError: an unknown mode, official_all without dictionaries, no_dict with them, a pair too long to align.
    """
    check_mode(mode, dictionaries)
    targets = [characters(simplified("".join(target.split()))) for _, target in pairs]
    special = {NO_ERROR: Edited((NOOP,)), NOT_ANNOTATABLE: Edited((NA,))}
    found: dict[tuple[Tokens, Tokens], Edited] = {}
    for (source, _), target in zip(pairs, targets):
        if source == target or target in special:
            found[source, target] = special[NO_ERROR if source == target else target]
    asked = [key for key in dict.fromkeys((s, t) for (s, _), t in zip(pairs, targets)) if key not in found]
    for number, (source, _), target in zip(numbers or range(1, len(pairs) + 1), pairs, targets):
        if (source, target) not in found:
            check_size(source, target, number)
    for (source, target), (paths, cut) in zip(asked, minimal_paths(asked, dictionaries, every=mode != "first_path")):
        distinct = dict.fromkeys(merged(path, source, target) for path in paths)
        pooled = tuple(edit for steps in distinct for edit in as_edits(steps, target))
        found[source, target] = Edited(pooled, cut)
    return [found[source, target] for (source, _), target in zip(pairs, targets)]


def check_mode(mode: Mode, dictionaries: Dictionaries | None) -> None:
    """Refuse a mode that does not go with the dictionaries."""
    if mode not in ("official_all", "first_path", "no_dict"):
        raise InputError(f"'{mode}' is no mode", field="mode", cure="Choose official_all, first_path or no_dict")
    if mode == "official_all" and dictionaries is None:
        cure = "Give a thesaurus, a confusion set and readings, or choose no_dict"
        raise InputError("official_all needs dictionaries", field="mode", cure=cure)
    if mode == "no_dict" and dictionaries is not None:
        raise InputError("no_dict takes no dictionaries", field="mode", cure="Choose official_all or leave them out")


def score(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    mode: Mode = "no_dict",
    dictionaries: Dictionaries | None = None,
    *,
    beta: float = 0.5,
) -> Report:
    """Precision, recall and F of hypotheses by ChERRANT's character-level edits, with each sentence's own counts.

    Args:
      references: one or more correct versions of each source; the source itself where it has no error.
      mode, dictionaries: see `all_edits`.
      beta: weight of recall in F.

    Raises:
      InputError: lists of different lengths, a sentence without references; see `all_edits`.

    >>> report = score(["他今天的心情非常很好。"], ["他今天心情非常好。"], [["他今天的心情非常好。"]])
    >>> report.counts, report.precision, report.recall, report.f
    (Counts(tp=1, fp=1, fn=0), 0.5, 1.0, 0.5556)
    """
    sources, hypotheses = texts(sources, "sources"), texts(hypotheses, "hypotheses")
    several = [texts(r, "references") for r in listed(references, "references", "lists of texts", "Give [[text], ...]")]
    if not len(sources) == len(hypotheses) == len(several):
        problem = f"{len(sources)} sources, {len(hypotheses)} hypotheses and {len(several)} lists of references"
        raise InputError(problem, field="references", cure="Give one of each for every sentence")
    for number, each in enumerate(several, 1):
        if not each:
            raise InputError("is empty", record=number, field="references", cure="Give one text or more")
    tokens = [characters(source) for source in sources]
    flat = [(source, text) for source, each in zip(tokens, several) for text in each]
    owners = [number for number, each in enumerate(several, 1) for _ in each]
    gold = iter(all_edits(flat, mode, dictionaries, owners))
    annotated, cut = [], 0
    for source, each in zip(tokens, several):
        edited = [next(gold) for _ in each]
        cut += sum(one.cut for one in edited)
        annotated.append(Annotated(source, tuple(one.edits for one in edited)))
    return score_annotated(annotated, hypotheses, mode, dictionaries, beta=beta, cut=cut)


def score_annotated(
    sentences: Sequence[Annotated],
    hypotheses: Sequence[str],
    mode: Mode = "no_dict",
    dictionaries: Dictionaries | None = None,
    *,
    beta: float = 0.5,
    cut: int = 0,
) -> Report:
    """`score` where the references are edits of characters, as a character-level M2 file has them.

    Args:
      cut: pairs of sources and references of which only the first path was taken.
    """
    if len(sentences) != len(hypotheses):
        problem = f"{len(hypotheses)} hypotheses stand for {len(sentences)} sentences"
        raise InputError(problem, field="hypotheses", cure="Give one for every sentence")
    for number, sentence in enumerate(sentences, 1):
        words = [token for token in sentence.tokens if len(token) > 1 and token != PLACEHOLDER]
        if words:
            cure = "Separate the characters by spaces, or take the scorer m2"
            raise InputError(f"{quoted(words[0])} is not one character", record=number, field="tokens", cure=cure)
    found = all_edits([(s.tokens, text) for s, text in zip(sentences, hypotheses)], mode, dictionaries)
    how = mode if mode != "first_path" else f"{mode} {'without' if dictionaries is None else 'with'} dictionaries"
    compared = [[compare(one.edits, gold) for gold in s.annotators] for one, s in zip(found, sentences)]
    head = Head("cherrant", how, beta, cut + sum(one.cut for one in found))
    return reported(sentences, hypotheses, compared, by_rounded_f, head)
