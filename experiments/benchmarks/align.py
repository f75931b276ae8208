"""Alignment beside the algorithms of the official code, re-created: the same texts, one process, one run.

    python experiments/benchmarks/align.py                                              # the zoo's tokenizers
    python experiments/benchmarks/align.py --pivot llama2.model --source llama3.tiktoken --texts texts.txt

First row: two tokenisations of one text of `length` pivot tokens; beside it the table of the official code, a NumPy
float64 table filled cell by cell in Python with one edit distance a cell (FuseLLM/FuseChat spec sections 4 and 14).
Pieces are compared as raw strings, as there. Second row: the MinED map of the source's vocabulary; beside it the
official scan of the whole pivot vocabulary for each unmatched token, timed on `sample` tokens spread over them and
EXTRAPOLATED to all. Distances of the re-creations come from the official code's package `editdistance` where it is
installed (pip install editdistance==0.8.1), else from rapidfuzz, which is several times faster: the ratio is then too
small. The program ends with an error where ranges or images differ. Time on 2 CPU cores: the default 10 s, the
vocabularies of Llama-2 and Llama-3 about a minute.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fusion_jax.align.coverage import NamedTokenizer
from fusion_jax.align.sequences import UP_BEFORE_LEFT, Variant, align
from fusion_jax.align.views import TokenizerView, delete_marks, replace_marks
from fusion_jax.align.vocabulary import exact_map, mined_map
from fusion_jax.errors import InputError
from fusion_jax.markdown import markdown_table
from fusion_jax.runs.tokenizer_pairs import groups_of, named_tokenizer
from fusion_jax.settings import run as run_experiment

try:
    from editdistance import eval as edit_distance

    COUNTED_BY = "editdistance"
except ImportError:
    from rapidfuzz.distance.Levenshtein import distance as edit_distance

    COUNTED_BY = "rapidfuzz"

T = TypeVar("T")
Cost = Callable[[str, str], float]


@dataclass(frozen=True)
class Settings:
    """pivot, source, texts: as in align_report.py. variant: "fusellm" or "chat_v1", which compare pieces.

    repeats: how often our side runs; the median is shown. out: JSON lines of the raw figures.
    """

    pivot: str = "zoo:target"
    source: str = "zoo:qwen-source"
    texts: tuple[str, ...] = ()
    length: int = 2048
    variant: Variant = "fusellm"
    repeats: int = 5
    sample: int = 50
    out: str = ""


def timed(call: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """The result and the median of the seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def cost_of(pivot: TokenizerView, source: TokenizerView, variant: Variant) -> Cost:
    """The official cost of a source piece and a pivot piece; the marks are deleted at every call, as there."""

    def cost(theirs: str, ours: str) -> float:
        a, b = delete_marks(theirs, source), delete_marks(ours, pivot)
        edits = edit_distance(a, b)
        return edits * 0.1 if variant == "chat_v1" and (a in b or b in a) else edits

    return cost


def plain_table(rows: list[str], columns: list[str], cost: Cost) -> np.ndarray:
    """float64[n+1,m+1], cell by cell."""
    table = np.full((len(rows) + 1, len(columns) + 1), np.inf)
    table[0, 0] = 0
    for i, theirs in enumerate(rows, 1):
        for j, ours in enumerate(columns, 1):
            least = min(table[i - 1, j - 1], table[i - 1, j], table[i, j - 1])
            table[i, j] = least + cost(theirs, ours)
    return table


def plain_ranges(table: np.ndarray, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """First and last source token of each pivot token, the way back through the table."""
    moves = [(-1, -1), (-1, 0), (0, -1)] if UP_BEFORE_LEFT[variant] else [(-1, -1), (0, -1), (-1, 0)]
    i, j = table.shape[0] - 1, table.shape[1] - 1
    first, last = np.zeros(j, np.int32), np.full(j, -1, np.int32)
    while i and j:
        first[j - 1] = i - 1
        last[j - 1] = max(last[j - 1], i - 1)
        down, along = min(moves, key=lambda move: table[i + move[0], j + move[1]])
        i, j = i + down, j + along
    return first, last


def plain_nearest(text: str, pivot: TokenizerView) -> int:
    """The first pivot piece at the least distance, by a scan of all."""
    best, nearest = sys.maxsize, -1
    for number, piece in enumerate(pivot.pieces):
        if piece:
            found = edit_distance(text, piece)
            if found < best:
                best, nearest = found, number
    return nearest


def sequences(s: Settings, pivot: NamedTokenizer, source: NamedTokenizer) -> dict[str, Any]:
    """The row of the alignment of two token sequences."""
    whole = "\n".join(t for texts in groups_of(s.texts).values() for t in texts)
    spans = pivot.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(spans) < s.length:
        raise InputError(f"hold {len(spans)} pivot tokens", field="--texts", cure=f"Give at least {s.length}")
    ours, theirs = (
        side.tokenizer(whole[: spans[s.length - 1][1]], add_special_tokens=False)["input_ids"]
        for side in (pivot, source)
    )
    found, seconds = timed(lambda: align(ours, theirs, pivot.view, source.view, s.variant, "raw"), s.repeats)
    rows, columns = ([side.view.pieces[i] for i in ids] for side, ids in ((source, theirs), (pivot, ours)))
    cost = cost_of(pivot.view, source.view, s.variant)
    (first, last), official = timed(lambda: plain_ranges(plain_table(rows, columns, cost), s.variant))
    if not (np.array_equal(found.first, first) and np.array_equal(found.last, last)):
        raise InputError("the ranges differ from the re-created official ones", field="align")
    return {
        "what": f"{s.variant}, {len(ours)} x {len(theirs)} tokens", "ours s": f"{seconds:.4f}",
        "official re-created s": f"{official:.2f}", "ratio": f"{official / seconds:.0f}", "equal": "all ranges",
        "distances by": COUNTED_BY,
    }  # fmt: skip


def vocabularies(s: Settings, pivot: NamedTokenizer, source: NamedTokenizer) -> dict[str, Any]:
    """The row of the MinED map."""
    found, seconds = timed(lambda: mined_map(pivot.view, source.view, "raw"))
    unmatched = np.flatnonzero((exact_map(pivot.view, source.view, "raw").ids < 0) & (found.ids >= 0))
    if not len(unmatched):
        raise InputError("every piece of the source is one of the pivot", field="--source", cure="Take another pair")
    sample = unmatched[np.unique(np.linspace(0, len(unmatched) - 1, s.sample).astype(int))].tolist()
    texts = [replace_marks(source.view.pieces[i], source.view, pivot.view) for i in sample]
    images, official = timed(lambda: [plain_nearest(text, pivot.view) for text in texts])
    if images != found.ids[sample].tolist():
        raise InputError("images differ from the re-created official ones", field="mined_map")
    each = official / len(sample)
    return {
        "what": f"MinED, {source.view.size} onto {pivot.view.size} ids, {len(unmatched)} unmatched",
        "ours s": f"{seconds:.2f}",
        "official re-created s": f"{each * len(unmatched):.2f} (extrapolated from {each * 1e3:.1f} ms a token)",
        "ratio": f"{each * len(unmatched) / seconds:.1f}", "equal": f"{len(sample)} images of the sample",
        "distances by": COUNTED_BY,
    }  # fmt: skip


def main(s: Settings) -> None:
    if s.variant == "chat_v2":
        raise InputError("is not re-created here", field="--variant", cure="Use fusellm or chat_v1")
    for name, value in (("--length", s.length), ("--repeats", s.repeats), ("--sample", s.sample)):
        if value < 1:
            raise InputError(f"{value} is too small", field=name, cure="Give 1 or more")
    pivot, source = named_tokenizer(s.pivot, "--pivot"), named_tokenizer(s.source, "--source")
    rows = [sequences(s, pivot, source), vocabularies(s, pivot, source)]
    print(markdown_table(rows))
    if s.out:
        Path(s.out).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run_experiment(Settings, main, description=__doc__)
