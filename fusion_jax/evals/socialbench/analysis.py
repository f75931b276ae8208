"""What else the rows show: languages, kinds of items, lengths, positions of options, the pull of a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusion_jax.evals.socialbench.aggregate import DIMENSIONS, Cell, Unparsed, average, cell
from fusion_jax.evals.socialbench.records import EMOTION, GROUP, HUMOR, LETTERS, MEMORY, SITUATION
from fusion_jax.evals.socialbench.rows import Row, grouped
from fusion_jax.intervals import percentiles, resampled

LENGTHS = (0, 20, 40, 80)  # where the buckets of utterances begin
PROFILES = (2, 3, 4, 6)

Strata = dict[str, dict[str, Cell]]
"""What items are parted by -> group -> its score."""


def by_language(rows: Sequence[Row], unparsed: Unparsed) -> Strata:
    """Each dimension by language."""
    return _parted(rows, unparsed, lambda row: row.dimension, lambda row: row.lang)


def by_kind(rows: Sequence[Row], unparsed: Unparsed) -> Strata:
    """What EP Emo. pools: emotions and humour."""
    names = {EMOTION: "emotion", HUMOR: "humour and sarcasm"}
    return _parted(rows, unparsed, lambda row: "EP Emo.", lambda row: names.get(row.category))


def by_options(rows: Sequence[Row], unparsed: Unparsed) -> Strata:
    """Choices by their number of options."""
    return _parted(rows, unparsed, lambda row: "options", lambda row: str(row.options) if row.options else None)


def by_length(rows: Sequence[Row], unparsed: Unparsed) -> Strata:
    """Memory by utterances."""

    def bucket(row: Row) -> str | None:
        return _bucket(row.utterances, LENGTHS, "utterances") if row.category.startswith(MEMORY) else None

    return _parted(rows, unparsed, lambda row: "CM", bucket)


def by_profiles(rows: Sequence[Row], unparsed: Unparsed) -> Strata:
    """Each preference in a group by how many profiles the prompt shows."""
    return _parted(rows, unparsed, _in_group, _group_size)


def drift(rows: Sequence[Row], unparsed: Unparsed) -> list[dict[str, Any]]:
    """How a preference changes as groups grow: each size less the smallest one that there is.

    Each row has the preference, the two sizes, the difference in percent points and its 95 % interval, for which the
    items of both sizes are drawn anew on their own; None where there is a single item of a size.
    """
    found: list[dict[str, Any]] = []
    for preference, some in grouped(rows, _in_group).items():
        sizes = grouped(some, _group_size)
        names = [_named(PROFILES, place, "profiles") for place in range(len(PROFILES))]
        named = [name for name in names if name in sizes]
        for name in named[1:]:
            one, other = (_values(sizes[size], unparsed) for size in (name, named[0]))
            if not len(one) or not len(other):
                continue
            apart = _drawn(one, _seed(preference, name)) - _drawn(other, _seed(preference, named[0]))
            low, high = (None if np.isnan(bound) else bound for bound in percentiles(apart))
            found.append({
                "preference": preference, "size": name, "less": named[0],
                "difference": float(one.mean() - other.mean()), "low": low, "high": high,
            })  # fmt: skip
    return found


def intervals(rows: Sequence[Row], unparsed: Unparsed) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each dimension over its items, with fixed seeds; a dimension of one item has none."""
    groups = grouped(rows, lambda row: row.dimension)
    values = {name: _values(some, unparsed) for name, some in groups.items()}
    return {name: percentiles(_drawn(own, _seed(name))) for name, own in values.items() if len(own) > 1}


def letters_read(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How often each letter was read first, beside how often it is right; of choices with a reply."""
    choices = [row for row in rows if row.options and not row.error]
    first, right = Counter(row.letters[0] for row in choices if row.letters), Counter(row.label[0] for row in choices)
    return {
        letter: {"read first": first[letter], "right": right[letter]}
        for letter in LETTERS
        if first[letter] or right[letter]
    }


def situations(rows: Sequence[Row], unparsed: Unparsed) -> dict[str, Cell]:
    """EP Situ. as published, and where several right letters count only together."""
    some = [row for row in rows if row.category == SITUATION]
    whole = [row.scored._replace(score=row.whole) for row in some]
    return {"partial": cell((row.scored for row in some), unparsed), "strict": cell(whole, unparsed)} if some else {}


def rotations(rows: Sequence[Row], unparsed: Unparsed) -> dict[str, dict[str, float]]:
    """Each dimension of choices over the rotations of options that were asked: mean and worst."""
    found: dict[str, dict[str, float]] = {}
    for name, some in grouped([row for row in rows if row.options], lambda row: row.dimension).items():
        cells = [
            cell((row.scored for row in own), unparsed) for own in grouped(some, lambda row: str(row.rotation)).values()
        ]
        scores = [one.score for one in cells if one.score is not None]
        if scores:
            found[name] = {"mean": sum(scores) / len(scores), "worst": min(scores), "rotations": float(len(scores))}
    return found


def by_chance(rows: Sequence[Row]) -> dict[str, float]:
    """What random answers are expected to score, by dimension; see `scores.chance`."""
    return {
        name: 100 * sum(r.chance for r in some) / len(some)
        for name, some in grouped(rows, lambda r: r.dimension).items()
    }


def trimmed(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Items whose oldest utterances were left out, and how many, by dimension."""
    cut = grouped([row for row in rows if row.dropped], lambda row: row.dimension)
    return {name: {"items": len(some), "utterances": sum(r.dropped for r in some)} for name, some in cut.items()}


def group_and_alone(cells: dict[str, Cell]) -> tuple[float, float] | None:
    """The mean of the six individual dimensions and of the three of groups; None unless all have a score."""
    if average(cells) is None:
        return None
    scores = [float(cells[name].score or 0.0) for name in DIMENSIONS]
    return sum(scores[:6]) / 6, sum(scores[6:]) / 3


def _parted(
    rows: Sequence[Row], unparsed: Unparsed, part: Callable[[Row], str | None], group: Callable[[Row], str | None]
) -> Strata:
    found: Strata = {}
    for name, some in grouped([row for row in rows if group(row) is not None], part).items():
        groups = grouped(some, group)
        found[name] = {own: cell((row.scored for row in groups[own]), unparsed) for own in sorted(groups, key=_place)}
    return found


def _place(name: str) -> tuple[int, str]:
    """What groups are sorted by: the number that a name begins with, if it does."""
    first = name.partition(" ")[0]
    return (int(first) if first.isdecimal() else -1, name)


def _in_group(row: Row) -> str | None:
    return row.dimension if row.category.startswith(GROUP) else None


def _group_size(row: Row) -> str | None:
    return _bucket(row.profiles, PROFILES, "profiles") if row.category.startswith(GROUP) else None


def _bucket(value: int, begins: Sequence[int], unit: str) -> str:
    """The name of the bucket that a number is in.

    >>> _bucket(5, PROFILES, "profiles"), _bucket(2, PROFILES, "profiles"), _bucket(80, LENGTHS, "utterances")
    ('4 to 5 profiles', '2 profiles', '80 or more utterances')
    """
    below = [place for place, begin in enumerate(begins) if begin <= value]
    return _named(begins, below[-1], unit) if below else f"fewer than {begins[0]} {unit}"


def _named(begins: Sequence[int], place: int, unit: str) -> str:
    low = begins[place]
    if place + 1 == len(begins):
        return f"{low} or more {unit}"
    high = begins[place + 1] - 1
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _seed(*names: str) -> int:
    return sum(ord(c) * (place + 1) for place, c in enumerate("/".join(names)))


def _values(rows: Sequence[Row], unparsed: Unparsed) -> np.ndarray:
    """The scores that count, in percent."""
    values = np.asarray([np.nan if row.score is None else 100 * row.score for row in rows if not row.error], float)
    return np.nan_to_num(values) if unparsed == "zero" else values[~np.isnan(values)]


def _drawn(values: np.ndarray, seed: int) -> np.ndarray:
    """float[R]: the mean of each resample."""
    return resampled(lambda drawn: values[drawn].mean(keepdims=True), len(values), seed=seed)[:, 0]
